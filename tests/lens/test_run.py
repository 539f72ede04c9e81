"""A lens run from the command line: its folder, prompts in every form, errors by name."""

from __future__ import annotations

import csv
import json
import logging
import sys
from typing import ClassVar

import pytest
import torch

from babelscope import cli, progress
from babelscope.corpora.sources import open_corpus
from babelscope.lens import run as runs
from babelscope.lens.curve import LanguageCurve
from babelscope.lens.tuned import TunedLens
from babelscope.lens.words import latent_language, translations
from babelscope.models.load import load_model
from fixtures_text import save_tiny_model, write_texts


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return save_tiny_model(folder / "model"), write_texts(folder / "texts")


@pytest.fixture
def lens(world, capsys, monkeypatch):
    model, texts = world
    monkeypatch.setenv("COLUMNS", "80")

    def command(out, *words, corpora=texts):
        given = [word for code, path in corpora.items() for word in ("--corpus", f"{code}={path}")]
        code = cli.main([str(each) for each in ["lens", model, *given, "--max-tokens", 24, "--out", out, *words]])
        return code, *capsys.readouterr()

    command.model = model
    return command


def test_a_run_and_the_same_again(lens, world, tmp_path, monkeypatch):
    out = tmp_path / "run"
    code, text, error = lens(out, "--prompts", "corpus", "--documents", 3)
    assert code == 0, error
    assert all(len(line) <= 80 for line in text.splitlines())
    for expected in ("prompts in", "fr French", "zh Chinese", "peak memory", "lens.safetensors", "no pivot"):
        assert expected in text
    curve = LanguageCurve.load(out / runs.CURVE)
    assert curve.prompt_languages == ("fr",) * 3 + ("zh",) * 3 + ("sw",) * 3
    assert len(curve.grids) == 3
    with (out / runs.TABLE).open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3 * 3 * 4
    assert float(table[0]["mass"]) == pytest.approx(float(curve.of("fr")[0, 0]))
    assert (out / runs.PAGE).stat().st_size > 500_000
    assert (out / "area.svg").read_text(encoding="utf-8").startswith("<svg")
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert (record["status"], record["prompts_read"]) == ("finished", 9)
    assert record["peak_memory"]["host"] > 2**20

    monkeypatch.setattr(runs, "language_lens", None)  # nothing is computed again
    code, again, _ = lens(out, "--prompts", "corpus", "--documents", 3, "--json")
    assert code == 0
    assert json.loads(again)["mass"]["fr"]["unknown"] == pytest.approx(curve.of("fr")[:, -1].tolist())
    code, _, error = lens(out, "--prompts", "corpus", "--documents", 4)
    assert (code, "other settings (documents: then 3, now 4)" in error) == (1, True)


def test_every_flag_reaches_the_library(lens, world, tmp_path, monkeypatch):
    asked = {}

    def note(model, tokenizer, corpora, prompts, out, **options):
        options["words"] = {code: corpus.name for code, corpus in options["words"].items()}
        asked.update(options, dtype=next(model.parameters()).dtype, out=out)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_lens", note)
    words = "--profile-documents 7 --documents 5 --new-tokens 2 --identifier lingua --no-final-norm --top-k 3 --grids 2"
    words += " --tuned-documents 6 --words fr=tinybabel:fr --seed 4 --dtype float64 --prompts corpus"
    assert lens(tmp_path, *words.split())[0] == 130
    assert asked == {
        "profile_documents": 7, "documents": 5, "max_tokens": 24, "new_tokens": 2, "identifier": "lingua",
        "final_norm": False, "top_k": 3, "grids": 2, "seed": 4, "dtype": torch.float64, "out": tmp_path,
        "tuned_documents": 6, "words": {"fr": "tinybabel:fr"},
    }  # fmt: skip


