"""Arms of training: which trainings there are, that each is done once, and what the table says of them."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import babelscope as bs
from babelscope import cli
from babelscope.corpora.sources import open_corpus
from babelscope.editing.controls import controls
from babelscope.errors import ConfigError
from babelscope.evaluation.likelihood import likelihood
from babelscope.progress import Task
from babelscope.report.reader import read_result
from babelscope.tuning import arms
from babelscope.tuning.arms import Arms, lora
from babelscope.tuning.options import TuningOptions
from babelscope.tuning.verdict import Run, Scores, compare
from fixtures_text import save_tiny_model, write_texts

RECIPE = {"epochs": 1, "evaluations": 2, "batch_size": 4, "max_tokens": 32}
OPTIONS = TuningOptions(
    languages=("sw",), arms=("neurons", "random", "lora", "full"), random=2, seeds=(0, 1), documents=(20,), texts=6,
    learning_rates=(1e-2, 1e-4), full_learning_rates=(1e-3,), **RECIPE,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with neurons of two languages, and texts."""
    folder = tmp_path_factory.mktemp("world")
    model, _ = bs.load_model(save_tiny_model(folder / "model"))
    for code, first in (("fr", 0), ("sw", 10)):
        units = {"ffn": {0: [first, first + 5, first + 9], 1: [first + 2]}, "q": {1: [3]}, "o": {0: [7]}}
        bs.NeuronSet.from_indices(bs.Anatomy(model), units).save(folder / "neurons" / f"{code}.safetensors")
    for name, documents in (("corpus", 30), ("validation", 8), ("test", 7)):
        write_texts(folder / name, documents)
    return folder


def make(world: Path, out: Path, options: TuningOptions = OPTIONS, keep: str | None = None, **sources: str) -> Arms:
    """The arms as the stage makes them."""
    names = {"detect": "corpus", "validation": "validation", "held_out": "test"} | sources
    codes = {"detect": ["sw"], "validation": ["sw"] if options.others_at_most is None else ["sw", "fr"]}
    opened = {
        kind: {code: open_corpus(world / name / f"{code}.txt") for code in codes.get(kind, ["sw", "fr"])}
        for kind, name in (names | ({} if keep is None else {"keep": keep})).items()
    }
    sets = {"sw": {"neurons": bs.NeuronSet.load(world / "neurons" / "sw.safetensors")}}
    return Arms(options, lambda: bs.load_model(world / "model", dtype="float32"), sets, opened, out, Task("tuning"))


@pytest.fixture(scope="module")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Task]:
    folder = tmp_path_factory.mktemp("out")
    comparison = make(world, folder)
    return folder, comparison.run(), comparison.task


# Which trainings there are


def test_rates_are_searched_with_the_first_seed_and_draw() -> None:
    options = OPTIONS.changed(documents=(20, 25), languages=("sw", "fr"))
    assert len(options.groups()) == 2 * 2 * 4
    searched = options.searched("sw", 25, "random")
    assert [(training.rate, training.draw, training.seed) for training in searched] == [(1e-2, 0, 0), (1e-4, 0, 0)]
    repeated = options.repeated(searched[1])
    assert {(training.rate, training.draw, training.seed) for training in repeated} == {
        (1e-4, draw, seed) for draw in (0, 1) for seed in (0, 1)
    }
    assert searched[1] in repeated
    assert len(options.repeated(options.searched("sw", 25, "full")[0])) == 2
    assert str(searched[0]) == "sw, 25 documents, random 0, rate 0.01, seed 0"


def test_rates_that_are_not_given() -> None:
    options = TuningOptions()
    assert (options.rates("lora"), options.rates("full")) == ((3e-4, 1e-3, 3e-3), (3e-5, 1e-4, 3e-4))
    assert TuningOptions(learning_rates=(1.0,)).rates("full") == options.rates("full")
    assert set(options.recipe()) == {"epochs", "batch_size", "max_tokens", "evaluations"}


def test_an_arm_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"arms.*found 'loar'\. Did you mean lora\?"):
        TuningOptions(arms=("loar",))


# What is done


