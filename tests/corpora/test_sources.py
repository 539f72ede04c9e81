"""Every source yields the documents that were written to it, and every bad source says what is wrong where."""

import gzip
import io
import json
import os
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.errors import BabelscopeError, ConfigError, DataError, MissingDependencyError

TEXTS = ["Il pleut sur la ville.", "", "雨が\u2028降る。", "  Der Regen\tfällt ", "ฝนตก"]


def texts_of(corpus: Corpus) -> list[str]:
    documents = list(corpus)
    assert [document.index for document in documents] == list(range(len(documents)))
    return [document.text for document in documents]


def as_lines(texts: list[str]) -> bytes:
    return "".join(text + "\n" for text in texts).encode()


def as_json_lines(texts: list[str] | list[str | None]) -> bytes:
    return "".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts)).encode()


def as_parquet(texts: list[str | None], row_group_size: int = 2) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    table = pyarrow.table({"id": list(range(len(texts))), "body": texts})
    pyarrow.parquet.write_table(table, out, row_group_size=row_group_size)
    return out.getvalue()


def zst(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zst}


def error_of(spec: object, error: type[BabelscopeError] = DataError, field: str = "text") -> str:
    """The message that opening and reading `spec` ends with."""
    with pytest.raises(error) as caught:
        list(open_corpus(spec, field))  # type: ignore[arg-type]
    return str(caught.value)


# What is read


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    ("extension", "write"), [(".txt", as_lines), (".jsonl", as_json_lines), (".json", as_json_lines)]
)
def test_files(tmp_path: Path, extension: str, write: Callable[[list[str]], bytes], compression: str) -> None:
    path = tmp_path / f"fr{extension}{compression}"
    path.write_bytes(COMPRESSIONS[compression](write(TEXTS)))
    corpus = open_corpus(path, "body")
    assert texts_of(corpus) == TEXTS
    assert texts_of(corpus) == TEXTS, "a file can be read again"
    assert (corpus.name, corpus.kind, corpus.rewindable, corpus.bounded) == (str(path), "file", True, True)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_parquet(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"fr.parquet{compression}"
    path.write_bytes(COMPRESSIONS[compression](as_parquet([*TEXTS, None])))
    assert texts_of(open_corpus(str(path), "body")) == [*TEXTS, ""]


def test_a_json_document_may_hold_newlines_and_a_null_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one\\ntwo"}\n\n{"text": null}\n{"text": "three"}', encoding="utf-8")
    assert texts_of(open_corpus(path)) == ["one\ntwo", "", "", "three"]


def test_byte_order_mark_and_line_ends_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbfun\r\ndeux\r\n\r\n\xef\xbb\xbftrois")
    assert texts_of(open_corpus(path)) == ["un", "deux", "", "\ufefftrois"]


def test_concatenated_compressed_files(tmp_path: Path) -> None:
    for extension in (".gz", ".zst"):
        path = tmp_path / f"x.txt{extension}"
        path.write_bytes(COMPRESSIONS[extension](b"one\ntw") + COMPRESSIONS[extension](b"o\nthree\n"))
        assert texts_of(open_corpus(path)) == ["one", "two", "three"]


def test_a_folder_is_read_by_name_and_says_what_it_skips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "b.txt").write_bytes(b"three\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "README.md").write_bytes(b"not text\n")
    (tmp_path / ".hidden").write_bytes(b"x")
    corpus = open_corpus(tmp_path)
    assert texts_of(corpus) == ["one", "two", "three"]
    assert corpus.kind == "files"
    assert "README.md" in caplog.text
    assert ".hidden" not in caplog.text


def test_a_glob_is_read_by_name(tmp_path: Path) -> None:
    for name in ("fr-2.txt", "fr-1.txt", "de-1.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "fr-3.txt").write_text("fr-3.txt\n")
    assert texts_of(open_corpus(f"{tmp_path}/fr-*.txt")) == ["fr-1.txt", "fr-2.txt"]
    assert "fr-3.txt" in texts_of(open_corpus(f"{tmp_path}/**/*.txt"))


def test_an_existing_file_with_glob_characters_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "fr[1].txt"
    path.write_text("one\n")
    assert texts_of(open_corpus(path)) == ["one"]


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(as_lines(TEXTS))))
    corpus = open_corpus("-")
    assert (corpus.name, corpus.rewindable, corpus.bounded, corpus.identity()) == ("stdin", False, True, "unknown")
    assert texts_of(corpus) == TEXTS
    with pytest.raises(DataError, match="only once"):
        list(corpus)


