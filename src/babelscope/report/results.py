"""What a study leaves behind, read and checked: RUN/run.json and RUN/MODEL/STAGE/result.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babelscope.artifacts import read_json
from babelscope.errors import DataError

KIND = "babelscope result"
VERSION = 1
STAGES = {
    "detect": "Which neurons each language needs",
    "select": "The neurons of each language",
    "lens": "Which language each layer speaks",
    "search": "Where understanding ends and generation begins",
    "damage": "What breaks without a language's neurons",
    "grid": "What breaks, by stage and structure",
    "evaluation": "Tasks, intact and without neurons",
    "steering": "Turning one language into another",
    "tuning": "Training only a language's neurons",
}
"""Every stage in the order of the argument, with its heading."""
VERDICTS = ("holds", "does not hold", "undecided")
RECORDS: dict[str, dict[str, str]] = {
    "layers": {"model": "text", "language": "text", "layer": "whole", "spoken": "text", "mass": "number"},
    "counts": {"language": "text", "slot": "text", "layer": "whole", "count": "number"},
    "overlap": {"row": "text", "column": "text", "overlap": "maybe", "expected": "maybe", "p": "maybe"},
    "matrix": {"row": "text", "column": "text", "value": "maybe", "low": "maybe", "high": "maybe"},
    "forest": {
        "group": "text", "label": "text", "value": "maybe", "low": "maybe", "high": "maybe", "control": "truth",
    },
    "curve": {"series": "text", "x": "number", "y": "number", "low": "maybe", "high": "maybe"},
    "bars": {"group": "text", "label": "text", "value": "maybe", "low": "maybe", "high": "maybe"},
    "search": {"understand": "whole", "generate": "whole", "value": "maybe"},
    "tokens": {
        "prompt": "text", "layer": "whole", "position": "whole", "token": "text", "probability": "number",
        "language": "text", "language_code": "text",
    },
}  # fmt: skip
"""Fields of a record by kind of figure; more fields are allowed and end up in the figure's data only."""
AXES = {"forest": ("x",), "curve": ("x", "y"), "bars": ("x",)}
"""Axes that a figure may give a title."""


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
    """What a chart draws: records, all of the fields of its kind in `RECORDS`."""

    name: str
    kind: str
    title: str
    caption: str
    records: tuple[Mapping[str, Any], ...]
    x: str = ""
    """What the horizontal axis shows, with its unit, where the kind is in `AXES`."""
    y: str = ""


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

    @property
    def finished(self) -> bool:
        """Whether the study says that it is done, and everything is there."""
        return self.about.get("status") == "finished" and not self.missing


def read_run(folder: Path) -> StudyRun:
    """Reads a study run, finished or not.

    Raises:
        DataError: no run.json, or a malformed result.json; says the file, the place in it, what was wanted and found.
    """
    about = read_json(folder / "run.json")
    results: dict[str, dict[str, Result]] = {name: {} for name in _listed(about.get("models"))}
    for stage in STAGES:
        for path in sorted(folder.glob(f"*/{stage}/result.json")):
            results.setdefault(path.parent.parent.name, {})[stage] = read_result(path)
    asked = about.get("asked")
    wanted = _listed(about.get("stages") or (asked.get("stages") if isinstance(asked, Mapping) else None))
    expected = [stage for stage in STAGES if stage in wanted or any(stage in found for found in results.values())]
    missing = tuple((model, stage) for model, found in results.items() for stage in expected if stage not in found)
    return StudyRun(folder, about, results, missing)


def read_result(path: Path) -> Result:
    """Reads and checks one result.json; DataError as in `read_run`."""
    return _Reader(path).result()


def _listed(names: Any) -> list[str]:
    """Names, from a list of them or the keys of an object."""
    return [name for name in names if isinstance(name, str)] if isinstance(names, list | dict) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("text", lambda value: isinstance(value, str)),
    "whole": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "number": ("a finite number", _is_number),
    "maybe": ("a finite number or null", lambda value: value is None or _is_number(value)),
    "truth": ("true or false", lambda value: isinstance(value, bool)),
    "list": ("a list", lambda value: isinstance(value, list)),
    "object": ("an object", lambda value: isinstance(value, dict)),
    "cell": ("text, a finite number or null", lambda v: v is None or isinstance(v, str) or _is_number(v)),
}


