"""The lens from the command line: the stage alone in a run folder, prompts in every form, errors by name."""

from __future__ import annotations

import json
import sys

import pytest

from babelscope import cli
from babelscope.lens.curve import LanguageCurve
from babelscope.lens.tuned import TunedLens
from babelscope.lens.words import latent_language, translations
from babelscope.models.load import load_model
from babelscope.report.reader import read_result
from babelscope.stages import lens as stage
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


def test_a_run_and_the_same_again(lens, tmp_path, monkeypatch):
    out = tmp_path / "run"
    code, text, error = lens(out, "--prompts", "corpus", "--documents", 3)
    assert code == 0, error
    for expected in ("Where another language takes over", "French", "Chinese", "report.html"):
        assert expected in text
    curve = LanguageCurve.load(out / "model" / "lens" / stage.CURVE)
    assert curve.prompt_languages == ("fr",) * 3 + ("zh",) * 3 + ("sw",) * 3
    result = read_result(out / "model" / "lens" / "result.json")
    layers = next(figure for figure in result.figures if figure.kind == "layers").records
    assert len(layers) == 3 * 3 * 4
    assert layers[0]["mass"] == pytest.approx(float(curve.of("fr")[0, 0]))
    assert result.command.startswith("babelscope lens model --corpus fr=fr.txt")
    assert (out / "report.html").stat().st_size > 500_000

    monkeypatch.setattr(stage, "measured", None)  # nothing is computed again
    code, again, _ = lens(out, "--prompts", "corpus", "--documents", 3, "--json")
    assert code == 0
    assert json.loads(again)["models"]["model"]["stages"][0]["before"]
    monkeypatch.undo()
    assert lens(out, "--prompts", "corpus", "--documents", 4)[0] == 0
    assert LanguageCurve.load(out / "model" / "lens" / stage.CURVE).prompt_languages.count("fr") == 4
    assert len(list((out / "model" / ".earlier").iterdir())) == 1, "what other settings gave is kept"


def test_every_flag_reaches_the_stage(lens, tmp_path, monkeypatch):
    asked = {}

    def note(job, options):
        asked.update(vars(options), seed=job.study.seed, dtype=str(job.model.dtype), words=sorted(options.words))
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "measured", note)
    words = "--profile-documents 7 --documents 5 --new-tokens 2 --identifier lingua --no-final-norm --top-k 3 --grids 2"
    words += " --tuned-documents 6 --words fr=tinybabel:fr --seed 4 --dtype float64 --prompts corpus"
    assert lens(tmp_path, *words.split())[0] == 130
    assert asked == {
        "profile_documents": 7,
        "documents": 5,
        "max_tokens": 24,
        "new_tokens": 2,
        "identifier": "lingua",
        "final_norm": False,
        "top_k": 3,
        "grids": 2,
        "seed": 4,
        "dtype": "torch.float64",
        "prompts": "corpus",
        "tuned_documents": 6,
        "words": ["fr"],
    }


def test_what_was_measured_outlives_a_kill(lens, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "words", interrupt)
    assert lens(tmp_path / "run", "--prompts", "corpus", "--documents", 2)[0] == 130
    monkeypatch.undo()
    monkeypatch.setattr("babelscope.lens.measure.language_lens", None)
    code, _, error = lens(tmp_path / "run", "--prompts", "corpus", "--documents", 2)
    assert code == 0, error


