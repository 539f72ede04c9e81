"""The command line: what was typed reaches the library, what came of it reaches the user, errors explain themselves."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

import babelscope
from babelscope import Atlas, NeuronSet, cli
from babelscope.artifacts import write_tensors
from babelscope.cli import commands, parser
from babelscope.detection import checkpoint
from babelscope.show.support import support_markdown
from babelscope.stages.contract import STAGES
from fixtures_text import save_tiny_model, write_texts

ROOT = Path(__file__).resolve().parents[1]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a command in this process."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("BABELSCOPE_DEBUG", raising=False)

    def command(*words: object) -> Result:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        return Result(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, texts by language, and an empty folder to work in."""
    folder = tmp_path_factory.mktemp("world")
    return save_tiny_model(folder / "model"), write_texts(folder / "texts"), folder


@pytest.fixture(scope="module")
def finished(world):
    """A finished run with neuron files."""
    model, texts, folder = world
    assert cli.main([*map(str, detect(model, texts, folder / "run"))]) == 0
    assert cli.main(["select", str(folder / "run"), "--budget", "0.05"]) == 0
    return folder / "run"


def detect(model: Path, texts: dict[str, Path], out: Path, *more: object) -> list[object]:
    corpora = [word for language, path in texts.items() for word in ("--corpus", f"{language}={path}")]
    return ["detect", model, *corpora, "--max-tokens", 32, "--min-tokens", 4, "--out", out, *more]


# What is promised


