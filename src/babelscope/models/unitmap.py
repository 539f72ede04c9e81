"""The map of a model's units: where each slot's rows and columns live. Plain data: nothing here runs the model.

A neuron is one row or column of a parameter matrix (paper, section 2.1). Five slots:

| slot | unit | index space |
|---|---|---|
| q | output channel of W_Q | n_heads x head_dim |
| k | output channel of W_K | n_kv_heads x head_dim |
| v | output channel of W_V | n_kv_heads x head_dim |
| o | input channel of W_O | n_heads x head_dim |
| ffn | intermediate unit | intermediate_size (n_experts x intermediate_size in a mixture of experts) |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from babelscope.errors import ConfigError
from babelscope.impacts.formulas import RotationStyle
from babelscope.models.linear import Projection, column_place, row_places
from babelscope.models.slots import resolve_slots


@dataclass
class AttentionAnatomy:
    """One layer's attention."""

    module: nn.Module
    query: Projection
    key: Projection
    value: Projection
    output: nn.Module
    n_heads: int
    n_kv_heads: int
    head_dim: int
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None
    query_scale: float = 1.0
    own_attention: bool = False
    rotation: RotationStyle | None = None
    """Found by the self-check, from what the attention function really received; None: no rotation."""


@dataclass
class FeedForwardAnatomy:
    """One layer's FFN."""

    module: nn.Module
    """What to call to run it alone: the MLP, or the decoder layer when the matrices hang on the layer itself."""
    up: Projection | None = None
    gate: Projection | None = None
    down: nn.Module | None = None
    experts: nn.Module | None = None
    """Module with 3-D `gate_up_proj` and `down_proj`; then `up`, `gate` and `down` are None."""
    n_experts: int = 1
    width: int = 0
    """Units of one expert, or of the whole FFN."""


@dataclass
class LayerAnatomy:
    """One decoder layer."""

    index: int
    module: nn.Module
    attention: AttentionAnatomy
    ffn: FeedForwardAnatomy

    def width(self, slot: str) -> int:
        """Number of units of a slot."""
        if slot == "ffn":
            return self.ffn.n_experts * self.ffn.width
        heads = self.attention.n_heads if slot in ("q", "o") else self.attention.n_kv_heads
        return heads * self.attention.head_dim


@dataclass(eq=False)
class UnitMap:
    """Where the units of a model, or of one layer of it, live."""

    model: nn.Module = field(repr=False)
    slots: tuple[str, ...]
    family: str
    """Name of the family, or "recognised: <model type>" when found by probing."""
    layers: list[LayerAnatomy] = field(repr=False)
    mesh: Any = field(repr=False, default=None)
    """The processes that hold the model together (tensor parallel); None: this one alone. Widths are the whole's."""

    def of_layer(self, layer: LayerAnatomy) -> UnitMap:
        """The map of one layer alone (a copy, say), to observe it by itself; its only layer has index 0."""
        return UnitMap(layer.module, self.slots, self.family, [layer])

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    def width(self, slot: str, layer: int) -> int:
        """Number of units of a slot in a layer."""
        return self.layers[layer].width(resolve_slots((slot,))[0])

    def widths(self) -> dict[str, list[int]]:
        """Units by slot and layer."""
        return {slot: [self.width(slot, layer) for layer in range(self.n_layers)] for slot in self.slots}

    def expert_unit(self, layer: int, expert: int, unit: int) -> int:
        """Index in the `ffn` slot of a unit addressed by expert and unit."""
        ffn = self.layers[layer].ffn
        if not (0 <= expert < ffn.n_experts and 0 <= unit < ffn.width):
            raise ConfigError(
                f"layer {layer} has experts 0..{ffn.n_experts - 1} of units 0..{ffn.width - 1}, "
                f"found expert {expert}, unit {unit}. Correct the address."
            )
        return expert * ffn.width + unit

    def weights(self, slot: str, layer: int, units: Tensor) -> list[tuple[nn.Parameter, tuple[Any, ...]]]:
        """Every weight that belongs to these units: pairs of a parameter and the index that selects them in it.

        `parameter[index] = 0` for all pairs switches the units off; biases of the rows are included.

        Args:
            slot: q, k, v, o or ffn.
            layer: the layer.
            units: int64 [n].
        """
        part = self.layers[layer]
        if slot == "ffn":
            return self._ffn_weights(part.ffn, units)
        if slot == "o":
            return [column_place(part.attention.output, units)]
        projection = {"q": part.attention.query, "k": part.attention.key, "v": part.attention.value}[slot]
        return row_places(projection, units)

    def unscored(self, layer: int) -> list[str]:
        """Names, within a layer, of its weight matrices that hold no unit of any slot of this map.

        Routers, convolutions and low-rank factors are such matrices. Norms and biases are no matrices.
        """
        part = self.layers[layer]
        attention, ffn = part.attention, part.ffn
        holders: dict[str, list[nn.Module | None]] = {
            "q": [attention.query.module],
            "k": [attention.key.module],
            "v": [attention.value.module],
            "o": [attention.output],
            "ffn": [*(matrix.module for matrix in (ffn.up, ffn.gate) if matrix), ffn.down, ffn.experts],
        }
        owned = {
            id(parameter)
            for slot in self.slots
            for module in holders[slot]
            for parameter in (module.parameters() if module is not None else ())
        }
        return [
            name
            for name, parameter in part.module.named_parameters()
            if parameter.ndim > 1 and id(parameter) not in owned
        ]

    def _ffn_weights(self, ffn: FeedForwardAnatomy, units: Tensor) -> list[tuple[nn.Parameter, tuple[Any, ...]]]:
        if ffn.experts is not None:
            expert, unit = units // ffn.width, units % ffn.width
            gate_up, down = ffn.experts.gate_up_proj, ffn.experts.down_proj
            assert isinstance(gate_up, nn.Parameter)
            assert isinstance(down, nn.Parameter)
            return [
                (gate_up, (expert, unit)),
                (gate_up, (expert, unit + ffn.width)),
                (down, (expert, slice(None), unit)),
            ]
        assert ffn.up is not None
        assert ffn.down is not None
        pairs = [*row_places(ffn.up, units), column_place(ffn.down, units)]
        return pairs if ffn.gate is None else pairs + row_places(ffn.gate, units)
