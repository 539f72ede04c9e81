"""The ablation grid: parts of every language's set switched off, beside random sets, on that language and on English.

Its cells are kept by their content in one folder. So they are computed once, survive a kill, and are found again by
another grid in the same folder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from babelscope.artifacts import run_folder
from babelscope.editing.controls import controls
from babelscope.errors import ConfigError
from babelscope.evaluation.cells import BITS, Cell, Cells, Items, Place, operation
from babelscope.evaluation.evaluate import Exam
from babelscope.evaluation.inference import against_random, bootstrap_mean, holm, paired_p
from babelscope.evaluation.parts import Part
from babelscope.evaluation.tables import write_csv
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import ModelIdentity
from babelscope.neurons.neuronset import NeuronSet

TABLE = "grid.csv"
CELLS = "cells"

Progress = Callable[[int, int, float | None], None]
"""Cells done, all cells, and seconds left (None: not known yet)."""


@dataclass(frozen=True, eq=False)
class Effect:
    """One set switched off, one task in one language, one metric, by item."""

    off: str
    part: str
    op: str
    neurons: int
    place: Place
    before: NDArray[np.float64]
    """[n] of the intact model."""
    after: NDArray[np.float64]
    """[n]"""
    random: NDArray[np.float64]
    """[D, n] with random sets of the same counts per slot and layer; D is 0 where none were measured."""

    @property
    def harm(self) -> NDArray[np.float64]:
        """[n] how much worse each item is: scores fall, bits rise."""
        return self._worse(self.after)

    @property
    def random_harm(self) -> NDArray[np.float64]:
        """[D, n], the same with the random sets."""
        return self._worse(self.random)

    def _worse(self, after: NDArray[np.float64]) -> NDArray[np.float64]:
        return after - self.before if self.place[0] == BITS else self.before - after


@dataclass(frozen=True)
class Row:
    """One set switched off, one task in one language, one metric."""

    off: str
    """Language whose neurons were switched off."""
    part: str
    neurons: int
    task: str
    """Or `bits_per_byte`, of held-out texts: less is better."""
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
    """Two-sided, that the items' scores did not change: McNemar's test for right and wrong, else by permutation."""
    p_holm: float
    """The same, corrected for all rows of the grid."""
    random: float
    """Mean change by random sets of the same size in each slot and layer. NaN without controls, as the next two."""
    p_random: float
    """Share of sets, this one among them, that do at least as much harm."""
    standardised: float
    """How many standard deviations of the random sets' changes lie between their mean and this harm."""
    delta: float
    """Harm to the language minus harm to English: in scores the change in English minus the change in the language
    (paper, table 2 and after). NaN where English is the language."""
    op: str = "zero"
    draws: int = 0
    """Random sets behind `random`."""


@dataclass(frozen=True, eq=False)
class _Tested:
    """A part of a language's set under an operation, and the cells that measure it."""

    off: str
    part: str
    op: str
    neurons: NeuronSet
    own: dict[str, Cell]
    """By what is measured."""
    random: dict[str, list[Cell]]


def ablation_grid(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, NeuronSet],
    tasks: Sequence[str],
    run_dir: str | Path,
    **options: Any,
) -> list[Row]:
    """Switches off each part of each language's set and measures the language and English.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        sets: language -> its neurons.
        tasks: as of `evaluate`; each must have items in all these languages and in English.
        run_dir: the folder of the cells, and of the table, grid.csv. The same call again computes nothing twice.
        **options: as of `Grid`.

    Returns:
        A row for each language, part, operation, task, language of the items and metric.

    Raises: as `Grid` and `Grid.run`.
    """
    grid = Grid(model, tokenizer, sets, tasks, run_dir, **options)
    table = rows(grid.run(), grid.english)
    write_csv(Path(run_dir) / TABLE, table)
    return table


