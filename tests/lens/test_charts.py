"""Charts and the page: the numbers of the curve are in them, texts are only texts, and nothing needs a network."""

from __future__ import annotations

import itertools
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from babelscope import tinybabel
from babelscope.errors import ConfigError, DataError, MissingDependencyError
from babelscope.lens.curve import UNKNOWN, LanguageCurve, TokenGrid
from babelscope.lens.page import write_page
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
        assert spec["spec"]["encoding"]["color"]["scale"]["domain"][-1] == UNKNOWN
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
