"""The self-check: score a few units of every slot, really zero them, and refuse when the two differ.

It runs on copies of single sub-layers, replayed on inputs caught in one short forward pass: the user's model is not
touched, half-precision weights are checked in float32, and a model of any size costs one decoder layer's memory.
Layers whose weights can't be copied or zeroed (quantised, offloaded) are replayed in place, and there a unit is
switched off in the activations.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.errors import UnsupportedModelError
from babelscope.impacts.formulas import Rotation, RotationStyle
from babelscope.impacts.kernels import compute_dtype
from babelscope.models import interfaces, observe, taps
from babelscope.models.parallel import is_sharded, whole
from babelscope.models.unitmap import LayerAnatomy, UnitMap

_TOKENS = 16
_UNITS = 3
"""Units checked per slot and layer: the one with the largest computed impact, and random ones."""

_STYLES: tuple[RotationStyle | None, ...] = (None, "half", "interleaved", "interleaved_halves")


@dataclasses.dataclass
class _Caught:
    """One layer's inputs in the short forward pass."""

    attention: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    ffn: tuple[tuple[Any, ...], dict[str, Any]] | None = None


def self_check(anatomy: UnitMap) -> None:
    """Finds each layer's rotation and compares computed impacts with really zeroing units; fills in the rotations.

    Raises:
        UnsupportedModelError: which layer and slot, what was expected and found, and what to do.
    """
    with ExitStack() as stack:
        interfaces.evaluation_mode(anatomy.model, stack)
        if {"q", "k", "v", "o"} & set(anatomy.slots):
            interfaces.switch_attention(anatomy, stack)
        if "ffn" in anatomy.slots and any(layer.ffn.experts is not None for layer in anatomy.layers):
            interfaces.switch_experts(anatomy, stack)
        stack.enter_context(torch.no_grad())
        caught = _catch(anatomy)
        for layer in _representatives(anatomy):
            _check_layer(anatomy, layer, caught[layer.index])


def _representatives(anatomy: UnitMap) -> list[LayerAnatomy]:
    """The first and the last layer of each kind: rotation or not, window or not, dense or experts."""
    kinds: dict[Any, list[LayerAnatomy]] = {}
    for layer in anatomy.layers:
        window = getattr(layer.attention.module, "sliding_window", None)
        kinds.setdefault((layer.attention.rotation, window, layer.ffn.experts is None), []).append(layer)
    chosen = {layer.index: layer for group in kinds.values() for layer in (group[0], group[-1])}
    return list(chosen.values())


class _Reader:
    """Stands where a tap stands, keeping what the attention function received."""

    def __init__(self, then: Callable[..., None]) -> None:
        self.on_attention = then


def _catch(anatomy: UnitMap) -> list[_Caught]:
    """One forward pass over 16 random tokens: the inputs of every sub-layer to check, and the rotations."""
    caught = [_Caught() for _ in anatomy.layers]
    embeddings = anatomy.model.get_input_embeddings()  # type: ignore[operator]
    device = embeddings.weight.device if embeddings.weight.device.type != "meta" else torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, embeddings.weight.shape[0], (1, _TOKENS), generator=generator).to(device)
    with ExitStack() as stack:
        for layer in anatomy.layers:
            _catch_layer(anatomy, layer, caught[layer.index], stack)
        base: Any = getattr(anatomy.model, "base_model", anatomy.model)
        call = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}
        limit = _last_position(anatomy)
        if limit is not None and "position_ids" in inspect.signature(base.forward).parameters:
            # A scale by position may be 1 for thousands of tokens. The pass below overwrites what this one caught.
            base(**call, position_ids=torch.arange(limit - _TOKENS, limit, device=device)[None])
        base(**call)
    return caught


def _last_position(anatomy: UnitMap) -> int | None:
    """The number of positions that the configuration gives, None if it gives none beyond the check's own."""
    config: Any = anatomy.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return limit if isinstance(limit, int) and limit > _TOKENS else None


def _catch_layer(anatomy: UnitMap, layer: LayerAnatomy, caught: _Caught, stack: ExitStack) -> None:
    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: setattr(caught, name, (args, dict(kwargs)))

    part = layer.attention
    handles = [
        part.module.register_forward_pre_hook(keep("attention"), with_kwargs=True),
        layer.ffn.module.register_forward_pre_hook(keep("ffn"), with_kwargs=True),
    ]
    if {"q", "k"} & set(anatomy.slots) and not part.own_attention:
        raw: dict[str, Tensor] = {}
        handles.append(
            part.query.module.register_forward_hook(
                lambda module, args, output: raw.update(q=part.query.take(output)),
            )
        )

        def find(query_BHTD: Tensor, *_: Any, **__: Any) -> None:
            angles = (caught.attention or ((), {}))[1].get("position_embeddings")
            part.rotation = _find_rotation(layer, raw["q"], query_BHTD, angles)

        interfaces.TAPS[part.module] = _Reader(find)
        stack.callback(interfaces.TAPS.pop, part.module, None)
    for handle in handles:
        stack.callback(handle.remove)


