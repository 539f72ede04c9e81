"""The attention impact as one Triton kernel: nothing of size tokens x tokens x channels is stored, nor the scores.

One program takes a tile of query rows of one head, and all channels (128 at most) of every change asked for. It goes
over the visible keys twice, like flash attention: first for the log-sum-exp of each row and the mean change of the
scores under the probabilities, then for the three sums of `babelscope.impacts.kernels`, with the probabilities
computed again. Queries and keys (both changes) share both sweeps, so each score is computed twice, never stored.

Layout on a GPU: a warp holds 32 channels of half the rows of a tile, a thread one channel of those. Keys come first in
the three-dimensional tiles, so that Triton gives them to no other thread and the sums over keys stay within one.

Axes as in `babelscope.impacts.kernels`; of a tile: `BI` rows, `BJ` keys, `BS` keys of a step, `BD` and `BC` channels of
a head (padded to a power of two) and channels switched off.
Checked in Triton's interpreter against loops in float64 (tests/impacts/test_fused.py); not yet timed on a GPU.
"""

# Triton reads its own functions' annotations, so theirs cannot be Python's types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from babelscope.impacts.kernels import Attention, Change

ROWS, KEYS, STEP = 16, 32, 4
"""Query rows and keys of a tile; keys whose exponentials are in flight together. 16 is the least a dot takes."""

CHANNELS = 128
"""Most channels of one program: two warps per 32 of them, so that eight warps share a tile of probabilities."""

BIAS_ELEMENTS = 1 << 24
"""Mask values materialised at once (64 MB in float32); long sequences are taken in strips of rows."""


@triton.jit
def _expm1(x):
    """expm1 that keeps its digits near 0, from the fast exponential; the series ends under float32's rounding."""
    near = x * (1.0 + x * (0.5 + x * (0.16666667 + x * 0.041666667)))
    return tl.where(tl.abs(x) < 0.06, near, tl.exp(x) - 1.0)


@triton.jit
def _tanh(x):
    growth = _expm1(tl.minimum(2.0 * x, 40.0))
    return growth / (growth + 2.0)


@triton.jit
def _scores(query, key, bias, key_at, bias_at, seen, row_seen, scale, cap, CAPPED: tl.constexpr):
    """Of a tile [I, J]: scores, logits (-inf where hidden), and the tanh of the soft cap (0 without one)."""
    keys = tl.load(key + key_at, mask=seen[None, :] & (key_at >= 0), other=0.0)
    score = tl.dot(query, keys, input_precision="tf32x3") * scale
    tanh = tl.zeros_like(score)
    logit = score
    if CAPPED:
        tanh = _tanh(score / cap)
        logit = cap * tanh
    visible = row_seen[:, None] & seen[None, :]
    logit += tl.load(bias + bias_at, mask=visible, other=float("-inf"))
    return score, logit, tanh


@triton.jit
def _pulled(mean, shrink, pull, column, column_at, mask):
    """One tile more of pull @ column. The centre of the exponent may be any number near the mean: tf32 will do."""
    values = tl.load(column + column_at, mask=mask, other=0.0)
    return tl.dot(pull, values, mean * shrink[:, None], input_precision="tf32")


