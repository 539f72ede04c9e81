"""A comparison of trainings, run one by one: trained, scored, kept, never done twice (the paper's figure 4).

The learning rate of an arm is the best of several on validation texts, for each language and number of documents, found
with the first seed and draw; the other seeds and draws run at that rate alone. What is reported was measured on
held-out texts and tasks that chose nothing. A training is a folder named by all that decides it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from babelscope.artifacts import digest, read_json, write_json
from babelscope.corpora.sources import Corpus
from babelscope.editing.controls import controls
from babelscope.evaluation.evaluate import evaluate, neurons_digest
from babelscope.evaluation.likelihood import likelihood
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import ModelIdentity
from babelscope.neurons.neuronset import NeuronSet
from babelscope.progress import Task
from babelscope.tuning.adapter import locate
from babelscope.tuning.options import Training, TuningOptions
from babelscope.tuning.plan import trained_parameters
from babelscope.tuning.train import HISTORY, Recipe, tune
from babelscope.tuning.verdict import Comparison, Run, Scores, compare

CELLS = "cells"
"""The folder of the trainings."""


def lora(model: Any, neurons: NeuronSet) -> Any:
    """LoRA on the modules that hold the neurons, of the rank whose number of parameters is nearest to theirs."""
    from peft import LoraConfig

    modules = locate(Anatomy(model, tuple(neurons.widths), check=False), neurons)
    per_rank = sum(sum(model.get_submodule(name).weight.shape) for name in modules)
    rank = max(1, round(trained_parameters(model, neurons) / per_rank))
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(modules), task_type="CAUSAL_LM")


class Arms:
    """The trainings of a comparison in one folder.

    Args:
        options: which arms, on how many documents, with which recipe.
        load: loads the model anew, with its tokenizer; a training changes the model that it gets.
        sets: trained language -> arm -> its neurons; `neurons` among them, which random sets and LoRA go by.
        sources: `detect` (to train on), `validation`, `held_out` and, where languages are kept, `keep`: language ->
            texts.
        folder: where trainings are kept; the same comparison goes on where it stopped, and another one in the same
            folder uses the trainings that both have.
        task: counts the trainings as they are done.
        data: a folder with the benchmarks' files; None: the Hub.

    Raises:
        ProvenanceError: a set of another model.
    """

    def __init__(
        self,
        options: TuningOptions,
        load: Callable[[], tuple[Any, Any]],
        sets: Mapping[str, Mapping[str, NeuronSet]],
        sources: Mapping[str, Mapping[str, Corpus]],
        folder: Path,
        task: Task,
        data: str | None = None,
    ) -> None:
        self.options, self.load, self.sets, self.sources = options, load, sets, sources
        self.folder, self.task, self.data = folder, task, data
        self.recipe = options.recipe()
        self.identities = {
            kind: {code: corpus.identity() for code, corpus in corpora.items()} for kind, corpora in sources.items()
        }
        model, self.tokenizer = load()
        self.fingerprint, self.dtype = ModelIdentity.of(model).fingerprint, str(model.dtype)
        for neurons in (neurons for arms in sets.values() for neurons in arms.values()):
            neurons.check(Anatomy(model, tuple(neurons.widths), check=False))
        self.texts = {
            code: [text.text for text in itertools.islice((d for d in corpus if d.text.strip()), options.texts)]
            for code, corpus in sources["held_out"].items()
        }
        self.told: set[Training] = set()

    def run(self) -> Comparison:
        """Trains and measures what is missing in the folder.

        Raises:
            ConfigError, DataError, ProvenanceError, NumericsError: as `tune` and `evaluate`.
        """
        runs: dict[tuple[str, int, str], list[Run]] = {}
        base = self._scores(self.folder / CELLS / f"base-{self.fingerprint[:16]}", self.options.languages, self.fresh)
        for group in self.options.groups():
            tried = {training: self.train(training) for training in self.options.searched(*group)}
            chosen = min(tried, key=lambda training: tried[training])
            repeated = self.options.repeated(chosen)
            for training in repeated:
                self.train(training)
            rates = self.options.rates(group[2])
            edge = len(tried) > 1 and chosen.rate in (min(rates), max(rates))
            runs[group] = [self.scored(training, edge) for training in repeated]
        return compare(base, runs)

    def fresh(self) -> Any:
        """The model as it was loaded."""
        return self.load()[0]

    def neurons(self, training: Training) -> NeuronSet | None:
        """The neurons that are trained, or that LoRA goes by; None: all weights are trained."""
        arms = self.sets[training.language]
        if training.arm == "random":
            return controls(arms["neurons"], self.options.random)[training.draw]
        return None if training.arm == "full" else arms["neurons" if training.arm == "lora" else training.arm]

    def place(self, training: Training) -> Path:
        """The folder of a training, named by all that decides it."""
        kind = training.arm if training.arm in ("lora", "full") else "neurons"
        decisive: list[Any] = [
            self.fingerprint,
            self.dtype,
            kind,
            neurons_digest(self.neurons(training)),
            self.identities["detect"][training.language],
            {code: self.identities["validation"][code] for code in self._held_out(training.language)},
            self.options.texts,
            vars(Recipe(**self.recipe)),
            training.documents,
            training.rate,
            training.seed,
        ]
        if "keep" in self.sources:
            decisive.append([self.identities["keep"][code] for code in self._keep(training.language)])
        return self.folder / CELLS / f"{training.language}-{training.documents}-{kind}-{digest(decisive)}"

    def _keep(self, target: str) -> dict[str, Corpus]:
        """The texts that other languages are kept by, in an order that is the same in every comparison."""
        return {code: corpus for code, corpus in sorted(self.sources.get("keep", {}).items()) if code != target}

    def _held_out(self, target: str) -> dict[str, Corpus]:
        """Validation texts of the target, and of the others where they limit the changes."""
        validation = self.sources["validation"]
        return dict(validation) if self.options.others_at_most is not None else {target: validation[target]}

    def tuned(self, training: Training) -> Any:
        """The result of a training, which is read if it is there."""
        model, neurons = self.fresh(), self.neurons(training)
        target = training.language
        return tune(
            model,
            self.tokenizer,
            lora(model, neurons) if training.arm == "lora" and neurons is not None else neurons,
            self.sources["detect"][target],
            language=target,
            held_out=self._held_out(target),
            held_out_documents=self.options.texts,
            keep=self._keep(target),
            documents=training.documents,
            learning_rate=training.rate,
            seed=training.seed,
            run_dir=self.place(training) / "training",
            **self.recipe,
        )

    def train(self, training: Training) -> float:
        """Validation bits per byte after the training, which is done if it was not."""
        record = self.place(training) / "training" / HISTORY
        if training not in self.told:
            self.task.reach(self.task.done, str(training))
        if not record.exists():
            self.tuned(training)
        after = read_json(record)["after"][training.language]
        if training not in self.told:
            self.told.add(training)
            self.task.advance()
        return float(after)

    def scored(self, training: Training, edge: bool) -> Run:
        """The scores of a training."""
        place = self.place(training)
        scores = self._scores(place, (training.language,), lambda: self.tuned(training).merge())
        return Run(training.rate, edge, int(read_json(place / "training" / HISTORY)["parameters"]), scores)

    def _scores(self, place: Path, languages: tuple[str, ...], model: Callable[[], Any]) -> Scores:
        options = self.options
        named = digest(
            [
                self.identities["held_out"],
                options.texts,
                options.tasks,
                options.limit,
                self.data,
                options.max_tokens,
                languages,
            ]
        )
        path = place / f"scores-{named}.json"
        if not path.exists():
            write_json(path, self._measured(model(), languages, place / f"evaluation-{named}"))
        return Scores(**read_json(path))

    def _measured(self, model: Any, languages: tuple[str, ...], folder: Path) -> dict[str, Any]:
        texts = {}
        for code, held_out in self.texts.items():
            measured = likelihood(model, self.tokenizer, held_out, max_tokens=self.options.max_tokens)
            texts[code] = {"values": (measured.nats / math.log(2)).tolist(), "weights": measured.n_bytes.tolist()}
        tasks: dict[str, dict[str, Any]] = {code: {} for code in languages}
        if self.options.tasks:
            answered = evaluate(
                model,
                self.tokenizer,
                self.options.tasks,
                languages,
                limit=self.options.limit,
                data=self.data,
                run_dir=folder,
            )
            for score in answered.scores:  # the first metric of a task
                values = {"values": list(score.items), "weights": [1] * len(score.items)}
                tasks[score.language].setdefault(score.task, values)
        return {"texts": texts, "tasks": tasks}
