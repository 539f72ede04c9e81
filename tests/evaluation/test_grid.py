"""The ablation grid: its rows are evaluations of its cells; killed, it goes on; nothing is computed twice."""

from __future__ import annotations

import copy
import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from babelscope import Anatomy, Atlas, NeuronSet, ablate, detect
from babelscope.artifacts import digest
from babelscope.cells import CellStore
from babelscope.editing.controls import controls
from babelscope.editing.stages import Stages
from babelscope.errors import ConfigError, NumericsError, ProvenanceError, RunFolderError
from babelscope.evaluation.cells import BITS, Cell, Cells, operation
from babelscope.evaluation.evaluate import Exam, evaluate, neurons_digest
from babelscope.evaluation.grid import CELLS, TABLE, Grid, Row, ablation_grid
from babelscope.evaluation.inference import against_random, holm, paired_permutation
from babelscope.evaluation.likelihood import likelihood
from babelscope.evaluation.parts import EQUAL, PARTS, standard_parts
from builders import byte_llama, byte_tokenizer, make_texts

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


@pytest.fixture(scope="module")
def atlas(world: Any) -> Atlas:
    model, tokenizer, _ = world
    return detect(model, tokenizer, {"fr": make_texts("fr", 4), "zh": make_texts("zh", 4)}, max_tokens=48)


def build(world: Any, folder: Path, **changes: Any) -> list[Row]:
    model, tokenizer, sets = world
    options = {"parts": SOME, "draws": 3, "text_draws": 2, "texts": TEXTS, "limit": 6, "batch_size": 3, **changes}
    return ablation_grid(model, tokenizer, sets, [TASK], folder, **options)


def measured(world: Any, row: Row, neurons: NeuronSet | None, known: dict[Any, list[float]]) -> list[float]:
    """Items of a row under an edit, by hand: score is the task's, bits are those of each text over the mean bytes."""
    key = (row.task, row.language, row.metric, row.op, neurons_digest(neurons))
    if key not in known:
        known[key] = by_hand(world, row, neurons)
    return known[key]


def by_hand(world: Any, row: Row, neurons: NeuronSet | None) -> list[float]:
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
    known: dict[Any, list[float]] = {}
    for row in rows:
        neurons = SOME[row.part](sets[row.off])
        sign = 1 if row.task == BITS else -1
        before, after = measured(world, row, None, known), measured(world, row, neurons, known)
        assert (row.neurons, row.items) == (len(neurons), len(before))
        assert (row.intact, row.value) == pytest.approx((np.mean(before), np.mean(after)))
        assert row.change == pytest.approx(row.value - row.intact)
        assert row.low <= row.change + 1e-12
        assert row.high >= row.change - 1e-12
        assert row.p == pytest.approx(paired_permutation(before, after), abs=1e-6)
        drawn = 0 if not neurons else 2 if row.task == BITS else 3
        assert row.draws == drawn
        if drawn:
            sample = controls(neurons, 3, seed=0)[:drawn]
            random = [np.mean(measured(world, row, each, known)) - row.intact for each in sample]
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
            if drawn:
                deltas = [
                    sign * (np.mean(measured(world, row, each, known)) - row.intact)
                    - sign * (np.mean(measured(world, english, each, known)) - english.intact)
                    for each in sample
                ]
                assert row.delta_random == pytest.approx(np.mean(deltas), abs=1e-6)
                assert row.p_delta == (1 + sum(each >= row.delta for each in deltas)) / (1 + drawn)
            else:
                assert math.isnan(row.delta_random)
                assert math.isnan(row.p_delta)
    assert any(row.change for row in rows if row.task == BITS and row.op == "scale=3"), "something can be seen"
    with (tmp_path / TABLE).open(encoding="utf-8") as stream:
        assert [row["change"] for row in csv.DictReader(stream)] == [str(row.change) for row in rows]


