"""Charts with cells: counts of neurons, overlap of sets, effects by row and column, splits of the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from babelscope.report.drawing import (
    ABOVE,
    BELOW,
    PANEL,
    SLOTS,
    STRONG,
    altair_module,
    cell_fit,
    cleaned,
    depth,
    in_order,
    inline,
    largest_of,
    panels,
    square,
    tip,
)
from babelscope.report.languages import Records, name_of


def counts(records: Records) -> Any:
    """How many neurons by layer and slot, a panel per language; the depth of the colour grows with the square root."""
    alt, records = altair_module(), cleaned(records)
    rows = [{**row, "language": name_of(row["language"])} for row in records]
    slots = sorted(in_order(rows, "slot"), key=lambda slot: SLOTS.index(slot) if slot in SLOTS else len(SLOTS))
    chart = (
        alt.Chart(inline(rows))
        .mark_rect(color=ABOVE)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False)),
            y=alt.Y("slot:N", title=None, sort=slots, axis=alt.Axis(grid=False)),
            opacity=depth(alt, "count", "neurons", "sqrt"),
            tooltip=["language:N", "layer:O", "slot:N", "count:Q"],
        )
        .properties(width=PANEL, height=18 * len(slots))
    )
    return panels(chart, rows, "language")


def overlap(records: Records) -> Any:
    """Overlap of two sets, and below it in brackets what chance would give."""
    alt, records = altair_module(), cleaned(records)
    rows = [
        {**_named_cell(row), "chance": None if row["expected"] is None else f"({row['expected']:.2f})"}
        for row in records
    ]
    base = square(alt, rows).encode(tooltip=["row:N", "column:N", tip("overlap"), tip("expected"), tip("p", ".2g")])
    cells = base.mark_rect(color=ABOVE).encode(opacity=depth(alt, "overlap", "overlap"))
    strong = f"datum.overlap > {STRONG} * {largest_of(rows, 'overlap')}"
    numbers = [
        base.transform_filter(condition).mark_text(style=style, fontSize=size, dy=dy).encode(text=text)
        for condition, style in ((f"!({strong})", "ink"), (strong, "onto"))
        for text, size, dy in ((alt.Text("overlap:Q", format=".2f"), 11, -6), (alt.Text("chance:N"), 9, 7))
    ]
    return alt.layer(cells, *numbers).properties(width=alt.Step(46), height=alt.Step(34), usermeta=cell_fit(rows))


def matrix(records: Records) -> Any:
    """Values by row and column: blue above zero, orange below; bold where the interval leaves zero out."""
    alt, records = altair_module(), cleaned(records)
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
    base = square(alt, rows).encode(tooltip=["row:N", "column:N", tip("value"), tip("low"), tip("high")])
    scale = alt.Scale(domain=["above zero", "below zero"], range=[ABOVE, BELOW])
    cells = base.mark_rect().encode(
        color=alt.Color("sign:N", scale=scale, title=None),
        opacity=alt.Opacity("size:Q", scale=alt.Scale(domain=[0, largest], range=[0.03, 1]), legend=None),
    )
    strong = f"datum.size > {STRONG * largest}"
    numbers = [
        base.transform_filter(f"isValid(datum.value) && {first} && {'' if clear else '!'}datum.clear")
        .mark_text(style=style, fontSize=11, fontWeight="bold" if clear else "normal")
        .encode(text=alt.Text("value:Q", format=f".{digits}f"))
        for first, style in ((f"!({strong})", "ink"), (strong, "onto"))
        for clear in (True, False)
    ]
    return alt.layer(cells, *numbers).properties(
        width=alt.Step(max(46, 7 * digits + 24)), height=alt.Step(26), usermeta=cell_fit(rows, 7 * digits + 24)
    )


def search(records: Records) -> Any:
    """A value for each number of layers that understand and that generate; the highest is framed."""
    alt, records = altair_module(), cleaned(records)
    base = alt.Chart(inline(records)).encode(
        x=alt.X("understand:O", title="first layers: understand", axis=alt.Axis(labelAngle=0, grid=False)),
        y=alt.Y("generate:O", title="last layers: generate", sort="descending", axis=alt.Axis(grid=False)),
        tooltip=["understand:O", "generate:O", tip("value")],
    )
    measured = [row["value"] for row in records if row["value"] is not None] or [0]
    low, high = min(measured), max(measured)
    scale = alt.Scale(domain=[low, high if high > low else low + 1], range=[0.06, 1])
    cells = base.mark_rect(color=ABOVE).encode(opacity=alt.Opacity("value:Q", scale=scale, legend=None))
    strong = f"datum.value > {low + STRONG * (high - low)}"
    numbers = [
        base.transform_filter(f"isValid(datum.value) && {condition}")
        .mark_text(style=style, fontSize=10)
        .encode(text=alt.Text("value:Q", format=".3~g"))
        for condition, style in ((f"!({strong})", "ink"), (strong, "onto"))
    ]
    frame = base.transform_filter(f"datum.value === {high}").mark_rect(style="frame", filled=False)
    wide, tall = (max(1, len(in_order(records, field))) for field in ("understand", "generate"))
    sizes = {"width": alt.Step(max(44, 150 // wide)), "height": alt.Step(max(26, 120 // tall))}
    return alt.layer(cells, *numbers, frame).properties(**sizes)


def _named_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "row": name_of(row["row"]), "column": name_of(row["column"])}


def _leaves_zero_out(row: Mapping[str, Any]) -> bool:
    return row["low"] is not None and row["high"] is not None and (row["low"] > 0 or row["high"] < 0)
