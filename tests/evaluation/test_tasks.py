"""The table of tasks: files in the original layouts, prompts, scores, and what is said about a file that won't do."""

from __future__ import annotations

import json
import os
import re
from itertools import islice
from pathlib import Path

import pytest

from babelscope.errors import ConfigError, DataError
from babelscope.evaluation.tasks.benchmarks import TABLE, asked_by_name, find
from babelscope.evaluation.tasks.confusion import stays
from babelscope.evaluation.tasks.data import read_csqa, read_xlsum
from babelscope.evaluation.tasks.prompts import WORDS
from babelscope.tinybabel.tasks import TASKS, export, items
from babelscope.tinybabel.texts import documents

QUESTION = {"stem": "Où dort-on ?", "choices": [{"label": "A", "text": "un lit"}, {"label": "B", "text": "un pré"}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of each benchmark, in the layout that it was published in."""

    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")

    put("mgsm/mgsm_fr.tsv", "Combien font 1 000 + 1 125 ?\t2,125\nEt 2 - 5 ?\t-3\n")
    put("mgsm/mgsm_zh.tsv", "一加一等于几？\t2\n")
    answers = [{"text": "308", "answer_start": 3}, {"text": "308分", "answer_start": 3}]
    asked = [{"id": "q1", "question": "多少分？", "answers": answers}]
    paragraphs = [{"context": "只丢了308分。", "qas": asked}]
    put("xquad/xquad.zh.json", json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    put("xcsqa/fr/dev.jsonl", json.dumps({"id": "c1", "lang": "fr", "question": QUESTION, "answerKey": "B"}) + "\n")
    article = {"id": "a1", "url": "", "title": "Pluie", "summary": "Il pleut.", "text": "Il a plu hier.\nBeaucoup."}
    put("xlsum/french_test.jsonl", json.dumps(article) + "\n")
    return tmp_path


def only(name: str, language: str, data: Path | None):
    (asked,) = find([name], [language], data)
    return asked


def test_mgsm_from_its_tsv(data):
    asked = only("mgsm", "fr", data)
    assert asked.name == "babelscope_mgsm_fr"
    assert [(row["id"], row["number"]) for row in asked.rows()] == [("0", 2125), ("1", -3)]
    first = asked.rows()[0]
    assert asked.prompt(first) == (
        "Question : Combien font 1 000 + 1 125 ?\n"
        "Réfléchissons étape par étape. La dernière ligne contient #### et le nombre.\nRéponse :"
    )
    assert only("mgsm_direct", "zh", data).prompt(only("mgsm", "zh", data).rows()[0]) == "问题：一加一等于几？\n答案："
    assert only("mgsm_paper", "zh", data).prompt({"question": "几？"}) == "让我们一步一步地思考。问题：几？"
    assert asked.config()["generation_kwargs"] == {"until": ["\nQuestion :"], "max_gen_toks": 512, "do_sample": False}
    assert asked.score(first, ["1 000 + 1 125 = 2125\n#### 2 125"]) == {"strict": 1, "flexible": 1}, (
        "a space groups digits"
    )
    assert asked.score(first, ["donc 2125.\n#### 2.125"]) == {"strict": 1, "flexible": 1}
    assert asked.score(first, ["donc 2125"]) == {"strict": 0, "flexible": 1}
    assert asked.score(first, ["#### 2125, ou 7"]) == {"strict": 1, "flexible": 1}
    assert asked.target(first) == "2125", "as the solutions print it"
    paper = only("mgsm_paper", "fr", data)
    assert paper.score(first, ["#### 2125, ou 7"]) == {"strict": 1, "flexible": 1, "paper": 1}
    assert paper.score(first, [r"\boxed{2125}, ou 7"]) == {"strict": 0, "flexible": 1, "paper": 0}
    direct = only("mgsm_direct", "fr", data)
    assert direct.score(first, [" 2125 €"]) == {"strict": 1, "flexible": 1}
    assert direct.score(first, ["C'est 2125"]) == {"strict": 0, "flexible": 1}
    assert direct.score(first, ["7"]) == {"strict": 0, "flexible": 0}


def test_xquad_from_squad_json(data):
    asked = only("xquad", "zh", data)
    (row,) = asked.rows()
    assert (row["references"], row["starts"]) == (["308", "308分"], [3, 3])
    assert asked.prompt(row) == "只丢了308分。\n问题：多少分？\n答案："
    assert only("xquad_paper", "zh", data).prompt(row) == "只丢了308分。问题：多少分？"
    assert asked.score(row, ["308分"]) == {"exact_match": 1, "f1": 1, "contains": 1}
    # "丢", "了", "308", "分" beside "308", "分": 2 * 2 / (4 + 2)
    assert asked.score(row, ["丢了308分"]) == {"exact_match": 0, "f1": pytest.approx(2 / 3), "contains": 1}
    assert asked.target(row) == ["308", "308分"]


def test_xcsqa_from_json_lines(data):
    asked = only("xcsqa", "fr", data)
    (row,) = asked.rows()
    assert asked.prompt(row) == "Question : Où dort-on ?\nRéponse :"
    assert only("xcsqa_paper", "fr", data).prompt(row) == "Question : Où dort-on ?"
    assert (asked.choices(row), asked.target(row)) == (["un lit", "un pré"], 1)
    assert asked.config()["target_delimiter"] == " "
    assert asked.score(row, [(-3.0, False), (-2.0, False)]) == {"acc": 1, "acc_per_byte": 1}
    # 6 bytes at -2.9 and 7 at -3.0 (é is two): by the byte the second is the likelier
    assert asked.score(row, [(-2.9, False), (-3.0, False)]) == {"acc": 0, "acc_per_byte": 1}
    letter = only("xcsqa_letter", "fr", data)
    assert letter.prompt(row) == (
        "Question : Où dort-on ?\nA. un lit\nB. un pré\nRéponds par la lettre de la bonne proposition.\nRéponse :"
    )
    for answer in ("B", " (B) un pré", "答案是B。", "A good bed is B", "Réponse : B", "Ｂ", "Ответ: В", "b"):
        assert letter.score(row, [answer]) == {"acc": 1}, answer
    for answer in ("A", "Bed", "a bed", ""):
        assert letter.score(row, [answer]) == {"acc": 0}, answer


def test_xlsum_from_json_lines(data):
    asked = only("xlsum", "fr", data)
    (row,) = asked.rows()
    assert asked.prompt(row) == (
        "Résume le texte en une phrase.\nTitre : Pluie\nTexte : Il a plu hier.\nBeaucoup.\nRésumé :"
    )
    assert "Titre" not in asked.prompt({**row, "title": ""})
    assert only("xlsum_paper", "fr", data).prompt(row) == (
        "Résume le contexte en une phrase. Titre : Pluie Contexte : Il a plu hier.\nBeaucoup."
    )
    assert asked.score(row, ["Il pleut !"])["rouge_l"] == 1
    assert asked.score(row, ["Il pleut."]) == {"rouge_l": 1, "chrf": pytest.approx(1)}
    assert asked.score(row, ["xyz"]) == {"rouge_l": 0, "chrf": 0}


def test_languages_by_the_files_or_by_the_hub(data):
    assert [asked.language for asked in find(["mgsm"], None, data)] == ["fr", "zh"]
    assert [asked.name for asked in find(["xquad", "xlsum"], None, data)] == [
        "babelscope_xquad_zh",
        "babelscope_xlsum_fr",
    ]
    assert [asked.language for asked in find(["mgsm"], None, None)] == ["en", "de", "fr", "zh", "es", "ru", "th", "sw"]
    assert [asked.language for asked in find(["mgsm"], ["French", "zho_Hans", "fr"], data)] == ["fr", "zh"], "once each"
    assert asked_by_name("babelscope_xcsqa_letter_fr", data).rows() == only("xcsqa", "fr", data).rows()


def test_tinybabels_tasks_are_its_own(tmp_path):
    assert [asked.benchmark.name for asked in find(["tinybabel"], ["sw"], None)] == [
        f"tinybabel_{task}" for task in TASKS
    ]
    for task in TASKS:
        asked = only(f"tinybabel_{task}", "th", None)
        rows = asked.rows()
        for row, item in zip(rows, islice(items(task, "th", "test"), 5), strict=False):
            assert (row["id"], asked.prompt(row)) == (item.id, item.prompt)
            right = [(0.0 if text == item.answer else -1.0, False) for text in row.get("choices", ())]
            best = list(asked.score(row, right or [item.answer]).values())
            assert best == [pytest.approx(1)] * len(best), "its own answer is right"
            assert min(asked.score(row, [(-value, False) for value, _ in right] or ["???"]).values()) == 0


def test_tinybabels_files_are_read_like_the_benchmarks(tmp_path):
    export(tmp_path / "files", count=3, languages=["ar"])
    pairs = {"mgsm": "reasoning", "xquad": "understanding", "xcsqa": "knowledge", "xlsum": "generation"}
    for name, task in pairs.items():
        rows = only(name, "ar", tmp_path / "files").rows()
        made = only(f"tinybabel_{task}", "ar", None).rows()[:3]
        assert len(rows) == 3
        for row, expected in zip(rows, made, strict=True):
            assert {key: row[key] for key in row if key != "id"} == {key: expected[key] for key in row if key != "id"}


def test_every_prompt_in_every_language():
    row = {
        "question": "Q?", "context": "C.", "title": "T", "text": "X.", "labels": ["A"], "choices": ["c"], "prompt": "P:"
    }  # fmt: skip
    for benchmark in TABLE.values():
        if benchmark.name.endswith("_lm_eval"):  # these have the languages of the harness's own files
            continue
        prompts = {code: benchmark.prompt(words, row) for code, words in WORDS.items()}
        assert all(prompt == prompt.strip() for prompt in prompts.values())
        if not benchmark.name.startswith(("tinybabel", "confusion")):  # these bring their own
            assert len(set(prompts.values())) == len(WORDS), f"{benchmark.name}: two languages ask the same"
    assert {len({getattr(words, name) for words in WORDS.values()}) for name in ("steps", "final", "letter")} == {10}


# Errors, by name


def test_what_there_is_not(data, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown task 'mgms': did you mean mgsm\? there are mgsm, "):
        find(["mgms"], None, None)
    with pytest.raises(ConfigError, match="mgsm has no items in ar; it has them in fr, zh"):
        find(["mgsm"], ["ar"], data)
    with pytest.raises(ConfigError, match="xquad has no prompts in ja; there are some in en, de"):
        find(["xquad"], ["ja"], None)
    with pytest.raises(ConfigError, match="unknown language 'frensh'"):
        find(["mgsm"], ["frensh"], data)
    with pytest.raises(DataError, match="no folder"):
        find(["mgsm"], None, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no file of xquad. Wanted.*xquad/xquad.\{\}.json"):
        find(["xquad"], None, tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "content", "task", "language", "expected"),
    [
        ("mgsm/mgsm_fr.tsv", "Combien ?\n", "mgsm", "fr", "line 1: wanted a question, a tab and a number"),
        ("mgsm/mgsm_fr.tsv", "1 ?\t1\nCombien ?\tdeux\n", "mgsm", "fr", "line 2: wanted"),
        ("mgsm/mgsm_fr.tsv", "", "mgsm", "fr", "holds no item"),
        ("xquad/xquad.zh.json", "[", "xquad", "zh", "not JSON"),
        ("xquad/xquad.zh.json", "[]", "xquad", "zh", "not SQuAD JSON"),
        ("xquad/xquad.zh.json", '{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "xquad", "zh", "'context'"),
        ("xquad/xquad.zh.json", json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": [
            {"id": "q1", "question": "q", "answers": []}]}]}]}), "xquad", "zh", "question q1 has no answer"),
        ("xcsqa/fr/dev.jsonl", json.dumps({"id": "c", "question": {"stem": "s", "choices": [
            {"label": "A", "text": " "}, {"label": "B", "text": "x"}]}, "answerKey": "B"}), "xcsqa", "fr",
            "a choice without text"),
        ("xlsum/french_test.jsonl", '{"id": "a7", "text": "b", "summary": " "}\n', "xlsum", "fr",
            "article 'a7' has an empty summary"),
        ("xcsqa/fr/dev.jsonl", '{"id": 1}\n', "xcsqa", "fr", "wanted question"),
        ("xcsqa/fr/dev.jsonl", json.dumps({"id": "c", "question": QUESTION}), "xcsqa", "fr", "test split has no keys"),
        ("xlsum/french_test.jsonl", '{"id": "a", "text": "b"}\n', "xlsum", "fr", "no 'summary'"),
        ("xlsum/french_test.jsonl", '{"id": "a", "text": "b", "summary": null}', "xlsum", "fr", "found a NoneType"),
        ("xlsum/french_test.jsonl", "{}\n", "xlsum", "fr", "wanted id"),
        ("xlsum/french_test.jsonl", '{"id": "a", "text": "b", "summary": "c"}\nx\n', "xlsum", "fr", "line 2: not JSON"),
    ],
)  # fmt: skip
def test_files_that_will_not_do(data, file, content, task, language, expected):
    (data / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=expected):
        only(task, language, data).rows()


def test_bytes_that_are_not_text(data):
    (data / "mgsm/mgsm_fr.tsv").write_bytes(b"\xff\t1\n")
    with pytest.raises(DataError, match="isn't UTF-8"):
        only("mgsm", "fr", data).rows()


@pytest.mark.parametrize("task", ["mgsm", "xquad"])
def test_no_network_and_nothing_in_the_cache(task, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(DataError, match=r"not in the cache and could not be downloaded \(offline\).*--data"):
        only(task, "de", None).rows()


def test_the_hubs_rows_are_those_of_the_files(data, monkeypatch):
    squad = json.loads((data / "xquad/xquad.zh.json").read_text(encoding="utf-8"))["data"][0]["paragraphs"][0]
    answers = squad["qas"][0]["answers"]
    columns = {name: [answer[name] for answer in answers] for name in ("text", "answer_start")}
    question = {"stem": QUESTION["stem"], "choices": {"label": ["A", "B"], "text": ["un lit", "un pré"]}}
    article = json.loads((data / "xlsum/french_test.jsonl").read_text(encoding="utf-8"))
    tables = {
        ("google/xquad", "xquad.zh", "validation"): {
            **squad["qas"][0],
            "context": squad["context"],
            "answers": columns,
        },
        ("INK-USC/xcsr", "X-CSQA-fr", "validation"): {"id": "c1", "lang": "fr", "question": question, "answerKey": "B"},
        ("csebuetnlp/xlsum", "french", "test"): article,
    }
    monkeypatch.setattr("datasets.load_dataset", lambda path, name, split, **_: [tables[path, name, split]])
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda repository, name, repo_type: str(data / "mgsm" / name)
    )
    for name, language in {"xquad": "zh", "xcsqa": "fr", "xlsum": "fr", "mgsm": "fr"}.items():
        assert only(name, language, None).rows() == only(name, language, data).rows()


# The real files, where they are


SHARED = Path(os.environ.get("BABELSCOPE_SHARED", Path(__file__).parents[3] / "shared")) / "data"
REAL = SHARED / "benchmarks"


@pytest.mark.skipif(
    not (SHARED / "MANIFEST.md").is_file(), reason="no published files in BABELSCOPE_SHARED or ../shared"
)
def test_the_published_files():
    listed = dict(
        re.findall(
            r"^\| benchmarks/(\S+) \|.*\| (\d+) (?:lines|questions|pairs) \| \d+ \|",
            (SHARED / "MANIFEST.md").read_text(encoding="utf-8"),
            re.M,
        )
    )

    def counts(pattern: str) -> dict[str, int]:
        """By language, as the manifest lists them."""
        named = ((re.fullmatch(pattern, name), int(count)) for name, count in listed.items())
        return {found[1]: count for found, count in named if found}

    mgsm = {asked.language: asked.rows() for asked in find(["mgsm"], None, REAL)}
    assert {language: len(rows) for language, rows in mgsm.items()} == counts(r"mgsm/mgsm_(\w+)\.tsv")
    assert set(mgsm) == {"en", "de", "fr", "zh", "es", "ru", "sw"}
    assert {tuple(row["number"] for row in rows) for rows in mgsm.values()} == {
        tuple(row["number"] for row in mgsm["en"])
    }, "the same answers in all languages"
    assert [mgsm["en"][index]["number"] for index in (0, 146, 201, 230, 249)] == [18, 2125, 114200, 276000, 5600]
    xquad = {asked.language: asked.rows() for asked in find(["xquad"], None, REAL)}
    assert {language: len(rows) for language, rows in xquad.items()} == counts(r"xquad/xquad\.(\w+)\.json")
    assert set(xquad) == {"en", "de", "zh", "es", "ru"}
    for rows in xquad.values():
        assert len({row["context"] for row in rows}) == 240
        assert all(
            row["context"][start : start + len(text)] == text
            for row in rows
            for text, start in zip(row["references"], row["starts"], strict=True)
        )
    names = {"fr": "french", "es": "spanish", "ru": "russian"}
    xlsum = {asked.language: asked.rows() for asked in find(["xlsum"], None, REAL)}
    assert {names[language]: len(rows) for language, rows in xlsum.items()} == counts(
        r"xlsum_noncommercial/(\w+)_val\.jsonl"
    )
    assert all(row["text"] and row["summary"] for rows in xlsum.values() for row in rows)
    samples = SHARED / "format_samples"
    for name, read in (("xcsqa_example.jsonl", read_csqa), ("xlsum_example.jsonl", read_xlsum)):
        rows = read(samples / name)
        assert len(rows) == sum(bool(line.strip()) for line in (samples / name).open(encoding="utf-8"))
    for row in read_csqa(samples / "xcsqa_example.jsonl"):
        assert row["choices"][row["gold"]]


# Language confusion


def test_confusion_reads_the_benchmarks_folders(tmp_path):
    for source, prompt in (("aya", "Was ist ein Baum?"), ("okapi", "Schreiben Sie,\nbitte.\n")):
        (tmp_path / "test_sets/monolingual" / source).mkdir(parents=True)
        text = f'prompt,source,language\n"{prompt}",{source},de\n'
        (tmp_path / f"test_sets/monolingual/{source}/de.csv").write_text(text, encoding="utf-8")
    (asked,) = find(["confusion"], None, tmp_path)
    assert (asked.language, [row["id"] for row in asked.rows()]) == ("de", ["aya-0", "okapi-0"])
    assert [asked.prompt(row) for row in asked.rows()] == ["Was ist ein Baum?", "Schreiben Sie,\nbitte."]
    assert asked.target(asked.rows()[0]) == "de"
    (tmp_path / "test_sets/monolingual/aya/de.csv").write_text("text\nx\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"item 1: wanted a column prompt, found \['text'\]"):
        asked.rows()
    with pytest.raises(DataError, match=r"Clone github\.com/for-ai"):
        only("confusion", "de", None).rows()


@pytest.mark.parametrize(
    ("language", "answer", "line", "word"),
    [
        ("de", "Das Wetter ist heute sehr schön.\nMorgen wird es den ganzen Tag regnen.", 1, 1),
        ("de", "Das Wetter ist heute sehr schön.\nTomorrow it will rain for the whole day.", 0, 1),
        ("de", "Das Wetter ist heute sehr schön.\nTomorrow", 1, 1),  # too short a line to be judged
        ("de", "Das Wetter ist heute 非常好 und warm.", 1, 0),
        ("zh", "今天天气很好，我们去公园散步吧。", 1, 1),
        ("zh", "今天天气很好，我们去 park 散步吧。", 1, 0),
        ("ru", "Сегодня хорошая погода, и мы идём гулять.", 1, 1),
        ("ru", "The weather is fine today and we go out.", 0, 0),
        ("th", "วันนี้อากาศดีมากเราไปเดินเล่นที่สวนสาธารณะ", 1, 1),
        ("ar", "الطقس جميل اليوم ونحن نذهب إلى الحديقة.", 1, 1),
        ("fr", "", 0, 0),
        ("fr", "12 + 7 = 19", 0, 0),
    ],
)
def test_confusion_by_hand(language, answer, line, word):
    assert stays(language, {}, answer) == {"line_pass": line, "word_pass": word}


def test_tinybabels_beginnings_are_short_and_its_documents_stay_in_their_language():
    for language in ("en", "zh", "th"):
        asked = only("tinybabel_confusion", language, None)
        texts = list(islice(documents(language, "test"), 3))
        for row, text in zip(asked.rows(), texts, strict=False):
            assert text.startswith(asked.prompt(row))
            assert 0 < len(asked.prompt(row)) <= max(6, len(text) // 6)
            assert asked.score(row, [text]) == {"line_pass": 1, "word_pass": 1}