def test_collections_and_iterators() -> None:
    collection = open_corpus(TEXTS)
    assert texts_of(collection) == texts_of(collection) == TEXTS
    assert (collection.name, collection.rewindable, collection.bounded) == ("a list of 5 texts", True, True)

    iterator = open_corpus(text for text in TEXTS)
    assert (iterator.rewindable, iterator.bounded, iterator.identity()) == (False, False, "unknown")
    assert texts_of(iterator) == TEXTS
    with pytest.raises(DataError, match="a generator can be read only once"):
        list(iterator)

    class Stream:
        def __iter__(self) -> Iterator[str]:
            return iter(TEXTS)

    stream = open_corpus(Stream())
    assert (stream.rewindable, stream.bounded) == (True, False)
    assert texts_of(stream) == texts_of(stream) == TEXTS


def test_a_corpus_opens_as_itself() -> None:
    corpus = open_corpus(TEXTS)
    assert open_corpus(corpus) is corpus


@pytest.mark.parametrize("extension", [".txt", ".txt.gz", ".txt.zst", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"big{extension}"
    # Random, for a compressed file of one letter is unpacked by the megabyte.
    lines = [random.Random(i).randbytes(500).hex() for i in range(20_000)]
    plain = as_parquet(list(lines), row_group_size=len(lines)) if extension == ".parquet" else as_lines(lines)
    path.write_bytes(COMPRESSIONS[path.suffix if path.suffix in COMPRESSIONS else ""](plain))
    corpus = open_corpus(path, "body")
    next(iter(corpus))  # imports
    tracemalloc.start()
    try:
        assert sum(1 for _ in corpus) == len(lines)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20 < len(plain) // 4


# Identity


def test_identity_of_files(tmp_path: Path) -> None:
    path = tmp_path / "fr.txt"
    path.write_bytes(b"a" * 5_000_000)
    first = open_corpus(path).identity()
    assert first.startswith("sha256:")
    assert open_corpus(str(path)).identity() == first

    moved = tmp_path / "elsewhere" / "fr.txt"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    assert open_corpus(moved).identity() == first, "the folder is no part of the content"

    changes: list[bytes] = [b"b" + b"a" * 4_999_999, b"a" * 4_999_999 + b"b", b"a" * 5_000_001]
    for changed in changes:
        path.write_bytes(changed)
        assert open_corpus(path).identity() != first


def test_identity_depends_on_the_field(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"title": "one", "body": "two"}')
    assert open_corpus(path, "title").identity() != open_corpus(path, "body").identity()


def test_identity_of_folders_and_collections(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    before = open_corpus(tmp_path).identity()
    (tmp_path / "b.txt").write_text("two\n")
    assert open_corpus(tmp_path).identity() != before

    assert open_corpus(["ab"]).identity() == open_corpus(("ab",)).identity()
    assert open_corpus(["ab"]).identity() != open_corpus(["a", "b"]).identity()


# What is refused


def test_missing_file_names_similar_ones(tmp_path: Path) -> None:
    (tmp_path / "french.txt").write_text("x\n")
    message = error_of(tmp_path / "frenhc.txt")
    assert str(tmp_path / "frenhc.txt") in message
    assert "french.txt" in message
    assert "there is no folder" in error_of(tmp_path / "nowhere" / "fr.txt")
    assert "no file matches" in error_of(str(tmp_path / "fr-*.txt"))


def test_missing_files_are_found_when_opening(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        open_corpus(tmp_path / "fr.txt")


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.txt.gz"])
def test_empty_corpus(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    message = error_of(path)
    assert str(path) in message
    assert "is empty" in message
    assert "is empty" in error_of([])
    assert "is empty" in error_of(iter(()))


def test_json_line_without_the_field(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one"}\n\n{"body": "two", "title": "t"}\n')
    message = error_of(path)
    assert f"{path}, line 3: no field 'text'" in message
    assert "'body', 'title'" in message


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("{broken", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ('["one"]', "a JSON list; write one object per line"),
        ('{"text": 5}', "'text' holds a int, wanted text"),
        ('{"text": ' + "9" * 5000 + "}", "not usable JSON"),
        ("[" * 100_000, "not usable JSON"),
    ],
)
def test_json_lines_of_another_form(tmp_path: Path, line: str, wanted: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    message = error_of(path)
    assert f"{path}, line 2" in message
    assert wanted in message


def test_parquet_without_the_column(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(as_parquet(["one"]))
    message = error_of(path)
    assert f"{path}: no column 'text'; there is 'id', 'body'" in message
    assert "row 0: 'id' holds a int, wanted text" in error_of(path, field="id")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_undecodable_bytes(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"latin.txt{compression}"
    data = "\ufeffl'été\n".encode() + "à la mer, l'été\n".encode("latin-1")
    path.write_bytes(COMPRESSIONS[compression](data))
    message = error_of(path)
    assert f"{path}, line 2, byte offset {data.index(0xE0)}: 0xe0 isn't UTF-8" in message
    assert "iconv" in message


def test_undecodable_bytes_on_the_first_line_count_the_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "\xe9"}\n')
    assert "line 1, byte offset 13: 0xe9" in error_of(path)


def test_utf_16_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("été".encode("utf-16"))
    assert "iconv -f UTF-16" in error_of(path)


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x", "x.gz", "x.zst"])
def test_unknown_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("x")
    message = error_of(path)
    assert str(path) in message
    assert ".txt, .jsonl, .ndjson, .json, .parquet, each also with .gz or .zst" in message


def test_a_folder_without_any_known_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("x")
    assert "found x.csv" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["x.txt.gz", "x.txt.zst", "x.parquet", "x.parquet.gz", "x.parquet.zst"])
@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_damaged_files_are_never_taken_as_complete(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    plain = as_parquet(TEXTS * 50) if ".parquet" in name else as_lines(TEXTS * 5000)
    data = COMPRESSIONS[path.suffix if path.suffix in COMPRESSIONS else ""](plain)
    path.write_bytes(data[: len(data) - 7] if damage == "truncated" else b"this is something else entirely")
    message = error_of(path, field="body")
    assert str(path) in message
    assert "complete" in message


def test_a_pipe_is_sent_to_stdin(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "with - as the path" in error_of(tmp_path / "pipe.txt")


@pytest.mark.parametrize("text", ["Il pleut. " * 50, "Il pleut.\nIl neige.\n"])
def test_a_text_in_place_of_a_path(text: str) -> None:
    assert "give a single text as a list" in error_of(text)


@pytest.mark.parametrize("spec", [5, None, b"bytes", {"fr": ["x"]}])
def test_objects_that_hold_no_texts(spec: object) -> None:
    assert f"type {type(spec).__name__}" in error_of(spec, ConfigError)


def test_items_that_are_no_texts() -> None:
    message = error_of(["one", {"text": "two"}])
    assert "a list of 2 texts: document 1 is of type dict, wanted str" in message


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("x.txt.zst", "zstandard", "files"),
        ("x.parquet", "pyarrow", "files"),
        ("hub:a/b::text", "datasets", "hub"),
    ],
)
def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    spec = name if name.startswith("hub:") else str(tmp_path / name)
    if not name.startswith("hub:"):
        Path(spec).write_bytes(b"x")
    with pytest.raises(MissingDependencyError) as caught:
        open_corpus(spec)
    message = str(caught.value)
    assert package in message
    assert message.splitlines()[-1] == f'pip install "babelscope[{extra}]"'


# Hub


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the layout of a Hub dataset with two splits.

    JSON lines, because `datasets` sleeps five seconds at the end of every shuffled Parquet stream.
    """
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(as_json_lines([f"document {i}" for i in range(50)]))
    (folder / "test.jsonl").write_bytes(as_json_lines(["held out", None]))
    return folder


def test_hub_stream_is_shuffled_by_the_seed(dataset_folder: Path) -> None:
    corpus = open_corpus(f"hub:{dataset_folder}::body", seed=1)
    texts = texts_of(corpus)
    assert sorted(texts) == sorted(f"document {i}" for i in range(50))
    assert texts != [f"document {i}" for i in range(50)]
    assert texts_of(corpus) == texts
    assert texts_of(open_corpus(f"hub:{dataset_folder}::body", seed=1)) == texts
    assert texts_of(open_corpus(f"hub:{dataset_folder}::body", seed=2)) != texts
    assert (corpus.kind, corpus.rewindable, corpus.bounded) == ("hub", True, False)


def test_hub_split_configuration_and_default_field(dataset_folder: Path) -> None:
    corpus = open_corpus(f"hub:{dataset_folder}:default::test", "body")
    assert sorted(texts_of(corpus)) == ["", "held out"]
    assert corpus.identity() == f"hub:{dataset_folder}:default:body:test"


def test_hub_errors(dataset_folder: Path) -> None:
    assert "no field 'text'; there is 'id', 'body'" in error_of(f"hub:{dataset_folder}::text")
    message = error_of(f"hub:{dataset_folder}::body:dev")
    assert "can't open" in message
    assert "split (dev)" in message
    assert "nowhere" in error_of("hub:/nowhere/at/all::text")


@pytest.mark.parametrize("spec", ["hub:", "hub:a/b", "hub:a/b:c", "hub::c:text", "hub:a:b:c:d:e"])
def test_malformed_hub_spec(spec: str) -> None:
    message = error_of(spec, ConfigError)
    assert repr(spec) in message
    assert "hub:NAME:CONFIG:FIELD" in message
