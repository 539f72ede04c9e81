"""Every figure of a study as an altair chart of a list of records, for the report and for notebooks.

The fields of a record are those of its kind in `babelscope.report.results.RECORDS`. Colours are few and work on white,
on near-black and for people who don't see all hues: what is more or less is the opacity of one hue over whatever lies
below it, what has a sign has blue above zero and orange below. `for_paper` adds the letters' colours for a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from babelscope.errors import MissingDependencyError
from babelscope.lens.charts import GREY, visible
from babelscope.report.languages import Records, is_language, language_colours, name_of, reads_from_right, with_names
from babelscope.report.results import AXES, Figure
from babelscope.report.theme import theme

SERIES = ("#246dce", "#92aa00", "#865549", "#31aac2", "#9e3d92", "#c27979", "#6d92ff", "#927900")
"""For lines and bars, which stand out from white and from near-black. Like the colours of languages found by a search
over sRGB, here of luminance 0.12 to 0.36 (there 0.06 to 0.5): the smallest difference of any two, to normal, red-blind
or green-blind eyes (Machado et al. 2009), is 0.11 in OKLab. The first twelve of Paul Tol's muted and bright schemes
come to 0.04."""
ABOVE, BELOW = "#246dce", "#c2570c"
SLOTS = ("q", "k", "v", "o", "ffn")
_PANEL = 170
_STRONG = 0.85
"""Opacity from which letters on a cell are white: on either ground their contrast is 3.5 or more."""


def layers(records: Records, colours: Mapping[str, str] | None = None) -> Any:
    """Probability of each spoken language by layer, stacked, a panel per prompt language; grey is no language.

    Args:
        records: of the kind `layers`.
        colours: of languages by code (in the order in which they are spoken about).
    """
    alt, records = _altair(), _cleaned(records)
    spoken = _order(records, "spoken")
    known = [code for code in spoken if is_language(code)] + [code for code in spoken if not is_language(code)]
    chosen = {**language_colours(known), **(colours or {})}
    several = len(_order(records, "model")) > 1
    rows = [
        {**row, "panel": " · ".join([name_of(row["language"]), *([str(row["model"])] if several else [])]),
         "spoken": name_of(row["spoken"]), "order": known.index(row["spoken"])}
        for row in records
    ]  # fmt: skip
    scale = alt.Scale(domain=[name_of(code) for code in known], range=[chosen[code] for code in known])
    whole = {"tickMinStep": 1, "format": "d", "tickCount": min(5, _largest(rows, "layer"))}
    chart = (
        alt.Chart(_data(rows))
        .mark_area(style="slice")
        .encode(
            x=alt.X("layer:Q", title="layer", scale=alt.Scale(nice=False), axis=alt.Axis(**whole)),
            y=alt.Y(
                "mass:Q",
                stack="zero",
                title="share of probability",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(tickCount=5),
            ),
            color=alt.Color("spoken:N", title=None, scale=scale),
            order=alt.Order("order:Q", sort="ascending"),
            tooltip=["panel:N", "layer:Q", "spoken:N", _tip("mass", ".3f")],
        )
        .properties(width=_PANEL, height=110)
    )
    return _panels(chart, rows, "panel")


def counts(records: Records) -> Any:
    """How many neurons by layer and slot, a panel per language; the depth of the colour grows with the square root."""
    alt, records = _altair(), _cleaned(records)
    rows = [{**row, "language": name_of(row["language"])} for row in records]
    slots = sorted(_order(rows, "slot"), key=lambda slot: SLOTS.index(slot) if slot in SLOTS else len(SLOTS))
    chart = (
        alt.Chart(_data(rows))
        .mark_rect(color=ABOVE)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False)),
            y=alt.Y("slot:N", title=None, sort=slots, axis=alt.Axis(grid=False)),
            opacity=_depth(alt, "count", "neurons", "sqrt"),
            tooltip=["language:N", "layer:O", "slot:N", "count:Q"],
        )
        .properties(width=_PANEL, height=18 * len(slots))
    )
    return _panels(chart, rows, "language")


def overlap(records: Records) -> Any:
    """Overlap of two sets, and below it in brackets what chance would give."""
    alt, records = _altair(), _cleaned(records)
    rows = [
        {**_named_cell(row), "chance": None if row["expected"] is None else f"({row['expected']:.2f})"}
        for row in records
    ]
    base = _grid(alt, rows).encode(tooltip=["row:N", "column:N", _tip("overlap"), _tip("expected"), _tip("p", ".2g")])
    cells = base.mark_rect(color=ABOVE).encode(opacity=_depth(alt, "overlap", "overlap"))
    strong = f"datum.overlap > {_STRONG} * {_largest(rows, 'overlap')}"
    numbers = [
        base.transform_filter(condition).mark_text(style=style, fontSize=size, dy=dy).encode(text=text)
        for condition, style in ((f"!({strong})", "ink"), (strong, "onto"))
        for text, size, dy in ((alt.Text("overlap:Q", format=".2f"), 11, -6), (alt.Text("chance:N"), 9, 7))
    ]
    return alt.layer(cells, *numbers).properties(width=alt.Step(46), height=alt.Step(34), usermeta=_cells(rows))


def matrix(records: Records) -> Any:
    """Values by row and column: blue above zero, orange below; bold where the interval leaves zero out."""
    alt, records = _altair(), _cleaned(records)
    largest = max((abs(row["value"]) for row in records if row["value"] is not None), default=0) or 1
    power = math.floor(math.log10(largest))
    digits = max(0, 2 - power - (power < -1))
    rows = [
        {
            **_named_cell(row),
            "sign": None if row["value"] is None else "above zero" if row["value"] >= 0 else "below zero",
            "size": None if row["value"] is None else abs(row["value"]),
            "clear": _leaves_zero_out(row),
        }
        for row in records
    ]
    base = _grid(alt, rows).encode(tooltip=["row:N", "column:N", _tip("value"), _tip("low"), _tip("high")])
    scale = alt.Scale(domain=["above zero", "below zero"], range=[ABOVE, BELOW])
    cells = base.mark_rect().encode(
        color=alt.Color("sign:N", scale=scale, title=None),
        opacity=alt.Opacity("size:Q", scale=alt.Scale(domain=[0, largest], range=[0.03, 1]), legend=None),
    )
    strong = f"datum.size > {_STRONG * largest}"
    numbers = [
        base.transform_filter(f"isValid(datum.value) && {first} && {'' if clear else '!'}datum.clear")
        .mark_text(style=style, fontSize=11, fontWeight="bold" if clear else "normal")
        .encode(text=alt.Text("value:Q", format=f".{digits}f"))
        for first, style in ((f"!({strong})", "ink"), (strong, "onto"))
        for clear in (True, False)
    ]
    return alt.layer(cells, *numbers).properties(
        width=alt.Step(max(46, 7 * digits + 24)), height=alt.Step(26), usermeta=_cells(rows, 7 * digits + 24)
    )


def forest(records: Records, x: str | None = None) -> Any:
    """Points with their intervals, in groups; controls are hollow grey diamonds."""
    alt, records = _altair(), _cleaned(records)
    rows = [
        {**row, "made": "control" if row["control"] else "measured"} for row in with_names(records, "group", "label")
    ]
    scale = alt.Scale(domain=["measured", "control"], range=[ABOVE, GREY])
    fill = alt.Scale(domain=["measured", "control"], range=[ABOVE, "transparent"])
    shape = alt.Scale(domain=["measured", "control"], range=["circle", "diamond"])
    data = _data(rows)
    base = alt.Chart(data).encode(
        y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(grid=True, tickSize=0)),
        tooltip=["group:N", "label:N", "made:N", _tip("value"), _tip("low"), _tip("high")],
    )
    zero = alt.Chart(data).mark_rule(style="reference").encode(x=alt.datum(0))
    intervals = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=2)
        .encode(x=alt.X("low:Q", title=x), x2="high:Q", color=alt.Color("made:N", scale=scale, title=None))
    )
    points = base.mark_point(size=60, opacity=1).encode(
        x=alt.X("value:Q", title=x, axis=alt.Axis(tickCount=6)),
        color=alt.Color("made:N", scale=scale, title=None),
        fill=alt.Fill("made:N", scale=fill, title=None),
        shape=alt.Shape("made:N", scale=shape, title=None),
    )
    chart = alt.layer(zero, intervals, points).properties(width=420, height=alt.Step(20))
    return _in_rows(alt, chart, rows)


def curve(records: Records, x: str | None = None, y: str | None = None) -> Any:
    """Lines with bands; the horizontal axis is logarithmic if its values span a factor of 50 or more."""
    alt, records = _altair(), with_names(_cleaned(records), "series")
    series = _order(records, "series")
    places = sorted({row["x"] for row in records})
    wide = bool(places) and places[0] > 0 and places[-1] >= 50 * places[0]
    ticks = {"values": places} if len(places) <= 10 else {"tickCount": 6}
    chosen = [SERIES[at % len(SERIES)] for at in range(len(series))]
    scale, same = alt.Scale(domain=series, range=chosen), alt.Scale(domain=series)
    across = alt.X(
        "x:Q", title=x, scale=alt.Scale(type="log", nice=False) if wide else alt.Scale(zero=False, nice=False),
        axis=alt.Axis(format="~g", **ticks),
    )  # fmt: skip
    legend = alt.Legend(symbolOpacity=1)
    base = alt.Chart(_data(records)).encode(
        x=across, color=alt.Color("series:N", scale=scale, title=None, legend=legend)
    )
    bands = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_area(opacity=0.16)
        .encode(y=alt.Y("low:Q", title=y), y2="high:Q")
    )
    up = alt.Y("y:Q", title=y, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    lines = base.mark_line(strokeWidth=2).encode(y=up, strokeDash=alt.StrokeDash("series:N", scale=same, title=None))
    points = base.mark_point(filled=True, size=45, opacity=1).encode(
        y=up,
        shape=alt.Shape("series:N", scale=same, title=None),
        tooltip=["series:N", _tip("x", ".4~g"), _tip("y"), _tip("low"), _tip("high")],
    )
    return alt.layer(bands, lines, points).properties(
        width=560, height=260, usermeta=_widened(records, 560, legend="series")
    )


def bars(records: Records, x: str | None = None) -> Any:
    """Bars with intervals: side by side within a group, or a panel per group where labels are too many to colour."""
    alt, records = _altair(), with_names(_cleaned(records), "group", "label")
    labels, groups = _order(records, "label"), _order(records, "group")
    tooltip = ["group:N", "label:N", _tip("value"), _tip("low"), _tip("high")]
    side_by_side = len(labels) <= 6 and len(groups) > 1
    value = alt.X("value:Q", title=x, axis=alt.Axis(tickCount=6))
    if side_by_side:
        scale = alt.Scale(domain=labels, range=[SERIES[at % len(SERIES)] for at in range(len(labels))])
        base = alt.Chart(_data(records)).encode(
            y=alt.Y("group:N", sort=None, title=None, axis=alt.Axis(grid=False), scale=alt.Scale(paddingInner=0.3)),
            yOffset=alt.YOffset("label:N", sort=labels), tooltip=tooltip,
        )  # fmt: skip
        drawn = base.mark_bar().encode(x=value, color=alt.Color("label:N", scale=scale, title=None))
    else:
        base = alt.Chart(_data(records)).encode(
            y=alt.Y("label:N", sort=None, title=None, axis=alt.Axis(grid=False)), tooltip=tooltip
        )
        drawn = base.mark_bar(color=ABOVE).encode(x=value)
    whiskers = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(style="whisker")
        .encode(x="low:Q", x2="high:Q")
    )
    step = alt.Step(13, **{"for": "offset"}) if side_by_side else alt.Step(20)
    chart = alt.layer(drawn, whiskers).properties(width=420, height=step)
    return (
        chart.properties(usermeta=_widened(records, 420, "group", "label"))
        if side_by_side
        else _in_rows(alt, chart, records)
    )


def search(records: Records) -> Any:
    """A value for each number of layers that understand and that generate; the highest is framed."""
    alt, records = _altair(), _cleaned(records)
    base = alt.Chart(_data(records)).encode(
        x=alt.X("understand:O", title="first layers: understand", axis=alt.Axis(labelAngle=0, grid=False)),
        y=alt.Y("generate:O", title="last layers: generate", sort="descending", axis=alt.Axis(grid=False)),
        tooltip=["understand:O", "generate:O", _tip("value")],
    )
    measured = [row["value"] for row in records if row["value"] is not None] or [0]
    low, high = min(measured), max(measured)
    scale = alt.Scale(domain=[low, high if high > low else low + 1], range=[0.06, 1])
    cells = base.mark_rect(color=ABOVE).encode(opacity=alt.Opacity("value:Q", scale=scale, legend=None))
    strong = f"datum.value > {low + _STRONG * (high - low)}"
    numbers = [
        base.transform_filter(f"isValid(datum.value) && {condition}")
        .mark_text(style=style, fontSize=10)
        .encode(text=alt.Text("value:Q", format=".3~g"))
        for condition, style in ((f"!({strong})", "ink"), (strong, "onto"))
    ]
    frame = base.transform_filter(f"datum.value === {high}").mark_rect(style="frame", filled=False)
    wide, tall = (max(1, len(_order(records, field))) for field in ("understand", "generate"))
    sizes = {"width": alt.Step(max(44, 150 // wide)), "height": alt.Step(max(26, 120 // tall))}
    return alt.layer(cells, *numbers, frame).properties(**sizes)


def tokens(records: Records, colours: Mapping[str, str] | None = None) -> Any:
    """The likeliest token of each layer and position, coloured by its language.

    Positions run from the right where the prompt does. The report shows a table instead, which can be scrolled.
    """
    alt, records = _altair(), _cleaned(records)
    spoken = _order(records, "language")
    chosen = {**language_colours(_order(records, "language_code")), **(colours or {})}
    code_of = {row["language"]: row["language_code"] for row in records}
    scale = alt.Scale(domain=spoken, range=[chosen.get(code_of[name], GREY) for name in spoken])
    charts = []
    for prompt in _order(records, "prompt"):
        rows = [row for row in records if row["prompt"] == prompt]
        base = alt.Chart(_data(rows), title=prompt).encode(
            x=alt.X(
                "position:O", title="position", sort="descending" if reads_from_right(rows) else "ascending",
                axis=alt.Axis(labelAngle=0, grid=False),
            ),
            y=alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(grid=False)),
            tooltip=["layer:O", "position:O", "token:N", _tip("probability"), "language:N"],
        )  # fmt: skip
        boxes = base.mark_rect().encode(
            color=alt.Color("language:N", scale=scale, title=None),
            opacity=alt.Opacity("probability:Q", scale=alt.Scale(domain=[0, 1], range=[0.1, 0.6]), legend=None),
        )
        words = base.mark_text(style="ink", fontSize=10, limit=54).encode(text="token:N")
        charts.append((boxes + words).properties(width=alt.Step(56), height=alt.Step(18)))
    return alt.vconcat(*charts)


CHARTS: dict[str, Callable[..., Any]] = {
    "layers": layers, "counts": counts, "overlap": overlap, "matrix": matrix, "forest": forest,
    "curve": curve, "bars": bars, "search": search, "tokens": tokens,
}  # fmt: skip
"""The chart of each kind of figure."""


def draw(figure: Figure, colours: Mapping[str, str] | None = None) -> Any:
    """The chart of a figure.

    Args:
        figure: with records.
        colours: of languages by code, where a report has given them out already.
    """
    options: dict[str, Any] = {"colours": colours} if figure.kind in ("layers", "tokens") else {}
    options |= {axis: getattr(figure, axis) or None for axis in AXES.get(figure.kind, ())}
    return CHARTS[figure.kind](figure.records, **options)


def for_paper(chart: Any) -> dict[str, Any]:
    """A chart's Vega-Lite specification with dark letters on white, for a file."""
    config = theme("#1c1f24", "#4a4f57", "#dcdfe4", "#ffffff", "Liberation Sans, Arial, sans-serif")
    return {**chart.to_dict(), "config": {**config, "background": "#ffffff"}}


