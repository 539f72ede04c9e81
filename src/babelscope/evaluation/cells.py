"""The cells of a grid: a model under one edit, scored on tasks or texts in some languages; measured once and kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from babelscope.artifacts import digest
from babelscope.cells import CellStore
from babelscope.editing.edits import ablate, intact_fingerprint
from babelscope.editing.operations import Operation
from babelscope.errors import ConfigError, NumericsError
from babelscope.evaluation.evaluate import Evaluation, Exam, neurons_digest, tell
from babelscope.evaluation.likelihood import likelihood
from babelscope.evaluation.means import means_digest
from babelscope.neurons.neuronset import NeuronSet

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas
    from babelscope.neurons.statistics import Statistics

BITS = "bits_per_byte"
"""Task and metric of held-out texts: the only metric that is better when it is lower."""
MAX_TOKENS = 256
"""Held-out texts are cut to this length."""

Place = tuple[str, str, str]
"""Task, language, metric."""
Scores = dict[Place, tuple[list[float], int | None]]
"""[n] by item; and how many answers were still going on at the limit, None where that was not counted."""


@dataclass(frozen=True, eq=False)
class Cell:
    """What is measured together, in one batch where it can be."""

    what: Literal["tasks", "texts"]
    languages: tuple[str, ...]
    neurons: NeuronSet | None = None
    """Switched off or changed; None or no unit: the model as it is."""
    op: str = "zero"
    """`zero`, `scale=X`, `clamp=X` or `mean`."""


class Cells:
    """Measures cells and keeps them by their content, so that none is measured twice in a folder.

    Args:
        exam: the tasks, with the model and its tokenizer.
        texts: held-out texts by language; empty: none.
        path: the file of the cells; a half-written last line is forgotten.
        reference: where `mean` takes the units' values from.
        means: what `read_means` made of it.
        force: accept neurons, or a reference, of another model of the same shape.
    """

    def __init__(
        self,
        exam: Exam,
        texts: Mapping[str, Sequence[str]],
        path: Path,
        *,
        reference: Atlas | Statistics | None = None,
        means: Operation | None = None,
        force: bool = False,
    ) -> None:
        self._exam, self._texts, self._force = exam, texts, force
        self._reference, self._means = reference, means
        self._kept = CellStore(path)
        self._keys: dict[Cell, str] = {}

    def key(self, cell: Cell) -> str:
        """Of everything that decides the cell's numbers; made once, for it reads texts and weights."""
        if cell not in self._keys:
            self._keys[cell] = self._key(cell)
        return self._keys[cell]

    def _key(self, cell: Cell) -> str:
        edit = None
        if cell.neurons:
            edit = [cell.op, neurons_digest(cell.neurons)]
            if cell.op == "mean":
                assert self._means is not None
                edit.append(means_digest(self._means, cell.neurons))
        if cell.what == "tasks":
            asked = [each.name for each in self._exam.asked if each.language in cell.languages]
            settings: Any = {**self._exam.settings, "tasks": asked}
        else:
            texts = {language: list(self._texts[language]) for language in cell.languages}
            settings = [digest(texts), MAX_TOKENS, intact_fingerprint(self._exam.model), str(self._exam.model.dtype)]
        return digest([cell.what, cell.languages, edit, settings])

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def scores(self, cells: Iterable[Cell]) -> Scores:
        """What was measured in some cells of one edit; endless answers count on tasks, not in earlier versions."""
        return {
            (task, language, metric): (items, count[0] if count else None)
            for cell in cells
            for task, language, metric, items, *count in self._kept[self.key(cell)]["scores"]
        }

    def measure(self, cell: Cell) -> None:
        """Measures a cell and keeps it, all of it or nothing.

        Raises: as `evaluate`, `ablate` and `likelihood`.
        """
        edit = operation(cell.op, self._reference)
        answers: dict[str, list[str]] = {}
        if cell.what == "tasks":
            found = self._exam.take(cell.neurons or None, languages=cell.languages, force=self._force, **edit)
            if not cell.neurons:
                tell(found)
            scores = [
                [score.task, score.language, score.metric, list(score.items), score.endless] for score in found.scores
            ]
            answers = _generated(found)
        elif cell.neurons:
            with ablate(self._exam.model, cell.neurons, force=self._force, **edit):
                scores = self._bits(cell.languages)
        else:
            scores = self._bits(cell.languages)
        about = {"op": cell.op, "neurons": len(cell.neurons or ()), "languages": cell.languages}
        self._kept.add({self.key(cell): {**about, "scores": scores, "answers": answers}})

    def _bits(self, languages: Sequence[str]) -> list[list[Any]]:
        """Every text's bits over the mean bytes of a text: their mean is bits per byte over all texts."""
        found = []
        for language in languages:
            measured = likelihood(self._exam.model, self._exam.tokenizer, self._texts[language], max_tokens=MAX_TOKENS)
            if np.isnan(measured.nats).any():
                raise NumericsError(
                    f"the model's likelihood of texts in {language} is NaN: bits per byte are not defined. Half "
                    "precision overflows; load the model with dtype=float32, or take a smaller factor or value."
                )
            items = measured.nats / math.log(2) / measured.n_bytes.mean()
            found.append([BITS, language, BITS, items.tolist()])
        return found


def operation(text: str, reference: Atlas | Statistics | None = None) -> dict[str, Any]:
    """What `ablate` takes: `zero`, `scale=0.5` (a factor), `clamp=0` (a value) or `mean` (of the reference).

    Raises:
        ConfigError: none of these.
    """
    if text == "mean":
        return {"op": text, "reference": reference}
    name, _, number = text.partition("=")
    try:
        given = float(number) if number else None
    except ValueError:
        given = math.nan
    if (name == "zero" and not number) or (name in ("scale", "clamp") and given is not None and math.isfinite(given)):
        return {"op": name, "factor": given if name == "scale" else None, "value": given if name == "clamp" else None}
    raise ConfigError(f"wanted an operation such as zero, scale=0.5, clamp=0 or mean, found {text!r}. Correct it.")


def _generated(found: Evaluation) -> dict[str, list[str]]:
    """What the model wrote, by task in the harness: to look at, and nothing is computed from it."""
    return {
        name: [sample["resps"][0][0] for sample in samples]
        for name, samples in found.results["samples"].items()
        if samples and isinstance(samples[0]["resps"][0][0], str)
    }