class Grid:
    """The cells of a grid, laid out before anything runs.

    Args:
        model: as of `ablation_grid`, and the next four.
        tokenizer: of the model.
        sets: language -> its neurons.
        tasks: as of `evaluate`.
        run_dir: the cells are kept in a folder in it.
        parts: name -> what of a set is switched off; None: all of it.
        ops: what is done to them: `zero`, `scale=0.5`, `clamp=0`.
        texts: held-out texts by language, to measure bits per byte on as well; None: none.
        draws: random controls per part, answering the tasks in the language; 0: none. Fewer than two can't be compared
            with.
        text_draws: random controls per part, measured on the texts in the language and in English; as `draws`.
        english: the language that should be spared.
        limit: the first so many items; they are the same in all cells.
        seed: of the controls.
        force: accept neurons of another model of the same shape.
        **options: anything else that `Exam` takes.

    Raises:
        ProvenanceError: a set of another model.
        ConfigError: no set; one control; an unknown operation; a task of the harness's own, or without items in one of
            the languages; a language without texts.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sets: Mapping[str, NeuronSet],
        tasks: Sequence[str],
        run_dir: str | Path,
        *,
        parts: Mapping[str, Part] | None = None,
        ops: Sequence[str] = ("zero",),
        texts: Mapping[str, Sequence[str]] | None = None,
        draws: int = 5,
        text_draws: int = 20,
        english: str = "en",
        limit: int | None = None,
        seed: int = 0,
        force: bool = False,
        **options: Any,
    ) -> None:
        if not sets:
            raise ConfigError("wanted sets by language, found none. Give at least one.")
        if 1 in (draws, text_draws):
            raise ConfigError("wanted no random control, or at least two to compare with, found 1.")
        for op in ops:
            operation(op)
        anatomy = Anatomy(model, check=False)
        for neurons in sets.values():
            neurons.check(anatomy, force=force)
        languages = tuple(dict.fromkeys((*sets, english)))
        self._exam = Exam(model, tokenizer, tasks, languages, limit, **options)
        if self._exam.theirs:
            raise ConfigError(
                f"wanted tasks in several languages, found {', '.join(self._exam.theirs)} of the harness's own. "
                "Measure those with evaluate."
            )
        lacking = [language for language in languages if texts and language not in texts]
        if lacking:
            raise ConfigError(f"no held-out texts of {', '.join(lacking)}. Give some, or none of any language.")
        self.english, self._folder = english, Path(run_dir) / CELLS
        self._texts, self._force = dict(texts or {}), force
        measured = ("tasks", *(["texts"] if texts else []))
        self._intact = {(what, code): Cell(what, (code,)) for what in measured for code in languages}  # type: ignore[arg-type]
        wanted = {"tasks": draws, "texts": text_draws}
        self._tested = [
            self._test(off, part, op, take(whole), {what: wanted[what] for what in measured}, seed)
            for off, whole in sets.items()
            for op in ops
            for part, take in (parts or {"all": lambda neurons: neurons}).items()
        ]

    def _test(self, off: str, part: str, op: str, neurons: NeuronSet, draws: Mapping[str, int], seed: int) -> _Tested:
        both = tuple(dict.fromkeys((off, self.english)))
        most = max(draws.values())
        drawn = controls(neurons, most, seed=seed) if neurons and most else []
        own = {what: Cell(what, both, neurons, op) for what in draws}  # type: ignore[arg-type]
        random = {
            what: [Cell(what, (off,) if what == "tasks" else both, each, op) for each in drawn[:count]]  # type: ignore[arg-type]
            for what, count in draws.items()
        }
        return _Tested(off, part, op, neurons, own, random)

    def cells(self) -> list[Cell]:
        """All of them, the intact model's first; equal ones once for each part that needs them."""
        found = list(self._intact.values())
        for tested in self._tested:
            if tested.neurons:
                found += [*tested.own.values(), *(each for several in tested.random.values() for each in several)]
        return found

    def run(self, progress: Progress | None = None) -> list[Effect]:
        """Measures what is not measured yet.

        Args:
            progress: called after every cell.

        Raises:
            RunFolderError: the folder holds cells of another model, or another process is writing it.
            DataError: a dataset or a file that can't be read.
        """
        model = self._exam.model
        identity = ModelIdentity.of(model)
        asked = {"model": identity.fingerprint, "dtype": str(model.dtype)}
        with run_folder(self._folder, asked, {"command": "grid", "name": identity.name}) as folder:
            kept = Cells(self._exam, self._texts, folder / "cells.jsonl", force=self._force)
            keyed = {kept.key(cell): cell for cell in self.cells()}
            todo = {key: cell for key, cell in keyed.items() if key not in kept}
            started = time.monotonic()
            for number, cell in enumerate(todo.values(), 1):
                kept.measure(cell)
                if progress is not None:
                    left = (time.monotonic() - started) / number * (len(todo) - number)
                    progress(len(keyed) - len(todo) + number, len(keyed), left)
            return self._effects(kept)

    def _effects(self, kept: Cells) -> list[Effect]:
        intact: Items = {}
        for cell in self._intact.values():
            intact |= kept[kept.key(cell)]
        effects = []
        for tested in self._tested:
            for what, cell in tested.own.items():
                after = kept[kept.key(cell)] if tested.neurons else _of_languages(intact, what, cell.languages)
                drawn = [kept[kept.key(each)] for each in tested.random[what]]
                for place, items in after.items():
                    beside = [each[place] for each in drawn if place in each]
                    effects.append(
                        Effect(
                            tested.off, tested.part, tested.op, len(tested.neurons), place, np.array(intact[place]),
                            np.array(items), np.array(beside).reshape(-1, len(items)),
                        )
                    )  # fmt: skip
        return effects


def rows(effects: Sequence[Effect], english: str = "en") -> list[Row]:
    """The grid's table: a row for each effect, in their order."""
    in_english = {
        (each.off, each.part, each.op, each.place[0], each.place[2]): float(each.harm.mean())
        for each in effects
        if each.place[1] == english
    }
    found = []
    for each in effects:
        task, language, metric = each.place
        change = bootstrap_mean(each.after - each.before)
        harm, random = float(each.harm.mean()), each.random_harm.mean(1)
        beside = against_random(harm, random) if len(random) else None
        spared = in_english.get((each.off, each.part, each.op, task, metric), math.nan)
        found.append(
            Row(
                each.off, each.part, each.neurons, *each.place, len(each.before), float(each.before.mean()),
                float(each.after.mean()), change.value, change.low, change.high, paired_p(each.before, each.after),
                math.nan, float((each.random - each.before).mean()) if beside else math.nan,
                beside.p if beside else math.nan, beside.standardised if beside else math.nan,
                harm - spared if language != english else math.nan, each.op, len(random),
            )
        )  # fmt: skip
    corrected = holm([row.p for row in found])
    return [replace(row, p_holm=value) for row, value in zip(found, corrected, strict=True)]


def _of_languages(intact: Items, what: str, languages: Sequence[str]) -> Items:
    return {
        place: items
        for place, items in intact.items()
        if place[1] in languages and (place[0] == BITS) == (what == "texts")
    }
