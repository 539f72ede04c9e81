"""Every kernel against a softmax written out in plain loops, where sums cancel, overflow, or have nothing to sum.

Axes: `P` (sequence, kv head) pairs, `R` query heads per kv head, `T` tokens, `D` channels of a head, `C` channels off.
"""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from babelscope.impacts import kernels
from babelscope.impacts.kernels import Attention, Change, _expm1, choose_kernel, impact_squares

torch.set_num_threads(1)

COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
needs_a_compiler = pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler (g++ or clang++)")


@dataclass(frozen=True)
class Case:
    """One attention, one change of it, and what the plain loops need to know about both."""

    attention: Attention
    change: Change
    bias_PRTT: Tensor
    """Mask (-inf) and position bias together."""

    def to(self, dtype: torch.dtype) -> Case:
        def cast(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        bias = self.bias_PRTT.to(dtype)
        attention = replace(
            self.attention,
            query=self.attention.query.to(dtype),
            key=self.attention.key.to(dtype),
            bias=lambda start, stop, low, high: bias[:, :, start:stop, low:high],
            row_weight=self.attention.row_weight.to(dtype),
            sink=cast(self.attention.sink),
        )
        change = Change(
            tuple(row.to(dtype) for row in self.change.rows),
            tuple(column.to(dtype) for column in self.change.columns),
            cast(self.change.row_gain),
            cast(self.change.column_gain),
        )
        return Case(attention, change, bias)

    def impacts(self, kernel: str) -> Tensor:
        """[P, R, C]: not squared."""
        found = impact_squares(self.attention, [self.change], kernel)[0]  # type: ignore[arg-type]
        return found.double().sqrt()


def make(
    *,
    pairs: int = 2,
    heads: int = 3,
    tokens: int = 23,
    width: int = 5,
    rank: int = 2,
    row_gain: bool = False,
    column_gain: bool = False,
    cap: float | None = None,
    sink: bool = False,
    window: int | None = None,
    left_padding: int = 0,
    position_bias: bool = False,
    block: int = 7,
    size: Tensor | float = 1.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    """Random numbers; `size` [C] scales the channels. 23 tokens in blocks of 7 leave a block of 2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key = draw(pairs, heads, tokens, width), draw(pairs, tokens, width)
    visible = torch.ones(tokens, tokens).tril().bool()
    if window is not None:
        visible &= torch.ones(tokens, tokens).triu(1 - window).bool()
    bias = torch.zeros(pairs, heads, tokens, tokens, dtype=torch.float64)
    if position_bias:
        bias += draw(pairs, heads, 1, tokens)
    bias = bias.masked_fill(~visible, -torch.inf)
    row_weight = torch.ones(pairs, tokens, dtype=torch.float64)
    row_weight[-1, tokens // 2] = 0  # a position that does not count
    if left_padding:  # of the first sequence: rows that see no key at all
        bias[0, :, :left_padding] = bias[0, :, :, :left_padding] = -torch.inf
        row_weight[0, :left_padding] = 0
    seen = visible.nonzero()
    blocks = []
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        keys = seen[(seen[:, 0] >= start) & (seen[:, 0] < stop), 1]
        blocks.append((start, stop, int(keys.min()), int(keys.max()) + 1))
    attention = Attention(
        query=query,
        key=key,
        scale=width**-0.5,
        bias=lambda start, stop, low, high: bias[:, :, start:stop, low:high],
        row_weight=row_weight,
        blocks=tuple(blocks),
        cap=cap,
        sink=draw(pairs, heads) if sink else None,
    )
    change = Change(
        tuple(draw(pairs, heads, tokens, width) * size for _ in range(rank)),
        tuple(draw(pairs, tokens, width) for _ in range(rank)),
        row_gain=0.3 * draw(pairs, heads, tokens, width).abs() if row_gain else None,
        column_gain=0.3 * draw(pairs, tokens, width).abs() if column_gain else None,
    )
    return Case(attention, change, bias).to(dtype)


def by_hand(case: Case) -> Tensor:
    """[P, R, C] impacts, each softmax with its channel and without it, in Python floats."""
    case = case.to(torch.float64)
    attention, change = case.attention, case.change
    query, key = attention.query.tolist(), attention.key.tolist()
    rows, columns = [row.tolist() for row in change.rows], [column.tolist() for column in change.columns]
    row_gain = None if change.row_gain is None else change.row_gain.tolist()
    column_gain = None if change.column_gain is None else change.column_gain.tolist()
    bias, weight = case.bias_PRTT.tolist(), attention.row_weight.tolist()
    pairs, heads, tokens, channels = change.rows[0].shape

    def probabilities(scores: list[float], biases: list[float], sink: float | None) -> list[float]:
        cap = attention.cap
        logits = [(s if cap is None else cap * math.tanh(s / cap)) + b for s, b in zip(scores, biases, strict=True)]
        logits += [] if sink is None else [sink]
        if max(logits) == -math.inf:
            return [0.0] * len(scores)
        exponentials = [math.exp(logit - max(logits)) for logit in logits]
        return [value / math.fsum(exponentials) for value in exponentials[: len(scores)]]

    result = torch.zeros(pairs, heads, channels, dtype=torch.float64)
    for p in range(pairs):
        for r in range(heads):
            sink = None if attention.sink is None else float(attention.sink[p, r])
            squares = [0.0] * channels
            for i in range(tokens):
                if not weight[p][i]:
                    continue
                scores = [
                    attention.scale * math.fsum(a * b for a, b in zip(query[p][r][i], key[p][j], strict=True))
                    for j in range(tokens)
                ]
                whole = probabilities(scores, bias[p][r][i], sink)
                for c in range(channels):
                    without = []
                    for j, score in enumerate(scores):
                        value = score + sum(a[p][r][i][c] * b[p][j][c] for a, b in zip(rows, columns, strict=True))
                        value += 0.0 if row_gain is None else row_gain[p][r][i][c] * score
                        value += 0.0 if column_gain is None else column_gain[p][j][c] * score
                        without.append(value)
                    after = probabilities(without, bias[p][r][i], sink)
                    squares[c] += math.fsum((a - b) ** 2 for a, b in zip(after, whole, strict=True))
            result[p, r] = torch.tensor(squares, dtype=torch.float64).sqrt()
    return result


CASES: dict[str, dict[str, object]] = {
    "rank 1": {"rank": 1},
    "rank 2": {},
    "one query head per kv head": {"heads": 1},
    "one pair": {"pairs": 1},
    "row gain": {"row_gain": True},
    "column gain": {"column_gain": True},
    "row gain alone": {"size": 0.0, "row_gain": True},
    "soft cap": {"cap": 1.5},
    "sink": {"sink": True},
    "window": {"window": 4},
    "window wider than a block": {"window": 9},
    "left padding": {"left_padding": 5},
    "position bias": {"position_bias": True},
    "one block": {"block": 23},
    "blocks of one row": {"block": 1},
    "one row left over": {"block": 11},
    "everything": {
        "row_gain": True,
        "column_gain": True,
        "cap": 3.0,
        "sink": True,
        "window": 9,
        "left_padding": 3,
        "position_bias": True,
    },
}

every_case = pytest.mark.parametrize("name", CASES)


@every_case
@pytest.mark.parametrize("kernel", ["eager", "reference"])
def test_equals_plain_loops_in_float64(name: str, kernel: str) -> None:
    case = make(**CASES[name])  # type: ignore[arg-type]
    expected = by_hand(case)
    assert expected.min() > 0.01, "the case is vacuous"
    torch.testing.assert_close(case.impacts(kernel), expected, rtol=1e-11, atol=0)


@every_case
@pytest.mark.parametrize("kernel", ["eager", "reference"])
def test_equals_plain_loops_in_float32(name: str, kernel: str) -> None:
    case = make(**CASES[name], dtype=torch.float32)  # type: ignore[arg-type]
    found = impact_squares(case.attention, [case.change], kernel)[0]  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().sqrt(), by_hand(case), rtol=1e-5, atol=0)


def test_several_changes_of_one_attention_do_not_mix() -> None:
    first, second = make(rank=1, seed=1), make(rank=2, row_gain=True, seed=2)
    both = impact_squares(first.attention, [first.change, second.change])
    assert torch.equal(both[0], impact_squares(first.attention, [first.change])[0])
    assert torch.equal(both[1], impact_squares(first.attention, [second.change])[0])
    torch.testing.assert_close(both[1].sqrt(), by_hand(replace(first, change=second.change)), rtol=1e-11, atol=0)


def test_chunks_of_the_eager_kernel_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(pairs=5, sink=True, row_gain=True, column_gain=True)
    whole = case.impacts("eager")
    monkeypatch.setattr(kernels, "EAGER_ELEMENTS", 1)  # one pair at a time
    torch.testing.assert_close(case.impacts("eager"), whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(case.impacts("reference"), whole, rtol=1e-11, atol=0)


def test_rows_that_do_not_count_are_left_out() -> None:
    case = make(pairs=1, heads=1)
    row_weight = torch.zeros_like(case.attention.row_weight)
    by_row = []
    for row in range(row_weight.shape[1]):
        row_weight[:] = 0
        row_weight[0, row] = 1
        attention = replace(case.attention, row_weight=row_weight.clone())
        by_row.append(impact_squares(attention, [case.change])[0])
    full = replace(case.attention, row_weight=torch.ones_like(row_weight))
    torch.testing.assert_close(torch.stack(by_row).sum(0), impact_squares(full, [case.change])[0], rtol=1e-12, atol=0)


# ----------------------------------------------------------------------------------------------------------------------
# Where plain arithmetic fails
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"row_gain": True}, {"column_gain": True}, {"rank": 1}])
def test_a_row_with_a_single_key_does_not_change(changes: dict[str, bool]) -> None:
    """Also for channels whose delta is large, where the rounding of delta itself would show."""
    size = torch.tensor([1e-3, 1.0, 4.0, 8.0, 12.0])
    case = make(**changes, size=size, dtype=torch.float32)  # type: ignore[arg-type]
    only_first = torch.zeros_like(case.attention.row_weight)
    only_first[:, 0] = 1
    alone = replace(case, attention=replace(case.attention, row_weight=only_first))
    assert alone.impacts("eager").max() < 1e-7
    assert case.impacts("eager").min() > 1e-4


def test_tiny_channels_beside_huge_ones_keep_their_digits() -> None:
    """Largest relative error of an impact over seven orders of magnitude; a difference of two softmaxes loses them."""
    size = torch.tensor([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0])
    double = make(width=8, size=size)
    double = double.to(torch.float32).to(torch.float64)  # the same numbers in both precisions
    expected = double.impacts("eager")
    assert expected[..., 0].max() < 1e-5 < 1 < expected[..., -1].min()
    # The float64 kernel itself, on the channels that loops in float64 can resolve.
    torch.testing.assert_close(expected[..., 2:], by_hand(double)[..., 2:], rtol=1e-10, atol=0)
    single = double.to(torch.float32)
    error = ((single.impacts("eager") - expected).abs() / expected).max()
    naive = ((single.impacts("reference") - expected).abs() / expected).max()
    assert error < 3e-6
    assert naive > 1e-2, "this test would not notice sums that cancel"


@pytest.mark.parametrize("changes", [{}, {"row_gain": True, "sink": True}, {"column_gain": True}, {"cap": 4.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_deltas_are_written_out(changes: dict[str, object], dtype: torch.dtype) -> None:
    """Trained models have channels that move a score by hundreds: the exponential overflows, the impact must not."""
    size = torch.tensor([1.0, 40.0, 400.0, 1e4, 1e-3])
    case = make(**changes, size=size, dtype=dtype)  # type: ignore[arg-type]
    largest = sum(
        (row.abs().amax((0, 1, 2)) * column.abs().amax((0, 1)))
        for row, column in zip(case.change.rows, case.change.columns, strict=True)
    )
    assert isinstance(largest, Tensor)
    assert (largest > 100).tolist() == [False, True, True, True, False]
    found = case.impacts("eager")
    assert found.isfinite().all()
    torch.testing.assert_close(found, by_hand(case), rtol=2e-5 if dtype == torch.float32 else 1e-9, atol=0)


def test_an_extreme_gain_is_written_out() -> None:
    case = make(row_gain=True, dtype=torch.float32)
    assert case.change.row_gain is not None
    gain = case.change.row_gain.clone()
    gain[..., 2] *= 1000  # a channel that alone made up the norm
    case = replace(case, change=replace(case.change, row_gain=gain))
    found = case.impacts("eager")
    assert found.isfinite().all()
    torch.testing.assert_close(found, by_hand(case), rtol=5e-5, atol=0)


def test_extreme_channels_leave_the_others_alone() -> None:
    calm = make(dtype=torch.float32)
    rows = tuple(row.clone() for row in calm.change.rows)
    for row in rows:
        row[0, 1, :, 3] *= 1e5
    wild = replace(calm, change=replace(calm.change, rows=rows)).impacts("eager")
    expected = calm.impacts("eager")
    differs = wild != expected
    assert differs[0, 1, 3]
    differs[0, 1, 3] = False
    assert not differs.any()


# ----------------------------------------------------------------------------------------------------------------------
# Fused. Two compilations in this file, of some 5 to 15 s each.
# ----------------------------------------------------------------------------------------------------------------------


@needs_a_compiler
def test_compiled_equals_plain_loops_for_every_shape_with_one_compilation() -> None:
    """Shapes vary from batch to batch; equal sizes, slices and single rows must not each cost a compilation."""
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    size = torch.tensor([1e-6, 1.0, 1.0, 4.0, 300.0])  # exp(x) - 1 in place of expm1 would lose the first
    for shape in (
        {"pairs": 2, "heads": 3, "tokens": 23, "block": 7},
        {"pairs": 5, "heads": 5, "tokens": 10, "block": 5},  # all sizes equal
        {"pairs": 3, "heads": 2, "tokens": 9, "block": 16},
        {"pairs": 2, "heads": 2, "tokens": 9, "block": 8},  # one row left over
        {"pairs": 2, "heads": 2, "tokens": 16, "block": 4, "window": 3, "left_padding": 2},
    ):
        case = make(**shape, size=size, dtype=torch.float32)  # type: ignore[arg-type]
        found = case.impacts("compiled")
        assert found.isfinite().all()
        torch.testing.assert_close(found[..., 1:], by_hand(case)[..., 1:], rtol=2e-5, atol=0)
        double = case.to(torch.float64).impacts("eager")
        torch.testing.assert_close(found, double, rtol=2e-5, atol=0)  # the tiny channel
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 1


@needs_a_compiler
@pytest.mark.parametrize(
    ("dtype", "end", "near", "far"), [(torch.float32, 60.0, 6e-7, 6e-5), (torch.float64, 500.0, 4e-16, 3e-13)]
)
def test_the_compiled_exponential_keeps_its_digits(dtype: torch.dtype, end: float, near: float, far: float) -> None:
    """Of expm1, relative to itself: nine orders of magnitude up to where channels are written out instead."""
    size = torch.logspace(-9, math.log10(end), 20_000, dtype=torch.float64)
    values = torch.cat([size, -size, torch.tensor([1.0, -1.0, end, -end])]).to(dtype)
    found = torch.compile(_expm1, dynamic=True)(values).double()
    # Python's, for torch's own may be the one that loses digits.
    expected = torch.tensor([math.expm1(each) for each in values.tolist()], dtype=torch.float64)
    error = ((found - expected) / expected).abs()
    assert error[values.abs() < 1].max() < near
    assert error.max() < far
    assert torch.compile(_expm1, dynamic=True)(torch.zeros(17, dtype=dtype)).eq(0).all()


@needs_a_compiler
def test_compiled_with_gains_cap_and_sink() -> None:
    case = make(**CASES["everything"], dtype=torch.float32)  # type: ignore[arg-type]
    torch.testing.assert_close(case.impacts("compiled"), by_hand(case), rtol=1e-5, atol=0)


def test_no_compiler_falls_back_to_eager_with_a_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import FailOnRecompileLimitHit

    calls = 0

    def broken(*args: object) -> Tensor:
        nonlocal calls
        calls += 1
        raise FailOnRecompileLimitHit("on purpose")

    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    kernels._compiled_sums.cache_clear()
    try:
        case = make(dtype=torch.float32)
        with caplog.at_level(logging.WARNING):
            found = case.impacts("compiled")
        assert torch.equal(found, case.impacts("eager"))
        assert calls == 1, "once broken, it is not tried again"
        assert caplog.text.count("could not be compiled") == 1
    finally:
        kernels._compiled_sums.cache_clear()


def test_choice_of_kernel(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_kernel("reference", 10**15) == "reference"
    assert choose_kernel("eager", 10**15) == "eager"
    assert choose_kernel("auto", 1000) == "eager", "a compilation would take longer than the job"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert choose_kernel("auto", 10**15) == "eager"
    assert "install g++" in caplog.text
    monkeypatch.setattr(kernels.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert choose_kernel("auto", 10**15) == "compiled"
