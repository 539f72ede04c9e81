"""The whole grid as one run: its files, its command, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from babelscope import Anatomy, NeuronSet, cli, detect
from babelscope.cells import CellStore
from babelscope.editing.stages import Stages
from babelscope.errors import BabelscopeError, ConfigError
from babelscope.evaluation.claims import claims
from babelscope.evaluation.grid import CELLS, Grid
from babelscope.evaluation.parts import CLAIMED, PARTS, standard_parts
from babelscope.evaluation.run import load_sets, run_grid
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
    given = ("--neurons", folder / "neurons", "--tasks", TASK, "--texts", folder / "texts" / "{}.txt")
    sizes = ("--limit", 2, "--controls", 3, "--task-controls", 2, "--stages", "1,0", "--batch-size", 4)
    return [*map(str, ("grid", folder / "model", *given, *sizes, "--out", out, *words))]


def test_the_command_writes_tables_and_verdicts(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    parts = "all,understand,solve-attention"
    assert cli.main(command(folder, tmp_path, "--parts", parts, "--dry-run", "--json")) == 0
    planned = json.loads(capsys.readouterr().out)
    assert 0 < planned["english_controls"] <= 2 * 3 * 2, "2 sets of 3 parts with 2 controls; equal ones count once"
    assert list(tmp_path.iterdir()) == []
    assert cli.main(command(folder, tmp_path, "--parts", parts)) == 0
    assert len(CellStore(tmp_path / CELLS / "cells.jsonl")) == planned["cells"], "as many as were announced"
    shown = capsys.readouterr().out
    for text in ("tinybabel_understanding: f1, percent", "random: understand", "The paper's claims", "not measured"):
        assert text in shown
    tables = [f"{stem}.{end}" for stem in ("grid", "summary", "languages") for end in ("csv", "parquet")]
    for name in (*tables, "summary.tex", "languages.tex", "claims.json"):
        assert (tmp_path / name).stat().st_size > 100
    told = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert [claim["verdict"] in ("holds", "does not hold", "undecided") for claim in told["claims"]] == [True] * 6
    assert told["stages"] == {"understand": 1, "generate": 0}
    with (tmp_path / "grid.csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert {row["off"] for row in table} == {"fr", "zh"}
    assert {row["language"] for row in table} == {"en", "fr", "zh"}
    # the same numbers as of the library's parts
    model, tokenizer = byte_llama(max_position_embeddings=1024), byte_tokenizer()
    sets = load_sets([folder / "neurons"])
    made = standard_parts(Stages(1, 0), sets, names=parts.split(","))
    asked = {code: sets[code] for code in ("fr", "zh")}
    grid = Grid(
        model, tokenizer, asked, [TASK], tmp_path / "other", parts=made, draws=2, text_draws=3, limit=2, batch_size=4,
        texts={code: ["le chat", "la pluie"] * 2 for code in sets}, force=True,
    )  # fmt: skip
    again = [each.as_json() for each in claims(grid.run())]
    assert [each["verdict"] for each in again] == [claim["verdict"] for claim in told["claims"]]
    assert [each["effect"] for each in again] == pytest.approx([claim["effect"] for claim in told["claims"]], abs=1e-5)


def test_means_are_of_a_detection_run(folder, tmp_path):
    """The claims are then judged by what means do."""
    model, tokenizer = byte_llama(max_position_embeddings=1024), byte_tokenizer()
    detect(model, tokenizer, {"fr": make_texts("fr", 3)}).save(tmp_path / "atlas" / "atlas.safetensors")
    sets = load_sets([folder / "neurons"])
    told = run_grid(
        model, tokenizer, sets, [TASK], tmp_path / "out", name="tiny", stages=Stages(1, 0), parts=("understand",),
        languages=["fr"], ops=("mean",), reference=tmp_path / "atlas", draws=2, limit=1, force=True,
    )  # fmt: skip
    assert told["ops"] == ["mean"]
    assert told["claims"][0]["contrasts"]
    assert {row["op"] for row in told["summary"]} == {"", "mean"}
    with pytest.raises(BabelscopeError, match="none"):
        run_grid(
            model, tokenizer, sets, [TASK], tmp_path / "out", name="tiny", ops=("mean",), reference=tmp_path / "none"
        )


def test_quick_takes_fewer_parts_and_languages(folder, tmp_path, capsys):
    assert cli.main(command(folder, tmp_path, "--quick", "--dry-run", "--json")) == 0
    planned = json.loads(capsys.readouterr().out)
    assert set(planned["parts"]) == set(CLAIMED)
    assert cli.main(command(folder, tmp_path, "--dry-run", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["parts"] == list(PARTS)


def test_neuron_files_by_language(folder, tmp_path):
    sets = load_sets([folder / "neurons"])
    assert list(sets) == ["en", "fr", "zh"]
    assert list(load_sets([folder / "neurons" / "zh.safetensors", folder / "neurons" / "fr.safetensors"])) == [
        "zh",
        "fr",
    ]
    with pytest.raises(ConfigError, match="two neuron files of fr"):
        load_sets([folder / "neurons", folder / "neurons" / "fr.safetensors"])
    with pytest.raises(ConfigError, match="found no neuron file"):
        load_sets([tmp_path])
    with pytest.raises(BabelscopeError, match=r"de\.safetensors is not there"):
        load_sets([tmp_path / "de.safetensors"])
    sets["fr"].save(tmp_path / "frensh.safetensors")
    with pytest.raises(BabelscopeError, match="frensh"):
        load_sets([tmp_path])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"languages": ["fr", "de"]}, "no neurons of de; there are some of fr"),
        ({"texts": "texts.txt"}, r"with \{\} for the language"),
        ({"parts": ("some",)}, "found some"),
        ({"tasks": ["mgms"]}, "mgms"),
    ],
)
def test_what_is_refused(folder, tmp_path, changes, told):
    sets = {"fr": load_sets([folder / "neurons"])["fr"]}
    options: dict[str, Any] = {"tasks": [TASK], "name": "tiny", "force": True, "stages": Stages(1, 0), **changes}
    with pytest.raises(ConfigError, match=told):
        run_grid(byte_llama(max_position_embeddings=1024), byte_tokenizer(), sets, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