def parsers() -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (each for each in cli.build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(subparsers.choices)


def test_every_flag_is_explained():
    unexplained = [
        (name, action.dest) for name, each in parsers().items() for action in each._actions if not action.help
    ]
    assert unexplained == []


def test_every_command_has_an_example_that_can_be_typed(capsys):
    names = []
    for name, each in parsers().items():
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        example = capsys.readouterr().out.partition("\nexample:\n  ")[2].rstrip()
        assert "\n" not in example, "what is to be copied is not wrapped"
        start, *words = shlex.split(example)
        args = parser.parse(words)
        assert (start, args.command, words[0]) == ("babelscope", name, name)
        names.append(each.prog)
    alone = [name for name in STAGES.names() if name not in commands._COMMANDS]
    assert sorted(names) == sorted(f"babelscope {name}" for name in (*commands._COMMANDS, *alone)), "each has its work"


LIGHT = """
import json, sys
from babelscope.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    assert stopped.code in (0, 2), stopped.code
names = ("torch", "numpy", "transformers", "safetensors", "tqdm", "yaml")
print(json.dumps([name for name in names if name in sys.modules]))
"""


@pytest.mark.parametrize("words", [["--help"], ["detect", "--help"], ["detect"], ["models"]])
def test_help_needs_nothing_that_is_slow_to_import(words):
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize(
    "start", [[sys.executable, "-m", "babelscope"], [str(Path(sys.executable).with_name("babelscope"))]]
)
def test_version_in_a_process_of_its_own(start):
    done = subprocess.run([*start, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"babelscope {babelscope.__version__}\n", "")


def test_models_is_the_table(run):
    assert run("models", "--markdown").out == support_markdown() + "\n"
    listed = run("models", "--json").json["families"]
    assert [row["family"] for row in listed][:2] == ["Llama", "Mistral"]
    text = run("models").out
    assert all(row["family"] in text for row in listed)


def test_readme_holds_the_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- models:start -->\n(.*)\n<!-- models:end -->", readme, re.DOTALL)
    if not found:
        pytest.skip("README.md has no markers <!-- models:start --> and <!-- models:end --> yet")
    assert found.group(1).strip() == support_markdown(), "run: babelscope models --markdown"


# From text to neuron files


def test_from_text_to_neuron_files(run, world, tmp_path):
    model, texts, _ = world
    done = run(*detect(model, texts, tmp_path / "run", "--json"))
    assert done.code == 0
    assert done.json["state"] == "new"
    assert done.json["file"] == str(tmp_path / "run" / "atlas.safetensors")
    assert list(done.json["languages"]) == list(texts)
    french = done.json["languages"]["fr"]
    assert french["documents"] == 12
    assert (french["skipped"]["empty"], french["skipped"]["too_short"], french["skipped"]["seen"]) == (1, 1, 14)

    chosen = run("select", tmp_path / "run", "--rule", "minimum", "--budget", "0.1", "--slots", "ffn,v", "--json")
    assert chosen.code == 0
    assert chosen.json["folder"] == str(tmp_path / "run" / "neurons")
    atlas = Atlas.load(tmp_path / "run")
    for language in texts:
        saved = NeuronSet.load(tmp_path / "run" / "neurons" / f"{language}.safetensors")
        assert saved == atlas.select(language, rule="minimum", budget=0.1, slots=("ffn", "v"))
        assert chosen.json["files"][language]["neurons"] == len(saved) > 0
        assert chosen.json["files"][language]["by_slot"]["q"]["neurons"] == 0

    seen = run("show", tmp_path / "run", "--json")
    assert seen.code == 0
    assert (seen.json["artefact"], seen.json["state"]) == ("run", "finished")
    assert list(seen.json["sets"]["files"]) == list(texts), "in the order of detection"
    assert seen.json["sets"]["overlap"] == chosen.json["overlap"]


def test_every_flag_of_detect_reaches_the_library(run, world, tmp_path):
    model, texts, _ = world
    words = ("--preset", "paper", "--slots", "v,ffn", "--top-shares", "0.2,0.5", "--thresholds", "0.1", "--seed", "3")
    more = ("--documents", "5", "--shard", "1/2", "--token-budget", "64", "--kernel", "reference", "--dtype", "float64")
    assert run(*detect(model, texts, tmp_path / "run", *words, *more)).code == 0
    atlas = Atlas.load(tmp_path / "run")
    assert atlas.slots == ("v", "ffn")
    assert atlas.layout.top_shares == (0.2, 0.5)
    assert atlas.layout.thresholds == (0.1,)
    expected = {"preset": "paper", "max_tokens": 32, "min_tokens": 4, "dtype": "float64"}
    assert expected.items() <= atlas.settings.items()
    record = atlas.corpora["fr"][0]
    assert (record["seed"], record["shard"], record["documents"]) == (3, [1, 2], 2)
    asked = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["asked"]
    assert asked["token_budget"] == 64


def test_select_passes_everything_on(run, finished, monkeypatch, tmp_path):
    asked = {}

    def select(self: Atlas, language: str, **options: object) -> NeuronSet:
        asked[language] = options
        return chosen

    chosen = Atlas.load(finished).select("fr")
    monkeypatch.setattr(Atlas, "select", select)
    words = "--rule r --budget 7 --eps 0.5 --top-k 0.1 --min-support 0.9 --per-slot --slots q,k --exclude en"
    words += " --statistic activation --target-statistic mean --rest-statistic max --language French zho_Hans --out"
    assert run("select", finished / "atlas.safetensors", *words.split(), tmp_path / "to").code == 0
    options = {
        "rule": "r",
        "budget": 7,
        "eps": 0.5,
        "top_k": 0.1,
        "min_support": 0.9,
        "per_slot": True,
        "slots": ("q", "k"),
        "exclude": "en",
        "statistic": "activation",
        "target_statistic": "mean",
        "rest_statistic": "max",
    }
    assert asked == {"fr": options, "zh": options}
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["fr.safetensors", "zh.safetensors"]
    asked.clear()
    assert run("select", finished, "--out", tmp_path / "to").code == 0
    assert asked == {"fr": {}, "zh": {}, "sw": {}}, "what isn't said is left to the library"


def test_shards_merge_to_the_whole(run, world, finished, tmp_path):
    model, texts, _ = world
    for index in range(2):
        assert run(*detect(model, texts, tmp_path / f"{index}", "--shard", f"{index}/2")).code == 0
    merged = run("merge", tmp_path / "both", tmp_path / "0", tmp_path / "1" / "atlas.safetensors", "--json")
    assert merged.code == 0
    assert merged.json["languages"]["zh"]["documents"] == 12
    assert merged.json["languages"]["zh"]["skipped"]["other_shards"] == 12
    whole, both = Atlas.load(finished).of("zh"), Atlas.load(tmp_path / "both").of("zh")
    torch.testing.assert_close(both.minimum("ffn"), whole.minimum("ffn"))
    assert "babelscope select" in run("merge", tmp_path / "x.safetensors", tmp_path / "0", tmp_path / "1").out
    assert (tmp_path / "x.safetensors").is_file()


def test_merge_overwrites_nothing(run, world, finished, tmp_path):
    before = (finished / "atlas.safetensors").read_bytes()
    done = run("merge", finished, finished, finished)
    assert (done.code, done.out) == (1, "")
    assert "already" in done.err
    assert (finished / "atlas.safetensors").read_bytes() == before
    done = run("merge", tmp_path / "new", finished, finished)
    assert done.code == 1
    assert "both atlases counted" in done.err
    assert not (tmp_path / "new").exists()


def test_several_files_of_a_language(run, world, tmp_path):
    model, texts, _ = world
    given = {"fra": texts["fr"], "French": texts["sw"]}
    done = run(*detect(model, given, tmp_path / "run", "--json"))
    assert list(done.json["languages"]) == ["fr"]
    assert done.json["languages"]["fr"]["documents"] == 24


def test_standard_input(run, world, tmp_path, monkeypatch):
    model, texts, _ = world
    text = texts["fr"].read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    done = run(*detect(model, {"fr": Path("-")}, tmp_path / "run", "--json"))
    assert done.json["languages"]["fr"]["documents"] == 12
    assert done.json["languages"]["fr"]["corpora"] == ["stdin"]
    assert "read only once" in done.err
    twice = run(*detect(model, {"fr": Path("-"), "sw": Path("-")}, tmp_path / "twice"))
    assert (twice.code, "only once" in twice.err) == (1, True)
    mixed = run(*detect(model, {"fr": Path("-"), "fra": texts["fr"]}, tmp_path / "mixed"))
    assert (mixed.code, "only source" in mixed.err) == (1, True)
    assert not (tmp_path / "twice").exists()


def test_dry_run_writes_nothing(run, world, tmp_path):
    model, texts, _ = world
    words = detect(model, texts, tmp_path / "run", "--dry-run", "--documents", 3, "--slots", "ffn,q")
    text = run(*words)
    assert text.code == 0
    for expected in ("Llama, 2 layers", "q 64, ffn 88: 152 together", "3 per language", "cpu", "KiB", "zh Chinese"):
        assert expected in " ".join(text.out.split())
    content = run(*words, "--json").json
    assert content["dry_run"]
    assert content["units"] == {"q": 64, "ffn": 88}
    assert content["corpora"]["fr"] == [str(texts["fr"])]
    assert list(tmp_path.iterdir()) == []


# Interrupting and resuming


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(run, world, tmp_path, monkeypatch):
    model, texts, _ = world
    words = detect(model, texts, tmp_path / "run")
    finish = checkpoint.Checkpoint.finish

    def interrupt(self: Any, *given: Any) -> None:
        finish(self, *given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "finish", interrupt)
        stopped = run(*words)
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.endswith(f"babelscope: interrupted; the same command goes on in {tmp_path / 'run'}\n")

    state = run("show", tmp_path / "run" / "run.json", "--json").json
    assert state["state"] == "unfinished"
    assert state["languages"] == {"fr": "finished", "zh": "to do", "sw": "to do"}
    text = run("show", tmp_path / "run").out
    assert "unfinished: 1 of 3 languages finished" in text
    assert "the same command" in text
    early = run("select", tmp_path / "run")
    assert early.code == 1

    resumed = run(*words, "--json")
    assert "found an unfinished run" in resumed.err
    assert "1 of 3 languages finished" in resumed.err
    assert resumed.json["state"] == "resumed"
    again = run(*words)
    assert "was finished already; nothing was computed\n" in again.out
    assert run(*words, "--json").json["state"] == "finished before"


def test_ctrl_c_elsewhere(run, finished, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "describe", interrupt)
    assert run("show", finished) == Result(130, "", "babelscope: interrupted; type it again\n")


def test_ctrl_c_where_nothing_is_kept(run, monkeypatch, tmp_path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(commands._COMMANDS, "evaluate", interrupt)
    told = [run("evaluate", "m", "--tasks", "t", *more).err for more in ((), ("--out", tmp_path / "run"))]
    assert [text.splitlines() for text in told] == [
        ["babelscope: evaluate", "babelscope: interrupted; type it again"],
        ["babelscope: evaluate", f"babelscope: interrupted; the same command goes on in {tmp_path / 'run'}"],
    ]


# Errors, by name


def error_of(run: Any, *words: object) -> str:
    done = run(*words)
    assert (done.code, done.out) == (1, "")
    assert "babelscope: error: " in done.err
    assert "Traceback" not in done.err
    return done.err


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.txt", None, ["no file", "missing.txt"]),
        ("empty.txt", b"", ["empty.txt is empty"]),
        ("blank.txt", b"\n\n", ["no usable document", "2 empty"]),
        ("short.txt", b"a\nb\n", ["no usable document", "2 too short (under 4 tokens)", "lower min_tokens"]),
        ("broken.txt", b"abc abc\nab\xff\n", ["broken.txt, line 2", "byte offset 10", "0xff isn't UTF-8"]),
        ("field.jsonl", b'{"body": "x", "id": 1}\n', ["no field 'text'", "'body'", "'id'"]),
        ("text.doc", b"abc", ["unknown format .doc"]),
    ],
)
def test_corpora_that_cannot_be_used(run, world, tmp_path, name, content, expected):
    model, texts, _ = world
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = error_of(run, *detect(model, {**texts, "fr": tmp_path / name}, tmp_path / "run"))
    for part in expected:
        assert part in message


def test_a_wrong_path_shows_before_the_model_is_loaded(run, world, tmp_path, monkeypatch):
    _, texts, _ = world
    message = error_of(run, *detect(tmp_path / "no model", {**texts, "fr": tmp_path / "none.txt"}, tmp_path / "run"))
    assert "none.txt" in message


def test_field_of_jsonl(run, world, tmp_path):
    model, texts, _ = world
    (tmp_path / "fr.jsonl").write_text('{"body": "la mer est la"}\n', encoding="utf-8")
    words = detect(model, {**texts, "fr": tmp_path / "fr.jsonl"}, tmp_path / "run", "--field", "body", "--json")
    assert run(*words).json["languages"]["fr"]["documents"] == 1


def test_unknown_language(run, world, finished, tmp_path):
    model, texts, _ = world
    message = error_of(run, *detect(model, {"frensh": texts["fr"]}, tmp_path / "run"))
    assert "unknown language 'frensh'" in message
    assert "did you mean fr (French)" in message
    assert "the atlas holds fr, zh, sw, not 'de'" in error_of(run, "select", finished, "--language", "de")


def test_no_such_model(run, world, tmp_path):
    model, texts, _ = world
    message = error_of(run, *detect(model.with_name("modle"), texts, tmp_path / "run"))
    assert "no model folder" in message
    assert "did you mean model" in message
    (tmp_path / "folder").mkdir()
    assert "no config.json" in error_of(run, *detect(tmp_path / "folder", texts, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_run_folder_of_other_settings(run, world, finished):
    model, texts, _ = world
    message = error_of(run, *detect(model, texts, finished, "--seed", "1"))
    assert "was made with other settings (seed: then 0, now 1)" in message


def test_run_folder_that_another_process_is_writing(run, world, tmp_path):
    from filelock import FileLock

    model, texts, _ = world
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert "another process is writing" in error_of(run, *detect(model, texts, tmp_path / "run"))


OTHERS = {
    "tune": "no-model --neurons no-file --corpus fr=tinybabel:fr",
    "lens": "no-model --corpus fr=tinybabel:fr --prompts corpus",
    "evaluate": "no-model --tasks tinybabel",
    "grid": "no-model --neurons no-file --tasks tinybabel",
    "study": "tinybabel-quick",
    "demo": "",
}


@pytest.mark.parametrize("command", OTHERS)
def test_run_folder_of_another_command(run, finished, tmp_path, command):
    """It shows before anything is loaded or written."""
    words = [command, *OTHERS[command].split(), "--out"]
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert f"{finished} holds a run of babelscope detect. Give another folder" in error_of(run, *words, finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} is a file. Give a folder with --out." in error_of(run, *words, tmp_path / "file")


def test_run_folder_of_a_study(run, world, tmp_path):
    """The demo is a study, and so goes on in the folder of one; detection doesn't."""
    model, texts, _ = world
    (tmp_path / "run.json").write_text('{"asked": {"command": "study"}}', encoding="utf-8")
    assert f"{tmp_path} holds a run of babelscope study." in error_of(run, *detect(model, texts, tmp_path))
    (tmp_path / "run.json").write_text('{"asked": ["command"]}', encoding="utf-8")
    assert "the header is damaged" in error_of(run, *detect(model, texts, tmp_path))


def test_report_is_of_a_study(run, finished, tmp_path):
    wanted = "wanted the run folder of a study (or of demo), found"
    assert f"{wanted} a run of detect at {finished}." in error_of(run, "report", finished)
    assert f"{wanted} nothing at {tmp_path / 'none'}." in error_of(run, "report", tmp_path / "none")
    assert f"{wanted} a file at {finished / 'run.json'}." in error_of(run, "report", finished / "run.json")
    assert not (finished / "report.html").exists()


def test_select_into_a_file(run, finished, tmp_path):
    (tmp_path / "file").touch()
    message = error_of(run, "select", finished, "--out", tmp_path / "file")
    assert "is a file. Give a folder with --out." in message


def test_sets_of_a_grid_may_be_given_by_their_run(run, finished, tmp_path):
    words = ["--tasks", "tinybabel_knowledge", "--dry-run"]
    for path in (finished, finished / "neurons", finished / "neurons" / "fr.safetensors"):
        assert run("grid", "tinybabel", "--neurons", path, *words).code == 0
        assert "no folder" in error_of(run, "grid", tmp_path / "none", "--neurons", path, *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "wanted MODEL, --neurons and --corpus, found no MODEL, no --neurons, no --corpus. Add it."),
        ("m --corpus fr=tinybabel:fr", "found no --neurons. Add it."),
    ],
)
def test_what_a_training_lacks(run, tmp_path, words, expected):
    assert expected in error_of(run, "tune", *words.split(), "--out", tmp_path / "run")


def test_folder_that_is_no_run_folder(run, world, tmp_path):
    model, texts, _ = world
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert "not a run folder" in error_of(run, *detect(model, texts, tmp_path))


def test_nan_impacts_name_layer_and_slot(run, world, tmp_path):
    from babelscope import load_model

    _, texts, folder = world
    model, tokenizer = load_model(folder / "model")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    message = error_of(run, *detect(tmp_path / "nan", texts, tmp_path / "run"))
    assert re.search("nan|infinite|finite", message, re.IGNORECASE)


@pytest.mark.parametrize("command", ["select", "show", "merge"])
def test_files_that_are_no_atlas(run, finished, tmp_path, command):
    def message(path: Path) -> str:
        return error_of(run, command, *([tmp_path / "out", finished] if command == "merge" else []), path)

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((finished / "atlas.safetensors").read_bytes()[:-100])
    assert "not a whole safetensors file" in message(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    assert "not one of Babelscope's" in message(foreign)
    assert "no file" in message(tmp_path / "none.safetensors")
    if command != "show":
        assert "'atlas', found 'neurons'" in message(finished / "neurons" / "fr.safetensors")
    assert not (tmp_path / "out").exists()


def test_settings_that_the_library_refuses(run, finished, tmp_path):
    assert "rule" in error_of(run, "select", finished, "--rule", "contrsat", "--out", tmp_path / "n")
    assert "no use for eps" in error_of(run, "select", finished, "--eps", "1", "--out", tmp_path / "n")
    assert not (tmp_path / "n").exists(), "nothing is written before everything is known to work"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["detekt"],
        ["detect", "m", "--out", "o"],
        ["detect", "m", "--out", "o", "--corpus", "french.txt"],
        ["detect", "m", "--out", "o", "--corpus", "=french.txt"],
        ["detect", "m", "--corpus", "fr=french.txt"],
        ["detect", "m", "--out", "o", "--corpus", "fr=f.txt", "--shard", "2"],
        ["detect", "m", "--out", "o", "--corpus", "fr=f.txt", "--documents", "many"],
        ["detect", "m", "--out", "o", "--corpus", "fr=f.txt", "--preset", "newspaper"],
        ["select", "run", "--budget", "much"],
        ["merge", "out", "one"],
    ],
)
def test_commands_that_cannot_be_understood(capsys, words):
    with pytest.raises(SystemExit) as error:
        cli.main(words)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert re.fullmatch(r"babelscope( \w+)?: error: .+\n`babelscope( \w+)? --help` lists what there is.\n", message)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("detekt m", "babelscope: error: unknown command 'detekt'. Did you mean detect?"),
        ("--verson", "babelscope: error: unknown flag --verson. Did you mean --version?"),
        ("detect m --corpsu fr=f.txt --out o", "detect: error: unknown flag --corpsu. Did you mean --corpus?"),
        ("detect m --doc 5 --corpus fr=f.txt --out o", "error: unknown flag --doc. Did you mean --documents?"),
        ("select run --languages=de", "error: unknown flag --languages. Did you mean --language?"),
        ("select run -o x", "select: error: unknown flag -o. There are -h,"),
        (
            "select run --budget much",
            "--budget: wanted a share of all units between 0 and 1 (0.01), or a whole",
        ),
        ("detect m --seed one", "--seed: wanted a whole number, found 'one'"),
        ("tune m --epochs few", "--epochs: wanted a number, such as 0.5, found 'few'"),
        ("detect m --thresholds a,b", "--thresholds: wanted a number, found 'a'"),
        ("steer m --layers middle", "--layers: wanted numbers of layers, such as 3,4, found 'middle'"),
        ("steer m --max-new-tokens 0", "--max-new-tokens: wanted a whole number from 1, found '0'"),
        ("tinybabel export o --items -3", "--items: wanted a whole number from 1, found '-3'"),
        ("models --fast", "unknown flag --fast. There are -h, --help, --json, --debug, --markdown."),
    ],
)
def test_a_slip_is_named_before_anything_that_it_leaves_out(capsys, words, expected):
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert expected in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    "words",
    [
        "ablate m --neurons f --prompt a --op scale --factor -6 --value -.5",
        "ablate m --neurons f --prompt=--what --prompt '-- he said' --prompt -",
        "merge -- -out -one -two",
    ],
)
def test_what_looks_like_a_flag_and_is_none(words):
    assert parser.parse(shlex.split(words)).command == words.partition(" ")[0]


