"""Recorded activations against hooks by hand; `median` and `resample` set what they say, at the places they say."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import tiny
from babelscope import Anatomy, NeuronSet, ablate, detect
from babelscope.editing.operations import RecordedActivations
from babelscope.editing.recorded import record_activations
from babelscope.errors import ConfigError, ProvenanceError, UnsupportedModelError
from builders import byte_llama, byte_tokenizer, make_texts
from editing.cases import assert_intact, built, logits, snapshot, some

SLOTS = {"q": [0, 9, 31], "k": [1, 5], "v": [0, 15], "o": [2, 30], "ffn": [3, 7, 43]}
MODULES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
TEXTS = make_texts("fr", 5)
MAX_TOKENS = 24  # cuts some of them
NUMBERS = ["3 4 5 6 7", "8 9 10 11", "21 33 9"]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model = byte_llama(torch.float64, attention_bias=True)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def neurons(model: PreTrainedModel) -> NeuronSet:
    return NeuronSet.from_indices(Anatomy(model), {slot: {0: units, 1: units} for slot, units in SLOTS.items()})


@pytest.fixture(scope="module")
def bank(model: PreTrainedModel, neurons: NeuronSet) -> RecordedActivations:
    return record(model, neurons)


def record(model: PreTrainedModel, neurons: NeuronSet) -> RecordedActivations:
    return record_activations(model, byte_tokenizer(), TEXTS, neurons, max_tokens=MAX_TOKENS, token_budget=60)


Seen = dict[tuple[str, int], list[Tensor]]


@contextlib.contextmanager
def seen_by_hand(model: PreTrainedModel) -> Iterator[Seen]:
    """What each pass computes with, [B, T, n] by slot and layer: the hooks come after those of an open edit."""
    seen: Seen = {(slot, layer): [] for slot in SLOTS for layer in range(2)}
    handles = []
    for (slot, layer), kept in seen.items():
        block = model.model.layers[layer]
        module = block.get_submodule(MODULES.get(slot, "mlp.down_proj"))
        inputs = slot in ("o", "ffn")

        def keep(module, args, output=None, kept=kept, slot=slot, inputs=inputs):
            kept.append((args[0] if inputs else output)[..., SLOTS[slot]].clone())

        handles.append(module.register_forward_pre_hook(keep) if inputs else module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def by_hand(model: PreTrainedModel) -> dict[tuple[str, int], Tensor]:
    """Document by document, without padding, all tokens but BOS: [C, n]."""
    with seen_by_hand(model) as seen, torch.no_grad():
        for text in TEXTS:
            ids = byte_tokenizer()(text, return_tensors="pt", return_token_type_ids=False)["input_ids"]
            model(input_ids=ids[:, :MAX_TOKENS])
    return {place: torch.cat([each[0, 1:] for each in kept]) for place, kept in seen.items()}


def joined(values: dict[tuple[str, int], Tensor]) -> Tensor:
    """All units side by side, in one order."""
    return torch.cat([values[place] for place in sorted(values)], dim=-1)


def draws(seen: Seen, bank: RecordedActivations, step: int = 0) -> Tensor:
    """int64 [B, T]: the token of the bank whose values all units of all slots and layers have."""
    found = joined({place: kept[step] for place, kept in seen.items()})
    known = joined(dict(bank.values)).double()
    same = (found[:, :, None] == known).all(-1)
    assert (same.sum(-1) == 1).all()
    return same.long().argmax(-1)


# -- the recorder ----------------------------------------------------------------------------------------------------


def test_records_every_counted_token_aligned_over_slots_and_layers(bank: RecordedActivations, by_hand) -> None:
    assert set(bank.values) == set(by_hand)
    expected, found = joined(by_hand), joined(dict(bank.values))
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert bank.tokens == len(expected) == sum(min(len(text), MAX_TOKENS - 1) for text in TEXTS)
    # In the order of the batches: every token of one is one of the other, with the values of all units together.
    nearest = torch.cdist(found.double(), expected).min(1)
    assert nearest.values.max() <= 1e-5
    assert sorted(nearest.indices.tolist()) == list(range(len(expected)))


def test_recording_leaves_the_model_as_it_was(neurons: NeuronSet) -> None:
    model = byte_llama(torch.float64, attention_bias=True).train()
    before = snapshot(model)
    record(model, neurons)
    assert_intact(model, before)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "phi3"])
def test_records_what_an_edit_sets(name: str) -> None:
    """In other layouts (fused, transposed, flattened): what `clamp` puts in is what is recorded."""
    model = tiny.tiny_model(name, torch.float64)
    anatomy = Anatomy(model, check=False)
    neurons = NeuronSet.from_indices(anatomy, {slot: {1: units[:2]} for slot, units in SLOTS.items()})
    inputs = tiny.ragged_batch(model)
    bank = record_activations(model, number_tokenizer(), ["3 4 5 6 7", "8 9 10"], neurons, min_tokens=1)
    assert bank.tokens == 8
    constant = dataclasses.replace(bank, values={place: torch.full((8, 2), 0.75) for place in bank.values})
    with ablate(model, neurons, op="clamp", value=0.75):
        expected = logits(model, *inputs)
    for op in ("median", "resample"):
        with ablate(model, neurons, op=op, reference=constant):
            assert torch.equal(logits(model, *inputs), expected)
    # Each unit held at what was recorded at a token leaves a pass over this token alone as it is.
    alone = record_activations(model, number_tokenizer(), ["5"], neurons, min_tokens=1)
    one = (torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.int64))
    intact = logits(model, *one)
    for op in ("median", "resample"):
        with ablate(model, neurons, op=op, reference=alone):
            assert (logits(model, *one) - intact).abs().max() <= 1e-5
    with ablate(model, neurons, op="resample", reference=bank, seed=1):
        assert (logits(model, *one) - intact).abs().max() > 1e-4


def number_tokenizer() -> PreTrainedTokenizerFast:
    """A token per number, without BOS: for the tiny models, whose vocabulary is small."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, **{str(each): each for each in range(1, 64)}}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


