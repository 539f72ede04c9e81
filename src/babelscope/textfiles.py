"""Reads every text file that others wrote: corpora, benchmark files, study files. Text is UTF-8, memory is bounded.

A line ends at a line feed only (a carriage return before it belongs to the end): U+2028, U+0085 and form feeds are part
of the text. A byte order mark at the start is dropped. Half a character (a lone surrogate) becomes U+FFFD. A text in
another encoding is refused, and the error names the encoding that it seems to be in.
"""

from __future__ import annotations

import codecs
import importlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from babelscope.compression import opened
from babelscope.errors import DataError

logger = logging.getLogger(__name__)

MIB = 2**20
LONGEST_LINE = 32 * MIB
"""Bytes of a line, or of an element of a JSON array, that are read."""
LARGEST_FILE = 512 * MIB
"""Bytes of a file that has to be read as a whole."""

_HEAD = 8192
"""Bytes at the start that tell the encoding of a file."""
_ENOUGH = 8
"""Bytes outside ASCII from which an encoding can be guessed."""
_SIGNATURES = (
    (b"\x1f\x8b", "gzip", "End its name in .gz."),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "End its name in .zst."),
    (b"PAR1", "Parquet", "End its name in .parquet."),
    (b"PK\x03\x04", "zip", "Unpack it."),
    (b"%PDF", "PDF", "Extract its text."),
)
"""First bytes, format and remedy of files that are no text."""
_SEPARATOR = re.compile(r"[ \t\r\n]*")


# Text


