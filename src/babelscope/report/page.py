"""One self-contained HTML page from a study run, or from two of them; and the figures and tables as files."""

from __future__ import annotations

import base64
import functools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babelscope.errors import MissingDependencyError
from babelscope.languages import get_language
from babelscope.report import charts, tables
from babelscope.report.files import vl_convert
from babelscope.report.languages import GREY, is_language, language_colours, reads_from_right, visible
from babelscope.report.reader import read_run
from babelscope.report.results import VERDICTS, Figure, Finding, Result, StudyRun, Table
from babelscope.report.theme import theme

PAGE = "report.html"
FILES = "report"
_FONT = 'system-ui, "Segoe UI", "Helvetica Neue", Arial, "Noto Sans", sans-serif'
_TEMPLATES = Path(__file__).parent / "templates"
_THEME = theme("var(--ink)", "var(--soft)", "var(--line)", "var(--paper)", _FONT)


@dataclass(frozen=True)
class Column:
    """What stands side by side in a report: a model of a run, or a model in one of two runs."""

    label: str
    model: str
    results: Mapping[str, Result]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page of a run, its figures (PNG, SVG, PDF, CSV) and its tables (CSV, LaTeX).

    Args:
        folder: the run, finished or not.
        out: the page (`report.html` in the run). Figures and tables go to `report/` in the run.

    Returns:
        The page.

    Raises:
        DataError: not a study run, or a malformed result.
        MissingDependencyError: altair, vl-convert or jinja2 isn't installed.
    """
    run = read_run(folder)
    columns = [Column(_label(results, name), name, results) for name, results in run.results.items()]
    for column in columns:
        for stage, result in column.results.items():
            _write_files(folder / FILES, f"{column.model}-{stage}", result)
    return _write_page(out or folder / PAGE, columns, [run])


def write_comparison(first: Path, second: Path, out: Path | None = None) -> Path:
    """Writes one page on two runs: findings, figures and tables side by side, with the differences.

    Args:
        first: a run.
        second: another; differences are second minus first.
        out: the page (`report-and-SECOND.html` in the first run).

    Returns:
        The page. Raises as `write_report`.
    """
    runs = [read_run(first), read_run(second)]
    names = _run_names(first, second)
    models = list(dict.fromkeys([*runs[0].results, *runs[1].results]))
    columns = [
        Column(f"{name}: {_label(run.results[model], model)}" if len(models) > 1 else name, model, run.results[model])
        for model in models
        for name, run in zip(names, runs, strict=True)
        if model in run.results
    ]
    return _write_page(out or first / f"report-and-{second.resolve().name}.html", columns, runs, names)


def _write_page(out: Path, columns: Sequence[Column], runs: Sequence[StudyRun], names: Sequence[str] = ()) -> Path:
    stages = list(dict.fromkeys(stage for run in runs for stage in run.stages))
    headings = {result.stage: result.title for column in reversed(columns) for result in column.results.values()}
    page = _Page(columns, names)
    present = [stage for stage in stages if any(stage in column.results for column in columns)]
    sections = [page.section(stage, headings[stage]) for stage in present]
    text = _template().render(
        title=_title(runs, columns, names),
        columns=columns,
        sections=sections,
        leads=[_lead(column) for column in columns if column.results],
        claims=[(headings[stage], rows) for stage in present if (rows := page.claims(stage))],
        missing=[(_run_label(names, at), _missing(run)) for at, run in enumerate(runs) if not run.finished],
        provenance=[(_run_label(names, at), _provenance(run)) for at, run in enumerate(runs)],
        settings=_settings(runs, names),
        commands=_commands(runs, columns, stages),
        compared=bool(names),
        font=_FONT,
        # "<" would end the script element early in </script>; as an escape it is the same JSON.
        data=json.dumps({"specs": page.specs, "config": _THEME}, ensure_ascii=False).replace("<", "\\u003c"),
        library=_library() if page.specs else "",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out


class _Page:
    """Numbers the figures and tables and collects the charts while sections are made."""

    def __init__(self, columns: Sequence[Column], names: Sequence[str]) -> None:
        self.columns, self.names = columns, names
        self.specs: dict[str, Any] = {}
        self.figures = self.tables = 0
        spoken = [
            record[field]
            for column in columns
            for result in column.results.values()
            for figure in result.figures
            for field in ("language", "spoken")
            if figure.kind in ("layers", "counts")
            for record in figure.records
            if field in record
        ]
        self.colours = language_colours(spoken)

    def section(self, stage: str, heading: str) -> dict[str, Any]:
        held = [(column, column.results[stage]) for column in self.columns if stage in column.results]
        hows: dict[str, list[str]] = {}
        for column, result in held:
            hows.setdefault(result.how, []).append(column.label)
        return {
            "id": stage,
            "heading": heading,
            "hows": [(", ".join(labels) if len(hows) > 1 else "", how) for how, labels in hows.items()],
            "figures": [self._figure(name, held) for name in _names(held, "figures")],
            "tables": [table for name in _names(held, "tables") for table in self._tables(stage, name, held)],
            "times": [(column.label, _duration(result.seconds)) for column, result in held],
        }

    def claims(self, stage: str) -> list[dict[str, Any]]:
        """The claims of a stage, with what came of each in every column."""
        found: dict[str, list[Finding | None]] = {}
        for place, column in enumerate(self.columns):
            for finding in column.results[stage].findings if stage in column.results else ():
                found.setdefault(finding.claim, [None] * len(self.columns))[place] = finding
        return [
            {
                "claim": claim,
                "cells": [(column.label, _cell(finding)) for column, finding in zip(self.columns, row, strict=True)],
                "changes": self._changes(row) if self.names else [],
            }
            for claim, row in found.items()
        ]

    def _changes(self, findings: Sequence[Finding | None]) -> list[str]:
        """In words, for each model that both runs have: the change of verdict and of effect."""
        said = []
        for first, second in self._pairs():
            one, other = findings[first], findings[second]
            if one is None or other is None:
                continue
            model = f"{self.columns[first].model}: " if len(self.columns) > 2 else ""
            verdict = "same verdict" if one.verdict == other.verdict else f"{one.verdict} → {other.verdict}"
            if one.effect is None or other.effect is None:
                said.append(f"{model}{verdict}")
            else:
                change = tables.shown(other.effect - one.effect, signed=True)
                said.append(f"{model}{verdict}, effect {'the same' if change == '0' else 'changed by ' + change}")
        return said

    def _pairs(self) -> list[tuple[int, int]]:
        """Places of the columns of one model in both runs."""
        places: dict[str, list[int]] = {}
        for place, column in enumerate(self.columns):
            places.setdefault(column.model, []).append(place)
        return [(both[0], both[1]) for both in places.values() if len(both) == 2]

    def _figure(self, name: str, held: Sequence[tuple[Column, Result]]) -> dict[str, Any]:
        self.figures += 1
        drawn = [
            (column, result, figure) for column, result in held for figure in result.figures if figure.name == name
        ]
        panels = []
        for place, (column, result, figure) in enumerate(drawn):
            chart = f"figure-{self.figures}-{place + 1}"
            prompts = _token_grids(figure, self.colours) if figure.kind == "tokens" else []
            if figure.kind != "tokens" and figure.records:
                self.specs[chart] = charts.draw(figure, self.colours).to_dict()
            file = f"{column.model}-{result.stage}-{name}"
            panels.append(
                {
                    "id": chart, "label": column.label if len(self.columns) > 1 else "", "prompts": prompts,
                    "empty": not figure.records, "caption": figure.caption, "file": file, "kind": figure.kind,
                    "csv": _data_uri(tables.figure_csv(figure)),
                }
            )  # fmt: skip
        if len({panel["caption"] for panel in panels}) == 1:
            caption = panels[0]["caption"]
            panels = [{**panel, "caption": ""} for panel in panels]
        else:
            caption = ""
        return {"number": self.figures, "title": drawn[0][2].title, "caption": caption, "panels": panels}

    def _tables(self, stage: str, name: str, held: Sequence[tuple[Column, Result]]) -> list[dict[str, Any]]:
        """A table of every column; where two runs have it for one model, one table of both."""
        found = {
            self.columns.index(column): table
            for column, result in held
            for table in result.tables
            if table.name == name
        }
        made: list[tuple[Column, Table]] = []
        for first, second in self._pairs() if self.names else ():
            if first in found and second in found:
                joined = tables.beside(found.pop(first), found.pop(second), (self.names[0], self.names[1]))
                made.append((self.columns[first], joined))
        made += [(self.columns[place], table) for place, table in found.items()]
        several = len(self.columns) > (2 if self.names else 1)
        return [
            self._table(f"{column.model}-{stage}", column.label if several else "", table) for column, table in made
        ]

    def _table(self, prefix: str, label: str, table: Table) -> dict[str, Any]:
        self.tables += 1
        numeric = [tables.numeric(table, place) for place in range(len(table.columns))]
        return {
            "number": self.tables,
            "title": table.title + (f" ({label})" if label else ""),
            "columns": list(zip(tables.heads(table), numeric, strict=True)),
            "rows": [list(zip(row, numeric, strict=True)) for row in tables.as_text(table)],
            "file": f"{prefix}-{table.name}",
            "csv": _data_uri(tables.to_csv(table.columns, table.rows)),
            "latex": _data_uri(tables.to_latex(table), "application/x-tex"),
        }  # fmt: skip


def _write_files(folder: Path, prefix: str, result: Result) -> None:
    convert = vl_convert()
    for kind in ("figures", "tables"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for figure in result.figures:
        path = folder / "figures" / f"{prefix}-{figure.name}"
        path.with_suffix(".csv").write_text(tables.figure_csv(figure), encoding="utf-8")
        if figure.records:
            drawn = convert.vegalite_to_svg(charts.for_paper(charts.draw(figure)))
            path.with_suffix(".svg").write_text(drawn, encoding="utf-8")
            path.with_suffix(".png").write_bytes(convert.svg_to_png(drawn, scale=2))
            path.with_suffix(".pdf").write_bytes(convert.svg_to_pdf(drawn))
    for table in result.tables:
        path = folder / "tables" / f"{prefix}-{table.name}"
        path.with_suffix(".csv").write_text(tables.to_csv(table.columns, table.rows), encoding="utf-8")
        path.with_suffix(".tex").write_text(tables.to_latex(table), encoding="utf-8")


@functools.cache
def _library() -> str:
    """Vega-Embed and what it needs, as a module that gives `window.vegaEmbed`; bundling takes seconds."""
    return str(vl_convert().javascript_bundle())


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError('reports need jinja2: pip install "babelscope[report]"') from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _label(results: Mapping[str, Result], name: str) -> str:
    return next((result.model for result in results.values()), name)


def _run_names(first: Path, second: Path) -> tuple[str, str]:
    """The folders' names, or A and B where these are alike."""
    one, other = first.resolve().name, second.resolve().name
    return (one, other) if one != other else ("A", "B")


