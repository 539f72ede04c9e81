"""The demo: the whole argument on the shipped model, kept in a run folder."""

import contextlib
import io
import json

import pytest

from babelscope import cli, demo
from babelscope.detection import detect as detection
from babelscope.tinybabel.grammar import LANGUAGES

short_demo = demo.demo


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "run"


@pytest.fixture(scope="module")
def told(out):
    text = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        patch.setattr(detection, "choose_kernel", lambda requested, elements: "eager")  # compiling would take longer
        patch.setattr(demo, "demo", lambda out, **asked: short_demo(out, texts=2, draws=2, **asked))
        assert cli.main(["demo", "--documents", "5", "--out", str(out)]) == 0
    return text.getvalue()


def test_it_ends_with_the_table_and_the_folder(told, out):
    assert "Switching off 1 % of Tinybabel's" in told
    assert all(f"  {code} " in told for code in LANGUAGES)
    assert told.rstrip().endswith(str(out))
    assert "without its neurons" in told


def test_what_it_kept(told, out):
    content = json.loads((out / "demo.json").read_text())
    rows = {row["language"]: row for row in content["damage"]}
    assert list(rows) == list(LANGUAGES)
    selective = [row["contrast (default)"]["own"] > 5 * row["contrast (default)"]["others"] for row in rows.values()]
    assert sum(selective) >= 6
    damage = json.loads((out / "damage.json").read_text())
    matrix = damage["contrast (default)"]
    place = matrix["columns"].index("fr")
    assert matrix["change"][matrix["rows"].index("fr")][place] == pytest.approx(rows["fr"]["contrast (default)"]["own"])
    random = [damage[f"random {seed}"]["change"][matrix["rows"].index("fr")][place] for seed in range(2)]
    assert sum(random) / 2 == pytest.approx(rows["fr"]["random"]["own"])
    assert {path.name for path in (out / "neurons").iterdir()} == {f"{code}.safetensors" for code in LANGUAGES}
    assert (out / "detection" / "run.json").exists()
