"""The one way in which long work tells how far it is.

Code that works long opens a task and moves it on; tasks may lie within each other:

    with progress.task("lens", total=len(prompts), unit="prompts") as task:
        for prompt in prompts:
            task.advance(what=language)

What is seen of it is decided elsewhere: the command line shows a view (`shown`), a notebook may show its own, and
without a view nothing is printed. A view is told at every step and, by a thread, every second, so that it can say
something while one step takes minutes.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

LINE_EVERY = 20.0
"""Seconds between two lines where the output is no terminal."""
PAUSE = 3.0
"""Seconds after a line in which a task that begins gets none of its own: it may be over in a moment."""


@dataclass
class Task:
    """A piece of long work."""

    name: str
    total: float | None = None
    """Units of work in all; None: not known."""
    unit: str = ""
    """The unit in plural, such as `cells`."""
    done: float = 0.0
    what: str = ""
    """The part that is being worked on."""
    began: float = field(default_factory=time.monotonic)
    estimate: Callable[[], float | None] | None = None
    """Seconds that are left, where somebody knows better than the pace so far."""

    def advance(self, by: float = 1.0, what: str = "") -> None:
        """Counts units of work as done."""
        self.reach(self.done + by, what)

    def reach(self, done: float, what: str = "") -> None:
        """Sets how many units are done, and what comes next."""
        self.done, self.what = done, what or self.what
        _tell()

    def left(self) -> float | None:
        """Seconds until the task ends, from its pace so far; None while nobody knows."""
        if self.estimate is not None:
            return self.estimate()
        if not self.total or self.done <= 0:
            return None
        return (time.monotonic() - self.began) * max(0.0, self.total - self.done) / self.done

    def __str__(self) -> str:
        left = self.left()
        rest = "" if left is None else f", {duration(left)} left"
        return clean(f"{self.name}{self.count()}{', ' + self.what if self.what else ''}{rest}")

    def count(self) -> str:
        """The units that are done, of how many, as text; empty where nothing is counted."""
        unit = f" {self.unit}" if self.unit else ""
        if self.total is None:
            return f" {int(self.done):,}{unit}" if self.done else ""
        return f" {int(self.done):,}/{int(self.total):,}{unit}" if self.total > 1 else ""


class View(Protocol):
    """Shows open tasks."""

    def update(self, tasks: Sequence[Task]) -> None:
        """Called at every step and every second; `tasks` from the outermost to the innermost, empty at the end."""


_tasks: list[Task] = []
_views: list[View] = []
_lock = threading.RLock()


@contextmanager
def task(
    name: str, total: float | None = None, unit: str = "", estimate: Callable[[], float | None] | None = None
) -> Iterator[Task]:
    """A piece of long work, open for as long as the block runs.

    Args:
        name: a noun phrase: `loading tinybabel`, `damage`.
        total: units of work in all; None: not known.
        unit: the unit in plural.
        estimate: seconds that are left, where somebody knows better than the pace so far.
    """
    opened = Task(name, total, unit, estimate=estimate)
    with _lock:
        _tasks.append(opened)
    _tell()
    try:
        yield opened
    finally:
        with _lock:
            _tasks.remove(opened)
        _tell()


@contextmanager
def shown(view: View) -> Iterator[None]:
    """Shows the tasks of the block in a view, and in no other."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(1.0):
            _tell()

    thread = threading.Thread(target=beat, daemon=True, name="babelscope-progress")
    with _lock:
        _views.append(view)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with _lock:
            view.update(())
            _views.remove(view)


def is_shown() -> bool:
    """Whether a view shows the tasks."""
    return bool(_views)


def _tell() -> None:
    with _lock:
        if _views:
            _views[-1].update(tuple(_tasks))


def clean(text: object, keep: str = "") -> str:
    """Text that can't steer the terminal: control and invisible characters become U+FFFD.

    Names in headers come from strangers; an escape sequence in one could recolour, retitle or rewrite the screen.
    """
    return "".join(each if each.isprintable() or each in keep else "\ufffd" for each in str(text))


def usual_view() -> View:
    """The view for standard error: bars on a terminal, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines()


@contextmanager
def shown_if(wanted: bool) -> Iterator[None]:
    """Shows the tasks of the block in the usual view, if that is wanted and no view is there yet."""
    if wanted and not _views:
        with shown(usual_view()):
            yield
    else:
        yield


class Bars:
    """One line a task on a terminal, with a bar and the time that is left; gone when the work has ended."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[rest]}", markup=False),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._rows: dict[int, Any] = {}

    def update(self, tasks: Sequence[Task]) -> None:
        """Draws the open tasks."""
        if tasks and not self._rows:
            self._progress.start()
        for task in tasks:
            if id(task) not in self._rows:
                self._rows[id(task)] = self._progress.add_task("", rest="")
            left = task.left()
            rest = ", ".join(part for part in (task.what, "" if left is None else f"{duration(left)} left") if part)
            self._progress.update(
                self._rows[id(task)],
                description=clean(f"{task.name}{task.count()}"),
                total=task.total,
                completed=task.done,
                rest=clean(rest),
            )
        for key in set(self._rows) - {id(task) for task in tasks}:
            self._progress.remove_task(self._rows.pop(key))
        if not self._rows:
            self._progress.stop()


class Lines:
    """A line now and then, for output that is no terminal: when a task begins, and every `LINE_EVERY` seconds."""

    def __init__(self, stream: TextIO | None = None, every: float = LINE_EVERY) -> None:
        self._stream, self._every = stream, every
        self._names: tuple[str, ...] = ()
        self._begun = False
        self._last = -math.inf

    def update(self, tasks: Sequence[Task]) -> None:
        """Prints a line if the last one is long ago, or if a task has begun and the last one is not quite new."""
        names, since = tuple(task.name for task in tasks), time.monotonic() - self._last
        self._begun |= len(names) > len(self._names) or names[:1] != self._names[:1]
        self._names = names
        if tasks and (since >= self._every or (self._begun and since >= PAUSE)):
            self._begun, self._last = False, time.monotonic()
            print("babelscope: " + " · ".join(map(str, tasks)), file=self._stream or sys.stderr, flush=True)


def duration(seconds: float | None) -> str:
    """A time for a person; `?` where nobody knows."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    for unit, size in (("days", 86400), ("h", 3600)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min"