@triton.jit
def _step(
    z, c, p, probability, score, tanh, mean, row0, row1, row_gain, column0, column1, column_gain,
    column_at, mask, cap, TWO: tl.constexpr, ROW_GAIN: tl.constexpr, COLUMN_GAIN: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """The three sums [I, C] after S more keys; `probability`, `score`, `tanh` are [S, I]."""
    delta = row0[None, :, :] * tl.load(column0 + column_at, mask=mask, other=0.0)[:, None, :]
    if TWO:
        delta += row1[None, :, :] * tl.load(column1 + column_at, mask=mask, other=0.0)[:, None, :]
    if ROW_GAIN:
        delta += row_gain[None, :, :] * score[:, :, None]
    if COLUMN_GAIN:
        delta += tl.load(column_gain + column_at, mask=mask, other=0.0)[:, None, :] * score[:, :, None]
    if CAPPED:
        step = _tanh(delta / cap)
        delta = cap * step * (1.0 - tanh * tanh)[:, :, None] / (1.0 + tanh[:, :, None] * step)
    moved = probability[:, :, None] * _expm1(delta - mean[None, :, :])
    z += tl.sum(moved, axis=0)
    c += tl.sum(probability[:, :, None] * moved, axis=0)
    p += tl.sum(moved * moved, axis=0)
    return z, c, p


@triton.jit
def _of_step(values, number, BI: tl.constexpr, BJ: tl.constexpr, BS: tl.constexpr):
    """[S, I]: the keys number * S to number * S + S of a tile [I, J]."""
    parts = tl.reshape(values, [BI, BJ // BS, BS])
    wanted = tl.arange(0, BJ // BS)[None, :, None] == number
    return tl.trans(tl.sum(tl.where(wanted, parts, 0.0), axis=1))


@triton.jit
def _finish(result, result_at, channel_seen, z, c, p, mean, concentration, sink, weight, SINK: tl.constexpr):
    if SINK:
        z += sink[:, None] * _expm1(-mean)
    squares = tl.maximum(p - 2.0 * z * c + z * z * concentration[:, None], 0.0) / ((1.0 + z) * (1.0 + z))
    tl.store(result + result_at, tl.sum(tl.where(weight[:, None] != 0.0, squares * weight[:, None], 0.0), axis=0),
             mask=channel_seen)  # fmt: skip


@triton.jit
def _sweep(
    query, key, bias, weight, sinks, tiles, scale, cap,
    row0_a, row1_a, row_gain_a, column0_a, column1_a, column_gain_a, result_a,
    row0_b, row1_b, row_gain_b, column0_b, column1_b, column_gain_b, result_b,
    tokens, width, channels, bias_p, bias_r, bias_i, bias_j, first_row, first_key,
    HEADS: tl.constexpr, BOTH: tl.constexpr, SINK: tl.constexpr, CAPPED: tl.constexpr,
    TWO_A: tl.constexpr, ROW_GAIN_A: tl.constexpr, COLUMN_GAIN_A: tl.constexpr,
    TWO_B: tl.constexpr, ROW_GAIN_B: tl.constexpr, COLUMN_GAIN_B: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    head, tile, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    pair = head // HEADS
    start, stop = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    low, high = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    rows, row_seen = start + tl.arange(0, BI), start + tl.arange(0, BI) < stop
    wide, channel = tl.arange(0, BD), part * BC + tl.arange(0, BC)
    channel_seen = channel < channels
    row_mask = row_seen[:, None] & channel_seen[None, :]

    q = tl.load(
        query + (head * tokens + rows[:, None]) * width + wide[None, :],
        mask=row_seen[:, None] & (wide < width)[None, :],
        other=0.0,
    )
    row_at = (head * tokens + rows[:, None]) * channels + channel[None, :]
    bias += pair * bias_p + (head % HEADS) * bias_r

    top = tl.full([BI], float("-inf"), tl.float32)
    total, square, scored = tl.zeros([BI], tl.float32), tl.zeros([BI], tl.float32), tl.zeros([BI], tl.float32)
    if SINK:  # the running softmax begins with the sink
        top = tl.zeros([BI], tl.float32) + tl.load(sinks + head)
        total = tl.zeros([BI], tl.float32) + 1.0
    nothing = tl.zeros([BI, BC], tl.float32)
    mean0_a, mean1_a, mean2_a = nothing, nothing, nothing
    mean0_b, mean1_b, mean2_b = nothing, nothing, nothing
    for first in range(low, high, BJ):
        keys = first + tl.arange(0, BJ)
        seen = keys < high
        key_at = tl.where((wide < width)[:, None], (pair * tokens + keys[None, :]) * width + wide[:, None], -1)
        bias_at = (rows[:, None] - first_row) * bias_i + (keys[None, :] - first_key) * bias_j
        score, logit, tanh = _scores(q, key, bias, key_at, bias_at, seen, row_seen, scale, cap, CAPPED)
        higher = tl.maximum(top, tl.max(logit, axis=1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        shrink, exponential = tl.exp(top - finite), tl.exp(logit - finite[:, None])
        pull = exponential * (1.0 - tanh * tanh)
        total = total * shrink + tl.sum(exponential, axis=1)
        square = square * shrink * shrink + tl.sum(exponential * exponential, axis=1)
        scored = scored * shrink + tl.sum(pull * score, axis=1)
        top = higher
        column_at = (pair * tokens + keys[:, None]) * channels + channel[None, :]
        mask = seen[:, None] & channel_seen[None, :]
        mean0_a = _pulled(mean0_a, shrink, pull, column0_a, column_at, mask)
        if TWO_A:
            mean1_a = _pulled(mean1_a, shrink, pull, column1_a, column_at, mask)
        if COLUMN_GAIN_A:
            mean2_a = _pulled(mean2_a, shrink, pull * score, column_gain_a, column_at, mask)
        if BOTH:
            mean0_b = _pulled(mean0_b, shrink, pull, column0_b, column_at, mask)
            if TWO_B:
                mean1_b = _pulled(mean1_b, shrink, pull, column1_b, column_at, mask)
            if COLUMN_GAIN_B:
                mean2_b = _pulled(mean2_b, shrink, pull * score, column_gain_b, column_at, mask)

    part_of = tl.where(total > 0.0, 1.0 / total, 0.0)
    finite = tl.where(top == float("-inf"), 0.0, top)
    concentration, scored = square * part_of * part_of, scored * part_of
    sink = tl.zeros([BI], tl.float32)
    if SINK:
        sink = tl.exp(tl.load(sinks + head) - finite) * part_of

    row0, row1, gain = tl.load(row0_a + row_at, mask=row_mask, other=0.0), mean1_a, mean1_a
    mean_a = row0 * mean0_a + mean2_a
    if TWO_A:
        row1 = tl.load(row1_a + row_at, mask=row_mask, other=0.0)
        mean_a += row1 * mean1_a
    mean_a = mean_a * part_of[:, None]
    if ROW_GAIN_A:
        gain = tl.load(row_gain_a + row_at, mask=row_mask, other=0.0)
        mean_a += gain * scored[:, None]
    row0_of_b, row1_of_b, gain_of_b, mean_b = mean0_b, mean1_b, mean1_b, mean0_b
    if BOTH:
        row0_of_b = tl.load(row0_b + row_at, mask=row_mask, other=0.0)
        mean_b = row0_of_b * mean0_b + mean2_b
        if TWO_B:
            row1_of_b = tl.load(row1_b + row_at, mask=row_mask, other=0.0)
            mean_b += row1_of_b * mean1_b
        mean_b = mean_b * part_of[:, None]
        if ROW_GAIN_B:
            gain_of_b = tl.load(row_gain_b + row_at, mask=row_mask, other=0.0)
            mean_b += gain_of_b * scored[:, None]

    z_a, c_a, p_a = nothing, nothing, nothing
    z_b, c_b, p_b = nothing, nothing, nothing
    for first in range(low, high, BJ):
        keys = first + tl.arange(0, BJ)
        key_at = tl.where((wide < width)[:, None], (pair * tokens + keys[None, :]) * width + wide[:, None], -1)
        bias_at = (rows[:, None] - first_row) * bias_i + (keys[None, :] - first_key) * bias_j
        score, logit, tanh = _scores(q, key, bias, key_at, bias_at, keys < high, row_seen, scale, cap, CAPPED)
        probability = tl.exp(logit - finite[:, None]) * part_of[:, None]
        for number in range(0, tl.minimum(BJ // BS, tl.cdiv(high - first, BS))):
            few = first + number * BS + tl.arange(0, BS)
            column_at = (pair * tokens + few[:, None]) * channels + channel[None, :]
            mask = (few < high)[:, None] & channel_seen[None, :]
            a, s, t = _of_step(probability, number, BI, BJ, BS), score, tanh
            if ROW_GAIN_A or COLUMN_GAIN_A or ROW_GAIN_B or COLUMN_GAIN_B:
                s = _of_step(score, number, BI, BJ, BS)
            if CAPPED:
                t = _of_step(tanh, number, BI, BJ, BS)
            z_a, c_a, p_a = _step(
                z_a, c_a, p_a, a, s, t, mean_a, row0, row1, gain, column0_a, column1_a, column_gain_a,
                column_at, mask, cap, TWO_A, ROW_GAIN_A, COLUMN_GAIN_A, CAPPED,
            )  # fmt: skip
            if BOTH:
                z_b, c_b, p_b = _step(
                    z_b, c_b, p_b, a, s, t, mean_b, row0_of_b, row1_of_b, gain_of_b, column0_b, column1_b,
                    column_gain_b, column_at, mask, cap, TWO_B, ROW_GAIN_B, COLUMN_GAIN_B, CAPPED,
                )  # fmt: skip

    counted = tl.load(weight + pair * tokens + rows, mask=row_seen, other=0.0)
    result_at = (tile * tl.num_programs(0).to(tl.int64) + head) * channels + channel
    _finish(result_a, result_at, channel_seen, z_a, c_a, p_a, mean_a, concentration, sink, counted, SINK)
    if BOTH:
        _finish(result_b, result_at, channel_seen, z_b, c_b, p_b, mean_b, concentration, sink, counted, SINK)


def runs_on(values: Tensor) -> bool:
    """Whether the kernel can take these values: float32 on a GPU, or anywhere in Triton's interpreter."""
    return values.dtype == torch.float32 and (values.is_cuda or bool(triton.knobs.runtime.interpret))


def fused_squares(attention: Attention, changes: list[Change]) -> list[Tensor]:
    """As `impact_squares` of `babelscope.impacts.kernels`, without its way out where the exponential overflows.

    Args:
        attention: in float32, on a device that `runs_on` accepts.
        changes: of one or two terms each; two changes go through one sweep of the scores.

    Returns:
        For each change: [P, R, C] float32, the same from run to run (no atomic additions).
    """
    results = []
    for first in range(0, len(changes), 2):
        results += _sweep_two(attention, changes[first : first + 2])
    return results


def _sweep_two(attention: Attention, changes: list[Change]) -> list[Tensor]:
    pairs, heads, tokens, width = attention.query.shape
    channels = changes[0].rows[0].shape[3]
    block = min(CHANNELS, max(16, triton.next_power_of_2(channels)))
    query, key = attention.query.contiguous(), attention.key.contiguous()
    weight = attention.row_weight.contiguous()
    sink = query if attention.sink is None else attention.sink.contiguous()
    both = [*changes, changes[0]][:2]
    arguments = [_arguments(change, query) for change in both]
    results = [query.new_zeros(pairs, heads, channels) for _ in changes]
    for blocks in _strips(attention):
        top, left = blocks[0][0], min(low for _, _, low, _ in blocks)
        bias = attention.bias(top, blocks[-1][1], left, max(high for *_, high in blocks))
        bias = bias.expand(pairs, heads, *bias.shape[2:])
        tiles = _tiles(tuple(blocks), query.device)
        found = [query.new_empty(len(tiles), pairs, heads, channels) for _ in both]
        terms = [value for pointers, out in zip(arguments, found, strict=True) for value in (*pointers, out)]
        _sweep[(pairs * heads, len(tiles), triton.cdiv(channels, block))](
            query, key, bias, weight, sink, tiles,
            attention.scale, attention.cap or 1.0, *terms,
            tokens, width, channels, *bias.stride(), top, left,
            HEADS=heads, BOTH=len(changes) == 2, SINK=attention.sink is not None, CAPPED=attention.cap is not None,
            **_flags(both[0], "A"), **_flags(both[1], "B"),
            BI=ROWS, BJ=KEYS, BS=STEP, BD=max(16, triton.next_power_of_2(width)), BC=block,
            num_warps=max(1, block // 16), num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
        for result, out in zip(results, found, strict=False):
            result += out.sum(0)
    return results


@functools.lru_cache(maxsize=64)
def _tiles(blocks: tuple[tuple[int, int, int, int], ...], device: torch.device) -> Tensor:
    """int32 [tiles, 4]: rows from and to, keys from and to. Kept for the next layer, since copying them waits."""
    tiles = [
        (row, min(row + ROWS, stop), low, high)
        for start, stop, low, high in reversed(blocks)  # the longest first
        for row in range(start, stop, ROWS)
    ]
    return torch.tensor(tiles, dtype=torch.int32, device=device)


def _strips(attention: Attention) -> list[list[tuple[int, int, int, int]]]:
    """Blocks in groups, each of which needs BIAS_ELEMENTS mask values at most (or is one block)."""
    strips: list[list[tuple[int, int, int, int]]] = []
    for block in attention.blocks:
        if strips:
            together = [*strips[-1], block]
            span = max(high for *_, high in together) - min(low for _, _, low, _ in together)
            if len(attention.query) * (block[1] - together[0][0]) * span <= BIAS_ELEMENTS:
                strips[-1].append(block)
                continue
        strips.append([block])
    return strips


def _arguments(change: Change, unused: Tensor) -> list[Tensor]:
    """Two row factors, row gain, two column factors, column gain; `unused` stands where the change has none."""

    def two(factors: tuple[Tensor, ...]) -> list[Tensor]:
        assert len(factors) <= 2, "a rotation mixes two channels"
        return [each.contiguous() for each in factors] + [unused] * (2 - len(factors))

    gains = [unused if gain is None else gain.contiguous() for gain in (change.row_gain, change.column_gain)]
    return [*two(change.rows), gains[0], *two(change.columns), gains[1]]


def _flags(change: Change, name: str) -> dict[str, Any]:
    return {
        f"TWO_{name}": len(change.rows) == 2,
        f"ROW_GAIN_{name}": change.row_gain is not None,
        f"COLUMN_GAIN_{name}": change.column_gain is not None,
    }
