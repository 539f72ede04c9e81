"""What `babelscope evaluate` found, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from babelscope.show.terminal import Screen, label


def draw_evaluated(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """Every score with its interval, and what did not fit."""
    lines = screen.heading(f"Evaluated {content['model']}", content["edit"])
    rows = [
        [
            score["task"], label(score["language"]) if score["language"] else "", score["metric"],
            f"{score['value']:.3f}", _bounds(score), str(score["items"]),
        ]
        for score in content["scores"]
    ]  # fmt: skip
    lines += ["", *screen.table(("task", "language", "metric", "score", "95 % interval", "items"), rows)]
    if content["out"]:
        lines += ["", *screen.fields([("results", content["out"])])]
    return lines


def _bounds(score: Mapping[str, Any]) -> str:
    return "-" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
