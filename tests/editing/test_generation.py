"""Edits inside generate: batched, cached and left-padded is the same as one by one, without cache or padding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

import tiny
from babelscope import Anatomy, NeuronSet, ablate
from babelscope.errors import ConfigError
from editing.cases import EVERY, built, zeroed_by_hand

NEW = 6
GREEDY = GenerationConfig(
    max_new_tokens=NEW, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
)


@pytest.fixture
def llama() -> Iterator[PreTrainedModel]:
    with built("llama") as model:
        yield model


def third(model: PreTrainedModel, start: int) -> NeuronSet:
    """Every third FFN and value unit: enough to change what is generated."""
    anatomy = Anatomy(model, check=False)
    indices = {
        slot: {layer: range(start, anatomy.width(slot, layer), 3) for layer in range(anatomy.n_layers)}
        for slot in ("v", "ffn")
    }
    return NeuronSet.from_indices(anatomy, indices)


def greedy_by_hand(model: PreTrainedModel, ids: Tensor) -> tuple[list[int], Tensor]:
    """One sequence, without cache and padding: the new tokens and their logits [NEW, V]."""
    steps = []
    with torch.no_grad():
        for _ in range(NEW):
            steps.append(model(input_ids=ids, use_cache=False).logits[0, -1])
            ids = torch.cat([ids, steps[-1].argmax().view(1, 1)], dim=1)
    return ids[0, -NEW:].tolist(), torch.stack(steps)


Expected = list[tuple[list[int], Tensor]]


def assert_generates(model: PreTrainedModel, ids: Tensor, mask: Tensor, expected: Expected) -> None:
    """Batched, cached and left-padded: the same tokens, from the same logits, which generate keeps in float32."""
    found = model.generate(input_ids=ids, attention_mask=mask, generation_config=GREEDY)
    assert found.sequences[:, -NEW:].tolist() == [tokens for tokens, _ in expected]
    logits_BTV = torch.stack(found.logits, dim=1)
    assert torch.allclose(logits_BTV, torch.stack([each for _, each in expected]).float(), rtol=1e-5, atol=1e-5)


def alone(ids: Tensor, mask: Tensor, row: int) -> Tensor:
    return ids[row][mask[row].bool()][None]


@pytest.mark.parametrize("name", EVERY)
def test_rows_of_a_batch_generate_as_one_by_one(name: str) -> None:
    with built(name) as model:
        rows = [third(model, 0), None, third(model, 1), third(model, 2)]
        ids, mask = tiny.ragged_batch(model, "left", (5, 9, 12, 7))
        expected = []
        for row, neurons in enumerate(rows):
            intact = greedy_by_hand(model, alone(ids, mask, row))[1][0]
            with zeroed_by_hand(model, neurons):
                expected.append(greedy_by_hand(model, alone(ids, mask, row)))
            assert ((expected[-1][1][0] - intact).abs().max() > 1e-2) == (neurons is not None)
        with ablate(model, rows=rows) as edits:
            assert_generates(model, ids, mask, expected)
        assert set(edits.fired.values()) == {NEW}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen3_moe"])
def test_a_weight_edit_generates_as_one_by_one(name: str) -> None:
    with built(name) as model:
        neurons = third(model, 0)
        ids, mask = tiny.ragged_batch(model, "left")
        with zeroed_by_hand(model, neurons):
            expected = [greedy_by_hand(model, alone(ids, mask, row)) for row in range(3)]
        with ablate(model, neurons):
            assert_generates(model, ids, mask, expected)


def test_rows_generate_as_weights_do_in_bfloat16(llama: PreTrainedModel) -> None:
    """The rounding of half precision depends on the batch, so the batch is the same."""
    llama = llama.bfloat16()
    rows = [third(llama, 0), None, third(llama, 1)]
    ids, mask = tiny.ragged_batch(llama, "left")

    def tokens() -> Tensor:
        return llama.generate(input_ids=ids, attention_mask=mask, generation_config=GREEDY).sequences

    expected = []
    for row, neurons in enumerate(rows):
        with contextlib.nullcontext() if neurons is None else ablate(llama, neurons):
            expected.append(tokens()[row])
    with ablate(llama, rows=rows):
        found = tokens()
    assert torch.equal(found, torch.stack(expected))
    assert not torch.equal(found, tokens())


def test_sampling_draws_the_same_tokens_as_a_copy_zeroed_by_hand(llama: PreTrainedModel) -> None:
    ids, mask = tiny.ragged_batch(llama, "left")
    settings = {"max_new_tokens": NEW, "do_sample": True, "pad_token_id": 0}
    neurons = third(llama, 0)

    def sample() -> list:
        torch.manual_seed(3)
        return llama.generate(input_ids=ids, attention_mask=mask, **settings).tolist()

    intact = sample()
    with zeroed_by_hand(llama, neurons):
        expected = sample()
    assert expected != intact
    with ablate(llama, neurons):
        assert sample() == expected
    with ablate(llama, rows=[neurons, neurons, neurons]):
        assert sample() == expected


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_follow_the_row_they_belong_to(llama: PreTrainedModel, settings: dict) -> None:
    ids, mask = tiny.ragged_batch(llama, "left", (5, 9))
    rows = [third(llama, 0), third(llama, 1)]
    plain = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **settings}
    with ablate(llama, rows=rows):
        found = llama.generate(input_ids=ids, attention_mask=mask, **plain)[:, -NEW:].tolist()
    expected = []
    for row, neurons in enumerate(rows):
        with zeroed_by_hand(llama, neurons):
            expected += llama.generate(input_ids=alone(ids, mask, row), **plain)[:, -NEW:].tolist()
    assert found == expected


def test_a_batch_that_does_not_fit_the_rows_is_refused(llama: PreTrainedModel) -> None:
    ids, mask = tiny.ragged_batch(llama, "left")
    with pytest.raises(ConfigError, match="rows lists 2 sets, but the batch has 3 rows"):  # noqa: SIM117
        with ablate(llama, rows=[third(llama, 0), None]):
            llama(input_ids=ids, attention_mask=mask)
    assert not any(module._forward_pre_hooks for module in llama.modules())


def test_a_static_cache(llama: PreTrainedModel) -> None:
    rows = [third(llama, 0), None, third(llama, 2)]
    ids, mask = tiny.ragged_batch(llama, "left")
    found = {}
    for cache in ("dynamic", "static"):
        with ablate(llama, rows=rows, when="generation") as edits:
            kept = llama.generate(
                input_ids=ids, attention_mask=mask, generation_config=GREEDY, cache_implementation=cache
            )
        assert set(edits.fired.values()) == {NEW - 1}
        with ablate(llama, rows=rows, positions=[3, 13]) as edits:
            placed = llama.generate(
                input_ids=ids, attention_mask=mask, generation_config=GREEDY, cache_implementation=cache
            )
        found[cache] = (*kept.logits, *placed.logits)
    for one, other in zip(found["dynamic"], found["static"], strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert llama.generation_config.disable_compile is None


def test_generate_does_not_compile_under_hooks(llama: PreTrainedModel) -> None:
    llama.generation_config.disable_compile = False
    ids, mask = tiny.ragged_batch(llama)
    with ablate(llama, rows=[third(llama, 0)]):
        assert llama.generation_config.disable_compile
        llama(input_ids=ids, attention_mask=mask)
    assert llama.generation_config.disable_compile is False


# -- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("when", "times"), [("prompt", 1), ("generation", NEW - 1), ("all", NEW)])
def test_when_counts(llama: PreTrainedModel, when: str, times: int) -> None:
    ids, mask = tiny.ragged_batch(llama, "left")
    with ablate(llama, third(llama, 0), when=when, op="clamp", value=0.0) as edits:
        llama.generate(input_ids=ids, attention_mask=mask, generation_config=GREEDY)
    assert set(edits.fired.values()) == {times}


@pytest.mark.parametrize("name", ["llama", "opt", "mixtral"])
@pytest.mark.parametrize("when", ["prompt", "generation"])
def test_when_edits_only_those_passes(name: str, when: str) -> None:
    with built(name) as model, torch.no_grad():
        neurons = third(model, 0)
        ids, _ = tiny.ragged_batch(model, "right", (9, 9))

        def passes(first: contextlib.AbstractContextManager, second: contextlib.AbstractContextManager) -> Tensor:
            with first:
                prompt = model(input_ids=ids[:, :8], use_cache=True)
            with second:
                step = model(input_ids=ids[:, 8:], past_key_values=prompt.past_key_values)
            return torch.cat([prompt.logits, step.logits], dim=1)

        null = contextlib.nullcontext()
        edited = [zeroed_by_hand(model, neurons), null]
        expected = passes(*(edited if when == "prompt" else edited[::-1]))
        with ablate(model, neurons, when=when):
            found = passes(null, null)
        assert (found - expected).abs().max() <= 1e-12
        assert (found - passes(null, null)).abs().max() > 1e-3


def test_a_prompt_in_chunks_is_all_prompt(llama: PreTrainedModel) -> None:
    ids, _ = tiny.ragged_batch(llama, "right", (9, 9))
    with torch.no_grad(), ablate(llama, third(llama, 0), when="prompt") as edits:
        cache = llama(input_ids=ids[:, :4], use_cache=True).past_key_values
        llama(input_ids=ids[:, 4:], past_key_values=cache)
    assert set(edits.fired.values()) == {2}


# -- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "opt", "mixtral"])
def test_positions_are_counted_from_the_first_unpadded_token(name: str, side: str) -> None:
    with built(name) as model, torch.no_grad():
        neurons = third(model, 0)
        ids, mask = tiny.ragged_batch(model, side)
        extra = {} if name == "opt" else {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
        real = [mask[row].bool() for row in range(3)]
        with ablate(model, neurons, positions=[0, 3, 7]):
            found = model(input_ids=ids, attention_mask=mask, **extra).logits
        for row in range(3):
            single = alone(ids, mask, row)
            with ablate(model, neurons, positions=[0, 3, 7]):
                expected = model(input_ids=single).logits[0]
            with zeroed_by_hand(model, neurons):
                everywhere = model(input_ids=single).logits[0]
            assert (found[row][real[row]] - expected).abs().max() <= 1e-12
            # Token 0 sees nothing but itself, so there it is as if the edit were everywhere; token 1 is not edited.
            assert (expected[0] - everywhere[0]).abs().max() <= 1e-12
            assert (expected[1] - everywhere[1]).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_zero_that_token_alone(llama: PreTrainedModel, side: str) -> None:
    neurons = NeuronSet.from_indices(Anatomy(llama, check=False), {"q": {1: [3]}, "ffn": {0: [5]}})
    ids, mask = tiny.ragged_batch(llama, side, (5, 9))
    seen: dict[str, Tensor] = {}
    layers = llama.model.layers
    with torch.no_grad(), ablate(llama, rows=[neurons, neurons], positions=[4]):
        handles = [
            layers[1].self_attn.q_proj.register_forward_hook(lambda module, args, out: seen.update(q=out[..., 3])),
            layers[0].mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.update(ffn=args[0][..., 5])),
        ]
        llama(input_ids=ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    for values in seen.values():
        assert (values == 0).nonzero().tolist() == [[0, 4 + 4 * (side == "left")], [1, 4]]


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_positions_in_generated_text(name: str) -> None:
    """Cached and left-padded, positions past the prompt are met by the steps that read them."""
    with built(name) as model:
        neurons, places = third(model, 0), [1, 6, 10, 13]
        ids, mask = tiny.ragged_batch(model, "left", (5, 9, 12))
        expected = []
        for row in range(3):
            with ablate(model, neurons, op="clamp", value=2.0, positions=places):
                expected.append(greedy_by_hand(model, alone(ids, mask, row)))
        with ablate(model, neurons, op="clamp", value=2.0, positions=places):
            assert_generates(model, ids, mask, expected)