def lines(stream: BinaryIO, name: str, *, cut: bool = False) -> Iterator[str]:
    r"""Lines of a UTF-8 stream without their ends (`\n` or `\r\n`).

    Args:
        stream: decompressed bytes.
        name: of the file, for errors.
        cut: read the first `LONGEST_LINE` bytes of a line that is longer, and say so; else such a line is an error.

    Raises:
        DataError: another encoding, a file that is no text, or a line that is too long.
    """
    reader, head = _begun(stream, name)
    start = 0
    for number, raw in enumerate(iter(lambda: reader.readline(LONGEST_LINE), b""), 1):
        skipped = len(codecs.BOM_UTF8) if number == 1 and raw.startswith(codecs.BOM_UTF8) else 0
        long = len(raw) == LONGEST_LINE and not raw.endswith(b"\n")
        if long and not cut:
            raise DataError(
                f"{name}, line {number} is longer than {LONGEST_LINE // MIB} MiB. Write an object per line."
            )
        text = _decoded(raw[skipped:], f"{name}, line {number}", start + skipped, head, final=not long)
        start += len(raw)
        if long:
            left_out = _skip_line(reader)
            start += left_out
            if left_out:
                logger.warning(
                    "%s, line %d is longer than %d MiB: %d bytes after that are left out",
                    *(name, number, LONGEST_LINE // MIB, left_out),
                )
        yield text.removesuffix("\n").removesuffix("\r")


def read_text(path: Path) -> str:
    """The whole text of a UTF-8 file, without a byte order mark.

    Raises:
        DataError: no such file, another encoding, no text, or more than `LARGEST_FILE`.
    """
    with opened(path) as stream:
        reader, head = _begun(stream, str(path))
        raw = reader.read(LARGEST_FILE + 1)
    if len(raw) > LARGEST_FILE:
        raise DataError(f"{path} is larger than {LARGEST_FILE // MIB} MiB, the most that is read at once. Split it.")
    skipped = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    return _decoded(raw[skipped:], str(path), skipped, head)


def valid(text: str) -> str:
    """The text with U+FFFD in place of each lone surrogate, which no encoding can hold."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def valid_strings(value: Any) -> Any:
    """A JSON value with `valid` text in it."""
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, list):
        return [valid_strings(item) for item in value]
    if isinstance(value, dict):
        return {valid(name): valid_strings(item) for name, item in value.items()}
    return value


def _begun(stream: BinaryIO, name: str) -> tuple[io.BufferedReader, bytes]:
    """A stream that can be looked ahead in, and its first bytes; DataError if they are no UTF-8 text."""
    reader = cast(io.BufferedReader, stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream)))
    head = reader.peek(_HEAD)[:_HEAD]
    for signature, kind, remedy in _SIGNATURES:
        if head.startswith(signature):
            raise DataError(f"{name} isn't text: it is a {kind} file. {remedy}")
    if encoding := _wide_encoding(head):
        raise DataError(f"{name} isn't UTF-8: it is {encoding}. {_convert(encoding)}")
    return reader, head


def _decoded(raw: bytes, where: str, start: int, head: bytes, final: bool = True) -> str:
    """Text of bytes at offset `start` of a file; not `final`: they may end inside a character, which is dropped."""
    try:
        if final:
            return raw.decode()
        return codecs.getincrementaldecoder("utf-8")().decode(raw)
    except UnicodeDecodeError:
        pass
    try:
        return valid(codecs.utf_8_decode(raw, "surrogatepass", final)[0])
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}, byte offset {start + error.start}: 0x{raw[error.start]:02x} isn't UTF-8 ({error.reason}). "
            + _advice(head if start + error.start < len(head) else raw[max(0, error.start - _HEAD) :][: 2 * _HEAD])
        ) from None


def _skip_line(reader: io.BufferedReader) -> int:
    """Reads to the end of the line; the number of bytes."""
    skipped = 0
    while part := reader.readline(MIB):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


# Encodings


def _wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 with its byte order, if the bytes are that, marked or not; else nothing."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "UTF-32LE"),
        (codecs.BOM_UTF32_BE, "UTF-32BE"),
        (codecs.BOM_UTF16_LE, "UTF-16LE"),
        (codecs.BOM_UTF16_BE, "UTF-16BE"),
    ):
        if head.startswith(mark):
            return encoding
    zeros = [head[column::4].count(0) / max(1, len(head[column::4])) for column in range(4)]
    if min(zeros[2:]) > 0.9 > zeros[0]:
        return "UTF-32LE"
    if min(zeros[:2]) > 0.9 > zeros[3]:
        return "UTF-32BE"
    for encoding, high, low in (("UTF-16LE", head[1::2], head[::2]), ("UTF-16BE", head[::2], head[1::2])):
        if 0 in high and low.count(0) * 20 <= high.count(0):
            # An alphabet's letters share their high byte, in UTF-8 a control character; a space has 0 there.
            pages = Counter(byte for byte in high if byte < 0x20)
            if pages.pop(0) + max(pages.values(), default=0) > 0.5 * len(high):
                return encoding
        if not _is_utf8(head) and _is_east_asian(head, encoding):
            return encoding
    return ""


def _is_utf8(head: bytes) -> bool:
    """Whether it is UTF-8, perhaps with a few damaged characters."""
    text = head.decode("utf-8", "replace")
    return text.count("\ufffd") * 20 <= len(text) + 20


def _is_east_asian(head: bytes, encoding: str) -> bool:
    """Whether nearly all characters in this encoding are kana, usual Chinese ones, or beside NULs ASCII and Hangul.

    Two ASCII letters look like one Chinese character, so text that is nearly all ASCII is not taken for it.
    """
    if 0 not in head and sum(byte < 0x80 for byte in head) > 0.85 * len(head):
        return False
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    ranges = [(0x3000, 0x3100), (0x4E00, 0xA000), (0xFF00, 0xFF61)]
    if 0 in head:  # Chinese and Korean legacy encodings look like Hangul in UTF-16, but have no NULs
        ranges += [(0x0A, 0x0E), (0x20, 0x250), (0xAC00, 0xD7A4), (0x2000, 0x2070)]
    usual = sum(any(low <= ord(character) < high for low, high in ranges) for character in text)
    return usual > 0.9 * len(text)


def _advice(sample: bytes) -> str:
    """What to do about bytes that aren't UTF-8; it names up to three encodings: a guess can be wrong.

    The guess needs charset-normalizer.
    """
    unknown = "Find out the encoding, for example with file -i, and convert the text with iconv -f ENCODING -t UTF-8."
    if sum(byte >= 0x80 for byte in sample) < _ENOUGH:
        return unknown
    try:
        guess = importlib.import_module("charset_normalizer").from_bytes(sample)
    except ImportError:
        return unknown
    names = [match.encoding.replace("utf_16_", "utf_16").upper().replace("_", "-") for match in guess][:3]
    names.sort(key=lambda name: name != "CP1252")  # Western European, by far the commonest of those beside it
    if not names:
        return "The file is damaged, or no text. Check where it comes from."
    return f"It may be {' or '.join(names)}. {_convert(names[0])}"


def _convert(encoding: str) -> str:
    return f"Convert it, for example with iconv -f {encoding} -t UTF-8."


# JSON


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; DataError says where it isn't JSON, or too deep or too large to be read."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}).") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not usable JSON ({error}).") from None


def json_rows(stream: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """Where it is, and its value: each line of JSON lines (None for a blank line), or each element of a JSON array.

    Raises:
        DataError: as `lines`, or a value that isn't JSON.
    """
    reader, head = _begun(stream, name)
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        yield from _elements(reader, name)
        return
    for number, line in enumerate(lines(cast(BinaryIO, reader), name), 1):
        where = f"{name}, line {number}"
        yield where, parse_json(line, where) if line.strip() else None


class _Growing:
    """Text of a stream of which only the part that is still needed is held."""

    def __init__(self, reader: io.BufferedReader, name: str) -> None:
        self.text, self.at, self.ended = "", 0, False
        self._reader, self._name, self._read = reader, name, 0
        self._rest = b""

    def grow(self) -> None:
        """Drops what lies before `at`, and reads as much again as is left, at least a MiB."""
        raw = self._rest + self._reader.read(max(MIB, len(self.text) - self.at))
        self.ended = len(raw) == len(self._rest)
        whole = len(raw) if self.ended else _end_of_characters(raw)
        text = _decoded(raw[:whole], self._name, self._read, raw)
        self.text, self.at = self.text[self.at :] + (text if self._read else text.removeprefix("\ufeff")), 0
        self._read, self._rest = self._read + whole, raw[whole:]

    def next_character(self) -> str:
        """The next character after white space, not taken; empty at the end."""
        while True:
            self.at = cast(re.Match[str], _SEPARATOR.match(self.text, self.at)).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.grow()


def _end_of_characters(raw: bytes) -> int:
    """Bytes up to the last beginning of a character, or all of them if the last one is whole."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte >= 0xC0:
            return len(raw) - back if back < (2 + (byte >= 0xE0) + (byte >= 0xF0)) else len(raw)
        if byte < 0x80:
            break
    return len(raw)


def _elements(reader: io.BufferedReader, name: str) -> Iterator[tuple[str, Any]]:
    """The elements of the one array that a stream holds, one at a time."""
    source, decode = _Growing(reader, name), json.JSONDecoder().raw_decode
    source.next_character()
    source.at += 1  # the opening bracket
    number = 0
    while (character := source.next_character()) != "]":
        if number:
            if character != ",":
                raise DataError(
                    f"{name}, element {number}: wanted a comma or ] after it, found {character or 'the end'!r}."
                )
            source.at += 1
            source.next_character()
        number += 1
        where = f"{name}, element {number}"
        while True:
            try:
                value, source.at = decode(source.text, source.at)
                break
            except (ValueError, RecursionError) as error:
                if source.ended or isinstance(error, RecursionError):
                    raise DataError(f"{where}: not JSON ({str(error)[:120]}).") from None
            if len(source.text) - source.at > LONGEST_LINE:
                raise DataError(f"{where} is not JSON, or longer than {LONGEST_LINE // MIB} MiB. Make the file again.")
            source.grow()
        yield where, value
    source.at += 1
    if source.next_character():
        raise DataError(f"{name}: text follows the end of the array. Write one array, or an object per line.")
