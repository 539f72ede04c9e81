"""Charts and the page: the numbers of the curve are in them, texts are only texts, and nothing needs a network."""

from __future__ import annotations

import itertools
import json
import sys

import pytest
import torch

from babelscope.errors import ConfigError, DataError, MissingDependencyError
from babelscope.lens.curve import UNKNOWN, LanguageCurve, TokenGrid
from babelscope.report.files import save_chart
from babelscope.report.languages import COLOURS, GREY, language_colours, visible

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

EVIL = "</script><script>document.title='owned'</script>"
GRIDS = (
    TokenGrid(
        "ar",
        ["كتاب", " في"],
        [[["كتاب", "a"], [EVIL, "\x1c"]], [["字", "\n"], ["ไทย", '"']]],
        [[[0.9, 0.05], [0.6, 0.1]], [[0.3, 0.2], [0.8, 0.1]]],
        [["ar", ""], ["zh", "th"]],
    ),
    TokenGrid("any", ["x"], [[["y"]], [["z"]]], [[[0.5]], [[0.5]]], [["en"], [""]]),
)


@pytest.fixture(scope="module")
def curve():
    masses = torch.rand(4, 2, 5, generator=torch.Generator().manual_seed(0))
    masses = masses / masses.sum(-1, keepdim=True)
    flat = torch.zeros(4, 2)
    about = {"model": {"name": "<b>model</b>"}}
    prompts = ("ar", "ar", "en", "any")
    return LanguageCurve(("ar", "zh", "th", "en"), prompts, masses, flat, flat, None, GRIDS, about)


def values(spec):
    (rows,) = [rows["values"] for rows in [spec["data"]]] if "values" in spec["data"] else spec["datasets"].values()
    return rows


@pytest.mark.parametrize("kind", ["area", "heat"])
def test_charts_hold_the_table(curve, kind):
    spec = curve.plot(kind).to_dict()
    rows = values(spec)
    assert len(rows) == 3 * 2 * 5
    languages = {"Arabic": 0, "Chinese": 1, "Thai": 2, "English": 3, UNKNOWN: 4}
    for row in rows:
        mass = curve.of(row["language"])[row["layer"], languages[row["spoken"]]]
        assert row["mass"] == pytest.approx(float(mass), abs=1e-5)
    colour = spec["spec"]["encoding"]["color"]["scale"]
    assert dict(zip(colour["domain"], colour["range"], strict=True))[UNKNOWN] == GREY
    unknown = {row["order"] for row in rows if row["spoken"] == UNKNOWN}
    assert len(unknown) == 1
    assert unknown.pop() > max(row["order"] for row in rows if row["spoken"] != UNKNOWN), "on top"


def test_no_other_kind_of_chart(curve):
    with pytest.raises(ConfigError, match="among area, heat, found 'pie'"):
        curve.plot("pie")


def test_grid_from_right_to_left(curve):
    spec = curve.plot_tokens(0).to_dict()["vconcat"][0]
    assert spec["layer"][0]["encoding"]["x"]["sort"] == "descending"
    text = json.dumps(curve.plot_tokens(0).to_dict(), ensure_ascii=False)
    assert all(token in text for token in ("كتاب", EVIL, "字", "ไทย"))
    assert curve.plot_tokens(1).to_dict()["vconcat"][0]["layer"][0]["encoding"]["x"]["sort"] == "ascending"
    with pytest.raises(DataError, match="2 prompts were kept"):
        curve.plot_tokens(2)


def test_colours_tell_languages_apart():
    chosen = language_colours(("ar", "zh", "th", "en", UNKNOWN))
    assert len(set(chosen.values())) == 5, "four languages, and grey"


def test_a_language_keeps_its_colour():
    first = ["en", "zh", "fr", "de", "es", "ru", "vi", "th", "ja", "ar", "sw", "hi"]
    whole = language_colours([*first, "ko", "it"])
    assert [whole[code] for code in first] == list(COLOURS)
    for codes in itertools.combinations(first, 3):
        assert language_colours(codes) == {code: whole[code] for code in codes}
    twelve = ["en", "ko", "it", "pt", "nl", "pl", "tr", "fa", "id", "uk", "cs", "el"]
    assert len(set(language_colours(twelve).values())) == 12, "as many languages as colours: none is given twice"
    assert language_colours(twelve) == language_colours(twelve[::-1])


@pytest.mark.parametrize(
    ("name", "begins"), [("a.svg", b"<svg"), ("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.json", b"{")]
)
def test_files(curve, tmp_path, name, begins):
    save_chart(curve.plot_tokens(0), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_file_of_no_known_format(curve, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in one of .png, .svg, .pdf, .html, .json, found a.gif"):
        save_chart(curve.plot(), tmp_path / "a.gif")


def test_visible_tokens():
    assert visible(" a b\n\t") == "·a b⏎⇥"
    assert visible("\x1c\u202e") == "\ufffd\ufffd"


@pytest.mark.parametrize("module", ["altair", "vl_convert"])
def test_missing_packages(curve, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match="babelscope\\[report\\]"):
        save_chart(curve.plot("area"), tmp_path / "area.svg")
    assert not (tmp_path / "area.svg").exists()
