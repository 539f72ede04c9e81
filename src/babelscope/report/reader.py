"""A run folder and its results, read and checked: RUN/run.json and RUN/MODEL/STAGE/result.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from babelscope.artifacts import read_json
from babelscope.errors import DataError
from babelscope.report.charts import FIGURES
from babelscope.report.results import KIND, VERDICTS, VERSION, Figure, Finding, Result, StudyRun, Table


def read_run(folder: Path) -> StudyRun:
    """Reads a study run, finished or not.

    Raises:
        DataError: no run.json, or a malformed result.json; says the file, the place in it, what was wanted and found.
    """
    about = read_json(folder / "run.json")
    results: dict[str, dict[str, Result]] = {name: {} for name in _listed(about.get("models"))}
    asked = about.get("asked")
    stages = dict.fromkeys(_listed(about.get("stages") or (asked.get("stages") if isinstance(asked, Mapping) else [])))
    for path in sorted(folder.glob("*/*/result.json")):
        result = read_result(path)
        results.setdefault(path.parent.parent.name, {})[result.stage] = result
        stages.setdefault(result.stage)
    results = {model: {stage: read[stage] for stage in stages if stage in read} for model, read in results.items()}
    missing = tuple((model, stage) for model, read in results.items() for stage in stages if stage not in read)
    return StudyRun(folder, about, results, missing, tuple(stages))


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
        stage = self._get(top, "stage", "", "text")
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
        kind = self._among(found, "kind", at, tuple(FIGURES))
        records = self._each(found, "records", at)
        for record, place in records:
            for name, wanted in FIGURES[kind].fields.items():
                self._get(record, name, place, wanted)
        title, caption = (self._get(found, name, at, "text") for name in ("title", "caption"))
        axes = {axis: self._get(found, axis, at, "text") for axis in FIGURES[kind].axes if axis in found}
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
