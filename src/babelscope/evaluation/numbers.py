r"""Numbers in answers, in any script and notation.

All decimal digits of Unicode are read. Spaces, apostrophes, underscores, `{,}`, `\,` and U+066C group digits. A point
or a comma before three digits is ambiguous: the language of the item decides (`DECIMAL_COMMA`).
"""

from __future__ import annotations

import math
import re
import unicodedata

_COMMA_CODES = """
az be bg bs ca cs da de el es et eu fi fr gl hr hu id is it ka kk lt lv mk nb nl nn no pl pt ro ru sk sl sq sr sv tr uk
uz vi
"""
DECIMAL_COMMA = frozenset(_COMMA_CODES.split())
"""Languages that write 3,5: there `1,234` is one and a bit, and `1.234` is a thousand.

In all others `1,234` is a thousand and `1.234` is one and a bit.
Source: the decimal symbols of Unicode CLDR.
"""
_MYRIADS = ("zh", "ja", "ko")
"""Languages that group four digits too: 1,0000."""

_DASHES = "\u2010\u2011\u2012\u2013\u2212\u207b\ufe63\uff0d"
_APOSTROPHES = "\u2019\u2018\u02bc\uff07\u2032\u00b4`"
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_GROUP = r"[ \u00a0\u2000-\u200a\u202f\u205f\u3000'_\u066c]"
_LATEX_GROUP = re.compile(r"(?<=\d)(?:\{[,.]\}|\\[,;: !]|\{\\,\}|~)(?=\d{3}(?!\d))")
_SQUARE_UNIT = re.compile(r"(?<![A-Za-z])([kcdm]?m)[\^]?[23](?!\w)")
_CURRENCY = (
    r"(?:[A-Z]{0,3}[$€£¥₩₫₽₹฿₱₺₦₴]|(?:USD|EUR|GBP|RUB|KES|TZS|VND|THB|CNY|RMB|JPY|INR|CHF|AED|SAR|EGP|"
    r"Ksh|KSh|TSh|Tsh|Sh|Rs)\b\.?)"
)
_SIGN = rf"(?:(?<![^\W{_UNSPACED}])(?<![)\]%.,])[-+](?={_CURRENCY}?[\d.]))"
_DIGITS = (
    rf"(?:(?<![\d.,\u066b])[1-9]\d{{0,2}}(?:{_GROUP}\d{{3}}(?![\d]))+(?:[.,\u066b]\d+)?"
    r"|\d+(?:[.,\u066b\u066c]\d+)*"
    r"|(?<![\w.,])[.,\u066b]\d+)"
)
_NUMBER = re.compile(rf"({_SIGN})?{_CURRENCY}?({_SIGN})?({_DIGITS})(?:[ ]?([万萬亿億]))?")
_MARKUP = rf"(?:[\s*_`:=~\"“”«(\[{{]|\\(?:boxed|text|textbf|mathbf|fbox|\(|\[|\$)|{_CURRENCY})"
_BEFORE = rf"((?:{_MARKUP}|[-+]\s?){{0,32}})"
_STATED = re.compile(rf"(?<!#)####+{_BEFORE}{_NUMBER.pattern}")
_BOXED = re.compile(rf"\\(?:boxed|fbox)\s?\{{{_BEFORE}{_NUMBER.pattern}")
_TIMES = {None: 1, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_LONGEST = 320
"""Digits that a float can tell apart from infinity, and some."""


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _DASHES:
        return "-"
    if character in _APOSTROPHES:
        return "'"
    if character == "\u060c":  # the Arabic comma
        return ","
    if "\uff01" <= character <= "\uff5e" or character in "﹐﹒﹩﹪":
        return unicodedata.normalize("NFKC", character)
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return "" if category == "Cf" or character in "\u034f\ufe0e\ufe0f" else character


def plain(text: str) -> str:
    """A text with ASCII digits, signs and apostrophes, without marks that show nothing (directions, joiners)."""
    if text.isascii():
        bare = text
    else:
        table = {ord(character): _plain_character(character) for character in set(text)}
        bare = text.translate(table)
    bare = _LATEX_GROUP.sub("\u066c", bare.replace("\\$", "$").replace("\\%", "%").replace("\\#", "#"))
    return _SQUARE_UNIT.sub(r"\1", bare)


def stated_number(answer: str, language: str | None = None) -> float | None:
    """The number after `####`, as MGSM's solutions state it; None if there is none (the strict reading).

    Markup, brackets and a currency may stand between: `#### **$18**`. A word may not.

    Args:
        answer: what the model wrote.
        language: code of the item's language: it decides about `1.234`. None: it groups, as MGSM's whole numbers do.
    """
    match = _STATED.search(plain(answer))
    return _marked(match, language) if match else None


def boxed_number(answer: str, language: str | None = None) -> float | None:
    r"""The number in the last `\boxed{}`; None if there is none."""
    last = None
    for match in _BOXED.finditer(plain(answer)):
        last = match
    return _marked(last, language) if last else None


def last_number(answer: str, language: str | None = None) -> float | None:
    """The last number of an answer, in any digits and notation; None if there is none."""
    last = None
    for match in _NUMBER.finditer(plain(answer)):
        last = match
    return _value(last[3], language, "-" in (last[1], last[2]), last[4]) if last else None


def flexible_number(answer: str, language: str | None = None) -> float | None:
    r"""The number after `####`, else in the last `\boxed{}`, else the last one (the flexible reading)."""
    stated = stated_number(answer, language)
    if stated is None:
        stated = boxed_number(answer, language)
    return last_number(answer, language) if stated is None else stated


def paper_number(answer: str, language: str | None = None) -> float | None:
    """The number after `####`, else the last one: the reading of the paper's code."""
    stated = stated_number(answer, language)
    return last_number(answer, language) if stated is None else stated


READINGS = {
    "strict": stated_number,
    "flexible": flexible_number,
    "paper": paper_number,
    "last": last_number,
}
"""Ways to read the number of an answer, by name."""


def whole(number: float) -> str:
    """A number as text: without a point if it is whole."""
    return str(int(number)) if math.isfinite(number) and number == int(number) else str(number)


def _marked(match: re.Match[str], language: str | None) -> float | None:
    negative = match[1].count("-") == 1 or "-" in (match[2], match[3])  # more are a ruled line
    return _value(match[4], language, negative, match[5])


def _value(digits: str, language: str | None, negative: bool, times: str | None) -> float | None:
    bare = re.sub(_GROUP, "", digits)
    spaced = bare != digits
    bare = _with_point(bare, language, spaced)
    integer, _, fraction = bare.partition(".")
    if len(integer.lstrip("0")) > _LONGEST:
        value = math.inf
    else:
        value = float(f"{integer.lstrip('0') or '0'}.{fraction[:_LONGEST] or '0'}")
    value *= _TIMES[times]
    return -value if negative and value else value


def _with_point(digits: str, language: str | None, grouped: bool) -> str:
    """Digits with at most one separator, a point.

    Pieces that are no number together (a date, a list without spaces) give their last piece.
    """
    if "\u066b" in digits:
        head, _, tail = re.sub("[.,]", "", digits).rpartition("\u066b")
        return tail if "\u066b" in head else f"{head}.{tail}"
    separators = re.findall("[.,]", digits)
    if not separators:
        return digits
    last = separators[-1]
    if grouped and len(separators) == 1:
        return digits.replace(last, ".")
    if len(set(separators)) == 2:
        head, _, tail = digits.rpartition(last)
        return f"{re.sub('[.,]', '', head)}.{tail}" if last not in head else tail
    first, *groups = digits.split(last)
    if len(groups) == 1:
        return first + groups[0] if _groups(first, groups[0], last, language) else f"{first or '0'}.{groups[0]}"
    thousands = len(groups[-1]) == 3 and all(len(group) in (2, 3) for group in groups) and len(first) <= 3
    myriads = language in _MYRIADS and all(len(group) == 4 for group in groups)
    return first + "".join(groups) if thousands or myriads else groups[-1]


def _groups(first: str, group: str, separator: str, language: str | None) -> bool:
    """Whether the only separator groups digits."""
    if language in _MYRIADS and separator == "," and len(group) == 4:
        return True
    if len(group) != 3 or not re.fullmatch(r"[1-9]\d{0,2}", first):
        return False
    return language is None or separator == ("." if language in DECIMAL_COMMA else ",")
