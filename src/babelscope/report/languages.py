"""What a report calls a language: names where data hold codes, one colour each, and where its texts begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from babelscope.errors import ConfigError
from babelscope.languages import get_language
from babelscope.lens.charts import COLOURS, GREY

Records = Sequence[Mapping[str, Any]]


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
    """A colour for each code, in their order; grey for what is no language."""
    known = [code for code in dict.fromkeys(codes) if is_language(code)]
    return dict.fromkeys(codes, GREY) | {code: COLOURS[at % len(COLOURS)] for at, code in enumerate(known)}


def reads_from_right(records: Records) -> bool:
    """Whether most tokens of the first layer, nearest the prompt's own, are of languages written from the right."""
    first = min((row["layer"] for row in records), default=0)
    codes = [row["language_code"] for row in records if row["layer"] == first and is_language(row["language_code"])]
    from_right = sum(get_language(code).direction == "rtl" for code in codes)
    return 2 * from_right > len(codes)
