"""One view of a whole study: which stage, which cell, how long still. A line that is rewritten on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

logger = logging.getLogger(__name__)

_EVERY = 20.0
"""Seconds between lines where the output is no terminal."""


class View:
    """Told by the plan of stages and by jobs of cells; says it on standard error."""

    def __init__(self, steps: Sequence[tuple[str, float]], shown: bool) -> None:
        """`steps`: what is to be run, each with the seconds that it should take (1.0 where nobody knows)."""
        self._steps = list(steps)
        self._shown = shown
        self._terminal = shown and sys.stderr.isatty()
        self._at = -1
        self._began = self._line = time.monotonic()
        self._planned = self._spent = 0.0
        """Of the stages that ran: what was planned for them, and what they took."""

    def stage(self) -> None:
        """The next stage begins."""
        self._at += 1
        self._began, self._line = time.monotonic(), 0.0
        self.cell(0, 1, "")

    def ended(self) -> None:
        """The stage has ended."""
        seconds = time.monotonic() - self._began
        planned = self._steps[self._at][1]
        self._planned, self._spent = self._planned + planned, self._spent + seconds
        self._say(f"{self._head()}done in {seconds:.0f} s", last=True)

    def cell(self, done: float, cells: int, what: str) -> None:
        """Cells of the stage that are done, of how many, and which is next."""
        now = time.monotonic()
        if not self._terminal and now - self._line < _EVERY:
            return
        self._line = now
        left = self.left(done / cells if cells else 0.0)
        count = f"{int(done)}/{cells} " if cells > 1 else ""
        self._say(f"{self._head()}{count}{what}{', ' if count or what else ''}{_duration(left)} left")

    def left(self, share: float) -> float:
        """Seconds still to go: the plan's, corrected by how long what is done really took.

        A tenth of the plan counts as done in its time, so that a stage of a second doesn't tell for those of an hour.
        """
        planned = self._steps[self._at][1]
        here = time.monotonic() - self._began
        spent, done = self._spent + here * (share > 0), self._planned + planned * share
        known = sum(each for _, each in self._steps) / 10
        pace = (spent + known) / (done + known)
        return pace * (planned * (1 - share) + sum(each for _, each in self._steps[self._at + 1 :]))

    def _head(self) -> str:
        return f"[{self._at + 1}/{len(self._steps)}] {self._steps[self._at][0]}: "

    def _say(self, text: str, last: bool = False) -> None:
        if not self._shown:
            return
        if self._terminal:
            print(f"\r\x1b[2K{text[:118]}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