def _find_rotation(layer: LayerAnatomy, raw: Tensor, query_BHTD: Tensor, angles: Any) -> RotationStyle | None:
    """Which rotation turns the projection's output into what the attention function received."""
    part = layer.attention
    shaped = raw.unflatten(-1, (-1, part.head_dim))
    if part.query_norm is not None:
        flat = taps.over_heads(part.query_norm, part.head_dim)
        shaped = part.query_norm.forward(raw if flat else shaped).reshape(shaped.shape)
    before = shaped.double() * part.query_scale
    received = query_BHTD.transpose(1, 2).double()
    pair = isinstance(angles, tuple) and len(angles) == 2 and all(isinstance(angle, Tensor) for angle in angles)
    errors: dict[RotationStyle | None, float] = {}
    for style in _STYLES if pair else _STYLES[:1]:
        after = before if style is None else Rotation(angles[0].double(), angles[1].double(), style).apply(before)
        errors[style] = float((after - received).norm() / received.norm().clamp_min(1e-30))
    best = min(errors, key=lambda style: errors[style])
    tolerance = 1e-3 if query_BHTD.dtype in (torch.float32, torch.float64) else 5e-2
    if errors[best] > tolerance:
        raise UnsupportedModelError(
            f"layer {layer.index}, slot q: wanted queries that are the output of W_Q, normed and rotated; the "
            f"attention function received something else (nearest: {best or 'no'} rotation, relative difference "
            f"{errors[best]:.2g}). Pass slots without q and k, or add the missing step to the family's row."
        )
    return best


def _check_layer(anatomy: UnitMap, layer: LayerAnatomy, caught: _Caught) -> None:
    editable = _is_editable(anatomy, layer)
    subject = layer
    if editable:
        subject = _copy(layer)
        wide = compute_dtype(next(layer.module.parameters()))
        subject.module.to(wide)
        caught = _Caught(_cast(caught.attention, wide), _cast(caught.ffn, wide))
    alone = anatomy.of_layer(subject)

    def call() -> None:
        if caught.attention is not None and set(anatomy.slots) - {"ffn"}:
            subject.attention.module(*caught.attention[0], **caught.attention[1])
        if caught.ffn is not None and "ffn" in anatomy.slots:
            subject.ffn.module(*caught.ffn[0], **caught.ffn[1])

    counted = torch.ones(1, _TOKENS, dtype=torch.bool)
    with observe.Observer(alone, slots=anatomy.slots) as observer:
        computed = observer.watch(call, counted).impact
    with _results(subject) as before:
        call()
    generator = torch.Generator().manual_seed(layer.index)
    for slot in anatomy.slots:
        width = anatomy.width(slot, layer.index)
        scores = computed[slot][0][0].cpu()
        units = {int(scores.argmax()), *torch.randint(0, width, (_UNITS - 1,), generator=generator).tolist()}
        for unit in sorted(units):
            with _switched_off(alone, subject, slot, unit, editable), _results(subject) as after:
                call()
            name = "probabilities" if slot in "qk" else "ffn" if slot == "ffn" else "attention"
            really = float((after[name] - before[name]).norm())
            scale = float(before[name].norm())
            tolerance, floor = (2e-3, 1e-5) if editable else (0.1, 2e-2)
            if abs(really - float(scores[unit])) > tolerance * really + floor * scale:
                raise UnsupportedModelError(
                    f"{anatomy.family}, layer {layer.index}, slot {slot}, unit {unit}: really zeroing it changes the "
                    f"{'attention probabilities' if slot in 'qk' else 'sub-layer output'} by {really:.4g}, the formula "
                    f"says {float(scores[unit]):.4g}. This architecture does something there that Babelscope does not "
                    f"know. Pass slots without {slot} ({', '.join(s for s in anatomy.slots if s != slot)}), or teach "
                    "it the step: see CONTRIBUTING.md."
                )


