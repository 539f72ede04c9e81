"""The paper's figure 4 with its controls, from one JSON file: which neurons are trained, on how many documents.

Arms: a language's neurons by each selection rule, as many random ones, LoRA of about as many parameters, everything.
The learning rate of an arm is the best of several on validation texts, for each language and number of documents, found
with the first seed and draw; the other seeds and draws run at that rate alone. What is reported was measured on test
texts and tasks that chose nothing. A training is a folder named by all that decides it, so none is run twice.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from babelscope.artifacts import read_json
from babelscope.errors import ConfigError, did_you_mean
from babelscope.languages import get_language
from babelscope.tuning.train import Recipe

ARMS = ("neurons", "random", "lora", "full")
"""Each of `neurons` is an arm of its own name; `random` matches the first of them, `lora` its number of parameters."""
RATES = {"neurons": (3e-4, 1e-3, 3e-3), "lora": (3e-4, 1e-3, 3e-3), "full": (3e-5, 1e-4, 3e-4)}
"""To try, where a file doesn't say."""
RECIPE = ("max_tokens", "batch_size", "epochs", "warmup", "evaluations", "patience", "keep_share", "others_at_most")
"""Fields of `Recipe` that a file may set; the others vary by cell."""


@dataclass(frozen=True)
class Experiment:
    """What a file may say. Sources are those of `open_corpus`, with `{}` where the language's code goes."""

    model: str
    languages: tuple[str, ...]
    """Each is a target of its own."""
    neurons: Mapping[str, Any]
    """Arm -> a neuron file with `{}` for the language, or the options of `Atlas.select`."""
    corpus: str
    """To train on."""
    validation: str
    """The first texts of each target's choose the step and the learning rate; those of every language that is measured
    decide, where the recipe says `others_at_most`, how much of the changes is left."""
    test: str
    """The first texts of every language are what is reported."""
    keep: str | None = None
    """Of the languages that are measured and are not the target: what they are kept by."""
    detection: str | None = None
    """The run of `babelscope detect` that options of `neurons` select from."""
    others: tuple[str, ...] = ()
    """Languages to be spared, beside the other targets."""
    documents: tuple[int, ...] = (400,)
    seeds: tuple[int, ...] = (0,)
    """Of the draw of documents, of their order, and of LoRA's start."""
    arms: tuple[str, ...] = ARMS
    random: int = 2
    """Random sets, each trained with every seed."""
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: dict(RATES))
    """To try, by kind of arm; `random` tries those of `neurons`."""
    texts: int = 100
    """Validation texts of a target, and test texts of every language."""
    tasks: tuple[str, ...] = ()
    """As of `evaluate`, in the target's language. The first metric of each counts."""
    limit: int | None = None
    """Items of each task; None: all."""
    data: str | None = None
    """A folder with the benchmarks' files."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Recipe`, of those in `RECIPE`."""
    dtype: str = "float32"

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """Reads and checks a file.

        Raises:
            DataError: no such file, or no JSON.
            ConfigError: a key that there isn't, is missing or has a value that can't be.
        """
        content = read_json(Path(path))
        try:
            return cls.of(content)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Experiment:
        """As `load`, from what such a file holds."""
        known = [each.name for each in fields(cls)]
        for name in content:
            if name not in known:
                raise ConfigError(f"unknown key {name!r}. {did_you_mean(str(name), known)}")
        for name in (each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING):
            if name not in content:
                raise ConfigError(f"{name}: wanted, found nothing. Add it.")
        taken = {name: _checked(name, value) for name, value in content.items()}
        found = cls(**{**taken, "rates": {**RATES, **taken.get("rates", {})}})
        selected = any(isinstance(each, dict) for each in found.neurons.values())
        if selected and found.detection is None:
            raise ConfigError(
                "detection: wanted a run of babelscope detect to select neurons from, found none. Add it."
            )
        sources = (found.corpus, found.validation, found.test)
        if len(set(sources)) < 3:
            raise ConfigError(
                f"wanted three sources of texts, found {', '.join(sources)}. Measure on texts of their own."
            )
        try:
            Recipe(**found.recipe)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"recipe: {error}") from None
        return found

    @property
    def measured(self) -> tuple[str, ...]:
        """Languages whose texts are measured."""
        return tuple(dict.fromkeys((*self.languages, *self.others)))

    def rates_of(self, arm: str) -> tuple[float, ...]:
        """Learning rates to try."""
        return self.rates[arm if arm in ("lora", "full") else "neurons"]

    def names(self) -> list[str]:
        """The arms: `neurons` by their names."""
        return [name for arm in self.arms for name in (self.neurons if arm == "neurons" else (arm,))]

    def searched(self, language: str, documents: int, arm: str) -> list[Cell]:
        """The cells that choose an arm's rate."""
        return [Cell(language, documents, arm, 0, rate, self.seeds[0]) for rate in self.rates_of(arm)]

    def repeated(self, chosen: Cell) -> list[Cell]:
        """The cells that are reported: the chosen one and its repetitions at the same rate."""
        draws = range(self.random if chosen.arm == "random" else 1)
        return [
            Cell(chosen.language, chosen.documents, chosen.arm, draw, chosen.rate, seed)
            for draw, seed in itertools.product(draws, self.seeds)
        ]

    def groups(self) -> list[tuple[str, int, str]]:
        """Language, documents and arm of each number that is reported."""
        return list(itertools.product(self.languages, self.documents, self.names()))


