"""Does a study that is killed again and again come to the same report as one that is left alone?

    python experiments/kills.py tinybabel-quick --out DIR [--kills 10] [--seed 0]

The study runs in DIR/unbroken, unless it is finished there. Moments are drawn at random over the time that this took,
starting up included. Then the study is started in DIR/killed, its process group gets SIGKILL at the first moment, it is
started again, and so on; after the last kill it is left to finish. A moment is so many seconds into a stage; where the
stage is through before, it is the stage's end, and where it was through at the start, a few seconds later. Compared are
the results of all stages, the charts within the page, and the tables' and figures' files: everything that the report
says but times. Prints the kills and what differs; exits with
1 if anything does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMES = ("seconds",)
"""Keys of a result that may differ."""
STARTING = "starting up"
SOON = 10.0
"""Seconds. The study may be past a moment already, if the machine has become faster: then so soon after the start."""


def main() -> int:
    """Runs, kills, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file or the name of a preset")
    parser.add_argument("--out", type=Path, required=True, help="folder for both runs")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    unbroken, killed = asked.out / "unbroken", asked.out / "killed"
    if killed.exists():
        parser.error(f"wanted a new folder to kill a study in, found {killed}. Delete it, or give another --out.")
    startup = finish(asked.study, unbroken)
    times = {STARTING: startup} | {
        f"{model}/{stage}": seconds
        for model, stages in json.loads((unbroken / "run.json").read_text(encoding="utf-8"))["wall_seconds"].items()
        for stage, seconds in stages.items()
    }
    print(f"unbroken: {sum(times.values()):.0f} s, {startup:.0f} of them to start up", flush=True)
    drawn, landed = random.Random(asked.seed), 0
    print("| kill | in | s into it | files then |\n|---|---|---|---|")
    for number, moment in enumerate(sorted(drawn.uniform(0, sum(times.values())) for _ in range(asked.kills)), start=1):
        stage, into = place(times, moment)
        landed += kill(asked.study, killed, stage, into)
        files = sum(path.is_file() for path in killed.rglob("*"))
        print(f"| {number} | {stage} | {into:.1f} | {files} |", flush=True)
    finish(asked.study, killed)
    one, other = contents(unbroken), contents(killed)
    differences = list(differing(one, other))
    print(f"{landed} kills; {len(one)} results and files compared: ", end="")
    print("all the same" if not differences else f"{len(differences)} differences")
    for each in differences[:40]:
        print(f"  {each}")
    return 1 if differences or landed < asked.kills else 0


def place(times: dict[str, float], moment: float) -> tuple[str, float]:
    """The stage that runs at a moment, and how many seconds it has by then."""
    for stage, seconds in times.items():
        if moment < seconds:
            return stage, moment
        moment -= seconds
    return stage, seconds


def start(study: str, folder: Path, **streams: Any) -> subprocess.Popen[bytes]:
    """The study as a process group of its own."""
    words = [sys.executable, "-m", "babelscope", "study", study, "--out", str(folder)]
    return subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, **streams)


def finish(study: str, folder: Path) -> float:
    """Runs the study to its end; returns the seconds until its first stage began."""
    log, began = folder / "study.log", time.monotonic()
    before = log.stat().st_size if log.is_file() else 0
    process, startup = start(study, folder), 0.0
    while process.poll() is None:
        if not startup and log.is_file() and log.stat().st_size > before:
            startup = time.monotonic() - began
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"the study in {folder} ended with {process.returncode}: see {log}")
    return startup


def kill(study: str, folder: Path, stage: str, into: float) -> bool:
    """Starts the study and kills it so many seconds into a stage, or at its end; returns whether it still ran then."""
    log, result = folder / "study.log", folder / stage / "result.json"
    before = log.stat().st_size if log.is_file() else 0
    words = f"{stage.replace('/', ': ')} begins"
    process = start(study, folder, stderr=subprocess.DEVNULL)
    began = time.monotonic() if stage == STARTING or result.is_file() else None
    over = began is None
    if result.is_file():
        into %= SOON
    while process.poll() is None:
        if began is None and log.is_file() and words in log.read_bytes()[before:].decode():
            began = time.monotonic()
        if (began is not None and time.monotonic() - began >= into) or (over and result.is_file()):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"the study in {folder} ended with {process.returncode} before it was killed: see {log}")
    return False


def contents(run: Path) -> dict[str, Any]:
    """What a finished run says, by file: the results, the charts of the page, and the report's tables and figures."""
    found: dict[str, Any] = {}
    for path in sorted(run.glob("*/*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[str(path.relative_to(run))] = {name: value for name, value in result.items() if name not in TIMES}
    page = (run / "report.html").read_text(encoding="utf-8")
    charts = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    found["report.html"] = json.loads(charts[1]) if charts else None
    for path in sorted((run / "report").rglob("*")):
        if path.suffix in (".csv", ".tex", ".svg", ".png"):
            found[str(path.relative_to(run))] = path.read_bytes()
    return found


def differing(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """What differs, by its place, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys([*one, *other]):
            if name in one and name in other:
                yield from differing(one[name], other[name], f"{at} {name}")
            else:
                yield f"{at} {name}: only {'without' if name in one else 'with'} kills"
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            yield from differing(*pair, f"{at}[{place}]")
    elif one != other:
        yield f"{at}: {repr(one)[:80]} without kills, {repr(other)[:80]} with them"


if __name__ == "__main__":
    sys.exit(main())
