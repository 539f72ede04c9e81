"""A study for a person: what it would do, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from babelscope.progress import clean, duration
from babelscope.report import tables
from babelscope.report.reader import read_result
from babelscope.show.terminal import Screen, wrapped

ROWS = 40
"""Rows of a table that are printed; the report has all."""


def draw_template(path: str, screen: Screen) -> list[str]:
    """Where the study file is, and what comes next."""
    return [f"{path} is a study to start from. Look at what it would do, then run it:", "",
            f"  babelscope study {path} --dry-run", f"  babelscope study {path} --out runs/my-study"]  # fmt: skip


def draw_study_plan(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """Stages, cells, time and memory, by model."""
    lines: list[str] = []
    for name, model in content["models"].items():
        size = "" if model["parameters"] is None else f", {model['parameters'] / 1e9:.3g} billion parameters"
        lines += [*([""] if lines else []), *screen.heading(f"{content['name']}: {name}", model["model"] + size)]
        rows = [[row["stage"], str(row["cells"]), *_range(row)] for row in model["stages"]]
        rows.append(["in all", str(sum(row["cells"] for row in model["stages"])), *_range(model)])
        lines += screen.table(("stage", "cells", "about", "from", "to"), rows)
        memory = model["memory_bytes"]
        needed = "unknown" if memory is None else f"about {memory / 1e9:.1f} GB"
        lines.append(f"  memory: {needed}; times are of this machine, from the model's size and what is asked")
        if model["measured"]:
            lines.append(f"  and from how long it took before: {', '.join(model['measured'])}")
    return [*lines, "", "Dry run: nothing was loaded and nothing was written."]


def _range(times: Mapping[str, Any]) -> list[str]:
    return [duration(times[each]) for each in ("seconds", "low", "high")]


def draw_study_run(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """A study's folder: how far it is, and what it found."""
    lines = screen.heading(f"Study {content['folder']}", content["state"])
    if content["missing"]:
        lines += screen.fields([("missing", ", ".join(content["missing"]))])
    if any(model["stages"] for model in content["models"].values()):
        lines += ["", *_claims(content, screen)]
    report = content["report"] or f"babelscope report {content['folder']} makes it"
    return [*lines, "", f"The report: {report}"]


def draw_studied(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """The claims with what came of them, and where the report is."""
    lines, report = _claims(content, screen), content["report"]
    if report is None:
        return [*lines, "", 'No report: pip install "babelscope[report]", then the same command again.', content["out"]]
    return [*lines, "", f"The report: {report}"]


def draw_stage(content: Mapping[str, Any], stage: str, screen: Screen) -> list[str]:
    """The tables and the claims of a stage that ran alone, and where its folder and the report are."""
    lines: list[str] = []
    for model in content["models"]:
        result = read_result(Path(content["out"]) / model / stage / "result.json")
        for table in result.tables:
            shown = [[clean(tables.shown(cell)) for cell in row] for row in table.rows[:ROWS]]
            lines += [*screen.heading(clean(table.title), f"{model}: {stage}")]
            lines += [*screen.table(table.columns, shown), ""]
            if len(table.rows) > ROWS:
                lines += [f"  and {len(table.rows) - ROWS} more rows in the report", ""]
    return [*lines, *draw_studied(content, screen), *screen.fields([("folder", content["out"])])]


def _claims(content: Mapping[str, Any], screen: Screen) -> list[str]:
    marks = {"holds": "holds", "does not hold": "does not", "undecided": "undecided"}
    lines: list[str] = []
    for name, model in content["models"].items():
        ran = sum(each["seconds"] for each in model["stages"] if not each["before"])
        before = sum(each["before"] for each in model["stages"])
        count = len(model["stages"])
        note = f"{count} stage{'' if count == 1 else 's'}, {duration(ran)}"
        note += f", {before} were there before" if before else ""
        lines += [*([""] if lines else []), *screen.heading(f"What came of it: {name}", note)]
        for found in model["findings"]:
            head = f"  {marks[found['verdict']]:<10} "
            told = wrapped(f"{found['claim']}. {found['text']}", max(40, screen.width - len(head)))
            lines += [head + told[0], *(" " * len(head) + line for line in told[1:])]
    return lines