@dataclass(frozen=True)
class Cell:
    """One training."""

    language: str
    documents: int
    arm: str
    draw: int
    """Which of the random sets; 0 in other arms."""
    rate: float
    seed: int

    def __str__(self) -> str:
        draw = f" {self.draw}" if self.arm == "random" else ""
        return f"{self.language}, {self.documents} documents, {self.arm}{draw}, rate {self.rate:g}, seed {self.seed}"


def as_json(experiment: Experiment) -> dict[str, Any]:
    """What a file would say, defaults included."""
    content: dict[str, Any] = json.loads(
        json.dumps({each.name: getattr(experiment, each.name) for each in fields(experiment)})
    )
    return content


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and bool(value) and all(map(fits, value)) and len(set(value)) == len(value)
    )


def _maybe(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _arms(value: Any) -> bool:
    named = isinstance(value, dict) and bool(value) and not set(value) & set(ARMS)
    return named and all((_text(each) and "{}" in each) or isinstance(each, dict) for each in value.values())


def _rates(value: Any) -> bool:
    kinds = ("neurons", "lora", "full")
    return isinstance(value, dict) and all(name in kinds and _list_of(_rate)(each) for name, each in value.items())


_SOURCE = "a source of texts, with {} where the language's code goes"
_KEYS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("a folder, a name on the Hub, or tinybabel", _text),
    "languages": ("a list of languages, each once", _list_of(_text)),
    "neurons": (
        f"arm: a neuron file with {{}} for the language, or options of select; no arm named {', '.join(ARMS)}",
        _arms,
    ),
    "corpus": (_SOURCE, lambda value: _text(value) and "{}" in value),
    "validation": (_SOURCE, lambda value: _text(value) and "{}" in value),
    "test": (_SOURCE, lambda value: _text(value) and "{}" in value),
    "keep": (f"{_SOURCE}, or null", _maybe(lambda value: _text(value) and "{}" in value)),
    "detection": ("the folder of a run of babelscope detect, or null", _maybe(_text)),
    "others": ("a list of languages, each once", lambda value: value == [] or _list_of(_text)(value)),
    "documents": ("a list of numbers of documents, each 2 or more", _list_of(_whole(2))),
    "seeds": ("a list of whole numbers, each once", _list_of(_whole(0))),
    "arms": (f"a list of {', '.join(ARMS)}, each once", _list_of(lambda value: value in ARMS)),
    "random": ("a number of random sets, 1 or more", _whole(1)),
    "rates": ("lists of learning rates above 0, by neurons, lora or full", _rates),
    "texts": ("a number of texts, 2 or more", _whole(2)),
    "tasks": ("a list of tasks", lambda value: value == [] or _list_of(_text)(value)),
    "limit": ("a number of items, 1 or more, or null", _maybe(_whole(1))),
    "data": ("a folder, or null", _maybe(_text)),
    "recipe": (
        f"settings among {', '.join(RECIPE)}",
        lambda value: isinstance(value, dict) and set(value) <= set(RECIPE),
    ),
    "dtype": ("float32, bfloat16, float16 or auto", lambda value: value in ("float32", "bfloat16", "float16", "auto")),
}
"""Key -> what is wanted, and whether a value is that."""


def _checked(name: str, value: Any) -> Any:
    """A value of the file as the field of `Experiment` has it."""
    wanted, fits = _KEYS[name]
    if not fits(value):
        raise ConfigError(f"{name}: wanted {wanted}, found {json.dumps(value)}. Correct it.")
    if name in ("languages", "others"):
        return tuple(get_language(code).code for code in value)
    if name == "rates":
        return {kind: tuple(map(float, each)) for kind, each in value.items()}
    return tuple(value) if isinstance(value, list) else value
