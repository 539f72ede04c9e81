"""Latent language: all beginnings of a word, by hand, from a model that really ends after each layer."""

from __future__ import annotations

import copy

import pytest
import torch

import tiny
from babelscope.errors import ConfigError, DataError
from babelscope.lens import words
from babelscope.lens.words import latent_language
from builders import byte_llama, byte_tokenizer, letters


def test_probability_of_all_beginnings():
    model, tokenizer = tiny.tiny_model("llama"), letters()
    prompts = ["la mer", "le", "maji ya kwanza"]
    asked = {"fr": ["mer", "sel", "eau"], "sw": ["bahari", "chumvi", "maji"]}
    found = latent_language(model, tokenizer, prompts, asked)
    assert found.languages == ("fr", "sw")
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        for layers in range(3):
            shorter = copy.deepcopy(model)
            shorter.model.layers = shorter.model.layers[:layers]
            with torch.no_grad():
                chances = shorter(input_ids=ids, use_cache=False).logits[0, -1].softmax(0)
            for column, language in enumerate(asked):
                first = tokenizer.convert_tokens_to_ids(asked[language][number][0])  # letters: the only beginning
                assert float(found.probability[number, layers, column]) == pytest.approx(
                    float(chances[first]), abs=1e-6
                )
    assert found.shared.tolist() == [False, False, False]
    torch.testing.assert_close(found.mean(), found.probability.mean(0))


def test_beginnings_with_and_without_a_space_and_within_a_character():
    spelled = [b"", b"f", b" f", b"fl", b"lo", b" fleur", b"fleurs", "花".encode()[:1], "花".encode(), b" ", b"F"]
    places = {}
    for token, each in enumerate(spelled):
        places.setdefault(each.removeprefix(b" "), []).append(token)
    assert words._beginnings(places, "fleur") == {1, 2, 3, 5}
    assert words._beginnings(places, " 花") == {7, 8}


def test_words_that_begin_alike_are_marked_and_left_out():
    prompts, asked = ["a", "b"], {"fr": ["mer", "sel"], "en": ["milk", "door"]}
    found = latent_language(tiny.tiny_model("llama"), letters(), prompts, asked)
    assert found.shared.tolist() == [True, False]
    torch.testing.assert_close(found.mean(), found.probability[1])
    both = latent_language(tiny.tiny_model("llama"), letters(), ["a"], {"fr": ["mer"], "en": ["milk"]})
    with pytest.raises(DataError, match="every prompt"):
        both.mean()


def test_prompts_of_translations():
    source, target = ["mer", "sel", "eau"], ["海", "盐", "水"]
    pairs = dict(zip(source, target, strict=True))
    prompts = words.translations(source, target, shots=2)
    for word, prompt in zip(source, prompts, strict=True):
        *shown, asked = prompt.splitlines()
        assert asked == f'"{word}" - "'
        assert sorted(shown) == sorted(f'"{other}" - "{pairs[other]}"' for other in source if other != word)
    assert words.translations(source, target, shots=2) == prompts
    assert words.translations(source, target, shots=1, seed=1) != words.translations(source, target, shots=1)
    for lists in ((source, target[:2]), (source[:2], target[:2])):
        with pytest.raises(ConfigError, match="more than 2 words"):
            words.translations(*lists, shots=2)


def test_table_of_translations():
    model, tokenizer = tiny.tiny_model("llama"), letters()
    lists = {"French": ["mer", "lune", "eau"], "en": ["sea", "moon", "water"], "sw": ["bahari", "twiga", "chai"]}
    rows = words.latent_table(model, tokenizer, lists, shots=1)
    assert {(row["target"], row["language"]) for row in rows} == {
        ("en", "en"),
        ("en", "fr"),
        ("sw", "sw"),
        ("sw", "en"),
        ("sw", "fr"),
    }
    prompts = words.translations(lists["French"], lists["sw"], shots=1)
    asked = {"sw": lists["sw"], "en": lists["en"], "fr": lists["French"]}
    found = latent_language(model, tokenizer, prompts, asked)
    low, high = found.interval()
    (row,) = [row for row in rows if (row["target"], row["language"], row["layer"]) == ("sw", "en", 1)]
    assert row["probability"] == pytest.approx(float(found.probability[:, 1, 1].mean()))
    assert (row["low"], row["high"]) == pytest.approx((float(low[1, 1]), float(high[1, 1])))
    assert row["low"] < row["probability"] < row["high"]
    assert (row["source"], row["prompts"]) == ("fr", 3)
    alike = {"fr": ["mer", "sel"], "en": ["milk", "salt"]}
    assert words.latent_table(model, tokenizer, alike, shots=1) == []


def test_batches_change_nothing():
    prompts = ["la mer est la", "b", "fleur: 花", "x y"]
    asked = {"zh": ["花", "海", "水", "山"], "en": ["flower", "sea", "water", "mountain"]}
    model = byte_llama()
    together = latent_language(model, byte_tokenizer(), prompts, asked)
    alone = latent_language(model, byte_tokenizer(), prompts, asked, token_budget=1)
    torch.testing.assert_close(together.probability, alone.probability, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("prompts", "asked", "error", "message"),
    [
        (["a", "b"], {"fr": ["mer"]}, ConfigError, "each of 2 prompts, found 1 of fr"),
        ([], {"fr": []}, ConfigError, "each of 0 prompts"),
        (["a"], {"zh": ["花"]}, DataError, "no token of this tokenizer begins the word '花'"),
        (["a"], {"xx": ["a"]}, ConfigError, "unknown language"),
    ],
)
def test_errors(prompts, asked, error, message):
    with pytest.raises(error, match=message):
        latent_language(tiny.tiny_model("llama"), letters(), prompts, asked)
