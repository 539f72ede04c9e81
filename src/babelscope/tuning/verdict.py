"""What the arms of an experiment come to: changes with intervals, beside random neurons, and which arm is best.

A change is paired: the same texts and items before and after. Its 95 % interval is a percentile bootstrap over texts
(or items) and runs together; the draws of texts are the same for all arms, so that a difference between two arms is
paired too. Runs are few: of one, an interval holds the spread of texts only; of two, half the variance of runs.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from babelscope.evaluation.inference import Interval

RESAMPLES = 2000
ALL = "all"
"""The language of rows that hold means over languages."""
Group = tuple[str, int, str]
"""Language, documents, arm."""
Draws = NDArray[np.float64]
"""[1 + RESAMPLES]: a statistic as measured, then of every bootstrap draw."""
_MEASURES = ("target", "others", "others_percent", "tasks")


@dataclass(frozen=True)
class Scores:
    """Of one model. `values` are sums and `weights` what they are divided by: bits and bytes, points and ones."""

    texts: Mapping[str, Mapping[str, Sequence[float]]]
    """Language -> `values`, `weights`, each [texts]."""
    tasks: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
    """Language -> task -> `values`, `weights`, each [items]."""


@dataclass(frozen=True)
class Run:
    """A trained model."""

    rate: float
    edge: bool
    """The rate is the lowest or highest that was tried."""
    parameters: int
    scores: Scores


@dataclass(frozen=True)
class Row:
    """An arm. Intervals are of the changes by training; None where nothing was measured."""

    language: str
    documents: int
    arm: str
    rate: float | None
    edge: bool
    """The best rate is the lowest or highest that was tried, so a better one may lie beyond."""
    parameters: int
    runs: int
    target_before: float
    """Bits per byte of the target's test texts."""
    target: Interval
    """Change in bits per byte; less is better."""
    others: Interval | None
    """Mean change over the other languages."""
    others_percent: Interval | None
    """The same, of each in percent of what it was."""
    worst_other: str
    """The other language that lost most."""
    worst_percent: float | None
    tasks_before: float | None
    """Mean over tasks in the target's language, 0 to 1."""
    tasks: Interval | None
    """Change of it; more is better."""
    target_to_random: Interval | None
    """Difference of `target` from that of the arm `random`."""
    tasks_to_random: Interval | None


