"""The vocabulary profile: counts against a naive count, what is no language, what one script tells, and errors."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from babelscope import VocabularyProfile
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.lens.tokens import token_bytes, token_script, token_text
from builders import byte_tokenizer, letters, make_texts
from fixtures_text import LETTERS, write_texts

TEXTS = {language: make_texts(language, 40) for language in LETTERS}


def words_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """A token per word between white space; the id of a word is its place after <unk>."""
    vocabulary = {word: number for number, word in enumerate(("<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def naive_posterior(tokenizer, texts, smoothing):
    """P(language | token) of every token that is one script's letters, written out for one script of all languages."""
    counts = {
        language: Counter(token for text in lines for token in tokenizer(text, add_special_tokens=False)["input_ids"])
        for language, lines in texts.items()
    }
    size = len(tokenizer)
    rows = []
    for token in range(size):
        weight, unknown = [], 0.0
        for each in counts.values():
            total = sum(each.values()) + smoothing * size
            weight.append(each[token] / total)
            unknown += smoothing / total
        whole = sum(weight) + unknown
        rows.append([*(value / whole for value in weight), unknown / whole])
    return rows


@pytest.mark.parametrize("smoothing", [0.1, 3.0])
def test_posterior_of_letters_is_the_naive_one(smoothing):
    tokenizer = letters()
    profile = VocabularyProfile.build(tokenizer, TEXTS, smoothing=smoothing)
    assert profile.languages == ("fr", "zh", "sw")
    assert profile.posterior.shape == (len(tokenizer), 4)
    assert profile.posterior.dtype == torch.float32
    expected = naive_posterior(tokenizer, TEXTS, smoothing)
    for letter in "aeioulmnrxqjzhgkwbtpc":
        token = tokenizer.convert_tokens_to_ids(letter)
        torch.testing.assert_close(profile.posterior[token], torch.tensor(expected[token]), atol=1e-6, rtol=0)
    torch.testing.assert_close(profile.posterior.sum(1), torch.ones(len(tokenizer)))


def test_what_is_no_language_is_all_in_the_last_column():
    tokenizer = letters()
    texts = {language: [f"{line} 12, 3." for line in lines] for language, lines in TEXTS.items()}
    profile = VocabularyProfile.build(tokenizer, texts)
    for token in ("1", ",", ".", "▁", "<s>", "<pad>"):
        assert profile.posterior[tokenizer.convert_tokens_to_ids(token)].tolist() == [0, 0, 0, 1]
    assert profile.counts[tokenizer.convert_tokens_to_ids("1")].tolist() == [40, 40, 40], "counted all the same"


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("word", "LATIN"),
        (" été", "LATIN"),
        ("слово", "CYRILLIC"),
        ("字", "CJK"),
        ("かな", "HIRAGANA"),
        ("ไทย", "THAI"),
        ("ี", "THAI"),
        ("كتاب", "ARABIC"),
        ("字かな", "HIRAGANA"),
        ("42", ""),
        ("...", ""),
        (" ", ""),
        ("<br", ""),
        ("&nbsp;", ""),
        ("snake_case", ""),
        ("https", ""),
        ("", ""),
    ],
)
def test_scripts_of_tokens(text, script):
    assert token_script(text.encode()) == script


def test_part_of_a_character_is_no_language_even_when_only_one_language_has_it():
    assert token_script("字".encode()[:2]) == ""
    assert token_script("字".encode() + "体".encode()[:1]) == "CJK", "a whole character beside it is"
    profile = VocabularyProfile.build(byte_tokenizer(), {"zh": ["字体大小"], "fr": ["le mot"]})
    token = byte_tokenizer()("字", add_special_tokens=False)["input_ids"][0]
    assert profile.counts[token].tolist() == [3, 0], "of 字, 大 and 小"
    assert profile.posterior[token].tolist() == [0, 0, 1]


@pytest.mark.parametrize("text", [" été", "字", "ไทย\n", "a\u00a0b"])
def test_bytes_of_byte_level_tokens(text):
    tokenizer = byte_tokenizer()
    spelled = token_bytes(tokenizer)
    assert b"".join(spelled[token] for token in tokenizer(text)["input_ids"]).decode() == text
    assert spelled[tokenizer.bos_token_id] == b""


