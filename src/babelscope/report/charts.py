"""Every figure of a study as an altair chart of a list of records, for the report and for notebooks.

The fields of a record are those of its kind in `FIGURES`. Colours are few and work on white,
on near-black and for people who don't see all hues: what is more or less is the opacity of one hue over whatever lies
below it, what has a sign has blue above zero and orange below. `for_paper` adds the letters' colours for a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from babelscope.report.effect_charts import bars, curve, forest
from babelscope.report.grid_charts import counts, matrix, overlap, search
from babelscope.report.lens_charts import heat, layers, tokens
from babelscope.report.results import Figure
from babelscope.report.theme import theme


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure: the function that draws it, and what its records hold."""

    draw: Callable[..., Any]
    """Takes the records, an argument for each of `axes`, and `colours` where `coloured`; gives an altair chart."""
    fields: Mapping[str, str]
    """Fields of a record and their types (`text`, `whole`, `number`, `maybe`, `truth`); more fields are allowed."""
    axes: tuple[str, ...] = ()
    """Axes that a figure may give a title."""
    coloured: bool = False
    """Whether languages have colours in it."""


_MASS = {"model": "text", "language": "text", "layer": "whole", "spoken": "text", "mass": "number"}
_INTERVAL = {"value": "maybe", "low": "maybe", "high": "maybe"}
_LABELLED = {"group": "text", "label": "text", **_INTERVAL}
_TOKEN = {"token": "text", "probability": "number", "language": "text", "language_code": "text"}
FIGURES: Mapping[str, FigureKind] = {
    "layers": FigureKind(layers, _MASS, coloured=True),
    "heat": FigureKind(heat, _MASS, coloured=True),
    "counts": FigureKind(counts, {"language": "text", "slot": "text", "layer": "whole", "count": "number"}),
    "overlap": FigureKind(
        overlap, {"row": "text", "column": "text", "overlap": "maybe", "expected": "maybe", "p": "maybe"}
    ),
    "matrix": FigureKind(matrix, {"row": "text", "column": "text", **_INTERVAL}),
    "forest": FigureKind(forest, {**_LABELLED, "control": "truth"}, axes=("x",)),
    "curve": FigureKind(
        curve, {"series": "text", "x": "number", "y": "number", "low": "maybe", "high": "maybe"}, axes=("x", "y")
    ),
    "bars": FigureKind(bars, _LABELLED, axes=("x",)),
    "search": FigureKind(search, {"understand": "whole", "generate": "whole", "value": "maybe"}),
    "tokens": FigureKind(tokens, {"prompt": "text", "layer": "whole", "position": "whole", **_TOKEN}, coloured=True),
}
"""Every kind of figure. A new kind is one function and one row here."""


def draw(figure: Figure, colours: Mapping[str, str] | None = None) -> Any:
    """The chart of a figure.

    Args:
        figure: with records.
        colours: of languages by code, where a report has given them out already.
    """
    kind = FIGURES[figure.kind]
    options: dict[str, Any] = {"colours": colours} if kind.coloured else {}
    options |= {axis: getattr(figure, axis) or None for axis in kind.axes}
    return kind.draw(figure.records, **options)


def for_paper(chart: Any) -> dict[str, Any]:
    """A chart's Vega-Lite specification with dark letters on white, for a file."""
    config = theme("#1c1f24", "#4a4f57", "#dcdfe4", "#ffffff", "Liberation Sans, Arial, sans-serif")
    return {**chart.to_dict(), "config": {**config, "background": "#ffffff"}}
