"""The forward pass that runs now: its batch, and which of its tokens an edit is meant for.

Axes: `B` sequences of the batch, `T` tokens of this forward pass, `R` rows that the user gave.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from babelscope.errors import ConfigError
from babelscope.models.anatomy import Anatomy

When = Literal["all", "prompt", "generation"]
"""Which forward passes an edit acts on.

`generation`: one new token on a cache that holds earlier ones. `prompt`: every other pass, so the first one of
`generate`, and further chunks of a long prompt. Without a cache every pass reads the whole text again and is `prompt`.
The first generated token is read off the last prompt token, so it is already the prompt pass's."""


Draw = Callable[[Tensor, Tensor], Tensor]
"""From the ids of tokens and their places in their sequences, int64 [B, T] each, to a number for each token."""


@dataclass(frozen=True)
class Batch:
    """What the running forward pass holds."""

    size: int
    """B"""
    tokens: int
    """T"""
    active: bool
    """Whether the edit has anything to do in it."""
    chosen: Tensor | None
    """bool [B, T]: the tokens to edit; None: all."""
    drawn: Tensor | None
    """int64 [B, T]: what was drawn for each token, if anything is to be."""


class ForwardWatch:
    """Watches the decoder's calls; `batch` describes the one that runs now, None between calls.

    Args:
        when: which forward passes count.
        positions: token positions that count, from each sequence's first unpadded token; None: all.
        rows: how many sets the user gave, one per row; None: one for all.
        draw: what draws a number for each token, if an edit needs one.

    Raises:
        ConfigError: an unknown `when`, or positions that are no numbers of 0 or more.
    """

    def __init__(self, when: str, positions: Iterable[int] | None, rows: int | None, draw: Draw | None = None) -> None:
        if when not in get_args(When):
            raise ConfigError(f"wanted when among {', '.join(get_args(When))}, found {when!r}. Correct it.")
        self.when, self.rows, self.draw = when, rows, draw
        self.positions = None if positions is None else _places(positions)
        self.batch: Batch | None = None
        self.passes = 0
        """Forward passes so far."""
        self.matching = 0
        """Those with a token to edit."""

    @property
    def needed(self) -> bool:
        """Whether an edit can't do without knowing the batch."""
        return self.when != "all" or any(each is not None for each in (self.positions, self.rows, self.draw))

    def install(self, anatomy: Anatomy, stack: ExitStack) -> None:
        """Hooks the decoder until the stack closes."""
        decoder: Any = _decoder(anatomy)
        self._signature = inspect.signature(decoder.forward)
        stack.callback(decoder.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True).remove)
        stack.callback(decoder.register_forward_hook(self._after, always_call=True).remove)

    def _before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.passes += 1
        call = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        call |= call.pop("kwargs", {})
        ids, embedded = call.get("input_ids"), call.get("inputs_embeds")
        states = ids if ids is not None else embedded
        if not isinstance(states, Tensor):
            raise ConfigError(
                f"{type(module).__name__} was called without input_ids and inputs_embeds, so the edit can't tell the "
                "rows of its batch. Pass one of them."
            )
        size, tokens = int(states.shape[0]), int(states.shape[1])
        if self.rows is not None and size % self.rows:
            raise ConfigError(
                f"rows lists {self.rows} sets, but the batch has {size} rows. Give one set (or None) for each row; "
                "with num_beams or num_return_sequences each is used for all the copies of its row."
            )
        past = _cached(call.get("past_key_values"))
        phase = "generation" if past and tokens == 1 else "prompt"
        active, chosen, drawn = self.when in ("all", phase), None, None
        if active and (self.positions is not None or self.draw is not None):
            place = _positions(call, size, tokens, past, states.device)
            if self.positions is not None:
                chosen = torch.isin(place, self.positions.to(place.device))
                active = bool(chosen.any())
            if self.draw is not None:
                if not isinstance(ids, Tensor):
                    raise ConfigError("op='resample' draws by token, found a call with inputs_embeds. Pass input_ids.")
                drawn = self.draw(ids, place)
        self.matching += active
        self.batch = Batch(size, tokens, active, chosen, drawn)

    def _after(self, *_: Any) -> None:
        self.batch = None


def _places(positions: Any) -> Tensor:
    """Sorted int64."""
    try:
        wanted = sorted({operator.index(each) for each in positions})
    except TypeError:
        wanted = []
    if not wanted or wanted[0] < 0:
        raise ConfigError(
            f"wanted positions as integers of 0 or more (0: a sequence's first unpadded token), found {positions!r}. "
            "Correct them, or leave positions out for all tokens."
        )
    return torch.tensor(wanted)


def _decoder(anatomy: Anatomy) -> nn.Module:
    """The module that owns the layers. Not `model.base_model`: OPT never calls it, but goes straight to its decoder."""
    first = anatomy.layers[0].module
    for module in anatomy.model.modules():
        if any(isinstance(child, nn.ModuleList) and first in list(child) for child in module.children()):
            return module
    return anatomy.model


def _cached(cache: Any) -> int:
    """Tokens in a cache."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2])


def _positions(call: dict[str, Any], size: int, tokens: int, past: int, device: torch.device) -> Tensor:
    """int64 [B, T]: place of each token, counted from its sequence's first unpadded one; -1 on padding."""
    mask = call.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == past + tokens:
        real = mask.long()
        return (real.cumsum(1) - 1).masked_fill(real == 0, -1)[:, -tokens:]
    given = call.get("position_ids")
    if isinstance(given, Tensor) and given.ndim == 2 and given.shape[1] == tokens:
        return given.expand(size, tokens)
    return torch.arange(past, past + tokens, device=device).expand(size, tokens)
