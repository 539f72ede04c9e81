"""Anatomy: where each slot's rows and columns live in a model.

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

import dataclasses
import itertools
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.errors import ConfigError, UnsupportedModelError
from babelscope.impacts.formulas import RotationStyle
from babelscope.models import parallel
from babelscope.models.families import FAMILIES, MODEL_TYPES, Family

SLOTS: tuple[str, ...] = ("q", "k", "v", "o", "ffn")
ALIASES: dict[str, str] = {"up": "ffn", "gate": "ffn", "down": "ffn"}
"""Names under which others list the same unit: switching off any of the three has the same effect."""


@dataclass(frozen=True)
class Projection:
    """The part of a linear module whose output channels are the units of one slot."""

    module: nn.Module
    rows: Tensor | None = None
    """Output channels in unit order, int64; None: all of them as they are."""

    def take(self, output: Tensor) -> Tensor:
        """The units' values [..., width] in the module's output."""
        if self.rows is None:
            return output
        # Under tensor parallelism: those of this rank's heads, which come first as the first heads do in a whole one.
        rows = self.rows[self.rows < output.shape[-1]]
        return output.index_select(-1, rows.to(output.device))

    def channels(self, units: Tensor) -> Tensor:
        """Output channels of the module for these units."""
        return units if self.rows is None else self.rows[units]


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
class Anatomy:
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

    model: nn.Module = field(repr=False)
    slots: tuple[str, ...] = SLOTS
    check: dataclasses.InitVar[bool] = True
    family: str = field(init=False)
    """Name of the family, or "recognised: <model type>" when found by probing."""
    layers: list[LayerAnatomy] = field(init=False, repr=False)
    mesh: Any = field(init=False, repr=False, default=None)
    """The processes that hold the model together (tensor parallel); None: this one alone. Widths are the whole's."""

    def __post_init__(self, check: bool) -> None:
        self.slots = resolve_slots(self.slots)
        if hasattr(self.model, "_orig_mod"):
            raise UnsupportedModelError(
                "the model is wrapped by torch.compile, which can skip the hooks that observe it. "
                "Pass the model itself (model._orig_mod) and compile it afterwards."
            )
        if not hasattr(self.model, "config"):
            raise UnsupportedModelError(
                f"wanted a causal language model of transformers, found {type(self.model).__name__} without a config. "
                "Load it with babelscope.load_model or AutoModelForCausalLM.from_pretrained."
            )
        config = self.model.config
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} is an encoder-decoder; Babelscope reads decoder-only models. "
                "Choose a causal language model."
            )
        model_type = getattr(config, "model_type", "")
        family = MODEL_TYPES.get(model_type)
        self.family = family.name if family else f"recognised: {model_type or type(self.model).__name__}"
        self.layers = _locate(self.model, family or _probe(self.model), self.slots)
        self.mesh = parallel.find_mesh(self.model)
        if self.mesh is not None:
            parallel.check_parts(self)
        if check:
            # The check observes the model through this anatomy, so its module sits above this one.
            from babelscope.models.selfcheck import self_check

            checked = _CHECKED.setdefault(self.model, {})
            if self.slots not in checked:
                self_check(self)
                checked[self.slots] = [layer.attention.rotation for layer in self.layers]
            for layer, rotation in zip(self.layers, checked[self.slots], strict=True):
                layer.attention.rotation = rotation

    def of_layer(self, layer: LayerAnatomy) -> Anatomy:
        """The anatomy of one layer alone (a copy, say), to observe it by itself; its only layer has index 0."""
        alone = Anatomy.__new__(Anatomy)
        alone.model, alone.slots, alone.family, alone.layers = layer.module, self.slots, self.family, [layer]
        return alone

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
            return [_column(part.attention.output, units)]
        projection = {"q": part.attention.query, "k": part.attention.key, "v": part.attention.value}[slot]
        return _rows(projection, units)

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
        pairs = [*_rows(ffn.up, units), _column(ffn.down, units)]
        return pairs if ffn.gate is None else pairs + _rows(ffn.gate, units)


_CHECKED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], list[RotationStyle | None]]] = (
    weakref.WeakKeyDictionary()
)


