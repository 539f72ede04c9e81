"""Tables of results as CSV, LaTeX and text; two runs' tables set side by side."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from babelscope.report.charts import FIGURES
from babelscope.report.languages import name_of
from babelscope.report.results import Figure, Finding, Table

Cell = str | float | None
LANGUAGES = ("language", "off")
"""Columns whose cells are languages, by code or name."""
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "−": "$-$", "\n": " ",
    }
)  # fmt: skip


def shown(cell: Cell, digits: int | None = None, signed: bool = False) -> str:
    """A cell for people: a dash for nothing; whole numbers whole; others to `digits`, or to three significant ones."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    form = ",d" if isinstance(cell, int) else f",.{_digits(cell, 3) if digits is None else digits}f"
    if digits is None and isinstance(cell, float) and cell != 0 and not 0.001 <= abs(cell) < 1e6:
        form = ".2e"
    text = f"{abs(cell):{form}}".replace("e-", "e−")
    zero = not text.strip("0.,")
    return text if zero or (cell > 0 and not signed) else ("+" if cell > 0 else "−") + text


def column(cells: Sequence[Cell]) -> list[str]:
    """The cells of a column, numbers with the same count of decimals where a few more than for the largest show all."""
    sizes = [abs(cell) for cell in cells if isinstance(cell, float) and cell != 0]
    digits = None
    if sizes:
        usual, least = _digits(max(sizes), 3), _digits(min(sizes), 1)
        digits = max(usual, least) if least <= min(5, usual + 2) else None
    return [shown(cell, digits) for cell in cells]


def interval(finding: Finding) -> str:
    """An effect and its interval; empty without an effect."""
    return "" if finding.effect is None else between(finding.effect, finding.low, finding.high, signed=True)


def between(value: float, low: float | None, high: float | None, signed: bool = False) -> str:
    """A number and its interval, if it has one, to two digits of the interval's width: `0.120 [0.090, 0.150]`."""
    if low is None or high is None:
        return shown(float(value), signed=signed)
    digits = _digits(high - low, 2) if high > low else _digits(value, 3)
    value, low, high = float(value), float(low), float(high)
    if digits > 6:
        return f"{shown(value, signed=signed)} [{shown(low)}, {shown(high)}]"
    return f"{shown(value, digits, signed=signed)} [{shown(low, digits)}, {shown(high, digits)}]"


def _digits(size: float, significant: int) -> int:
    """Decimals that show a number of this size to so many significant digits."""
    return 0 if size == 0 else max(0, significant - 1 - math.floor(math.log10(abs(size))))


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Full precision; nothing is an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def figure_csv(figure: Figure) -> str:
    """The records of a figure, the fields of its kind first."""
    fields = list(
        dict.fromkeys([*FIGURES[figure.kind].fields, *(name for record in figure.records for name in record)])
    )
    return to_csv(fields, [[record.get(name) for name in fields] for record in figure.records])


def to_latex(table: Table) -> str:
    r"""A `table` for `\usepackage{booktabs}`; text of other scripts needs XeLaTeX or LuaLaTeX and a font."""
    align = "".join("r" if numeric(table, place) else "l" for place in range(len(table.columns)))
    lines = [[cell.translate(_LATEX) for cell in row] for row in (heads(table), *as_text(table))]
    head, *body = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}", r"\centering", rf"\caption{{{table.title.translate(_LATEX)}}}",
            rf"\label{{tab:{table.name}}}", rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *body,
            r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
        ]
    )  # fmt: skip


def heads(table: Table) -> list[str]:
    """The names of the columns for people."""
    return [name.replace("_", " ") for name in table.columns]


def as_text(table: Table) -> list[list[str]]:
    """The rows of a table for people: languages by name."""
    columns = []
    for place, name in enumerate(table.columns):
        cells = [row[place] for row in table.rows]
        columns.append([name_of(each) for each in column(cells)] if name in LANGUAGES else column(cells))
    return [list(row) for row in zip(*columns, strict=True)]


def numeric(table: Table, column: int) -> bool:
    """Whether a column holds numbers and nothing else."""
    cells = [row[column] for row in table.rows if row[column] is not None]
    return bool(cells) and not any(isinstance(cell, str) for cell in cells)


def beside(first: Table, second: Table, names: tuple[str, str]) -> Table:
    """Two runs' versions of a table as one: each number of both, and their difference, second minus first.

    Rows belong together when their text cells are equal, and as many of the first columns of whole numbers (documents,
    seeds) as it takes to tell a table's rows apart. A row or a column of one run alone has nothing in the place of the
    other; columns without any value are left out.

    Args:
        first: of the first run.
        second: of the second.
        names: of the runs.
    """
    columns = list(dict.fromkeys([*first.columns, *second.columns]))
    cells = {name: [cell for table in (first, second) for cell in _cells(table, name)] for name in columns}
    keys = [name for name in columns if any(isinstance(cell, str) for cell in cells[name])]
    whole = [name for name in columns if cells[name] and all(isinstance(cell, int) for cell in cells[name])]
    while whole and not all(_tells_apart(table, keys) for table in (first, second)):
        keys.append(whole.pop(0))
    numbers = [name for name in columns if cells[name] and name not in keys]
    before, after = _by_keys(first, keys), _by_keys(second, keys)
    rows: list[tuple[Cell, ...]] = []
    for key in dict.fromkeys([*before, *after]):
        one, other = before.get(key, {}), after.get(key, {})
        row: list[Cell] = list(key[:-1])
        for name in numbers:
            values = (one.get(name), other.get(name))
            row += [*values, _difference(*values)]
        rows.append(tuple(row))
    heads = [f"{name}: {part}" for name in numbers for part in (*names, "difference")]
    return Table(first.name, first.title, (*keys, *heads), tuple(rows))


def _cells(table: Table, name: str) -> list[str | float]:
    """What there is in a column; nothing if there is no such column."""
    if name not in table.columns:
        return []
    place = table.columns.index(name)
    return [cell for row in table.rows if (cell := row[place]) is not None]


def _tells_apart(table: Table, keys: Sequence[str]) -> bool:
    return all(key[-1] == 0 for key in _by_keys(table, keys))


def _by_keys(table: Table, keys: Sequence[str]) -> dict[tuple[Any, ...], Mapping[str, Cell]]:
    """Rows by their cells in some columns, and a number that tells equal ones apart."""
    found: dict[tuple[Any, ...], Mapping[str, Cell]] = {}
    for cells in table.rows:
        row = dict(zip(table.columns, cells, strict=True))
        key = tuple(row.get(name) for name in keys)
        found[(*key, sum(other[:-1] == key for other in found))] = row
    return found


def _difference(first: Cell, second: Cell) -> float | None:
    both = isinstance(first, int | float) and isinstance(second, int | float)
    return second - first if both else None  # type: ignore[operator]