def test_a_training_is_a_call_of_tune(world: Path, done: Any) -> None:
    """Retraining by hand, without the code of the comparison, gives its numbers."""
    _, found, _ = done
    texts = {
        kind: {code: (world / kind / f"{code}.txt").read_text().splitlines()[:6] for code in ("sw", "fr")}
        for kind in ("validation", "test")
    }
    mine = bs.NeuronSet.load(world / "neurons" / "sw.safetensors")

    @functools.cache
    def by_hand(what: Any, rate: float, seed: int) -> tuple[float, dict[str, float], int]:
        model, tokenizer = bs.load_model(world / "model", dtype="float32")
        result = bs.tune(
            model, tokenizer, what(model), world / "corpus" / "sw.txt", language="sw", documents=20, seed=seed,
            held_out={"sw": texts["validation"]["sw"]}, held_out_documents=6, learning_rate=rate, **RECIPE,
        )  # fmt: skip
        merged = result.merge()
        bits = {code: likelihood(merged, tokenizer, each, max_tokens=32) for code, each in texts["test"].items()}
        return result.after["sw"], {code: each.bits_per_byte for code, each in bits.items()}, result.parameters

    model, tokenizer = bs.load_model(world / "model", dtype="float32")
    base = {c: likelihood(model, tokenizer, each, max_tokens=32).bits_per_byte for c, each in texts["test"].items()}
    tried = {
        "neurons": [lambda model: mine], "random": [lambda model, each=each: each for each in controls(mine, 2)],
        "lora": [lambda model: lora(model, mine)],
    }  # fmt: skip
    for arm, draws in tried.items():
        best = min((1e-2, 1e-4), key=lambda rate, draws=draws: by_hand(draws[0], rate, 0)[0])
        runs = [by_hand(draw, best, seed) for draw in draws for seed in (0, 1)]
        (row,) = [row for row in found.rows if row.arm == arm]
        assert (row.rate, row.edge, row.runs) == (best, True, len(runs))
        assert row.parameters == runs[0][2]
        assert row.target_before == pytest.approx(base["sw"], rel=1e-6)
        change = {code: np.mean([bits[code] for _, bits, _ in runs]) - base[code] for code in base}
        assert row.target.value == pytest.approx(change["sw"], abs=1e-6)
        assert row.others.value == pytest.approx(change["fr"], abs=1e-6)
        assert row.others_percent.value == pytest.approx(100 * change["fr"] / base["fr"], abs=1e-4)
        assert (row.worst_other, row.tasks) == ("fr", None)


def test_every_training_is_counted_once(done: Any) -> None:
    folder, found, task = done
    assert [row.arm for row in found.rows] == ["neurons", "random", "lora", "full"]
    assert task.done == OPTIONS.trainings() == (2 + 1) + (2 + 3) + (2 + 1) + (1 + 1)
    assert len(list((folder / arms.CELLS).iterdir())) - 1 == task.done
    assert task.what.startswith("sw, 20 documents, full")


