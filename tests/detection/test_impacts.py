"""`neuron_impacts` is the brute-force impact, for every architecture, precision and side of the padding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import oracle
from babelscope import Anatomy, neuron_impacts
from babelscope.models.observe import Observer
from tiny import ALL, ragged_batch, tiny_model

torch.set_num_threads(1)

ROUNDED = frozenset(
    {"qwen3", "gemma3", "olmo2", "olmo3", "olmoe", "qwen3_moe"}  # Q/K norms
    | {"cohere"}  # rotation
    | {"bloom", "gemma2"}  # softmax: no SDPA for these two
)
"""Models with a float32 step between a neuron's weights and the place where its impact is measured.

In a float64 model that step leaves 7 digits of the oracle, so the formulas are checked with the step left out
(`oracle.DoubleSteps`, for the oracle and for the implementation alike) and once more as the model is."""

LENGTHS = (5, 9, 12)
UNITS = 2
"""Units per slot and layer, drawn at random."""

every_model = pytest.mark.parametrize("name", ALL)
both_sides = pytest.mark.parametrize("side", ["left", "right"])

Expected = dict[tuple[oracle.Slot, int], tuple[list[int], Tensor]]


def _run(function: Callable[..., Any], *args: Any, double_steps: bool, **kwargs: Any) -> Any:
    if not double_steps:
        return function(*args, **kwargs)
    with oracle.DoubleSteps():
        return function(*args, **kwargs)


@functools.cache
def _expected(name: str, side: str, double_steps: bool, lengths: tuple[int, ...] = LENGTHS) -> Expected:
    """(slot, layer) -> (units, impacts [units, batch]), all slots and layers, from the float64 model."""
    model = tiny_model(name, torch.float64)
    input_ids, attention_mask = ragged_batch(model, side, lengths)
    generator = torch.Generator().manual_seed(0)
    found: Expected = {}
    for layer in range(oracle.n_layers(model)):
        for slot in oracle.SLOTS:
            units = torch.randperm(oracle.width(model, slot, layer), generator=generator)[:UNITS].tolist()
            place = (model, input_ids, attention_mask, slot, layer, units)
            found[slot, layer] = units, _run(oracle.brute_force_impacts, *place, double_steps=double_steps)
    return found


def _assert_equals(impacts: Any, expected: Expected, relative: float, floor: float) -> None:
    """Every impact within `relative` of the oracle's, plus `floor` times the slot's and layer's largest."""
    for (slot, layer), (units, oracle_UB) in expected.items():
        found_UB = impacts[slot][layer][:, units].T.double()
        largest = impacts[slot][layer].max().item()
        torch.testing.assert_close(
            found_UB,
            oracle_UB,
            rtol=relative,
            atol=floor * largest,
            msg=lambda text, place=(slot, layer, units): f"slot {place[0]}, layer {place[1]}, units {place[2]}: {text}",
        )


# ----------------------------------------------------------------------------------------------------------------------
# The numbers
# ----------------------------------------------------------------------------------------------------------------------


@both_sides
@every_model
def test_equals_brute_force_in_float64(name: str, side: str) -> None:
    model = tiny_model(name, torch.float64)
    input_ids, attention_mask = ragged_batch(model, side, LENGTHS)
    rounded = name in ROUNDED
    impacts = _run(neuron_impacts, model, input_ids, attention_mask, slots=oracle.SLOTS, double_steps=rounded)
    for slot in oracle.SLOTS:
        for layer in range(oracle.n_layers(model)):
            assert impacts[slot][layer].dtype == torch.float64
            assert impacts[slot][layer].shape == (len(LENGTHS), oracle.width(model, slot, layer))
            assert torch.isfinite(impacts[slot][layer]).all()
            assert (impacts[slot][layer] >= 0).all()
    _assert_equals(impacts, _expected(name, side, rounded), relative=1e-9, floor=1e-12)


@pytest.mark.parametrize("name", sorted(ROUNDED))
def test_equals_brute_force_with_float32_steps_in_a_float64_model(name: str) -> None:
    # Unpadded: transformers' eager attention turns fully masked rows of a float64 model into NaN.
    model = tiny_model(name, torch.float64)
    input_ids, attention_mask = ragged_batch(model, "right", (12, 12))
    impacts = neuron_impacts(model, input_ids, attention_mask, slots=oracle.SLOTS)
    expected = _expected(name, "right", False, (12, 12))
    _assert_equals(impacts, expected, relative=1e-6, floor=1e-6)


@both_sides
@every_model
def test_equals_brute_force_in_float32(name: str, side: str) -> None:
    """Against the oracle of a float64 copy of the same weights: its subtraction of two passes keeps its digits."""
    model = tiny_model(name)
    input_ids, attention_mask = ragged_batch(model, side, LENGTHS)
    impacts = neuron_impacts(model, input_ids, attention_mask, slots=oracle.SLOTS)
    assert all(impacts[slot][0].dtype == torch.float32 for slot in oracle.SLOTS)
    _assert_equals(impacts, _expected(name, side, name in ROUNDED), relative=1e-4, floor=1e-6)


def _assert_same(left: Any, right: Any, model: PreTrainedModel, rows: slice = slice(None)) -> None:
    for slot in oracle.SLOTS:
        for layer in range(oracle.n_layers(model)):
            found, wanted = left[slot][layer], right[slot][layer][rows]
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10 * wanted.max().item())


