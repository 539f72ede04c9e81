"""XQuAD's answers, where the files are, by the SQuAD v1.1 rule and by ours; `docs/answers.md` explains."""

from __future__ import annotations

import os
import re
import string
from pathlib import Path

import pytest

from babelscope.evaluation.metrics import answer_words
from babelscope.evaluation.tasks.data import read_squad

SHARED = Path(os.environ.get("BABELSCOPE_SHARED", Path(__file__).parents[3] / "shared")) / "data/benchmarks/xquad"
GROUPED = re.compile(r"(?<=\d)[.,](?=\d{3})")


def squad_words(text: str) -> list[str]:
    """The rule of SQuAD v1.1, written again from its definition."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


@pytest.mark.skipif(not SHARED.is_dir(), reason="no XQuAD files in BABELSCOPE_SHARED or ../shared")
@pytest.mark.parametrize(
    ("language", "differ", "grouped"), [("en", 0, 26), ("de", 59, 29), ("es", 58, 0), ("ru", 30, 1), ("zh", 1046, 19)]
)
def test_differences_from_squad_are_the_documented_ones(language, differ, grouped):
    rows = read_squad(SHARED / f"xquad.{language}.json")
    answers = [answer for row in rows for answer in row["references"]]
    assert len(answers) == 1190
    assert sum(squad_words(answer) != answer_words(answer, language) for answer in answers) == differ
    numbers = [answer for answer in answers if re.search(r"\d[.,]\d{3}", answer)]
    assert len(numbers) == grouped
    for answer in numbers:
        assert answer_words(answer, language) == answer_words(GROUPED.sub("", answer), language)
