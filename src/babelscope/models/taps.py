"""A tap reads one layer during a forward pass and reduces what it reads at once: nothing of size tokens x units stays.

Axes: `B` sequences, `T` tokens, `H` query heads, `G` kv heads, `R` = H / G, `D` channels of a head, `N` units,
`P` = B x G pairs of a sequence and a kv head, `C` channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from babelscope.errors import UnsupportedModelError
from babelscope.impacts.formulas import Rotation, key_change, norm_gain, query_change
from babelscope.impacts.kernels import Attention, Change, compute_dtype, impact_squares
from babelscope.impacts.sums import TERMS, Term, token_sums, value_squares, weight_gram
from babelscope.models.interfaces import TAPS, block_bias, experts_forward
from babelscope.models.linear import dense_weight
from babelscope.models.parallel import matching
from babelscope.models.unitmap import LayerAnatomy

if TYPE_CHECKING:
    from babelscope.models.observe import Observer


@dataclass(frozen=True)
class Activation:
    """Sums of a unit's activation over the counted tokens of each sequence, each [B, N]."""

    positive: Tensor
    """Tokens at which the unit is active: gate (or plain FFN activation) above 0; value above 0 in attention."""
    total: Tensor
    squares: Tensor


class LayerTap:
    """Reads one layer during the forward pass and reduces what it reads at once."""

    def __init__(self, observer: Observer, layer: LayerAnatomy) -> None:
        self.observer = observer
        self.layer = layer
        self.impact: dict[str, Tensor] = {}
        self.activation: dict[str, Activation] = {}
        self._raw: dict[str, Tensor] = {}
        self._call: dict[str, Any] = {}
        self._positive: Tensor | None = None
        self._constants: dict[str, Tensor] = {}
        self._room = torch.empty(0)

    def clear(self) -> None:
        """Forgets the last batch, and takes the memory for what the next will show.

        Taken for all layers before a pass, for a CPU's allocator can't give temporaries back from below small results
        that are younger: a twentieth of the peak.
        """
        self.impact, self.activation, self._raw, self._call, self._positive = {}, {}, {}, {}, None
        observer = self.observer
        units = sum(map(self.layer.width, observer.slots))
        each = len(observer.counted) * (4 if observer.activations else 1)
        self._room = torch.empty(units * each if observer.counted.device.type == "cpu" else 0)

    def _kept(self, values: Tensor) -> Tensor:
        """The same in the memory taken for it, if that is of its kind and there is enough."""
        room = self._room
        if (values.device, values.dtype) != (room.device, room.dtype) or values.numel() > room.numel():
            return values
        taken, self._room = self._room[: values.numel()], self._room[values.numel() :]
        return taken.view(values.shape).copy_(values)

    def _scored(self, slot: str, impact: Tensor) -> None:
        self.impact[slot] = self._kept(impact)

    def _saw(self, slot: str, positive: Tensor, total: Tensor, squares: Tensor) -> None:
        self.activation[slot] = Activation(*map(self._kept, (positive, total, squares)))

    def constant(self, name: str, build: Callable[[], Tensor]) -> Tensor:
        """A weight-only quantity, computed once per observer."""
        if name not in self._constants:
            with torch.no_grad():
                self._constants[name] = build()
        return self._constants[name]

    def install(self, stack: ExitStack) -> None:
        """Registers the hooks; `stack` removes them."""
        slots, attention, ffn = set(self.observer.slots), self.layer.attention, self.layer.ffn
        handles: list[Any] = []
        wanted = {"q", "k"} & slots
        if wanted or ("v" in slots and self.observer.activations):
            for module in {attention.query.module: 0, attention.key.module: 0, attention.value.module: 0}:
                handles.append(module.register_forward_hook(self._after_projection))
        if wanted:
            handles.append(attention.module.register_forward_pre_hook(self._before_attention, with_kwargs=True))
            if attention.own_attention:
                handles.append(attention.module.register_forward_hook(self._after_own_attention))
            else:
                TAPS[attention.module] = self
                stack.callback(TAPS.pop, attention.module, None)
        if {"v", "o"} & slots:
            handles.append(attention.output.register_forward_pre_hook(self._before_output))
        if "ffn" in slots:
            if ffn.experts is not None:
                TAPS[ffn.experts] = self
                stack.callback(TAPS.pop, ffn.experts, None)
            else:
                assert ffn.down is not None
                assert ffn.up is not None
                handles.append(ffn.down.register_forward_pre_hook(self._before_down))
                if self.observer.measure == "released":
                    handles.append(ffn.up.module.register_forward_hook(self._after_up))
                if self.observer.activations and ffn.gate is not None:
                    handles.append(ffn.gate.module.register_forward_hook(self._after_gate))
        for handle in handles:
            stack.callback(handle.remove)

    # -- attention -------------------------------------------------------------------------------------------------

    def _after_projection(self, module: nn.Module, args: Any, output: Tensor) -> None:
        attention = self.layer.attention
        for slot, projection in (("q", attention.query), ("k", attention.key), ("v", attention.value)):
            if projection.module is not module:
                continue
            asked = slot in self.observer.slots
            # BLOOM's own attention needs the keys to score the queries, and the other way round.
            kept = slot != "v" and (asked or (attention.own_attention and {"q", "k"} & set(self.observer.slots)))
            if not (kept or (asked and self.observer.activations)):
                continue
            values = projection.take(output)
            if asked and self.observer.activations:
                self._saw(slot, **self._sums(values))
            if kept:
                self._raw[slot] = values

    def _before_attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._call = kwargs

    def _after_own_attention(self, module: nn.Module, args: Any, output: Any) -> None:
        """BLOOM: no rotation, no shared interface; ALiBi is part of the scores and cancels in their change."""
        attention = self.layer.attention
        query, key = (
            self._heads(self._raw_of(slot), heads).transpose(1, 2)
            for slot, heads in (("q", attention.n_heads), ("k", attention.n_kv_heads))
        )
        batch, tokens = self.observer.counted.shape
        bias = self._call["alibi"].view(batch, attention.n_heads, 1, tokens)
        self.on_attention(
            query, key, self._call["attention_mask"], scaling=attention.head_dim**-0.5, position_bias=bias
        )

    def _raw_of(self, slot: str) -> Tensor:
        if slot not in self._raw:
            attention = self.layer.attention
            raise UnsupportedModelError(
                f"layer {self.layer.index}: the output of {type(attention.query.module).__name__} was not seen before "
                f"the attention of slot {slot}. The model skips hooks; pass slots without q and k."
            )
        return self._raw[slot]

    def _heads(self, values: Tensor, heads: int) -> Tensor:
        """[B, T, H * D] in the compute precision, split into heads."""
        wide = compute_dtype(values)
        return values.to(wide).view(*values.shape[:-1], heads, self.layer.attention.head_dim)

    def on_attention(
        self,
        query_BHTD: Tensor,
        key_BGTD: Tensor,
        mask: Tensor | None,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        position_bias: Tensor | None = None,
        **_: Any,
    ) -> None:
        """Scores q and k from what the attention function received."""
        part = self.layer.attention
        wide = compute_dtype(query_BHTD)
        batch, heads, tokens, width = query_BHTD.shape
        groups = key_BGTD.shape[1]
        query = query_BHTD.to(wide).reshape(batch * groups, heads // groups, tokens, width)
        key = key_BGTD.to(wide).reshape(batch * groups, tokens, width)
        scale = width**-0.5 if scaling is None else float(scaling)
        attention = Attention(
            query=query,
            key=key,
            scale=scale,
            bias=functools.partial(block_bias, mask, position_bias, groups, wide, query.device),
            row_weight=self.observer.counted_on(query.device).to(wide).repeat_interleave(groups, 0),
            blocks=self.observer.blocks(mask, tokens),
            cap=softcap,
            sink=None if s_aux is None else s_aux.to(wide).reshape(1, -1).expand(batch, -1).reshape(len(query), -1),
        )
        if self.observer.measure == "released":
            self._released_attention(attention, batch)
            return
        before: dict[str, Tensor] = {}
        gain: dict[str, Tensor | None] = {}
        for slot, norm, count in (("q", part.query_norm, heads), ("k", part.key_norm, groups)):
            if slot not in self.observer.slots:
                continue
            raw = self._raw_of(slot)
            values = self._heads(raw, count)
            gain[slot] = None
            if norm is not None:
                gain[slot] = norm_gain(values, norm_eps(norm), over_heads(norm, width))
                shaped = raw if over_heads(norm, width) else raw.unflatten(-1, (count, width))
                values = self._heads(norm.forward(shaped).reshape(raw.shape), count)
            before[slot] = values * part.query_scale if slot == "q" else values
        rotation = self._rotation(wide, query.device)
        changes = {}
        if "q" in before:
            changes["q"] = query_change(before["q"], key, groups, scale, rotation, gain["q"])
        if "k" in before:
            changes["k"] = key_change(before["k"], query, scale, rotation, gain["k"])
        found = dict(zip(changes, self._squares(attention, list(changes.values())), strict=True))
        for slot, squares_PRC in found.items():
            squares = squares_PRC if slot == "q" else squares_PRC.sum(1)
            squares = squares.reshape(batch, -1)
            norm = part.query_norm if slot == "q" else part.key_norm
            if norm is not None and over_heads(norm, width):
                squares = squares + self._other_heads(attention, slot, gain[slot], batch)
            self._scored(slot, squares.clamp_min(0).sqrt())
        self._raw, self._call = {}, {}

    def _squares(self, attention: Attention, changes: list[Change]) -> list[Tensor]:
        unsure = self.observer.unsure(self.layer.index, attention.query.device)
        return impact_squares(attention, changes, self.observer.kernel, unsure)

    def _other_heads(self, attention: Attention, slot: str, gain: Tensor | None, batch: int) -> Tensor:
        """A norm over all heads (OLMo-2) lets a channel reach every head through the norm: [B, H * D] or [B, G * D].

        Head by head, the channels of one source head are applied to all the others as a pure gain.
        """
        assert gain is not None
        pairs, per_group, tokens, width = attention.query.shape
        groups = pairs // batch
        sources = gain.shape[2]
        result = gain.new_zeros(batch, sources, width)
        for source in range(sources):
            each = gain[:, :, source].repeat_interleave(groups, 0)
            if slot == "q":
                rows = each[:, None].expand(pairs, per_group, tokens, width)
                change = Change((torch.zeros_like(rows),), (torch.zeros_like(each),), row_gain=rows)
            else:
                rows = each.new_zeros(pairs, per_group, tokens, width)
                change = Change((rows,), (torch.zeros_like(each),), column_gain=each)
            squares = self._squares(attention, [change])[0]
            squares = squares.reshape(batch, groups * per_group, width)
            own = [source] if slot == "q" else list(range(source * per_group, (source + 1) * per_group))
            squares[:, own] = 0
            result[:, source] = squares.sum(1)
        return result.flatten(1)

    def _rotation(self, dtype: torch.dtype, device: torch.device) -> Rotation | None:
        style = self.layer.attention.rotation
        if style is None:
            return None
        angles = self._call.get("position_embeddings")
        if not (isinstance(angles, tuple) and len(angles) == 2):
            raise UnsupportedModelError(
                f"layer {self.layer.index}: wanted position_embeddings=(cos, sin) in the call of the attention, found "
                f"{type(angles).__name__}. Pass slots without q and k."
            )
        cos, sin = (angle.to(device, dtype) for angle in angles)
        return Rotation(cos, sin, style)

    def _released_attention(self, attention: Attention, batch: int) -> None:
        """Published code: channels after rotation, the subtracted term not divided by sqrt(d), squared difference.

        It scores q and k by the same number per query head; a k unit takes the largest of the heads it feeds.
        """
        rows = -attention.query
        squares = self._squares(attention, [Change((rows,), (attention.key,))])[0]
        if "q" in self.observer.slots:
            self._scored("q", squares.reshape(batch, -1))
        if "k" in self.observer.slots:
            self._scored("k", squares.amax(1).reshape(batch, -1))
        self._raw, self._call = {}, {}

    def _weight(self, module: nn.Module, states: Tensor) -> Tensor:
        """W_O or W_down [M, N] in the compute precision: the columns that its input `states` [B, T, N] meets."""
        return matching(dense_weight(module), states.shape[-1]).to(compute_dtype(states))

    def _before_output(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        slots, part = self.observer.slots, self.layer.attention
        states = args[0]
        counted = self.observer.counted_on(states.device)
        kv_heads = states.shape[-1] * part.n_kv_heads // (part.n_heads * part.head_dim)  # of this rank
        sums = self._sums(states) if "o" in slots or part.n_heads == part.n_kv_heads else None
        if self.observer.measure == "released":
            magnitude = (states.abs().to(compute_dtype(states)) * counted[..., None]).sum(1)
            grouped = magnitude.reshape(len(states), kv_heads, -1, part.head_dim).amax(2)
            self._scored("v", grouped.flatten(1))
            return
        if sums is not None:
            norms = self.constant("o", lambda: self._weight(module, states).norm(dim=0))
            impact = sums["squares"].sqrt() * norms
            if "o" in slots:
                self._scored("o", impact)
            if "v" in slots and part.n_heads == part.n_kv_heads:
                self._scored("v", impact)
            if "o" in slots and self.observer.activations:
                self._saw("o", **sums)
        if "v" in slots and "v" not in self.impact:
            gram = self.constant("v", lambda: weight_gram(self._weight(module, states), kv_heads, part.head_dim))
            self._scored("v", value_squares(states, counted, gram, self.observer.kernel).sqrt())

    # -- FFN -------------------------------------------------------------------------------------------------------

    def _after_gate(self, module: nn.Module, args: Any, output: Tensor) -> None:
        assert self.layer.ffn.gate is not None
        values = self._by_sequence(self.layer.ffn.gate.take(output))
        self._positive = self._sums(values, "positive")["positive"]

    def _after_up(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Published code: sum over tokens of |up(x)|; no gate, no W_down."""
        assert self.layer.ffn.up is not None
        values = self._by_sequence(self.layer.ffn.up.take(output))
        wide = compute_dtype(values)
        counted = self.observer.counted_on(values.device)
        self._scored("ffn", (values.abs().to(wide) * counted[..., None]).sum(1))

    def _before_down(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        states = self._by_sequence(args[0])
        gated = self.layer.ffn.gate is not None
        sums = self._sums(states, "squares", "total") if gated and self.observer.activations else self._sums(states)
        if self._positive is not None:
            sums["positive"] = self._positive
        if "positive" in sums:
            self._saw("ffn", **sums)
        if self.observer.measure == "exact":
            norms = self.constant("ffn", lambda: self._weight(module, states).norm(dim=0))
            self._scored("ffn", sums["squares"].sqrt() * norms)

    def on_experts(self, module: nn.Module, hidden: Tensor, expert_ids: Tensor, routing: Tensor) -> Tensor:
        """The experts' forward pass, expert by expert, reading each routed token's intermediate units.

        Args:
            module: holds gate_up_proj [E, 2 N, M] and down_proj [E, M, N]; under tensor parallelism this rank's N.
            hidden: [B * T, M].
            expert_ids: [B * T, K]; ids past the last expert belong to other ranks.
            routing: [B * T, K] weights.
        """
        ffn = self.layer.ffn
        batch, tokens = self.observer.counted.shape
        wide = compute_dtype(hidden)
        down = module.down_proj
        assert isinstance(down, Tensor)
        width, released = down.shape[2], self.observer.measure == "released"
        counted = self.observer.counted_on(hidden.device).flatten().to(wide)
        shape = (batch, ffn.n_experts, width)
        squares, magnitude, positive, total, activity = (hidden.new_zeros(shape, dtype=wide) for _ in range(5))

        def visit(expert: int, token: Tensor, gate: Tensor, up: Tensor, units: Tensor, weight: Tensor) -> Tensor:
            sequence, count = token // tokens, counted[token, None]
            values = units.to(wide)
            squares[:, expert].index_add_(0, sequence, (values * weight.to(wide)).square() * count)
            if released:
                magnitude[:, expert].index_add_(0, sequence, up.abs().to(wide) * count)
            if self.observer.activations:
                positive[:, expert].index_add_(0, sequence, (gate > 0).to(wide) * count)
                total[:, expert].index_add_(0, sequence, values * count)
                activity[:, expert].index_add_(0, sequence, values.square() * count)
            return units

        result = experts_forward(module, hidden, expert_ids, routing, visit)
        if released:
            self._scored("ffn", magnitude.flatten(1))
        else:
            norms = self.constant("ffn", lambda: down.to(wide).norm(dim=1).flatten())
            self._scored("ffn", squares.flatten(1).sqrt() * norms)
        if self.observer.activations:
            self._saw("ffn", positive.flatten(1), total.flatten(1), activity.flatten(1))
        return result

    # -- sums over tokens ------------------------------------------------------------------------------------------

    def _by_sequence(self, states: Tensor) -> Tensor:
        """[B, T, N]; OPT flattens sequences and tokens before its FFN."""
        return states if states.ndim == 3 else states.view(*self.observer.counted.shape, -1)

    def _sums(self, states_BTN: Tensor, *terms: Term) -> dict[Term, Tensor]:
        """Over the counted tokens, each [B, N]; of everything, for activations, or of what is named."""
        wanted = terms or (TERMS if self.observer.activations else ("squares",))
        counted = self.observer.counted_on(states_BTN.device)
        return dict(zip(wanted, token_sums(states_BTN, counted, wanted, self.observer.kernel), strict=True))


def over_heads(norm: nn.Module, head_dim: int) -> bool:
    """Whether a Q/K norm spans all heads (OLMo-2) rather than each head."""
    weight = getattr(norm, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1 and len(weight) > head_dim


def norm_eps(norm: nn.Module) -> float:
    """The epsilon of an RMS norm."""
    for name in ("variance_epsilon", "eps"):
        value = getattr(norm, name, None)
        if isinstance(value, float):
            return value
    raise UnsupportedModelError(
        f"wanted an RMS norm with an attribute eps on queries and keys, found {type(norm).__name__}. "
        "Pass slots without q and k."
    )
