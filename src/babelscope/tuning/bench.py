"""An experiment on the arms of tuning, run cell by cell: trained, scored, kept, never done twice."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from babelscope.artifacts import digest, read_json, write_json
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.detection.atlas import Atlas
from babelscope.editing.controls import controls
from babelscope.evaluation.evaluate import evaluate, neurons_digest
from babelscope.evaluation.likelihood import likelihood
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import ModelIdentity, load_and_place, load_model
from babelscope.neurons.neuronset import NeuronSet
from babelscope.tuning.adapter import Columns, locate
from babelscope.tuning.experiment import Cell, Experiment, as_json
from babelscope.tuning.train import HALVINGS, HISTORY, Recipe, pack, tune
from babelscope.tuning.verdict import Comparison, Run, Scores, compare

CELLS, RESULTS, TABLE = "cells", "experiment.json", "experiment.csv"
"""Names in the folder of an experiment."""


def run_experiment(
    experiment: Experiment, out: str | Path, report: Callable[[str], None] = lambda line: None
) -> Comparison:
    """Trains and measures what is missing in the folder.

    Args:
        experiment: what to compare.
        out: the folder: a folder per training in `cells`, the table in experiment.csv and experiment.json. The same
            call goes on where it was stopped and gives the same numbers; another experiment in the same folder uses
            the cells that both have.
        report: is told what was done and about how long the rest will take.

    Raises:
        ConfigError, DataError, ProvenanceError, NumericsError: as `tune` and `evaluate`.
    """
    bench = _Bench(experiment, Path(out), report)
    base = bench.base()
    runs: dict[tuple[str, int, str], list[Run]] = {}
    for group in experiment.groups():
        tried = {cell: bench.train(cell) for cell in experiment.searched(*group)}
        chosen = min(tried, key=lambda cell: tried[cell])
        for cell in experiment.repeated(chosen):
            bench.train(cell)
        edge = len(tried) > 1 and chosen.rate in (
            min(experiment.rates_of(group[2])),
            max(experiment.rates_of(group[2])),
        )
        runs[group] = [bench.scored(cell, edge) for cell in experiment.repeated(chosen)]
    found = compare(base, runs)
    write_json(Path(out) / RESULTS, {"experiment": as_json(experiment), **found.as_json()})
    found.write_csv(Path(out) / TABLE)
    return found


def plan_experiment(experiment: Experiment) -> dict[str, Any]:
    """What `run_experiment` would do, and about how long it would take here; writes nothing.

    Returns:
        `cells`: those that choose rates, as text; `trainings` and `scored`: how many in all; `steps`: of all trainings
        without early stopping; `seconds`: of these steps and of measuring bits per byte, from one step of full tuning
        (the dearest arm), timed here, and documents as long as the first ones; `prompts`: of the tasks, not in
        `seconds`.
    """
    import torch

    bench = _Bench(experiment, Path(), lambda line: None)
    plan = Recipe(**experiment.recipe)
    groups, repeats = experiment.groups(), len(experiment.seeds)
    cells = [cell for group in groups for cell in experiment.searched(*group)]
    further = [(*group, repeats * (experiment.random if group[2] == "random" else 1)) for group in groups]
    scored = sum(count for *_, count in further)
    blocks = {}  # of one document
    for language in experiment.languages:
        texts = [each.text for each in itertools.islice(bench.sources["corpus"][language], 50)]
        blocks[language] = len(pack(bench.tokenizer, texts, plan.max_tokens)) / len(texts)
    steps = evaluated = 0
    for language, documents, arm, count in further:
        trainings = len(experiment.rates_of(arm)) + count - 1
        read = blocks[language] * documents * (1 if experiment.keep is None else 1 + plan.keep_share)
        steps += trainings * math.ceil(math.ceil(read / plan.batch_size) * plan.epochs)
        held_out = len(experiment.measured) if bench.restrained else 1
        evaluations = plan.evaluations + 2 + HALVINGS * bench.restrained
        evaluated += experiment.texts * (trainings * held_out * evaluations + count * len(experiment.measured))
    model = bench.model().train().requires_grad_(True)
    ids = torch.randint(0, model.config.vocab_size, (plan.batch_size, plan.max_tokens), device=model.device)
    for _ in range(2):
        started = time.monotonic()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        step = time.monotonic() - started
    mean = sum(blocks.values()) / len(blocks) / plan.batch_size  # of a step, for a text as long as a document
    return {
        "cells": [str(cell) for cell in cells],
        "trainings": len(cells) + scored - len(groups),
        "scored": scored,
        "steps": steps,
        "seconds": round(step * (steps + evaluated * mean / 3)),
        "prompts": {task: experiment.limit or "all" for task in experiment.tasks},
    }


def lora(model: Any, neurons: NeuronSet) -> Any:
    """LoRA on the modules that hold the neurons, of the rank whose number of parameters is nearest to theirs."""
    from peft import LoraConfig

    modules = locate(Anatomy(model, tuple(neurons.widths), check=False), neurons)
    shapes = {name: model.get_submodule(name).weight.shape for name in modules}
    wanted = sum(len(index) * shapes[name][0 if kind is Columns else 1] for name, (kind, index) in modules.items())
    rank = max(1, round(wanted / sum(map(sum, shapes.values()))))
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(modules), task_type="CAUSAL_LM")


class _Bench:
    """What all cells share."""

    def __init__(self, experiment: Experiment, out: Path, report: Callable[[str], None]) -> None:
        self.experiment, self.out, self.report = experiment, out, report
        named = {
            "corpus": experiment.languages, "test": experiment.measured, "keep": experiment.measured,
            "validation": experiment.measured if self.restrained else experiment.languages,
        }  # fmt: skip
        self.sources: dict[str, dict[str, Corpus]] = {
            kind: {code: open_corpus(getattr(experiment, kind).replace("{}", code)) for code in codes}
            for kind, codes in named.items()
            if getattr(experiment, kind) is not None
        }
        self.identities = {
            kind: {code: corpus.identity() for code, corpus in corpora.items()}
            for kind, corpora in self.sources.items()
        }
        model, self.tokenizer = load_model(experiment.model, dtype=experiment.dtype)
        self.fingerprint = ModelIdentity.of(model).fingerprint
        self.sets = {code: dict(self._sets(code)) for code in experiment.languages}
        for neurons in (each for sets in self.sets.values() for each in sets.values()):
            neurons.check(Anatomy(model, tuple(neurons.widths), check=False))
        self.texts = {
            code: [each.text for each in itertools.islice((d for d in corpus if d.text.strip()), experiment.texts)]
            for code, corpus in self.sources["test"].items()
        }
        self.left = sum(
            len(experiment.rates_of(arm)) + (experiment.random if arm == "random" else 1) * len(experiment.seeds) - 1
            for _, _, arm in experiment.groups()
        )
        self.spent: list[float] = []
        self.told: set[Cell] = set()

    def _sets(self, language: str) -> Iterator[tuple[str, NeuronSet]]:
        experiment = self.experiment
        for name, told in experiment.neurons.items():
            if isinstance(told, str):
                yield name, NeuronSet.load(told.replace("{}", language))
            else:
                yield name, Atlas.load(str(experiment.detection)).select(language, **told)

    def model(self) -> Any:
        """The model as it was loaded, fresh."""
        return load_and_place(self.experiment.model, dtype=self.experiment.dtype)[0]

    def neurons(self, cell: Cell) -> NeuronSet | None:
        """What an arm trains, or what LoRA goes by."""
        sets = self.sets[cell.language]
        first = next(iter(sets.values()))
        if cell.arm == "random":
            return controls(first, self.experiment.random)[cell.draw]
        return None if cell.arm == "full" else first if cell.arm == "lora" else sets[cell.arm]

    def folder(self, cell: Cell) -> Path:
        """Of a cell, named by all that decides it."""
        kind = cell.arm if cell.arm in ("lora", "full") else "neurons"
        decisive: list[Any] = [
            self.fingerprint, self.experiment.dtype, kind, neurons_digest(self.neurons(cell)),
            self.identities["corpus"][cell.language],
            {code: self.identities["validation"][code] for code in self._held_out(cell.language)},
            self.experiment.texts, vars(Recipe(**self.experiment.recipe)), cell.documents, cell.rate, cell.seed,
        ]  # fmt: skip
        if "keep" in self.sources:
            decisive.append([self.identities["keep"][code] for code in self._keep(cell.language)])
        return self.out / CELLS / f"{cell.language}-{cell.documents}-{kind}-{digest(decisive)}"

    def _keep(self, target: str) -> dict[str, Corpus]:
        """What the other languages are kept by, in an order that is the same in every experiment."""
        return {code: corpus for code, corpus in sorted(self.sources.get("keep", {}).items()) if code != target}

    @property
    def restrained(self) -> bool:
        """Whether the validation texts of all languages are measured: they decide what is left of the changes."""
        return self.experiment.recipe.get("others_at_most") is not None

    def _held_out(self, target: str) -> dict[str, Corpus]:
        """Texts of the target, and of the others if they decide too."""
        validation = self.sources["validation"]
        return validation if self.restrained else {target: validation[target]}

    def tuned(self, cell: Cell) -> Any:
        """The result of the cell's training, which is read if it is there."""
        model, neurons = self.model(), self.neurons(cell)
        what = lora(model, neurons) if cell.arm == "lora" and neurons is not None else neurons
        language, experiment = cell.language, self.experiment
        return tune(
            model, self.tokenizer, what, self.sources["corpus"][language], language=language,
            held_out=self._held_out(language), held_out_documents=experiment.texts,
            keep=self._keep(language), documents=cell.documents, learning_rate=cell.rate, seed=cell.seed,
            run_dir=self.folder(cell) / "training", **experiment.recipe,
        )  # fmt: skip

    def train(self, cell: Cell) -> float:
        """Validation bits per byte after the training, which is done if it was not."""
        record = self.folder(cell) / "training" / HISTORY
        if not record.exists():
            started = time.monotonic()
            self.tuned(cell)
            self.spent.append(time.monotonic() - started)
        told = read_json(record)
        before, after = told["before"][cell.language], told["after"][cell.language]
        if cell not in self.told:
            self.told.add(cell)
            self.left -= 1
            wait = f"; about {_duration(self.left * sum(self.spent) / len(self.spent))} left" if self.spent else ""
            self.report(f"{cell}: {before:.4f} -> {after:.4f} bits per byte on validation{wait}")
        return float(after)

    def base(self) -> Scores:
        """Of the untouched model, the tasks in all targets."""
        return self._scores(self.out / CELLS / f"base-{self.fingerprint[:16]}", self.experiment.languages, self.model)

    def scored(self, cell: Cell, edge: bool) -> Run:
        """The scores of a cell."""
        folder = self.folder(cell)
        scores = self._scores(folder, (cell.language,), lambda: self.tuned(cell).merge())
        return Run(cell.rate, edge, int(read_json(folder / "training" / HISTORY)["parameters"]), scores)

    def _scores(self, folder: Path, languages: tuple[str, ...], model: Callable[[], Any]) -> Scores:
        experiment = self.experiment
        named = digest([self.identities["test"], experiment.texts, experiment.tasks, experiment.limit, experiment.data,
                        experiment.recipe.get("max_tokens"), languages])  # fmt: skip
        path = folder / f"scores-{named}.json"
        if not path.exists():
            write_json(path, self._measured(model(), languages, folder / f"evaluation-{named}"))
        return Scores(**read_json(path))

    def _measured(self, model: Any, languages: tuple[str, ...], folder: Path) -> dict[str, Any]:
        experiment = self.experiment
        length = Recipe(**experiment.recipe).max_tokens
        texts = {}
        for code, held in self.texts.items():
            found = likelihood(model, self.tokenizer, held, max_tokens=length)
            texts[code] = {"values": (found.nats / math.log(2)).tolist(), "weights": found.n_bytes.tolist()}
        tasks: dict[str, dict[str, Any]] = {code: {} for code in languages}
        if experiment.tasks:
            found_tasks = evaluate(
                model, self.tokenizer, experiment.tasks, languages, limit=experiment.limit, data=experiment.data,
                run_dir=folder,
            )  # fmt: skip
            for score in found_tasks.scores:  # the first metric of a task
                values = {"values": list(score.items), "weights": [1] * len(score.items)}
                tasks[score.language].setdefault(score.task, values)
        return {"texts": texts, "tasks": tasks}


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
