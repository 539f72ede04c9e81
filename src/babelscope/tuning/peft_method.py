"""The adapter as a method of PEFT: a thin shell over `adapter`, registered when this module is imported.

PEFT keeps its methods in a closed enum, so the name is added to it as a pseudo-member; everything else goes through
`register_peft_method`. To load an adapter in a new process, name `babelscope.NeuronAdapterConfig` once before
`PeftModel.from_pretrained`: PEFT has no entry points through which it could find the method by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.errors import ConfigError, DataError, MissingDependencyError, ProvenanceError
from babelscope.neurons.neuronset import NeuronSet
from babelscope.tuning.adapter import Adapted, Change, places

try:
    from peft import PeftConfig, PeftType, TaskType
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
    from peft.utils import register_peft_method
except ImportError as error:
    raise MissingDependencyError(
        f"the PEFT adapter needs the package peft, which can't be imported ({error}). Install it, or train without it "
        'through babelscope.tuning.adapter.attach:\npip install "babelscope[tune]"'
    ) from error

METHOD = "BABELSCOPE"
"""What adapter_config.json calls this method (`peft_type`)."""


@dataclass
class NeuronAdapterConfig(PeftConfig):
    """Trains the rows and columns of chosen neurons; see `from_neurons`.

    All of it goes into adapter_config.json: the neurons with their provenance, so the adapter is complete in itself.
    """

    neurons: dict[str, list[str]] = field(default_factory=dict)
    """Slot -> for each layer its units, as a string of numbers with spaces between."""
    widths: dict[str, list[int]] = field(default_factory=dict)
    """Slot -> units of the model in each layer."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the set comes from; its model is compared with the base when the adapter is put on."""
    force: bool = False
    """Accept another base model with the same shapes."""
    target_modules: list[str] | None = None
    """Names of the modules that hold the neurons, as PEFT shows them; found anew from the neurons, never read."""

    def __post_init__(self) -> None:
        """As PEFT asks: the type is set here."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType(METHOD)

    @classmethod
    def from_neurons(cls, neurons: NeuronSet, *, force: bool = False, **options: Any) -> NeuronAdapterConfig:
        """The configuration that trains these neurons.

        Args:
            neurons: rows of W_Q, W_K, W_V, W_up and W_gate (biases included) and columns of W_O and W_down.
            force: accept another base model with the same shapes, for example a quantised copy.
            **options: of `peft.PeftConfig`; `task_type` is CAUSAL_LM unless given.

        Raises:
            ConfigError: the set is empty.
        """
        if not neurons:
            raise ConfigError("the set has no neurons, so there is nothing to train. Select with a larger budget.")
        return cls(
            neurons={
                slot: [" ".join(map(str, units.tolist())) for units in layers]
                for slot, layers in neurons.indices.items()
            },
            widths={slot: list(layers) for slot, layers in neurons.widths.items()},
            provenance=dict(neurons.provenance),
            force=force,
            **{"task_type": TaskType.CAUSAL_LM, **options},
        )

    def neuron_set(self) -> NeuronSet:
        """The neurons, without scores.

        Raises:
            DataError: the configuration is damaged.
        """
        try:
            masks: dict[str, list[Tensor]] = {}
            for slot, widths in self.widths.items():
                masks[slot] = [torch.zeros(width, dtype=torch.bool) for width in widths]
                for mask, units in zip(masks[slot], self.neurons[slot], strict=True):
                    mask[[int(unit) for unit in units.split()]] = True
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DataError(
                f"the adapter's neurons can't be read ({error!r}): adapter_config.json is damaged. Copy it again."
            ) from None
        return NeuronSet.from_masks(masks, provenance=self.provenance)


class NeuronLayer(Adapted, BaseTunerLayer):
    """A module with changes, of which PEFT decides which are active, merged or off."""

    adapter_layer_names = ("neuron_delta",)
    other_param_names = ()

    def applied(self) -> list[Change]:
        """The active changes."""
        if self.disable_adapters:
            return []
        here = [name for name in self.active_adapters if name in self.neuron_delta and name not in self.merged_adapters]
        return [self.neuron_delta[name] for name in here]  # type: ignore[misc]

    def forward(self, *inputs: Tensor, **kwargs: Any) -> Tensor:
        """As `Adapted.forward`; disabling takes merged changes out again, as PEFT's own methods do."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        return super().forward(*inputs, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Writes adapters into the weights; always checked for values that aren't finite."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.neuron_delta:
                self.write(name)


class NeuronTuner(BaseTuner):
    """Puts `NeuronLayer`s where the neurons of a configuration are."""

    prefix = "neuron_"
    tuner_layer_cls = NeuronLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT declares it as it is)

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        try:
            self._places = places(self.model, peft_config.neuron_set(), force=peft_config.force)
        except ProvenanceError as error:
            raise ProvenanceError(
                f"the adapter is not of this base model: {error} In a saved adapter, adapter_config.json holds `force`."
            ) from None
        peft_config.target_modules = sorted({name.rpartition(".")[2] for name in self._places})
        return peft_config

    def _check_target_module_exists(self, peft_config: Any, key: str) -> bool:  # type: ignore[override]
        return key in self._places

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        kind, index = self._places[current_key]
        layer = target if isinstance(target, NeuronLayer) else NeuronLayer(target)
        layer.neuron_delta[adapter_name] = kind(layer.base_layer, index)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own reads child.weight, which a module of experts doesn't have, and moves the adapter to its device,
        # where the changes are already.
        setattr(parent, child_name, new_module)


def _register() -> None:
    """Adds the method to PEFT."""
    if METHOD not in PeftType.__members__:
        member = str.__new__(PeftType, METHOD)
        member._name_ = member._value_ = METHOD
        type.__setattr__(PeftType, METHOD, member)
        PeftType._member_map_[METHOD] = PeftType._value2member_map_[METHOD] = member
        PeftType._member_names_.append(METHOD)
    register_peft_method(
        name=METHOD.lower(), config_cls=NeuronAdapterConfig, model_cls=NeuronTuner, prefix=NeuronTuner.prefix
    )


_register()
