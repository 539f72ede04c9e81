"""What the stages that ask a model tasks have in common: which items there are, and what answering costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from babelscope.errors import BabelscopeError
from babelscope.evaluation.printed import benchmark
from babelscope.evaluation.tasks.benchmarks import benchmark_named
from babelscope.options import Refused
from babelscope.stages.contract import Cost
from babelscope.stages.job import Job

ITEMS = {"mgsm": (250, 150, 256), "xquad": (1190, 250, 32), "xcsqa": (1000, 100, 0), "xlsum": (1000, 600, 64)}
"""Benchmark -> items, tokens of a prompt with its choices, tokens of an answer; roughly."""
TINYBABEL_ITEMS = (200, 80, 24)


def answers(task: str, cells: int, limit: int | Mapping[str, int] | None, batch_size: int) -> Cost:
    """The work of asking a task in a number of cells, roughly."""
    items, prompt, answer = ITEMS.get(benchmark(task), TINYBABEL_ITEMS)
    items = min(items, limit_of(limit, task) or items)
    return Cost(cells, float(cells * items * prompt), cells * items * answer / batch_size)


def check_task(key: str, name: str) -> Iterator[Refused]:
    """A task that there is none of, or that has no languages."""
    try:
        benchmark_named(name)
    except BabelscopeError as error:
        yield Refused(key, "a task with languages", repr(name), str(error))


def with_items(job: Job, task: str, languages: Sequence[str]) -> list[str]:
    """Those of the languages that a task has items in."""
    there = benchmark_named(task).languages(None if job.study.data is None else Path(job.study.data))
    return [code for code in languages if code in there]


def main_metric(task: str) -> str:
    """The metric that figures and findings are about."""
    from babelscope.evaluation.tables import METRICS, kind

    return METRICS[kind(task)]


def limit_of(limit: int | Mapping[str, int] | None, task: str) -> int | None:
    """How many items of a task."""
    return limit if limit is None or isinstance(limit, int) else limit.get(task)
