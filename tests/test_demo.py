"""The demo: the quick study of the shipped model, its table in text, and the report that it ends with."""

import contextlib
import io
import json

import pytest

from babelscope import cli, demo
from babelscope.detection import detect as detection
from babelscope.stages.job import FOUND
from babelscope.tinybabel.grammar import LANGUAGES

short_demo = demo.demo


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "run"


@pytest.fixture(scope="module")
def told(out):
    text = io.StringIO()
    stages = ("detect", "select", "damage")
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        patch.setattr(detection, "choose_kernel", lambda requested, operations: "eager")  # compiling would take longer
        patch.setattr(demo, "demo", lambda out, **asked: short_demo(out, texts=2, draws=2, stages=stages, **asked))
        assert cli.main(["demo", "--documents", "5", "--out", str(out)]) == 0
    return text.getvalue()


def test_it_ends_with_the_table_the_claims_and_the_report(told, out):
    assert "Switching off 1 % of Tinybabel's" in told
    assert all(f"  {code} " in told for code in LANGUAGES)
    assert "without its neurons" in told
    assert "harms that language more than the others" in " ".join(told.split())
    assert told.rstrip().endswith(str(out / "report.html"))
    assert (out / "report.html").is_file()


def test_what_it_kept(told, out):
    content = json.loads((out / "demo.json").read_text())
    rows = {row["language"]: row for row in content["damage"]}
    assert set(rows) == set(LANGUAGES)
    selective = [row["contrast (default)"]["own"] > 5 * row["contrast (default)"]["others"] for row in rows.values()]
    assert sum(selective) >= 6
    damage = json.loads((out / "tinybabel" / "damage" / "result.json").read_text())
    figures = {figure["name"]: figure["records"] for figure in damage["figures"]}

    def cell(name, row, column):
        (found,) = (each["value"] for each in figures[name] if (each["row"], each["column"]) == (row, column))
        return found

    assert cell("damage-selected", "fr", "fr") == rows["fr"]["contrast (default)"]["own"]
    others = [cell("damage-minimum", "fr", code) for code in LANGUAGES if code != "fr"]
    assert sum(others) / 9 == pytest.approx(rows["fr"]["minimum (the paper's)"]["others"])
    change = json.loads((out / "tinybabel" / "damage" / FOUND).read_text())["change"]
    place = list(rows).index("fr")
    random = [change[f"random {number}"][place][place] for number in (1, 2)]
    assert sum(random) / 2 == pytest.approx(rows["fr"]["random"]["own"])
    sets = {path.name for path in (out / "tinybabel" / "select").glob("*.safetensors")}
    assert sets == {f"{code}.safetensors" for code in LANGUAGES}
