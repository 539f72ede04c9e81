"""About how long a study takes: from its settings and the model's size, or from what its stages took before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from babelscope import tinybabel
from babelscope.artifacts import read_json
from babelscope.evaluation.printed import benchmark
from babelscope.study.config import Model, Study
from babelscope.study.paper import SIZES

ITEMS = {"mgsm": (250, 150, 256), "xquad": (1190, 250, 32), "xcsqa": (1000, 100, 0), "xlsum": (1000, 600, 64)}
"""Benchmark -> items, tokens of a prompt with its choices, tokens of an answer; roughly."""
TINYBABEL_ITEMS = (200, 80, 24)
_STEP = 0.004
"""Seconds that one step of generation takes at least, whatever the model's size."""
FACTOR = 3.0
"""How far off a time from size alone may be, either way. Of the seven stages before tuning in the full study of
Tinybabel, on one thread, the real times were 0.54 to 1.75 of it, their sum 0.78 (2026-11-21)."""
FACTOR_MEASURED = 1.5
"""The same of a stage that was measured on this model: the rest is what the machine does besides."""


@dataclass(frozen=True)
class Work:
    """What a stage has to do for one model."""

    cells: int
    read: float
    """Tokens that the model reads."""
    steps: float = 0.0
    """Steps of generation, each of one batch."""
    trained: float = 0.0
    """Tokens that it is trained on."""

    def seconds(self, model: Size) -> float | None:
        """Time on this machine; None for a model of unknown size."""
        if model.parameters is None:
            return None
        per_token = 2 * model.parameters / flops()
        return (self.read + 3 * self.trained) * per_token + self.steps * max(_STEP, 8 * per_token)


@dataclass(frozen=True)
class Size:
    """Of a model, as far as it is known without loading it."""

    parameters: float | None
    layers: int | None
    bytes: float | None
    """Of its weights, in the asked dtype."""

    @classmethod
    def of(cls, model: Model) -> Size:
        """From a folder's files, or for a Hub name from the table of the paper's models. No network.

        Raises:
            DataError: the folder's config.json is no JSON.
        """
        width = {"float32": 4, "float64": 8}.get(model.dtype, 2)
        if model.name in SIZES:
            parameters, layers = SIZES[model.name]
            return cls(parameters, layers, parameters * width)
        folder = tinybabel.MODEL if model.name == tinybabel.NAME else Path(model.name).expanduser()
        if not (folder / "config.json").is_file():
            return cls(None, None, None)
        config = read_json(folder / "config.json")
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        kept = 4 if str(config.get("dtype", config.get("torch_dtype"))) == "float32" else 2
        depth = config.get("num_hidden_layers", config.get("n_layer"))
        used = kept if model.dtype == "auto" else width
        return cls(stored / kept, depth if isinstance(depth, int) else None, stored / kept * used)


@dataclass(frozen=True)
class Estimate:
    """Of a stage on a model."""

    stage: str
    cells: int
    seconds: float | None
    """None for a model of unknown size."""
    factor: float
    """The time should lie between `seconds / factor` and `seconds * factor`."""

    def as_json(self) -> dict[str, Any]:
        """With the ends of the range, `low` and `high`, in seconds."""
        low, high = (None if self.seconds is None else self.seconds * by for by in (1 / self.factor, self.factor))
        return {"stage": self.stage, "cells": self.cells, "seconds": self.seconds, "low": low, "high": high}


def estimates(
    study: Study, spec: Model, stages: Sequence[str], measured: Mapping[str, tuple[Work, float]]
) -> list[Estimate]:
    """How long stages take for a model.

    Args:
        study: what is asked.
        spec: the model.
        stages: of the study.
        measured: what stages had to do when they ran on this model, and the seconds that this took. A stage that is
            not among them is taken to be as much faster or slower than its model's size tells as those together were.
    """
    size = Size.of(spec)
    took = {stage: (each.seconds(size) or 0.0, seconds) for stage, (each, seconds) in measured.items()}
    planned = sum(each for each, _ in took.values())
    pace = sum(seconds for _, seconds in took.values()) / planned if planned else 1.0
    found = []
    for stage in stages:
        todo = work(study, stage)
        seconds, factor = todo.seconds(size), FACTOR
        if seconds is not None:
            before, real = took.get(stage, (0.0, 0.0))
            seconds, factor = (real * seconds / before, FACTOR_MEASURED) if before else (pace * seconds, FACTOR)
        found.append(Estimate(stage, todo.cells, seconds, factor))
    return found


