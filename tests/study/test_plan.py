"""Running a study: the paper's studies at tiny scale, what is not run twice, and what a kill can't take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest

from babelscope import cli
from babelscope.artifacts import read_json
from babelscope.errors import ConfigError, DataError, RunFolderError
from babelscope.evaluation.parts import EQUAL
from babelscope.evaluation.parts import PARTS as LIBRARY_PARTS
from babelscope.report.reader import read_run
from babelscope.show.studied import draw_study_plan
from babelscope.show.terminal import Screen
from babelscope.stages.grid import PartName
from babelscope.stages.job import Job, portable
from babelscope.stages.size import Size
from babelscope.stages.study import Model
from babelscope.study import plan
from babelscope.study.config import load_study
from babelscope.study.estimate import FACTOR, FACTOR_MEASURED, seconds_of, work
from babelscope.study.keys import stage_keys
from babelscope.study.pace import Pace
from babelscope.study.plan import dry_run, folder_names, run_study
from study_worlds import GRID, PAIR, STAGES, TINY, study_of, write_study


class Killed(BaseException):
    """As SIGKILL: nothing handles it."""


def results(run: Path) -> dict[str, str]:
    """Every result of a run, as text, without the seconds."""
    found = {}
    for path in sorted(run.glob("*/*/result.json")):
        content = read_json(path)
        assert isinstance(content.pop("seconds"), float)
        found[str(path.relative_to(run))] = json.dumps(content, ensure_ascii=False)
    return found


# The paper's studies, at tiny scale, on its architectures


@pytest.mark.parametrize(
    ("preset", "family", "more", "printed"),
    [
        ("paper-vicuna-7b", "llama", "grid: {tasks: {xquad_paper: [understand], xcsqa_paper: [solve-ffn]}, "
         "languages: [fr], limit: 1, controls: 0}\n", ("xquad_paper", "understand", 56.5, 46.0)),
        ("paper-mistral-7b", "mistral", "grid: {tasks: {xcsqa_paper: [solve-attention]}, languages: [fr], limit: 2, "
         "controls: 2}\n", ("xcsqa_paper", "solve-attention", 51.2, 28.9)),
        ("paper-bloomz-7b", "bloom", "", None),
        ("paper-chinese-llama", "llama", "", None),
    ],
)  # fmt: skip
def test_the_papers_studies_run_on_its_architectures(world, tmp_path, quick, preset, family, more, printed):
    study = study_of(world, tmp_path / "study.yaml", preset, family, more)
    run_study(study, preset, tmp_path / "run", shown=False)
    run = read_run(tmp_path / "run")
    (found,) = run.results.values()
    assert run.finished
    assert set(found) == set(study.stages) == set(load_study(preset).stages)
    selected = {row[0]: row[1] for row in found["select"].tables[0].rows}
    assert len(set(selected.values())) == 1  # all settings deactivate the same number
    if printed:
        (summary,) = (table for table in found["grid"].tables if table.name == "summary")
        columns = {name: place for place, name in enumerate(summary.columns)}
        (row,) = (row for row in summary.rows if (row[columns["task"]], row[columns["part"]]) == printed[:2])
        assert (row[columns["printed_english"]], row[columns["printed_others"]]) == printed[2:]


def test_the_enhancement_runs_and_stands_beside_the_papers(world, tmp_path, quick):
    models, corpora, data, folder = world
    model = shutil.copytree(models["mistral"], folder / "Mistral-7B-v0.1", dirs_exist_ok=True)
    more = (
        "tuning: {languages: [fr], documents: [100], arms: [neurons, random], batch_size: 4, max_tokens: 32, texts: 2, "
        "evaluations: 1, tasks: [xcsqa_paper], limit: 2}\n"
    )
    study = load_study(write_study(tmp_path / "study.yaml", "paper-enhance-mistral", model, corpora, data, TINY + more))
    run_study(study, "enhance", tmp_path / "run", shown=False)
    (found,) = read_run(tmp_path / "run").results.values()
    tables = {table.name: table for table in found["tuning"].tables}
    assert {row[2] for row in tables["tuning"].rows} == {"minimum", "random"}
    assert [row[:2] + row[4:] for row in tables["printed"].rows] == [("xcsqa_paper", 100, 37.4)]
    assert [record["x"] for record in found["tuning"].figures[0].records] == [100, 100]


# What is run


def test_the_record_says_what_when_and_on_what(unbroken):
    study, run = unbroken
    record = read_json(run / "run.json")
    assert record["status"] == "finished"
    assert record["study"] == portable(study.as_json())
    assert list(record["models"]) == ["vicuna-7b-v1-5"]
    assert record["stages"] == list(study.stages)
    assert set(record["wall_seconds"]["vicuna-7b-v1-5"]) == set(study.stages)
    assert {"torch", "babelscope"} <= set(record["environment"])
    assert record["machine"]["cores"] >= 1
    assert record["seeds"] == {"study": 0, "tuning": [0]}
    log = (run / "study.log").read_text(encoding="utf-8")
    assert all(f"{stage} done in" in log for stage in study.stages)


def test_nothing_says_where_on_this_machine_things_lie(unbroken):
    """But the logs, and what the stages keep for themselves."""
    study, run = unbroken
    places = {Path(study.models[0].name).parent, Path(study.data), Path(study.corpus("detect")["fr"]).parent, run}
    said = [run / "run.json", *run.glob("*/*/result.json")]
    assert len(said) == 1 + len(study.stages)
    for path in said:
        text = path.read_text(encoding="utf-8")
        assert not [place for place in places if str(place) in text], path
    record = read_json(run / "run.json")
    assert record["study"]["corpora"]["detect"] == "detect-{}.txt"
    assert record["models"]["vicuna-7b-v1-5"]["name"] == "vicuna-7b-v1.5"


def test_an_unchanged_study_runs_nothing(unbroken, quick, monkeypatch):
    study, run = unbroken
    before = results(run)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing is loaded again")

    monkeypatch.setattr("babelscope.models.load.load_model", forbidden)
    told = run_study(study, "study.yaml", run, shown=False)
    assert results(run) == before
    assert all(each["before"] for model in told["models"].values() for each in model["stages"])


def test_only_what_a_change_reaches_is_run_again_and_comes_back(world, unbroken, tmp_path, quick):
    study, run = unbroken
    shutil.copytree(run, tmp_path / "run")
    changed = study_of(
        world, tmp_path / "study.yaml", "tinybabel-quick", "llama", STAGES + GRID.replace("limit: 2", "limit: 1")
    )
    told = run_study(changed, "study.yaml", tmp_path / "run", shown=False)
    ((_, model),) = told["models"].items()
    assert [each["stage"] for each in model["stages"] if not each["before"]] == ["grid"]
    assert results(tmp_path / "run") != results(run)
    back = run_study(study, "study.yaml", tmp_path / "run", shown=False)
    assert all(each["before"] for each in back["models"]["vicuna-7b-v1-5"]["stages"])
    assert results(tmp_path / "run") == results(run)


def test_a_changed_selection_reaches_what_reads_it(world, unbroken):
    study, _ = unbroken
    models, corpora, data, folder = world
    path = write_study(folder / "other.yaml", "tinybabel-quick", models["llama"], corpora, data, TINY + STAGES + GRID)
    path.write_text(path.read_text(encoding="utf-8").replace("budget: 0.05", "budget: 0.06"), encoding="utf-8")
    other = load_study(path)
    texts = {stage: {"detect": {"fr": "text"}} for stage in study.stages}
    (spec,) = study.models
    one, two = (stage_keys(each, spec, texts) for each in (study, other))
    assert {stage for stage in one if one[stage] != two[stage]} >= {"select", "search", "damage", "grid"}
    assert one["detect"] == two["detect"]


def test_only_and_from(unbroken, tmp_path, quick):
    study, run = unbroken
    told = run_study(study, "study.yaml", tmp_path / "some", only="damage", shown=False)
    assert [each["stage"] for each in told["models"]["vicuna-7b-v1-5"]["stages"]] == ["detect", "select", "damage"]
    assert read_json(tmp_path / "some" / "run.json")["status"] == "unfinished"
    shutil.copytree(run, tmp_path / "run")
    told = run_study(study, "study.yaml", tmp_path / "run", start="grid", shown=False)
    anew = [each["stage"] for each in told["models"]["vicuna-7b-v1-5"]["stages"] if not each["before"]]
    assert anew == ["grid", "evaluation", "steering"]
    assert results(tmp_path / "run") == results(run)
    with pytest.raises(ConfigError, match="found 'tuning'"):
        run_study(study, "study.yaml", tmp_path / "run", only="tuning", shown=False)


def test_killed_again_and_again_it_gives_the_same(unbroken, tmp_path, quick, monkeypatch):
    study, run = unbroken
    write, passed = plan.write_json, Job.passed
    kills, budget = 0, {"left": 0}

    def once(job: Job, name: str) -> None:
        passed(job, name)
        budget["left"] -= 1
        if budget["left"] < 0:
            raise Killed

    def before_writing(path: Path, content: Any) -> None:
        if path.name == "result.json" and budget["left"] == 0:
            raise Killed
        write(path, content)

    monkeypatch.setattr(Job, "passed", once)
    monkeypatch.setattr(plan, "write_json", before_writing)
    for attempt in range(60):
        budget["left"] = attempt  # also cells that were there before count
        try:
            run_study(study, "study.yaml", tmp_path / "run", shown=False)
            break
        except Killed:
            kills += 1
            assert read_json(tmp_path / "run" / "run.json")["status"] == "running"
    assert kills >= 5
    assert results(tmp_path / "run") == results(run)


def test_two_models_make_a_comparison(world, tmp_path, quick):
    models, corpora, data, _ = world
    path = write_study(tmp_path / "study.yaml", "tinybabel-quick", models["llama"], corpora, data, TINY + PAIR)
    both = f"models: [{{name: {models['llama']}, dtype: float32}}, {{name: {models['bloom']}, dtype: float32}}]"
    text = path.read_text(encoding="utf-8").splitlines()
    text[1] = both
    path.write_text("\n".join([*text, ""]), encoding="utf-8")
    run_study(load_study(path), "study.yaml", tmp_path / "run", shown=False)
    run = read_run(tmp_path / "run")
    assert set(run.results) == {"vicuna-7b-v1-5", "bloomz-7b1"}
    units = [run.results[name]["detect"].tables[1].rows for name in run.results]
    assert units[0] != units[1]


# What is refused, and what a person sees


def test_missing_texts_and_folders_of_others_are_refused_before_any_work(world, tmp_path, quick, monkeypatch):
    models, corpora, data, _ = world

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing is loaded")

    monkeypatch.setattr("babelscope.models.load.load_model", forbidden)
    study = load_study(
        write_study(
            tmp_path / "a.yaml", "tinybabel-quick", models["llama"], str(tmp_path / "KIND-{}.txt"), data, TINY + PAIR
        )
    )
    with pytest.raises(DataError, match="no file"):
        run_study(study, "a.yaml", tmp_path / "run", shown=False)
    assert not (tmp_path / "run").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine", encoding="utf-8")
    good = load_study(write_study(tmp_path / "b.yaml", "tinybabel-quick", models["llama"], corpora, data, TINY + PAIR))
    with pytest.raises(RunFolderError, match="not a run folder"):
        run_study(good, "b.yaml", tmp_path / "full", shown=False)


def test_models_of_one_name_get_folders_of_their_own():
    one, other, hub = (Model(name=name) for name in ("a/llama", "a/llama", "detect"))
    assert list(folder_names((one, other, hub))) == ["a-llama", "a-llama-2", "detect-2"]


def test_the_parts_are_the_librarys():
    assert (*LIBRARY_PARTS, *EQUAL) == get_args(PartName)


def test_estimates_are_a_range_and_learn_from_a_former_run(unbroken, tmp_path):
    study, run = unbroken
    (spec,) = study.models

    def planned(asked, out):
        (model,) = dry_run(asked, out=out)["models"].values()
        assert model["seconds"] == pytest.approx(sum(row["seconds"] for row in model["stages"]))
        return model, {row["stage"]: row for row in model["stages"]}

    model, rows = planned(study, None)
    assert model["measured"] == []
    for stage, row in rows.items():
        seconds = seconds_of(work(study, stage), Size.of(spec))
        assert (row["seconds"], row["low"], row["high"]) == pytest.approx((seconds, seconds / FACTOR, seconds * FACTOR))
    took = {path.parent.name: read_json(path)["seconds"] for path in run.glob("*/*/result.json")}
    model, rows = planned(study, run)
    assert model["measured"] == list(study.stages)
    for stage in set(took) - {"select"}:
        assert rows[stage]["seconds"] == pytest.approx(took[stage])
        assert rows[stage]["high"] == pytest.approx(took[stage] * FACTOR_MEASURED)
    more = study.changed(damage=study.damage.changed(texts=2 * study.damage.texts))
    assert planned(more, run)[1]["damage"]["seconds"] == pytest.approx(2 * took["damage"])
    # A stage that never ran is as fast as the others were; one that was killed in between was not measured.
    shutil.copytree(run, tmp_path / "run")
    keys = {stage: tmp_path / "run" / "vicuna-7b-v1-5" / stage / "key.json" for stage in ("damage", "grid")}
    for path in keys.values():
        path.write_text(json.dumps({"key": read_json(path)["key"]}), encoding="utf-8")
    model, rows = planned(study, tmp_path / "run")
    assert set(study.stages) - set(model["measured"]) == {"damage", "grid"}
    bare = {stage: seconds_of(work(study, stage), Size.of(spec)) for stage in study.stages}
    pace = sum(took[each] for each in model["measured"]) / sum(bare[each] for each in model["measured"])
    assert rows["damage"]["seconds"] == pytest.approx(pace * bare["damage"])
    assert rows["damage"]["high"] == pytest.approx(FACTOR * pace * bare["damage"])


def test_a_plan_for_a_person_is_a_range_and_says_what_it_rests_on():
    row = {"stage": "detect", "cells": 3, "seconds": 20.0, "low": 6.7, "high": 600.0}
    model = {"model": "m", "parameters": None, "stages": [row], "measured": ["detect"], "memory_bytes": None}
    unknown = {"seconds": None, "low": None, "high": None}
    text = [
        " ".join(line.split()) for line in draw_study_plan({"name": "n", "models": {"m": model | unknown}}, Screen())
    ]
    assert "stage cells about from to" in text
    assert "detect 3 20 s 7 s 10 min" in text
    assert "in all 3 ? ? ?" in text
    assert "and from how long it took before: detect" in text


def test_the_time_of_a_part_is_not_that_of_a_stage(unbroken, tmp_path, quick):
    study, run = unbroken
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "vicuna-7b-v1-5" / "damage"
    (folder / "result.json").unlink()
    (folder / "key.json").write_text(json.dumps({"key": read_json(folder / "key.json")["key"]}), encoding="utf-8")
    run_study(study, "study.yaml", tmp_path / "run", shown=False)
    assert (folder / "result.json").is_file()
    assert "work" not in read_json(folder / "key.json"), "its cells were there already"
    assert "work" in read_json(folder.parent / "grid" / "key.json")


def test_time_left_follows_how_long_things_took(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("babelscope.study.pace.time.monotonic", lambda: clock["now"])
    pace = Pace([10.0, 30.0])
    pace.begin()
    assert pace.left(0.0) == 40.0
    clock["now"] = 24.0  # twice as long as planned: 4 s of the plan counted as done, (24 + 4) / (10 + 4) = 2
    assert pace.left(1.0) == 60.0
    pace.end()
    pace.begin()
    assert pace.left(0.0) == 60.0
    clock["now"] = 54.0  # half of the second in as planned for the pace so far
    assert pace.left(0.5) == 30.0
    short = Pace([1.0, 999.0])
    short.begin()
    clock["now"] += 10.0  # ten times as long as planned says little if that was a second
    assert short.left(1.0) == pytest.approx(999 * 110 / 101)


def test_the_command(world, tmp_path, capsys, quick):
    models, corpora, data, _ = world
    path = write_study(tmp_path / "study.yaml", "tinybabel-quick", models["llama"], corpora, data, TINY + PAIR)
    assert cli.main(["study", str(path), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [row["cells"] for row in planned["models"]["vicuna-7b-v1-5"]["stages"]] == [3, 1]
    assert not (tmp_path / "run").exists()
    assert cli.main(["study", str(path), "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert "What came of it" in told.out
    assert "share more neurons than chance" in " ".join(told.out.split())
    assert told.err.startswith("babelscope: study\n"), "something is on the screen at once"
    assert cli.main(["study", "--init", str(tmp_path / "new.yaml")]) == 0
    assert f"babelscope study {tmp_path / 'new.yaml'} --dry-run" in capsys.readouterr().out
    assert cli.main(["study", str(tmp_path / "new.yaml"), "--dry-run"]) == 0
    slip = (tmp_path / "new.yaml").read_text("utf-8").replace("tinybabel:{}:test", str(tmp_path / "{}.txt"))
    (tmp_path / "slip.yaml").write_text(slip, "utf-8")
    capsys.readouterr()
    assert cli.main(["study", str(tmp_path / "slip.yaml"), "--dry-run"]) == 1
    assert "en.txt" in capsys.readouterr().err
    assert cli.main(["study", str(path)]) == 1
    assert "--out DIR" in capsys.readouterr().err
