"""Charts of effects with intervals: forests, curves and bars."""

from __future__ import annotations

from typing import Any

from babelscope.report.drawing import ABOVE, SERIES, altair_module, cleaned, in_order, in_rows, inline, tip, width_fit
from babelscope.report.languages import GREY, Records, with_names


def forest(records: Records, x: str | None = None) -> Any:
    """Points with their intervals, in groups; controls are hollow grey diamonds."""
    alt, records = altair_module(), cleaned(records)
    rows = [
        {**row, "made": "control" if row["control"] else "measured"} for row in with_names(records, "group", "label")
    ]
    scale = alt.Scale(domain=["measured", "control"], range=[ABOVE, GREY])
    fill = alt.Scale(domain=["measured", "control"], range=[ABOVE, "transparent"])
    shape = alt.Scale(domain=["measured", "control"], range=["circle", "diamond"])
    data = inline(rows)
    base = alt.Chart(data).encode(
        y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(grid=True, tickSize=0)),
        tooltip=["group:N", "label:N", "made:N", tip("value"), tip("low"), tip("high")],
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
    return in_rows(alt, chart, rows)


def curve(records: Records, x: str | None = None, y: str | None = None) -> Any:
    """Lines with bands; the horizontal axis is logarithmic if its values span a factor of 50 or more."""
    alt, records = altair_module(), with_names(cleaned(records), "series")
    series = in_order(records, "series")
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
    base = alt.Chart(inline(records)).encode(
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
        tooltip=["series:N", tip("x", ".4~g"), tip("y"), tip("low"), tip("high")],
    )
    return alt.layer(bands, lines, points).properties(
        width=560, height=260, usermeta=width_fit(records, 560, legend="series")
    )


def bars(records: Records, x: str | None = None) -> Any:
    """Bars with intervals: side by side within a group, or a panel per group where labels are too many to colour."""
    alt, records = altair_module(), with_names(cleaned(records), "group", "label")
    labels, groups = in_order(records, "label"), in_order(records, "group")
    tooltip = ["group:N", "label:N", tip("value"), tip("low"), tip("high")]
    side_by_side = len(labels) <= 6 and len(groups) > 1
    value = alt.X("value:Q", title=x, axis=alt.Axis(tickCount=6))
    if side_by_side:
        scale = alt.Scale(domain=labels, range=[SERIES[at % len(SERIES)] for at in range(len(labels))])
        base = alt.Chart(inline(records)).encode(
            y=alt.Y("group:N", sort=None, title=None, axis=alt.Axis(grid=False), scale=alt.Scale(paddingInner=0.3)),
            yOffset=alt.YOffset("label:N", sort=labels), tooltip=tooltip,
        )  # fmt: skip
        drawn = base.mark_bar().encode(x=value, color=alt.Color("label:N", scale=scale, title=None))
    else:
        base = alt.Chart(inline(records)).encode(
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
        chart.properties(usermeta=width_fit(records, 420, "group", "label"))
        if side_by_side
        else in_rows(alt, chart, records)
    )
