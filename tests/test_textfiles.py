"""Files of text in every shape: the right text, or an error that says what the file is and how to mend it."""

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pytest

from babelscope import textfiles
from babelscope.corpora.sources import open_corpus
from babelscope.errors import DataError
from babelscope.evaluation.tasks.confusion import read_prompts
from babelscope.evaluation.tasks.data import read_csqa, read_mgsm, read_squad, read_xlsum
from babelscope.study.config import load_study
from babelscope.textfiles import json_rows, lines, read_text, valid

TEXTS = {
    "en": "The rain falls on the town, and the river rises.\nNobody is on the street.\n",
    "fr": "Aujourd’hui il pleut à Orléans, la fête est annulée.\nOù êtes-vous allés hier soir ?\n",
    "ru": "Сегодня идёт дождь, и город стоит под водой.\nЗавтра будет солнце и тепло.\n",
    "hi": "आज बहुत बारिश हो रही है।\nकल धूप निकलेगी और गर्मी होगी।\n",
    "th": "วันนี้ฝนตกหนักมาก พรุ่งนี้จะมีแดด\nเราจะไปที่ตลาด\n",
    "ar": "اليوم تمطر بغزارة في المدينة\nوغدا ستشرق الشمس\n",
    "vi": "Hôm nay trời mưa rất to ở thành phố.\nNgày mai trời sẽ nắng.\n",
    "zh": "今天下雨，城市被水淹没。\n明天会有太阳，天气温暖。\n",
    "ja": "今日は雨が降っています。\n明日は晴れるでしょう。\n",
    "ko": "오늘은 비가 많이 내립니다.\n내일은 맑고 따뜻하겠습니다.\n",
    "sw": "Leo mvua inanyesha sana mjini.\nKesho jua litawaka.\n",
}


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(path: Path, read: object = None) -> str:
    with pytest.raises(DataError) as caught:
        (read or (lambda given: list(open_corpus(given))))(path)  # type: ignore[operator]
    return str(caught.value)


# Encodings


@pytest.mark.parametrize("code", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_wide_encodings_are_recognised_with_and_without_a_mark(
    tmp_path: Path, code: str, encoding: str, mark: str
) -> None:
    path = written(tmp_path / "x.txt", (mark + TEXTS[code]).encode(encoding))
    name = encoding.upper().replace("UTF-16-", "UTF-16").replace("UTF-32-", "UTF-32")
    assert f"iconv -f {name} " in error_of(path), "the advice converts it"
    assert f"it is {name}" in error_of(path, read_text)


@pytest.mark.parametrize("code", TEXTS)
def test_utf_8_is_never_taken_for_anything_else(tmp_path: Path, code: str) -> None:
    for text in (TEXTS[code], TEXTS[code] + "\0", "\0" + TEXTS[code], "\ufeff" + TEXTS[code] * 300):
        assert read_text(written(tmp_path / "x.txt", text)) == text.removeprefix("\ufeff")


@pytest.mark.parametrize("code", TEXTS)
def test_a_damaged_character_is_not_another_encoding(tmp_path: Path, code: str) -> None:
    """Only where it is damaged is told, for the text is UTF-8."""
    path = written(tmp_path / "x.txt", (TEXTS[code] * 3).encode() + b"\xff\xfe\n")
    assert f"line 7, byte offset {len((TEXTS[code] * 3).encode())}: 0xff isn't UTF-8" in error_of(path)


@pytest.mark.parametrize(
    ("code", "encoding", "name"),
    [("ru", "cp1251", "CP1251"), ("zh", "gb18030", "GB18030"), ("ja", "cp932", "CP932"), ("th", "cp874", "CP874"),
     ("ar", "cp1256", "CP1256"), ("ko", "cp949", "CP949"), ("fr", "cp1252", "CP1252")],
)  # fmt: skip
def test_the_advice_names_the_encoding(tmp_path: Path, code: str, encoding: str, name: str) -> None:
    path = written(tmp_path / "x.txt", TEXTS[code].replace("—", "-").encode(encoding))
    message = error_of(path)
    assert "isn't UTF-8" in message
    assert f"iconv -f {name} " in message
    assert "LATIN1" not in message
    assert "Find out the encoding" in error_of(written(path, "un café\n".encode("latin-1"))), "too little to guess from"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"one\n", mtime=0), "gzip"),
        (b"PAR1\0\0", "Parquet"),
        (b"PK\x03\x04abc", "zip"),
        (b"%PDF-1.4\n", "PDF"),
    ],
)
def test_a_file_that_is_no_text_says_what_it_is(tmp_path: Path, content: bytes, kind: str) -> None:
    assert f"it is a {kind} file" in error_of(written(tmp_path / "x.txt", content))


def test_half_characters_become_a_replacement() -> None:
    assert valid("plain") == "plain"
    assert valid("a\ud83db\udc00") == "a\ufffdb\ufffd"
    assert valid("\ud83d\ude00") == "😀", "two halves that belong together are one character"
    assert list(lines(io.BytesIO(b"one \xed\xa0\xbd\ntwo\n"), "x")) == ["one \ufffd", "two"]


def test_half_a_character_in_a_benchmark_file_does_not_end_a_run(tmp_path: Path) -> None:
    question = {"stem": "? \ud83d", "choices": [{"label": "A", "text": "x \udc00"}]}
    rows = read_csqa(written(tmp_path / "x.jsonl", json.dumps({"id": "1", "question": question, "answerKey": "A"})))
    assert (rows[0]["question"], rows[0]["choices"]) == ("? \ufffd", ["x \ufffd"])
    squad = {"data": [{"paragraphs": [{"context": "c \ud83d", "qas": [
        {"id": "q", "question": "?", "answers": [{"text": "c", "answer_start": 0}]}]}]}]}  # fmt: skip
    assert read_squad(written(tmp_path / "x.json", json.dumps(squad)))[0]["context"] == "c \ufffd"


