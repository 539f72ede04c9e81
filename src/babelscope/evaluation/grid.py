"""The ablation grid: parts of every language's set switched off, beside random sets, on that language and on English.

Its cells are kept by their content in one folder. So they are computed once, survive a kill, and are found again by
another grid in the same folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from babelscope.artifacts import run_folder
from babelscope.editing.controls import controls
from babelscope.errors import ConfigError, ProvenanceError
from babelscope.evaluation.cells import BITS, Cell, Cells, Place, Scores, operation
from babelscope.evaluation.evaluate import Exam, neurons_digest
from babelscope.evaluation.inference import against_random, bootstrap_mean, holm, paired_p
from babelscope.evaluation.means import read_means
from babelscope.evaluation.parts import Part
from babelscope.evaluation.tables import write_csv
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import ModelIdentity
from babelscope.neurons.neuronset import NeuronSet
from babelscope.progress import task

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas
    from babelscope.neurons.statistics import Statistics

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
    endless: int | None = None
    """Answers with the set off that were still going on at the limit; None where that was not counted."""

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
    delta_random: float = math.nan
    """Mean delta of the random sets. NaN where they were not measured in English, as the next one."""
    p_delta: float = math.nan
    """Share of sets, this one among them, with a delta at least as large."""
    endless: float = math.nan
    """Answers with the set off that were still going on at the limit, and were taken as far as they went. NaN for
    texts, and for cells of versions that did not count them."""


@dataclass(frozen=True, eq=False)
class _Tested:
    """A part of a language's set under an operation, and the cells that measure it."""

    off: str
    part: str
    op: str
    neurons: NeuronSet
    own: dict[str, Cell]
    """By what is measured."""
    random: dict[str, list[list[Cell]]]
    """By what is measured: of each random set its cells."""


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
        ops: what is done to them: `zero`, `scale=0.5`, `clamp=0`, `mean`.
        reference: for `mean`, as of `ablate`; random sets take their own units' means.
        texts: held-out texts by language, to measure bits per byte on as well; None: none.
        draws: random controls per part, answering the tasks in the language; 0: none. Fewer than two can't be compared
            with.
        english_controls: they answer the tasks in English too, so that delta stands beside theirs. With 5 draws that
            makes the tasks take 1.7 times as long; cells measured without it stay as they are.
        text_draws: random controls per part, measured on the texts in the language and in English; as `draws`.
        english: the language that should be spared.
        limit: the first so many items; they are the same in all cells.
        seed: of the controls.
        force: accept neurons, or a reference, of another model of the same shape.
        **options: anything else that `Exam` takes.

    Raises:
        ProvenanceError: a set, or the reference, of another model.
        ConfigError: no set; one control; an unknown operation; `mean` without a reference that has means of all slots
            of the sets, or a reference without `mean`; a set too large for random ones beside it; a task of the
            harness's own, or without items in one of the languages; a language without texts.
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
        reference: Atlas | Statistics | None = None,
        texts: Mapping[str, Sequence[str]] | None = None,
        draws: int = 5,
        english_controls: bool = True,
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
        for code, neurons in sets.items():
            try:
                neurons.check(anatomy, force=force)
            except ProvenanceError as error:
                raise ProvenanceError(f"the set of {code}: {error}") from None
        if reference is not None and "mean" not in ops:
            raise ConfigError(
                f"wanted the operation mean beside a reference, found {', '.join(ops)}. Leave the reference out, or "
                "ask for mean."
            )
        means = read_means(model, reference, sets.values(), force=force) if "mean" in ops else None
        languages = tuple(dict.fromkeys((*sets, english)))
        self._exam = Exam(model, tokenizer, tasks, languages, limit, **options)
        if self._exam.theirs:
            raise ConfigError(
                f"wanted tasks in several languages, found {', '.join(self._exam.theirs)} of the harness's own. "
                "Measure those with evaluate."
            )
        lacking = [language for language in languages if texts and not texts.get(language)]
        if lacking:
            raise ConfigError(f"no held-out texts of {', '.join(lacking)}. Give some, or none of any language.")
        self.english, self._folder, self._texts = english, Path(run_dir) / CELLS, dict(texts or {})
        self._english_controls = english_controls
        self._edits: dict[str, Any] = {"reference": reference, "means": means, "force": force}
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
        try:
            drawn = controls(neurons, most, seed=seed) if neurons and most else []
        except ConfigError as error:
            raise ConfigError(
                f"no random sets for the part {part} of {off}: {str(error).partition('. ')[0]}. Take a smaller set, or "
                "ask for no random ones (draws=0 and text_draws=0; --task-controls 0 --controls 0)."
            ) from None
        own = {what: Cell(what, both, neurons, op) for what in draws}  # type: ignore[arg-type]
        # A cell for each language, so that a grid without controls in English has the same ones.
        asked: dict[str, list[tuple[str, ...]]] = {
            "tasks": [(code,) for code in (both if self._english_controls else (off,))],
            "texts": [both],
        }
        random = {
            what: [[Cell(what, codes, each, op) for codes in asked[what]] for each in drawn[:count]]  # type: ignore[arg-type]
            for what, count in draws.items()
        }
        return _Tested(off, part, op, neurons, own, random)

    def cells(self) -> list[Cell]:
        """All of them, the intact model's first; those that several parts need, once."""
        return self._cells

    @cached_property
    def _cells(self) -> list[Cell]:
        found = list(self._intact.values())
        for tested in self._tested:
            if tested.neurons:
                found += tested.own.values()
                found += [cell for several in tested.random.values() for cells in several for cell in cells]
        return _distinct(found)

    def english_controls(self) -> int:
        """How many of the cells are random sets that answer in English so that delta stands beside theirs."""
        return len(
            _distinct(
                cell
                for tested in self._tested
                if tested.neurons
                for cells in tested.random.get("tasks", ())
                for cell in cells[1:]
            )
        )

    def run(self, progress: Progress | None = None) -> list[Effect]:
        """Measures what is not measured yet.

        Args:
            progress: called after every cell.

        Raises:
            RunFolderError: the folder holds cells of another model, or another process is writing it.
            DataError: a dataset or a file that can't be read.
            NumericsError: a likelihood that is NaN; what was measured before is kept.
        """
        model = self._exam.model
        identity = ModelIdentity.of(model)
        asked = {"model": identity.fingerprint, "dtype": str(model.dtype)}
        with run_folder(self._folder, asked, {"command": "grid", "name": identity.name}) as folder:
            kept = Cells(self._exam, self._texts, folder / "cells.jsonl", **self._edits)
            keyed = {kept.key(cell): cell for cell in self.cells()}
            todo = {key: cell for key, cell in keyed.items() if key not in kept}
            with task("grid", len(keyed), "cells") as whole:
                whole.reach(len(keyed) - len(todo))
                for cell in todo.values():
                    kept.measure(cell)
                    whole.advance()
                    if progress is not None:
                        progress(int(whole.done), len(keyed), whole.left())
            return self._effects(kept)

    def _effects(self, kept: Cells) -> list[Effect]:
        intact = kept.scores(self._intact.values())
        effects = []
        for tested in self._tested:
            for what, cell in tested.own.items():
                after = kept.scores([cell]) if tested.neurons else _of_languages(intact, what, cell.languages)
                drawn = [kept.scores(cells) for cells in tested.random[what]]
                for place, (items, endless) in after.items():
                    beside = [each[place][0] for each in drawn if place in each]
                    effects.append(
                        Effect(
                            tested.off, tested.part, tested.op, len(tested.neurons), place, np.array(intact[place][0]),
                            np.array(items), np.array(beside).reshape(-1, len(items)), endless,
                        )
                    )  # fmt: skip
        return effects


