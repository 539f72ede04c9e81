"""The tables of docs/experiments.md from runs of `babelscope grid`.

python experiments/grid.py RUN [RUN ...]

For each run: every task's scores by the part switched off (English with a language's neurons off; the others, each with
its own off), and the paper's claims with their effects, intervals and verdicts.
"""

from __future__ import annotations

import argparse
import csv
import json
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
        print(claims(told["claims"]))


def scores(summary: list[dict[str, str]]) -> str:
    """A row for each part, English / others of each task."""
    tasks = list(dict.fromkeys(row["task"] for row in summary))
    parts = dict.fromkeys((row["op"], row["part"]) for row in summary)
    cells = {(row["op"], row["part"], row["task"]): row for row in summary}
    lines = [f"| off | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for op, part in parts:
        row = [_cell(cells.get((op, part, task))) for task in tasks]
        lines.append(f"| {part if op in ('', 'zero') else f'{part} ({op})'} | {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def _cell(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    digits = 3 if row["task"] == "bits_per_byte" else 1
    return " / ".join("-" if row[name] == "nan" else f"{float(row[name]):.{digits}f}" for name in ("english", "others"))


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
