"""Text in: files, standard input, Hub datasets and Python iterables, all behind one streaming `Corpus`."""

import difflib
import glob
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from babelscope.compression import COMPRESSIONS, formats, opened, optional
from babelscope.errors import ConfigError, DataError
from babelscope.plugins import Registry
from babelscope.textfiles import MIB, json_rows, lines, valid

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 10_000
"""Documents that a Hub stream is shuffled over: some 30 MB of Wikipedia."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text and its place in its corpus."""

    index: int
    """Counted from 0 over the whole corpus, empty documents included."""
    text: str


@dataclass(frozen=True, eq=False)
class Corpus:
    """A stream of documents; iterating yields `Document`s in order and holds one at a time.

    Half a character (a lone surrogate) is read as U+FFFD, and the log says so. Iterating raises DataError for a corpus
    without any document, for an item that isn't a str, for what the source can't decode, and for a second reading of a
    source that can be read only once.
    """

    name: str
    """What messages and reports call it: the path, the Hub name, `stdin`."""
    kind: str
    """file, files, stdin, hub, memory, iterator, or the word before the colon of a registered kind."""
    rewindable: bool
    """Whether it can be read again from the start; False for standard input and one-shot iterators."""
    bounded: bool
    """Whether reading to the end is reasonable: files, standard input and collections, but not streams."""
    texts: Callable[[], Iterator[object]]
    """Opens the source."""
    content: Callable[[], str]
    """Computes `identity()`."""

    def __iter__(self) -> Iterator[Document]:
        index, halves = -1, 0
        for index, text in enumerate(self.texts()):
            if not isinstance(text, str):
                raise DataError(
                    f"{self.name}: document {index} is of type {type(text).__name__}, wanted str; give the texts "
                    "themselves, for example (row['text'] for row in rows)"
                )
            whole = valid(text)
            if whole is not text and not halves:
                logger.warning("%s: document %d holds half a character, read as U+FFFD", self.name, index)
            halves += whole is not text
            yield Document(index, whole)
        if halves > 1:
            logger.warning("%s: %d documents hold half a character, read as U+FFFD", self.name, halves)
        if index < 0:
            raise DataError(f"{self.name} is empty: wanted at least one document; check that it is the right source")

    def identity(self) -> str:
        """What tells this corpus from a changed one, cheaply enough to ask at every start.

        Files: SHA-256 over names, sizes, and the first and last MiB of each. Collections: SHA-256 over all texts.
        Hub: name, configuration, split and field. Sources that can't be read twice: `unknown`.
        """
        return self.content()


CORPORA: Registry[Callable[[str], Corpus]] = Registry(
    "kind of corpus", "babelscope.corpora", {"tinybabel": "babelscope.tinybabel.plugin:open_texts"}
)
"""The word before the colon of a spec -> a function that opens the corpus of the whole spec."""


def open_corpus(spec: str | os.PathLike[str] | Iterable[str] | Corpus, field: str = "text", seed: int = 0) -> Corpus:
    """Open a source of text.

    Everything that can be checked without reading the text is checked here: that files exist and are of a known
    format, that the packages they need are installed, that a Hub dataset is there.

    Args:
        spec: one of
            - a file: `.txt` (a document per line), `.jsonl`, `.ndjson` or `.json` (an object per line, or one array of
              objects) or `.parquet`, each also with `.gz` or `.zst` after it;
            - a folder of such files, or a glob (`data/fr-*.txt`, `data/**/*.jsonl.gz`), read in the order of names;
            - `-`: standard input, a document per line;
            - `hub:NAME:CONFIG:FIELD` or `hub:NAME:CONFIG:FIELD:SPLIT`: a Hugging Face dataset, streamed. CONFIG may be
              empty, FIELD defaults to `field`, SPLIT to `train`; NAME may be a local folder;
            - `tinybabel:LANGUAGE` or `tinybabel:LANGUAGE:SPLIT`: texts about Tinybabel's world, what its model was
              trained on (SPLIT `train`) or facts that it has never seen (`validation`, `test`);
            - `KIND:...` of another package that registers the kind (docs/extend/source.md);
            - an iterable of str; a list of str is texts, never paths.
        field: the JSON key or Parquet column that holds the text.
        seed: of the shuffling of a Hub stream, over a buffer of `SHUFFLE_BUFFER` documents. Other sources keep their
            order, and `sample_documents` draws from them.

    Raises:
        ConfigError: a malformed `hub:` spec, or a spec of no known kind.
        DataError: a missing file, an unknown format, a Hub dataset that can't be opened.
        MissingDependencyError: an optional package is needed; the message ends with the line that installs it.
    """
    if isinstance(spec, Corpus):
        return spec
    if isinstance(spec, str | os.PathLike):
        path = os.fspath(spec)
        if path == "-":
            return Corpus("stdin", "stdin", False, True, _once(_stdin_lines(), "stdin"), lambda: "unknown")
        if path.startswith("hub:"):
            return _hub(path, field, seed)
        kind, colon, _ = path.partition(":")
        return CORPORA[kind](path) if colon and kind in CORPORA else _files(path, field)
    return _in_python(spec)


