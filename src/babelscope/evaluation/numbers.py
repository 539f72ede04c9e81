r"""Numbers in answers, in any script and notation.

All decimal digits of Unicode are read. Spaces, apostrophes, underscores, `{,}`, `\,` and U+066C group digits. A point
or a comma before three digits is ambiguous: the language of the item decides (`DECIMAL_COMMA`).
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Mapping

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
_APOSTROPHES = "\u2019\u2018\u02bc\uff07\u2032\u00b4"
_FRACTION_SLASHES = "\u2044\u2215"
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_GROUP = r"[ \u00a0\u2000-\u200a\u202f\u205f\u3000'`_\u066c]"
_CURRENCY_SIGN = (
    r"(?:[A-Z]{0,3}[$€£¥₩₫₽₹฿₱₺₦₴]|(?:USD|EUR|GBP|RUB|KES|TZS|VND|THB|CNY|RMB|JPY|INR|CHF|AED|SAR|EGP|"
    r"Ksh|KSh|TSh|Tsh|Sh|Rs|Rp)\b\.?)"
)
_CURRENCY = rf"(?:{_CURRENCY_SIGN}[ ]?)"

# What is rewritten before numbers are looked for
_LATEX_GROUP = re.compile(r"(?<=\d)(?:,?\\[,;: !]|\{[,.]\}|\{\\,\}|\{ \}|\\text\{,\}|\\thinspace ?|~)(?=\d{3}(?!\d))")
_LATEX_POINT = re.compile(r"(?<=\d)\{([.,])\}(?=\d)")
_LATEX_MIXED = re.compile(r"(?<=\d)(?=\\[dtc]?frac)")
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s?\{(\d{1,18})\}\s?\{(\d{1,18})\}")
_SUPERSCRIPT = re.compile("(?<=\\d)\u207b?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,3}")
_SQUARE_UNIT = re.compile(r"(?<![A-Za-z])([kcdm]?m)[\^]?[23](?!\w)")
_MINUS_APART = re.compile(
    rf"(?:(?:^|(?<=[=:：(\[{{\n])){_GROUP}{{0,3}}\u2212|(?<==){_GROUP}{{0,3}}[-\u2013]){_GROUP}(?={_CURRENCY}?\d)"
)
"""A minus with a space behind it: `= - 2`. Between two numbers it is an operation, at a line's beginning a bullet."""
_MINUS_WORD = re.compile(
    r"[负負](?=\d)|(?:^|(?<=[=:：#(\n]))\s{0,3}(?:[Mm]inus|[Mm]oins|[Mm]enos|[Мм]инус|[Ââ]m|ลบ|سالب|ناقص|[Hh]asi)\s{0,3}(?=\d)"
)

