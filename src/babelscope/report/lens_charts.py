"""Charts of what layers speak: mass of languages by layer, and the likeliest tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from babelscope.report.drawing import PANEL, altair_module, cleaned, in_order, inline, largest_of, panels, tip
from babelscope.report.languages import GREY, Records, is_language, language_colours, name_of, reads_from_right


def layers(records: Records, colours: Mapping[str, str] | None = None) -> Any:
    """Probability of each spoken language by layer, stacked, a panel per prompt language; grey is no language.

    Args:
        records: of the kind `layers`.
        colours: of languages by code (in the order in which they are spoken about).
    """
    alt, rows, color = _masses(records, colours)
    whole = {"tickMinStep": 1, "format": "d", "tickCount": min(5, largest_of(rows, "layer"))}
    chart = (
        alt.Chart(inline(rows))
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
            color=color,
            order=alt.Order("order:Q", sort="ascending"),
            tooltip=_mass_tips(rows),
        )
        .properties(width=PANEL, height=110)
    )
    return panels(chart, rows, "panel")


def heat(records: Records, colours: Mapping[str, str] | None = None) -> Any:
    """Probability of each spoken language by layer, a row per language, a panel per prompt language.

    Args:
        records: of the kind `heat`.
        colours: of languages by code; the more mass, the stronger the colour.
    """
    alt, rows, color = _masses(records, colours)
    chart = (
        alt.Chart(inline(rows))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False)),
            y=alt.Y("spoken:N", title=None, sort=color.to_dict()["scale"]["domain"], axis=alt.Axis(grid=False)),
            color=color,
            opacity=alt.Opacity("mass:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0.03, 1])),
            tooltip=_mass_tips(rows),
        )
        .properties(width=PANEL, height=alt.Step(14))
    )
    return panels(chart, rows, "panel")


def _masses(records: Records, colours: Mapping[str, str] | None) -> tuple[Any, list[dict[str, Any]], Any]:
    """Altair, rows with names and panels, and the colour of each spoken language; what is no language comes last."""
    alt, records = altair_module(), cleaned(records)
    spoken = in_order(records, "spoken")
    known = [code for code in spoken if is_language(code)] + [code for code in spoken if not is_language(code)]
    chosen = {**language_colours(known), **(colours or {})}
    several = len(in_order(records, "model")) > 1
    rows = [
        {
            **row,
            "panel": " · ".join([name_of(row["language"]), *([str(row["model"])] if several else [])]),
            "spoken": name_of(row["spoken"]),
            "order": known.index(row["spoken"]),
        }
        for row in records
    ]
    scale = alt.Scale(domain=[name_of(code) for code in known], range=[chosen[code] for code in known])
    return alt, rows, alt.Color("spoken:N", title=None, scale=scale, legend=alt.Legend(symbolOpacity=1))


def _mass_tips(rows: Records) -> list[Any]:
    bounds = [tip(name, ".3f") for name in ("low", "high") if rows and all(name in row for row in rows)]
    return ["panel:N", "layer:Q", "spoken:N", tip("mass", ".3f"), *bounds]


def tokens(records: Records, colours: Mapping[str, str] | None = None) -> Any:
    """The likeliest token of each layer and position, coloured by its language.

    Positions run from the right where the prompt does. The report shows a table instead, which can be scrolled.
    """
    alt, records = altair_module(), cleaned(records)
    spoken = in_order(records, "language")
    chosen = {**language_colours(in_order(records, "language_code")), **(colours or {})}
    code_of = {row["language"]: row["language_code"] for row in records}
    scale = alt.Scale(domain=spoken, range=[chosen.get(code_of[name], GREY) for name in spoken])
    charts = []
    for prompt in in_order(records, "prompt"):
        rows = [row for row in records if row["prompt"] == prompt]
        base = alt.Chart(inline(rows), title=prompt).encode(
            x=alt.X(
                "position:O", title="position", sort="descending" if reads_from_right(rows) else "ascending",
                axis=alt.Axis(labelAngle=0, grid=False),
            ),
            y=alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(grid=False)),
            tooltip=["layer:O", "position:O", "token:N", tip("probability"), "language:N"],
        )  # fmt: skip
        boxes = base.mark_rect().encode(
            color=alt.Color("language:N", scale=scale, title=None),
            opacity=alt.Opacity("probability:Q", scale=alt.Scale(domain=[0, 1], range=[0.1, 0.6]), legend=None),
        )
        words = base.mark_text(style="ink", fontSize=10, limit=54).encode(text="token:N")
        charts.append((boxes + words).properties(width=alt.Step(56), height=alt.Step(18)))
    return alt.vconcat(*charts)
