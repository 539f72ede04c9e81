"""Letters and lines of charts: in a page the colours of the page, light or dark; in a file dark on white."""

from __future__ import annotations

from typing import Any


def theme(ink: str, soft: str, line: str, paper: str, font: str) -> dict[str, Any]:
    """The configuration of Vega-Lite that colours letters and lines; any CSS colour, in a page also `var(--name)`."""
    letters = {
        "labelColor": soft,
        "titleColor": soft,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
    }
    return {
        "font": font,
        "background": "transparent",
        "view": {"stroke": None},
        "axis": {
            **letters, "gridColor": line, "domainColor": line, "tickColor": line, "labelLimit": 320,
            "labelSeparation": 6,
        },
        "legend": {
            **letters, "orient": "top", "direction": "horizontal", "columns": 6, "symbolLimit": 0,
            "columnPadding": 14, "symbolStrokeWidth": 2, "labelLimit": 200, "symbolType": "square",
        },
        "header": {
            "labelColor": ink, "titleColor": soft, "labelFontSize": 12, "labelFontWeight": "bold", "labelLimit": 400,
        },
        "title": {"color": ink, "fontSize": 12, "anchor": "start", "limit": 700},
        "style": {
            "ink": {"color": ink},
            "onto": {"color": "#ffffff"},
            "slice": {"stroke": paper, "strokeWidth": 0.5},
            "reference": {"color": soft, "strokeDash": [3, 3]},
            "whisker": {"color": ink, "strokeWidth": 1.2},
            "frame": {"color": ink, "strokeWidth": 2.5},
        },
    }  # fmt: skip
