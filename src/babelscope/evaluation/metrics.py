"""Scores of one generated answer against its references, right in every script.

Words are what a script puts between spaces; scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are
compared letter by letter, a letter being a character with the marks that sit on it. Splitting on spaces alone, as the
English metrics do, makes of a Chinese answer one word, so that F1 and ROUGE are 0 or 1 and nothing between.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from babelscope.evaluation.numbers import last_number, stated_number

__all__ = [
    "answer_words",
    "contains",
    "exact_match",
    "last_number",
    "rouge_l",
    "stated_number",
    "token_f1",
    "words",
]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
"""Left out of English answers, as the official SQuAD script does. Other languages keep theirs, as in XQuAD's published
use of that script."""
_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f"
_UNIT = re.compile(rf"[{_NO_SPACES}\U00020000-\U0003ffff]|[^\s{_NO_SPACES}\U00020000-\U0003ffff]+")
_WIDE = re.compile(
    r"(?<!\d)[\u3000-\u3003\u3008-\u3020\u30fb\uff01-\uff0f\uff1a-\uff20]|"
    r"[\u3000-\u3003\u3008-\u3020\u30fb\uff01-\uff0f\uff1a-\uff20](?!\d)"
)
"""Full-width marks that are not between digits: they part words, since no space follows them."""
_TATWEEL = "\u0640"
_ZERO_SPACE = "\u200b"
"""A space of no width parts words. Others of its category (joiners, directions, soft hyphens) stand inside of them."""


def words(text: str) -> list[str]:
    """A text as the units that overlap is counted in: words, or letters where the script has no spaces.

    Punctuation is left out, case folded, compatibility forms unified (NFKC).
    """
    folded = _visible(unicodedata.normalize("NFKC", text)).casefold()
    spaced = "".join(" " if unicodedata.category(character)[0] in "PSZC" else character for character in folded)
    return _units(spaced)


def _visible(text: str) -> str:
    """A text without the characters that show nothing and stand inside of words, and without Arabic's stretching."""
    if text.isascii():
        return text
    spaced = text.replace(_ZERO_SPACE, " ").replace(_TATWEEL, "")
    return "".join(character for character in spaced if unicodedata.category(character) != "Cf")


def _units(spaced: str) -> list[str]:
    units: list[str] = []
    for unit in _UNIT.findall(spaced):
        marks = all(unicodedata.category(character)[0] == "M" for character in unit)
        if marks and units:
            units[-1] += unit
        else:
            units.append(unit)
    return units


def answer_words(text: str, language: str) -> list[str]:
    """The words of an answer, as the official SQuAD script has them: punctuation is deleted, so 1,000 is 1000.

    English is read exactly so, but for characters that show nothing. In other languages punctuation and symbols of all
    scripts are deleted, compatibility forms unified (NFKC), articles kept, and scripts without spaces split to letters.
    """
    if language != "en":
        folded = unicodedata.normalize("NFKC", _visible(_WIDE.sub(" ", text))).casefold()
        bare = "".join(mark for mark in folded if unicodedata.category(mark)[0] not in "PSC" or mark.isspace())
        return _units(bare)
    bare = "".join(character for character in _visible(text).lower() if character not in string.punctuation)
    return _ARTICLES.sub(" ", bare).split()


def exact_match(answer: str, references: Sequence[str], language: str) -> float:
    """1 if the answer has the same words as one of the references, else 0 (SQuAD)."""
    return float(any(answer_words(answer, language) == answer_words(reference, language) for reference in references))


def contains(answer: str, references: Sequence[str], language: str) -> float:
    """1 if the words of one of the references occur in the answer, in a row, else 0."""
    found = answer_words(answer, language)

    def within(wanted: list[str]) -> bool:
        starts = range(len(found) - len(wanted) + 1)
        return bool(wanted) and any(found[start : start + len(wanted)] == wanted for start in starts)

    return float(any(within(answer_words(reference, language)) for reference in references))


def token_f1(answer: str, references: Sequence[str], language: str) -> float:
    """F1 over words, the best over the references, between 0 and 1 (SQuAD)."""
    return max(_f1(answer_words(answer, language), answer_words(reference, language)) for reference in references)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def rouge_l(summary: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words, between 0 and 1."""
    found, wanted = words(summary), words(reference)
    if not found or not wanted:
        return float(found == wanted)
    return 2 * _longest_common_subsequence(found, wanted) / (len(found) + len(wanted))


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    best = [0] * (len(second) + 1)
    for one in first:
        diagonal = 0
        for index, other in enumerate(second, 1):
            diagonal, best[index] = best[index], diagonal + 1 if one == other else max(best[index], best[index - 1])
    return best[-1]
