"""What `babelscope evaluate` and `babelscope grid` found, for a terminal."""

from __future__ import annotations

import math
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


def draw_grid(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """A table for each task, then the paper's claims with their verdicts; of a dry run only how much there is to do."""
    languages = ", ".join(map(label, content["languages"]))
    lines = screen.heading(f"Grid on {content['model']}", f"without the neurons of {languages}")
    stages = content["stages"]
    split = f"the first {stages['understand']} layers understand, the last {stages['generate']} generate"
    cells = f"{content['cells']}, {content['english_controls']} of them random sets in English"
    lines += screen.fields([("stages", split), ("parts", ", ".join(content["parts"])), ("cells", cells)])
    if content.get("dry_run"):
        return lines
    summary = content["summary"]
    for task in dict.fromkeys(row["task"] for row in summary):
        table = [row for row in summary if row["task"] == task]
        beside = any(_is_number(row["printed_others"]) for row in table)
        head = ("switched off", "English", "others", "delta", *(("English, printed", "others, printed") * beside))
        unit = "" if task == "bits_per_byte" else ", percent"
        lines += ["", *screen.heading(f"{task}: {table[0]['metric']}{unit}")]
        lines += screen.table(head, [_summary(row, beside) for row in table])
    lines += ["", *screen.heading("The paper's claims")]
    for claim in content["claims"]:
        lines += ["", *screen.heading(claim["claim"], claim["verdict"])]
        rows = [
            [each["what"], f"{each['effect']:+.3f}", _bounds(each), _number(each["p_holm"], ".2g"), each["verdict"]]
            for each in claim["contrasts"]
        ]
        lines += screen.table(("effect", "size", "95 % interval", "p", "verdict"), rows) if rows else ["  not measured"]
    return [*lines, "", *screen.fields([("tables", content["out"])])]


def _summary(row: Mapping[str, Any], beside: bool) -> list[str]:
    part = row["part"] if row["op"] in ("", "zero") else f"{row['part']} ({row['op']})"
    digits = ".3f" if row["task"] == "bits_per_byte" else ".1f"
    cells = [part, _number(row["english"], digits), _number(row["others"], digits)]
    cells.append("" if row["part"] == "intact" else _number(row["delta"], "+" + digits))
    return cells + [_number(row[f"printed_{name}"], ".1f") for name in ("english", "others") if beside]


def _is_number(value: Any) -> bool:
    return value is not None and not math.isnan(value)


def _number(value: Any, digits: str) -> str:
    return f"{value:{digits}}" if _is_number(value) else "-"


def _bounds(score: Mapping[str, Any]) -> str:
    return "-" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