# -- median ----------------------------------------------------------------------------------------------------------


def test_median_of_a_unit_over_the_recorded_tokens(model, neurons, bank, by_hand) -> None:
    ids, mask = tiny.ragged_batch(model, "left")
    with ablate(model, neurons, op="median", reference=bank) as edits, seen_by_hand(model) as seen:
        logits(model, ids, mask)
    assert edits.fired == dict.fromkeys(seen, 1)
    for place, (kept,) in seen.items():
        assert (kept - by_hand[place].median(0).values).abs().max() <= 1e-5, place
        assert (kept - by_hand[place].mean(0)).abs().max() > 1e-3, place


def test_a_bank_serves_a_part_of_its_units_in_any_order(model, neurons, bank, by_hand) -> None:
    part = NeuronSet.from_indices(Anatomy(model), {"ffn": {1: [43, 3]}})
    with ablate(model, part, op="median", reference=bank), seen_by_hand(model) as seen:
        logits(model, *tiny.ragged_batch(model))
    median = by_hand["ffn", 1].median(0).values
    assert (seen["ffn", 1][0][..., [0, 2]] - median[[0, 2]]).abs().max() <= 1e-5
    assert (seen["ffn", 1][0][..., 1] - median[1]).abs().max() > 1e-3


# -- resample --------------------------------------------------------------------------------------------------------