def _run_label(names: Sequence[str], at: int) -> str:
    return names[at] if names else ""


def _title(runs: Sequence[StudyRun], columns: Sequence[Column], names: Sequence[str]) -> str:
    if names:
        return f"{names[0]} and {names[1]} compared"
    labels = [column.label for column in columns]
    return f"How {' and '.join(labels) if labels else 'no model yet'} handle{'s' if len(labels) < 2 else ''} languages"


def _lead(column: Column) -> dict[str, Any]:
    """How many claims were tested, and which came out how."""
    findings = [finding for result in column.results.values() for finding in result.findings]
    counted = {verdict: [each.claim for each in findings if each.verdict == verdict] for verdict in VERDICTS}
    return {"label": column.label, "tested": len(findings), "verdicts": counted}


def _cell(finding: Finding | None) -> dict[str, Any] | None:
    if finding is None:
        return None
    return {
        "verdict": finding.verdict,
        "mark": {"holds": "✓", "does not hold": "✗", "undecided": "?"}[finding.verdict],
        "text": finding.text,
        "interval": tables.interval(finding),
        "glyph": _glyph(finding),
    }


def _glyph(finding: Finding) -> dict[str, float] | None:
    """Places of low, high, effect and zero on a line from 4 to 116; None without an interval."""
    if finding.effect is None or finding.low is None or finding.high is None:
        return None
    ends = (finding.low, finding.high, finding.effect, 0.0)
    low, span = min(ends), (max(ends) - min(ends)) or 1.0
    return dict(zip(("low", "high", "effect", "zero"), (4 + 112 * (end - low) / span for end in ends), strict=True))


