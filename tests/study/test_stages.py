"""What a result says is what the library finds when it is called by hand: every stage beside its oracle."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import babelscope as bs
from babelscope.artifacts import finite
from babelscope.cells import CellStore
from babelscope.editing.continuation import continued
from babelscope.editing.controls import controls
from babelscope.editing.stages import Stages
from babelscope.evaluation.inference import Interval, bootstrap_mean
from babelscope.evaluation.likelihood import likelihood
from babelscope.lens.curve import LanguageCurve
from babelscope.report.reader import read_run
from babelscope.report.results import Result, finding, slug
from babelscope.stages.job import CELLS, between, portable
from babelscope.stages.lens import _titles
from babelscope.stages.select import _overlaps
from babelscope.stages.tuning import _said, _who


@pytest.fixture(scope="module")
def found(unbroken) -> Mapping[str, Result]:
    """By stage."""
    (results,) = read_run(unbroken[1]).results.values()
    return results


@pytest.fixture(scope="module")
def loaded(unbroken) -> tuple[Any, Any]:
    study, _ = unbroken
    return bs.load_model(study.models[0].name, dtype="float32")


@pytest.fixture(scope="module")
def sets(unbroken) -> dict[str, Any]:
    study, run = unbroken
    return {
        code: bs.NeuronSet.load(run / "vicuna-7b-v1-5" / "select" / f"{code}.safetensors") for code in study.languages
    }


def lines(study: Any, kind: str, code: str, count: int) -> list[str]:
    return Path(study.corpus(kind)[code]).read_text(encoding="utf-8").splitlines()[:count]


def records(result: Result, name: str) -> list[Any]:
    (figure,) = (each for each in result.figures if each.name == name)
    return list(figure.records)


def test_detection_and_selection_are_those_of_the_library(unbroken, found, loaded, sets):
    study, _ = unbroken
    options = {"documents": 6, "max_tokens": 32, "min_tokens": 4, "kernel": "eager"}
    atlas = bs.detect(*loaded, study.corpus("detect"), **options)
    for code, neurons in sets.items():
        assert neurons == atlas.select(code, rule="contrast", budget=0.05)
    table = found["detect"].tables[0]
    assert [row[1] for row in table.rows] == [6, 6, 6]
    assert [row[2] for row in table.rows] == [int(atlas.of(code).tokens.sum()) for code in study.languages]
    counts = {
        (each["language"], each["slot"], each["layer"]): each["count"] for each in records(found["select"], "counts")
    }
    assert counts == {
        (code, slot, layer): sum(1 for s, at, _ in neurons if (s, at) == (slot, layer))
        for code, neurons in sets.items()
        for slot in atlas.slots
        for layer in range(2)
    }
    chosen = {code: set(atlas.select(code, rule="minimum", budget=0.05)) for code in study.languages}
    for each in records(found["select"], "overlap-minimum"):
        row, column = chosen[each["row"]], chosen[each["column"]]
        assert each["overlap"] == len(row & column) / len(column)


def test_chance_of_an_overlap_by_drawing(sets):
    one, other = sets["fr"], sets["zh"]
    pair = next(each for each in _overlaps({"fr": one, "zh": other}) if each["row"] == "fr")
    draws = [set(one.random_like(seed, overlap=True)) & set(other) for seed in range(2000)]
    mean = sum(map(len, draws)) / len(draws) / len(other)
    assert pair["expected"] == pytest.approx(mean, rel=0.1)
    share = sum(len(each) >= len(one & other) for each in draws) / len(draws)
    assert pair["p"] == pytest.approx(share, abs=0.03)


def test_the_lens_is_its_curve(unbroken, found):
    (path,) = (unbroken[1] / "vicuna-7b-v1-5" / "lens").rglob("lens.safetensors")
    curve = LanguageCurve.load(path)
    shown = {
        (each["language"], each["layer"], each["spoken"]): each["mass"] for each in records(found["lens"], "layers")
    }
    for code in curve.languages:
        mass = curve.masses[[at for at, each in enumerate(curve.prompt_languages) if each == code]].mean(0)
        for layer in range(3):
            for place, spoken in enumerate(curve.languages):
                assert shown[code, layer, spoken] == pytest.approx(float(mass[layer, place]))
    tokens = records(found["lens"], "tokens")
    assert {each["layer"] for each in tokens} == {0, 1, 2}
    assert list(dict.fromkeys(each["prompt"] for each in tokens)) == ["English", "French", "Chinese"]
    assert _titles(["en", "fr", "en"]) == ["English 1", "French", "English 2"]
    assert all(0 <= each["probability"] <= 1 for each in tokens)


def test_the_search_is_find_stages(unbroken, found, loaded, sets):
    study, _ = unbroken
    texts = {code: lines(study, "validation", code, 2) for code in ("en", "zh")}
    search = bs.find_stages(*loaded, sets["zh"], texts, understand=(0, 1), generate=(0, 1), max_tokens=32)
    expected = [(each.stages.understand, each.stages.generate, each.delta) for each in search.grid]
    shown = [(each["understand"], each["generate"], each["value"]) for each in records(found["search"], "search")]
    assert [each[:2] for each in shown] == [each[:2] for each in expected]
    assert [each[2] for each in shown] == pytest.approx([each[2] for each in expected])


def test_the_damage_is_the_matrix_and_its_claims_are_means_over_languages(unbroken, found, loaded, sets):
    study, _ = unbroken
    held = {code: lines(study, "held_out", code, 3) for code in study.languages}
    matrix = bs.damage_matrix(*loaded, sets, held, max_tokens=32)
    shown = {(each["row"], each["column"]): each for each in records(found["damage"], "damage-selected")}
    for i, row in enumerate(matrix.rows):
        for j, column in enumerate(matrix.columns):
            each = shown[row, column]
            assert each["value"] == pytest.approx(matrix.change[i, j])
            assert (each["low"], each["high"]) == pytest.approx((matrix.low[i, j], matrix.high[i, j]))
    own = [matrix.change[at, at] for at in range(3)]
    others = [(matrix.change[at].sum() - matrix.change[at, at]) / 2 for at in range(3)]
    drawn = {code: controls(neurons, 2, seed=0) for code, neurons in sets.items()}
    random = [bs.damage_matrix(*loaded, {c: drawn[c][k] for c in sets}, held, max_tokens=32).change for k in (0, 1)]
    by_chance = [(random[0][at, at] + random[1][at, at]) / 2 for at in range(3)]
    for claim, other in zip(found["damage"].findings, (others, by_chance), strict=True):
        interval = bootstrap_mean([a - b for a, b in zip(own, other, strict=True)])
        assert (claim.effect, claim.low, claim.high) == pytest.approx((interval.value, interval.low, interval.high))


def test_the_grid_uses_the_split_that_is_given(unbroken, found, loaded, sets):
    study, _ = unbroken
    table = next(each for each in found["grid"].tables if each.name == "grid")
    columns = {name: at for at, name in enumerate(table.columns)}
    part = Stages(1, 1).of(sets["fr"], "understand")
    rows = [row for row in table.rows if row[columns["part"]] == "understand"]
    assert rows
    assert {row[columns["neurons"]] for row in rows} == {len(part)}
    scores = bs.evaluate(*loaded, ["xcsqa_paper"], ["fr"], part, 2, data=study.data)
    (value,) = (
        row[columns["value"]] for row in rows if row[columns["language"]] == "fr" and row[columns["metric"]] == "acc"
    )
    assert value == scores.score("xcsqa_paper", "fr", "acc").interval.value


def test_the_evaluation_is_evaluate(unbroken, found, loaded, sets):
    study, _ = unbroken
    for row in found["evaluation"].tables[0].rows:
        code = {"French": "fr", "Chinese": "zh", "Chinese (Simplified)": "zh"}[row[1]]
        both = [bs.evaluate(*loaded, [row[0]], [code], neurons, 2, data=study.data) for neurons in (None, sets[code])]
        intact, without = (each.score(row[0], code, row[2]).interval.value for each in both)
        assert (row[4], row[7], row[8]) == pytest.approx((intact, without, without - intact))


def test_steering_is_the_librarys(unbroken, found, loaded):
    """By hand: the sets, one way opened, one batch continued, its languages and its bits per byte."""
    study, run = unbroken
    model, tokenizer = loaded
    folder = run / "vicuna-7b-v1-5"
    atlas = bs.Atlas.load(folder / "detect" / "run")
    sets = {code: atlas.select(code, rule="contrast", budget=0.1) for code in ("en", "fr")}
    prompts = [" ".join(line.split()[:4]) for line in lines(study, "held_out", "en", 3)]
    with bs.ablate(model, sets["fr"] - sets["en"], op="scale", factor=4.0), bs.ablate(model, sets["en"] - sets["fr"]):
        texts = continued(model, tokenizer, prompts, 2)
    cell = CellStore(folder / "steering" / CELLS)["fr-neurons x 4"]
    assert cell["texts"] == texts
    profile = bs.VocabularyProfile.build(tokenizer, study.corpus("detect"), documents=1000)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert cell["languages"] == [profile.identify(each) for each in ids]
    assert cell["bits"] == pytest.approx(likelihood(model, tokenizer, texts).bits_per_byte)
    (row,) = (row for row in found["steering"].tables[0].rows if row[1] == "neurons x 4")
    assert row[5:] == (cell["bits"], prompts[0], texts[0])


def test_steering_tells_shares_of_continuations(unbroken, found):
    study, run = unbroken
    cells = CellStore(run / "vicuna-7b-v1-5" / "steering" / CELLS)
    shown = records(found["steering"], "steering")
    assert {each["label"] for each in shown} == {"nothing", "neurons x 4", "random x 4", "means x 1"}
    for each in shown:
        named = cells[f"fr-{each['label']}"]["languages"]
        assert each["value"] == named.count("fr") / len(named)
        assert len(named) == study.steering.prompts


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((0.2, 0.1, 0.3), "holds"), ((-0.2, -0.3, -0.1), "does not hold"), ((0.2, -0.1, 0.3), "undecided")],
)
def test_a_verdict_follows_the_interval(values, verdict):
    told = finding("it does", Interval(*values), "so it is")
    assert (told.verdict, told.effect, told.low, told.high) == (verdict, *values)


def test_sentences_and_titles_call_things_by_name(found):
    """What is switched off is a rule's sets; no language is a code, no zero has a sign."""
    assert [each.title for each in found["damage"].figures[1:]] == [
        "Damage matrix: rule contrast", "Damage matrix: rule minimum", "Damage matrix: random sets 1",
    ]  # fmt: skip
    assert [row[0] for row in found["damage"].tables[0].rows] == [
        "rule contrast", "rule minimum", "random sets 1", "random sets 2",
    ]  # fmt: skip
    for result in found.values():
        said = [result.how, *(each.text for each in result.findings), *(each.title for each in result.figures)]
        assert not [text for text in said if re.search(r"\b(en|fr|zh)\b|[-−]0\.0*(?!\d)", text)]


def test_a_number_in_a_sentence():
    assert between(Interval(-0.00002, -0.3, 0.3)) == "0.00 [−0.30, 0.30]"
    assert between(Interval(0.5, -math.inf, math.inf)) == "0.500"
    assert [_who(each) for each in ("sw", "all")] == ["Swahili", "mean"]
    verdict = "sw, 50 documents, bits: random is best, not to be told from neurons"
    told = "Swahili, 50 documents, bits: random is best, not to be told from lape"
    assert _said(verdict, {"random": "random", "neurons": "lape"}) == told


def test_settings_without_the_machines_folders():
    content = {"a": "/elsewhere/data/{}/train.txt", "b": ["/models/mine", "org/name", "texts/fr.txt", 1, None]}
    assert portable(content) == {"a": "{}/train.txt", "b": ["mine", "org/name", "texts/fr.txt", 1, None]}
    assert portable("tinybabel:{}") == "tinybabel:{}"


def test_what_json_can_hold():
    assert finite({"a": (1.0, float("nan")), "b": [float("inf"), "x"]}) == {"a": [1.0, None], "b": [None, "x"]}
    assert slug("a b/ü.7") == "a-b-7"
