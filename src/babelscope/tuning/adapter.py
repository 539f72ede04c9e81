"""Chosen neurons as parameters: their rows and columns alone, over a frozen model.

Names carry their axes: `n` chosen rows, columns or units, `M` model width, `in` and `out` of a linear module.

A row r of a linear module turns into W[r] + delta, so output channel r grows by `delta @ x`; a column c turns into
W[:, c] + delta, so the output grows by `delta * x[c]`. Neither needs a dense delta, a mask or a gradient of the size
of the weight. The deltas are float32 (float64 under a float64 model) and zero at first: the model is the base, bit by
bit, until they are trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from babelscope.errors import ConfigError, NumericsError, UnsupportedModelError
from babelscope.models.anatomy import Anatomy
from babelscope.models.linear import is_transposed, linear_shape
from babelscope.models.load import fingerprint
from babelscope.models.unitmap import LayerAnatomy
from babelscope.neurons.neuronset import NeuronSet

Addition = tuple[Tensor, tuple[Any, ...], Tensor]
"""A weight, the index that selects chosen values in it, and what to add to them."""


class Change(nn.Module):
    """What one adapter adds to one module."""

    index: Tensor
    """int64 [n], sorted."""

    def __init__(self, base: nn.Module, index: Tensor) -> None:
        super().__init__()
        devices = [each.device for each in itertools.chain(base.parameters(), base.buffers())]
        there = next((device for device in devices if device.type != "meta"), index.device)
        self.register_buffer("index", index.to(there), persistent=False)

    @classmethod
    def add(cls, changes: Sequence[Any], base: nn.Module, output: Tensor, *inputs: Tensor) -> Tensor:
        """The output of `base` for `inputs`, with the changes."""
        for change in changes:
            output = change(output, *inputs)
        return output

    def additions(self, base: nn.Module) -> Iterator[Addition]:
        """The changes as values to add to the weights of `base`."""
        raise NotImplementedError

    def _zeros(self, base: nn.Module, *shape: int) -> nn.Parameter:
        """Float32, or float64 under a float64 weight, where `base` is; quantised weights count as float32."""
        dtypes = [each.dtype for each in base.parameters() if each.is_floating_point()]
        dtype = torch.promote_types(dtypes[0], torch.float32) if dtypes else torch.float32
        return nn.Parameter(torch.zeros(shape, dtype=dtype, device=self.index.device))


class Rows(Change):
    """Changes of output channels of a linear module, biases included."""

    weight: nn.Parameter
    """[n, in]"""
    bias: nn.Parameter | None
    """[n]"""

    def __init__(self, base: nn.Module, index: Tensor) -> None:
        super().__init__(base, index)
        self.weight = self._zeros(base, len(index), linear_shape(base)[1])
        self.bias = self._zeros(base, len(index)) if getattr(base, "bias", None) is not None else None

    def forward(self, output: Tensor, states: Tensor) -> Tensor:
        """The output [..., out] for states [..., in], with the chosen channels changed."""
        # In the dtype of the states: they are kept for the backward pass as they are, not as a wider copy.
        bias = None if self.bias is None else self.bias.to(states.dtype)
        change = F.linear(states, self.weight.to(states.dtype), bias)
        return output.index_add(-1, self.index, change.to(output.dtype))

    def additions(self, base: nn.Module) -> Iterator[Addition]:
        """As `Change.additions`."""
        weight: Any = getattr(base, "weight", None)  # some quantised modules have none
        if is_transposed(base):
            yield weight, (slice(None), self.index), self.weight.T
        else:
            yield weight, (self.index,), self.weight
        if self.bias is not None:
            bias: Any = base.bias
            yield bias, (self.index,), self.bias


class Columns(Change):
    """Changes of input channels of a linear module."""

    weight: nn.Parameter
    """[out, n]"""

    def __init__(self, base: nn.Module, index: Tensor) -> None:
        super().__init__(base, index)
        self.weight = self._zeros(base, linear_shape(base)[0], len(index))

    def forward(self, output: Tensor, states: Tensor) -> Tensor:
        """The output [..., out] for states [..., in], with what the chosen channels send changed."""
        chosen = states.index_select(-1, self.index)
        return output + F.linear(chosen, self.weight.to(chosen.dtype)).to(output.dtype)

    def additions(self, base: nn.Module) -> Iterator[Addition]:
        """As `Change.additions`."""
        weight: Any = getattr(base, "weight", None)  # some quantised modules have none
        if is_transposed(base):
            yield weight, (self.index,), self.weight.T
        else:
            yield weight, (slice(None), self.index), self.weight


class ExpertUnits(Change):
    """Changes of units of a mixture of experts, whose matrices are 3-D parameters of one module.

    What a unit sends is not linear in its gate, so the chosen units are computed beside the experts, as they are and
    as they were, and the difference is added. Their old weights are read, never copied as a whole.
    """

    gate: nn.Parameter
    up: nn.Parameter
    down: nn.Parameter
    """Each [n, M]; the index is expert * units of an expert + unit."""

    def __init__(self, base: nn.Module, index: Tensor) -> None:
        super().__init__(base, index)
        width: int = base.down_proj.shape[1]  # type: ignore[assignment,index]
        self.gate, self.up, self.down = (self._zeros(base, len(index), width) for _ in range(3))

    @classmethod
    def add(cls, changes: Sequence[Any], base: nn.Module, output: Tensor, *inputs: Tensor) -> Tensor:
        """The output [B * T, M] of the experts for (states [B * T, M], expert ids [B * T, K], routing [B * T, K])."""
        states, expert_ids, routing = inputs
        gate_up: Any = base.gate_up_proj
        down: Any = base.down_proj
        act_fn: Any = base.act_fn
        width = down.shape[-1]
        # Two adapters may change the same unit: their deltas are added before the activation, as merging would do.
        index, place = torch.unique(torch.cat([each.index for each in changes]), return_inverse=True)
        deltas = [
            parts[0].new_zeros(len(index), parts[0].shape[1]).index_add(0, place, torch.cat(parts)).to(states.dtype)
            for parts in ([getattr(each, name) for each in changes] for name in ("gate", "up", "down"))
        ]
        found = torch.zeros_like(output)
        experts, counts = (index // width).unique_consecutive(return_counts=True)
        sizes = counts.tolist()
        for expert, units, gate_nM, up_nM, down_nM in zip(
            experts.tolist(), (index % width).split(sizes), *(each.split(sizes) for each in deltas), strict=True
        ):
            # An expert that no token went to still takes part: DDP waits for the gradients of all parameters.
            token, choice = (expert_ids == expert).nonzero(as_tuple=True)
            here = states[token]
            gate = F.linear(here, gate_up[expert, units])
            up = F.linear(here, gate_up[expert, units + width])
            before = act_fn(gate) * up
            after = act_fn(gate + F.linear(here, gate_nM)) * (up + F.linear(here, up_nM))
            change = F.linear(after - before, down[expert][:, units]) + after @ down_nM
            found = found.index_add(0, token, (change * routing[token, choice, None]).to(found.dtype))
        return output + found

    def additions(self, base: nn.Module) -> Iterator[Addition]:
        """As `Change.additions`."""
        gate_up: Any = base.gate_up_proj
        down: Any = base.down_proj
        expert, unit = self.index // down.shape[-1], self.index % down.shape[-1]
        yield gate_up, (expert, unit), self.gate
        yield gate_up, (expert, unit + down.shape[-1]), self.up
        yield down, (expert, slice(None), unit), self.down


class Adapted(nn.Module):
    """A module of the base model with changes of its neurons, by adapter name.

    What is asked of it and not found here is answered by the module inside.
    """

    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.neuron_delta = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._before: list[Addition] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    @property
    def weight(self) -> Tensor:
        """The weight [out, in] of a linear module, changes included; of a quantised or sharded one, what it stores."""
        stored: Any = self.base_layer.weight
        if not _is_writable(stored):
            return stored  # type: ignore[no-any-return]
        dense: Tensor = stored.detach()
        for change in self.applied():
            for weight, index, delta in change.additions(self.base_layer):
                if weight is stored:
                    dense = dense.clone()
                    dense[index] = _sum(dense[index], delta)
        return dense.T if is_transposed(self.base_layer) else dense

    def applied(self) -> list[Change]:
        """The changes that `forward` adds."""
        named: Any = self.neuron_delta.items()
        return [change for name, change in named if name not in self.merged_adapters]

    def forward(self, *inputs: Tensor, **kwargs: Any) -> Tensor:
        """What the base layer returns for these inputs, with the changes."""
        output: Tensor = self.base_layer(*inputs, **kwargs)
        changes = self.applied()
        return changes[0].add(changes, self.base_layer, output, *inputs) if changes else output

    def write(self, name: str) -> None:
        """Adds an adapter's changes to the weights of the base layer.

        Raises:
            UnsupportedModelError: the weights are quantised or elsewhere, also in part.
            NumericsError: a sum is not finite; nothing was written.
        """
        change: Any = self.neuron_delta[name]
        sums: list[Addition] = []
        for weight, index, delta in change.additions(self.base_layer):
            if not _is_writable(weight):
                raise UnsupportedModelError(
                    f"the weights of {type(self.base_layer).__name__} are quantised, offloaded or shared out over "
                    "processes (FSDP), so nothing can be merged into them. Load the base model whole and unquantised, "
                    "put the saved adapter on it and merge there."
                )
            after = _sum(weight.data[index], delta)
            if not torch.isfinite(after).all():
                raise NumericsError(
                    f"adapter {name!r} would put NaN or infinite values into {type(self.base_layer).__name__}. "
                    "Train again at a lower learning rate."
                )
            sums.append((weight.data, index, after))
        for data, index, after in sums:
            self._before.append((data, index, data[index].clone()))
            data[index] = after
        self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Puts back, bit by bit, the weights as they were before every `write`."""
        while self._before:
            data, index, before = self._before.pop()
            data[index] = before
        self.merged_adapters.clear()


