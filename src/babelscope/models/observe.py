"""One observed forward pass: the impact of every neuron on every sequence of a batch, and its activation sums.

The model is observed from outside. Projections, W_O and W_down are read by hooks; queries and keys are taken where
the shared attention interface of transformers hands them over, under a name of our own that delegates to the
implementation the model already uses; the intermediate units of a mixture of experts likewise. Everything is put
back on exit, also after an exception.

Axes: `B` sequences, `T` tokens, `H` query heads, `G` kv heads, `R` = H / G, `D` channels of a head, `N` units.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from babelscope.errors import ConfigError, NumericsError, UnsupportedModelError
from babelscope.impacts.kernels import ROW_BLOCK, KernelName
from babelscope.models.interfaces import allowed, evaluation_mode, switch_attention, switch_experts
from babelscope.models.parallel import side_by_side
from babelscope.models.slots import resolve_slots
from babelscope.models.taps import Activation, LayerTap
from babelscope.models.unitmap import UnitMap

Measure = Literal["exact", "released"]
"""`exact`: what really zeroing the unit does. `released`: the scores of the paper's published code, for comparison."""


@dataclass(frozen=True)
class Observation:
    """What one batch showed, by slot and layer."""

    impact: dict[str, list[Tensor]]
    """[B, N] each: impact summed over the counted tokens (Frobenius norm)."""
    activation: dict[str, list[Activation]]
    """Empty unless the observer was asked for activations."""


