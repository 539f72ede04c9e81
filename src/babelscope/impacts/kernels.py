"""What switching off one query or key channel does to the attention probabilities, for all channels at once.

Axes: `P` (sequence, kv head) pairs, `R` query heads per kv head, `I` query rows, `J` keys, `C` channels.

Switching off channel c changes the score of row i and key j by

    delta_ijc = sum over terms of row_ic * column_jc            (rank 1 without rotation, 2 with it)
              + gain * score_ij                                 (Q/K norms: the other channels grow)

With A the probabilities and D = expm1(delta), three running sums over j give the row's change:

    z = sum A D,   c = sum A^2 D,   p = sum (A D)^2,   B = sum A^2
    || A' - A ||^2 = (p - 2 z c + z^2 B) / (1 + z)^2

so nothing of size I x J x C is ever stored by the fused version. The softmax does not change when a constant is
added to a row, so delta is centred on its mean under A first: without that, a row with a single key (true change 0)
would come out as sqrt(rounding) of delta, which a large channel makes larger than the true impacts of small ones.

Source: paper Eq. 8 for the quantity; the sums are derived in the design note on exact impacts.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import operator
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from babelscope.errors import ConfigError, MissingDependencyError
from babelscope.impacts.compiling import compiled
from babelscope.impacts.names import KernelName as KernelName

logger = logging.getLogger(__name__)

ROW_BLOCK = 32
"""Query rows handled at once. Smaller blocks skip more of the future (j > i); 32 was fastest on two CPU cores."""

EAGER_ELEMENTS = 4_000_000
"""Largest I x J x C temporary of the eager version, in elements (16 MB in float32)."""


@dataclass(frozen=True)
class Change:
    """How switching off each channel changes the scores, for one block of rows or a whole sequence."""

    rows: tuple[Tensor, ...]
    """Row factors, each [P, R, I, C]; the softmax scale and the minus sign are folded in here."""
    columns: tuple[Tensor, ...]
    """Column factors, each [P, J, C], one per row factor."""
    row_gain: Tensor | None = None
    """[P, R, I, C]: relative growth of the scores of row i when channel c is off (query norm)."""
    column_gain: Tensor | None = None
    """[P, J, C]: relative growth of the scores of key j when channel c is off (key norm)."""

    def block(self, start: int, stop: int, low: int, high: int) -> Change:
        """The part for rows start:stop and keys low:high."""
        return Change(
            tuple(row[:, :, start:stop] for row in self.rows),
            tuple(column[:, low:high] for column in self.columns),
            None if self.row_gain is None else self.row_gain[:, :, start:stop],
            None if self.column_gain is None else self.column_gain[:, low:high],
        )


@dataclass(frozen=True)
class Attention:
    """What an attention function received, in compute precision (float32, or float64 for a float64 model)."""

    query: Tensor
    """[P, R, T, D], after rotation."""
    key: Tensor
    """[P, T, D], after rotation."""
    scale: float
    bias: Callable[[int, int, int, int], Tensor]
    """bias(row start, row stop, key low, key high): additive mask and position bias, broadcastable to [P, R, I, J]."""
    row_weight: Tensor
    """[P, T]: 1 where the query row counts, else 0."""
    blocks: tuple[tuple[int, int, int, int], ...]
    """(row start, row stop, key low, key high): which keys each block of rows can see; the rest is never computed."""
    cap: float | None = None
    """Soft cap of the scores: cap * tanh(score / cap)."""
    sink: Tensor | None = None
    """[P, R]: logit of an attention sink that takes probability but is no key."""


def compute_dtype(values: Tensor) -> torch.dtype:
    """The precision that impacts of these values are computed in: float32, or float64 for a float64 model."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def impact_squares(
    attention: Attention,
    changes: list[Change],
    kernel: KernelName = "eager",
    unsure: Callable[[Tensor], None] | None = None,
) -> list[Tensor]:
    """Squared Frobenius change of the attention probabilities when each channel is off.

    Args:
        attention: queries, keys and masks of one layer and batch.
        changes: one entry per question asked of the same attention (queries, keys); the probabilities are shared.
        kernel: `triton` (one sweep for all changes; float32 on a GPU, what else there is runs `compiled`), `compiled`
            (fused by torch.compile), `eager` (the same sums in chunks), or `reference` (every channel's softmax
            written out).
        unsure: given: a GPU isn't waited for. It gets a flag, [] bool; where that is up, channels overflowed and the
            result is wrong without them: ask again without `unsure`.

    Returns:
        For each change: [P, R, C], summed over the counted rows; dtype of the attention.
    """
    marked = [_extreme_channels(attention, change) for change in changes]
    results = _triton_sums(attention, changes) if kernel == "triton" else None
    swept = results is not None
    if results is None:
        results = [change.rows[0].new_zeros(*change.rows[0].shape[:2], change.rows[0].shape[3]) for change in changes]
    if kernel == "reference":
        marked = [torch.ones_like(result, dtype=torch.bool) for result in results]
        swept = True
    sums = _compiled_sums() if kernel in ("compiled", "triton") else _eager_sums
    for result, mark in zip(results, marked, strict=True):
        result.masked_fill_(mark, 0)
    overflow = torch.stack([mark.any() for mark in marked])
    if unsure is not None:
        unsure(overflow.any())
    # A GPU is waited for here, once, when it has the sweep to do.
    some = overflow.tolist() if unsure is None else [False] * len(marked)
    extremes = [
        mark.nonzero() if any_ else mark.new_empty(0, 3).long() for mark, any_ in zip(marked, some, strict=True)
    ]
    for start, stop, low, high in attention.blocks if not swept or any(map(len, extremes)) else ():
        scores = attention.query[:, :, start:stop] @ attention.key[:, None, low:high].transpose(2, 3) * attention.scale
        bias = attention.bias(start, stop, low, high)
        probabilities, sink = _softmax(_capped(scores, attention.cap) + bias, attention.sink)
        weight = attention.row_weight[:, start:stop]
        for result, change, mark, extreme in zip(results, changes, marked, extremes, strict=True):
            part = change.block(start, stop, low, high)
            if not swept:
                # Sizes of 1 are compiled apart; the one row left over after the last whole block is not worth that.
                summed = _eager_sums if stop - start == 1 else sums
                block = summed(
                    probabilities,
                    scores,
                    weight,
                    part.rows,
                    part.columns,
                    part.row_gain,
                    part.column_gain,
                    attention.cap,
                    sink,
                )
                result += block.masked_fill_(mark, 0)
            _add_written_out(result, extreme, probabilities, scores, bias, weight, part, attention)
    return results