def resolve_slots(slots: Iterable[str] | None) -> tuple[str, ...]:
    """Slot names in canonical order, aliases resolved; None means all. Raises ConfigError on an unknown name."""
    if slots is None:
        return SLOTS
    wanted = {ALIASES.get(slot, slot) for slot in ((slots,) if isinstance(slots, str) else slots)}
    unknown = sorted(wanted - set(SLOTS))
    if unknown or not wanted:
        raise ConfigError(
            f"wanted slots among {', '.join(SLOTS)} (up, gate and down mean ffn), found {unknown or 'none'}. "
            "Correct the slot names."
        )
    return tuple(slot for slot in SLOTS if slot in wanted)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear module stores its weight as [in, out] (GPT-2's Conv1D)."""
    return type(module).__name__ == "Conv1D"


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(out features, in features) of a linear module, quantised ones included.

    Raises:
        UnsupportedModelError: the module shows neither its features nor a matrix.
    """
    if hasattr(module, "out_features") and hasattr(module, "in_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise UnsupportedModelError(
            f"wanted a linear module with in_features and out_features or a matrix, found {type(module).__name__} with "
            "neither: quantisation or fusing made its channels unreachable. Load the model without it, or quantised by "
            "a method whose modules keep their shape (bitsandbytes)."
        )
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    return shape[::-1] if is_transposed(module) else shape


def dense_weight(module: nn.Module) -> Tensor:
    """The weight [out, in] of a linear module as floating point, dequantised by the module itself if need be."""
    weight = getattr(module, "weight", None)
    out_features, in_features = linear_shape(module)
    stored = (in_features, out_features) if is_transposed(module) else (out_features, in_features)
    if isinstance(weight, Tensor) and tuple(weight.shape) == stored and _is_readable(weight):
        return weight.T if is_transposed(module) else weight
    held = list(itertools.chain(module.parameters(), module.buffers()))
    device = held[0].device if held[0].device.type != "meta" else torch.device("cpu")
    dtype = next((each.dtype for each in held if _is_readable(each)), torch.get_default_dtype())
    columns = []
    with torch.no_grad():  # forward, not a call: the hooks that ask for the weight must not see the probes
        offset = module.forward(torch.zeros(1, in_features, device=device, dtype=dtype))
        for start in range(0, in_features, 1024):
            unit = torch.arange(start, min(start + 1024, in_features), device=device)
            probe = torch.zeros(len(unit), in_features, device=device, dtype=dtype)
            probe[torch.arange(len(unit), device=device), unit] = 1
            columns.append((module.forward(probe) - offset).T)
    return torch.cat(columns, dim=1)


def _is_readable(weight: Tensor) -> bool:
    """Whether the values are there in floating point of 16 bits or more (8-bit ones need a scale kept elsewhere)."""
    return weight.is_floating_point() and weight.element_size() > 1 and weight.device.type != "meta"


def _rows(projection: Projection, units: Tensor) -> list[tuple[nn.Parameter, tuple[Any, ...]]]:
    weight = _float_parameter(projection.module)
    channels = projection.channels(units)
    index: tuple[Any, ...] = (slice(None), channels) if is_transposed(projection.module) else (channels,)
    pairs: list[tuple[nn.Parameter, tuple[Any, ...]]] = [(weight, index)]
    bias = getattr(projection.module, "bias", None)
    if bias is not None:
        pairs.append((bias, (channels,)))
    return pairs


def _column(module: nn.Module, units: Tensor) -> tuple[nn.Parameter, tuple[Any, ...]]:
    weight = _float_parameter(module)
    return weight, ((units,) if is_transposed(module) else (slice(None), units))


def _float_parameter(module: nn.Module) -> nn.Parameter:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or weight.ndim != 2:
        raise UnsupportedModelError(
            f"the weight of {type(module).__name__} is quantised, so its rows can't be edited in place. "
            "Load the model without quantization, or edit activations instead of weights."
        )
    return weight


def _at(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    here: Any = root
    for name in path.split("."):
        here = getattr(here, name, None)
        if here is None:
            return None
    return here if isinstance(here, nn.Module) else None


def _layer_list(model: nn.Module, paths: Iterable[str]) -> nn.ModuleList | None:
    for path in paths:
        found = _at(model, path)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    return None


def _head_count(config: Any) -> tuple[int, int]:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", None) or getattr(text, "n_head", None)
    if not heads:
        raise UnsupportedModelError(
            f"the configuration of model type {getattr(config, 'model_type', '?')!r} names no number of attention "
            "heads (num_attention_heads). Add a row for this family: see CONTRIBUTING.md."
        )
    return int(heads), int(getattr(text, "num_key_value_heads", None) or heads)


def _locate(model: nn.Module, family: Family, slots: tuple[str, ...]) -> list[LayerAnatomy]:
    layers = _layer_list(model, family.layers)
    if layers is None:
        raise UnsupportedModelError(_missing(model, family, "decoder layers", family.layers))
    return [_locate_layer(model, family, index, layer, slots) for index, layer in enumerate(layers)]


def _locate_layer(
    model: nn.Module, family: Family, index: int, layer: nn.Module, slots: tuple[str, ...]
) -> LayerAnatomy:
    def need(role: str, root: nn.Module, path: str) -> nn.Module:
        found = _at(root, path)
        if found is None:
            raise UnsupportedModelError(_missing(model, family, f"{role} of layer {index}", (path,)))
        return found

    module = need("attention", layer, family.attention)
    output = need("W_O", module, family.output)
    n_heads, n_kv_heads = _head_count(model.config)
    width = linear_shape(output)[1]
    head_dim = width // n_heads
    projections = {
        role: need(f"W_{role}", module, path)
        for role, path in (("Q", family.query), ("K", family.key), ("V", family.value))
    }
    rows = _fused_rows(family, n_heads, n_kv_heads, head_dim)
    for role, kv in (("Q", False), ("K", True), ("V", True)):
        heads = n_kv_heads if kv else n_heads
        total = n_heads + 2 * n_kv_heads if family.fusion != "none" else heads
        found = linear_shape(projections[role])[0]
        if found != total * head_dim:
            raise UnsupportedModelError(
                f"{family.name}, layer {index}: W_{role} has {found} output channels, expected {total} heads x "
                f"{head_dim}. This layout of heads is not known: add a row for it (see CONTRIBUTING.md)."
            )
    attention = AttentionAnatomy(
        module=module,
        query=Projection(projections["Q"], rows[0]),
        key=Projection(projections["K"], rows[1]),
        value=Projection(projections["V"], rows[2]),
        output=output,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        query_norm=_at(module, family.query_norm) if family.query_norm else None,
        key_norm=_at(module, family.key_norm) if family.key_norm else None,
        query_scale=float(getattr(module, family.query_scale, 1.0)) if family.query_scale else 1.0,
        own_attention=family.own_attention,
    )
    if "ffn" not in slots:
        return LayerAnatomy(index, layer, attention, FeedForwardAnatomy(layer))
    experts = _at(layer, family.experts) if family.experts else None
    if experts is not None:
        return LayerAnatomy(index, layer, attention, _locate_experts(family, index, layer, experts))
    down = need("W_down", layer, family.down)
    units = linear_shape(down)[1]
    up_module = need("W_up", layer, family.up)
    gate, up = None, Projection(up_module)
    if family.gate == family.up:
        half = torch.arange(units)
        gate, up = Projection(up_module, half), Projection(up_module, half + units)
    elif family.gate is not None:
        gate = Projection(need("W_gate", layer, family.gate))
    owner = family.down.rpartition(".")[0]
    alone = need("FFN", layer, owner) if owner else layer
    return LayerAnatomy(index, layer, attention, FeedForwardAnatomy(alone, up, gate, down, width=units))


def _locate_experts(family: Family, index: int, layer: nn.Module, experts: nn.Module) -> FeedForwardAnatomy:
    gate_up, down = getattr(experts, "gate_up_proj", None), getattr(experts, "down_proj", None)
    if not (isinstance(gate_up, nn.Parameter) and isinstance(down, nn.Parameter) and gate_up.ndim == down.ndim == 3):
        raise UnsupportedModelError(
            f"{family.name}, layer {index}: wanted experts with 3-D parameters gate_up_proj and down_proj, found "
            f"{sorted(dict(experts.named_parameters(recurse=False)))}. Add a row for this layout (see CONTRIBUTING.md)."
        )
    n_experts, _, width = down.shape
    if gate_up.shape[:2] != (n_experts, 2 * width):
        raise UnsupportedModelError(
            f"{family.name}, layer {index}: gate_up_proj of the experts has shape {tuple(gate_up.shape)}, expected "
            f"[{n_experts}, {2 * width}, model width]. Transposed experts are not supported; pass slots without ffn."
        )
    owner = _at(layer, family.experts.rpartition(".")[0]) if family.experts else None
    if owner is not None and any("shared_expert" in name for name, _ in owner.named_children()):
        raise UnsupportedModelError(
            f"{family.name}, layer {index}: the FFN has a shared expert beside the routed ones, whose units are not "
            "addressed yet. Pass slots without ffn."
        )
    return FeedForwardAnatomy(owner or experts, experts=experts, n_experts=n_experts, width=width)


def _fused_rows(family: Family, n_heads: int, n_kv_heads: int, head_dim: int) -> Sequence[Tensor | None]:
    """Output channels of query, key and value in a fused matrix; None each where they have matrices of their own."""
    if family.fusion == "none":
        return (None, None, None)
    query, kv = n_heads * head_dim, n_kv_heads * head_dim
    if family.fusion == "concatenated":
        return (torch.arange(query), torch.arange(query, query + kv), torch.arange(query + kv, query + 2 * kv))
    channel = torch.arange(query).view(n_heads, head_dim)
    start = torch.arange(n_heads)[:, None] * 2 * head_dim
    return tuple((channel + start + part * head_dim).flatten() for part in range(3))


def _missing(model: nn.Module, family: Family, what: str, paths: Iterable[str]) -> str:
    return (
        f"{family.name}: no {what} at {' or '.join(repr(path) for path in paths)} in {type(model).__name__}. "
        f"Known families: {', '.join(row.name for row in FAMILIES)}. "
        "If this model should be one of them, compare its module names with the table in "
        "babelscope/models/families.py; otherwise add a row (see CONTRIBUTING.md)."
    )


def _probe(model: nn.Module) -> Family:
    """A row for an architecture that the table lacks, from the names that occur anywhere in the table."""

    def values(role: str) -> list[str]:
        found = [getattr(family, role) for family in FAMILIES]
        return list(dict.fromkeys(value for value in found if value))

    def first(role: str, root: nn.Module, names: Iterable[str]) -> str | None:
        return next((name for name in names if _at(root, name) is not None), None)

    paths = list(dict.fromkeys(path for family in FAMILIES for path in family.layers))
    layers = _layer_list(model, paths)
    unknown = Family(f"model type {getattr(model.config, 'model_type', '?')!r}", (), "", (), "", "", "", "", "", "", "")
    if layers is None:
        raise UnsupportedModelError(_missing(model, unknown, "decoder layers", paths))
    layer = layers[0]
    found: dict[str, Any] = {"layers": tuple(paths), "name": unknown.name, "model_types": (), "examples": ""}
    attention = first("attention", layer, values("attention"))
    if attention is None:
        raise UnsupportedModelError(_missing(model, unknown, "attention", values("attention")))
    found["attention"] = attention
    root = _at(layer, attention)
    assert root is not None
    for role in ("query", "key", "value", "output"):
        found[role] = first(role, root, values(role))
        if found[role] is None:
            raise UnsupportedModelError(_missing(model, unknown, f"{role} projection", values(role)))
    if found["query"] == found["key"]:
        found["fusion"] = next(row.fusion for row in FAMILIES if row.query == found["query"])
    for role in ("query_norm", "key_norm"):
        found[role] = first(role, root, values(role))
    for name in values("experts"):
        found["experts"] = name if any(_at(each, name) is not None for each in layers) else None
    dense = next((each for each in layers if not found["experts"] or _at(each, found["experts"]) is None), None)
    for role in ("up", "down", "gate"):
        names = dict.fromkeys(value.rpartition(".")[2] for value in values(role))
        candidates = [prefix + name for prefix in ("mlp.", "") for name in names]
        found[role] = first(role, dense, candidates) if dense is not None else candidates[0]
        if found[role] is None and role != "gate":
            raise UnsupportedModelError(_missing(model, unknown, f"FFN {role} projection", candidates))
    if dense is not None and found["gate"] == found["up"] and not str(found["up"]).endswith("gate_up_proj"):
        found["gate"] = None
    return Family(**found)
