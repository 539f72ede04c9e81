"""Opens files that may be compressed: `.gz` and `.zst`, as streams of their plain bytes."""

from __future__ import annotations

import gzip
import importlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from babelscope.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def optional(module: str, extra: str, purpose: str) -> Any:
    """A module of an optional package; MissingDependencyError names the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"{purpose} needs the package {package}, which can't be imported ({error}); install it:\n"
            f'pip install "babelscope[{extra}]"'
        ) from error


def path_of(text: str) -> Path:
    """The path that a user wrote, `~` expanded; DataError for what no file system can hold as one."""
    parts = [part.encode("utf-8", "surrogatepass") for part in text.split("/")]
    if "\0" in text or "\n" in text or max(map(len, parts)) > 255 or sum(map(len, parts)) + len(parts) > 4000:
        raise DataError(f"{text[:40]!r}... is a text, wanted a path; give the path of a file or folder")
    return Path(os.path.expanduser(text))  # as a method it fails for a user that there isn't


def formats(path: Path) -> tuple[str, str]:
    """Extensions of format and compression, such as (`.jsonl`, `.gz`) or (`.txt`, ``)."""
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    return (path.with_suffix("") if compression else path).suffix.lower(), compression


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file.

    Raises:
        DataError: also while reading, for a file that can't be read or is truncated, or isn't compressed as its name
            says.
    """
    compression = formats(path)[1]
    try:
        with path.open("rb") as stream:
            yield COMPRESSIONS[compression](stream) if compression else stream
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"can't read {path}: {error}; check that the file is complete, or make it again") from error


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of a `.zst` stream, of any number of frames.

    Not `zstandard`'s own reader, for that one takes a truncated file as complete.
    """

    def __init__(self, compressed: BinaryIO) -> None:
        self._chunks = self._decompress(compressed)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        target = memoryview(buffer)
        taken = min(len(target), len(self._rest))
        target[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken

    @staticmethod
    def _decompress(compressed: BinaryIO) -> Iterator[bytes]:
        zstandard = optional("zstandard", "files", "reading a .zst file")
        frame = None
        while chunk := compressed.read(1 << 14):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(chunk)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from error
                chunk = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
        if frame is not None:
            raise EOFError("compressed file ended before the end of its last frame")


def _gunzipped(stream: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream))


def _unzstd(stream: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_ZstdStream(stream), 2**20))


COMPRESSIONS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": _gunzipped, ".zst": _unzstd}
"""What decompresses a stream, by the extension."""
