"""Sums over the tokens of each sequence of what a layer computes there: read once, nothing of its size stored.

A forward pass is bound by arithmetic, these sums by memory. Axes: `B` sequences, `T` tokens, `N` units, `S` groups of
tokens, `G` kv heads, `R` query heads per kv head, `D` channels of a head, `M` model width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
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

_HEADS = 16
"""Query heads per kv head up to which the terms of their pairs are compiled; it takes 9 s for 7 and 19 s for 16."""


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

    def by_group(states_BSTN: Tensor, weight_BST: Tensor) -> list[Tensor]:
        sums = _compiled_terms()(states_BSTN, weight_BST)
        return [sums[TERMS.index(term)] for term in terms]

    return _summed(by_group, lambda states, weight: _in_chunks(states, weight, terms), states_BTN, counted_BT, kernel)


def weight_gram(output_weight_MC: Tensor, groups: int, width: int) -> Tensor:
    """[R, R, G, D] inner products of the columns of W_O that one value channel meets (weight: [M, G * R * D])."""
    columns = output_weight_MC.reshape(output_weight_MC.shape[0], groups, -1, width).permute(1, 3, 2, 0)
    return (columns @ columns.transpose(-1, -2)).permute(2, 3, 0, 1).contiguous()


def value_squares(output_input_BTC: Tensor, counted_BT: Tensor, gram_RRGD: Tensor, kernel: KernelName) -> Tensor:
    """Squared impact of every value channel at the attention output, [B, G * D] in the compute precision.

    Value channel n of kv head g enters the outputs of all R heads of its group, so
    Imp^2 = sum over the counted tokens of O_n^T (W_n^T W_n) O_n.

    Args:
        output_input_BTC: input of W_O, [B, T, G * R * D].
        counted_BT: bool, the tokens that count.
        gram_RRGD: from `weight_gram`.
        kernel: `compiled` reads the states once; any other multiplies each head of a group by each.
    """
    heads, _, groups, width = gram_RRGD.shape
    squares = _summed(
        lambda states, weight: _compiled_squares()(states, weight, gram_RRGD),
        lambda states, weight: _by_pairs(states, weight, gram_RRGD),
        output_input_BTC.unflatten(2, (groups, heads, width)),
        counted_BT,
        kernel if heads <= _HEADS else "eager",
    )[0]
    return squares.clamp_min(0).flatten(1)


def _summed(
    by_group: Callable[[Tensor, Tensor], list[Tensor]],
    plain: Callable[[Tensor, Tensor], list[Tensor]],
    states: Tensor,
    counted_BT: Tensor,
    kernel: KernelName,
) -> list[Tensor]:
    """Sums of states [B, T, ...] over counted tokens, each [B, ...].

    Args:
        by_group: takes states [B, S, 16, ...] and weights [B, S, 16].
        plain: takes states [B, T, ...] and weights [B, T].
        states: what to sum.
        counted_BT: bool.
        kernel: `compiled` takes `by_group`, for as many tokens as there are whole groups of.
    """
    weight_BT = counted_BT.to(compute_dtype(states))
    groups = states.shape[1] // _GROUP
    # A single group would be compiled apart, and is not worth it.
    whole = groups * _GROUP if kernel == "compiled" and groups > 1 else 0
    if not whole:
        return plain(states, weight_BT)
    sums = by_group(*(each[:, :whole].unflatten(1, (groups, _GROUP)) for each in (states, weight_BT)))
    if whole == states.shape[1]:
        return sums
    rest = plain(states[:, whole:], weight_BT[:, whole:])
    return [first + last for first, last in zip(sums, rest, strict=True)]


def _term(values: Tensor, term: Term) -> Tensor:
    if term == "positive":
        # Eagerly, several times faster than by way of truth values.
        return (values > 0).to(values.dtype) if torch.compiler.is_compiling() else values.clamp_min(0).sign_()
    return values * values if term == "squares" else values


def _in_chunks(states_BTN: Tensor, weight_BT: Tensor, terms: tuple[Term, ...] = TERMS) -> list[Tensor]:
    """Not in place: sums that are older than the temporaries around them keep the allocator from giving those back."""
    sums = [weight_BT.new_zeros(len(states_BTN), 1, states_BTN.shape[2]) for _ in terms]
    chunk = max(1, states_BTN.shape[1]) if states_BTN.is_cuda else _CHUNK
    for states, weight in zip(states_BTN.split(chunk, 1), weight_BT[:, None].split(chunk, 2), strict=True):
        part = states.to(weight.dtype)
        sums = [torch.baddbmm(each, weight, _term(part, term)) for each, term in zip(sums, terms, strict=True)]
    return [each[:, 0] for each in sums]


def _by_pairs(states_BTGRD: Tensor, weight_BT: Tensor, gram_RRGD: Tensor) -> list[Tensor]:
    """One sum, [B, G, D]."""
    states = states_BTGRD.to(weight_BT.dtype) * weight_BT[..., None, None, None]
    states_BGDRT = states.permute(0, 2, 4, 3, 1).contiguous()  # once; the product would copy each of its sides
    return [((states_BGDRT @ states_BGDRT.transpose(-1, -2)) * gram_RRGD.permute(2, 3, 0, 1)).sum((-1, -2))]


@functools.cache
def _compiled_terms() -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Takes states [B, S, 16, N] and weights [B, S, 16]; gives every term, each [B, N]."""
    return compiled(_fused_terms, _ungrouped(_in_chunks), _any_size({4: (2,), 3: (2,)}), "the fused sum over tokens")


def _fused_terms(states_BSTN: Tensor, weight_BST: Tensor) -> list[Tensor]:
    part, weight = states_BSTN.to(weight_BST.dtype), weight_BST[..., None]
    return [(_term(part, term) * weight).sum(2).sum(1) for term in TERMS]


@functools.cache
def _compiled_squares() -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
    """Takes states [B, S, 16, G, R, D], weights [B, S, 16] and [R, R, G, D]; gives one sum, [B, G, D]."""
    sizes = _any_size({6: (2, 4), 3: (2,), 4: (0, 1)})
    return compiled(_fused_squares, _ungrouped(_by_pairs), sizes, "the impact of v")


def _fused_squares(states_BSTGRD: Tensor, weight_BST: Tensor, gram_RRGD: Tensor) -> list[Tensor]:
    """The sum of a quadratic form: a sum for each pair of heads would be no faster than `_by_pairs`."""
    heads = states_BSTGRD.to(weight_BST.dtype).unbind(4)
    form = torch.zeros_like(heads[0])
    for place, head in enumerate(heads):
        row = head * gram_RRGD[place, place]
        for other in range(place + 1, len(heads)):
            row = row + heads[other] * (2 * gram_RRGD[place, other])
        form = form + row * head
    return [(form * weight_BST[..., None, None]).sum(2).sum(1)]


def _ungrouped(plain: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """The same for states and weights whose tokens are in groups."""
    return lambda states, weight_BST, *constants: plain(states.flatten(1, 2), weight_BST.flatten(1, 2), *constants)


def _any_size(fixed: Mapping[int, tuple[int, ...]]) -> Callable[[Tensor], Tensor]:
    """Leaves to the compiler every size but those of `fixed`: number of axes -> axes that are compiled for one size."""

    def prepare(tensor: Tensor) -> Tensor:
        for axis in range(tensor.ndim):
            if axis in fixed[tensor.ndim]:
                torch._dynamo.mark_static(tensor, axis)
            else:
                torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return tensor

    return prepare