# Lines

INSIDE = ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c", "\x1d", "\x1e", "\r"]


@pytest.mark.parametrize("character", INSIDE)
def test_only_a_line_feed_ends_a_line(tmp_path: Path, character: str) -> None:
    text = f"one{character}two"
    assert [document.text for document in open_corpus(written(tmp_path / "x.txt", f"{text}\n{text}\r\n"))] == [text] * 2
    (first, second) = read_mgsm(written(tmp_path / "m.tsv", f"\ufeff{text}\t5\n{text}\t6\r\n"))
    assert (first["question"], first["number"], second["question"], second["number"]) == (text, 5, text, 6)
    article = {"id": "a", "title": "", "text": text, "summary": text}
    rows = read_xlsum(written(tmp_path / "x.jsonl", "\ufeff" + json.dumps(article, ensure_ascii=False) + "\n"))
    assert [row["text"] for row in rows] == [text]


def test_a_mark_at_the_start_is_dropped_everywhere(tmp_path: Path) -> None:
    squad = {"data": [{"paragraphs": [{"context": "c", "qas": [
        {"id": "q", "question": "?", "answers": [{"text": "c", "answer_start": 0}]}]}]}]}  # fmt: skip
    assert read_squad(written(tmp_path / "x.json", "\ufeff" + json.dumps(squad)))[0]["context"] == "c"
    choice = {"id": "1", "question": {"stem": "?", "choices": [{"label": "A", "text": "x"}]}, "answerKey": "A"}
    assert read_csqa(written(tmp_path / "x.jsonl", "\ufeff" + json.dumps(choice)))[0]["gold"] == 0
    (tmp_path / "a").mkdir()
    assert read_prompts(written(tmp_path / "a" / "fr.csv", '\ufeffprompt,x\n"Bonjour\u2028!",1\n'))[0]["prompt"] == (
        "Bonjour\u2028!"
    )
    assert load_study(written(tmp_path / "s.yaml", "\ufeffextends: tinybabel-quick\n")).models


def test_a_long_line_is_cut_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(textfiles, "LONGEST_LINE", 10)
    path = written(tmp_path / "x.txt", "ééééééé\nshort\n" + "a" * 30 + "\r\nlast")
    assert [document.text for document in open_corpus(path)] == ["ééééé", "short", "a" * 10, "last"]
    assert "line 1" in caplog.text
    assert "line 3" in caplog.text
    path = written(tmp_path / "x.jsonl", '{"text": "one two"}\n')
    assert "line 1 is longer than" in error_of(path)


def test_a_line_without_an_end_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "LONGEST_LINE", 2**20)
    path = tmp_path / "x.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as out:
        for _ in range(100):
            out.write(b"a" * 2**20)
    tracemalloc.start()
    try:
        (document,) = open_corpus(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(document.text) == 2**20
    assert peak < 8 * 2**20, "100 MiB of text"


def test_a_file_that_is_too_large_to_read_at_once_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "LARGEST_FILE", 10)
    assert "larger than" in error_of(written(tmp_path / "x.txt", "a" * 11), read_text)


# JSON

ROWS = [{"text": "one, [two]"}, {"text": '三\u2028"\\', "n": [1, {"a": 2}]}, {"text": None}, {"text": "\ud83d"}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("extension", [".json", ".jsonl", ".ndjson", ".json.gz"])
def test_an_array_of_objects(tmp_path: Path, indent: int | None, extension: str) -> None:
    text = "\ufeff \n" + json.dumps(ROWS, indent=indent)
    path = written(
        tmp_path / f"x{extension}", gzip.compress(text.encode()) if extension.endswith("gz") else text.encode()
    )
    assert [document.text for document in open_corpus(path)] == ["one, [two]", '三\u2028"\\', "", "\ufffd"]


def test_ndjson_is_json_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "x.ndjson", '{"text": "one"}\n{"text": "two"}\n')
    assert [document.text for document in open_corpus(path)] == ["one", "two"]
    article = json.dumps([{"id": "a", "text": "t", "summary": "s"}])
    assert len(read_xlsum(written(tmp_path / "x.jsonl", article))) == 1, "benchmarks too"


def test_an_array_is_read_by_parts_that_cut_it_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps([{"text": "é三😀" * n} for n in range(9)], ensure_ascii=False, indent=1)
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(textfiles, "MIB", size)
        values = [value["text"] for _, value in json_rows(io.BytesIO(text.encode()), "x")]
        assert values == ["é三😀" * n for n in range(9)]


def test_an_array_is_not_held_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"text": "a" * 1000}] * 30_000), encoding="utf-8")
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_corpus(path)) == 30_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20 < path.stat().st_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"} {"text": "b"}]', "element 1: wanted a comma or ] after it, found '{'"),
        ('[{"text": "a"}', "element 1: wanted a comma or ] after it, found 'the end'"),
        ('[{"text": "a"},]', "element 2: not JSON"),
        ('[{"text": "a"}, {"text": ', "element 2: not JSON"),
        ('[{"text": "a"}] more', "text follows the end of the array"),
        ('["a"]', "element 1: a JSON str; write one object per line"),
        ("[" * 100_000, "element 1: not JSON"),
        ('[{"text": "a"}, {"text": ' + "9" * 5000 + "}]", "element 2: not JSON"),
    ],
)
def test_an_array_of_another_form(tmp_path: Path, text: str, message: str) -> None:
    assert message in error_of(written(tmp_path / "x.json", text))
