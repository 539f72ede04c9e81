"""Anatomy: the map of a model's units, located and then checked against the model itself."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import nn

from babelscope.errors import UnsupportedModelError
from babelscope.impacts.formulas import RotationStyle
from babelscope.models import parallel
from babelscope.models.families import MODEL_TYPES
from babelscope.models.locate import locate_layers, probe
from babelscope.models.selfcheck import self_check
from babelscope.models.slots import SLOTS, resolve_slots
from babelscope.models.unitmap import UnitMap


class Anatomy(UnitMap):
    """Where the neurons of a model live.

    Building it locates every slot and then checks the impact formulas against really zeroing a few units, so an
    anatomy that exists is one that can be trusted. The check runs a few times 16 tokens through single sub-layers
    and is remembered for as long as the model lives.

    Args:
        model: a causal language model of transformers.
        slots: the slots that must work; fewer than all five let a partly supported model through.
        check: run the numerical self-check (it needs one short forward pass).

    Raises:
        UnsupportedModelError: a slot can't be located, or its computed impact differs from really zeroing the unit.
    """

    def __init__(self, model: nn.Module, slots: Iterable[str] = SLOTS, check: bool = True) -> None:
        slots = resolve_slots(slots)
        config = _config_of(model)
        model_type = getattr(config, "model_type", "")
        family = MODEL_TYPES.get(model_type)
        name = family.name if family else f"recognised: {model_type or type(model).__name__}"
        super().__init__(model, slots, name, locate_layers(model, family or probe(model), slots))
        self.mesh = parallel.find_mesh(model)
        if self.mesh is not None:
            parallel.check_parts(self)
        if check:
            self._check()

    def _check(self) -> None:
        checked = _CHECKED.setdefault(self.model, {})
        if self.slots not in checked:
            self_check(self)
            checked[self.slots] = [layer.attention.rotation for layer in self.layers]
        for layer, rotation in zip(self.layers, checked[self.slots], strict=True):
            layer.attention.rotation = rotation


_CHECKED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], list[RotationStyle | None]]] = (
    weakref.WeakKeyDictionary()
)


def _config_of(model: nn.Module) -> object:
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(
            "the model is wrapped by torch.compile, which can skip the hooks that observe it. "
            "Pass the model itself (model._orig_mod) and compile it afterwards."
        )
    if not hasattr(model, "config"):
        raise UnsupportedModelError(
            f"wanted a causal language model of transformers, found {type(model).__name__} without a config. "
            "Load it with babelscope.load_model or AutoModelForCausalLM.from_pretrained."
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder; Babelscope reads decoder-only models. "
            "Choose a causal language model."
        )
    return model.config
