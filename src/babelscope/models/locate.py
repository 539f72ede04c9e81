"""From a row of the table of families to the units of a model, and from a model without a row to a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.errors import UnsupportedModelError
from babelscope.models.families import FAMILIES, Family
from babelscope.models.linear import Projection, linear_shape
from babelscope.models.unitmap import AttentionAnatomy, FeedForwardAnatomy, LayerAnatomy


def module_at(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    here: Any = root
    for name in path.split("."):
        here = getattr(here, name, None)
        if here is None:
            return None
    return here if isinstance(here, nn.Module) else None


def _layer_list(model: nn.Module, paths: Iterable[str]) -> nn.ModuleList | None:
    for path in paths:
        found = module_at(model, path)
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


def locate_layers(model: nn.Module, family: Family, slots: tuple[str, ...]) -> list[LayerAnatomy]:
    """The units of every layer, by a row of the table; UnsupportedModelError names what is missing."""
    layers = _layer_list(model, family.layers)
    if layers is None:
        raise UnsupportedModelError(_missing(model, family, "decoder layers", family.layers))
    return [_locate_layer(model, family, index, layer, slots) for index, layer in enumerate(layers)]


def _locate_layer(
    model: nn.Module, family: Family, index: int, layer: nn.Module, slots: tuple[str, ...]
) -> LayerAnatomy:
    def need(role: str, root: nn.Module, path: str) -> nn.Module:
        found = module_at(root, path)
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
        query_norm=module_at(module, family.query_norm) if family.query_norm else None,
        key_norm=module_at(module, family.key_norm) if family.key_norm else None,
        query_scale=float(getattr(module, family.query_scale, 1.0)) if family.query_scale else 1.0,
        own_attention=family.own_attention,
    )
    if "ffn" not in slots:
        return LayerAnatomy(index, layer, attention, FeedForwardAnatomy(layer))
    experts = module_at(layer, family.experts) if family.experts else None
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
    located = LayerAnatomy(index, layer, attention, FeedForwardAnatomy(alone, up, gate, down, width=units))
    _refuse_experts_left_out(family, located)
    return located


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
    owner = module_at(layer, family.experts.rpartition(".")[0]) if family.experts else None
    _refuse_beside_experts(family, index, layer, owner or experts, experts, n_experts)
    return FeedForwardAnatomy(owner or experts, experts=experts, n_experts=n_experts, width=width)


def _refuse_beside_experts(
    family: Family, index: int, layer: nn.Module, owner: nn.Module, experts: nn.Module, n_experts: int
) -> None:
    """UnsupportedModelError where an FFN has matrices beside its routed experts, whose units would be left out.

    A router has a row per expert, the gate of a shared expert a single one; neither holds units.
    """
    routed = {id(parameter) for parameter in experts.parameters()}
    names = {id(parameter): name for name, parameter in layer.named_parameters()}
    beside = [
        names[id(parameter)]
        for parameter in owner.parameters()
        if id(parameter) not in routed and parameter.ndim > 1 and not {1, n_experts} & set(parameter.shape[:2])
    ]
    if beside:
        raise UnsupportedModelError(
            f"{family.name}, layer {index}: the FFN has matrices beside the routed experts ({', '.join(beside)}), such "
            "as a shared expert, whose units are not addressed yet. Pass slots without ffn."
        )


def _refuse_experts_left_out(family: Family, layer: LayerAnatomy) -> None:
    """UnsupportedModelError where a layer with a dense FFN has expert matrices as well, which would be left out."""
    inside = {id(parameter) for parameter in layer.attention.module.parameters()}
    left_out = [
        name
        for name, parameter in layer.module.named_parameters()
        if parameter.ndim == 3 and id(parameter) not in inside and min(parameter.shape) > 1
    ]
    if left_out:
        raise UnsupportedModelError(
            f"{family.name}, layer {layer.index}: the layer has expert matrices beside its dense FFN "
            f"({', '.join(left_out)}), whose units are not addressed yet. Pass slots without ffn."
        )


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


def probe(model: nn.Module) -> Family:
    """A row for an architecture that the table lacks, from the names that occur anywhere in the table."""

    def values(role: str) -> list[str]:
        found = [getattr(family, role) for family in FAMILIES]
        return list(dict.fromkeys(value for value in found if value))

    def first(role: str, root: nn.Module, names: Iterable[str]) -> str | None:
        return next((name for name in names if module_at(root, name) is not None), None)

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
    root = module_at(layer, attention)
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
        found["experts"] = name if any(module_at(each, name) is not None for each in layers) else None
    dense = next((each for each in layers if not found["experts"] or module_at(each, found["experts"]) is None), None)
    for role in ("up", "down", "gate"):
        names = dict.fromkeys(value.rpartition(".")[2] for value in values(role))
        candidates = [prefix + name for prefix in ("mlp.", "") for name in names]
        found[role] = first(role, dense, candidates) if dense is not None else candidates[0]
        if found[role] is None and role != "gate":
            raise UnsupportedModelError(_missing(model, unknown, f"FFN {role} projection", candidates))
    if dense is not None and found["gate"] == found["up"] and not str(found["up"]).endswith("gate_up_proj"):
        found["gate"] = None
    return Family(**found)