def drawn_by_hand(seed: int, place: int, token: int, tokens: int) -> int:
    """In Python's own numbers: splitmix64 of the seed, of that plus the place, of that plus the token."""
    found = 0
    for each in (seed, place, token):
        found = (found + each + 0x9E3779B97F4A7C15) % 2**64
        found = (found ^ (found >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        found = (found ^ (found >> 27)) * 0x94D049BB133111EB % 2**64
        found ^= found >> 31
    return (found - 2**64 * (found >= 2**63)) % tokens


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", [0, -3])
def test_all_units_at_a_token_come_from_one_recorded_token(model, neurons, bank, side, seed) -> None:
    ids, mask = tiny.ragged_batch(model, side)
    with ablate(model, neurons, op="resample", reference=bank, seed=seed), seen_by_hand(model) as seen:
        logits(model, ids, mask)
    found = draws(seen, bank)
    for row in range(len(ids)):
        real = mask[row].bool()
        tokens = ids[row][real].tolist()
        by_hand = [drawn_by_hand(seed, place, token, bank.tokens) for place, token in enumerate(tokens)]
        assert found[row][real].tolist() == by_hand


def test_draws_are_uniform_and_the_seed_changes_them(model, neurons, bank) -> None:
    few = dataclasses.replace(bank, values={place: each[:4] for place, each in bank.values.items()}, tokens=4)
    ids = torch.randint(3, 60, (10, 60), generator=torch.Generator().manual_seed(2))
    found = []
    for seed in (0, 1):
        with ablate(model, neurons, op="resample", reference=few, seed=seed), seen_by_hand(model) as seen:
            logits(model, ids, torch.ones_like(ids))
        found.append(draws(seen, few))
        counts = found[-1].flatten().bincount(minlength=4)
        assert (counts - 150).abs().max() < 50  # 600 draws: 4.7 standard deviations
    same = (found[0] == found[1]).double().mean()
    assert abs(same - 0.25) < 0.09


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_batched_cached_generation_is_one_by_one_without_a_cache(name: str) -> None:
    """And beams: the draws belong to the tokens."""
    with built(name) as model:
        neurons = some(Anatomy(model, check=False))
        bank = record_activations(model, number_tokenizer(), NUMBERS, neurons, min_tokens=1)
        ids, mask = tiny.ragged_batch(model, "left")
        settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        intact = model.generate(input_ids=ids, attention_mask=mask, **settings)
        with ablate(model, neurons, op="resample", reference=bank, seed=5):
            found = model.generate(input_ids=ids, attention_mask=mask, **settings)
            beams = model.generate(input_ids=ids, attention_mask=mask, num_beams=2, **settings)
            for row in range(len(ids)):
                alone = ids[row][mask[row].bool()][None]
                for expected, more in ((found, {}), (beams, {"num_beams": 2})):
                    one = model.generate(input_ids=alone, use_cache=False, **settings, **more)
                    assert torch.equal(one[0, -8:], expected[row, -8:])
        assert not torch.equal(found, intact)


def test_a_draw_needs_the_tokens(model, neurons, bank) -> None:
    embedded = model.get_input_embeddings()(torch.tensor([[5, 6]]))
    with (
        pytest.raises(ConfigError, match="Pass input_ids"),
        ablate(model, neurons, op="resample", reference=bank),
    ):
        model(inputs_embeds=embedded)


def test_bfloat16_takes_the_recorded_values_as_they_are(neurons: NeuronSet) -> None:
    model = byte_llama(torch.bfloat16, attention_bias=True)
    bank = record_activations(model, byte_tokenizer(), TEXTS, neurons, max_tokens=MAX_TOKENS, force=True)
    with (
        ablate(model, neurons, op="resample", reference=bank, force=True),
        seen_by_hand(model) as seen,
    ):
        logits(model, *tiny.ragged_batch(model, lengths=(9, 9)))
    found = joined({place: kept[0] for place, kept in seen.items()}).float()
    assert (found[:, :, None] == joined(dict(bank.values))).all(-1).any(-1).all()


# -- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["median", "resample"])
def test_rows_and_positions_compose(model, neurons, bank, op) -> None:
    ids, mask = tiny.ragged_batch(model, lengths=(9, 9, 9))
    only = NeuronSet.from_indices(Anatomy(model), {"q": {0: SLOTS["q"]}})  # q of layer 0 sees no other edit
    with seen_by_hand(model) as seen:
        logits(model, ids, mask)
    (intact,) = seen["q", 0]
    with ablate(model, neurons, op=op, reference=bank), seen_by_hand(model) as seen:
        logits(model, ids, mask)
    (edited,) = seen["q", 0]
    with ablate(model, rows=[None, only, None], op=op, reference=bank, positions=[0, 4]), seen_by_hand(model) as seen:
        logits(model, ids, mask)
    expected = intact.clone()
    expected[1, [0, 4]] = edited[1, [0, 4]]
    assert not torch.equal(expected, intact)
    assert torch.equal(seen["q", 0][0], expected)


@pytest.mark.parametrize("op", ["median", "resample"])
@pytest.mark.parametrize("when", ["prompt", "generation"])
def test_when_composes(model, neurons, bank, op, when) -> None:
    ids, mask = tiny.ragged_batch(model, "left")
    only = neurons.at(slots=("q",)).at(layers=[0])
    with ablate(model, only, op=op, reference=bank, when=when) as edits, seen_by_hand(model) as seen:
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert edits.fired == {("q", 0): 1 if when == "prompt" else 3}
    known = bank.at("q", 0, torch.tensor(SLOTS["q"])).double()
    known = known if op == "resample" else known.median(0).values[None]
    for step, kept in enumerate(seen["q", 0]):
        inside = (kept[:, :, None] == known).all(-1).any(-1)
        assert inside.all() if (step == 0) == (when == "prompt") else not inside.any()


@pytest.mark.parametrize("op", ["median", "resample"])
def test_everything_comes_back(model, neurons, bank, op) -> None:
    ids, mask = tiny.ragged_batch(model)
    before, intact = snapshot(model), logits(model, ids, mask)
    with ablate(model, neurons, op=op, reference=bank):
        assert (logits(model, ids, mask) - intact).abs().max() > 1e-3
    assert_intact(model, before)
    with pytest.raises(KeyboardInterrupt), ablate(model, neurons, op=op, reference=bank):
        raise KeyboardInterrupt
    assert_intact(model, before)
    assert torch.equal(logits(model, ids, mask), intact)


def test_open_edits_of_the_same_units_agree_or_are_refused(model, neurons, bank) -> None:
    inputs = tiny.ragged_batch(model)
    with ablate(model, neurons, op="resample", reference=bank):
        once = logits(model, *inputs)
        with ablate(model, neurons, op="resample", reference=bank):
            assert torch.equal(logits(model, *inputs), once)
        for other in ({"op": "resample", "seed": 1}, {"op": "median"}):
            with pytest.raises(ConfigError, match="an open edit"), ablate(model, neurons, reference=bank, **other):
                pass
        again = dataclasses.replace(bank)
        with (
            pytest.raises(ConfigError, match="an open edit"),
            ablate(model, neurons, op="resample", reference=again),
        ):
            pass
        with pytest.raises(ConfigError, match="open edit, which would be recorded"):
            record(model, neurons)


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["median", "resample"])
def test_an_atlas_is_refused_with_what_to_give(model, neurons, op) -> None:
    atlas = detect(model, byte_tokenizer(), {"fr": TEXTS}, max_tokens=MAX_TOKENS)
    for reference in (atlas, atlas.of("fr")):
        with (
            pytest.raises(ConfigError, match=r"atlas holds sums over tokens.*record_activations"),
            ablate(model, neurons, op=op, reference=reference),
        ):
            pass


def test_arguments_that_are_refused(model, neurons, bank) -> None:
    wrong = [
        ({"op": "median"}, "needs reference"),
        ({"op": "resample", "reference": bank, "value": 1.0}, "found value"),
        ({"op": "resample", "reference": bank, "seed": 0.5}, "wanted seed as an integer"),
        ({"op": "resample", "reference": bank, "seed": 1 << 63}, "wanted seed as an integer"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ConfigError, match=message), ablate(model, neurons, **arguments):
            pass


def test_units_that_were_not_recorded(model, bank) -> None:
    before = snapshot(model)
    for indices, lacking in (({"ffn": {1: [3, 4]}}, r"1 of 2 units to edit \(4\)"), ({"q": {0: [1]}}, "1 of 1")):
        other = NeuronSet.from_indices(Anatomy(model), indices)
        with pytest.raises(ConfigError, match=lacking), ablate(model, other, op="median", reference=bank):
            pass
    assert_intact(model, before)


def test_a_bank_of_another_model(bank) -> None:
    other = byte_llama(torch.float64)
    neurons = NeuronSet.from_indices(Anatomy(other), {"ffn": {0: [3]}})
    with (
        pytest.raises(ProvenanceError, match="reference was made on a model"),
        ablate(other, neurons, op="median", reference=bank),
    ):
        pass
    with ablate(other, neurons, op="median", reference=bank, force=True):
        logits(other, *tiny.ragged_batch(other))
    narrow = byte_llama(torch.float64, intermediate_size=20)
    units = NeuronSet.from_indices(Anatomy(narrow), {"ffn": {0: [3]}})
    with (
        pytest.raises(ProvenanceError, match="layers of"),
        ablate(narrow, units, op="median", reference=bank, force=True),
    ):
        pass


def test_what_can_not_be_recorded(model, neurons) -> None:
    with pytest.raises(ConfigError, match="nothing to record"):
        record(model, neurons - neurons)
    with pytest.raises(ProvenanceError, match="the neurons were found in"):
        record(byte_llama(torch.float64), neurons)
    mixtral = tiny.tiny_model("mixtral")
    units = NeuronSet.from_indices(Anatomy(mixtral, check=False), {"ffn": {0: [3]}})
    with pytest.raises(UnsupportedModelError, match="a unit of an expert"):
        record_activations(mixtral, byte_tokenizer(), TEXTS, units)


def test_a_draw_needs_the_whole_model(model, neurons, bank) -> None:
    with (
        pytest.raises(UnsupportedModelError, match="outside a call of the whole model"),
        ablate(model, neurons, op="resample", reference=bank),
    ):
        model.model.layers[0].mlp(torch.zeros(1, 2, 32, dtype=torch.float64))
