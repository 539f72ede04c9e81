"""What a report calls a language: names where data hold codes, one colour each, and where its texts begin."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from babelscope.errors import ConfigError
from babelscope.languages import get_language

Records = Sequence[Mapping[str, Any]]
COLOURS = (
    "#246dce", "#ceb618", "#860c61", "#61ce9e", "#793100", "#b6b6f3",
    "#796d00", "#3d3d9e", "#c28655", "#619eaa", "#866186", "#6d92ff",
)  # fmt: skip
"""Of languages; made to be told apart on white and on black, and by people who don't see all
hues."""
GREY = "#9aa0a8"


_FIRST = ("en", "zh", "fr", "de", "es", "ru", "vi", "th", "ja", "ar", "sw", "hi")
"""Languages with a place of their own among the colours."""


def is_language(code: str) -> bool:
    """Whether this is a language's code or name."""
    try:
        get_language(code)
    except ConfigError:
        return False
    return True


def name_of(code: str) -> str:
    """A language's English name; anything else as it is."""
    return get_language(code).name if is_language(code) else code


def with_names(records: Records, *fields: str) -> list[dict[str, Any]]:
    """Codes of languages become names in fields that hold nothing else: `no` is Norwegian only among its like."""
    whole = [field for field in fields if all(is_language(row[field]) for row in records)]
    return [{**row, **{field: name_of(row[field]) for field in whole}} for row in records]


def language_colours(codes: Sequence[str]) -> dict[str, str]:
    """A colour for each code, whatever their order; grey for what is no language.

    A language keeps its colour from figure to figure and from report to report: its own place in `COLOURS`, and only
    where an earlier code of the alphabet has that place already, the next one that is free.
    """
    known = sorted({get_language(code).code for code in codes if is_language(code)}, key=_preference)
    taken: dict[str, int] = {}
    for code in known:
        first = _preference(code)[1]
        places = [(first + step) % len(COLOURS) for step in range(len(COLOURS))]
        taken[code] = next((place for place in places if place not in taken.values()), first)
    return {code: COLOURS[taken[get_language(code).code]] if is_language(code) else GREY for code in codes}


def _preference(code: str) -> tuple[int, int, str]:
    """The rank of a language and its place among the colours: first those that most studies hold."""
    if code in _FIRST:
        return 0, _FIRST.index(code), code
    return 1, zlib.crc32(code.encode()) % len(COLOURS), code


def reads_from_right(records: Records) -> bool:
    """Whether most tokens of the first layer, nearest the prompt's own, are of languages written from the right."""
    first = min((row["layer"] for row in records), default=0)
    codes = [row["language_code"] for row in records if row["layer"] == first and is_language(row["language_code"])]
    from_right = sum(get_language(code).direction == "rtl" for code in codes)
    return 2 * from_right > len(codes)


def visible(token: str) -> str:
    """A token on one line: line breaks and tabs as symbols, a leading space as a dot, control characters as U+FFFD.

    Those are no XML, on which vl-convert ends the process, and could turn the direction of what is around them.
    """
    for character, shown in (("\n", "⏎"), ("\t", "⇥"), ("\r", "␍")):
        token = token.replace(character, shown)
    token = "·" + token[1:] if token.startswith(" ") else token
    return "".join(each if each.isprintable() else "\ufffd" for each in token)
