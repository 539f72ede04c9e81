"""How long a study still takes: its plan, corrected by how long what is done really took."""

from __future__ import annotations

import time
from collections.abc import Sequence


class Pace:
    """Told when stages begin and end.

    Args:
        planned: seconds that each stage should take (1.0 where nobody knows).
    """

    def __init__(self, planned: Sequence[float]) -> None:
        self._planned = list(planned)
        self._at = -1
        self._began = time.monotonic()
        self._past = self._spent = 0.0
        """Of the stages that ran: what was planned for them, and what they took."""

    def begin(self) -> None:
        """The next stage begins."""
        self._at += 1
        self._began = time.monotonic()

    def end(self) -> None:
        """The stage has ended."""
        self._spent += time.monotonic() - self._began
        self._past += self._planned[self._at]

    def left(self, share: float) -> float:
        """Seconds still to go when a share of the stage is done.

        A tenth of the plan counts as done in its time, so that a stage of a second doesn't tell for those of an hour.
        """
        planned = self._planned[self._at]
        here = time.monotonic() - self._began
        spent, done = self._spent + here * (share > 0), self._past + planned * share
        known = sum(self._planned) / 10
        pace = (spent + known) / (done + known)
        return pace * (planned * (1 - share) + sum(self._planned[self._at + 1 :]))