def _copy(layer: LayerAnatomy) -> LayerAnatomy:
    """The layer with weights of its own: the whole layer on every rank, where several hold the model together."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(whole(weight.detach()).clone(), requires_grad=False)
        for weight in layer.module.parameters()
        if is_sharded(weight)
    }
    sharded = bool(memo)  # copying fills it further
    copied = copy.deepcopy(layer, memo)
    for module in copied.module.modules() if sharded else ():
        vars(module).pop("forward", None)  # the plan's, which runs the module that was copied
    return copied


def _is_editable(anatomy: UnitMap, layer: LayerAnatomy) -> bool:
    """Whether the layer's weights can be copied, made more precise and zeroed; quantised ones may be buffers."""
    for module in layer.module.modules():
        if module._forward_hooks or hasattr(module, "_hf_hook"):
            return False
    for weight in layer.module.parameters():
        if not weight.is_floating_point() or weight.element_size() < 2 or weight.device.type == "meta":
            return False
    try:
        for slot in anatomy.slots:
            anatomy.of_layer(layer).weights(slot, 0, torch.tensor([0]))
    except UnsupportedModelError:
        return False
    return True


def _cast(call: tuple[tuple[Any, ...], dict[str, Any]] | None, dtype: torch.dtype) -> Any:
    """The same call with every floating-point tensor in another precision."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                return value
            # Additive masks hide a key by the smallest number of their dtype.
            hidden = value <= torch.finfo(value.dtype).min
            return value.to(dtype).masked_fill(hidden, torch.finfo(dtype).min)
        if isinstance(value, tuple | list):
            return type(value)(cast(item) for item in value)
        if isinstance(value, dict):
            return {key: cast(item) for key, item in value.items()}
        return value

    return None if call is None else (cast(call[0]), cast(call[1]))


@contextmanager
def _results(layer: LayerAnatomy) -> Iterator[dict[str, Tensor]]:
    """Keeps what the neurons' impacts are measured at: sub-layer outputs, and attention probabilities."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def kept_output(module: nn.Module, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            kept[name] = states.detach().double()

        return kept_output

    def probabilities(query: Tensor, key: Tensor, mask: Tensor | None, **kwargs: Any) -> None:
        kept["probabilities"] = _probabilities(query, key, mask, **kwargs)

    part = layer.attention
    with ExitStack() as stack:
        handles = [part.output.register_forward_hook(keep("attention"))]
        # Not at W_down: a factor behind it, inside the FFN, belongs to what the residual stream sees of a unit.
        end = layer.ffn.down if layer.ffn.module is layer.module else layer.ffn.module
        if end is not None:
            handles.append(end.register_forward_hook(keep("ffn")))
        if part.own_attention:
            handles.append(
                part.module.register_forward_hook(
                    lambda module, args, output: kept.update(probabilities=output[1].detach().double())
                )
            )
        else:
            interfaces.TAPS[part.module] = _Reader(probabilities)
            stack.callback(interfaces.TAPS.pop, part.module, None)
        for handle in handles:
            stack.callback(handle.remove)
        yield kept


def _probabilities(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Attention probabilities [B, H, T, T] in float64, written out plainly."""
    query, key = query.double(), key.double()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    scores = scores.masked_fill(~allowed, -torch.inf)
    if s_aux is not None:
        sink = s_aux.double().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]
    return torch.softmax(scores, dim=-1)


@contextmanager
def _switched_off(alone: UnitMap, layer: LayerAnatomy, slot: str, unit: int, editable: bool) -> Iterator[None]:
    """Zeroes every weight of one unit of a copied layer; where weights can't be edited, its activation."""
    units = torch.tensor([unit])
    if editable:
        saved = [(weight, index, weight.data[index].clone()) for weight, index in alone.weights(slot, 0, units)]
        for weight, index, _ in saved:
            weight.data[index] = 0
        try:
            yield
        finally:
            for weight, index, value in saved:
                weight.data[index] = value
        return
    handle = _activation_hook(layer, slot, units)
    try:
        yield
    finally:
        handle.remove()


def _activation_hook(layer: LayerAnatomy, slot: str, units: Tensor) -> Any:
    part = layer.attention

    def zero_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].index_fill(-1, units.to(args[0].device), 0), *args[1:])

    if slot in ("o", "ffn"):
        module = part.output if slot == "o" else layer.ffn.down
        if module is None:
            raise UnsupportedModelError(
                f"layer {layer.index}, slot ffn: the experts' weights are quantised or offloaded, so the self-check "
                "can't zero a unit of them. Load the model without, or pass slots without ffn."
            )
        return module.register_forward_pre_hook(zero_input)
    projection = {"q": part.query, "k": part.key, "v": part.value}[slot]
    channels = projection.channels(units)
    return projection.module.register_forward_hook(
        lambda module, args, output: output.index_fill(-1, channels.to(output.device), 0)
    )
