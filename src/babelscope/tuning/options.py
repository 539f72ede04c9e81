"""The settings of a comparison of trainings: which arms, on how many documents, with which recipe."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from babelscope.options import Choice, Count, Language, NonNegative, Options, Positive, Several, Share
from babelscope.rules.contract import RULES

KINDS = ("neurons", "random", "lora", "full")
"""The arms beside those that are named after another rule."""
RATES: Mapping[str, tuple[float, ...]] = {"neurons": (3e-4, 1e-3, 3e-3), "full": (3e-5, 1e-4, 3e-4)}
"""Learning rates that are tried where none are given; random sets and LoRA try those of neurons."""
RECIPE = ("epochs", "batch_size", "max_tokens", "evaluations", "warmup", "patience", "keep_share", "others_at_most")
"""The settings that every training shares: fields of `babelscope.tuning.train.Recipe`."""

Sources = str | dict[Language, str]
Arm = Annotated[str, Choice(lambda: (*KINDS, *RULES.names()), "ARM")]


class TuningOptions(Options):
    """Trainings of one language each, compared: its neurons, random ones, LoRA, everything."""

    languages: tuple[Language, ...] = ()
    """languages to train, one model each"""
    arms: tuple[Arm, ...] = ("neurons", "random")
    """neurons (the selected sets), random (as many), lora (as many parameters), full, or another rule's name"""
    train: Sources | None = None
    """texts to train on; null: those of the detection"""
    random: Count = 1
    """random sets, each trained with every seed"""
    documents: tuple[Several, ...] = (100, 400)
    """numbers of documents to train on"""
    seeds: tuple[NonNegative, ...] = (0,)
    """one training each"""
    learning_rates: tuple[Positive, ...] | None = None
    """to try for neurons, random and lora; null: 3e-4, 1e-3, 3e-3"""
    full_learning_rates: tuple[Positive, ...] | None = None
    """to try for full; null: 3e-5, 1e-4, 3e-4"""
    epochs: Positive = 3.0
    """passes over the documents"""
    batch_size: Count = 8
    """blocks per step"""
    max_tokens: Several = 256
    """length of a block"""
    evaluations: Count = 10
    """on validation texts, over a training"""
    warmup: Share | None = None
    """share of the steps in which the rate rises; null: that of tune"""
    patience: Count | None = None
    """evaluations without a better result, after which a training stops; null: that of tune"""
    keep: Sources | None = None
    """texts of the other languages, trained on beside the target so that they do not get worse; null: none"""
    keep_share: Positive | None = None
    """blocks of these for one of the target; null: that of tune"""
    others_at_most: Positive | None = None
    """percent by which another language may get worse; all changes are scaled down to that; null: no limit"""
    texts: Several = 20
    """validation texts that choose rate and step, held-out texts that are reported"""
    tasks: tuple[str, ...] = ()
    """scored before and after"""
    limit: Count | None = None
    """first items of each task; null: all"""

    def recipe(self) -> dict[str, Any]:
        """The settings of every training that are given."""
        return {name: value for name in RECIPE if (value := getattr(self, name)) is not None}

    def rates(self, arm: str) -> tuple[float, ...]:
        """Learning rates to try."""
        given = self.full_learning_rates if arm == "full" else self.learning_rates
        return given or RATES["full" if arm == "full" else "neurons"]

    def groups(self) -> list[tuple[str, int, str]]:
        """Language, documents and arm of each number that is reported."""
        return list(itertools.product(self.languages, self.documents, self.arms))

    def searched(self, language: str, documents: int, arm: str) -> list[Training]:
        """The trainings that choose an arm's rate: with the first seed and the first random set."""
        return [Training(language, documents, arm, 0, rate, self.seeds[0]) for rate in self.rates(arm)]

    def repeated(self, chosen: Training) -> list[Training]:
        """The trainings that are reported: the chosen one and its repetitions at the same rate."""
        draws = range(self.random if chosen.arm == "random" else 1)
        return [
            Training(chosen.language, chosen.documents, chosen.arm, draw, chosen.rate, seed)
            for draw, seed in itertools.product(draws, self.seeds)
        ]

    def trainings(self) -> int:
        """How many trainings there are in all."""
        return sum(
            len(self.rates(arm)) + (self.random if arm == "random" else 1) * len(self.seeds) - 1
            for _, _, arm in self.groups()
        )


@dataclass(frozen=True)
class Training:
    """One training of a comparison."""

    language: str
    documents: int
    arm: str
    draw: int
    """Number of the random set; 0 in other arms."""
    rate: float
    seed: int

    def __str__(self) -> str:
        draw = f" {self.draw}" if self.arm == "random" else ""
        return f"{self.language}, {self.documents} documents, {self.arm}{draw}, rate {self.rate:g}, seed {self.seed}"