# A number
_SCALE_WORDS: Mapping[int, str] = {
    100: "百",
    10**3: """
        千 k thousand tausend tsd. mille mil тысяч тысяча тысячи тыс тыс. nghìn ngàn พัน ألف ألفا ألفًا آلاف الف elfu ribu
    """,
    10**4: "万 萬 หมื่น",
    10**5: "十万 十萬 แสน lakh lakhs लाख laki",
    10**6: """
        m million millions millionen mio mio. millón millones миллион миллиона миллионов млн млн. triệu ล้าน مليون ملايين
        milioni juta 百万 百萬
    """,
    10**7: "千万 千萬 crore crores",
    10**8: "亿 億",
    10**9: """
        十亿 十億 billion billions milliard milliards milliarde milliarden mrd. миллиард миллиарда миллиардов млрд млрд.
        tỷ tỉ مليار مليارات bilioni
    """,
    10**10: "百亿 百億",
    10**11: "千亿 千億",
    10**12: "万亿 萬億",
}
"""Words behind digits that multiply them: `80 тыс.`, `8万`, `5 triệu`."""
_SCALES = {word: scale for scale, words in _SCALE_WORDS.items() for word in words.split()}
_LONG_SCALES = "|".join(re.escape(word) for word in sorted(_SCALES, key=len, reverse=True) if word not in ("k", "m"))
_SCALE = (
    r"[ \u00a0\u202f]?(?!千[克米瓦卡焦赫字伏帕]|百分|พันธ|(?:elfu|laki|milioni|bilioni)\s\d)"
    rf"(?P<scale>(?i:{_LONG_SCALES})|(?<=\d)[kKM])(?![^\W{_UNSPACED}\d_])"
)
_SCALES_BEFORE = r"(?:(?<!\w)(?P<before>[Ee]lfu|[Ll]aki|[Mm]ilioni|[Bb]ilioni)\s)"
"""Swahili's stand before the digits: `elfu 80`."""
_SIGN = rf"(?:(?<![^\W{_UNSPACED}])(?<![)\]%.,])[-+](?={_CURRENCY}?[\d.]))"
_DIGITS = (
    rf"(?:(?<![\d.,\u066b])[1-9]\d{{0,2}}(?:{_GROUP}\d{{3}}(?![\d]))+(?:[.,\u066b]\d+)?"
    r"|\d+(?:[.,\u066b\u066c]\d+)*"
    r"|(?<![\w.,])[.\u066b]\d+)"
)
_NUMBER = re.compile(
    rf"{_SCALES_BEFORE}?(?P<outer>{_SIGN})?{_CURRENCY}?(?P<inner>{_SIGN})?(?P<digits>{_DIGITS})"
    r"(?:(?P<mixed>[ ]{1,2}\d{1,3})?/(?P<under>0{0,9}[1-9]\d{0,17})(?![\d/]|[.,]\d)"
    r"|[eE](?P<exponent>[-+]?\d{1,3})(?!\w)"
    rf"|[ ]?(?:[x×*·]|\\times|\\cdot)[ ]?10[ ]?\^\{{?(?P<tens>[-+]?\d{{1,3}})\}}?"
    rf"|\^\{{?(?P<power>[-+]?\d{{1,3}})\}}?|{_SCALE})?"
)
_MARKUP = (
    r"(?:<[a-z]{1,8}>|[\s*_`:=~≈\"'“”«|(\[{—→<>+-]|\\(?:boxed|textbf|text|mathbf|mathrm|fbox|\(|\[|\$)|"
    rf"{_CURRENCY_SIGN})"
)
"""What may stand between a mark and its number."""
# Read once, without a way back: else a row of marks is tried from each of them.
_BEFORE = rf"(?=({_MARKUP}{{0,32}}))\1(?={_NUMBER.pattern})"
_STATED = re.compile(rf"(?<!#)####+{_BEFORE}")
_BOXED = re.compile(rf"\\(?:boxed|fbox)\s?\{{{_BEFORE}")
_CHINESE_SCALES = "百千万萬亿億"
_EQUALS = re.compile(rf"[ ]?(?:[-+*/x×÷·]|\\times|\\div|\\cdot)[^=\n]{{1,80}}={_BEFORE}")
_LONGEST = 320
"""Digits that a float can tell apart from infinity, and some."""


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _DASHES:
        return "-"
    if character in _APOSTROPHES:
        return "'"
    if character in _FRACTION_SLASHES:
        return "/"
    if character == "\u060c":  # the Arabic comma
        return ","
    if "\uff01" <= character <= "\uff5e" or character in "﹐﹒﹩﹪":
        return unicodedata.normalize("NFKC", character)
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "No" and "\u2044" in (fraction := unicodedata.normalize("NFKC", character)):
        return f" {fraction}".replace("\u2044", "/")
    return "" if category in ("Cf", "Me") or character in "\u034f\ufe0e\ufe0f" else character


def plain(text: str) -> str:
    """A text with ASCII digits, signs and apostrophes, without marks that show nothing (directions, joiners)."""
    bare = html.unescape(text) if "&" in text else text
    bare = _MINUS_APART.sub("-", bare)
    if not bare.isascii():
        bare = _SUPERSCRIPT.sub(
            lambda power: "^" + unicodedata.normalize("NFKC", power[0]).replace("\u2212", "-"), bare
        )
        bare = bare.translate({ord(character): _plain_character(character) for character in set(bare)})
    bare = _LATEX_GROUP.sub("\u066c", bare.replace("\\$", "$").replace("\\%", "%").replace("\\#", "#"))
    bare = _LATEX_FRACTION.sub(r"\1/\2", _LATEX_MIXED.sub(" ", _LATEX_POINT.sub(r"\1", bare)))
    return _MINUS_WORD.sub("-", _SQUARE_UNIT.sub(r"\1", bare))


