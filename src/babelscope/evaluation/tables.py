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