def test_without_the_report_packages_the_numbers_are_written_all_the_same(lens, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    code, text, _ = lens(tmp_path / "run", "--prompts", "corpus", "--documents", 2)
    assert code == 0
    assert 'pip install "babelscope[report]"' in text
    assert (tmp_path / "run" / "model" / "lens" / "result.json").is_file()


def test_prompts_in_every_form(lens, world, tmp_path):
    _, texts = world
    mixed = tmp_path / "mixed.jsonl"
    rows = [
        {"language": "French", "text": "la mer"},
        {"language": "sw", "text": "maji"},
        {"language": "fra", "text": "le"},
    ]
    mixed.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    folder = texts["fr"].parent
    for number, (words, expected) in enumerate(
        [
            (["--prompts", mixed], {"fr": 2, "sw": 1}),
            (["--prompts", f"fr={texts['fr']}", "--prompts", f"zh={texts['zh']}"], {"fr": 2, "zh": 2}),
            (["--prompts", folder / "{}.txt"], {"fr": 2, "zh": 2, "sw": 2}),
            (["--held-out", mixed.parent / "{}.txt"], {"fr": 1, "zh": 1, "sw": 1}),
        ]
    ):
        for code in ("fr", "zh", "sw"):
            (mixed.parent / f"{code}.txt").write_text("la mer\n", encoding="utf-8")
        code, _, error = lens(tmp_path / f"run{number}", *words, "--documents", 2)
        assert code == 0, error
        read = LanguageCurve.load(tmp_path / f"run{number}" / "model" / "lens" / stage.CURVE).prompt_languages
        assert {code: read.count(code) for code in read} == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompts", "{texts}/fr.txt"], "does not say which language"),
        (["--prompts", "{texts}/none.jsonl"], "no file"),
        (["--prompts", "{texts}/empty.jsonl"], "empty.jsonl is empty"),
        (["--prompts", "{texts}/unknown.jsonl"], "unknown language 'xx-unknown'"),
        (["--prompts", "fr={texts}/blank.txt"], "no usable document"),
        (["--prompts", "corpus", "--max-tokens", "999"], "the model has 64 positions"),
        ([], "which lens reads"),
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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompts", "frensh=a.txt"], "frensh"),
        (["--prompts", "corpus", "--prompts", "fr=a.txt"], "LANGUAGE=SOURCE once per language, or one source for all"),
        (["--prompts", "corpus", "--corpus", "fr={texts}/sw.txt"], "one source of fr, found two"),
        (["--prompts", "corpus", "--identifier", "franc"], "one of lingua, cld3"),
    ],
)
def test_flags_that_cannot_be(lens, world, tmp_path, capsys, words, expected):
    folder = world[1]["fr"].parent
    with pytest.raises(SystemExit) as stopped:
        lens(tmp_path / "run", *(word.format(texts=folder) for word in words))
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_one_language_alone(lens, world, tmp_path):
    _, texts = world
    code, _, error = lens(tmp_path / "run", "--prompts", "corpus", corpora={"fr": texts["fr"]})
    assert (code, "languages: wanted a list of 2 or more" in error) == (1, True)


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
    code, _, error = lens(out, "--prompts", "corpus", "--documents", 2, "--tuned-documents", 3, *words)
    assert code == 0, error
    folder = out / "model" / "lens"
    tuned = TunedLens.load(folder / stage.TUNED)
    assert LanguageCurve.load(folder / stage.CURVE).about["settings"]["tuned"] == tuned.about
    result = read_result(folder / "result.json")
    closeness = next(table for table in result.tables if table.name == "closeness")
    assert closeness.columns == (
        "layer",
        "divergence, plain",
        "divergence, tuned",
        "agreement, plain",
        "agreement, tuned",
    )
    assert [row[2] for row in closeness.rows] == tuned.about["tuned"]["divergence"]
    assert [row[3] for row in closeness.rows] == tuned.about["plain"]["agreement"]
    assert "the tuned lens" in result.how
    records = next(figure for figure in result.figures if figure.name == "words-sw").records
    assert [(row["x"], row["series"]) for row in records[:3]] == [(0, "Swahili"), (0, "French"), (1, "Swahili")]
    model, tokenizer = load_model(lens.model)
    asked = {"sw": lists["sw"], "fr": lists["fr"]}
    found = latent_language(model, tokenizer, translations(lists["fr"], lists["sw"]), asked, tuned=tuned)
    assert [row["y"] for row in records] == pytest.approx(found.mean().flatten().tolist(), abs=1e-6)