def test_bytes_of_sentencepiece_tokens():
    vocabulary = {"<unk>": 0, "▁le": 1, "<0xE5>": 2, "mot": 3}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert token_bytes(fast) == [b"", b" le", b"\xe5", b"mot"]
    assert token_text(b"\xe5") == "\ufffd"


def test_script_of_a_single_language_makes_unseen_tokens_certain():
    tokenizer = words_tokenizer("un", "deux", "один", "два", "λόγος", "three")
    texts = {"fr": ["un deux un"] * 50, "ru": ["один один"] * 50, "en": ["three deux"] * 50}
    profile = VocabularyProfile.build(tokenizer, texts)
    by_word = dict(zip(tokenizer.convert_ids_to_tokens(range(7)), profile.posterior.tolist(), strict=True))
    assert by_word["два"] == [0, 1, 0, 0], "never seen, but Cyrillic is Russian here"
    assert by_word["λόγος"] == [0, 0, 0, 1], "no language here writes Greek"
    assert by_word["un"][0] > 0.99
    assert 0 < by_word["un"][3] < 0.01


def test_script_that_two_languages_write_stays_unknown_when_unseen():
    tokenizer = words_tokenizer("un", "one", "unseen")
    profile = VocabularyProfile.build(tokenizer, {"fr": ["un"] * 9, "en": ["one"] * 9})
    assert profile.posterior[3].tolist() == [0, 0, 1]


def test_words_quoted_in_a_foreign_script_are_not_the_quoting_language():
    tokenizer = words_tokenizer("mot", "字", "слово")
    texts = {"fr": ["mot " * 400 + "字"], "ru": ["слово " * 400]}
    profile = VocabularyProfile.build(tokenizer, texts)
    assert profile.posterior[2].tolist() == [0, 0, 1], "seen in French only, but French isn't written so"


def test_languages_count_the_same_whatever_the_size_of_their_texts():
    tokenizer = words_tokenizer("both", "un", "one")
    profile = VocabularyProfile.build(tokenizer, {"fr": ["both un"] * 10, "en": ["both one"] * 1000}, smoothing=1e-6)
    torch.testing.assert_close(profile.posterior[1, :2], torch.tensor([0.5, 0.5]), atol=1e-4, rtol=0)


def test_identify_is_the_largest_sum_of_logarithms():
    tokenizer = letters()
    profile = VocabularyProfile.build(tokenizer, TEXTS)
    size = len(tokenizer)
    counts = {
        language: Counter(token for text in lines for token in tokenizer(text, add_special_tokens=False)["input_ids"])
        for language, lines in TEXTS.items()
    }
    draw = random.Random(0)
    for _ in range(20):
        ids = tokenizer("".join(draw.choices("aeioulmnrxqjzhgkwbtp", k=5)), add_special_tokens=False)["input_ids"]
        sums = {
            language: sum(math.log((each[token] + 0.1) / (sum(each.values()) + 0.1 * size)) for token in ids)
            for language, each in counts.items()
        }
        assert profile.identify(ids) == max(sums, key=sums.__getitem__)
    with pytest.raises(DataError, match="without a token"):
        profile.identify([])


def test_evaluation_by_hand():
    """Two languages, `both` in either: half the tokens are certain and right, half are guesses of 0.5."""
    tokenizer = words_tokenizer("both", "un", "one", "2")
    profile = VocabularyProfile.build(
        tokenizer, {"fr": ["both un 2"] * 500, "en": ["both one 2"] * 500}, smoothing=1e-9
    )
    found = profile.evaluate(tokenizer, {"fr": ["both un 2", "un"], "en": ["both one", "un one one"]}, window=1)
    assert found.text_accuracy == {"fr": 1.0, "en": 1.0}
    assert found.token_accuracy["fr"] == pytest.approx(1.0), "a tie goes to the first; 2 is no language"
    assert found.token_accuracy["en"] == pytest.approx(3 / 5)
    # en: both (0.5, wrong), one, one, one (1, right), un (1, wrong); fr: both (0.5, right), un, un (1, right)
    half = (1 / 3 * (0.5 - 1) + 1 / 5 * 0.5) / 2
    sure = (1 / 5 * 1.0) / 2
    assert found.calibration_error == pytest.approx(abs(half) + abs(sure), abs=1e-6)
    assert found.window_accuracy["en"] == pytest.approx(3 / 5)


