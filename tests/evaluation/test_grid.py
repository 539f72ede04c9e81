"""The ablation grid: its rows are evaluations of its cells; killed, it goes on; nothing is computed twice."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from babelscope import Anatomy, NeuronSet
from babelscope.errors import ConfigError, ProvenanceError
from babelscope.evaluation import grid
from babelscope.evaluation.evaluate import evaluate
from babelscope.evaluation.grid import TABLE, ablation_grid
from babelscope.evaluation.harness import Answers
from babelscope.evaluation.inference import against_random, holm, paired_permutation
from builders import byte_llama, byte_tokenizer

TASK = "tinybabel_knowledge"
PARTS = {
    "all": lambda neurons: neurons,
    "ffn": lambda neurons: neurons.at(slots=("ffn",)),
    "q": lambda n: n.at(slots=("q",)),
}


@pytest.fixture(scope="module")
def world() -> tuple[Any, Any, dict[str, NeuronSet]]:
    model = byte_llama(max_position_embeddings=512)
    anatomy = Anatomy(model, check=False)
    sets = {
        code: NeuronSet.from_indices(anatomy, {"ffn": {0: range(start, 40, 3)}, "v": {1: [start, 5]}})
        for start, code in enumerate(("fr", "en"))
    }
    return model, byte_tokenizer(), sets


def build(world: Any, folder: Path, **changes: Any) -> list[grid.Row]:
    model, tokenizer, sets = world
    options = {"parts": PARTS, "draws": 3, "limit": 6, "batch_size": 3, **changes}
    return ablation_grid(model, tokenizer, sets, [TASK], folder, **options)


def test_rows_are_evaluations(world, tmp_path):
    model, tokenizer, sets = world
    rows = build(world, tmp_path)
    metrics = ("acc", "acc_per_byte")
    expected = [(off, part, code, metric) for off in sets for part in PARTS for code in dict.fromkeys((off, "en"))
                for metric in metrics]  # fmt: skip
    assert [(row.off, row.part, row.language, row.metric) for row in rows] == expected
    assert [row.p_holm for row in rows] == holm([row.p for row in rows])
    changes = []
    for row in rows:
        neurons = PARTS[row.part](sets[row.off])
        before = evaluate(model, tokenizer, [TASK], [row.language], limit=6, batch_size=3)
        after = evaluate(model, tokenizer, [TASK], [row.language], neurons or None, 6, batch_size=3)
        one, other = (each.score(TASK, row.language, row.metric) for each in (before, after))
        assert (row.neurons, row.items, row.intact, row.value) == (
            len(neurons),
            6,
            one.interval.value,
            other.interval.value,
        )
        assert row.change == pytest.approx(row.value - row.intact)
        assert row.low <= row.change <= row.high
        assert row.p == paired_permutation(one.items, other.items)
        if neurons:
            random = [
                evaluate(model, tokenizer, [TASK], [row.language], control, 6, batch_size=3)
                .score(TASK, row.language, row.metric).interval.value - row.intact
                for control in grid.controls(neurons, 3, seed=0)
            ]  # fmt: skip
            assert row.random == pytest.approx(np.mean(random))
            beside = against_random(-row.change, [-value for value in random])
            assert (row.p_random, row.standardised) == (beside.p, pytest.approx(beside.standardised))
        else:
            assert (row.neurons, row.change, row.p) == (0, 0, 1)
            assert math.isnan(row.random)
        changes.append(row.change)
        if row.language == "en":
            assert math.isnan(row.delta)
        else:
            (english,) = (
                r for r in rows if (r.off, r.part, r.language, r.metric) == (row.off, row.part, "en", row.metric)
            )
            assert row.delta == pytest.approx(english.change - row.change)
    assert any(changes), "something can be seen"
    with (tmp_path / TABLE).open(encoding="utf-8") as stream:
        assert [row["change"] for row in csv.DictReader(stream)] == [str(row.change) for row in rows]


def test_killed_and_started_again(world, tmp_path, monkeypatch):
    options = {"parts": {"ffn": PARTS["ffn"]}, "draws": 2, "limit": 3}
    build(world, tmp_path / "whole", **options)
    add, done = Answers.add, []

    def dies(self: Answers, found: dict[str, Any]) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        add(self, found)
        done.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            build(world, tmp_path / "killed", **options)
    assert not (tmp_path / "killed" / TABLE).exists()
    calls: list[int] = []
    monkeypatch.setattr(Answers, "add", lambda self, found: (calls.append(len(found)), add(self, found)))
    build(world, tmp_path / "killed", **options)
    resumed = sum(calls)
    tables = [(tmp_path / name / TABLE).read_text(encoding="utf-8") for name in ("whole", "killed")]
    assert tables[0] == tables[1]
    calls.clear()
    build(world, tmp_path / "killed", **options)
    assert calls == [], "a finished grid is only read"
    build(world, tmp_path / "fresh", **options)
    assert 0 < resumed < sum(calls)


def test_what_is_refused(world, tmp_path):
    model, tokenizer, sets = world
    with pytest.raises(ConfigError, match="found none"):
        ablation_grid(model, tokenizer, {}, [TASK], tmp_path)
    with pytest.raises(ConfigError, match="at least two to compare with, found 1"):
        build(world, tmp_path, draws=1)
    other = byte_llama(max_position_embeddings=512, intermediate_size=48)
    foreign = NeuronSet.from_indices(Anatomy(other, check=False), {"ffn": {0: [1]}})
    with pytest.raises(ProvenanceError):
        ablation_grid(model, tokenizer, {**sets, "de": foreign}, [TASK], tmp_path)
    assert list(tmp_path.iterdir()) == [], "before anything runs"
