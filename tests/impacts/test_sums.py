"""Sums over tokens against plain Python, in every order of storage that a model hands over."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from babelscope.detection.detect import _operations
from babelscope.impacts import sums
from babelscope.impacts.sums import TERMS, token_sums, value_squares, weight_gram
from babelscope.models.anatomy import Anatomy
from babelscope.models.observe import Observer
from impacts.test_kernels import needs_a_compiler
from tiny import tiny_model


def by_hand(states: Tensor, counted: Tensor) -> list[Tensor]:
    """The sums of `TERMS`, value by value in Python, exactly rounded."""
    found = [torch.zeros(len(states), states.shape[2], dtype=torch.float64) for _ in TERMS]
    for sequence, (rows, count) in enumerate(zip(states.tolist(), counted.tolist(), strict=True)):
        for unit in range(states.shape[2]):
            values = [row[unit] for row, counts in zip(rows, count, strict=True) if counts]
            found[0][sequence, unit] = math.fsum(value * value for value in values)
            found[1][sequence, unit] = math.fsum(values)
            found[2][sequence, unit] = len([value for value in values if value > 0])
    return found


def states(batch: int, tokens: int, units: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + tokens)
    counted = torch.rand(batch, tokens, generator=generator) < 0.8
    values = torch.randn(batch, tokens, units, generator=generator)
    values[:, :, 0] = 0  # neither above 0 nor below
    return values.to(dtype), counted


SHAPES = [(2, 32, 5), (3, 32, 32), (2, 47, 7), (1, 64, 6), (1, 33, 6), (4, 5, 3), (16, 16, 16), (1, 1, 1)]


def agree(values: Tensor, counted: Tensor, kernel: str) -> None:
    found = token_sums(values, counted, TERMS, kernel)  # type: ignore[arg-type]
    exact = by_hand(values, counted)
    tolerance = 1e-12 if values.dtype == torch.float64 else 1e-5
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == (torch.float64 if values.dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
    assert torch.equal(found[2].double(), exact[2])
    assert torch.equal(token_sums(values, counted, ("positive",), kernel)[0], found[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_are_those_of_the_counted_tokens(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    agree(*states(*shape, dtype), "eager")


@needs_a_compiler
def test_compiled_for_every_shape_and_order_of_storage(caplog: pytest.LogCaptureFixture) -> None:
    """Batches differ in size and length, and projections that share a matrix hand over slices of its rows."""
    torch._dynamo.reset()  # what other tests had compiled
    with caplog.at_level(logging.WARNING):
        for shape in SHAPES:
            values, counted = states(*shape)
            agree(values, counted, "compiled")
            beside = torch.cat([values, values, values], dim=2)
            for first in (0, shape[2], 2 * shape[2]):
                agree(beside[..., first : first + shape[2]], counted, "compiled")
    assert not caplog.text, "after eight compilations of a function it runs eagerly"


@needs_a_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_compiled_in_other_precisions(dtype: torch.dtype) -> None:
    torch._dynamo.reset()  # one process, one precision: each has eight compilations for itself
    agree(*states(2, 40, 5, dtype), "compiled")


def outputs_agree(
    batch: int, tokens: int, groups: int, heads: int, width: int, kernel: str, dtype: torch.dtype
) -> None:
    """Against what a value channel adds to the output of attention: its heads' outputs times their columns of W_O."""
    values, counted = states(batch, tokens, groups * heads * width, dtype)
    weight = torch.randn(11, groups * heads * width, generator=torch.Generator().manual_seed(heads), dtype=values.dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = value_squares(values, counted, weight_gram(weight.to(wide), groups, width), kernel)  # type: ignore[arg-type]
    assert found.dtype == wide
    parts_BTGRD = (values.double() * counted[..., None]).view(batch, tokens, groups, heads, width)
    moved = torch.einsum("btgrd,mgrd->btgdm", parts_BTGRD, weight.double().view(-1, groups, heads, width))
    exact = moved.square().sum((1, 4)).flatten(1)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance * float(exact.max()))


@pytest.mark.parametrize("heads", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_impacts_of_v_are_those_of_its_output(heads: int, dtype: torch.dtype) -> None:
    outputs_agree(3, 21, 2, heads, 4, "eager", dtype)


@needs_a_compiler
def test_impacts_of_v_compiled_for_every_shape(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    with caplog.at_level(logging.WARNING):
        for heads in (2, 7, sums._HEADS + 1):  # the last is not compiled
            for batch, tokens in ((2, 32), (3, 47), (1, 64), (1, 50), (4, 5)):
                outputs_agree(batch, tokens, 2, heads, 4, "compiled", torch.float32)
        outputs_agree(2, 40, 3, 7, 16, "compiled", torch.float32)
    assert not caplog.text, "after eight compilations of a function it runs eagerly"


@needs_a_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_impacts_of_v_compiled_in_other_precisions(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    outputs_agree(2, 40, 2, 3, 4, "compiled", dtype)


def test_what_cannot_be_compiled_is_summed_in_chunks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def broken(*args: object) -> list[Tensor]:
        raise FailOnRecompileLimitHit("on purpose")

    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    for made in (sums._compiled_terms, sums._compiled_squares):
        made.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            agree(*states(3, 50, 5), "compiled")
            outputs_agree(3, 50, 2, 3, 4, "compiled", torch.float32)
        assert caplog.text.count("could not be compiled") == 2
    finally:
        for made in (sums._compiled_terms, sums._compiled_squares):
            made.cache_clear()


@needs_a_compiler
@pytest.mark.parametrize("name", ["llama", "opt", "phi3", "qwen3"])
def test_observed_models_show_the_same(name: str) -> None:
    """Impacts and activations of v, o and ffn, padding on the right, 41 tokens: two whole groups and nine."""
    anatomy = Anatomy(tiny_model(name, torch.float64), ("v", "o", "ffn"))
    ids = torch.randint(3, 40, (2, 41), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    shown = []
    for kernel in ("eager", "compiled"):
        with Observer(anatomy, kernel=kernel, activations=True) as observer:  # type: ignore[arg-type]
            found = observer.run(ids, mask)
        sums = [
            values
            for slot in anatomy.slots
            for seen in found.activation[slot]
            for values in (seen.positive, seen.total, seen.squares)
        ]
        shown.append([values for slot in anatomy.slots for values in found.impact[slot]] + sums)
    assert len(shown[0]) == 3 * anatomy.n_layers * 4
    for one, other in zip(*shown, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_job_without_queries_and_keys_is_compiled_when_that_is_repaid() -> None:
    anatomy = Anatomy(tiny_model("llama"), ("ffn",))
    units = sum(anatomy.width("ffn", layer) for layer in range(anatomy.n_layers))
    assert _operations(anatomy, ("ffn",), 2000, 50) == units * 50 // 10 * 1000 * 2
    assert _operations(anatomy, ("ffn", "q"), 2000, 50) > _operations(anatomy, ("ffn",), 2000, 50)
