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

_ARTICLES = re.compile(r"\b(a|an|the)\b")
"""Left out of English answers, as the official SQuAD script does. Other languages keep theirs, as in XQuAD's published
use of that script."""
_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f"
_UNIT = re.compile(rf"[{_NO_SPACES}\U00020000-\U0003ffff]|[^\s{_NO_SPACES}\U00020000-\U0003ffff]+")
_NUMBER = re.compile(r"(?:(?<!\w)[-\u2212])?\d[\d.,'\u00a0\u202f\u066b\u066c]*")
"""A hyphen between digits or behind a letter is no minus: 10-15, COVID-19."""


def words(text: str) -> list[str]:
    """A text as the units that overlap is counted in: words, or letters where the script has no spaces.

    Punctuation is left out, case folded, compatibility forms unified (NFKC).
    """
    units: list[str] = []
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(" " if unicodedata.category(character)[0] in "PSZC" else character for character in folded)
    for unit in _UNIT.findall(spaced):
        marks = all(unicodedata.category(character)[0] == "M" for character in unit)
        if marks and units:
            units[-1] += unit
        else:
            units.append(unit)
    return units


def answer_words(text: str, language: str) -> list[str]:
    """The words of an answer as the official SQuAD script sees them in English, and `words` in other languages."""
    if language != "en":
        return words(text)
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
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


def stated_number(answer: str) -> float | None:
    """The number after `####`, as MGSM's solutions state it; None if there is none (the strict reading)."""
    match = re.search(rf"####\s*({_NUMBER.pattern})", answer)
    return _number(match[1]) if match else None


def last_number(answer: str) -> float | None:
    """The last number of an answer, in any digits; None if there is none (the flexible reading)."""
    found = _NUMBER.findall(answer)
    return _number(found[-1]) if found else None


def _number(text: str) -> float | None:
    """Digits of any script.

    Of two kinds of separators the last is the decimal one. One kind, several times, or once in front of three digits,
    groups thousands: MGSM's own answers are whole numbers. Any other is decimal.
    """
    digits = re.sub(r"[\u00a0\u202f'\u066c]", "", text).replace("\u2212", "-").rstrip(".,\u066b")
    if re.fullmatch(r"-?[^\W0]\d{0,2}[.,]\d{3}|[^.,]*([.,])[^.,]*(\1[^.,]*)+", digits):
        digits = re.sub(r"[.,]", "", digits)
    elif "," in digits and "." in digits:
        decimal = max(digits, key=lambda character: digits.rfind(character) if character in ".," else -1)
        digits = digits.replace("," if decimal == "." else ".", "").replace(decimal, ".")
    else:
        digits = digits.replace(",", ".").replace("\u066b", ".")
    try:
        return float(digits)
    except ValueError:
        return None
