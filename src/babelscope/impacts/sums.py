"""Sums over the tokens of each sequence of what a layer computes there: read once, nothing of its size stored.

A forward pass is bound by arithmetic, these sums by memory. Axes: `B` sequences, `T` tokens, `N` units, `G` groups of
tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from babelscope.impacts.compiling import compiled
from babelscope.impacts.kernels import KernelName, compute_dtype

Term = Literal["squares", "total", "positive"]
"""What is summed: the squares of the values, the values, or 1 where a value is above 0."""

TERMS: tuple[Term, ...] = ("squares", "total", "positive")

_CHUNK = 32
"""Tokens at once on a CPU when not compiled: the temporary stays in the cache."""

_GROUP = 16
"""Tokens of a group when compiled. A sum over all tokens would read a cache line here and the next a row further on;
over 16, the rows are streams that the processor fetches ahead: three times as fast, and 16 was the fastest."""


def token_sums(states_BTN: Tensor, counted_BT: Tensor, terms: tuple[Term, ...], kernel: KernelName) -> list[Tensor]:
    """Sums over the counted tokens of each sequence.

    Args:
        states_BTN: what to sum.
        counted_BT: bool, the tokens that count.
        terms: which sums.
        kernel: `compiled` reads the states once and makes all sums there are; any other goes chunk by chunk.

    Returns:
        For each term: [B, N] in the compute precision.
    """
    weight_BT = counted_BT.to(compute_dtype(states_BTN))
    groups = states_BTN.shape[1] // _GROUP
    # A single group would be compiled apart, and is not worth it.
    whole = groups * _GROUP if kernel == "compiled" and groups > 1 else 0
    if not whole:
        return _in_chunks(states_BTN, weight_BT, terms)
    grouped = _compiled()(*(each[:, :whole].unflatten(1, (groups, _GROUP)) for each in (states_BTN, weight_BT)))
    sums = [grouped[TERMS.index(term)].sum(1) for term in terms]
    if whole == states_BTN.shape[1]:
        return sums
    rest = _in_chunks(states_BTN[:, whole:], weight_BT[:, whole:], terms)
    return [first + last for first, last in zip(sums, rest, strict=True)]


def _term(values: Tensor, term: Term) -> Tensor:
    if term == "positive":
        # Eagerly, several times faster than by way of truth values.
        return (values > 0).to(values.dtype) if torch.compiler.is_compiling() else values.clamp_min(0).sign_()
    return values * values if term == "squares" else values


def _in_chunks(states_BTN: Tensor, weight_BT: Tensor, terms: tuple[Term, ...]) -> list[Tensor]:
    """Not in place: sums that are older than the temporaries around them keep the allocator from giving those back."""
    sums = [weight_BT.new_zeros(len(states_BTN), 1, states_BTN.shape[2]) for _ in terms]
    chunk = max(1, states_BTN.shape[1]) if states_BTN.is_cuda else _CHUNK
    for states, weight in zip(states_BTN.split(chunk, 1), weight_BT[:, None].split(chunk, 2), strict=True):
        part = states.to(weight.dtype)
        sums = [torch.baddbmm(each, weight, _term(part, term)) for each, term in zip(sums, terms, strict=True)]
    return [each[:, 0] for each in sums]


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Takes states [B, G, 16, N] and weights [B, G, 16]; gives every term summed by group, each [B, G, N]."""
    return compiled(_fused, _by_group, _any_batch, "the fused sum over tokens")


def _fused(states_BGTN: Tensor, weight_BGT: Tensor) -> list[Tensor]:
    part, weight = states_BGTN.to(weight_BGT.dtype), weight_BGT[..., None]
    return [(_term(part, term) * weight).sum(2) for term in TERMS]


def _by_group(states_BGTN: Tensor, weight_BGT: Tensor) -> list[Tensor]:
    sums = _in_chunks(states_BGTN.flatten(0, 1), weight_BGT.flatten(0, 1), TERMS)
    return [each.unflatten(0, states_BGTN.shape[:2]) for each in sums]


def _any_batch(tensor: Tensor) -> Tensor:
    """The tensor, with every size but that of a group the compiler's own."""
    torch._dynamo.mark_static(tensor, 2)
    torch._dynamo.maybe_mark_dynamic(tensor, [0, 1, *range(3, tensor.ndim)])
    return tensor