def stated_number(answer: str, language: str | None = None) -> float | None:
    """The number after `####`, as MGSM's solutions state it; None if there is none (the strict reading).

    Markup, brackets and a currency may stand between: `#### **$18**`. A word may not.

    Args:
        answer: what the model wrote.
        language: code of the item's language: it decides about `1.234`. None: it groups, as MGSM's whole numbers do.
    """
    bare = plain(answer)
    match = _STATED.search(bare)
    return _marked(bare, match, language)


def boxed_number(answer: str, language: str | None = None) -> float | None:
    r"""The number in the last `\boxed{}`; None if there is none."""
    bare, last = plain(answer), None
    for match in _BOXED.finditer(bare):
        last = match
    return _marked(bare, last, language)


def last_number(answer: str, language: str | None = None) -> float | None:
    """The last number of an answer, in any digits and notation; None if there is none."""
    bare, last, end = plain(answer), None, 0
    while match := _NUMBER.search(bare, end):
        last, end = _read(bare, match, language)
    return last


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


def _marked(text: str, marks: re.Match[str] | None, language: str | None) -> float | None:
    """The number behind marks; of an equation (`#### 9 + 9 = 18`) its right side."""
    value = None
    while marks:
        number = _NUMBER.match(text, marks.end())
        assert number is not None, "the pattern looked ahead"
        value, end = _read(text, number, language)
        value = -abs(value) if value and marks[1].count("-") == 1 else value  # more are a ruled line
        marks = _EQUALS.match(text, end)
    return value


def _read(text: str, match: re.Match[str], language: str | None) -> tuple[float, int]:
    """The value of a number, and where it ends."""
    value, end = _value(match["digits"], language), match.end()
    if match["under"]:
        if text[match.start() - 1 : match.start()] == "/":  # a date
            end = match.end("digits")
        elif match["mixed"]:
            value += float(match["mixed"]) / float(match["under"])
        else:
            value /= float(match["under"])
    elif match["power"]:
        value = _power(value, int(match["power"]))
    elif ten := match["exponent"] or match["tens"]:
        value *= _power(10.0, int(ten))
    elif match["scale"]:
        scale = _SCALES[match["scale"].casefold()]
        value *= scale
        if match["scale"][-1] in _CHINESE_SCALES:
            value, end = _compound(text, value, end, scale, language)
    if match["before"]:
        value *= _SCALES[match["before"].casefold()]
    return (-value if value and "-" in (match["outer"], match["inner"]) else value), end


def _compound(text: str, value: float, end: int, scale: int, language: str | None) -> tuple[float, int]:
    """Adds what follows without a space and is smaller: `1万2千`."""
    following = _NUMBER.match(text, end)
    if following is None or following.start("digits") != end:
        return value, end
    smaller = _SCALES[following["scale"].casefold()] if following["scale"] else 1
    if smaller >= scale or (smaller == 1 and len(following["digits"]) == 1):
        return value, end
    more, further = _read(text, following, language)
    return value + more, further


def _power(base: float, exponent: int) -> float:
    try:
        return base**exponent
    except (OverflowError, ZeroDivisionError):
        return math.inf


def _value(digits: str, language: str | None) -> float:
    bare = re.sub(_GROUP, "", digits)
    bare = _with_point(bare, language, bare != digits)
    integer, _, fraction = bare.partition(".")
    if len(integer.lstrip("0")) > _LONGEST:
        return math.inf
    return float(f"{integer.lstrip('0') or '0'}.{fraction[:_LONGEST] or '0'}")


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
    if separator == "," and group == "000":  # three decimals that are all zero are written by nobody
        return True
    return language is None or separator == ("." if language in DECIMAL_COMMA else ",")
