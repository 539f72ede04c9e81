"""A run folder is read as it is, and what is wrong with a result is said exactly."""

from __future__ import annotations

import json

import pytest

from babelscope.errors import DataError
from babelscope.report.charts import FIGURES
from babelscope.report.reader import read_result, read_run
from report.synthetic import change, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def test_a_run_is_read_whole(run):
    found = read_run(run)
    assert found.finished
    assert found.missing == ()
    assert list(found.results) == ["tiny"]
    written = json.loads((run / "tiny" / "damage" / "result.json").read_text(encoding="utf-8"))
    result = found.results["tiny"]["damage"]
    assert (result.model, result.seconds, result.how) == ("tinybabel", written["seconds"], written["how"])
    assert [finding.effect for finding in result.findings] == [0.69]
    assert [list(row) for row in result.tables[0].rows] == written["tables"][0]["rows"]
    assert list(result.figures[0].records) == written["figures"][0]["records"]
    kinds = {figure.kind for each in found.results["tiny"].values() for figure in each.figures}
    assert kinds == set(FIGURES), "the made-up run has every kind"


def test_what_is_missing_is_known(run, tmp_path):
    (run / "tiny" / "lens" / "result.json").unlink()
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "models": ["tiny", "other"], "stages": ["detect", "lens"]}))
    found = read_run(run)
    assert not found.finished
    assert ("tiny", "lens") in found.missing
    assert ("other", "detect") in found.missing
    assert ("tiny", "detect") not in found.missing
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file .*run.json"):
        read_run(tmp_path / "empty")


def test_unfinished_though_everything_is_there(run):
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "status": "running"}))
    assert not read_run(run).finished


def put(*path_and_value):
    *path, last, value = path_and_value

    def edit(content):
        for step in path:
            content = content[step]
        content[last] = value

    return edit


def drop(*path):
    *path, last = path

    def edit(content):
        for step in path:
            content = content[step]
        del content[last]

    return edit


@pytest.mark.parametrize(
    ("stage", "edit", "said"),
    [
        ("lens", put("kind", "atlas"), "kind: wanted 'babelscope result', found 'atlas'"),
        ("lens", put("version", 2), "version: wanted 1, found 2"),
        ("lens", put("stage", "detect"), "stage: wanted 'lens', the name of its folder, found 'detect'"),
        ("lens", put("stage", "lense"), "stage: wanted 'lens', the name of its folder, found 'lense'"),
        ("lens", put("seconds", "9"), "seconds: wanted a finite number, found '9'"),
        ("lens", put("seconds", True), "seconds: wanted a finite number, found True"),
        ("lens", drop("how"), "how: wanted text, found nothing"),
        ("lens", put("findings", {}), "findings: wanted a list, found {}"),
        ("lens", put("findings", 0, "verdict", "maybe"), "findings[0].verdict: wanted 'holds' or 'does not hold'"),
        ("lens", put("findings", 0, "low", "0"), "findings[0].low: wanted a finite number or null, found '0'"),
        ("lens", put("figures", 0, "kind", "pie"), "figures[0].kind: wanted 'layers' or 'heat'"),
        ("lens", put("figures", 0, "name", "../x"), "figures[0].name: wanted letters, digits, - and _ only"),
        ("lens", put("figures", 1, "name", "layers"), "figures[1].name: wanted a name that no other has"),
        ("lens", put("figures", 0, "records", 7, "layer", 1.5), "figures[0].records[7].layer: wanted a whole number"),
        ("lens", drop("figures", 0, "records", 7, "mass"), "figures[0].records[7].mass: wanted a finite number"),
        ("lens", put("figures", 0, "records", 7, []), "figures[0].records[7]: wanted an object, found []"),
        ("lens", put("figures", 0, "records", 7, "mass", float("nan")), "mass: wanted a finite number, found nan"),
        ("grid", put("figures", 0, "records", 1, "control", "no"), "control: wanted true or false, found 'no'"),
        ("tuning", put("figures", 0, "x", 3), "figures[0].x: wanted text, found 3"),
        ("damage", put("tables", 0, "columns", 1, None), "tables[0].columns[1]: wanted text, found None"),
        ("damage", put("tables", 0, "rows", 2, ["fr"]), "tables[0].rows[2]: wanted 5 cells, one per column, found 1"),
        ("damage", put("tables", 0, "rows", 2, 1, []), "tables[0].rows[2][1]: wanted text, a finite number or null"),
    ],
)  # fmt: skip
def test_malformed_results_are_named(run, stage, edit, said):
    path = change(run, stage, edit)
    with pytest.raises(DataError) as caught:
        read_run(run)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert str(caught.value).endswith("run the same study again: it makes what is missing.")


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_what_is_no_result_at_all(run, text):
    path = run / "tiny" / "lens" / "result.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"result\.json"):
        read_result(path)