# In Python


def _in_python(spec: Iterable[str]) -> Corpus:
    if isinstance(spec, bytes | bytearray | Mapping) or not isinstance(spec, Iterable):
        raise ConfigError(
            f"can't read texts from an object of type {type(spec).__name__}: wanted a path, hub:NAME:CONFIG:FIELD, "
            "- for standard input, or an iterable of str; pass, for example, a list of the texts"
        )
    name = f"a {type(spec).__name__}"
    if isinstance(spec, Sized):
        return Corpus(f"{name} of {len(spec)} texts", "memory", True, True, lambda: iter(spec), lambda: _digest(spec))
    rewindable = iter(spec) is not spec
    texts = (lambda: iter(spec)) if rewindable else _once(spec, name)
    return Corpus(name, "iterator", rewindable, False, texts, lambda: "unknown")


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = str(text).encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(encoded) + encoded)  # the length keeps ["ab"] and ["a", "b"] apart
    return f"sha256:{digest.hexdigest()}"


def _once(source: Iterable[object], name: str) -> Callable[[], Iterator[object]]:
    """Opens `source` the first time, refuses the second time: it would be silently short."""
    unread = [source]

    def texts() -> Iterator[object]:
        if not unread:
            raise DataError(
                f"{name} can be read only once and has been read; save the text to a file and pass its path"
            )
        return iter(unread.pop())

    return texts


# Files


def _files(spec: str, field: str) -> Corpus:
    paths = _matching(spec)
    for path in paths:
        for extension in formats(path):
            if extension in _PACKAGES:
                optional(_PACKAGES[extension], "files", f"reading {path}")

    def texts() -> Iterator[str]:
        for path in paths:
            yield from _FORMATS[formats(path)[0]](path, field)

    def content() -> str:
        digest = hashlib.sha256()
        for path in paths:
            size = path.stat().st_size
            digest.update(json.dumps([path.name, size, None if formats(path)[0] == ".txt" else field]).encode())
            with path.open("rb") as stream:
                digest.update(stream.read(MIB))
                stream.seek(max(0, size - MIB))
                digest.update(stream.read(MIB))
        return f"sha256:{digest.hexdigest()}"

    kind: Literal["file", "files"] = "file" if Path(spec).expanduser() in paths else "files"
    return Corpus(spec, kind, True, True, texts, content)


def _matching(spec: str) -> list[Path]:
    """The files that a path, a folder or a glob means, sorted by name, each of a known format."""
    path = Path(spec).expanduser()
    if "\n" in spec or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise DataError(f"{spec[:40]!r}... is a text, wanted a path; give a single text as a list: [text]")
    if path.is_dir():
        inside = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
        known = [entry for entry in inside if formats(entry)[0] in _FORMATS]
        if not known:
            raise DataError(f"no corpus file in the folder {spec}: wanted {_KNOWN}; found {_listing(inside)}")
        if len(known) < len(inside):
            logger.warning("%s: skipping %s: no known format", spec, _listing([e for e in inside if e not in known]))
        return known
    if path.is_file():
        found = [path]
    elif path.exists():
        raise DataError(f"{spec} is neither a file nor a folder; give a pipe as standard input, with - as the path")
    elif glob.has_magic(spec):
        found = sorted(entry for match in glob.glob(str(path), recursive=True) if (entry := Path(match)).is_file())
        if not found:
            raise DataError(f"no file matches {spec}; check the pattern with ls")
    else:
        raise DataError(_missing(path))
    for entry in found:
        if formats(entry)[0] not in _FORMATS:
            extension = "".join(formats(entry)) or "(no extension)"
            raise DataError(f"unknown format {extension} of {entry}: wanted {_KNOWN}; rename or convert the file")
    return found


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"no file {path}: there is no folder {path.parent} either; check the path"
    names = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names)
    similar = f"; similar names in {path.parent}: {', '.join(close)}" if close else f" in {path.parent}"
    return f"no file {path}{similar}; check the path"


