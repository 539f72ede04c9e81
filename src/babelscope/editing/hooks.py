"""Edits of activations, by hooks: for a set per row, for part of the tokens, and for what weights can't do.

Axes: `B` sequences, `T` tokens, `R` rows that the user gave, `n` units of an edit, `N` channels of a module.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.editing.experts import edit_experts
from babelscope.editing.forward import ForwardWatch
from babelscope.editing.operations import Operation
from babelscope.errors import UnsupportedModelError
from babelscope.models.anatomy import Anatomy
from babelscope.models.unitmap import LayerAnatomy


class Site:
    """The edited units of one slot in one layer.

    Args:
        layer: the layer.
        slot: the slot.
        units: int64 [n].
        members: bool [R, n], which row edits which unit; None: all.
        operation: what to do.
        watch: tells the running batch.
    """

    def __init__(
        self,
        layer: LayerAnatomy,
        slot: str,
        units: Tensor,
        members: Tensor | None,
        operation: Operation,
        watch: ForwardWatch,
    ) -> None:
        self.layer, self.slot, self.units, self.members = layer, slot, units, members
        self.operation, self.watch = operation, watch
        self.target = operation.target(slot, layer.index, units)
        self.fired = 0
        """Forward passes in which it changed something."""
        self.channels = units
        self._moved: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def install(self, stack: ExitStack) -> None:
        """Hooks the module that holds the units until the stack closes."""
        attention, ffn = self.layer.attention, self.layer.ffn
        projection = {"q": attention.query, "k": attention.key, "v": attention.value}.get(self.slot)
        if projection is not None:
            self.channels = projection.channels(self.units)
            stack.callback(projection.module.register_forward_hook(self._after, prepend=True).remove)
        elif self.slot == "ffn" and ffn.experts is not None:
            edit_experts(ffn.experts, self, stack)
        else:
            module = attention.output if self.slot == "o" else ffn.down
            assert module is not None
            stack.callback(module.register_forward_pre_hook(self._before, prepend=True).remove)

    def _after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self._edited(output)

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or not isinstance(args[0], Tensor):
            raise UnsupportedModelError(
                f"{self}: {type(module).__name__} was called without a positional tensor, so its input can't be "
                "edited. Use op='zero' or 'scale' for all rows and tokens, which edit weights."
            )
        return (self._edited(args[0]), *args[1:])

    def _edited(self, states: Tensor) -> Tensor:
        """`states` [B, T, N] (OPT: [B * T, N]) with the units' channels replaced."""
        if not self.runs():
            return states
        self.fired += 1
        channels, target = self.moved(states)
        batch = self.watch.batch
        if batch is not None and batch.drawn is not None:
            target = self._shaped_as(states, target[batch.drawn.to(target.device)])
        part = states.index_select(-1, channels)
        result = self.operation.apply(part, target)
        mask = self._mask(states)
        if mask is not None:
            result = torch.where(mask, result, part)
        return states.index_copy(-1, channels, result)

    def runs(self) -> bool:
        """Whether the running forward pass is to be edited."""
        batch = self.watch.batch
        if batch is None and self.watch.needed:
            raise UnsupportedModelError(
                f"{self}: the module ran outside a call of the whole model, so its rows and tokens are unknown. Call "
                "the model itself, or edit without rows, when, positions and resample."
            )
        return batch is None or batch.active

    def moved(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Channels and target on the device (and in the dtype) of a tensor: layers may lie on different ones."""
        key = (states.device, states.dtype)
        if key not in self._moved:
            self._moved[key] = (self.channels.to(states.device), self.target.to(*key))
        return self._moved[key]

    def mask_of(self, sequence: Tensor, token: Tensor) -> Tensor | None:
        """Which units are edited at these tokens, bool [m, n] or [m, 1]; None: all.

        Args:
            sequence: int64 [m], row of the batch.
            token: int64 [m], place in the forward pass.
        """
        batch, found = self.watch.batch, None
        if batch is None:
            return None
        if self.members is not None:
            found = self.members.to(sequence.device)[sequence // (batch.size // len(self.members))]
        if batch.chosen is not None:
            chosen = batch.chosen.to(sequence.device)[sequence, token][:, None]
            found = chosen if found is None else found & chosen
        return found

    def _mask(self, states: Tensor) -> Tensor | None:
        """Broadcastable to [B, T, n], or [B * T, n] where the model has flattened its batch; None: all."""
        batch, mask = self.watch.batch, None
        if batch is None:
            return None
        if self.members is not None:
            members = self.members.to(states.device)
            mask = members.repeat_interleave(batch.size // len(members), 0)[:, None]
        if batch.chosen is not None:
            chosen = batch.chosen.to(states.device)[..., None]
            mask = chosen if mask is None else mask & chosen
        return None if mask is None else self._shaped_as(states, mask)

    def _shaped_as(self, states: Tensor, values: Tensor) -> Tensor:
        """Values that fit [B, T, n], flattened where the model has flattened its batch."""
        batch = self.watch.batch
        assert batch is not None
        if states.shape[:-1] == (batch.size, batch.tokens):
            return values
        if states.shape[:-1] == (batch.size * batch.tokens,):
            return values.expand(batch.size, batch.tokens, -1).flatten(0, 1)
        raise UnsupportedModelError(
            f"{self}: wanted activations of {batch.size} rows x {batch.tokens} tokens, found {tuple(states.shape)}. "
            "Rows and tokens can't be told apart in this model; edit without rows, positions and resample."
        )

    def __str__(self) -> str:
        return f"layer {self.layer.index}, slot {self.slot}"


def refuse_compiled(anatomy: Anatomy) -> None:
    """UnsupportedModelError when a part of the model was compiled in place: its graph would skip hooks set later."""
    for name, module in anatomy.model.named_modules():
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedModelError(
                f"{name or type(anatomy.model).__name__} is compiled, and a compiled graph skips hooks that are set "
                "afterwards. Edit the model before compiling it, or use op='zero' or 'scale' for all rows and tokens, "
                "which edit weights."
            )


def without_compiling(anatomy: Anatomy, stack: ExitStack) -> None:
    """Keeps `generate` from compiling the decoding step (static caches) until the stack closes."""
    config: Any = getattr(anatomy.model, "generation_config", None)
    if config is not None:
        stack.callback(setattr, config, "disable_compile", getattr(config, "disable_compile", None))
        config.disable_compile = True