class Observer:
    """Observes a model for as long as the context is open; `run` may be called any number of times.

    Args:
        anatomy: of the model.
        slots: which slots to score.
        kernel: how attention impacts are computed; see `babelscope.impacts.kernels`.
        activations: also sum activations (needed by LAPE and by mean ablation).
        measure: `exact`, or `released` for the published code's scores.
    """

    def __init__(
        self,
        anatomy: UnitMap,
        *,
        slots: Iterable[str] | None = None,
        kernel: KernelName = "eager",
        activations: bool = False,
        measure: Measure = "exact",
    ) -> None:
        self.anatomy = anatomy
        self.slots = anatomy.slots if slots is None else resolve_slots(slots)
        missing = [slot for slot in self.slots if slot not in anatomy.slots]
        if missing:
            raise ConfigError(
                f"wanted slots {', '.join(self.slots)}, but the anatomy was built for {', '.join(anatomy.slots)}. "
                f"Build it with Anatomy(model, slots={self.slots})."
            )
        if measure == "released" and "o" in self.slots:
            raise ConfigError(
                "the published code has no score for slot o. Leave it out, for example slots=('q', 'k', 'v', 'ffn')."
            )
        self.kernel: KernelName = "eager" if kernel == "auto" else kernel
        self.activations = activations
        self.measure = measure
        self._taps = [LayerTap(self, layer) for layer in anatomy.layers]
        self._stack = ExitStack()
        self._base: Any = getattr(anatomy.model, "base_model", anatomy.model)
        self.counted: Tensor = torch.empty(0)
        self._blocks: list[tuple[Tensor | None, tuple[tuple[int, int, int, int], ...]]] = []
        self._unsure: list[tuple[int, Tensor]] = []
        self._overflowing: set[int] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            evaluation_mode(self.anatomy.model, stack)
            if {"q", "k"} & set(self.slots):
                switch_attention(self.anatomy, stack)
            if "ffn" in self.slots and any(layer.ffn.experts is not None for layer in self.anatomy.layers):
                switch_experts(self.anatomy, stack)
            for tap in self._taps:
                tap.install(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, counted: Tensor | None = None
    ) -> Observation:
        """Runs the decoder (no unembedding, no cache) on one batch.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 1 where a token is real; padding on either side. None: all real.
            counted: [B, T], the positions that count; None: all unpadded ones. Padding never counts.

        Raises:
            NumericsError: an impact is NaN or infinite; the message names layer and slot.
            UnsupportedModelError: a hook never fired, because the model replaces modules by custom kernels.
        """
        device = self.anatomy.model.get_input_embeddings().weight.device  # type: ignore[operator]
        if device.type == "meta":
            device = torch.device("cpu")
        given = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        left_padded = not bool(given[:, 0].all())  # asked where the mask is given: on the host that waits for nothing
        soon = device.type != "cpu"  # a copy to a GPU that blocks waits for all that the GPU still has to do
        input_ids, mask = (each.to(device, non_blocking=soon) for each in (input_ids, given.long()))
        extra: dict[str, Any] = {}
        if left_padded and "position_ids" in inspect.signature(self._base.forward).parameters:
            extra["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        return self.watch(
            lambda: self._base(input_ids=input_ids, attention_mask=mask, use_cache=False, **extra),
            mask.bool() if counted is None else mask.bool() & counted.bool().to(device, non_blocking=soon),
        )

    def watch(self, call: Callable[[], Any], counted: Tensor) -> Observation:
        """Observes whatever `call` runs, with `counted` [B, T] the positions that count."""
        self.counted = counted
        while True:
            self._blocks, self._unsure = [], []
            for tap in self._taps:
                tap.clear()
            with torch.no_grad():
                call()
            if (found := self._collect()) is not None:
                return found

    def unsure(self, layer: int, device: torch.device) -> Callable[[Tensor], None] | None:
        """Where a layer says that channels of it may have overflowed, for one look at all layers after the pass.

        None: it is to look at once. On a CPU that costs nothing; a layer that has overflowed will again; and of the
        processes that hold a model together none can repeat a pass alone.
        """
        if device.type == "cpu" or layer in self._overflowing or self.anatomy.mesh is not None:
            return None
        return lambda flag: self._unsure.append((layer, flag))

    def counted_on(self, device: torch.device) -> Tensor:
        """[B, T] bool, on the device of a layer."""
        return self.counted.to(device)

    def blocks(self, mask: Tensor | None, tokens: int) -> tuple[tuple[int, int, int, int], ...]:
        """Blocks of query rows with the range of keys that any row of the block sees."""
        for known, blocks in self._blocks:
            if known is mask:
                return blocks
        starts = range(0, tokens, ROW_BLOCK)
        if mask is None:
            found = [(start, min(start + ROW_BLOCK, tokens), 0, min(start + ROW_BLOCK, tokens)) for start in starts]
        else:
            seen = (allowed(mask) & self.counted.to(mask.device)[:, None, :, None]).flatten(0, 1).any(0)
            rows = nn.functional.pad(seen.byte(), (0, 0, 0, -tokens % ROW_BLOCK))
            keys = rows.view(-1, ROW_BLOCK, seen.shape[1]).amax(1)
            low, past, some = keys.argmax(1), seen.shape[1] - keys.flip(1).argmax(1), keys.amax(1)
            # The one copy to the host per mask: ranges decide what is launched.
            ranges = zip(starts, *torch.stack([low, past, some]).tolist(), strict=True)
            found = [(start, min(start + ROW_BLOCK, tokens), left, end) for start, left, end, any_ in ranges if any_]
        # Layers share their masks. The mask is kept beside its blocks, so that no other can take its place in memory.
        self._blocks.append((mask, tuple(found)))
        return tuple(found)

    def _collect(self) -> Observation | None:
        """What the pass showed; None when it has to be repeated, with layers that overflowed looking at once."""
        impact: dict[str, list[Tensor]] = {slot: [] for slot in self.slots}
        activation: dict[str, list[Activation]] = {slot: [] for slot in self.slots} if self.activations else {}
        for tap in self._taps:
            for slot in self.slots:
                if slot not in tap.impact or (self.activations and slot not in tap.activation):
                    raise UnsupportedModelError(
                        f"layer {tap.layer.index}, slot {slot}: the forward pass never reached the observed module. "
                        "The model was compiled or uses custom kernels that skip hooks; load it without them, or "
                        f"pass slots without {slot}."
                    )
                impact[slot].append(tap.impact[slot])
                if self.activations:
                    activation[slot].append(tap.activation[slot])
        if self.anatomy.mesh is not None:
            impact, activation = self._of_all_ranks(impact, activation)
        # Layer by layer, for NaN spreads to all that is computed later: the first place is where to look.
        finite = [impact[slot][place].isfinite().all() for place in range(len(self._taps)) for slot in self.slots]
        # One copy to the host per batch.
        flags = [*finite, *(flag for _, flag in self._unsure)]
        values = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
        all_finite, overflowed = values[: len(finite)], values[len(finite) :]
        if any(overflowed):
            self._overflowing |= {layer for (layer, _), up in zip(self._unsure, overflowed, strict=True) if up}
            return None
        if not all(all_finite):
            place, number = divmod(all_finite.index(False), len(self.slots))
            raise NumericsError(
                f"layer {self._taps[place].layer.index}, slot {self.slots[number]}: the impact is NaN or infinite. "
                "The model overflows on this text; load it in bfloat16 or float32 instead of float16, or check its "
                "weights for NaN."
            )
        return Observation(impact, activation)

    def _of_all_ranks(
        self, impact: dict[str, list[Tensor]], activation: dict[str, list[Activation]]
    ) -> tuple[dict[str, list[Tensor]], dict[str, list[Activation]]]:
        """Where several processes hold the model together: the units of all of them, side by side."""
        layers = range(len(self._taps))
        ffn = [tap.layer.ffn for tap in self._taps]
        found, widths = [], []
        for slot, place in itertools.product(self.slots, layers):
            sums = [activation[slot][place]] if activation else []
            each = [impact[slot][place], *(tensor for one in sums for tensor in (one.positive, one.total, one.squares))]
            parts = ffn[place].n_experts if slot == "ffn" else 1
            found += each
            widths += [(parts, self.anatomy.width(slot, place) // parts)] * len(each)
        every = iter(side_by_side(found, widths, self.anatomy.mesh))
        for slot, place in itertools.product(self.slots, layers):
            impact[slot][place] = next(every)
            if activation:
                activation[slot][place] = Activation(next(every), next(every), next(every))
        return impact, activation
