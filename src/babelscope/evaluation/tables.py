"""Tables of the grid: all of its rows, and a summary in the paper's layout, as CSV, Parquet and LaTeX."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from babelscope.errors import MissingDependencyError
from babelscope.evaluation.cells import BITS
from babelscope.evaluation.printed import INTACT, Printed, printed

if TYPE_CHECKING:
    from babelscope.evaluation.grid import Effect

METRICS: Mapping[str, str] = {
    "understanding": "f1", "xquad": "f1", "reasoning": "flexible", "mgsm": "flexible", "knowledge": "acc",
    "xcsqa": "acc", "generation": "rouge_l", "xlsum": "rouge_l", "confusion": "line_pass", BITS: BITS,
}  # fmt: skip
"""The metric that a task is judged by, of those it has."""


@dataclass(frozen=True)
class Summary:
    """A part switched off, on one task: the mean over languages, as the paper prints it. Scores in percent."""

    task: str
    metric: str
    op: str
    part: str
    """Or `intact`; `random: PART` is the mean of the random sets of the part's size."""
    english: float
    """English items with a language's neurons off, averaged over the languages; NaN where not measured."""
    others: float
    """Each language's items with its own neurons off, averaged over the languages."""
    delta: float
    """Change in English minus change in the others, against intact; with bits the other way round, so that more always
    means that the others are hurt more."""
    printed_english: float
    """In the paper, for this model; NaN where it has none."""
    printed_others: float


@dataclass(frozen=True)
class InLanguage(Summary):
    """The same of one language: `others` are its items, `english` English ones, with its neurons off."""

    language: str


def kind(task: str) -> str:
    """What a task is, whichever its variant: `xquad_paper` is `xquad`, `tinybabel_knowledge` is `knowledge`."""
    return task if task == BITS else task.removeprefix("tinybabel_").partition("_")[0]


def judged(effects: Iterable[Effect]) -> list[Effect]:
    """Those in the metric that their task is judged by."""
    return [each for each in effects if each.place[2] == METRICS[kind(each.place[0])]]


def summarise(effects: Sequence[Effect], model: str, english: str = "en") -> list[Summary]:
    """The paper's tables: a row for each task, operation and part, the intact model first."""
    return _summaries(judged(effects), model, english, "")


def by_language(effects: Sequence[Effect], model: str, english: str = "en") -> list[InLanguage]:
    """The same for each language whose neurons were off; the paper prints it for summaries (its table 1)."""
    chosen = [each for each in judged(effects) if each.off != english]
    return [
        InLanguage(**asdict(row), language=code)
        for code in dict.fromkeys(each.off for each in chosen)
        for row in _summaries([each for each in chosen if each.off == code], model, english, code)
    ]


def _summaries(chosen: Sequence[Effect], model: str, english: str, language: str) -> list[Summary]:
    found = []
    told = partial(printed, model, language=language)
    for task, metric in dict.fromkeys((each.place[0], each.place[2]) for each in chosen):
        of_task = [each for each in chosen if each.place[0] == task]
        inside = [each for each in of_task if each.place[1] == english and each.off != english]
        others = [each for each in of_task if each.place[1] != english]
        before = _percent(task, [each.before for each in inside]), _percent(task, [each.before for each in others])
        found.append(_summary(task, metric, "", INTACT, before, before, told(task, INTACT)))
        for op, part in dict.fromkeys((each.op, each.part) for each in of_task):
            here = [[each for each in several if (each.op, each.part) == (op, part)] for several in (inside, others)]
            after = tuple(_percent(task, [each.after for each in several]) for several in here)
            found.append(_summary(task, metric, op, part, after, before, told(task, part)))
            drawn = tuple(_percent(task, [each.random for each in several if len(each.random)]) for several in here)
            if not math.isnan(drawn[1]):
                row = _summary(task, metric, op, f"random: {part}", drawn, before, told(task, part, random=True))
                found.append(row)
    return found


