"""The paper's way to name a language: an identifier of whole texts, applied to the likeliest token's string.

It is a variant for comparison. Identifiers are made for sentences; a sub-word of three letters tells them little.

Source: paper, section 2.2 and figure 1 (cld3).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from babelscope.errors import ConfigError, MissingDependencyError
from babelscope.languages import get_language
from babelscope.lens.tokens import token_script

IDENTIFIERS = ("lingua", "cld3")
_SURE = 0.5
"""Confidence under which lingua abstains."""


def identifier(name: str, languages: Sequence[str]) -> Callable[[str], str]:
    """A function from a text to one of the languages; to an empty string for another language, or none.

    Args:
        name: `lingua` (chooses among the languages, abstains below a confidence of one half) or `cld3` (chooses among
            all its languages, abstains where it calls itself unreliable; of the packages gcld3 and pycld3, which bind
            it, the first that is there).
        languages: codes.

    Raises:
        ConfigError: an unknown name, or a language that lingua lacks.
        MissingDependencyError: the package isn't installed.
    """
    if name not in IDENTIFIERS:
        raise ConfigError(f"wanted an identifier among {', '.join(IDENTIFIERS)}, found {name!r}. Correct the name.")
    find = (_lingua if name == "lingua" else _cld3)(languages)

    @functools.cache
    def of(text: str) -> str:
        return find(text) if token_script(text.encode()) else ""

    return of


def _lingua(languages: Sequence[str]) -> Callable[[str], str]:
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

    def find(text: str) -> str:
        best = detector.compute_language_confidence_values(text)[0]
        return code[best.language] if best.value >= _SURE else ""

    return find


def _cld3(languages: Sequence[str]) -> Callable[[str], str]:
    ask = _cld3_binding()

    def find(text: str) -> str:
        found = ask(text)
        if found is None or not found.is_reliable:
            return ""
        try:
            language = get_language(found.language).code
        except ConfigError:
            return ""  # `und`, or romanised text such as `el-Latn`, that nobody asked for
        return language if language in languages else ""

    return find


def _cld3_binding() -> Callable[[str], Any]:
    """From a text to something with `language` and `is_reliable`, or to None (pycld3, for a text of nothing)."""
    try:
        gcld3 = importlib.import_module("gcld3")
    except ImportError:
        try:
            cld3 = importlib.import_module("cld3")
        except ImportError as error:
            raise MissingDependencyError(
                "the identifier cld3 is missing: pip install gcld3 (which builds it: needs protoc and the headers of "
                "protobuf). Or use the identifier lingua."
            ) from error
        ask: Callable[[str], Any] = cld3.get_language
        return ask
    # Its own least length is 140 bytes, which no token has.
    identifier: Callable[[str], Any] = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000).FindLanguage
    return identifier
