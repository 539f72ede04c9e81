"""Records of a report: findings, tables and figures of one stage, and the results of a whole run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

KIND = "babelscope result"
VERSION = 1
VERDICTS = ("holds", "does not hold", "undecided")


@dataclass(frozen=True)
class Finding:
    """A claim, what came of it, and how large the effect is."""

    claim: str
    verdict: str
    text: str
    effect: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]


@dataclass(frozen=True)
class Figure:
    """What a chart draws: records, each with all the fields of its kind in `babelscope.report.charts.FIGURES`."""

    name: str
    kind: str
    title: str
    caption: str
    records: tuple[Mapping[str, Any], ...]
    x: str = ""
    """What the horizontal axis shows, with its unit, where the kind names this axis."""
    y: str = ""


@dataclass
class Section:
    """The part of a report that one stage fills: a text, findings, tables and figures."""

    how: str
    """How the numbers were made: plain text, one paragraph."""
    findings: list[Finding] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One stage on one model."""

    stage: str
    model: str
    title: str
    seconds: float
    command: str
    how: str
    findings: tuple[Finding, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class StudyRun:
    """A run folder: what was asked, and the results there are, by model folder and stage."""

    folder: Path
    about: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Result]]
    missing: tuple[tuple[str, str], ...]
    """Model folder and stage of what should be there and isn't."""
    stages: tuple[str, ...]
    """Every stage, in the order of the report: as run.json lists them, then others whose results are there."""

    @property
    def finished(self) -> bool:
        """Whether the study says that it is done, and everything is there."""
        return self.about.get("status") == "finished" and not self.missing


class Bounds(Protocol):
    """An estimate with the two ends of its interval."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


def table(name: str, title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table of a result."""
    return Table(slug(name), title, tuple(columns), tuple(tuple(row) for row in rows))


def figure(
    name: str, kind: str, title: str, caption: str, records: Iterable[Mapping[str, Any]], *, x: str = "", y: str = ""
) -> Figure:
    """A figure of a result, with the titles of its axes where the chart gives them none itself."""
    return Figure(slug(name), kind, title, caption, tuple(records), x, y)


def finding(claim: str, interval: Bounds, text: str) -> Finding:
    """A claim that an effect is above zero: it holds if the whole interval is, and does not if none of it is."""
    verdict = "holds" if interval.low > 0 else "does not hold" if interval.high < 0 else "undecided"
    return Finding(claim, verdict, text, interval.value, interval.low, interval.high)


def slug(text: str) -> str:
    """A name for files and for figures: letters, digits, dots become `-`, nothing else."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-") or "x"