def test_traceback_only_on_request(run, tmp_path, monkeypatch):
    assert "Traceback" not in run("show", tmp_path / "none").err
    assert "Traceback" in run("show", tmp_path / "none", "--debug").err
    monkeypatch.setenv("BABELSCOPE_DEBUG", "1")
    done = run("show", tmp_path / "none")
    assert done.code == 1
    assert "Traceback" in done.err


def test_no_permission_is_an_error_with_a_reason(run, finished, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/dev/full")

    monkeypatch.setattr(NeuronSet, "save", refuse)
    assert "Permission denied" in error_of(run, "select", finished)


# What reaches the terminal

EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202etxet"


def test_escapes_from_files_are_neutralised(run, finished, tmp_path):
    atlas = Atlas.load(finished)
    atlas.model["name"] = EVIL
    atlas.settings["preset"] = EVIL
    for records in atlas.corpora.values():
        records[0]["name"] = EVIL
    atlas.save(tmp_path)
    neurons = Atlas.load(tmp_path).select("fr", rule="minimum")
    provenance = {**neurons.provenance, "language": EVIL, "selection": {EVIL: EVIL}, "version": EVIL}
    (tmp_path / "neurons").mkdir()
    NeuronSet(neurons.widths, neurons.indices, neurons.scores, provenance).save(tmp_path / "neurons" / "a.safetensors")
    write_tensors(tmp_path / "kind.safetensors", EVIL, {}, {})
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps({"model_type": EVIL}), encoding="utf-8")
    paths = ["neurons/a.safetensors", "neurons", ".", "atlas.safetensors", "kind.safetensors", "config"]
    for words in [["show", tmp_path / path] for path in paths] + [["select", tmp_path, "--rule", EVIL]]:
        done = run(*words)
        shown = done.out + done.err
        assert "owned" in shown or "red" in shown
        assert not [character for character in shown if not character.isprintable() and character != "\n"]
        done = run(*words, "--json")
        assert done.out.isascii()
        assert not [character for character in done.out if not character.isprintable() and character != "\n"]