def _summary(
    task: str, metric: str, op: str, part: str, values: Sequence[float], before: Sequence[float], told: Printed | None
) -> Summary:
    """A row from English and the others, now and of the intact model."""
    delta = (values[0] - before[0]) - (values[1] - before[1])
    beside = (math.nan, math.nan) if told is None else (math.nan if told.english is None else told.english, told.others)
    return Summary(task, metric, op, part, values[0], values[1], -delta if task == BITS else delta, *beside)


def _percent(task: str, several: Sequence[NDArray[np.float64]]) -> float:
    """Mean over languages of the mean over items; bits as they are."""
    unit = 1.0 if task == BITS else 100.0
    return unit * float(np.mean([each.mean() for each in several])) if several else math.nan


def write_csv(path: Path, table: Sequence[Any]) -> None:
    """Rows of a dataclass, full precision."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(table[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)


def write_parquet(path: Path, table: Sequence[Any]) -> None:
    """Rows of a dataclass, for pandas and others.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    try:
        from pyarrow import Table, parquet
    except ImportError as error:
        raise MissingDependencyError('Parquet needs pyarrow: pip install "babelscope[files]"') from error
    parquet.write_table(Table.from_pylist([asdict(row) for row in table]), path)


def to_latex(table: Sequence[Summary], model: str) -> str:
    r"""The summary as a `table` for `\usepackage{booktabs}`, a block of rows for each task."""
    beside = any(not math.isnan(row.printed_others) for row in table)
    columns = "llrrr" + ("rr" if beside else "")
    head = ["Task", "Switched off", "English", "Others", r"$\Delta$"] + ["English$^*$", "Others$^*$"] * beside
    lines = []
    for task in dict.fromkeys(row.task for row in table):
        lines.append(r"\midrule")
        for row in (each for each in table if each.task == task):
            digits = 3 if task == BITS else 1
            cells = [*_named(row), *(_number(v, digits) for v in (row.english, row.others))]
            cells.append("" if row.part == INTACT else _number(row.delta, digits, "+"))
            cells += [_number(row.printed_english, 1), _number(row.printed_others, 1)] if beside else []
            lines.append(_line(cells))
    note = " $^*$ as the paper prints it." if beside else ""
    return _as_table(columns, head, lines, f"{_escaped(model)}: scores with neurons switched off.{note}")


def to_latex_by_language(table: Sequence[InLanguage], model: str) -> str:
    """The same of each language's own items: a column for each language, the paper's number in brackets."""
    languages = list(dict.fromkeys(row.language for row in table))
    known = {(row.task, row.op, row.part, row.language): row for row in table}
    lines = []
    for task in dict.fromkeys(row.task for row in table):
        lines.append(r"\midrule")
        for first in {(row.op, row.part): row for row in table if row.task == task}.values():
            several = [known.get((task, first.op, first.part, language)) for language in languages]
            lines.append(_line([*_named(first), *("--" if row is None else _beside(row) for row in several)]))
    note = " In brackets as the paper prints it." if any(not math.isnan(row.printed_others) for row in table) else ""
    caption = f"{_escaped(model)}: scores of each language with its own neurons switched off.{note}"
    return _as_table("ll" + "r" * len(languages), ["Task", "Switched off", *languages], lines, caption)


def _beside(row: Summary) -> str:
    number = _number(row.others, 3 if row.task == BITS else 1)
    # The paper's last digits: two for scores near 0.
    return number if math.isnan(row.printed_others) else f"{number} ({row.printed_others:g})"


def _named(row: Summary) -> list[str]:
    part = row.part if row.op in ("", "zero") else f"{row.part} ({row.op})"
    return [_escaped(row.task if row.part == INTACT else ""), _escaped(part)]


def _as_table(columns: str, head: Sequence[str], lines: Sequence[str], caption: str) -> str:
    begin = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _line(head)]
    end = [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""]
    return "\n".join([*begin, *lines, *end])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _number(value: float, digits: int, sign: str = "") -> str:
    rounded = round(value, digits) + 0.0  # no -0.0
    return "--" if math.isnan(value) else f"{rounded:{sign}.{digits}f}".replace("-", "$-$")


def _escaped(text: str) -> str:
    special: dict[str, str | int | None] = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    special |= {character: f"\\{character}" for character in "{}$&#_%"}
    return text.translate(str.maketrans(special))
