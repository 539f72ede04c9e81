"""The paper's way to name a language: an identifier of whole texts, applied to the likeliest token's string.

It is a variant for comparison. Identifiers are made for sentences; a sub-word of three letters tells them little.

Source: paper, section 2.2 and figure 1 (cld3).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from babelscope.errors import ConfigError, MissingDependencyError
from babelscope.languages import get_language
from babelscope.lens.tokens import token_script

IDENTIFIERS = ("lingua", "cld3")
_SURE = 0.5
"""Confidence under which lingua abstains."""


class Guess(NamedTuple):
    """What an identifier takes a text for."""

    language: str
    """One of those it was asked about; empty for another language, or none."""
    confidence: float
    """Probability that it gives to its answer, whether or not that is one of those."""
    sure: bool
    """False where it would rather abstain."""


def identifier(name: str, languages: Sequence[str]) -> Callable[[str], str]:
    """A function from a text to one of the languages; to an empty string for another language, or none.

    Arguments and errors are those of `guesser`; here it abstains where it isn't sure, and isn't asked about texts
    without letters.
    """
    guess = guesser(name, languages)

    @functools.cache
    def of(text: str) -> str:
        if not token_script(text.encode()):
            return ""
        found = guess(text)
        return found.language if found.sure else ""

    return of


def guesser(name: str, languages: Sequence[str]) -> Callable[[str], Guess]:
    """A function from a text to what an identifier takes it for, sure or not.

    Args:
        name: `lingua` (chooses among the languages; sure from a confidence of one half) or `cld3` (chooses among all
            its languages; sure where it calls itself reliable; of the packages gcld3 and pycld3, which bind it, the
            first that is there).
        languages: codes.

    Raises:
        ConfigError: an unknown name, or a language that lingua lacks.
        MissingDependencyError: the package isn't installed.
    """
    if name not in IDENTIFIERS:
        raise ConfigError(f"wanted an identifier among {', '.join(IDENTIFIERS)}, found {name!r}. Correct the name.")
    return (_lingua if name == "lingua" else _cld3)(languages)


def _lingua(languages: Sequence[str]) -> Callable[[str], Guess]:
    try:
        import lingua
    except ImportError as error:
        raise MissingDependencyError('the identifier lingua is missing: pip install "babelscope[eval]"') from error
    known: dict[str, Any] = {each.iso_code_639_1.name.lower(): each for each in lingua.Language.all()}
    known["no"] = known["nb"]
    lacking = [language for language in languages if language not in known]
    if lacking:
        raise ConfigError(f"lingua does not know {', '.join(lacking)}. Leave them out, or use the profile.")
    code = {known[language]: language for language in languages}
    detector = lingua.LanguageDetectorBuilder.from_languages(*code).build()

    def guess(text: str) -> Guess:
        best = detector.compute_language_confidence_values(text)[0]
        return Guess(code[best.language], best.value, best.value >= _SURE)

    return guess


def _cld3(languages: Sequence[str]) -> Callable[[str], Guess]:
    ask = _cld3_binding()

    def guess(text: str) -> Guess:
        found = ask(text)
        if found is None:
            return Guess("", 0.0, False)
        try:
            language = get_language(found.language).code
        except ConfigError:
            language = ""  # `und`, or romanised text such as `el-Latn`, that nobody asked for
        return Guess(language if language in languages else "", found.probability, found.is_reliable)

    return guess


def _cld3_binding() -> Callable[[str], Any]:
    """From a text to something with `language`, `probability`, `is_reliable`; to None (pycld3, a text of nothing)."""
    try:
        gcld3 = importlib.import_module("gcld3")
    except ImportError:
        try:
            ask: Callable[[str], Any] = importlib.import_module("cld3").get_language
        except ImportError as error:
            raise MissingDependencyError(
                "the identifier cld3 is missing: pip install gcld3 (which builds it: needs protoc and the headers of "
                "protobuf). Or use the identifier lingua."
            ) from error
        return ask
    # Its own least length is 140 bytes, which no token has.
    ask = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000).FindLanguage
    return ask
