"""Charts hold the records, whatever is in them, and every kind can be drawn."""

from __future__ import annotations

import json
import random
from itertools import combinations

import pytest

from babelscope.languages import get_language
from babelscope.report import charts, drawing, effect_charts, grid_charts, languages, lens_charts
from babelscope.report.results import Figure
from report.synthetic import LANGUAGES, UNKNOWN, results

pytest.importorskip("altair")
vl_convert = pytest.importorskip("vl_convert")

STAGES = results(random.Random(0), "tinybabel", 4)
FIGURES = {each["name"]: Figure(**each) for stage in STAGES for each in stage["figures"]}


def rows(chart):
    """The data of a chart that has one table of them."""
    (found,) = chart.to_dict()["datasets"].values()
    return found


def compiled(chart):
    return vl_convert.vegalite_to_vega(charts.for_paper(chart))


@pytest.mark.parametrize("name", FIGURES)
def test_every_kind_is_drawn(name):
    figure = FIGURES[name]
    drawn = vl_convert.vegalite_to_svg(charts.for_paper(charts.draw(figure)))
    assert drawn.count("<path") > 5
    assert compiled(charts.draw(figure))["marks"]


def test_every_kind_has_a_chart():
    assert set(charts.FIGURES) == {figure.kind for figure in FIGURES.values()}


@pytest.mark.parametrize(
    ("name", "field"), [("counts", "count"), ("matrix", "value"), ("curve", "y"), ("bars", "value")]
)
def test_numbers_stay_as_they_are(name, field):
    figure = FIGURES[name]
    assert [row[field] for row in rows(charts.draw(figure))] == [record[field] for record in figure.records]


def test_layers_stack_languages_and_then_what_is_none():
    figure = FIGURES["layers"]
    chart = lens_charts.layers(figure.records)
    spec = chart.to_dict()
    scale = spec["spec"]["encoding"]["color"]["scale"]
    assert scale["domain"] == [*(get_language(code).name for code in LANGUAGES), UNKNOWN]
    assert scale["range"][-1] == languages.GREY
    assert languages.GREY not in scale["range"][:-1]
    assert len(set(scale["range"])) == 11
    orders = {row["spoken"]: row["order"] for row in rows(chart)}
    assert orders[UNKNOWN] == max(orders.values()), "on top"
    given = lens_charts.layers(figure.records, {"en": "#123456"}).to_dict()["spec"]["encoding"]["color"]["scale"]
    assert given["range"][0] == "#123456"
    two = [{**record, "model": model} for model in ("a", "b") for record in figure.records[:2]]
    assert {row["panel"] for row in rows(lens_charts.layers(two))} == {"English · a", "English · b"}


def test_slots_have_their_own_order():
    records = [{"language": "fr", "slot": slot, "layer": 0, "count": 1} for slot in ("ffn", "gate", "k", "q")]
    assert grid_charts.counts(records).to_dict()["spec"]["encoding"]["y"]["sort"] == ["q", "k", "ffn", "gate"]


def test_matrix_marks_sign_and_what_is_clear_of_zero():
    cells = [(0.4, 0.1, 0.7), (0.4, -0.1, 0.9), (-0.2, -0.3, -0.1), (0.0, None, None), (None, None, None)]
    records = [
        {"row": "fr", "column": code, "value": value, "low": low, "high": high}
        for code, (value, low, high) in zip(LANGUAGES, cells, strict=False)
    ]
    found = rows(grid_charts.matrix(records))
    assert [row["clear"] for row in found] == [True, False, True, False, False]
    assert [row["sign"] for row in found] == ["above zero", "above zero", "below zero", "above zero", None]
    drawn = vl_convert.vegalite_to_svg(charts.for_paper(grid_charts.matrix(records)))
    bold = [part.split("<")[0].split(">")[-1] for part in drawn.split("<text")[1:] if 'font-weight="bold"' in part]
    assert sorted(bold) == ["0.400", "−0.200"], "what the interval separates from zero, and nothing else"
    assert drawn.count(">0.400<") == 2
    assert drawn.count(">0.000<") == 1


@pytest.mark.parametrize(
    ("largest", "text"),
    [
        (0.0021, "0.0021"),
        (0.051, "0.051"),
        (0.11, "0.110"),
        (0.88, "0.880"),
        (1.5, "1.50"),
        (12.3, "12.3"),
        (150, "150"),
    ],
)
def test_cells_have_the_decimals_that_they_need(largest, text):
    records = [{"row": "fr", "column": "fr", "value": largest, "low": None, "high": None}]
    assert f">{text}<" in vl_convert.vegalite_to_svg(charts.for_paper(grid_charts.matrix(records)))


def test_overlap_shows_chance():
    records = [{"row": "fr", "column": "en", "overlap": 0.25, "expected": 0.0312, "p": None}]
    drawn = vl_convert.vegalite_to_svg(charts.for_paper(grid_charts.overlap(records)))
    assert ">0.25<" in drawn
    assert ">(0.03)<" in drawn