@cache
def flops() -> float:
    """Floating-point operations that this machine does in a second, about: two fifths of those of a matrix product."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    one = torch.ones(1024, 1024, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    product = one @ one
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.1:
        product, count = one @ one, count + 1
    if product.is_cuda:
        torch.cuda.synchronize()
    return 0.4 * 2 * 1024**3 * count / (time.perf_counter() - started)


def work(study: Study, stage: str) -> Work:
    """What a stage has to do for each model."""
    return {
        "detect": _detect, "select": lambda _: Work(1, 0), "lens": _lens, "search": _search, "damage": _damage,
        "grid": _grid, "evaluation": _evaluation, "steering": _steering, "tuning": _tuning,
    }[stage](study)  # fmt: skip


def _detect(study: Study) -> Work:
    asked = study.detect.documents
    documents = sum(asked.values()) if isinstance(asked, dict) else asked * len(study.languages)
    return Work(len(study.languages), 1.5 * documents * study.detect.max_tokens)


def _lens(study: Study) -> Work:
    prompts = study.lens.documents * len(study.languages)
    return Work(1, 6 * prompts * study.lens.max_tokens, prompts * study.lens.new_tokens / 8)


def _search(study: Study) -> Work:
    cells = 1 + len(study.search.understand) * len(study.search.generate)
    return Work(cells, 2.0 * cells * study.search.texts * study.search.max_tokens)


def _damage(study: Study) -> Work:
    kinds, languages = 1 + len(study.select.compare) + study.damage.controls, len(study.languages)
    return Work(kinds, float(kinds * (languages + 1) * languages * study.damage.texts * study.damage.max_tokens))


def _grid(study: Study) -> Work:
    options, total = study.grid, Work(0, 0)
    languages = len(options.languages or study.languages) - (options.languages is None)
    for task, parts in options.tasks.items():
        cells = languages * (1 + len(parts) * (1 + options.controls))
        total = _plus(total, _answers(task, 2 * cells, options.limit, options.batch_size))
    return total


def _evaluation(study: Study) -> Work:
    options, total = study.evaluation, Work(0, 0)
    for task in options.tasks:
        cells = 2 * len(options.languages or study.languages)
        total = _plus(total, _answers(task, cells, options.limit, options.batch_size))
    return total


def _steering(study: Study) -> Work:
    options = study.steering
    cells = len(options.to) * (1 + 2 * len(options.factors) + len(options.alphas))
    return Work(cells, 100.0 * 256 * len(study.languages), cells * options.new_tokens)


def _tuning(study: Study) -> Work:
    options, trained, cells = study.tuning, 0.0, 0
    trainings = len(options.learning_rates or (0, 0, 0)) - 1 + len(options.seeds)
    for _, _, documents in product(options.languages, options.arms, options.documents):
        trained += trainings * documents * options.max_tokens * options.epochs
        cells += trainings
    measured = (2.0 + options.evaluations) * cells * options.texts * options.max_tokens + 2.0 * cells * len(
        study.languages
    ) * options.texts * 256
    total = Work(cells, measured, 0, trained)
    for task in options.tasks:
        answered = _answers(task, 2 * cells, options.limit, 8)
        total = Work(cells, total.read + answered.read, total.steps + answered.steps, total.trained)
    return total


def _answers(task: str, cells: int, limit: int | dict[str, int] | None, batch: int) -> Work:
    items, prompt, answer = ITEMS.get(benchmark(task), TINYBABEL_ITEMS)
    most = limit.get(task) if isinstance(limit, dict) else limit
    items = min(items, most or items)
    return Work(cells, float(cells * items * prompt), cells * items * answer / batch)


def _plus(one: Work, other: Work) -> Work:
    return Work(one.cells + other.cells, one.read + other.read, one.steps + other.steps, one.trained + other.trained)
