"""The script that kills a study: what it compares, and that it kills. The kills themselves take minutes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from report.synthetic import change, write_run

SCRIPT = Path(__file__).parents[2] / "experiments" / "kills.py"


@pytest.fixture(scope="module")
def kills():
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(folder):
    """A run with a page and a table's file."""
    run = write_run(folder)
    charts = json.dumps({"specs": {"figure-1-1": {"values": [1, 2]}}})
    page = f'<p>Took 5 s.</p><script type="application/json" id="charts">{charts}</script>'
    (run / "report.html").write_text(page, encoding="utf-8")
    (run / "report" / "tables").mkdir(parents=True)
    (run / "report" / "tables" / "harm.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    return run


def test_what_differs_is_named_and_times_are_not(kills, tmp_path):
    one, other = made(tmp_path / "a"), made(tmp_path / "b")
    change(other, "damage", lambda content: content.update(seconds=999.0))
    page = other / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace("5 s", "6 s"), encoding="utf-8")
    assert list(kills.differing(kills.contents(one), kills.contents(other))) == []
    change(other, "damage", lambda content: content["tables"][0]["rows"][2].__setitem__(1, 7.0))
    change(other, "lens", lambda content: content.pop("how"))
    page.write_text(page.read_text(encoding="utf-8").replace("[1, 2]", "[1, 3]"), encoding="utf-8")
    (other / "report" / "tables" / "harm.csv").write_text("a,b\n1,3\n", encoding="utf-8")
    (other / "report" / "tables" / "more.csv").write_text("", encoding="utf-8")
    found = list(kills.differing(kills.contents(one), kills.contents(other)))
    assert [each.strip().partition(":")[0] for each in found] == [
        "tiny/damage/result.json tables[0] rows[2][1]",
        "tiny/lens/result.json how",
        "report.html specs figure-1-1 values[1]",
        "report/tables/harm.csv",
        "report/tables/more.csv",
    ]
    assert "only with kills" in found[-1]
    assert found[2].endswith("2 without kills, 3 with them")


def test_it_kills_what_still_runs(kills, tmp_path, monkeypatch):
    def started(seconds):
        words = [sys.executable, "-c", f"import time; time.sleep({seconds})"]
        monkeypatch.setattr(kills, "start", lambda *_, **__: subprocess.Popen(words, start_new_session=True))

    started(60)
    began = time.monotonic()
    assert kills.kill("study", tmp_path, kills.STARTING, 0.2)
    assert 0.2 <= time.monotonic() - began < 30
    started(0)
    assert not kills.kill("study", tmp_path, kills.STARTING, 30)


@pytest.mark.parametrize(("into", "takes", "through"), [(0.3, 60, False), (60.0, 0.3, True)])
def test_it_waits_for_the_moment_or_the_stages_end(kills, tmp_path, monkeypatch, into, takes, through):
    """A study that says so when a stage begins, and then writes its result."""
    program = (
        "import pathlib, time; folder = pathlib.Path('FOLDER'); log = (folder / 'study.log').open('a');"
        f"time.sleep(0.3); print('tiny: lens begins', file=log, flush=True); time.sleep({takes});"
        "(folder / 'tiny/lens').mkdir(parents=True); (folder / 'tiny/lens/result.json').touch(); time.sleep(60)"
    )
    (tmp_path / "study.log").write_text("tiny: lens begins\n", encoding="utf-8")  # of an earlier start
    words = [sys.executable, "-c", program.replace("FOLDER", str(tmp_path))]
    monkeypatch.setattr(kills, "start", lambda *_, **__: subprocess.Popen(words, start_new_session=True))
    began = time.monotonic()
    assert kills.kill("study", tmp_path, "tiny/lens", into)
    assert 0.6 <= time.monotonic() - began < 50
    assert (tmp_path / "tiny/lens/result.json").is_file() == through


def test_a_moment_lies_in_a_stage(kills):
    times = {kills.STARTING: 5.0, "tiny/detect": 10.0, "tiny/select": 0.5}
    places = [kills.place(times, moment) for moment in (0.0, 4.9, 5.0, 14.0, 15.25, 15.5)]
    assert places == [(kills.STARTING, 0.0), (kills.STARTING, 4.9), ("tiny/detect", 0.0), ("tiny/detect", 9.0),
                      ("tiny/select", 0.25), ("tiny/select", 0.5)]  # fmt: skip