def test_killed_and_started_again(world, tmp_path, monkeypatch):
    options = {"parts": {"all": SOME["all"], "ffn": SOME["ffn"], "again": SOME["ffn"]}, "draws": 2, "limit": 3}
    build(world, tmp_path / "whole", **options)
    add, done = CellStore.add, []

    def dies(self: CellStore, found: dict[str, Any]) -> None:
        if "scores" in next(iter(found.values())):
            if len(done) == 9:
                raise KeyboardInterrupt
            done.extend(found)
        add(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(CellStore, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            build(world, tmp_path / "killed", **options)
    assert not (tmp_path / "killed" / TABLE).exists()
    with (tmp_path / "killed" / CELLS / "cells.jsonl").open("ab") as stream:
        stream.write('{"key": "half a lé'.encode()[:-1])
    again: list[str] = []

    def watch(self: CellStore, found: dict[str, Any]) -> None:
        if "scores" in next(iter(found.values())):
            again.extend(found)
        add(self, found)

    monkeypatch.setattr(CellStore, "add", watch)
    build(world, tmp_path / "killed", **options)
    assert again
    assert not set(done) & set(again), "no cell is computed twice"
    assert len({*done, *again}) == len(done) + len(again) == len(CellStore(tmp_path / "whole" / CELLS / "cells.jsonl"))
    tables = [(tmp_path / name / TABLE).read_text(encoding="utf-8") for name in ("whole", "killed")]
    assert tables[0] == tables[1]
    again.clear()
    build(world, tmp_path / "killed", **options)
    assert again == [], "a finished grid is only read"
    build(world, tmp_path / "killed", **{**options, "parts": {"ffn": SOME["ffn"]}, "draws": 0})
    assert again == [], "another grid finds its cells"
    build(world, tmp_path / "killed", **options, english_controls=False)
    assert again == [], "so does one without controls in English"
    build(world, tmp_path / "killed", **{**options, "limit": 2, "texts": None})
    assert again, "other items are other cells"


def test_progress_counts_every_cell_once(world, tmp_path):
    model, tokenizer, sets = world
    parts = {"ffn": SOME["ffn"], "again": SOME["ffn"]}
    grid = Grid(model, tokenizer, sets, [TASK], tmp_path, parts=parts, draws=2, limit=1, text_draws=0)
    told: list[tuple[int, int]] = []
    grid.run(lambda done, total, left: told.append((done, total)))
    # 2 intact, and for each of two sets itself and 2 controls, whatever the part is called; French ones in English too
    assert told == [(done, 10) for done in range(1, 11)]
    assert len(grid.cells()) == 10
    assert grid.english_controls() == 2


def test_controls_in_english_are_cells_beside_the_others(world, tmp_path, monkeypatch):
    options = {"parts": {"ffn": SOME["ffn"]}, "draws": 2, "text_draws": 2, "limit": 2}
    without = build(world, tmp_path, **options, english_controls=False)
    for row in without:
        measured = row.task == BITS or row.language == row.off
        assert row.draws == 2 * measured
        assert math.isnan(row.p_delta) == (row.language == "en" or row.task != BITS)
    add, added = CellStore.add, []

    def watch(self: CellStore, found: dict[str, Any]) -> None:
        added.extend(tuple(each["languages"]) for each in found.values() if "scores" in each)
        add(self, found)

    monkeypatch.setattr(CellStore, "add", watch)
    rows = build(world, tmp_path, **options)
    assert added == [("en",), ("en",)], "what was measured stays"
    assert [row.change for row in rows] == [row.change for row in without]
    assert not any(math.isnan(row.p_delta) for row in rows if row.off == row.language != "en")


def test_answers_without_an_end_are_counted(world, tmp_path):
    model, tokenizer, sets = world
    task, options = "tinybabel_understanding", {"limit": 3, "batch_size": 3}
    parts = {"all": SOME["all"], "q": SOME["q"]}
    made = {"fr": sets["fr"]}
    rows = ablation_grid(model, tokenizer, made, [task], tmp_path, parts=parts, ops=("scale=4",), draws=0, **options)
    for row in rows:
        neurons = SOME[row.part](sets["fr"]) or None
        edit = {"op": "scale", "factor": 4.0} if neurons else {}
        found = evaluate(model, tokenizer, [task], [row.language], neurons, **options, **edit)
        assert row.endless == found.score(task, row.language, row.metric).endless
    assert any(row.endless for row in rows)
    file = tmp_path / CELLS / "cells.jsonl"
    earlier = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for cell in earlier:
        cell["scores"] = [score[:4] for score in cell["scores"]]
    file.write_text("".join(json.dumps(cell) + "\n" for cell in earlier), encoding="utf-8")
    again = ablation_grid(model, tokenizer, made, [task], tmp_path, parts=parts, ops=("scale=4",), draws=0, **options)
    assert [row.value for row in again] == [row.value for row in rows], "cells of earlier versions"
    assert all(math.isnan(row.endless) for row in again)


# Means


@pytest.mark.parametrize("of_one_language", [False, True])
def test_a_cell_under_mean_is_an_evaluation_under_ablate(world, atlas, tmp_path, of_one_language):
    model, tokenizer, sets = world
    reference = atlas.of("zh") if of_one_language else atlas
    rows = build(world, tmp_path, ops=("mean", "zero"), reference=reference, parts={"all": SOME["all"]}, draws=2)
    assert len(rows) == 2 * 3 * (2 + 1)
    for row in (each for each in rows if each.op == "mean"):

        def value(neurons: NeuronSet, row: Row = row) -> float:
            with ablate(model, neurons, op="mean", reference=reference):
                if row.task == BITS:
                    return likelihood(model, tokenizer, TEXTS[row.language]).bits_per_byte
                found = evaluate(model, tokenizer, [TASK], [row.language], limit=6, batch_size=3)
                return found.score(TASK, row.language, row.metric).interval.value

        assert row.value == pytest.approx(value(sets[row.off]), abs=1e-6)
        drawn = controls(sets[row.off], 2, seed=0)
        random = np.mean([value(each) for each in drawn]) - row.intact
        assert row.random == pytest.approx(random, abs=1e-6), "random sets take their own units' means"
    values = {op: [row.value for row in rows if row.op == op and row.task == BITS] for op in ("mean", "zero")}
    assert values["mean"] != pytest.approx(values["zero"], abs=1e-6), "the means can be seen"


def test_cells_under_mean_are_kept_by_the_values(world, atlas, tmp_path, monkeypatch):
    """Fewer slots, and another mean of a unit that no set holds: the same cells. Another mean of one that is: not."""
    options: dict[str, Any] = {"ops": ("mean",), "parts": {"all": SOME["all"]}, "draws": 0, "texts": None, "limit": 1}
    build(world, tmp_path, **options, reference=atlas)
    add, added = CellStore.add, []

    def watch(self: CellStore, found: dict[str, Any]) -> None:
        added.extend(tuple(each["languages"]) for each in found.values() if "scores" in each)
        add(self, found)

    monkeypatch.setattr(CellStore, "add", watch)
    elsewhere, inside = copy.deepcopy(atlas), copy.deepcopy(atlas)
    elsewhere.of("fr").slots["ffn"]["activation_total"][..., 2] += 100.0
    inside.of("fr").slots["ffn"]["activation_total"][..., 3] += 100.0
    for slot in ("q", "k", "o"):
        del elsewhere.of("fr").slots[slot]
    build(world, tmp_path, **options, reference=elsewhere)
    assert added == []
    build(world, tmp_path, **options, reference=inside)
    assert added == [("fr", "en")], "the French set's, which holds unit 3"


def test_keys_stay_as_they_were(world, tmp_path):
    """So that the cells of earlier versions are found again."""
    model, tokenizer, sets = world
    exam = Exam(model, tokenizer, [TASK], ["fr", "en"], 1)
    cells = Cells(exam, {}, tmp_path / "cells.jsonl")
    settings = {**exam.settings, "tasks": [f"babelscope_{TASK}_fr"]}
    for op in ("zero", "scale=3"):
        expected = digest(["tasks", ["fr"], [op, neurons_digest(sets["fr"])], settings])
        assert cells.key(Cell("tasks", ("fr",), sets["fr"], op)) == expected
    assert cells.key(Cell("tasks", ("fr",))) == digest(["tasks", ["fr"], None, settings])


def test_means_that_there_are_not(world, atlas, tmp_path):
    model, tokenizer, _ = world
    with pytest.raises(ConfigError, match=r"op 'mean' needs .* found none\. Give the atlas .*--reference RUN"):
        build(world, tmp_path, ops=("zero", "mean"))
    with pytest.raises(ConfigError, match=r"operation mean beside a reference, found zero, scale=2\. Leave"):
        build(world, tmp_path, ops=("zero", "scale=2"), reference=atlas)
    with pytest.raises(ConfigError, match="found list"):
        build(world, tmp_path, ops=("mean",), reference=[0.0])
    silent = copy.deepcopy(atlas)
    del silent.of("fr").slots["v"]["activation_total"]
    with pytest.raises(ConfigError, match="the reference lacks activations"):
        build(world, tmp_path, ops=("mean",), reference=silent)
    with pytest.raises(ConfigError, match="the reference lacks slot v"):
        build(world, tmp_path, ops=("mean",), reference=detect(model, tokenizer, {"fr": ["abcdefgh"]}, slots=("ffn",)))
    other = byte_llama(max_position_embeddings=512, attention_bias=True)
    theirs = detect(other, tokenizer, {"fr": make_texts("fr", 2)})
    with pytest.raises(ProvenanceError, match="the reference was made on a model"):
        build(world, tmp_path, ops=("mean",), reference=theirs)
    assert list(tmp_path.iterdir()) == [], "before anything runs"


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
    assert not set(EQUAL) & set(made), "only where asked for"
    with pytest.raises(ConfigError, match="found solving"):
        standard_parts(stages, sets, names=("solving",))
    assert [Stages.usual(count) for count in (32, 8, 2)] == [Stages(8, 2), Stages(2, 1), Stages(0, 1)]


def test_texts_without_a_likelihood_are_told(world, tmp_path):
    model, tokenizer, sets = world
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    exam = Exam(broken, tokenizer, [TASK], ["fr"], 1)
    cells = Cells(exam, TEXTS, tmp_path / "cells.jsonl", force=True)
    for neurons in (None, sets["fr"]):
        with pytest.raises(NumericsError, match="texts in fr is NaN: bits per byte are not defined"):
            cells.measure(Cell("texts", ("fr",), neurons))
    assert not (tmp_path / "cells.jsonl").exists()


def test_equal_parts_are_the_strongest_of_each_stage():
    anatomy = Anatomy(byte_llama(num_hidden_layers=3), check=False)
    units, scores = {0: [1, 2, 3], 1: [7, 8], 2: [4, 5, 6]}, {0: [3, 9, 5], 1: [1, 2], 2: [1, 8, 7]}
    whole = NeuronSet.from_indices(anatomy, {"ffn": units}, {"ffn": scores})
    parts = standard_parts(Stages(1, 1), {"fr": whole}, names=EQUAL)
    found = {name: parts[name](whole).indices["ffn"] for name in EQUAL}
    assert {name: [units.tolist() for units in layers] for name, layers in found.items()} == {
        "understand-equal": [[2, 3], [], []], "solve-equal": [[], [7, 8], []], "generate-equal": [[], [], [5, 6]],
    }  # fmt: skip
    bare = NeuronSet.from_indices(anatomy, {"ffn": {0: [1], 1: [2], 2: [3]}})
    with pytest.raises(ConfigError, match="no scores to rank by"):
        parts["solve-equal"](bare)


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
    for texts in ({"fr": ["a"]}, {"fr": ["a"], "en": []}):
        with pytest.raises(ConfigError, match="no held-out texts of en"):
            build(world, tmp_path, texts=texts)
    whole = NeuronSet.from_indices(Anatomy(model, check=False), {"ffn": {0: range(44)}})
    with pytest.raises(ConfigError, match=r"part q of fr: .*no control without.*as large\. Take"):
        ablation_grid(model, tokenizer, {"fr": whole}, [TASK], tmp_path, parts={"q": lambda neurons: neurons})
    other = byte_llama(max_position_embeddings=512, intermediate_size=48)
    foreign = NeuronSet.from_indices(Anatomy(other, check=False), {"ffn": {0: [1]}})
    with pytest.raises(ProvenanceError, match="the set of de: "):
        ablation_grid(model, tokenizer, {**sets, "de": foreign}, [TASK], tmp_path)
    assert list(tmp_path.iterdir()) == [], "before anything runs"
    build(world, tmp_path, limit=1, draws=0, text_draws=0, parts={"q": SOME["q"]})
    same = byte_llama(max_position_embeddings=512, attention_bias=True)
    theirs = {"fr": NeuronSet.from_indices(Anatomy(same, check=False), {"ffn": {0: [1]}})}
    with pytest.raises(RunFolderError, match="other settings"):
        ablation_grid(same, tokenizer, theirs, [TASK], tmp_path, limit=1, draws=0)