def test_a_calibrated_profile_has_a_small_error_and_a_spoilt_one_a_large():
    tokenizer = letters()
    profile = VocabularyProfile.build(tokenizer, {code: make_texts(code, 400) for code in LETTERS})
    held = {code: make_texts(code, 200) for code in LETTERS}
    assert profile.evaluate(tokenizer, held).calibration_error < 0.02
    spoilt = replace(profile, counts=profile.counts.roll(1, 1))
    assert spoilt.evaluate(tokenizer, held).calibration_error > 0.05


def test_saved_loaded_and_cached(tmp_path, monkeypatch):
    paths = write_texts(tmp_path / "texts")
    profile = VocabularyProfile.build(letters(), paths, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    loaded = VocabularyProfile.load(file)
    assert torch.equal(loaded.posterior, profile.posterior)
    assert (loaded.languages, loaded.tokenizer, loaded.corpora) == (
        profile.languages,
        profile.tokenizer,
        dict(profile.corpora),
    )
    assert profile.corpora["fr"]["documents"] == 14

    from babelscope.lens import vocabulary

    monkeypatch.setattr(vocabulary, "_count", None)  # nothing is counted again
    again = VocabularyProfile.build(letters(), paths, cache=tmp_path / "cache")
    assert torch.equal(again.posterior, profile.posterior)
    monkeypatch.undo()
    paths["fr"].write_text("other text\n", encoding="utf-8")
    changed = VocabularyProfile.build(letters(), paths, cache=tmp_path / "cache")
    assert changed.corpora["fr"]["tokens"] == 10
    VocabularyProfile.build(letters(), paths, cache=tmp_path / "cache", smoothing=0.2)
    VocabularyProfile.build(letters(), {"fr": ["mer"], "sw": (t for t in ["maji"])}, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3, "one-shot sources aren't kept"


def test_reads_as_many_documents_as_asked():
    profile = VocabularyProfile.build(letters(), {"fr": ["a"] * 1500, "sw": ["b"] * 3}, documents=1100)
    assert [each["documents"] for each in profile.corpora.values()] == [1100, 3]
    assert profile.counts.sum(0).tolist() == [1100, 3]


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ({"fr": ["la"]}, {}, ConfigError, "two or more different languages, found fr"),
        ({"fr": ["la"], "French": ["la"]}, {}, ConfigError, "different languages"),
        ({"fr": ["la"], "frensh": ["la"]}, {}, ConfigError, "unknown language 'frensh'"),
        ({"fr": ["la"], "sw": ["", ""]}, {}, DataError, "no text in a list of 2 texts"),
        ({"fr": ["la"], "sw": []}, {}, DataError, "is empty"),
        ({"fr": ["la"], "sw": ["la"]}, {"smoothing": 0}, ConfigError, "smoothing must be above 0"),
        ({"fr": ["la"], "sw": ["la"]}, {"documents": 0}, ConfigError, "documents must be at least 1"),
    ],
)
def test_errors(texts, options, error, message):
    with pytest.raises(error, match=message):
        VocabularyProfile.build(letters(), texts, **options)


def test_other_tokenizers_and_languages_are_refused():
    profile = VocabularyProfile.build(letters(), TEXTS)
    with pytest.raises(ProvenanceError, match="another tokenizer"):
        profile.evaluate(byte_tokenizer(), TEXTS)
    with pytest.raises(ConfigError, match="languages fr, zh, sw, not 'de'"):
        profile.evaluate(letters(), {"de": ["la"]})
    with pytest.raises(DataError, match="no text of fr"):
        profile.evaluate(letters(), {"fr": []})
