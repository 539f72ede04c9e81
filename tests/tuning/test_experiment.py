"""An experiment: what a file may say, which cells it has, that each is done once, and what the table says of them."""

from __future__ import annotations

import csv
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import babelscope as bs
from babelscope import cli
from babelscope.editing.controls import controls
from babelscope.errors import ConfigError
from babelscope.evaluation.likelihood import likelihood
from babelscope.tuning import bench
from babelscope.tuning.bench import lora, plan_experiment, run_experiment
from babelscope.tuning.experiment import Experiment
from babelscope.tuning.verdict import Run, Scores, compare
from fixtures_text import save_tiny_model, write_texts

RECIPE = {"epochs": 1, "evaluations": 2, "batch_size": 4, "max_tokens": 32}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An experiment on the tiny model, with two seeds and two random sets."""
    folder = tmp_path_factory.mktemp("world")
    model, _ = bs.load_model(save_tiny_model(folder / "model"))
    for code, first in (("fr", 0), ("sw", 10)):
        units = {"ffn": {0: [first, first + 5, first + 9], 1: [first + 2]}, "q": {1: [3]}, "o": {0: [7]}}
        bs.NeuronSet.from_indices(bs.Anatomy(model), units).save(folder / f"{code}.safetensors")
    for name, documents in (("corpus", 30), ("validation", 8), ("test", 7)):
        write_texts(folder / name, documents)
    sources = {name: str(folder / name / "{}.txt") for name in ("corpus", "validation", "test")}
    return {
        "model": str(folder / "model"), "languages": ["sw"], "others": ["fr"], **sources, "random": 2, "seeds": [0, 1],
        "neurons": {"mine": str(folder / "{}.safetensors")}, "documents": [20], "texts": 6, "recipe": RECIPE,
        "rates": {"neurons": [1e-2, 1e-4], "lora": [1e-2], "full": [1e-3]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def done(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[str]]:
    folder, told = tmp_path_factory.mktemp("out"), []
    return folder, run_experiment(Experiment.of(content), folder, told.append), told


# What a file may say


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"langauges": ["sw"]}, r"unknown key 'langauges'. Did you mean languages\?"),
        ({"model": None}, "model: wanted a folder, a name on the Hub, or tinybabel, found null. Correct it."),
        ({"languages": ["sw", "sw"]}, r'languages: wanted a list of languages, each once, found \["sw", "sw"\]'),
        ({"languages": ["xx"]}, "xx"),
        ({"neurons": {"random": "{}.st"}}, "neurons: wanted arm: a neuron file .* no arm named neurons, random"),
        ({"neurons": {"a": "one.safetensors"}}, "neurons: wanted"),
        ({"neurons": {"a": {"budget": 0.1}}}, "detection: wanted a run of babelscope detect"),
        ({"corpus": "texts.txt"}, "corpus: wanted a source of texts, with {} where the language's code goes"),
        ({"test": "v/{}.txt", "validation": "v/{}.txt"}, "wanted three sources of texts"),
        ({"documents": [1]}, "documents: wanted a list of numbers of documents, each 2 or more"),
        ({"seeds": [True]}, r"seeds: wanted .*, found \[true\]"),
        ({"rates": {"random": [1e-3]}}, "rates: wanted lists of learning rates above 0, by neurons, lora or full"),
        ({"rates": {"lora": [0]}}, "rates: wanted"),
        ({"recipe": {"learning_rate": 1}}, "recipe: wanted settings among max_tokens, batch_size"),
        ({"recipe": {"batch_size": 0}}, "recipe: wanted batch_size of 1 or more, found 0"),
        ({"arms": ["neurons", "loar"]}, "arms: wanted a list of neurons, random, lora, full"),
        ({"random": 0}, "random: wanted a number of random sets, 1 or more, found 0"),
    ],
)
def test_what_a_file_may_not_say(content: dict[str, Any], tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(ConfigError, match=f"^{path}: .*{message}"):
        Experiment.load(path)


def test_what_must_be_said_and_what_need_not(content: dict[str, Any]) -> None:
    needed = ("model", "languages", "neurons", "corpus", "validation", "test")
    for name in needed:
        with pytest.raises(ConfigError, match=f"{name}: wanted, found nothing. Add it."):
            Experiment.of({key: value for key, value in content.items() if key != name})
    least = Experiment.of({name: content[name] for name in needed})
    assert least.names() == ["mine", "random", "lora", "full"]
    some = Experiment.of({**content, "rates": {"lora": [1]}})
    assert (some.rates_of("lora"), some.rates_of("full")) == ((1.0,), least.rates_of("full"))


def test_rates_are_searched_with_the_first_seed_and_draw(content: dict[str, Any]) -> None:
    experiment = Experiment.of({**content, "documents": [20, 25], "languages": ["sw", "fr"]})
    assert len(experiment.groups()) == 2 * 2 * 4
    searched = experiment.searched("sw", 25, "random")
    assert [(cell.rate, cell.draw, cell.seed) for cell in searched] == [(1e-2, 0, 0), (1e-4, 0, 0)]
    repeated = experiment.repeated(searched[1])
    assert {(cell.rate, cell.draw, cell.seed) for cell in repeated} == {(1e-4, d, s) for d in (0, 1) for s in (0, 1)}
    assert searched[1] in repeated
    assert len(experiment.repeated(experiment.searched("sw", 25, "full")[0])) == 2


# What is done


def test_a_cell_is_a_call_of_tune(content: dict[str, Any], done: Any) -> None:
    """Retraining by hand, without the experiment's code, gives its numbers."""
    _, found, _ = done
    folder = Path(content["test"]).parents[1]
    texts = {
        kind: {code: (folder / kind / f"{code}.txt").read_text().splitlines()[:6] for code in ("sw", "fr")}
        for kind in ("validation", "test")
    }
    mine = bs.NeuronSet.load(folder / "sw.safetensors")

    @functools.cache
    def by_hand(what: Any, rate: float, seed: int) -> tuple[float, dict[str, float], int]:
        model, tokenizer = bs.load_model(content["model"], dtype="float32")
        result = bs.tune(
            model, tokenizer, what(model), folder / "corpus" / "sw.txt", language="sw", documents=20, seed=seed,
            held_out={"sw": texts["validation"]["sw"]}, held_out_documents=6, learning_rate=rate, **RECIPE,
        )  # fmt: skip
        merged = result.merge()
        bits = {code: likelihood(merged, tokenizer, each, max_tokens=32) for code, each in texts["test"].items()}
        return result.after["sw"], {code: each.bits_per_byte for code, each in bits.items()}, result.parameters

    model, tokenizer = bs.load_model(content["model"], dtype="float32")
    base = {c: likelihood(model, tokenizer, each, max_tokens=32).bits_per_byte for c, each in texts["test"].items()}
    arms = {
        "mine": [lambda model: mine], "random": [lambda model, each=each: each for each in controls(mine, 2)],
        "lora": [lambda model: lora(model, mine)],
    }  # fmt: skip
    for arm, draws in arms.items():
        rates = (1e-2,) if arm == "lora" else (1e-2, 1e-4)
        best = min(rates, key=lambda rate, draws=draws: by_hand(draws[0], rate, 0)[0])
        runs = [by_hand(draw, best, seed) for draw in draws for seed in (0, 1)]
        (row,) = [row for row in found.rows if row.arm == arm]
        assert (row.rate, row.edge, row.runs) == (best, arm != "lora", len(runs))
        assert row.parameters == runs[0][2]
        assert row.target_before == pytest.approx(base["sw"], rel=1e-6)
        change = {code: np.mean([bits[code] for _, bits, _ in runs]) - base[code] for code in base}
        assert row.target.value == pytest.approx(change["sw"], abs=1e-6)
        assert row.others.value == pytest.approx(change["fr"], abs=1e-6)
        assert row.others_percent.value == pytest.approx(100 * change["fr"] / base["fr"], abs=1e-4)
        assert (row.worst_other, row.tasks) == ("fr", None)