def _altair() -> Any:
    try:
        import altair
    except ImportError as error:
        raise MissingDependencyError('charts need altair: pip install "babelscope[report]"') from error
    return altair


def _cleaned(records: Records) -> list[dict[str, Any]]:
    """Characters that no file format can hold, and that end the process in vl-convert, replaced."""
    return [{name: visible(v) if isinstance(v, str) else v for name, v in row.items()} for row in records]


def _data(rows: Records) -> Any:
    """Data within the chart, whatever their number; altair cuts data frames at 5,000 rows."""
    return _altair().InlineData(values=list(rows))


def _tip(field: str, form: str = ".3~g") -> Any:
    return _altair().Tooltip(f"{field}:Q", format=form)


def _order(records: Records, field: str) -> list[Any]:
    """The values of a field in the order in which they come."""
    return list(dict.fromkeys(row[field] for row in records))


def _named_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "row": name_of(row["row"]), "column": name_of(row["column"])}


def _largest(rows: Records, field: str) -> float:
    return max((row[field] for row in rows if row[field] is not None), default=0) or 1


def _leaves_zero_out(row: Mapping[str, Any]) -> bool:
    return row["low"] is not None and row["high"] is not None and (row["low"] > 0 or row["high"] < 0)


def _depth(alt: Any, field: str, title: str, kind: str = "linear") -> Any:
    """More is deeper; nothing is nearly invisible on any ground."""
    scale = alt.Scale(type=kind, domainMin=0, range=[0.03, 1])
    legend = alt.Legend(
        symbolFillColor=ABOVE, symbolStrokeColor=GREY, symbolStrokeWidth=0.5, symbolSize=160, tickCount=4
    )
    return alt.Opacity(f"{field}:Q", title=title, scale=scale, legend=legend)


