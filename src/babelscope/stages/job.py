"""What a stage works with: the study, a model that is loaded when first used, a folder of its own, and cells."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.artifacts import finite, read_json, write_json
from babelscope.cells import CellStore
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.languages import get_language
from babelscope.options import Refused
from babelscope.progress import Task, task
from babelscope.report import tables
from babelscope.stages.size import Size
from babelscope.stages.study import USUAL, Model, Split, Study

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas
    from babelscope.evaluation.inference import Interval
    from babelscope.neurons.neuronset import NeuronSet


CELLS, FOUND = "cells.jsonl", "found.json"
RUN = "run"
"""The folder of the detection in that of its stage."""
BITS = "change in bits per byte"
"""What damage and tuning are measured in, as axes and captions say it."""


@dataclass
class Loader:
    """A model and its tokenizer, loaded once, when a stage first asks."""

    spec: Model

    def fresh(self) -> tuple[Any, Any]:
        """A newly loaded model: for training, which changes it."""
        from babelscope.models.load import load_and_place

        names = ("dtype", "device", "device_map", "revision", "trust_remote_code", "strip_prefix", "adapter")
        with task(f"loading {self.spec.name}"):
            return load_and_place(self.spec.name, **{name: getattr(self.spec, name) for name in names})

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model as all stages but tuning use it: they leave it as it was."""
        return self.fresh()


@dataclass
class Job:
    """One stage on one model."""

    study: Study
    loader: Loader
    stage: str
    folder: Path
    """Of the stage; beside it lie those of the other stages of the model."""
    task: Task
    """The progress of the stage."""

    @property
    def done(self) -> int:
        """The cells that are done."""
        return int(self.task.done)

    @property
    def model(self) -> Any:
        """The model."""
        return self.loader.loaded[0]

    @property
    def tokenizer(self) -> Any:
        """Of the model."""
        return self.loader.loaded[1]

    @property
    def others(self) -> tuple[str, ...]:
        """The languages but English."""
        return tuple(code for code in self.study.languages if code != self.study.english)

    def start(self, cells: int) -> None:
        """Says how many cells there will be."""
        self.task.total = cells
        self.task.reach(0)

    @cached_property
    def store(self) -> CellStore:
        """The cells of the stage: what a kill can't take back."""
        return CellStore(self.folder / CELLS)

    def cell(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The content of a cell, kept or computed now. NaN becomes null."""
        if name not in self.store:
            self.task.reach(self.task.done, name)
        content = self.store.get(name, lambda: finite(compute()))
        self.passed(name)
        return content

    def leave(self, **content: Any) -> None:
        """Writes what other stages read of this one: plain data."""
        write_json(self.folder / FOUND, finite(content))

    def found(self, stage: str) -> dict[str, Any]:
        """What another stage left to be read."""
        return read_json(self.folder.parent / stage / FOUND)

    def passed(self, name: str) -> None:
        """A cell is done."""
        self.task.advance(what=name)

    def corpus(self, kind: str, code: str) -> Corpus:
        """A language's texts of one of the kinds that the stage reads."""
        return open_corpus(self.study.texts(self.stage)[kind][code], self.study.field, self.study.seed)

    def texts(self, kind: str, count: int, languages: Iterable[str] | None = None) -> dict[str, list[str]]:
        """The first so many texts that hold something, by language."""
        return {
            code: list(itertools.islice((each.text for each in self.corpus(kind, code) if each.text.strip()), count))
            for code in languages or self.study.languages
        }

    @cached_property
    def atlas(self) -> Atlas:
        """The atlas that `detect` made, or that the study gives."""
        from babelscope.detection.atlas import Atlas

        if "detect" in self.study.given:
            return Atlas.load(self.study.given["detect"])
        return Atlas.load(self.folder.parent / "detect" / RUN)

    @cached_property
    def sets(self) -> dict[str, NeuronSet]:
        """The sets that `select` chose, or that the study gives, by language."""
        from babelscope.neurons.files import adopted, load_sets

        sets = load_sets(self.study.given.get("select", [self.folder.parent / "select"]))
        sets = {code: sets[code] for code in self.study.languages if code in sets}
        return {code: adopted(each, self.model) for code, each in sets.items()} if self.study.force else sets


def spread(values: Iterable[float]) -> Interval:
    """The mean with its 95 % bootstrap interval; a single value has none."""
    from babelscope.evaluation.inference import bootstrap_mean

    return bootstrap_mean(list(values))


def between(interval: Interval) -> str:
    """`0.120 [0.090, 0.150]`, for a sentence; without bounds where they are not finite."""
    low, high = finite([interval.low, interval.high])
    return tables.between(interval.value, low, high)


def named(code: str) -> str:
    """A language's English name."""
    return get_language(code).name


def portable(content: Any) -> Any:
    """Settings without the folders of this machine: of an absolute path the name, or what begins with its `{}`."""
    if isinstance(content, Mapping):
        return {name: portable(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [portable(value) for value in content]
    if not (isinstance(content, str) and Path(content).is_absolute()):
        return content
    parts = Path(content).parts
    first = next((at for at, part in enumerate(parts) if "{}" in part), len(parts) - 1)
    return "/".join(parts[first:])


def by_rule(job: Job, rule: str) -> dict[str, NeuronSet]:
    """Sets of every language by another rule, of the same budget."""
    return {code: job.atlas.select(code, rule=rule, budget=job.study.select.budget) for code in job.study.languages}


def chosen_split(job: Job) -> Split:
    """The split that the study gives, the usual one, or the best that `search` found."""
    split = job.study.split
    if split == USUAL:
        from babelscope.editing.stages import Stages

        usual = Stages.usual(job.model.config.get_text_config().num_hidden_layers)
        return Split(understand=usual.understand, generate=usual.generate)
    return split if isinstance(split, Split) else Split(**job.found("search"))


# Checks that several stages make


def strangers(study: Study, key: str, chosen: Iterable[str]) -> Iterator[Refused]:
    """Languages of a setting that are none of the study's."""
    for code in itertools.islice((code for code in chosen if code not in study.languages), 1):
        wanted = f"some of the study's languages ({', '.join(study.languages)})"
        yield Refused(key, wanted, code, "Add it to languages, or drop it here.")


def beyond_the_layers(study: Study, key: str, understand: int, generate: int) -> Iterator[Refused]:
    """Splits that a model is too small for, where its size is known without loading it."""
    for model in study.models:
        layers = Size.of(model).layers
        if layers is not None and understand + generate > layers:
            wanted = f"stages within the {layers} layers of {model.name}"
            yield Refused(key, wanted, f"understand: {understand} and generate: {generate}", "Lower one of them.")
