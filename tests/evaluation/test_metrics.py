"""Metrics of an answer: cases worked by hand in many scripts, and the official SQuAD F1 in English."""

from __future__ import annotations

import collections
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babelscope.evaluation.metrics import (
    contains,
    exact_match,
    last_number,
    rouge_l,
    stated_number,
    token_f1,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我喜欢北京。", ["我", "喜", "欢", "北", "京"]),
        ("NFL联盟 2016年", ["nfl", "联", "盟", "2016", "年"]),
        ("ＮＦＬ", ["nfl"]),
        ("ฉันรักไทย", ["ฉั", "น", "รั", "ก", "ไ", "ท", "ย"]),
        ("السؤال، الأول؟", ["السؤال", "الأول"]),
        ("Привет, МИР!", ["привет", "мир"]),
        ("हिंदी भाषा।", ["हिंदी", "भाषा"]),
        ("ソウルの学校", ["ソ", "ウ", "ル", "の", "学", "校"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("Straße l'été", ["strasse", "l", "été"]),
        (" …!? ", []),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


# Shared words or letters, of the answer's and of the reference's: worked by hand.
OVERLAPS = [
    ("zh", "北京市", "北京", 2, 3, 2),
    ("zh", "在1066年", "1066年", 2, 3, 2),
    ("th", "กรุงเทพมหานคร", "กรุงเทพ", 6, 12, 6),
    ("ar", "في القاهرة", "القاهرة", 1, 2, 1),
    ("ru", "в Москве.", "Москве", 1, 2, 1),
    ("hi", "नई दिल्ली में", "नई दिल्ली", 2, 3, 2),
    ("fr", "la tour Eiffel", "tour Eiffel", 2, 3, 2),
    ("en", "the Eiffel Tower", "Eiffel tower in Paris", 2, 2, 4),
]


@pytest.mark.parametrize(("language", "answer", "reference", "shared", "found", "wanted"), OVERLAPS)
def test_f1_and_containment(language, answer, reference, shared, found, wanted):
    precision, recall = shared / found, shared / wanted
    assert token_f1(answer, [reference], language) == pytest.approx(2 * precision * recall / (precision + recall))
    assert token_f1(answer, ["?!", reference], language) == token_f1(answer, [reference], language), "the best one"
    assert exact_match(answer, [reference], language) == 0
    assert exact_match(answer, ["x", f" {answer.upper()}!"], language) == 1
    assert contains(answer, [reference], language) == (shared == wanted)
    assert contains(answer, ["x", answer], language) == 1


def test_containment_wants_words_in_a_row_and_whole_ones():
    assert contains("Paris, not New Delhi", ["New Delhi"], "en") == 1
    assert contains("a new town near Delhi", ["New Delhi"], "en") == 0
    assert contains("Parisian", ["Paris"], "fr") == 0
    assert contains("不是北方的京城", ["北京"], "zh") == 0
    assert contains("anything", ["!"], "fr") == 0, "a reference without words is in no answer"


def test_articles_are_left_out_of_english_only():
    assert exact_match("the end", ["end"], "en") == 1
    assert exact_match("a fin", ["fin"], "fr") == 0


def official_f1(answer: str, reference: str) -> float:
    """compute_f1 of the SQuAD 2.0 evaluation script, written again from its definition."""

    def tokens(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    gold, predicted = tokens(reference), tokens(answer)
    if not gold or not predicted:
        return float(gold == predicted)
    same = sum((collections.Counter(gold) & collections.Counter(predicted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(gold)
    return 2 * precision * recall / (precision + recall)


PIECES = ["the", "The", "a", "an", "cat", "Cat's", "sat.", "on,", "mat-like", "1,000", "(1.5%)", "Theatre", "café", "—"]
ENGLISH = st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join)


@given(ENGLISH, st.lists(ENGLISH, min_size=1, max_size=3))
def test_official_squad_f1_in_english(answer, references):
    assert token_f1(answer, references, "en") == pytest.approx(max(official_f1(answer, each) for each in references))


def longest_common(first: list[str], second: list[str]) -> int:
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + longest_common(first[1:], second[1:])
    return max(longest_common(first[1:], second), longest_common(first, second[1:]))


LETTERS = st.text(alphabet="东西南 ", max_size=7)


@given(LETTERS, LETTERS)
def test_rouge_l_by_its_definition(summary, reference):
    found, wanted = words(summary), words(reference)
    if not found or not wanted:
        assert rouge_l(summary, reference) == float(found == wanted)
        return
    common = longest_common(found, wanted)
    precision, recall = common / len(found), common / len(wanted)
    expected = 2 * precision * recall / (precision + recall) if common else 0
    assert rouge_l(summary, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("summary", "reference", "common", "found", "wanted"),
    [
        ("中国队赢了", "中国队今天赢了比赛", 5, 5, 9),
        ("Москва победила", "Вчера Москва снова победила", 2, 2, 4),
        ("ไทยชนะ", "ไทยแพ้", 3, 6, 5),
        ("القاهرة مدينة كبيرة", "مدينة القاهرة كبيرة", 2, 3, 3),
        ("दिल्ली जीती", "आज दिल्ली जीती", 2, 2, 3),
    ],
)
def test_rouge_l_in_many_scripts(summary, reference, common, found, wanted):
    assert (len(words(summary)), len(words(reference))) == (found, wanted)
    assert rouge_l(summary, reference) == pytest.approx(2 * common / (found + wanted))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", 18),
        ("Es sind 18 Eier.", 18),
        ("$2,125.", 2125),
        ("80.000 US-Dollar", 80000),
        ("1 Million: 1.234.567", 1234567),
        ("1,00,000 रुपये", 100000),
        ("1.234,56", 1234.56),
        ("1,234.56", 1234.56),
        ("3,5", 3.5),
        ("2.50", 2.5),
        ("0.125", 0.125),
        ("1\u202f234\u00a0€", 1234),
        ("1'234", 1234),
        ("٤٢", 42),
        ("٣٫٥", 3.5),
        ("١٬٢٣٤", 1234),
        ("१२", 12),
        ("๑๘ บาท", 18),
        ("答案是１８。", 18),
        ("-5", -5),
        ("it is \u22125", -5),
        ("10-15", 15),
        ("COVID-19", 19),
        ("12 - 5 = 7", 7),
        ("nothing", None),
        ("", None),
    ],
)
def test_last_number(text, expected):
    assert last_number(text) == expected


def test_stated_number_is_the_strict_reading():
    assert stated_number("3 + 4 = 7\n#### 7") == 7
    assert stated_number("####-7 of 9") == -7
    assert stated_number("#### 1,250\nQuestion: 3") == 1250
    assert stated_number("the answer is 7") is None
    assert stated_number("#### seven 7") is None
    assert stated_number("## 7") is None
