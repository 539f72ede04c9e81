"""Bits per byte against one text at a time, and the damage matrix against models edited by hand."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import oracle
import tiny
from babelscope import Anatomy, NeuronSet, damage_matrix
from babelscope.corpora.tokens import tokens_before
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.evaluation.likelihood import Likelihood, likelihood
from builders import BOS, byte_llama, byte_tokenizer, letters, make_texts
from tiny import tiny_model

torch.set_num_threads(1)

TEXTS = [
    "Il pleut.",
    "l'été à Orléans, déjà",
    "漢字",
    "a",
    "на улице",
    "été",
    "x" * 50,
    "слово за слово, буква за буквой",
]


def nats_by_hand(model: Any, ids: list[int]) -> float:
    """-log P of every token but the first, one forward pass for each prefix."""
    total = 0.0
    with torch.no_grad():
        for place in range(1, len(ids)):
            scores = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
            total += float(scores.logsumexp(0) - scores[ids[place]])
    return total


def byte_ids(text: str) -> list[int]:
    """The tokenizer's ids, from its alphabet: 3 special ones, then the bytes in the order of their stand-ins."""
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


# ----------------------------------------------------------------------------------------------------------------------
# Nats
# ----------------------------------------------------------------------------------------------------------------------


def test_equals_one_text_at_a_time() -> None:
    model = byte_llama()
    found = likelihood(model, byte_tokenizer(), TEXTS, max_tokens=64)
    assert found.nats.dtype == np.float64
    assert found.n_bytes.dtype == np.int64
    expected = [nats_by_hand(model, [BOS, *byte_ids(text)]) for text in TEXTS]
    np.testing.assert_allclose(found.nats, expected, rtol=2e-6)
    assert found.n_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert found.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / sum(found.n_bytes))


def test_without_bos_the_first_token_is_context() -> None:
    model = byte_llama()
    texts = [text for text in TEXTS if len(text) > 1]
    found = likelihood(model, byte_tokenizer(bos=False), texts, max_tokens=64)
    np.testing.assert_allclose(found.nats, [nats_by_hand(model, byte_ids(text)) for text in texts], rtol=2e-6)
    # A token is a byte: of a character that is cut between context and prediction, two bytes of three count.
    assert found.n_bytes.tolist() == [len(text.encode()) - 1 for text in texts]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("max_tokens", [2, 3, 7, 8, 9, 64])
def test_cut_texts(bos: bool, max_tokens: int) -> None:
    """Bytes are those of the predicted tokens, also where a cut or the first token splits a character."""
    model = byte_llama()
    text = "aбв漢д"  # bytes: 1, 2, 2, 3, 2
    found = likelihood(model, byte_tokenizer(bos), [text], max_tokens=max_tokens)
    kept = byte_ids(text)[: max_tokens - bos]
    assert found.nats[0] == pytest.approx(nats_by_hand(model, [BOS, *kept] if bos else kept), rel=2e-6)
    assert found.n_bytes[0] == len(kept) - (not bos)


@pytest.mark.parametrize("max_tokens", range(2, 20))
def test_characters_of_byte_tokens_are_counted_by_bytes(max_tokens: int) -> None:
    """SentencePiece's way: characters without a token of their own are spelled in byte tokens."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "a", "б", "ab"])}
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    text = "aб漢a😀бa字"
    sizes = [1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    found = likelihood(byte_llama(vocab_size=272), tokenizer, [text], max_tokens=max_tokens)
    assert found.n_bytes[0] == sum(sizes[1:max_tokens])


def test_the_tokenizer_decides_what_is_put_before_a_text() -> None:
    """One rule for texts, tasks, detection and training: a BOS that the tokenizer doesn't add is not added."""
    model, tokenizer = byte_llama(), copy.deepcopy(byte_tokenizer())
    assert tokens_before(tokenizer) == [BOS]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    assert tokens_before(tokenizer) == []
    assert tokenizer.bos_token_id == BOS
    found = likelihood(model, tokenizer, ["l'été"], max_tokens=64)
    assert found.nats[0] == pytest.approx(nats_by_hand(model, byte_ids("l'été")), rel=2e-6)
    assert found.n_bytes.tolist() == [6]


def test_texts_beyond_the_positions_of_the_model_are_refused() -> None:
    model = byte_llama(max_position_embeddings=32)
    likelihood(model, byte_tokenizer(), ["x" * 31], max_tokens=64)
    likelihood(model, byte_tokenizer(), ["x" * 100], max_tokens=32)
    with pytest.raises(ConfigError, match=r"33 tokens, and the model 32 positions.*Lower max_tokens \(64\) to 32"):
        likelihood(model, byte_tokenizer(), ["x" * 32, "a"], max_tokens=64)


