"""Official readings of answers and summaries, so that a number can be compared with a published one.

Babelscope's own readings are in `metrics`. `docs/answers.md` says where the two differ, and counts it on real data.
"""

from __future__ import annotations

import difflib
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from babelscope.errors import MissingDependencyError

_ENGLISH_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
MLQA_ARTICLES: Mapping[str, re.Pattern[str] | None] = {
    "en": _ENGLISH_ARTICLES,
    "es": re.compile(r"\b(?:un|una|unos|unas|el|la|los|las)\b"),
    "hi": None,
    "vi": re.compile(r"\b(?:của|là|cái|chiếc|những)\b"),
    "de": re.compile(r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
    "ar": re.compile("ال"),
    "zh": None,
}
"""What MLQA's script leaves out, by its seven languages. In Arabic it takes the article out of words too, wherever it
stands."""
_IDEOGRAPH = re.compile("([\u4e00-\u9fa5])")
_CMRC_MARKS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""Marks that CMRC 2018's script deletes. Its list holds an ellipsis of two characters: equal to none, it stays."""


def squad_words(text: str, language: str = "en") -> list[str]:
    """The words of an answer by SQuAD v1.1's script: English articles and ASCII punctuation are deleted.

    Args:
        text: the answer.
        language: not used; XQuAD's published numbers are read in the same way in all languages.

    Source: evaluate-v1.1.py of SQuAD.
    """
    bare = text.lower().translate(_ascii_marks())
    return _ENGLISH_ARTICLES.sub(" ", bare).split()


def mlqa_words(text: str, language: str) -> list[str]:
    """The words of an answer by MLQA's script: without articles and punctuation; Chinese is split to letters.

    Args:
        text: the answer.
        language: one of `MLQA_ARTICLES`.

    Source: mlqa_evaluation_v1.py of MLQA.
    """
    bare, articles = text.lower().translate(_all_marks()), MLQA_ARTICLES[language]
    if articles is not None:
        bare = articles.sub(" ", bare)
    return (_IDEOGRAPH.sub(r" \1 ", bare) if language == "zh" else bare).split()


def cmrc_segments(text: str) -> list[str]:
    """The segments of an answer by CMRC 2018's script: Chinese letters, and words of other scripts as NLTK parts them.

    The script also splits runs of other scripts into sentences first, with data that NLTK downloads. That is left out.

    Source: cmrc2018_evaluate.py, version 5.
    """
    words = _nltk_words()
    segments: list[str] = []
    for part in _IDEOGRAPH.split(text.lower().strip().translate(_CMRC_MARKS)):
        segments += [part] if _IDEOGRAPH.fullmatch(part) else words(part)
    return segments


Words = Callable[[str, str], list[str]]


def _exact(words: Words, answer: str, references: Sequence[str], language: str) -> float:
    found = words(answer, language)
    return float(any(found == words(reference, language) for reference in references))


def _overlap(words: Words, answer: str, references: Sequence[str], language: str) -> float:
    """F1 over words. Unlike SQuAD v2's, it is 0 where neither has a word."""

    def f1(found: list[str], wanted: list[str]) -> float:
        common = sum((Counter(found) & Counter(wanted)).values())
        return 2 * common / (len(found) + len(wanted)) if common else 0.0

    found = words(answer, language)
    return max(f1(found, words(reference, language)) for reference in references)


def _cmrc_exact(answer: str, references: Sequence[str]) -> float:
    bare = answer.lower().strip().translate(_CMRC_MARKS)
    return float(any(bare == reference.lower().strip().translate(_CMRC_MARKS) for reference in references))


def _cmrc_f1(answer: str, references: Sequence[str]) -> float:
    """F1 over the longest run of segments that both have."""

    def f1(found: list[str], wanted: list[str]) -> float:
        run = difflib.SequenceMatcher(None, found, wanted, autojunk=False).find_longest_match().size
        return 2 * run / (len(found) + len(wanted)) if run else 0.0

    found = cmrc_segments(answer)
    return max(f1(found, cmrc_segments(reference)) for reference in references)


def has(metric: str, language: str) -> bool:
    """Whether a metric is defined in a language: MLQA's in its seven, CMRC 2018's in Chinese, all others in all."""
    if metric.startswith("mlqa_"):
        return language in MLQA_ARTICLES
    return language == "zh" or not metric.startswith("cmrc_")


def answer_scores(answer: str, references: Sequence[str], language: str) -> dict[str, float]:
    """Official scores of an answer, between 0 and 1: those of `ANSWER_METRICS` that the language has."""
    scores = {
        "squad_exact_match": _exact(squad_words, answer, references, language),
        "squad_f1": _overlap(squad_words, answer, references, language),
    }
    if language in MLQA_ARTICLES:
        scores["mlqa_exact_match"] = _exact(mlqa_words, answer, references, language)
        scores["mlqa_f1"] = _overlap(mlqa_words, answer, references, language)
    if language == "zh":
        scores["cmrc_exact_match"] = _cmrc_exact(answer, references)
        scores["cmrc_f1"] = _cmrc_f1(answer, references)
    return scores


ANSWER_METRICS = ("squad_exact_match", "squad_f1", "mlqa_exact_match", "mlqa_f1", "cmrc_exact_match", "cmrc_f1")
SUMMARY_METRICS = ("google_rouge_l", "xlsum_rouge_1", "xlsum_rouge_2", "xlsum_rouge_l")


def summary_scores(summary: str, reference: str, language: str) -> dict[str, float]:
    """ROUGE F1 between 0 and 1: of google's rouge_score, without stemming, and with XL-Sum's tokenizers.

    Raises:
        MissingDependencyError: rouge-score is not installed, or jieba for Chinese, or pythainlp for Thai.
    """
    google = _google().score(reference, summary)
    xlsum = _xlsum(language).score(reference, summary)
    return {
        "google_rouge_l": float(google["rougeL"].fmeasure),
        "xlsum_rouge_1": float(xlsum["rouge1"].fmeasure),
        "xlsum_rouge_2": float(xlsum["rouge2"].fmeasure),
        "xlsum_rouge_l": float(xlsum["rougeL"].fmeasure),
    }


class XLSumTokenizer:
    """Words as XL-Sum's ROUGE has them: punctuation parts words, then a segmenter of the language does, if it has one.

    Chinese is segmented by jieba and Thai by pythainlp, whose spaces count as words there. In all other languages
    letters, digits and symbols are parted, and ideographs stand alone. XL-Sum's stemmers are left out.

    Args:
        language: its code.

    Source: multilingual_rouge_scoring of csebuetnlp/xl-sum.
    """

    def __init__(self, language: str) -> None:
        self._segment = _segmenter(language)

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in lower case."""
        sanitized = " ".join(_sanitized(text.lower().strip()).split())
        return [word for word in self._segment(sanitized) if word]


def _sanitized(text: str) -> str:
    """Controls left out, and a space for every space and mark of punctuation."""
    marks = _all_marks()
    shown = (
        character
        for character in text
        if character in "\t\n\r" or (character != "\ufffd" and unicodedata.category(character)[0] != "C")
    )
    return "".join(" " if ord(character) in marks else character for character in shown)


def _segmenter(language: str) -> Callable[[str], list[str]]:
    if language == "zh":
        jieba = _import("jieba", "jieba")
        jieba.setLogLevel("ERROR")
        return lambda text: list(jieba.cut(text))
    if language == "th":
        newmm = _import("pythainlp.tokenize", "pythainlp")
        return lambda text: list(newmm.word_tokenize(text, engine="newmm"))
    return _runs


def _runs(text: str) -> list[str]:
    """Runs of letters, runs of digits, and single other characters, each with the marks on it; ideographs alone."""
    pieces: list[str] = []
    last = ""
    for character in text:
        category = unicodedata.category(character)
        kind = "letter" if category[0] == "L" else "digit" if category == "Nd" else category[0]
        if pieces and last and (kind == "M" or (kind == last and kind in ("letter", "digit"))):
            pieces[-1] += character
        elif character.isspace():
            last = ""
        else:
            pieces.append(character)
            last = kind
    return [word for piece in pieces for word in _CJK.sub(r" \1 ", piece).split()]


_CJK = re.compile(
    "([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f])"
)


@cache
def _ascii_marks() -> dict[int, None]:
    return dict.fromkeys(map(ord, string.punctuation))


@cache
def _all_marks() -> dict[int, None]:
    marks = (code for code in range(sys.maxunicode) if unicodedata.category(chr(code))[0] == "P")
    return {**dict.fromkeys(marks), **_ascii_marks()}


@cache
def _nltk_words() -> Callable[[str], list[str]]:
    tokenizer = _import("nltk.tokenize", "nltk").NLTKWordTokenizer()
    return lambda text: list(tokenizer.tokenize(text))


@cache
def _google() -> Any:
    return _import("rouge_score.rouge_scorer", "rouge-score").RougeScorer(["rougeL"])


@cache
def _xlsum(language: str) -> Any:
    rouge = _import("rouge_score.rouge_scorer", "rouge-score")
    return rouge.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=XLSumTokenizer(language))


def _import(module: str, package: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f'this score needs {package}: pip install "babelscope[official]"') from error