def locate(anatomy: Anatomy, neurons: NeuronSet) -> dict[str, tuple[type[Change], Tensor]]:
    """Which rows, columns or expert units of which modules belong to a set.

    Returns:
        Module name -> (`Rows`, `Columns` or `ExpertUnits`, sorted int64 index), in the order of the model.

    Raises:
        UnsupportedModelError: the units are of experts that are quantised.
    """
    found: dict[nn.Module, tuple[type[Change], list[Tensor]]] = {}
    for slot, layers in neurons.indices.items():
        for layer, units in zip(anatomy.layers, layers, strict=True):
            for module, kind, index in _parts(layer, slot, units) if len(units) else ():
                found.setdefault(module, (kind, []))[1].append(index)
    return {
        name: (found[module][0], torch.cat(found[module][1]).unique())
        for name, module in anatomy.model.named_modules()
        if module in found
    }


def _parts(layer: LayerAnatomy, slot: str, units: Tensor) -> Iterator[tuple[nn.Module, type[Change], Tensor]]:
    attention, ffn = layer.attention, layer.ffn
    if slot == "o":
        yield attention.output, Columns, units
    elif slot != "ffn":
        projection = {"q": attention.query, "k": attention.key, "v": attention.value}[slot]
        yield projection.module, Rows, projection.channels(units)
    elif ffn.experts is not None:
        if not all(_is_unquantised(each) for each in (ffn.experts.gate_up_proj, ffn.experts.down_proj)):
            raise UnsupportedModelError(
                f"the experts of {type(ffn.experts).__name__} are quantised, and their units can't be computed from "
                "that. Load the model unquantised, or leave the slot ffn out: neurons.at(slots=...)."
            )
        yield ffn.experts, ExpertUnits, units
    else:
        for projection in (each for each in (ffn.up, ffn.gate) if each is not None):
            yield projection.module, Rows, projection.channels(units)
        assert ffn.down is not None
        yield ffn.down, Columns, units