def test_a_long_text_is_not_tokenised_as_a_whole() -> None:
    tokenizer, longest = byte_tokenizer(), 0

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: object) -> object:
            nonlocal longest
            longest = max(longest, len(text))
            return tokenizer(text, **options)

    text = "мир " * 100_000
    found = likelihood(byte_llama(), Watched(), [text], max_tokens=32)
    np.testing.assert_array_equal(found.nats, likelihood(byte_llama(), tokenizer, [text[:200]], max_tokens=32).nats)
    assert longest < 20_000


@pytest.mark.parametrize("token_budget", [1, 30, 100, 10_000])
def test_batches_do_not_matter(token_budget: int) -> None:
    model = byte_llama()
    whole = likelihood(model, byte_tokenizer(), TEXTS, max_tokens=64)
    found = likelihood(model, byte_tokenizer(), TEXTS, max_tokens=64, token_budget=token_budget)
    np.testing.assert_allclose(found.nats, whole.nats, rtol=2e-6)
    assert found.n_bytes.tolist() == whole.n_bytes.tolist()


@pytest.mark.parametrize("name", ["gpt2", "bloom", "gemma2", "mixtral"])
def test_other_families(name: str) -> None:
    model = tiny_model(name)
    texts = make_texts("fr", 5)
    found = likelihood(model, letters(), texts)
    expected = [nats_by_hand(model, letters()(text)["input_ids"]) for text in texts]
    np.testing.assert_allclose(found.nats, expected, rtol=5e-6)


def test_a_tokenizer_in_python() -> None:
    """ByT5's knows no offsets, has no BOS, and puts three special tokens before the bytes."""
    model, tokenizer = byte_llama(vocab_size=400), ByT5Tokenizer()
    texts = ["Il pleut à verse", "déjà vu"]
    found = likelihood(model, tokenizer, texts, max_tokens=64)
    ids = [[byte + 3 for byte in text.encode()] for text in texts]
    np.testing.assert_allclose(found.nats, [nats_by_hand(model, each) for each in ids], rtol=2e-6)
    assert found.n_bytes.tolist() == [len(text.encode()) - 1 for text in texts]
    cut = likelihood(model, tokenizer, texts, max_tokens=6)
    np.testing.assert_allclose(cut.nats, [nats_by_hand(model, each[:6]) for each in ids], rtol=2e-6)
    assert cut.n_bytes.tolist() == [5, 5], "of 'Il ple' and 'déjà' without their first letter"
    for max_tokens in range(2, 7):
        found = likelihood(model, tokenizer, texts, max_tokens=max_tokens)
        assert found.n_bytes.tolist() == [max_tokens - 1] * 2


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    model = tiny_model("gpt2")
    assert model.config.resid_pdrop > 0
    texts = make_texts("fr", 4)
    expected = likelihood(model, letters(), texts)
    found = likelihood(model.train(), letters(), texts)
    assert model.training
    np.testing.assert_array_equal(found.nats, expected.nats)


def test_texts_may_be_any_iterable() -> None:
    model = byte_llama()
    listed = likelihood(model, byte_tokenizer(), TEXTS, max_tokens=64)
    streamed = likelihood(model, byte_tokenizer(), (text for text in TEXTS), max_tokens=64)
    np.testing.assert_array_equal(streamed.nats, listed.nats)


def test_nothing_to_measure() -> None:
    model = byte_llama()
    with pytest.raises(DataError, match="no text to measure"):
        likelihood(model, byte_tokenizer(), [])
    with pytest.raises(DataError, match="a text has no token to predict: ''"):
        likelihood(model, byte_tokenizer(), ["a", ""])
    with pytest.raises(DataError, match="a text has no token to predict: 'a'"):
        likelihood(model, byte_tokenizer(bos=False), ["ab", "a"])
    for max_tokens in (0, 1):
        with pytest.raises(ConfigError, match=f"wanted max_tokens of 2 or more .*found {max_tokens}"):
            likelihood(model, byte_tokenizer(), ["ab"], max_tokens=max_tokens)


def test_bits_per_byte_are_over_all_texts() -> None:
    found = Likelihood(np.array([math.log(2) * 6, math.log(2) * 2]), np.array([2, 2]))
    assert found.bits_per_byte == pytest.approx(2.0)
    assert Likelihood(np.array([math.log(2)]), np.array([4])).bits_per_byte == pytest.approx(0.25)


# ----------------------------------------------------------------------------------------------------------------------
# The damage matrix
# ----------------------------------------------------------------------------------------------------------------------

HELD = {"fr": make_texts("fr", 6), "zh": make_texts("zh", 5), "sw": make_texts("sw", 1)}


def _sets(model: Any) -> dict[str, NeuronSet]:
    anatomy = Anatomy(model, check=False)
    return {
        "fr": NeuronSet.from_indices(anatomy, {"ffn": {0: range(12), 1: [3, 4]}, "v": {1: [0, 9]}}),
        "none": NeuronSet.from_indices(anatomy, {}),
        "random": NeuronSet.from_indices(anatomy, {"ffn": {1: range(20, 32)}, "q": {0: [5]}, "k": {1: [1]}}),
    }


