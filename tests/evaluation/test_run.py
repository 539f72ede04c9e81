"""The whole grid as one command: a stage alone in a run folder, the library's numbers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from babelscope import Anatomy, NeuronSet, cli, detect
from babelscope.cells import CellStore
from babelscope.editing.stages import Stages
from babelscope.errors import BabelscopeError, ConfigError
from babelscope.evaluation.claims import claims
from babelscope.evaluation.grid import CELLS, Grid
from babelscope.evaluation.parts import PARTS, standard_parts
from babelscope.neurons.files import load_sets, load_union
from babelscope.report.reader import read_result
from babelscope.stages.grid import GridOptions
from builders import byte_llama, byte_tokenizer, make_texts

TASK = "tinybabel_understanding"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its neurons in three languages, and texts."""
    made = tmp_path_factory.mktemp("grid")
    model = byte_llama(max_position_embeddings=1024)
    model.save_pretrained(made / "model")
    byte_tokenizer().save_pretrained(made / "model")
    anatomy = Anatomy(model, check=False)
    for start, code in enumerate(("en", "fr", "zh")):
        units = {"ffn": {0: range(start, 24, 3), 1: range(start, 24, 3)}, "v": {1: [start]}}
        NeuronSet.from_indices(anatomy, units).save(made / "neurons" / f"{code}.safetensors")
        (made / "texts").mkdir(exist_ok=True)
        (made / "texts" / f"{code}.txt").write_text("le chat\nla pluie\n" * 2, encoding="utf-8")
    return made


def command(folder: Path, out: Path, *words: object) -> list[str]:
    given = ("--neurons", folder / "neurons", "--tasks", TASK, "--held-out", folder / "texts" / "{}.txt", "--texts", 4)
    sizes = ("--limit", 2, "--text-controls", 3, "--controls", 2, "--split", "1,0", "--batch-size", 4)
    return [*map(str, ("grid", folder / "model", *given, *sizes, "--out", out, *words))]