def _missing(run: StudyRun) -> dict[str, Any]:
    stages: dict[str, list[str]] = {}
    for model, stage in run.missing:
        stages.setdefault(_label(run.results[model], model), []).append(stage)
    return {
        "status": str(run.about.get("status", "unknown")),
        "stages": stages,
        "nothing": not any(run.results.values()),
    }


def _provenance(run: StudyRun) -> list[tuple[str, str]]:
    """Everything that run.json says except the settings, by dotted name."""
    return _flat({name: value for name, value in run.about.items() if name not in ("asked", "study")})


def _settings(runs: Sequence[StudyRun], names: Sequence[str]) -> list[tuple[str, list[str], bool]]:
    """What was asked, by dotted name, in every run, and whether runs differ."""
    asked = [dict(_flat(run.about.get("study") or run.about.get("asked") or {})) for run in runs]
    found = []
    for name in dict.fromkeys(name for settings in asked for name in settings):
        values = [settings.get(name, "–") for settings in asked]
        found.append((name, values, len(set(values)) > 1))
    return found


def _flat(content: Any, within: str = "") -> list[tuple[str, str]]:
    if isinstance(content, Mapping):
        return [
            pair
            for name, value in content.items()
            for pair in _flat(value, f"{within}.{name}" if within else str(name))
        ]
    return [(within, content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))]