def _grid(alt: Any, rows: Records) -> Any:
    """Rows in the order of the records, and columns in that of the rows as far as they are the same."""
    down = _order(rows, "row")
    across = sorted(_order(rows, "column"), key=lambda name: down.index(name) if name in down else len(down))
    return alt.Chart(_data(rows)).encode(
        x=alt.X("column:N", sort=across, title=None, axis=alt.Axis(labelAngle=-45, orient="top", grid=False)),
        y=alt.Y("row:N", sort=down, title=None, axis=alt.Axis(grid=False)),
    )


def _cells(rows: Records, least: int = 38) -> dict[str, Any]:
    """What the page needs to widen the cells of a grid to the room that there is."""
    return {"fit": "cells", "panel": len(_order(rows, "column")), "least": least}


def _widened(rows: Records, panel: int, labels: str = "", legend: str = "") -> dict[str, Any]:
    """What the page needs to fit a plot to its width: the lengths of the longest label and the longest legend entry."""
    longest = {field: max((len(row[field]) for row in rows), default=0) for field in (labels, legend) if field}
    return {"fit": "width", "panel": panel, "labels": longest.get(labels, 6), "legend": longest.get(legend, 8)}


def _panels(chart: Any, rows: Records, field: str) -> Any:
    """Small panels, as many beside each other as there is room for: the page sets `columns` to its width."""
    facet = _altair().Facet(f"{field}:N", title=None, sort=_order(rows, field))
    panels = chart.facet(facet=facet, columns=5).resolve_axis(x="independent")
    legend = max((len(each) for row in rows for each in [row.get("spoken", "")]), default=0)
    return panels.properties(usermeta={"fit": "wrap", "panel": _PANEL, "legend": legend})


def _in_rows(alt: Any, chart: Any, rows: Records) -> Any:
    """Groups one below the other, each with its own labels."""
    header = alt.Header(labelAngle=0, labelOrient="top", labelAnchor="start", labelPadding=4)
    facet = alt.Row("group:N", title=None, sort=_order(rows, "group"), header=header)
    in_rows = chart.facet(row=facet, spacing=14).resolve_scale(y="independent")
    return in_rows.properties(usermeta=_widened(rows, 420, "label"))