def _listing(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:8] + ["..."] * (len(names) > 8)) or "nothing"


# Formats


def _stdin_lines() -> Iterator[str]:
    yield from lines(sys.stdin.buffer, "stdin", cut=True)


def _read_lines(path: Path, field: str) -> Iterator[str]:
    with opened(path) as stream:
        yield from lines(stream, str(path), cut=True)


def _read_json(path: Path, field: str) -> Iterator[str]:
    with opened(path) as stream:
        for where, row in json_rows(stream, str(path)):
            if row is None:
                yield ""
            elif not isinstance(row, dict):
                raise DataError(
                    f'{where}: a JSON {type(row).__name__}; write one object per line, such as {{"{field}": "..."}}, '
                    "or an array of objects"
                )
            else:
                yield _text_of(row, field, where)


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    arrow = optional("pyarrow", "files", f"reading {path}")
    parquet = optional("pyarrow.parquet", "files", f"reading {path}")
    with opened(path) as stream, tempfile.TemporaryFile() as plain:
        if formats(path)[1]:  # Parquet is read from its end, so it has to be unpacked first
            shutil.copyfileobj(stream, plain)
            plain.seek(0)
        try:
            # Without these two a whole row group is in memory, which may be the whole file.
            table = parquet.ParquetFile(plain if formats(path)[1] else stream, pre_buffer=False, buffer_size=MIB)
            columns = table.schema_arrow.names
            if field not in columns:
                raise DataError(_no_field(str(path), field, columns, "column"))
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0).to_pylist():
                    yield _text_of({field: value}, field, f"{path}, row {row}")
                    row += 1
        except (arrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{path} isn't readable as Parquet ({error}); check that the file is complete") from error


_FORMATS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_lines,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
_PACKAGES = {".parquet": "pyarrow.parquet", ".zst": "zstandard"}
_KNOWN = f"{', '.join(_FORMATS)}, each also with {' or '.join(COMPRESSIONS)} after it"


def _text_of(row: Mapping[str, object], field: str, where: str) -> str:
    """The text of a row; a missing value (null) is an empty document."""
    if field not in row:
        raise DataError(_no_field(where, field, list(row), "field"))
    text = row[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(
            f"{where}: {field!r} holds a {type(text).__name__}, wanted text; name the one that holds the text"
        )
    return text


def _no_field(where: str, field: str, present: list[str], what: str) -> str:
    names = ", ".join(repr(name) for name in present) or "none at all"
    return f"{where}: no {what} {field!r}; there is {names}; name the {what} that holds the text"


# Hugging Face datasets


def _hub(spec: str, field: str, seed: int) -> Corpus:
    parts = spec.split(":")[1:]
    if len(parts) not in (3, 4) or not parts[0]:
        raise ConfigError(
            f"malformed {spec!r}: wanted hub:NAME:CONFIG:FIELD or hub:NAME:CONFIG:FIELD:SPLIT, CONFIG may be empty; "
            "for example hub:wikimedia/wikipedia:20231101.fr:text"
        )
    name, config, column, split = *parts[:2], parts[2] or field, (parts[3:] or [""])[0] or "train"
    datasets = optional("datasets", "hub", f"reading {spec}")
    try:
        stream = datasets.load_dataset(name, config or None, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"can't open {spec}: {error}; check the name, the configuration, the split ({split}), the network, and "
            "HF_TOKEN if the dataset is private"
        ) from error
    shuffled = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)

    def texts() -> Iterator[str]:
        for number, row in enumerate(shuffled):
            yield _text_of(row, column, f"{spec}, document {number}")

    return Corpus(spec, "hub", True, False, texts, lambda: f"hub:{name}:{config}:{column}:{split}")
