"""Parts that charts share: colours, data within the chart, panels, and hints that let a page fit a chart."""

from __future__ import annotations

from typing import Any

from babelscope.errors import MissingDependencyError
from babelscope.report.languages import GREY, Records, visible

SERIES = ("#246dce", "#92aa00", "#865549", "#31aac2", "#9e3d92", "#c27979", "#6d92ff", "#927900")
"""For lines and bars, which stand out from white and from near-black. Like the colours of languages found by a search
over sRGB, here of luminance 0.12 to 0.36 (there 0.06 to 0.5): the smallest difference of any two, to normal, red-blind
or green-blind eyes (Machado et al. 2009), is 0.11 in OKLab. The first twelve of Paul Tol's muted and bright schemes
come to 0.04."""
ABOVE, BELOW = "#246dce", "#c2570c"
SLOTS = ("q", "k", "v", "o", "ffn")
PANEL = 170
STRONG = 0.85
"""Opacity from which letters on a cell are white: on either ground their contrast is 3.5 or more."""


def altair_module() -> Any:
    """The module altair; MissingDependencyError without it."""
    try:
        import altair
    except ImportError as error:
        raise MissingDependencyError('charts need altair: pip install "babelscope[report]"') from error
    return altair


def cleaned(records: Records) -> list[dict[str, Any]]:
    """Characters that no file format can hold, and that end the process in vl-convert, replaced."""
    return [{name: visible(v) if isinstance(v, str) else v for name, v in row.items()} for row in records]


def inline(rows: Records) -> Any:
    """Data within the chart, whatever their number; altair cuts data frames at 5,000 rows."""
    return altair_module().InlineData(values=list(rows))


def tip(field: str, form: str = ".3~g") -> Any:
    """A number in a tooltip."""
    return altair_module().Tooltip(f"{field}:Q", format=form)


def in_order(records: Records, field: str) -> list[Any]:
    """The values of a field in the order in which they come."""
    return list(dict.fromkeys(row[field] for row in records))


def largest_of(rows: Records, field: str) -> float:
    """The largest value of a field; 1 where there is none, or it is 0."""
    return max((row[field] for row in rows if row[field] is not None), default=0) or 1


def depth(alt: Any, field: str, title: str, kind: str = "linear") -> Any:
    """More is deeper; nothing is nearly invisible on any ground."""
    scale = alt.Scale(type=kind, domainMin=0, range=[0.03, 1])
    legend = alt.Legend(
        symbolFillColor=ABOVE, symbolStrokeColor=GREY, symbolStrokeWidth=0.5, symbolSize=160, tickCount=4
    )
    return alt.Opacity(f"{field}:Q", title=title, scale=scale, legend=legend)


def square(alt: Any, rows: Records) -> Any:
    """Rows in the order of the records, and columns in that of the rows as far as they are the same."""
    down = in_order(rows, "row")
    across = sorted(in_order(rows, "column"), key=lambda name: down.index(name) if name in down else len(down))
    return alt.Chart(inline(rows)).encode(
        x=alt.X("column:N", sort=across, title=None, axis=alt.Axis(labelAngle=-45, orient="top", grid=False)),
        y=alt.Y("row:N", sort=down, title=None, axis=alt.Axis(grid=False)),
    )


def cell_fit(rows: Records, least: int = 38) -> dict[str, Any]:
    """What the page needs to widen the cells of a grid to the room that there is."""
    return {"fit": "cells", "panel": len(in_order(rows, "column")), "least": least}


def width_fit(rows: Records, panel: int, labels: str = "", legend: str = "") -> dict[str, Any]:
    """What the page needs to fit a plot to its width: the lengths of the longest label and the longest legend entry."""
    longest = {field: max((len(row[field]) for row in rows), default=0) for field in (labels, legend) if field}
    return {"fit": "width", "panel": panel, "labels": longest.get(labels, 6), "legend": longest.get(legend, 8)}


def panels(chart: Any, rows: Records, field: str) -> Any:
    """Small panels, as many beside each other as there is room for: the page sets `columns` to its width."""
    facet = altair_module().Facet(f"{field}:N", title=None, sort=in_order(rows, field))
    panels = chart.facet(facet=facet, columns=5).resolve_axis(x="independent")
    legend = max((len(each) for row in rows for each in [row.get("spoken", "")]), default=0)
    return panels.properties(usermeta={"fit": "wrap", "panel": PANEL, "legend": legend})


def in_rows(alt: Any, chart: Any, rows: Records) -> Any:
    """Groups one below the other, each with its own labels."""
    header = alt.Header(labelAngle=0, labelOrient="top", labelAnchor="start", labelPadding=4)
    facet = alt.Row("group:N", title=None, sort=in_order(rows, "group"), header=header)
    in_rows = chart.facet(row=facet, spacing=14).resolve_scale(y="independent")
    return in_rows.properties(usermeta=width_fit(rows, 420, "label"))