def test_columns_come_in_the_order_of_the_rows():
    """Though the first cell of the first row is left out, because a set always shares all with itself."""
    names = ("German", "English", "French")
    found = grid_charts.overlap(
        [{"row": x, "column": y, "overlap": 0.5, "expected": 0.1, "p": 0.01} for x in names for y in names if x != y]
    )
    encoding = found.to_dict()["layer"][0]["encoding"]
    assert encoding["x"]["sort"] == encoding["y"]["sort"] == list(names)


def test_search_frames_the_highest():
    records = [{"understand": n, "generate": 1, "value": value} for n, value in ((1, 0.2), (2, 0.7), (3, None))]
    frame = grid_charts.search(records).to_dict()["layer"][-1]
    assert frame["transform"] == [{"filter": "datum.value === 0.7"}]


@pytest.mark.parametrize(("places", "kind"), [((1, 10, 100), "log"), ((1, 10, 49), None), ((0, 100), None)])
def test_wide_axes_are_logarithmic(places, kind):
    records = [{"series": "a", "x": x, "y": 1.0, "low": None, "high": None} for x in places]
    x = effect_charts.curve(records, "documents", "bits").to_dict()["layer"][1]["encoding"]["x"]
    assert x["scale"].get("type") == kind
    assert x["title"] == "documents"


def test_controls_are_marked():
    found = rows(charts.draw(FIGURES["forest"]))
    assert {row["made"] for row in found if row["label"].startswith("random")} == {"control"}
    assert {row["made"] for row in found if row["label"].startswith("neurons")} == {"measured"}


def test_codes_become_names_only_among_codes():
    def labels(*names):
        records = [{"group": "g", "label": name, "value": 1.0, "low": None, "high": None} for name in names]
        return [row["label"] for row in rows(effect_charts.bars(records))]

    assert labels("sw", "fr") == ["Swahili", "French"]
    assert labels("fr", "yes") == ["fr", "yes"]


def test_tokens_run_from_the_right_where_the_prompt_does():
    spec = charts.draw(FIGURES["tokens"]).to_dict()
    sorts = [each["layer"][0]["encoding"]["x"]["sort"] for each in spec["vconcat"]]
    assert sorts == ["descending", "ascending", "ascending"]


def test_control_characters_do_not_reach_the_files():
    records = [{**record, "token": "\x00\x1b\u202e"} for record in FIGURES["tokens"].records]
    text = json.dumps(lens_charts.tokens(records).to_dict(), ensure_ascii=False)
    assert "\\u0000" not in text
    assert "\u202e" not in text
    vl_convert.vegalite_to_svg(charts.for_paper(lens_charts.tokens(records)))


# Colours, by the formulas of their sources


def linear(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


RED_BLIND = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
GREEN_BLIND = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
LMS = ((0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566),
       (0.0883024619, 0.2817188376, 0.6299787005))  # fmt: skip
LAB = ((0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099),
       (0.0259040371, 0.7827717662, -0.8086757660))  # fmt: skip


def seen(colour):
    light = linear(colour)
    for eyes in (None, RED_BLIND, GREEN_BLIND):
        view = light if eyes is None else [min(max(part, 0), 1) for part in times(eyes, light)]
        yield times(LAB, [max(part, 0) ** (1 / 3) for part in times(LMS, view)])


def apart(one, other):
    """The smallest difference, of any eyes, in OKLab."""
    return min(
        sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) ** 0.5 for p, q in zip(seen(one), seen(other), strict=True)
    )


@pytest.mark.parametrize(("colours", "least", "dark", "light"), [
    (languages.COLOURS, 0.105, 0.06, 0.5), (drawing.SERIES, 0.105, 0.12, 0.36),
])  # fmt: skip
def test_colours_are_told_apart_by_all_eyes_and_on_all_grounds(colours, least, dark, light):
    assert min(apart(*pair) for pair in combinations(colours, 2)) > least
    for colour in colours:
        assert dark - 0.005 < sum(a * b for a, b in zip(linear(colour), (0.2126, 0.7152, 0.0722), strict=True)) < light


@pytest.mark.parametrize("hue", [drawing.ABOVE, drawing.BELOW])
@pytest.mark.parametrize(("paper", "ink"), [("#ffffff", "#1c1f24"), ("#15171c", "#e8eaee")])
def test_letters_can_be_read_on_every_cell(hue, paper, ink):
    def luminance(parts):
        return sum(a * b for a, b in zip(parts, (0.2126, 0.7152, 0.0722), strict=True))

    for percent in range(101):
        over = [(int(hue[at : at + 2], 16), int(paper[at : at + 2], 16)) for at in (1, 3, 5)]
        ground = "#" + "".join(f"{round((percent * a + (100 - percent) * b) / 100):02x}" for a, b in over)
        letters = "#ffffff" if percent > 100 * drawing.STRONG else ink
        low, high = sorted((luminance(linear(ground)), luminance(linear(letters))))
        assert (high + 0.05) / (low + 0.05) >= 3.5, percent