@every_model
def test_the_side_of_the_padding_and_the_other_rows_do_not_matter(name: str) -> None:
    model = tiny_model(name, torch.float64)
    input_ids, attention_mask = ragged_batch(model, "right", LENGTHS)
    with oracle.DoubleSteps():
        together = neuron_impacts(model, input_ids, attention_mask)
        _assert_same(neuron_impacts(model, *ragged_batch(model, "left", LENGTHS)), together, model)
        for row, length in enumerate(LENGTHS):
            alone = neuron_impacts(model, input_ids[row : row + 1, :length])
            _assert_same(alone, together, model, slice(row, row + 1))


@pytest.mark.parametrize("name", ["bloom", "gpt2", "gpt_neox", "opt"])
def test_v_and_o_are_the_same_neurons_when_heads_are_not_grouped(name: str) -> None:
    model = tiny_model(name, torch.float64)
    with oracle.DoubleSteps():
        impacts = neuron_impacts(model, *ragged_batch(model), slots=("v", "o"))
    for layer in range(oracle.n_layers(model)):
        torch.testing.assert_close(impacts["v"][layer], impacts["o"][layer], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "bloom", "mixtral", "phi3"])
@pytest.mark.parametrize("slot", oracle.SLOTS)
def test_one_slot_alone_is_the_same(name: str, slot: oracle.Slot) -> None:
    model = tiny_model(name)
    batch = ragged_batch(model)
    everything, alone = neuron_impacts(model, *batch), neuron_impacts(model, *batch, slots=(slot,))
    assert list(alone) == [slot]
    assert set(everything) == set(oracle.SLOTS)
    for layer in range(oracle.n_layers(model)):
        torch.testing.assert_close(alone[slot][layer], everything[slot][layer])


# ----------------------------------------------------------------------------------------------------------------------
# The model afterwards
# ----------------------------------------------------------------------------------------------------------------------


def _state(model: PreTrainedModel) -> dict[str, Any]:
    """All that a careless observer could leave changed, parameters apart."""
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
    )
    return {
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "experts": model.config._experts_implementation,
        "hooks": {name: [len(getattr(module, hook)) for hook in hooks] for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "identity": {name: id(parameter) for name, parameter in model.named_parameters()},
        "grad_enabled": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
    }


def _bits(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def _assert_bits(model: PreTrainedModel, before: dict[str, Tensor]) -> None:
    after = _bits(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@every_model
def test_the_model_is_returned_as_it_was(name: str) -> None:
    model = tiny_model(name)
    batch = ragged_batch(model)
    with torch.no_grad():
        logits = model(input_ids=batch[0], attention_mask=batch[1]).logits
    model.train()
    oracle._layer(model, 0).eval()  # a mixture, which a plain .eval() or .train() at the end would not restore
    next(model.parameters()).requires_grad_(False)
    state, bits = _state(model), _bits(model)

    impacts = neuron_impacts(model, *batch)
    assert not any(impacts[slot][0].requires_grad for slot in oracle.SLOTS)
    assert _state(model) == state
    _assert_bits(model, bits)
    with torch.no_grad():
        neuron_impacts(model, *batch)
        assert not torch.is_grad_enabled()
    assert _state(model) == state

    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=batch[0], attention_mask=batch[1]).logits, logits)


@every_model
def test_the_model_is_returned_as_it_was_after_an_error_inside(name: str) -> None:
    model = tiny_model(name).train()
    batch = ragged_batch(model)

    def fail(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise FloatingPointError("on purpose")

    last = oracle._layer(model, oracle.n_layers(model) - 1)
    handle = last.register_forward_pre_hook(fail, with_kwargs=True)
    state, bits = _state(model), _bits(model)
    with pytest.raises(FloatingPointError, match="on purpose"):
        neuron_impacts(model, *batch)
    assert _state(model) == state
    _assert_bits(model, bits)

    handle.remove()  # and the next call is not disturbed by what the broken one had gathered
    again, fresh = neuron_impacts(model, *batch), neuron_impacts(tiny_model(name), *batch)
    for slot in oracle.SLOTS:
        for layer in range(oracle.n_layers(model)):
            assert torch.equal(again[slot][layer], fresh[slot][layer])


@pytest.mark.parametrize("name", ["qwen2", "olmo2"])
def test_layers_that_overflow_are_found_after_the_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which is not waited for layer by layer: a pass is repeated once, and the layer remembered."""
    model = tiny_model(name)
    with torch.no_grad():  # a key of several hundred, as trained models have
        projection = model.model.layers[1].self_attn.k_proj
        projection.bias = torch.nn.Parameter(torch.zeros(projection.out_features))
        projection.bias[3] = 400.0
    batch, passes = ragged_batch(model), []
    anatomy = Anatomy(model)
    expected = neuron_impacts(anatomy, *batch)
    original = Observer.unsure
    monkeypatch.setattr(Observer, "unsure", lambda self, layer, device: original(self, layer, torch.device("meta")))
    model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    with Observer(anatomy) as observer:
        for count in (2, 3):
            found = observer.run(*batch).impact
            assert len(passes) == count, "repeated the first time, then known"
            for slot in oracle.SLOTS:
                for layer in range(2):
                    assert torch.equal(found[slot][layer], expected[slot][layer])


def test_dropout_is_off_even_in_training_mode() -> None:
    model = tiny_model("gpt2")
    assert model.config.resid_pdrop > 0
    batch = ragged_batch(model)
    expected = neuron_impacts(model, *batch)
    found = neuron_impacts(model.train(), *batch)
    assert model.training
    for slot in oracle.SLOTS:
        assert torch.equal(found[slot][1], expected[slot][1])
