"""The ablation grid: its rows are evaluations of its cells; killed, it goes on; nothing is computed twice."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from babelscope import Anatomy, NeuronSet, ablate
from babelscope.editing.controls import controls
from babelscope.editing.stages import Stages
from babelscope.errors import ConfigError, ProvenanceError, RunFolderError
from babelscope.evaluation.cells import BITS, operation
from babelscope.evaluation.evaluate import evaluate
from babelscope.evaluation.grid import CELLS, TABLE, Grid, Row, ablation_grid
from babelscope.evaluation.inference import against_random, holm, paired_permutation
from babelscope.evaluation.kept import Kept
from babelscope.evaluation.likelihood import likelihood
from babelscope.evaluation.parts import PARTS, standard_parts
from builders import byte_llama, byte_tokenizer

TASK = "tinybabel_knowledge"
SOME = {
    "all": lambda neurons: neurons,
    "ffn": lambda neurons: neurons.at(slots=("ffn",)),
    "q": lambda neurons: neurons.at(slots=("q",)),
}
TEXTS = {"fr": ["le chat dort", "il pleut beaucoup ici"], "en": ["the cat sleeps", "rain"]}


@pytest.fixture(scope="module")
def world() -> tuple[Any, Any, dict[str, NeuronSet]]:
    model = byte_llama(max_position_embeddings=512)
    anatomy = Anatomy(model, check=False)
    sets = {
        code: NeuronSet.from_indices(anatomy, {"ffn": {0: range(start, 40, 3)}, "v": {1: [start, 5]}})
        for start, code in enumerate(("fr", "en"))
    }
    return model, byte_tokenizer(), sets


def build(world: Any, folder: Path, **changes: Any) -> list[Row]:
    model, tokenizer, sets = world
    options = {"parts": SOME, "draws": 3, "text_draws": 2, "texts": TEXTS, "limit": 6, "batch_size": 3, **changes}
    return ablation_grid(model, tokenizer, sets, [TASK], folder, **options)


def measured(world: Any, row: Row, neurons: NeuronSet | None) -> list[float]:
    """Items of a row under an edit, by hand: score is the task's, bits are those of each text over the mean bytes."""
    model, tokenizer, _ = world
    edit = operation(row.op)
    if row.task == TASK:
        found = evaluate(model, tokenizer, [TASK], [row.language], neurons or None, 6, batch_size=3, **edit)
        return list(found.score(TASK, row.language, row.metric).items)
    texts = TEXTS[row.language]
    if neurons:
        with ablate(model, neurons, **edit):
            each = [likelihood(model, tokenizer, [text]) for text in texts]
    else:
        each = [likelihood(model, tokenizer, [text]) for text in texts]
    mean = np.mean([len(text.encode()) for text in texts])
    return [float(one.nats[0] / math.log(2) / mean) for one in each]


def test_rows_are_evaluations(world, tmp_path):
    sets = world[2]
    rows = build(world, tmp_path, ops=("zero", "scale=3"), parts={"all": SOME["all"], "q": SOME["q"]})
    metrics = {TASK: ("acc", "acc_per_byte"), BITS: (BITS,)}
    expected = [
        (off, op, part, task, code, metric)
        for off in sets for op in ("zero", "scale=3") for part in ("all", "q") for task in metrics
        for code in dict.fromkeys((off, "en")) for metric in metrics[task]
    ]  # fmt: skip
    assert [(row.off, row.op, row.part, row.task, row.language, row.metric) for row in rows] == expected
    assert [row.p_holm for row in rows] == holm([row.p for row in rows])
    for row in rows:
        neurons = SOME[row.part](sets[row.off])
        sign = 1 if row.task == BITS else -1
        before, after = measured(world, row, None), measured(world, row, neurons)
        assert (row.neurons, row.items) == (len(neurons), len(before))
        assert (row.intact, row.value) == pytest.approx((np.mean(before), np.mean(after)))
        assert row.change == pytest.approx(row.value - row.intact)
        assert row.low <= row.change + 1e-12
        assert row.high >= row.change - 1e-12
        assert row.p == pytest.approx(paired_permutation(before, after), abs=1e-6)
        drawn = 0 if not neurons else 2 if row.task == BITS else 3 if row.language == row.off else 0
        assert row.draws == drawn
        if drawn:
            sample = controls(neurons, 3, seed=0)[:drawn]
            random = [np.mean(measured(world, row, each)) - row.intact for each in sample]
            assert row.random == pytest.approx(np.mean(random), abs=1e-6)
            beside = against_random(sign * row.change, [sign * value for value in random])
            assert row.p_random == beside.p
            assert row.standardised == pytest.approx(beside.standardised, rel=1e-3)
        else:
            assert math.isnan(row.random)
            assert math.isnan(row.p_random)
        if row.language == "en":
            assert math.isnan(row.delta)
        else:
            (english,) = (
                each for each in rows if each.language == "en" and each.off == row.off
                and (each.op, each.part, each.task, each.metric) == (row.op, row.part, row.task, row.metric)
            )  # fmt: skip
            assert row.delta == pytest.approx(sign * (row.change - english.change))
    assert any(row.change for row in rows if row.task == BITS and row.op == "scale=3"), "something can be seen"
    with (tmp_path / TABLE).open(encoding="utf-8") as stream:
        assert [row["change"] for row in csv.DictReader(stream)] == [str(row.change) for row in rows]