def test_json_is_one_object_and_all_there_is(run, world, finished, tmp_path):
    model, texts, _ = world
    for words in (
        detect(model, texts, tmp_path / "run"),
        detect(model, texts, tmp_path / "dry", "--dry-run"),
        ["select", finished],
        ["show", finished],
        ["show", finished / "neurons"],
        ["show", finished / "neurons" / "fr.safetensors"],
        ["show", model],
        ["models"],
    ):
        done = run(*words, "--json")
        assert done.code == 0
        assert isinstance(done.json, dict)
        assert "Loading weights" not in done.err


def test_nothing_of_transformers_in_a_process_of_its_own(world, tmp_path):
    model, texts, _ = world
    words = [sys.executable, "-m", "babelscope", *map(str, detect(model, texts, tmp_path / "run"))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("babelscope: ") for line in lines), done.stderr
    assert "12 of 14 documents used" in done.stderr, "without a terminal, the log says how far it is"
    assert "next:  babelscope select" in done.stdout
    assert "\x1b" not in done.stdout


def test_every_line_fits_the_terminal(run, world, finished, monkeypatch, tmp_path):
    model, texts, _ = world
    commands = [
        ["models"],
        ["show", finished],
        ["show", finished / "neurons"],
        ["show", finished / "neurons" / "fr.safetensors"],
        ["show", model],
        detect(model, texts, tmp_path / "run", "--dry-run"),
        detect(model, texts, finished),
    ]
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        for words in commands:
            lines = run(*words).out.splitlines()
            # What is to be copied is never wrapped.
            wide = [line for line in lines if len(line) > columns and not line.startswith(("atlas: ", "next: "))]
            assert wide == [], words


def test_languages_carry_their_names(run, finished):
    for words in (["show", finished], ["select", finished], ["show", finished / "neurons"]):
        text = run(*words).out
        assert all(name in text for name in ("fr French", "zh Chinese", "sw Swahili"))


def test_colours_on_a_terminal_only_and_never_with_no_color(run, finished, monkeypatch):
    assert "\x1b" not in run("show", finished).out
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[1m" in run("show", finished).out
    assert "\x1b" not in run("show", finished, "--json").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("show", finished).out


def test_a_terminal_without_unicode(finished):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    words = [sys.executable, "-m", "babelscope", "show", str(finished)]
    done = subprocess.run(words, capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_has_enough(finished):
    words = f"{sys.executable} -m babelscope show {finished} --json | head -1"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_looking_changes_nothing(finished):
    """Looking at a run leaves no trace in it."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert cli.main(["show", str(finished)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_one_process_shares_no_model_out(run, world, tmp_path):
    model, texts, _ = world
    done = run(*detect(model, texts, tmp_path / "run", "--tensor-parallel"))
    assert done.code == 1
    assert "torchrun --nproc-per-node 2" in done.err