@dataclass(frozen=True)
class Comparison:
    """The table of an experiment, and what follows from it."""

    rows: tuple[Row, ...]
    verdicts: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Intervals as three entries: `target`, `target_low`, `target_high`."""
        return {"rows": [_flat(row) for row in self.rows], "verdicts": list(self.verdicts)}

    def write_csv(self, path: Path) -> None:
        """The rows, an interval in three columns."""
        rows = [_flat(row) for row in self.rows]
        with path.open("w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


def compare(base: Scores, runs: Mapping[Group, Sequence[Run]]) -> Comparison:
    """The table of an experiment.

    Args:
        base: of the untouched model.
        runs: of each arm, at its best rate.
    """
    draws = {group: _draws(base, group[0], [run.scores for run in mine]) for group, mine in runs.items()}
    rows = [_row(base, group, mine, draws) for group, mine in runs.items()]
    languages = list(dict.fromkeys(language for language, _, _ in runs))
    if len(languages) > 1:
        for documents, arm in dict.fromkeys((documents, arm) for _, documents, arm in runs):
            groups = [(language, documents, arm) for language in languages]
            draws[ALL, documents, arm] = {
                name: np.mean([draws[each][name] for each in groups], axis=0)
                for name in _MEASURES
                if all(name in draws[each] for each in groups)
            }
        rows += [_mean_row([row for row in rows if (row.documents, row.arm) == place], draws)
                 for place in dict.fromkeys((row.documents, row.arm) for row in rows)]  # fmt: skip
    verdicts = []
    for language, documents in dict.fromkeys((row.language, row.documents) for row in rows):
        here = {arm: each for (code, count, arm), each in draws.items() if (code, count) == (language, documents)}
        for name, sign, what in (("target", 1, "bits per byte of the target"), ("tasks", -1, "tasks")):
            if len(here) > 1 and all(name in each for each in here.values()):
                best, close = _best({arm: sign * each[name] for arm, each in here.items()})
                apart = f"not to be told from {', '.join(close)}" if close else "better than every other arm"
                verdicts.append(f"{language}, {documents} documents, {what}: {best} is best, {apart}")
    return Comparison(tuple(rows), tuple(verdicts))


def _draws(base: Scores, language: str, runs: Sequence[Scores]) -> dict[str, Draws]:
    """Every measure of an arm that there is."""
    texts = {code: _change(base.texts[code], [run.texts[code] for run in runs], code) for code in base.texts}
    found = {"target": texts.pop(language)}
    if texts:
        found["others"] = np.mean(list(texts.values()), axis=0)
        found["others_percent"] = np.mean(
            [100 * each / _value(base.texts[code]) for code, each in texts.items()], axis=0
        )
    tasks = [
        _change(before, [run.tasks[language][task] for run in runs], f"{language} {task}")
        for task, before in base.tasks.get(language, {}).items()
    ]
    return {**found, "tasks": np.mean(tasks, axis=0)} if tasks else found


def _change(before: Mapping[str, Any], after: Sequence[Mapping[str, Any]], name: str) -> Draws:
    """Mean over runs of the change; draws of items are decided by `name`, draws of runs by their number."""
    weights = np.asarray(before["weights"], dtype=np.float64)
    n, generator = len(weights), np.random.default_rng(zlib.crc32(name.encode()))
    items = np.vstack([np.arange(n), generator.integers(0, n, (RESAMPLES, n))])
    change = np.array([each["values"] for each in after]) - np.asarray(before["values"])
    by_run = np.stack([each[items].sum(1) / weights[items].sum(1) for each in change])
    count, generator = len(after), np.random.default_rng(len(after))
    chosen = np.vstack([np.arange(count), generator.integers(0, count, (RESAMPLES, count))])
    return np.asarray(np.take_along_axis(by_run, chosen.T, axis=0).mean(0))


def _value(score: Mapping[str, Any]) -> float:
    return float(np.sum(score["values"]) / np.sum(score["weights"]))


def _interval(draws: Draws | None) -> Interval | None:
    if draws is None:
        return None
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return Interval(float(draws[0]), float(low), float(high))


def _row(base: Scores, group: Group, runs: Sequence[Run], draws: Mapping[Group, Mapping[str, Draws]]) -> Row:
    language = group[0]
    percent = {
        code: 100 * float(np.mean([_value(run.scores.texts[code]) for run in runs]) / _value(before) - 1)
        for code, before in base.texts.items()
        if code != language
    }
    worst = max(percent, key=lambda code: percent[code], default="")
    tasks = base.tasks.get(language, {})
    return Row(
        *group, runs[0].rate, runs[0].edge, runs[0].parameters, len(runs), _value(base.texts[language]),
        worst_other=worst, worst_percent=percent.get(worst),
        tasks_before=float(np.mean([_value(each) for each in tasks.values()])) if tasks else None,
        **_intervals(group, draws),
    )  # fmt: skip


def _mean_row(rows: Sequence[Row], draws: Mapping[Group, Mapping[str, Draws]]) -> Row:
    """Over languages."""
    first, worst = rows[0], max(rows, key=lambda row: row.worst_percent or 0.0)
    before = [row.tasks_before for row in rows if row.tasks_before is not None]
    group = (ALL, first.documents, first.arm)
    return Row(
        *group, first.rate if len({row.rate for row in rows}) == 1 else None, any(row.edge for row in rows),
        round(float(np.mean([row.parameters for row in rows]))), min(row.runs for row in rows),
        float(np.mean([row.target_before for row in rows])), worst_other=worst.worst_other,
        worst_percent=worst.worst_percent, tasks_before=float(np.mean(before)) if len(before) == len(rows) else None,
        **_intervals(group, draws),
    )  # fmt: skip


def _intervals(group: Group, draws: Mapping[Group, Mapping[str, Draws]]) -> dict[str, Any]:
    mine, random = draws[group], draws.get((group[0], group[1], "random"))
    found = {name: _interval(mine.get(name)) for name in _MEASURES}
    for name in ("target", "tasks"):
        apart = random is not None and group[2] != "random" and name in mine
        found[f"{name}_to_random"] = _interval(mine[name] - random[name]) if apart and random is not None else None
    return found


def _best(draws: Mapping[str, Draws]) -> tuple[str, list[str]]:
    """The arm with the least, and those whose difference from it has an interval with zero in it."""
    best = min(draws, key=lambda arm: draws[arm][0])
    close = []
    for arm, each in draws.items():
        if arm != best:
            low = np.quantile(each[1:] - draws[best][1:], 0.025)
            close += [arm] if low <= 0 else []
    return best, close


def _flat(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (each.name for each in fields(Row)):
        value = getattr(row, name)
        if name in _MEASURES or name.endswith("_to_random"):
            bounds = (None, None, None) if value is None else (value.value, value.low, value.high)
            found |= dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True))
        else:
            found[name] = value
    return found