def test_a_killed_comparison_goes_on_to_the_same_numbers(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = OPTIONS.changed(arms=("neurons", "full"), seeds=(1,), learning_rates=(1e-2,))
    calls = itertools.count()
    tune = arms.tune

    def killed(*args: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return tune(*args, **options)

    monkeypatch.setattr(arms, "tune", killed)
    with pytest.raises(KeyboardInterrupt):
        make(world, tmp_path, few).run()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/training/history.json")}
    assert len(before) == 1
    found = make(world, tmp_path / ".", few).run()
    assert found == make(world, tmp_path / "unbroken", few).run()
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    monkeypatch.setattr(arms, "tune", None)  # nothing is left to train or to load
    assert make(world, tmp_path, few).run() == found


def test_a_changed_setting_makes_another_folder(world: Path) -> None:
    def folder(keep: str | None = None, sources: Any = None, **changes: Any) -> Path:
        options = OPTIONS.changed(**changes)
        return make(world, Path("out"), options, keep, **(sources or {})).place(
            options.searched("sw", 20, "neurons")[0]
        )

    same = folder()
    assert same == folder(random=5, full_learning_rates=(3.0,), arms=("neurons",))
    changed = [
        folder(epochs=2), folder(seeds=(4,)), folder(texts=5), folder(patience=7), folder(learning_rates=(1e-3,)),
        folder(sources={"validation": "test", "held_out": "validation"}), folder("corpus"), folder(others_at_most=1.0),
    ]  # fmt: skip
    assert len({same, *changed}) == 9


# What the table says


def scores(texts: dict[str, list[float]], tasks: list[float]) -> Scores:
    held = {code: {"values": each, "weights": [10.0] * len(each)} for code, each in texts.items()}
    return Scores(held, {"sw": {"quiz": {"values": tasks, "weights": [1] * len(tasks)}}} if tasks else {"sw": {}})


def test_changes_and_intervals() -> None:
    """Against sums by hand, and against the normal interval of a mean that a bootstrap of many texts must be near."""
    draw = np.random.default_rng(5)
    before, shift = draw.normal(50, 5, 400), draw.normal(-3, 2, 400)
    base = scores({"sw": before.tolist(), "fr": [20.0, 30.0], "de": [40.0]}, [0.0, 1.0, 0.0, 0.0])
    tuned = scores({"sw": (before + shift).tolist(), "fr": [21.0, 31.0], "de": [36.0]}, [1.0, 1.0, 0.0, 1.0])
    found = compare(base, {("sw", 40, "mine"): [Run(1e-3, False, 7, tuned)]})
    (row,) = found.rows
    assert row.target_before == pytest.approx(before.sum() / 4000)
    assert row.target.value == pytest.approx(shift.sum() / 4000)
    half = 1.96 * shift.std(ddof=1) / np.sqrt(400) / 10
    assert row.target.low == pytest.approx(row.target.value - half, abs=half * 0.15)
    assert row.target.high == pytest.approx(row.target.value + half, abs=half * 0.15)
    assert row.others.value == pytest.approx(((2 / 20) + (-4 / 10)) / 2)
    assert row.others_percent.value == pytest.approx((100 * 2 / 50 + 100 * -4 / 40) / 2)
    assert (row.worst_other, row.worst_percent) == ("fr", pytest.approx(4.0))
    assert (row.tasks_before, row.tasks.value) == (0.25, 0.5)
    assert row.target_to_random is None


def test_runs_are_part_of_the_interval() -> None:
    base = scores({"sw": [10.0] * 5, "fr": [1.0]}, [])
    runs = [Run(1.0, False, 1, scores({"sw": [10.0 + each] * 5, "fr": [1.0]}, [])) for each in (-4.0, 0.0)]
    (row,) = compare(base, {("sw", 1, "mine"): runs}).rows
    assert (row.target.value, row.target.low, row.target.high) == pytest.approx((-0.2, -0.4, 0.0))


def test_the_best_arm_and_those_not_to_be_told_from_it() -> None:
    draw = np.random.default_rng(0)
    before = draw.normal(50, 9, 60)
    shared = draw.normal(0, 5, 60)  # some texts gain more than others, whichever arm
    noise = {arm: shared + draw.normal(0, 1, 60) for arm in ("mine", "random", "full")}
    mean = {"mine": -3.0, "random": -3.05, "full": -1.0}
    points = {"mine": [1.0] * 30, "random": [0.0] * 30, "full": [0.0] * 29 + [1.0]}
    base = scores({"sw": before.tolist()}, [0.0] * 30)
    runs = {
        ("sw", 40, arm): [Run(1.0, False, 1, scores({"sw": (before + mean[arm] + noise[arm]).tolist()}, points[arm]))]
        for arm in mean
    }
    found = compare(base, runs)
    change = {arm: mean[arm] + noise[arm].mean() for arm in mean}
    first, second = sorted(change, key=lambda arm: change[arm])[:2]
    assert found.verdicts == (
        f"sw, 40 documents, bits per byte of the target: {first} is best, not to be told from {second}",
        "sw, 40 documents, tasks: mine is best, better than every other arm",
    )
    rows = {row.arm: row for row in found.rows}
    assert rows["mine"].target_to_random.value == pytest.approx((change["mine"] - change["random"]) / 10)
    paired = noise["full"] + mean["full"] - noise["random"] - mean["random"]
    half = 1.96 * paired.std(ddof=1) / np.sqrt(60) / 10
    width = rows["full"].target_to_random.high - rows["full"].target_to_random.low
    assert width == pytest.approx(2 * half, rel=0.15), "the same texts are drawn in both arms"


def test_means_over_languages() -> None:
    texts = {"sw": [10.0, 12.0], "th": [30.0, 30.0]}
    base = Scores(scores(texts, []).texts, {"sw": {}, "th": {}})

    def run(sw: float, th: float) -> Run:
        held = scores({"sw": [10 + sw, 12 + sw], "th": [30 + th] * 2}, []).texts
        return Run(1e-3, False, 5, Scores(held, {"sw": {}, "th": {}}))

    found = compare(base, {("sw", 9, "mine"): [run(-1, 0.3)], ("th", 9, "mine"): [run(0.5, -2)]})
    (row,) = [row for row in found.rows if row.language == "all"]
    assert row.target.value == pytest.approx(np.mean([-0.1, -0.2]))
    assert row.others.value == pytest.approx(np.mean([0.03, 0.05]))
    assert row.worst_percent == pytest.approx(100 * 0.05 / 1.1)
    assert row.worst_other == "sw"
    assert found.verdicts == (), "one arm is not compared with anything"
    arms = {"mine": (-1, -2), "random": (0.5, 0.3)}
    found = compare(base, {(code, 9, arm): [run(*change)] for arm, change in arms.items() for code in ("sw", "th")})
    assert found.verdicts[-1].startswith("all, 9 documents, bits per byte of the target: mine is best")


# The stage and its command


def test_the_command_is_the_comparison(
    world: Path, done: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found, _ = done
    words = ["tuning", world / "model", "--neurons", world / "neurons", "--languages", "sw", "--documents", 20]
    words += [word for kind, name in (("corpus", "corpus"), ("validation", "validation"), ("held-out", "test"))
              for word in (f"--{kind}", world / name / "{}.txt")]  # fmt: skip
    words += [
        "--arms",
        "neurons,random",
        "--random",
        2,
        "--seeds",
        "0,1",
        "--learning-rates",
        "1e-2,1e-4",
        "--texts",
        6,
    ]
    words += [word for name, value in RECIPE.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--dtype", "float32", "--english", "fr", "--out", tmp_path / "run"]
    assert cli.main([*map(str, words), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"]["model"]["stages"][0]["cells"] == (2 + 1) + (2 + 3)
    assert not (tmp_path / "run").exists()
    assert cli.main([*map(str, words)]) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    assert "Which arm is best" in text
    result = read_result(tmp_path / "run" / "model" / "tuning" / "result.json")
    table = next(table for table in result.tables if table.name == "tuning")
    rows = {row[table.columns.index("arm")]: row for row in table.rows}
    mine = {row.arm: row for row in found.rows}
    assert list(rows) == ["contrast", "random"], "the arm has the name of the rule"
    for name, arm in (("contrast", "neurons"), ("random", "random")):
        assert rows[name][table.columns.index("change")] == pytest.approx(mine[arm].target.value, abs=1e-6)
        assert rows[name][table.columns.index("low")] == pytest.approx(mine[arm].target.low, abs=1e-6)


def test_an_arm_of_another_rule_needs_an_atlas(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tuning", world / "model", "--neurons", world / "neurons", "--languages", "sw", "--english", "fr"]
    words += ["--corpus", world / "corpus" / "{}.txt", "--validation", world / "validation" / "{}.txt"]
    words += ["--held-out", world / "test" / "{}.txt", "--arms", "neurons,lape", "--dry-run"]
    assert cli.main([*map(str, words)]) == 1
    assert "--arms: wanted an atlas to select by other rules from, found none" in capsys.readouterr().err


def test_the_plan_of_one_training(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", world / "model", "--neurons", world / "neurons" / "sw.safetensors", "--max-tokens", 32]
    words += ["--corpus", f"sw={world / 'corpus' / 'sw.txt'}", "--documents", 20, "--epochs", 1, "--batch-size", 4]
    words += ["--held-out", f"sw={world / 'test' / 'sw.txt'}", "--out", tmp_path / "run"]
    assert cli.main([*map(str, words), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
    assert cli.main([*map(str, words), "--dry-run"]) == 0
    assert f"{planned['parameters']:,}" in capsys.readouterr().out
    assert cli.main([*map(str, words), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert planned["parameters"] == trained["parameters"]
    assert planned["steps"] == trained["steps"]
    lines = (world / "test" / "sw.txt").read_text(encoding="utf-8").splitlines()
    assert planned["held_out"] == {"sw": sum(bool(line.strip()) for line in lines)}
