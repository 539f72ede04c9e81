"""Charts and the page: the numbers of the curve are in them, texts are only texts, and nothing needs a network."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from babelscope import tinybabel
from babelscope.errors import ConfigError, DataError, MissingDependencyError
from babelscope.lens import charts
from babelscope.lens.curve import UNKNOWN, LanguageCurve, TokenGrid
from babelscope.lens.page import write_page

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


def values(spec, panel):
    return spec["datasets"][panel["data"]["name"]]


@pytest.mark.parametrize("kind", ["area", "heat"])
def test_charts_hold_the_table(curve, kind):
    spec = curve.plot(kind).to_dict()
    rows = [{**row, "prompt": panel["title"]} for panel in spec["concat"] for row in values(spec, panel)]
    assert len(rows) == 3 * 2 * 5
    languages = {"Arabic": 0, "Chinese": 1, "Thai": 2, "English": 3, UNKNOWN: 4}
    for row in rows:
        mass = curve.of(row["prompt"].removeprefix("prompts: "))[row["layer"], languages[row["decoded"]]]
        assert row["mass"] == pytest.approx(float(mass), abs=1e-5)
    for panel in spec["concat"]:
        colour = panel["encoding"]["color"]["scale"]
        assert dict(zip(colour["domain"], colour["range"], strict=True))[UNKNOWN] == charts.GREY
    if kind == "area":
        unknown = {row["order"] for row in rows if row["decoded"] == UNKNOWN}
        assert len(unknown) == 1
        assert unknown.pop() > max(row["order"] for row in rows if row["decoded"] != UNKNOWN), "on top"


def test_grid_from_right_to_left(curve):
    spec = charts.token_grid(curve, 0).to_dict()
    order = spec["layer"][0]["encoding"]["x"]["sort"]
    assert order == ["1 ·في", "0 كتاب"]
    assert {row["token"] for row in values(spec, spec)} == {"كتاب", EVIL, "字", "ไทย"}
    assert charts.token_grid(curve, 1).to_dict()["layer"][0]["encoding"]["x"]["sort"] == ["0 x"]
    with pytest.raises(DataError, match="2 prompts were kept"):
        charts.token_grid(curve, 2)


def test_colours_tell_languages_apart():
    chosen = charts.colours(("ar", "zh", "th", "en"))
    assert len(set(chosen.values())) == 5, "four languages, and grey"


@pytest.mark.parametrize(
    ("name", "begins"), [("a.svg", b"<svg"), ("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.json", b"{")]
)
def test_files(curve, tmp_path, name, begins):
    charts.save_chart(charts.token_grid(curve, 0), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_file_of_no_known_format(curve, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in one of .png, .svg, .pdf, .html, .json, found a.gif"):
        charts.save_chart(curve.plot(), tmp_path / "a.gif")


def test_visible_tokens():
    assert charts.visible(" a b\n\t") == "·a b⏎⇥"
    assert charts.visible("\x1c\u202e") == "\ufffd\ufffd"


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_page(curve, tmp_path):
    write_page(curve, tmp_path / "lens.html")
    text = (tmp_path / "lens.html").read_text(encoding="utf-8")
    page = Elements()
    page.feed(text)
    assert page.tags.count("script") == 1, "a token that looks like one is text"
    assert page.tags.count("b") == 0
    assert any(EVIL in each for each in page.texts)
    assert "<b>model</b>" in "".join(page.texts)
    assert not re.search(r"""<(script|link|img|iframe)[^>]*\b(src|href)=""", text.partition("<script")[0])
    cells = {(each["lang"], each["dir"]) for tag, each in page.attributes if tag == "td"}
    assert cells == {("ar", "rtl"), ("zh", "ltr"), ("th", "ltr"), ("en", "ltr"), ("", "auto")}
    assert len([each for tag, each in page.attributes if each.get("class") == "key"]) == 1, "one key to the colours"
    for spec in json.loads(re.search(r"^const \[specs, config\] = (.*);$", text, re.MULTILINE)[1])[0].values():
        assert spec["encoding"]["color"]["legend"] is None
    directions = [
        attributes["dir"]
        for tag, attributes in page.attributes
        if attributes.get("class") == "scroll" and "dir" in attributes
    ]
    assert directions == ["rtl", "ltr"]
    assert "vegaEmbed" in text
    assert len(text) > 500_000, "the scripts are inside"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/somewhere/private/mine-8m", "layer of mine-8m speak"),
        ("org/model", "layer of org/model speak"),
        (str(tinybabel.MODEL), "layer of tinybabel speak"),
    ],
)
def test_page_names_the_model_without_its_folder(curve, tmp_path, name, shown):
    write_page(replace(curve, about={"model": {"name": name}}), tmp_path / "lens.html")
    text = (tmp_path / "lens.html").read_text(encoding="utf-8").partition("<script")[0]
    assert shown in text
    assert "private" not in text


def test_page_tells_how_near_a_tuned_lens_comes(curve, tmp_path):
    near = {"divergence": [0.125, 0.0625], "agreement": [0.75, 1.0], "documents": 7, "positions": 70}
    tuned = {"plain": {**near, "divergence": [3.0, 2.0]}, "tuned": near}
    write_page(replace(curve, about={"settings": {"tuned": tuned}}), tmp_path / "tuned.html")
    text = (tmp_path / "tuned.html").read_text(encoding="utf-8")
    assert "On 7 documents" in text
    assert "<th>1</th><td>2.000</td><td>0.062</td><td>1.000</td><td>1.000</td>" in text
    write_page(replace(curve, about={"settings": {"tuned": None}}), tmp_path / "plain.html")
    assert "tuned" not in (tmp_path / "plain.html").read_text(encoding="utf-8").partition("<script")[0]


@pytest.mark.parametrize("module", ["altair", "vl_convert"])
def test_missing_packages(curve, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match="babelscope\\[report\\]"):
        write_page(curve, tmp_path / "lens.html")
    assert not (tmp_path / "lens.html").exists()