def _capped(scores: Tensor, cap: float | None) -> Tensor:
    return scores if cap is None else torch.tanh(scores / cap) * cap


def _softmax(logits: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Probabilities of the keys [P, R, I, J] and of the sink [P, R, I] (None without one); a fully masked row is 0."""
    if sink is None:
        return torch.softmax(logits, dim=-1).nan_to_num(0.0), None
    with_sink = torch.cat([logits, sink[:, :, None, None].expand(*logits.shape[:3], 1)], dim=-1)
    probabilities = torch.softmax(with_sink, dim=-1)
    return probabilities[..., :-1], probabilities[..., -1]


def _fused_sums(
    probabilities: Tensor,
    scores: Tensor,
    weight: Tensor,
    rows: tuple[Tensor, ...],
    columns: tuple[Tensor, ...],
    row_gain: Tensor | None,
    column_gain: Tensor | None,
    cap: float | None,
    sink: Tensor | None,
) -> Tensor:
    """The three sums for one block of rows: [P, R, C]. Fused by the compiler; eager callers keep the block small."""
    slope = None if cap is None else 1 - torch.tanh(scores / cap) ** 2
    pull = probabilities if slope is None else probabilities * slope
    mean = rows[0] * (pull @ columns[0][:, None])
    delta = rows[0][:, :, :, None, :] * columns[0][:, None, None, :, :]
    for row, column in zip(rows[1:], columns[1:], strict=True):
        mean = mean + row * (pull @ column[:, None])
        delta = delta + row[:, :, :, None, :] * column[:, None, None, :, :]
    if row_gain is not None:
        mean = mean + row_gain * (pull * scores).sum(-1, keepdim=True)
        delta = delta + row_gain[:, :, :, None, :] * scores[..., None]
    if column_gain is not None:
        mean = mean + (pull * scores) @ column_gain[:, None]
        delta = delta + column_gain[:, None, None, :, :] * scores[..., None]
    if cap is not None and slope is not None:
        # cap * (tanh(a + b) - tanh(a)) without cancellation; slope = 1 - tanh(a)^2.
        step = torch.tanh(delta / cap)
        delta = cap * step * slope[..., None] / (1 + torch.tanh(scores / cap)[..., None] * step)
    growth = _expm1(delta - mean[:, :, :, None, :])
    moved = probabilities[..., None] * growth
    z = moved.sum(3)
    if sink is not None:
        z = z + sink[..., None] * _expm1(-mean)
    c = (probabilities[..., None] * moved).sum(3)
    p = (moved * moved).sum(3)
    concentration = (probabilities * probabilities).sum(3)[..., None]
    squares = (p - 2 * z * c + z * z * concentration).clamp_min(0) / ((1 + z) * (1 + z))
    return (squares * weight[:, None, :, None]).sum(2)


def _expm1(values: Tensor) -> Tensor:
    """expm1 that keeps its digits near 0 when compiled for a CPU too, where the compiler makes exp(x) - 1 of it.

    There by additions and multiplications alone, which need no call out of the loop: below 1 the series, else that of
    the exponential of a 64th of the value, squared six times, minus 1. In float32 right to 5e-7 of itself below 1, to
    1e-5 up to 30 and 5e-5 up to 60, where `_extreme_channels` ends; in float64 (a 512th, nine times, up to 500) to
    3e-16 and 2e-13.
    Each intermediate is used once, for the compiler writes out what is used twice.
    """
    if values.is_cuda or not torch.compiler.is_compiling():
        return torch.expm1(values)
    squarings, terms = (6, 9) if values.dtype == torch.float32 else (9, 18)
    power = _series(values * 0.5**squarings, 0, terms)
    for _ in range(squarings):
        power = power.square()
    return torch.where(values.abs() < 1, values * _series(values, 1, terms), power - 1)


def _series(values: Tensor, first: int, terms: int) -> Tensor:
    """The sum of values^n / (first + n)! over n below `terms`."""
    result = values * (1 / math.factorial(first + terms - 1))
    for n in range(first + terms - 2, first, -1):
        result = (result + 1 / math.factorial(n)) * values
    return result + 1 / math.factorial(first)


def _eager_sums(probabilities: Tensor, scores: Tensor, weight: Tensor, rows: tuple[Tensor, ...], *more: Any) -> Tensor:
    """`_fused_sums` of a few pairs at a time; every tensor among the arguments begins with the pairs."""
    pairs, heads, block, keys = probabilities.shape
    step = max(1, EAGER_ELEMENTS // (heads * block * keys * rows[0].shape[3]))
    arguments = (probabilities, scores, weight, rows, *more)
    return torch.cat(
        [
            _fused_sums(*_pytree.tree_map_only(Tensor, operator.itemgetter(slice(first, first + step)), arguments))
            for first in range(0, pairs, step)
        ]
    )


_failed: list[Exception] = []
"""Why Triton could not build the kernel here, so that it is not tried again."""


def _triton_sums(attention: Attention, changes: list[Change]) -> list[Tensor] | None:
    """The sums of all blocks in one sweep; None where Triton cannot run them, and `compiled` must."""
    from triton.errors import TritonError

    from babelscope.impacts.fused import fused_squares, runs_on

    if _failed or not runs_on(attention.query):
        return None
    try:
        return fused_squares(attention, changes)
    except (TritonError, RuntimeError) as error:
        # A pass of Triton's compiler that fails raises a plain RuntimeError.
        if not isinstance(error, TritonError) and "PassManager" not in str(error):
            raise
        logger.warning("Triton could not build the attention kernel, so torch.compile does (%s)", type(error).__name__)
        logger.debug("triton: %s", error)
        _failed.append(error)
        return None


@functools.cache
def _compiled_sums() -> Callable[..., Tensor]:
    # By default the compiler stores an intermediate that three reductions read, here all I x J x C of it: four times
    # slower, and the memory is gone. With these thresholds it computes it inside their one loop.
    # Contraction lets a processor multiply and add in one instruction.
    options = {
        "realize_opcount_threshold": 10_000,
        "realize_reads_threshold": 10_000,
        "cpp.enable_floating_point_contract_flag": "fast",
    }
    return compiled(_fused_sums, _eager_sums, _any_size, "the fused attention impact", options)


def _any_size(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and with every size of its own for the compiler.

    By itself the compiler takes sizes that happen to be equal for one, and whole tensors for a kind apart from slices:
    six compilations where one does (54 s where 4 s do), and after eight it stops compiling.
    """
    tensor = tensor.contiguous()
    torch._dynamo.maybe_mark_dynamic(tensor, list(range(tensor.ndim)))
    return tensor


def _extreme_channels(attention: Attention, change: Change) -> Tensor:
    """Channels whose delta could overflow the exponential, bool [P, R, C].

    Trained models have them (a key bias of several hundred in Qwen2.5), and there the sums give NaN; these few
    channels are written out instead. The bound is max |row| * max |column|, twice because of the centring.
    """
    limit = 500.0 if attention.query.dtype == torch.float64 else 60.0
    bound = attention.query.new_zeros(())
    for row, column in zip(change.rows, change.columns, strict=True):
        bound = bound + row.abs().amax(2) * column.abs().amax(1)[:, None]
    if change.row_gain is not None or change.column_gain is not None:
        norm = attention.query.norm(dim=-1).amax(2) * attention.key.norm(dim=-1).amax(1)[:, None] * attention.scale
        if change.row_gain is not None:
            bound = bound + change.row_gain.abs().amax(2) * norm[..., None]
        if change.column_gain is not None:
            bound = bound + change.column_gain.abs().amax(1)[:, None] * norm[..., None]
    return 2 * bound > limit


def _add_written_out(
    result: Tensor,
    channels: Tensor,
    probabilities: Tensor,
    scores: Tensor,
    bias: Tensor,
    weight: Tensor,
    part: Change,
    attention: Attention,
) -> None:
    """Adds || softmax(S') - A ||^2, written out channel by channel, into `result` at `channels` [n, 3].

    This is the definition itself: the reference that the sums are tested against, and the way out where they overflow.
    """
    full_bias = bias.expand(*probabilities.shape) if bias.shape != probabilities.shape else bias
    rows, keys = probabilities.shape[2:]
    for chunk in channels.split(max(1, EAGER_ELEMENTS // (rows * keys))):
        pair, head, channel = chunk.unbind(1)
        score = scores[pair, head]
        delta = torch.zeros_like(score)
        for row, column in zip(part.rows, part.columns, strict=True):
            delta = delta + row[pair, head, :, channel][:, :, None] * column[pair, :, channel][:, None, :]
        if part.row_gain is not None:
            delta = delta + part.row_gain[pair, head, :, channel][:, :, None] * score
        if part.column_gain is not None:
            delta = delta + part.column_gain[pair, :, channel][:, None, :] * score
        logits = _capped(score + delta, attention.cap) + full_bias[pair, head]
        sink = None if attention.sink is None else attention.sink[pair, head][:, None]
        after = _softmax(logits[:, None], sink)[0][:, 0]
        squares = ((after - probabilities[pair, head]) ** 2).sum(2)
        result[pair, head, channel] += (squares * weight[pair]).sum(1)


def choose_kernel(requested: KernelName, operations: int) -> KernelName:
    """Settles `auto`: Triton on a GPU, else torch.compile where that repays some ten seconds, else eager; and logs it.

    Args:
        requested: what the user asked for; anything but `auto` is kept.
        operations: exponentials that the whole job will need, about; a sum over tokens costs a tenth of one.

    Raises:
        MissingDependencyError: `triton` was asked for and is not installed.
        ConfigError: `triton` was asked for where there is no GPU.
    """
    chosen, why = _chosen(requested, operations)
    logger.info("impacts: the %s kernel, %s", chosen, why)
    return chosen


def _chosen(requested: KernelName, operations: int) -> tuple[KernelName, str]:
    has_triton, has_gpu = importlib.util.find_spec("triton") is not None, torch.cuda.is_available()
    if requested == "triton":
        if not has_triton:
            raise MissingDependencyError("the kernel 'triton' needs Triton: pip install triton. Or leave out --kernel.")
        if not has_gpu and os.environ.get("TRITON_INTERPRET") != "1":
            raise ConfigError(
                "wanted a GPU for the kernel 'triton', found none. Leave out --kernel, or set TRITON_INTERPRET=1 to "
                "try it on a CPU, very slowly."
            )
    if requested != "auto":
        return requested, "as asked"
    if has_triton and has_gpu:
        return "triton", "for there is a GPU"
    if operations < 2_000_000_000:
        return "eager", f"for {operations:.1e} operations do not repay a compilation"
    if not has_gpu and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        logger.warning(
            "no C++ compiler found, so the impacts are computed eagerly, several times slower: install g++ or clang"
        )
        return "eager", "without a compiler"
    return "compiled", f"for {operations:.1e} operations"