def _commands(runs: Sequence[StudyRun], columns: Sequence[Column], stages: Sequence[str]) -> list[str]:
    """The command of each whole study, where its source is known, and those of single stages; each once."""
    whole = [
        f"babelscope study {shlex.quote(str(run.about['source']))} --out {shlex.quote(run.folder.resolve().name)}"
        for run in runs
        if "source" in run.about
    ]
    results = [column.results[stage] for stage in stages for column in columns if stage in column.results]
    return list(dict.fromkeys([*whole, *(result.command for result in results)]))


def _names(held: Sequence[tuple[Column, Result]], kind: str) -> list[str]:
    return list(dict.fromkeys(part.name for _, result in held for part in getattr(result, kind)))


def _data_uri(text: str, kind: str = "text/csv") -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _token_grids(figure: Figure, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows from the last layer to the first, cells in the order of positions, for each prompt."""
    codes = list(dict.fromkeys(record["language_code"] for record in figure.records))
    chosen = {**language_colours(codes), **colours}
    prompts: dict[str, list[Mapping[str, Any]]] = {}
    for record in figure.records:
        prompts.setdefault(record["prompt"], []).append(record)
    grids = []
    for prompt, records in prompts.items():
        rows: dict[int, list[dict[str, Any]]] = {}
        for record in sorted(records, key=lambda record: (-record["layer"], record["position"])):
            code = record["language_code"]
            known = get_language(code) if is_language(code) else None
            rows.setdefault(record["layer"], []).append(
                {
                    "token": visible(record["token"]), "lang": known.code if known else "",
                    "dir": known.direction if known else "auto", "colour": chosen.get(code, GREY),
                    "share": round(12 + 48 * min(max(record["probability"], 0), 1)),
                    "hover": f"{visible(record['token'])} {record['probability']:.3f} {record['language']}",
                }
            )  # fmt: skip
        spoken = {record["language"]: chosen.get(record["language_code"], GREY) for record in records}
        direction = "rtl" if reads_from_right(records) else "ltr"
        grids.append({"prompt": prompt, "rows": list(rows.items()), "direction": direction, "spoken": spoken})
    return grids