def places(model: nn.Module, neurons: NeuronSet, *, force: bool = False) -> dict[str, tuple[type[Change], Tensor]]:
    """As `locate`, once the set is known to belong to the model (under adapters or not).

    Raises:
        ConfigError: the set is empty.
        ProvenanceError: the set was found in another model; `force` accepts one with the same shapes.
        UnsupportedModelError: quantisation made a module unreachable.
    """
    if not neurons:
        raise ConfigError("the set has no neurons, so there is nothing to train. Select with a larger budget.")
    anatomy = Anatomy(model, tuple(neurons.widths), check=False)
    neurons.check(anatomy, force=force, known=fingerprint(_Plain(model)))  # type: ignore[arg-type]
    return locate(anatomy, neurons)


def attach(model: nn.Module, neurons: NeuronSet, *, force: bool = False) -> list[nn.Parameter]:
    """Freezes a model and makes the rows and columns of a set its only parameters; needs no PEFT.

    Args:
        model: a causal language model of transformers; changed in place until `detach`.
        neurons: whose rows of W_Q, W_K, W_V, W_up and W_gate (with biases) and columns of W_O and W_down are trained.
        force: accept a set of another model with the same shapes.

    Returns:
        The trainable parameters.

    Raises:
        ConfigError: the set is empty, or the model has an adapter already.
        ProvenanceError: the set belongs to another model.
        UnsupportedModelError: quantisation made a module unreachable; the model is as it was.
    """
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ConfigError("the model carries an adapter already. Detach or merge it first, or use PEFT for several.")
    found = places(model, neurons, force=force)
    model.requires_grad_(False)
    parameters: list[nn.Parameter] = []
    for name, (kind, index) in found.items():
        base = model.get_submodule(name)
        adapted = Adapted(base)
        adapted.neuron_delta["default"] = kind(base, index)
        _replace(model, name, adapted)
        parameters += adapted.neuron_delta.parameters()
    return parameters


def detach(model: nn.Module, *, merge: bool = False) -> nn.Module:
    """The plain model again, in place: as it was, or with the changes merged into its weights. It stays frozen.

    Raises:
        UnsupportedModelError, NumericsError: as `Adapted.write`; nothing is merged then, and the adapter stays.
    """
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, Adapted)]
    try:
        for _, module in adapted if merge else ():
            module.write("default")
    except BaseException:
        for _, module in adapted:
            module.unmerge()
        raise
    for name, module in adapted:
        _replace(model, name, module.base_layer)
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _is_unquantised(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.is_floating_point() and weight.element_size() > 1


def _is_writable(weight: Any) -> bool:
    return (
        _is_unquantised(weight)
        and weight.device.type != "meta"
        and not hasattr(weight, "device_mesh")  # a DTensor, of which other processes hold parts
    )


def _sum(values: Tensor, delta: Tensor) -> Tensor:
    """Weights with a delta added in its precision, rounded once to their own."""
    return (values.to(delta.dtype) + delta.detach()).to(values.dtype)


class _Plain:
    """A model as `fingerprint` would see it without its adapters."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if ".neuron_delta." not in name:
                yield name.replace(".base_layer.", "."), parameter
