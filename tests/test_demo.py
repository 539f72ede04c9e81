"""The demo: the whole argument on the shipped model, kept in a run folder."""

import json

import pytest

from babelscope import cli
from babelscope.tinybabel.grammar import LANGUAGES


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "run"


@pytest.fixture(scope="module")
def told(out):
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main(["demo", "--documents", "24", "--out", str(out)]) == 0
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
    random = [damage[f"random {seed}"]["change"][matrix["rows"].index("fr")][place] for seed in range(3)]
    assert sum(random) / 3 == pytest.approx(rows["fr"]["random"]["own"])
    assert {path.name for path in (out / "neurons").iterdir()} == {f"{code}.safetensors" for code in LANGUAGES}
    assert (out / "detection" / "run.json").exists()