def test_killed_and_started_again(world, tmp_path, monkeypatch):
    options = {"parts": {"all": SOME["all"], "ffn": SOME["ffn"], "again": SOME["ffn"]}, "draws": 2, "limit": 3}
    build(world, tmp_path / "whole", **options)
    add, done = Kept.add, []

    def dies(self: Kept, found: dict[str, Any]) -> None:
        if "scores" in next(iter(found.values())):
            if len(done) == 9:
                raise KeyboardInterrupt
            done.extend(found)
        add(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            build(world, tmp_path / "killed", **options)
    assert not (tmp_path / "killed" / TABLE).exists()
    with (tmp_path / "killed" / CELLS / "cells.jsonl").open("ab") as stream:
        stream.write('{"key": "half a lé'.encode()[:-1])
    again: list[str] = []

    def watch(self: Kept, found: dict[str, Any]) -> None:
        if "scores" in next(iter(found.values())):
            again.extend(found)
        add(self, found)

    monkeypatch.setattr(Kept, "add", watch)
    build(world, tmp_path / "killed", **options)
    assert again
    assert not set(done) & set(again), "no cell is computed twice"
    assert len({*done, *again}) == len(done) + len(again) == len(Kept(tmp_path / "whole" / CELLS / "cells.jsonl"))
    tables = [(tmp_path / name / TABLE).read_text(encoding="utf-8") for name in ("whole", "killed")]
    assert tables[0] == tables[1]
    again.clear()
    build(world, tmp_path / "killed", **options)
    assert again == [], "a finished grid is only read"
    build(world, tmp_path / "killed", **{**options, "parts": {"ffn": SOME["ffn"]}, "draws": 0})
    assert again == [], "another grid finds its cells"
    build(world, tmp_path / "killed", **{**options, "limit": 2, "texts": None})
    assert again, "other items are other cells"


def test_progress_counts_every_cell_once(world, tmp_path):
    model, tokenizer, sets = world
    parts = {"ffn": SOME["ffn"], "again": SOME["ffn"]}
    grid = Grid(model, tokenizer, sets, [TASK], tmp_path, parts=parts, draws=2, limit=1, text_draws=0)
    told: list[tuple[int, int]] = []
    grid.run(lambda done, total, left: told.append((done, total)))
    # 2 intact, and for each of two sets itself and 2 controls, whatever the part is called
    assert told == [(done, 8) for done in range(1, 9)]
    assert len(grid.cells()) == 2 + 2 * 2 * 3


def test_standard_parts(world):
    model, _, sets = world
    anatomy = Anatomy(model, check=False)
    full = {slot: {layer: range(anatomy.width(slot, layer)) for layer in range(2)} for slot in anatomy.slots}
    everything = NeuronSet.from_indices(anatomy, full)
    stages = Stages(1, 0)
    made = {name: take(everything) for name, take in standard_parts(stages, sets).items()}
    assert set(made) == set(PARTS)
    early, late = everything.at(layers=[0]), everything.at(layers=[1])
    attention = ("q", "k", "v", "o")
    expected = {
        "all": everything, "understand": early, "solve": late, "generate": early - early,
        "attention": everything.at(slots=attention), "ffn": everything.at(slots=("ffn",)),
        "solve-attention": late.at(slots=attention), "solve-ffn": late.at(slots=("ffn",)),
        "understand-generate": early, "all-but-understand": late, "all-but-generate": everything,
        "all-but-solve-attention": early | late.at(slots=("ffn",)),
        "all-minus-english": everything - sets["en"], "all-minus-shared": everything - (sets["en"] & sets["fr"]),
    }  # fmt: skip
    assert made == expected
    assert "all-minus-english" not in standard_parts(stages, {"fr": sets["fr"]})
    assert list(standard_parts(stages, sets, names=("ffn", "all"))) == ["all", "ffn"]
    with pytest.raises(ConfigError, match="found solving"):
        standard_parts(stages, sets, names=("solving",))
    assert [Stages.usual(count) for count in (32, 8, 2)] == [Stages(8, 2), Stages(2, 1), Stages(0, 1)]


def test_what_is_refused(world, tmp_path):
    model, tokenizer, sets = world
    with pytest.raises(ConfigError, match="found none"):
        ablation_grid(model, tokenizer, {}, [TASK], tmp_path)
    with pytest.raises(ConfigError, match="at least two to compare with, found 1"):
        build(world, tmp_path, draws=1)
    with pytest.raises(ConfigError, match="found 'half'"):
        build(world, tmp_path, ops=("half",))
    with pytest.raises(ConfigError, match="found 'scale='"):
        build(world, tmp_path, ops=("scale=",))
    with pytest.raises(ConfigError, match="no held-out texts of en"):
        build(world, tmp_path, texts={"fr": ["a"]})
    other = byte_llama(max_position_embeddings=512, intermediate_size=48)
    foreign = NeuronSet.from_indices(Anatomy(other, check=False), {"ffn": {0: [1]}})
    with pytest.raises(ProvenanceError):
        ablation_grid(model, tokenizer, {**sets, "de": foreign}, [TASK], tmp_path)
    assert list(tmp_path.iterdir()) == [], "before anything runs"
    build(world, tmp_path, limit=1, draws=0, text_draws=0, parts={"q": SOME["q"]})
    same = byte_llama(max_position_embeddings=512, attention_bias=True)
    theirs = {"fr": NeuronSet.from_indices(Anatomy(same, check=False), {"ffn": {0: [1]}})}
    with pytest.raises(RunFolderError, match="other settings"):
        ablation_grid(same, tokenizer, theirs, [TASK], tmp_path, limit=1, draws=0)
