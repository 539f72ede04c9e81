"""The ablation grid: parts of every language's set switched off, beside random sets, on that language and on English.

Every cell is a run of `evaluate` in a folder of its own, named after what it measures. So cells are computed once,
survive a kill, and are found again by another grid in the same folder.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from babelscope.artifacts import digest
from babelscope.editing.controls import controls
from babelscope.errors import ConfigError
from babelscope.evaluation.evaluate import Evaluation, Score, evaluate, neurons_digest
from babelscope.evaluation.inference import against_random, bootstrap_mean, holm, paired_permutation
from babelscope.models.anatomy import Anatomy
from babelscope.neurons.neuronset import NeuronSet

Part = Callable[[NeuronSet], NeuronSet]
"""What of a language's set is switched off: `lambda neurons: Stages(8, 2).of(neurons, "solve", "ffn")`."""

TABLE = "grid.csv"


@dataclass(frozen=True)
class Row:
    """One set switched off, one task in one language, one metric."""

    off: str
    """Language whose neurons were switched off."""
    part: str
    neurons: int
    task: str
    language: str
    """Of the items: `off`, or English."""
    metric: str
    items: int
    intact: float
    value: float
    change: float
    """`value` minus `intact`, on the same items."""
    low: float
    """Of the change: 95 % paired bootstrap interval over items."""
    high: float
    p: float
    """Two-sided, by permutation, that the items' scores did not change."""
    p_holm: float
    """The same, corrected for all rows of the grid."""
    random: float
    """Mean change by random sets of the same size in each slot and layer. NaN without controls, as the next two."""
    p_random: float
    """Share of sets, this one among them, that lower the score at least as much."""
    standardised: float
    """How many standard deviations of the random sets' changes lie between their mean and this loss."""
    delta: float
    """Change in English minus change in the language (paper, table 2 and after); NaN where English is the language."""


def ablation_grid(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, NeuronSet],
    tasks: Sequence[str],
    run_dir: str | Path,
    *,
    parts: Mapping[str, Part] | None = None,
    draws: int = 5,
    english: str = "en",
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Row]:
    """Switches off each part of each language's set and measures the language and English.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        sets: language -> its neurons.
        tasks: as of `evaluate`; each must have items in all these languages and in English.
        run_dir: the folder of the cells, and of the table, grid.csv. The same call again computes nothing twice.
        parts: name -> what of a set is switched off; None: all of it.
        draws: random controls per part; 0: none. Fewer than two can't be compared with.
        english: the language that should be spared.
        limit: the first so many items; they are the same in all cells.
        seed: of the controls.
        **options: anything else that `evaluate` takes.

    Returns:
        A row for each language, part, task, language of the items and metric.

    Raises:
        ProvenanceError: a set of another model, before anything runs.
        ConfigError: no set; one control.
    """
    if not sets:
        raise ConfigError("wanted sets by language, found none. Give at least one.")
    if draws == 1:
        raise ConfigError("wanted no random control, or at least two to compare with, found 1.")
    anatomy = Anatomy(model, check=False)
    for neurons in sets.values():
        neurons.check(anatomy)
    folder = Path(run_dir)
    measure = partial(_cell, folder / "cells", model, tokenizer, tasks, limit, options)
    chosen: Mapping[str, Part] = parts or {"all": lambda neurons: neurons}
    rows = []
    for off, whole in sets.items():
        languages = list(dict.fromkeys((off, english)))
        intact = measure(languages, None)
        for part, take in chosen.items():
            neurons = take(whole)
            after = measure(languages, neurons) if neurons else intact
            drawn = controls(neurons, draws, seed=seed) if neurons and draws else []
            random = [measure(languages, control) for control in drawn]
            rows += _rows(off, part, len(neurons), english, intact, after, random)
    corrected = holm([row.p for row in rows])
    table = [Row(**{**asdict(row), "p_holm": value}) for row, value in zip(rows, corrected, strict=True)]
    _write(folder / TABLE, table)
    return table


def _cell(
    folder: Path,
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    limit: int | None,
    options: Mapping[str, Any],
    languages: Sequence[str],
    neurons: NeuronSet | None,
) -> Evaluation:
    named = digest([list(tasks), list(languages), limit, {name: str(each) for name, each in options.items()}])
    place = folder / f"{named}-{neurons_digest(neurons) or 'intact'}"
    return evaluate(model, tokenizer, tasks, languages, neurons, limit, run_dir=place, **options)


def _rows(
    off: str, part: str, neurons: int, english: str, intact: Evaluation, after: Evaluation, random: list[Evaluation]
) -> list[Row]:
    changes = {_place(score): _change(intact, score) for score in after.scores}
    rows = []
    for score in after.scores:
        place, change = _place(score), changes[_place(score)]
        others = [_change(intact, each.score(*place)) for each in random]
        interval = bootstrap_mean(change)
        lost = [-float(other.mean()) for other in others]
        beside = against_random(-interval.value, lost) if lost else None
        before = intact.score(*place)
        in_english = changes.get((score.task, english, score.metric))
        spared = score.language != english and in_english is not None
        rows.append(
            Row(
                off, part, neurons, *place, len(score.items), before.interval.value, score.interval.value,
                interval.value, interval.low, interval.high, paired_permutation(before.items, score.items), math.nan,
                -float(np.mean(lost)) if lost else math.nan,
                beside.p if beside else math.nan, beside.standardised if beside else math.nan,
                float(in_english.mean()) - interval.value if spared and in_english is not None else math.nan,
            )
        )  # fmt: skip
    return rows


def _place(score: Score) -> tuple[str, str, str]:
    return score.task, score.language, score.metric


def _change(intact: Evaluation, score: Score) -> Any:
    """[n] by item."""
    return np.asarray(score.items) - np.asarray(intact.score(*_place(score)).items)


def _write(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in rows)