def test_the_command_is_the_grid_of_the_library(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    parts = "all,understand,solve-attention"
    out = tmp_path / "out"
    assert cli.main(command(folder, out, "--parts", parts, "--dry-run", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["models"]["model"]["stages"][0]["stage"] == "grid"
    assert not out.exists()
    assert cli.main(command(folder, out, "--parts", parts)) == 0
    shown = capsys.readouterr().out
    for text in ("random: understand", "undecided", "report.html"):
        assert text in shown
    result = read_result(out / "model" / "grid" / "result.json")
    table = next(each for each in result.tables if each.name == "grid")
    off, language = table.columns.index("off"), table.columns.index("language")
    assert {row[off] for row in table.rows} == {"fr", "zh"}
    assert {row[language] for row in table.rows} == {"en", "fr", "zh"}
    assert {figure.x for figure in result.figures} == {"change in score", "change in bits per byte"}
    # the same numbers as of the library's parts
    model, tokenizer = byte_llama(max_position_embeddings=1024), byte_tokenizer()
    sets = load_sets([folder / "neurons"])
    made = standard_parts(Stages(1, 0), sets, names=parts.split(","))
    asked = {code: sets[code] for code in ("fr", "zh")}
    grid = Grid(
        model, tokenizer, asked, [TASK], tmp_path / "other", parts=made, draws=2, text_draws=3, limit=2, batch_size=4,
        texts={code: ["le chat", "la pluie"] * 2 for code in sets}, force=True,
    )  # fmt: skip
    assert len(CellStore(out / "model" / "grid" / CELLS / "cells.jsonl")) == len(grid.cells())
    again = [each for each in claims(grid.run()) if each.contrasts]
    assert [(each.claim, each.verdict) for each in again] == [(each.claim, each.verdict) for each in result.findings]
    assert [each.contrasts[0].effect for each in again] == pytest.approx(
        [each.effect for each in result.findings], abs=1e-5
    )
    assert cli.main(command(folder, out, "--parts", parts, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["models"]["model"]["stages"][0]["before"], "nothing runs twice"


def test_means_are_of_a_detection_run(folder, tmp_path, capsys):
    """The claims are then judged by what means do."""
    model, tokenizer = byte_llama(max_position_embeddings=1024), byte_tokenizer()
    detect(model, tokenizer, {"fr": make_texts("fr", 3)}).save(tmp_path / "atlas" / "atlas.safetensors")
    words = ["--parts", "understand", "--languages", "fr", "--ops", "mean", "--limit", 1, "--texts", 0]
    assert cli.main(command(folder, tmp_path / "none", *words)) == 1
    assert "an atlas for the operation mean" in capsys.readouterr().err
    assert cli.main(command(folder, tmp_path / "out", *words, "--atlas", tmp_path / "atlas")) == 0
    result = read_result(tmp_path / "out" / "model" / "grid" / "result.json")
    table = next(each for each in result.tables if each.name == "grid")
    assert {row[table.columns.index("op")] for row in table.rows} == {"mean"}
    assert result.findings
    assert cli.main(command(folder, tmp_path / "out", *words, "--atlas", tmp_path / "nowhere")) == 1


def test_a_stage_is_added_to_the_run_folder_and_finds_its_neurons_there(folder, tmp_path, capsys):
    out = tmp_path / "out"
    study = tmp_path / "study.yaml"
    study.write_text(
        f"name: mine\nmodels: [{folder / 'model'}]\nlanguages: [en, fr]\nstages: [detect, select]\n"
        f"corpora:\n  detect: {folder / 'texts' / '{}.txt'}\ndetect:\n  documents: 2\n  min_tokens: 2\n",
        encoding="utf-8",
    )
    assert cli.main(["study", str(study), "--out", str(out)]) == 0, capsys.readouterr().err
    words = ["damage", folder / "model", "--held-out", f"fr={folder / 'texts' / 'fr.txt'}", "--texts", 2]
    words += ["--held-out", f"en={folder / 'texts' / 'en.txt'}", "--controls", 0, "--out", out]
    assert cli.main([*map(str, words)]) == 0, capsys.readouterr().err
    assert (out / "model" / "damage" / "result.json").is_file()
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "The neurons of each language" in report
    assert "What breaks without a language" in report


def test_all_parts_without_a_choice():
    assert GridOptions(tasks=("mgsm",)).by_task() == {"mgsm": PARTS}
    assert GridOptions(tasks={"mgsm": ("all",)}).by_task() == {"mgsm": ("all",)}


def test_neuron_files_by_language(folder, tmp_path):
    sets = load_sets([folder / "neurons"])
    assert list(sets) == ["en", "fr", "zh"]
    assert list(load_sets([folder])) == ["en", "fr", "zh"], "the run folder that holds them"
    assert list(load_sets([folder / "neurons" / "zh.safetensors", folder / "neurons" / "fr.safetensors"])) == [
        "zh",
        "fr",
    ]
    assert load_union([folder / "neurons"]) == sets["en"] | sets["fr"] | sets["zh"]
    with pytest.raises(ConfigError, match="two neuron files of fr"):
        load_sets([folder / "neurons", folder / "neurons" / "fr.safetensors"])
    with pytest.raises(BabelscopeError, match="found a folder without any"):
        load_sets([tmp_path])
    with pytest.raises(BabelscopeError, match=r"found nothing at .*de\.safetensors"):
        load_sets([tmp_path / "de.safetensors"])
    sets["fr"].save(tmp_path / "frensh.safetensors")
    with pytest.raises(BabelscopeError, match="frensh"):
        load_sets([tmp_path])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--languages", "fr,de"], "de"),
        (["--held-out", "texts.txt"], "{} where the language's code goes"),
        (["--tasks", "mgms"], "mgms"),
        (["--split", "2,2"], "stage"),
        (["--ops", "half"], "half"),
        (["--neurons", "nowhere"], "found nothing at nowhere"),
    ],
)
def test_what_is_refused(folder, tmp_path, capsys, words, told):
    given = command(folder, tmp_path / "out")
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag in given:
            given[given.index(flag) + 1] = value
        else:
            given += [flag, value]
    assert cli.main(given) == 1
    error = capsys.readouterr().err
    assert "babelscope: error: " in error
    assert told in error


def test_neurons_of_another_model_of_the_same_shape_are_used_when_forced(folder, tmp_path, capsys):
    other = byte_llama(max_position_embeddings=1024)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(1.5)
    other.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    words = ["damage", tmp_path / "model", "--neurons", folder / "neurons", "--held-out", folder / "texts" / "{}.txt"]
    words += ["--texts", 2, "--controls", 0, "--out", tmp_path / "out"]
    assert cli.main([*map(str, words)]) == 1
    assert "force" in capsys.readouterr().err
    assert cli.main([*map(str, words), "--force"]) == 0
