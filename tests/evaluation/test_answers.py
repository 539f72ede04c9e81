"""Answers against references in ten languages, and readings of any text: no exception, no hang.

The right values follow from the official SQuAD rule, applied by hand: case and punctuation don't count, words do.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babelscope.evaluation.letters import choice_letter
from babelscope.evaluation.metrics import contains, exact_match, token_f1
from babelscope.evaluation.numbers import READINGS

# language, answer, reference, exact match, contains: by SQuAD's rule (delete punctuation, compare words), by hand
PAIRS = [
    (language, answer, reference, exact, within)
    for language in ("en", "de", "fr", "es", "ru", "zh", "vi", "th", "ar", "sw")
    for answer, reference, exact, within in (
        ("1,000", "1000", 1, 1),
        ("1.345.596", "345", 0, 0),
        ("Wi-Fi", "WiFi", 1, 1),
        ("Wi\u00adFi", "WiFi", 1, 1),
        ("Wi\u200dFi", "wifi", 1, 1),
        ("\u200eWiFi\u200f", "WiFi", 1, 1),
        ("U.S.A.", "USA", 1, 1),
        ("308", "1308", 0, 0),
        ("(42)", "42", 1, 1),
    )
] + [
    ("es", "1.345.596 habitants", "345", 0, 0),
    ("es", "1.345.596 habitantes", "1345596", 0, 1),
    ("de", "1.000 Jahre", "1000 Jahre", 1, 1),
    ("fr", "l'été", "l’été", 1, 1),
    ("fr", "«Paris»", "Paris", 1, 1),
    ("fr", "Parisien", "Paris", 0, 0),
    ("fr", "CAFÉ", "cafe\u0301", 1, 1),
    ("de", "Straße", "STRASSE", 1, 1),
    ("de", "Donau\u00addampf", "Donaudampf", 1, 1),
    ("es", "¿Madrid?", "Madrid", 1, 1),
    ("ru", "«Москва»", "москва", 1, 1),
    ("ru", "в Москве", "Москве", 0, 1),
    ("zh", "308分。", "308 分", 1, 1),
    ("zh", "北京，上海", "上海", 0, 1),
    ("zh", "Paris，London", "London", 0, 1),
    ("zh", "１，０００", "1000", 1, 1),
    ("zh", "《红楼梦》", "红楼梦", 1, 1),
    ("vi", "Hà Nội.", "hà nội", 1, 1),
    ("vi", "Ha\u0300 Nội", "Hà Nội", 1, 1),
    ("th", "กรุงเทพฯ", "กรุงเทพ", 0, 1),
    ("th", "กรุง\u200bเทพ", "กรุงเทพ", 1, 1),
    ("ar", "القاهرة،", "القاهرة", 1, 1),
    ("ar", "\u200fالقاهرة\u200f", "القاهرة", 1, 1),
    ("ar", "؟نعم", "نعم", 1, 1),
    ("sw", "Ng'ombe", "Ng’ombe", 1, 1),
    ("sw", "mji wa Nairobi", "Nairobi", 0, 1),
    ("en", "The end", "end", 1, 1),
]


@pytest.mark.parametrize(("language", "answer", "reference", "exact", "within"), PAIRS)
def test_pairs(language, answer, reference, exact, within):
    assert len(PAIRS) >= 100
    assert exact_match(answer, [reference], language) == exact
    assert contains(answer, [reference], language) == within
    assert token_f1(answer, [reference], language) == 1 or not exact


@given(st.text(max_size=200), st.sampled_from(["en", "de", "zh", "ar", None]))
def test_any_text_has_readings(text, language):
    for read in READINGS.values():
        value = read(f"#### {text}\\boxed{{{text}", language)
        assert value is None or isinstance(value, float)
    assert choice_letter(text, ["A", "B"]) in {"A", "B", None}
    exact_match(text, [text[::-1]], language or "fr")


LONG = [
    "1",
    "1 ",
    "1,",
    "1.",
    "1 000 ",
    "#",
    "#### ",
    "#### (",
    "\\boxed{",
    "-",
    "A ",
    "A a ",
    "answer is the ",
    "$",
    " ",
    "١",
    "{,}",
    "А ",
]


@pytest.mark.parametrize("piece", LONG)
def test_a_megabyte_takes_no_longer_than_its_length(piece):
    text = piece * (500_000 // len(piece))
    begun = time.process_time()
    for read in READINGS.values():
        read(text, "en")
    choice_letter(text, ["A", "B"])
    exact_match(text, ["x"], "fr")
    assert time.process_time() - begun < 30