@pytest.fixture(scope="module")
def measured() -> tuple[Any, Any]:
    model = tiny_model("llama")
    return model, damage_matrix(model, letters(), _sets(model), HELD, resamples=200)


def test_damage_equals_models_edited_by_hand(measured: Any) -> None:
    model, matrix = measured
    assert matrix.rows == ("fr", "none", "random")
    assert matrix.columns == ("fr", "zh", "sw")
    ids = {language: [letters()(text)["input_ids"] for text in texts] for language, texts in HELD.items()}
    n_bytes = {language: sum(len(text.encode()) for text in texts) for language, texts in HELD.items()}

    def bits(each: Any, language: str) -> float:
        return sum(nats_by_hand(each, row) for row in ids[language]) / math.log(2) / n_bytes[language]

    base = {language: bits(model, language) for language in HELD}
    np.testing.assert_allclose(matrix.base, list(base.values()), rtol=2e-6)
    for row, (name, neurons) in enumerate(_sets(model).items()):
        edited = copy.deepcopy(model)
        with torch.no_grad():
            for slot, layer, unit in neurons:
                for cut in oracle.cuts(edited, slot, layer, unit):  # type: ignore[arg-type]
                    cut.parameter[cut.index] = 0
        expected = [bits(edited, language) - base[language] for language in HELD]
        np.testing.assert_allclose(matrix.change[row], expected, atol=1e-5)
        assert matrix.row(name) == dict(zip(HELD, matrix.change[row].tolist(), strict=True))
        if name != "none":
            assert min(map(abs, expected)) > 1e-3, "a set without effect proves nothing"


def test_intervals_hold_the_point_estimate(measured: Any) -> None:
    _, matrix = measured
    assert (matrix.low <= matrix.change + 1e-12).all()
    assert (matrix.change <= matrix.high + 1e-12).all()
    wide = (matrix.high - matrix.low)[[0, 2]]
    assert (wide[:, :2] > 1e-3).all()
    np.testing.assert_allclose(wide[:, 2], 0, atol=1e-12)  # one text: nothing to resample
    assert (matrix.change[1] == 0).all()
    assert (matrix.low[1] == 0).all()


def test_intervals_are_those_of_a_paired_bootstrap(measured: Any) -> None:
    """Texts are drawn with replacement, the same ones before and after: 95 % of the resampled means are inside."""
    model, matrix = measured
    tokenized = [letters()(text)["input_ids"] for text in HELD["fr"]]
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for slot, layer, unit in _sets(model)["fr"]:
            for cut in oracle.cuts(edited, slot, layer, unit):  # type: ignore[arg-type]
                cut.parameter[cut.index] = 0
    change = np.array([nats_by_hand(edited, ids) - nats_by_hand(model, ids) for ids in tokenized]) / math.log(2)
    n_bytes = np.array([len(text) for text in HELD["fr"]])
    generator = np.random.default_rng(99)
    inside = 0
    for _ in range(2000):
        chosen = generator.integers(0, 6, 6)
        inside += matrix.low[0, 0] <= change[chosen].sum() / n_bytes[chosen].sum() <= matrix.high[0, 0]
    assert 0.90 < inside / 2000 < 0.985


def test_the_seed_decides_the_intervals_only(measured: Any) -> None:
    model, matrix = measured
    again = damage_matrix(model, letters(), _sets(model), HELD, resamples=200)
    other = damage_matrix(model, letters(), _sets(model), HELD, resamples=200, seed=1)
    for name in ("base", "change", "low", "high"):
        np.testing.assert_array_equal(getattr(again, name), getattr(matrix, name))
    np.testing.assert_array_equal(other.change, matrix.change)
    assert not np.array_equal(other.low, matrix.low)


def test_the_matrix_in_words(measured: Any) -> None:
    _, matrix = measured
    lines = str(matrix).splitlines()
    assert lines[0].split() == ["off", "fr", "zh", "sw"]
    assert lines[1].split() == ["intact", *(f"{value:.3f}" for value in matrix.base)]
    assert lines[2].split() == ["fr", *(f"{value:+.3f}" for value in matrix.change[0])]
    assert lines[3].split() == ["none", "+0.000", "+0.000", "+0.000"]


def test_the_model_is_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("gpt2").train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    anatomy = Anatomy(model, check=False)
    sets = {"fr": NeuronSet.from_indices(anatomy, {"ffn": {0: [1, 2]}})}
    with caplog.at_level(logging.WARNING):
        damage_matrix(anatomy, letters(), sets, {"fr": HELD["fr"]}, resamples=10)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_sets_of_another_model_are_refused() -> None:
    with pytest.raises(ProvenanceError):
        damage_matrix(tiny_model("llama"), letters(), _sets(tiny._llama(num_hidden_layers=3)), HELD)
