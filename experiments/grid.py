"""The tables of docs/experiments.md from runs of `babelscope grid`.

python experiments/grid.py RUN [RUN ...]

For each run: every task's scores by the part switched off (English with a language's neurons off; the others, each with
its own off), the deltas beside those of random sets, and the paper's claims with their effects, intervals and verdicts.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", type=Path)
    for run in parser.parse_args().run:
        told = json.loads((run / "claims.json").read_text(encoding="utf-8"))
        with (run / "summary.csv").open(encoding="utf-8") as stream:
            summary = list(csv.DictReader(stream))
        print(f"### {run}: {told['model']}, {', '.join(told['languages'])}, {told['cells']} cells\n")
        print(scores(summary))
        print(deltas(summary))
        print(claims(told["claims"]))


def scores(summary: list[dict[str, str]]) -> str:
    """A row for each part, English / others of each task."""
    cells = {(row["op"], row["part"], row["task"]): row for row in summary}

    def cell(key: tuple[str, str, str]) -> str:
        return " / ".join(_number(cells[key], name) for name in ("english", "others")) if key in cells else ""

    return _table("off", summary, list(dict.fromkeys((row["op"], row["part"]) for row in summary)), cell)


def deltas(summary: list[dict[str, str]]) -> str:
    """A row for each part: each task's delta (of random sets as large), above 0 where the others are hurt more."""
    cells = {(row["op"], row["part"], row["task"]): row for row in summary}

    def cell(key: tuple[str, str, str]) -> str:
        op, part, task = key
        random = cells.get((op, f"random: {part}", task))
        beside = "" if random is None else f" ({_number(random, 'delta', '+')})"
        return _number(cells[key], "delta", "+") + beside if key in cells else ""

    parts = [(row["op"], row["part"]) for row in summary if row["op"] and not row["part"].startswith("random")]
    return _table("off: delta (random's)", summary, list(dict.fromkeys(parts)), cell)


def _table(
    head: str, summary: list[dict[str, str]], parts: list[tuple[str, str]], cell: Callable[[tuple[str, str, str]], str]
) -> str:
    tasks = list(dict.fromkeys(row["task"] for row in summary))
    lines = [f"| {head} | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for op, part in parts:
        row = [cell((op, part, task)) for task in tasks]
        lines.append(f"| {part if op in ('', 'zero') else f'{part} ({op})'} | {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def _number(row: dict[str, str], name: str, sign: str = "") -> str:
    digits = 3 if row["task"] == "bits_per_byte" else 1
    value = round(float(row[name]), digits) + 0.0  # no -0.0
    return "-" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def claims(several: list[dict[str, Any]]) -> str:
    """A row for each contrast."""
    lines = ["| claim | effect | size | 95 % interval | p (Holm) | verdict |", "|---|---|---|---|---|---|"]
    for claim in several:
        lines.append(f"| **{claim['claim']}** | | | | | **{claim['verdict']}** |")
        for each in claim["contrasts"]:
            p = "" if each["p_holm"] is None else f"{each['p_holm']:.2g}"
            interval = f"{each['low']:+.3f} to {each['high']:+.3f}"
            lines.append(f"| | {each['what']} | {each['effect']:+.3f} | {interval} | {p} | {each['verdict']} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