def test_without_the_report_packages_the_numbers_are_written_all_the_same(lens, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    code, _, error = lens(tmp_path / "run", "--prompts", "corpus", "--documents", 1)
    assert code == 0
    assert 'pip install "babelscope[report]"' in error
    assert (tmp_path / "run" / runs.CURVE).is_file()
    assert not (tmp_path / "run" / runs.PAGE).exists()


def test_prompts_in_every_form(world, tmp_path):
    _, texts = world
    mixed = tmp_path / "mixed.jsonl"
    rows = [
        {"language": "French", "text": "la mer"},
        {"language": "sw", "text": "maji"},
        {"language": "fra", "text": "le"},
    ]
    mixed.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = runs.open_prompts([str(mixed), f"zh={texts['zh']}"], {})
    assert {code: [document.text for document in corpus] for code, corpus in found.items()}["fr"] == ["la mer", "le"]
    assert list(found) == ["fr", "sw", "zh"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompts", "frensh=a.txt"], "unknown language 'frensh'"),
        (["--prompts", "{texts}/fr.txt"], "doesn't say which language"),
        (["--prompts", "{texts}/none.jsonl"], "no file"),
        (["--prompts", "{texts}/empty.jsonl"], "empty.jsonl is empty"),
        (["--prompts", "{texts}/unknown.jsonl"], "unknown language 'xx-unknown'"),
        (["--prompts", "fr={texts}/blank.txt"], "no usable document"),
        (["--prompts", "corpus", "--prompts", "fr={texts}/fr.txt"], "prompts in fr are given twice"),
        (["--prompts", "corpus", "--corpus", "fr={texts}/sw.txt"], "one source per language"),
        (["--prompts", "corpus", "--max-tokens", "999"], "the model has 64 positions"),
        (["--prompts", "corpus", "--identifier", "franc"], "identifier among lingua, cld3"),
    ],
)
def test_errors(lens, world, tmp_path, words, expected):
    _, texts = world
    folder = texts["fr"].parent
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    (folder / "blank.txt").write_text("\n\n", encoding="utf-8")
    (folder / "unknown.jsonl").write_text('{"language": "xx-unknown", "text": "a"}\n', encoding="utf-8")
    code, out, error = lens(tmp_path / "run", *(word.format(texts=folder) for word in words))
    assert (code, out) == (1, "")
    assert expected in error


def test_one_language_alone(lens, world, tmp_path):
    _, texts = world
    code, _, error = lens(tmp_path / "run", "--prompts", "corpus", corpora={"fr": texts["fr"]})
    assert (code, "two or more different languages" in error) == (1, True)


def test_progress_in_a_file(lens, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="babelscope"):
        lens(tmp_path / "run", "--prompts", "corpus", "--documents", 2)
    assert "6 prompts" in caplog.text
    assert "profile of 3 languages" in caplog.text


def test_its_parts_and_prompts_are_told(world, tmp_path):
    class View:
        lines: ClassVar[list[str]] = []

        def update(self, tasks):
            self.lines += [str(task) for task in tasks[-1:]]

    model, texts = world
    opened = {code: open_corpus(path) for code, path in texts.items()}
    with progress.shown(View()):
        runs.run_lens(*load_model(model), opened, opened, tmp_path / "run", documents=2, max_tokens=24)
    assert View.lines[:2] == ["vocabulary profile", "lens"]
    assert View.lines[-1] == "lens 6 prompts"


def test_a_tuned_lens_and_words(lens, tmp_path):
    lists = {
        "fr": ["mer", "lune", "sel", "eau", "roue", "mil"],
        "sw": ["bahari", "twiga", "chai", "pwani", "wao", "ya"],
    }
    words = []
    for code, each in lists.items():
        (tmp_path / f"{code}.txt").write_text("\n".join(each), encoding="utf-8")
        words += ["--words", f"{code}={tmp_path / code}.txt"]
    out = tmp_path / "run"
    code, text, error = lens(out, "--prompts", "corpus", "--documents", 2, "--tuned-documents", 3, *words)
    assert code == 0, error
    assert "fr, sw" in text
    assert "Translated words" in text
    tuned = TunedLens.load(out / runs.TUNED)
    assert LanguageCurve.load(out / runs.CURVE).about["settings"]["tuned"] == tuned.about
    with (out / runs.CLOSENESS).open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["divergence_tuned"] for row in rows] == tuned.about["tuned"]["divergence"]
    assert [row["agreement_plain"] for row in rows] == tuned.about["plain"]["agreement"]
    assert "How near the layers come" in (out / runs.PAGE).read_text(encoding="utf-8")
    code, again, _ = lens(out, "--prompts", "corpus", "--documents", 2, "--tuned-documents", 3, *words, "--json")
    rows = json.loads(again)["words"]
    assert [(row["target"], row["layer"], row["language"]) for row in rows[:3]] == [
        ("sw", 0, "sw"), ("sw", 0, "fr"), ("sw", 1, "sw"),
    ]  # fmt: skip
    model, tokenizer = load_model(lens.model)
    asked = {"sw": lists["sw"], "fr": lists["fr"]}
    found = latent_language(model, tokenizer, translations(lists["fr"], lists["sw"]), asked, tuned=tuned)
    assert [row["probability"] for row in rows] == pytest.approx(found.mean().flatten().tolist(), abs=1e-6)
