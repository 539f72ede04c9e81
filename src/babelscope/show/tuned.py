"""What `babelscope tune` did, for a terminal."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from babelscope.progress import clean
from babelscope.show.terminal import Screen, label, wrapped

TITLES = {
    "target": "Change in bits per byte of the target's test texts (less is better)",
    "others_percent": "Change in bits per byte of other languages' test texts, in percent",
    "tasks": "Change in the mean score of the tasks (more is better)",
}
"""Of an experiment's figures."""


def draw_tuned(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """Bits per byte before and after by language, what was kept where, and what to type next."""
    best = f"best at step {content['best_step']} of {content['steps']}"
    if content["share"] < 1:
        best += f"; {content['share']:.0%} of its changes, for the sake of the others"
    lines = screen.heading(
        f"Tuned {content['neurons']} neurons on {label(content['language'])}",
        f"{content['parameters']:,} parameters; {best}",
    )
    rows = [
        [label(name), f"{before:.4f}", f"{content['after'][name]:.4f}", f"{content['after'][name] - before:+.4f}"]
        for name, before in content["before"].items()
    ]
    lines += ["", *screen.table(("bits per byte of held-out texts", "before", "after", "change"), rows)]
    lines += ["", *screen.fields([("adapter", content["adapter"]), ("loss curve", content["history"])])]
    merged = content.get("merged")
    if merged:
        lines += screen.fields([("merged", merged["folder"])])
        verdict = "every other value is bit-identical" if merged["exact"] else "VALUES OUTSIDE THE NEURONS HAVE CHANGED"
        lines.append(f"  {len(merged['changed'])} tensors changed, {merged['untouched']} untouched; {verdict}")
        lines += ["", f"next:  babelscope show {clean(shlex.quote(merged['folder']))}"]
    return lines


def draw_planned(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """What an experiment would do."""
    lines = screen.heading(
        "Planned", "the rate of an arm is chosen by the cells below; other seeds and draws follow at the best"
    )
    lines += [f"  {clean(cell)}" for cell in content["cells"]]
    fields = [
        ("trainings", f"{content['trainings']:,} of {content['steps']:,} steps in all, if none stops early"),
        ("measured on test", f"{content['scored']:,} trained models, and the untouched one"),
        ("time", f"about {content['seconds'] / 60:.0f} min, from one step of full tuning here; tasks come on top"),
    ]
    tasks = ", ".join(f"{name} ({count} items)" for name, count in content["prompts"].items())
    return [*lines, "", *screen.fields([*fields, ("tasks", tasks or "none")])]


def draw_experiment(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """The arms with intervals, language by language, and the verdicts."""
    lines: list[str] = []
    for language, documents in dict.fromkeys((row["language"], row["documents"]) for row in content["rows"]):
        rows = [row for row in content["rows"] if (row["language"], row["documents"]) == (language, documents)]
        before = f"{rows[0]['target_before']:.4f} bits per byte before"
        if rows[0]["tasks_before"] is not None:
            before += f", tasks {rows[0]['tasks_before']:.3f}"
        lines += [*screen.heading(f"{label(language)}, {documents} documents", before)]
        table = [
            [
                row["arm"], f"{row['parameters']:,}", _rate(row), _bounds(row, "target", 4),
                _bounds(row, "others_percent", 2), _bounds(row, "tasks", 3), _bounds(row, "target_to_random", 4),
            ]
            for row in rows
        ]  # fmt: skip
        head = ("arm", "parameters", "rate", "bits per byte", "others, %", "tasks", "bits per byte to random")
        lines += [*screen.table(head, table), ""]
    for verdict in content["verdicts"]:
        lines += ["  " + line for line in wrapped(clean(verdict), screen.width - 2)]
    if any(row["edge"] for row in content["rows"]):
        lines += ["", "  * the best of the rates was the lowest or the highest: a better one may lie beyond"]
    return [*lines, "", *screen.fields([("folder", content["out"]), ("files", " ".join(content["files"]))])]


def write_figures(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draws an experiment's arms with their intervals; without altair and vl-convert, nothing.

    Returns:
        Names of the tables and figures in the folder.
    """
    files = ["experiment.csv", "experiment.json"]
    if not (importlib.util.find_spec("altair") and importlib.util.find_spec("vl_convert")):
        return files
    from babelscope.report.charts import for_paper
    from babelscope.report.effect_charts import forest
    from babelscope.report.files import vl_convert

    for name in ("target", "others_percent", "tasks"):
        records = [
            {
                "group": f"{label(row['language'])}, {row['documents']} documents", "label": row["arm"],
                "value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"],
                "control": row["arm"] == "random",
            }
            for row in rows
            if row[name] is not None
        ]  # fmt: skip
        if records:
            files.append(f"{name}.svg")
            drawn = vl_convert().vegalite_to_svg(for_paper(forest(records).properties(title=TITLES[name])))
            (folder / files[-1]).write_text(drawn, encoding="utf-8")
    return files


def _rate(row: Mapping[str, Any]) -> str:
    return ("by language" if row["rate"] is None else f"{row['rate']:g}") + ("*" if row["edge"] else "")


def _bounds(row: Mapping[str, Any], name: str, digits: int) -> str:
    if row[name] is None:
        return "-"
    value, low, high = (f"{row[name + part]:+.{digits}f}" for part in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"