class _Reader:
    """Walks one result.json and names the place of what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = read_json(path)

    def result(self) -> Result:
        top = self.content
        self._among(top, "kind", "", (KIND,))
        if self._get(top, "version", "", "whole") != VERSION:
            self._refuse("version", str(VERSION), top["version"])
        stage = self._among(top, "stage", "", tuple(STAGES))
        if stage != self.path.parent.name:
            self._refuse("stage", f"{self.path.parent.name!r}, the name of its folder", stage)
        for kind in ("tables", "figures"):
            self._once(kind)
        texts = {name: self._get(top, name, "", "text") for name in ("model", "title", "command", "how")}
        return Result(
            stage=stage,
            seconds=float(self._get(top, "seconds", "", "number")),
            findings=tuple(self._finding(*each) for each in self._each(top, "findings")),
            tables=tuple(self._table(*each) for each in self._each(top, "tables")),
            figures=tuple(self._figure(*each) for each in self._each(top, "figures")),
            **texts,
        )

    def _once(self, kind: str) -> None:
        """Names become files: two of one name would be one."""
        named: set[str] = set()
        for part, place in self._each(self.content, kind):
            if self._slug(part, place) in named:
                self._refuse(f"{place}name", "a name that no other has", part["name"])
            named.add(part["name"])

    def _finding(self, found: dict[str, Any], at: str) -> Finding:
        claim, text = (self._get(found, name, at, "text") for name in ("claim", "text"))
        effect, low, high = (self._get(found, name, at, "maybe") for name in ("effect", "low", "high"))
        return Finding(claim, self._among(found, "verdict", at, VERDICTS), text, effect, low, high)

    def _table(self, found: dict[str, Any], at: str) -> Table:
        columns = self._get(found, "columns", at, "list")
        for place, column in enumerate(columns):
            self._check(column, f"{at}columns[{place}]", "text")
        rows = self._get(found, "rows", at, "list")
        for place, row in enumerate(rows):
            self._check(row, f"{at}rows[{place}]", "list")
            if len(row) != len(columns):
                self._refuse(f"{at}rows[{place}]", f"{len(columns)} cells, one per column", len(row))
            for column, cell in enumerate(row):
                self._check(cell, f"{at}rows[{place}][{column}]", "cell")
        return Table(
            self._slug(found, at), self._get(found, "title", at, "text"), tuple(columns), tuple(map(tuple, rows))
        )

    def _figure(self, found: dict[str, Any], at: str) -> Figure:
        kind = self._among(found, "kind", at, tuple(RECORDS))
        records = self._each(found, "records", at)
        for record, place in records:
            for name, wanted in RECORDS[kind].items():
                self._get(record, name, place, wanted)
        title, caption = (self._get(found, name, at, "text") for name in ("title", "caption"))
        axes = {axis: self._get(found, axis, at, "text") for axis in AXES.get(kind, ()) if axis in found}
        return Figure(self._slug(found, at), kind, title, caption, tuple(record for record, _ in records), **axes)

    def _each(self, holder: dict[str, Any], name: str, at: str = "") -> list[tuple[dict[str, Any], str]]:
        """The objects of a list, each with the prefix that names a place in it."""
        listed = self._get(holder, name, at, "list")
        for place, item in enumerate(listed):
            self._check(item, f"{at}{name}[{place}]", "object")
        return [(item, f"{at}{name}[{place}].") for place, item in enumerate(listed)]

    def _slug(self, found: dict[str, Any], at: str) -> str:
        """A name that becomes part of a file's name."""
        name = str(self._get(found, "name", at, "text"))
        if not (name and name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
            self._refuse(f"{at}name", "letters, digits, - and _ only", name)
        return name

    def _among(self, found: dict[str, Any], name: str, at: str, allowed: tuple[str, ...]) -> str:
        value = self._get(found, name, at, "text")
        if value not in allowed:
            self._refuse(f"{at}{name}", " or ".join(map(repr, allowed)), value)
        return str(value)

    def _get(self, found: dict[str, Any], name: str, at: str, wanted: str) -> Any:
        if name not in found:
            self._refuse(f"{at}{name}", _TYPES[wanted][0], "nothing", plain=True)
        self._check(found[name], f"{at}{name}", wanted)
        return found[name]

    def _check(self, value: Any, place: str, wanted: str) -> None:
        said, fits = _TYPES[wanted]
        if not fits(value):
            self._refuse(place, said, value)

    def _refuse(self, place: str, wanted: str, found: Any, plain: bool = False) -> None:
        shown = found if plain else repr(found) if len(repr(found)) <= 60 else repr(found)[:60] + "..."
        raise DataError(
            f"{self.path}: {place}: wanted {wanted}, found {shown}. Delete {self.path.parent} and run the same study "
            "again: it makes what is missing."
        )
