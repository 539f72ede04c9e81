"""About how long a study takes: from its settings and the model's size, or from what its stages took before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from babelscope.stages.contract import STAGES, Cost
from babelscope.stages.size import Size
from babelscope.stages.study import Model, Study

_STEP = 0.004
"""Seconds that one step of generation takes at least, whatever the model's size."""
FACTOR = 3.0
"""How far off a time from size alone may be, either way. Of the seven stages before tuning in the full study of
Tinybabel, on one thread, the real times were 0.54 to 1.75 of it, their sum 0.78 (2026-11-21)."""
FACTOR_MEASURED = 1.5
"""The same of a stage that was measured on this model: the rest is what the machine does besides."""


def seconds_of(cost: Cost, model: Size) -> float | None:
    """Time on this machine; None for a model of unknown size."""
    if model.parameters is None:
        return None
    per_token = 2 * model.parameters / flops()
    return (cost.read + 3 * cost.trained) * per_token + cost.steps * max(_STEP, 8 * per_token)


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
    study: Study, spec: Model, stages: Sequence[str], measured: Mapping[str, tuple[Cost, float]]
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
    took = {stage: (seconds_of(each, size) or 0.0, seconds) for stage, (each, seconds) in measured.items()}
    planned = sum(each for each, _ in took.values())
    pace = sum(seconds for _, seconds in took.values()) / planned if planned else 1.0
    found = []
    for stage in stages:
        todo = work(study, stage)
        seconds, factor = seconds_of(todo, size), FACTOR
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


def work(study: Study, stage: str) -> Cost:
    """The work of a stage for each model."""
    return STAGES[stage]().cost(study.sections[stage], study)