def rows(effects: Sequence[Effect], english: str = "en") -> list[Row]:
    """The grid's table: a row for each effect, in their order."""
    in_english = {
        (each.off, each.part, each.op, each.place[0], each.place[2]): each
        for each in effects
        if each.place[1] == english
    }
    found = []
    for each in effects:
        task, language, metric = each.place
        change = bootstrap_mean(each.after - each.before)
        harm, random = float(each.harm.mean()), each.random_harm.mean(1)
        beside = against_random(harm, random) if len(random) else None
        spared = None if language == english else in_english.get((each.off, each.part, each.op, task, metric))
        delta, deltas = (math.nan, np.zeros(0)) if spared is None else delta_of(each, spared)
        found.append(
            Row(
                each.off, each.part, each.neurons, *each.place, len(each.before), float(each.before.mean()),
                float(each.after.mean()), change.value, change.low, change.high, paired_p(each.before, each.after),
                math.nan, float((each.random - each.before).mean()) if beside else math.nan,
                beside.p if beside else math.nan, beside.standardised if beside else math.nan,
                delta, each.op, len(random), float(deltas.mean()) if len(deltas) else math.nan,
                against_random(delta, deltas).p if len(deltas) else math.nan,
                math.nan if each.endless is None else each.endless,
            )
        )  # fmt: skip
    corrected = holm([row.p for row in found])
    return [replace(row, p_holm=value) for row, value in zip(found, corrected, strict=True)]


def delta_of(own: Effect, english: Effect) -> tuple[float, NDArray[np.float64]]:
    """Harm to a language minus harm to English by the same set, and by each random set, [D].

    D is 0 where not all random sets were measured in both.
    """
    drawn = [each.random_harm.mean(1) for each in (own, english)]
    paired = len(drawn[0]) == len(drawn[1])
    return float(own.harm.mean() - english.harm.mean()), drawn[0] - drawn[1] if paired else np.zeros(0)


def _distinct(cells: Iterable[Cell]) -> list[Cell]:
    known: dict[Any, Cell] = {}
    for cell in cells:
        edit = (cell.op, neurons_digest(cell.neurons)) if cell.neurons else None
        known.setdefault((cell.what, cell.languages, edit), cell)
    return list(known.values())


def _of_languages(intact: Scores, what: str, languages: Sequence[str]) -> Scores:
    return {
        place: each
        for place, each in intact.items()
        if place[1] in languages and (place[0] == BITS) == (what == "texts")
    }