def test_the_table_and_what_was_told(done: Any) -> None:
    folder, found, told = done
    with (folder / bench.TABLE).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    record = json.loads((folder / bench.RESULTS).read_text())
    assert [row["arm"] for row in rows] == ["mine", "random", "lora", "full"]
    for row, kept, mine in zip(rows, record["rows"], found.rows, strict=True):
        assert float(row["target_low"]) == kept["target_low"] == mine.target.low
        assert row["tasks"] == ""
    assert record["verdicts"] == list(found.verdicts)
    assert len(told) == len(list((folder / bench.CELLS).iterdir())) - 1 == (2 + 1) + (2 + 3) + 2 + 2
    assert told[-1].endswith("about 0 s left")


def test_a_killed_experiment_goes_on_to_the_same_numbers(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Experiment.of(
        {**content, "arms": ["neurons", "full"], "seeds": [1], "rates": {"neurons": [1e-2], "full": [1e-3]}}
    )
    calls = itertools.count()
    tune = bench.tune

    def killed(*args: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return tune(*args, **options)

    monkeypatch.setattr(bench, "tune", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(few, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/training/history.json")}
    assert len(before) == 1
    found = run_experiment(few, tmp_path / ".")
    assert found == run_experiment(few, tmp_path / "unbroken")
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    monkeypatch.setattr(bench, "tune", None)  # nothing is left to train or to load
    assert run_experiment(few, tmp_path) == found


def test_a_changed_setting_makes_other_cells(content: dict[str, Any]) -> None:
    def folder(**change: Any) -> Path:
        experiment = Experiment.of({**content, **change})
        return bench._Bench(experiment, Path("out"), print).folder(experiment.searched("sw", 20, "mine")[0])

    same = folder()
    assert same == folder(random=5, rates={"neurons": [1e-2], "lora": [3]}, arms=["neurons"], others=[])
    changed = [
        folder(recipe={**RECIPE, "epochs": 2}), folder(seeds=[4]), folder(texts=5), folder(dtype="bfloat16"),
        folder(validation=content["test"], test=content["validation"]), folder(rates={"neurons": [1e-3]}),
        folder(keep=content["corpus"]), folder(recipe={**RECIPE, "others_at_most": 1}),
    ]  # fmt: skip
    assert len({same, *changed}) == 9
    kept = {"keep": content["corpus"], "recipe": {**RECIPE, "others_at_most": 1}}
    assert folder(**kept) == folder(**kept, languages=content["languages"][::-1], others=content["others"][::-1])


def test_the_plan_counts_what_is_done(content: dict[str, Any], done: Any, tmp_path: Path) -> None:
    folder, _, told = done
    experiment = Experiment.of({**content, "tasks": ["tinybabel"], "limit": 3})
    planned = plan_experiment(experiment)
    assert planned["trainings"] == len(told)
    assert planned["scored"] == 2 + 4 + 2 + 2
    assert planned["cells"][0] == "sw, 20 documents, mine, rate 0.01, seed 0"
    assert len(planned["cells"]) == 2 + 2 + 1 + 1
    steps = [json.loads(path.read_text())["history"]["steps"] for path in folder.glob("cells/*/training/history.json")]
    assert planned["steps"] == pytest.approx(sum(map(len, steps)), rel=0.35)
    assert planned["prompts"] == {"tinybabel": 3}


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


# The command


def test_the_command(content: dict[str, Any], done: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, found, _ = done
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(content))
    assert cli.main(["tune", "--experiment", str(path), "--out", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == json.loads(json.dumps(found.as_json()["rows"]))
    assert cli.main(["tune", "--experiment", str(path), "--out", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "sw Swahili, 20 documents" in text
    assert f"{found.rows[0].target.value:+.4f}" in text
    for name in told["files"]:
        assert (folder / name).stat().st_size > 100
    assert cli.main(["tune", "--experiment", str(path), "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    assert "12 of" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    assert cli.main(["tune", content["model"], "--experiment", str(path), "--out", str(folder)]) == 1
    assert "says all of it in its file" in capsys.readouterr().err
    assert cli.main(["tune", "--out", str(folder)]) == 1
    assert "wanted MODEL, --neurons and --corpus" in capsys.readouterr().err
