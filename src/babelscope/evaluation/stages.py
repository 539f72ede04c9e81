"""Searching the split of the layers into stages that the paper's criterion prefers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from babelscope.editing.edits import ablate
from babelscope.editing.stages import Stages
from babelscope.errors import ConfigError
from babelscope.evaluation.likelihood import likelihood
from babelscope.models.anatomy import Anatomy
from babelscope.neurons.neuronset import NeuronSet

Score = Callable[[nn.Module], Mapping[str, float]]
"""A model's score by language, higher being better; it is called with and without an edit."""
Keep = Callable[[str, Callable[[], Mapping[str, float]]], Mapping[str, float]]
"""Answers for the measurement of a name: the kept one, or that of the function."""


@dataclass(frozen=True)
class Split:
    """One cell of the grid."""

    stages: Stages
    neurons: int
    """How many were switched off."""
    change: Mapping[str, float]
    """By language: score with them off, minus the intact model's."""
    english: float
    """Change in English."""
    others: float
    """Mean change in the other languages."""

    @property
    def delta(self) -> float:
        """Change in English minus change in the others: what the search wants large."""
        return self.english - self.others


@dataclass(frozen=True)
class StageSearch:
    """The whole grid, and the best of it."""

    intact: Mapping[str, float]
    """Scores of the intact model."""
    grid: tuple[Split, ...]
    best: Split
    """With the largest delta; of equal ones the first."""

    def __str__(self) -> str:
        head = f"{'understand':>10}{'generate':>10}{'neurons':>9}{'english':>10}{'others':>10}{'delta':>10}"
        rows = [
            f"{each.stages.understand:>10}{each.stages.generate:>10}{each.neurons:>9}"
            f"{each.english:>+10.4f}{each.others:>+10.4f}{each.delta:>+10.4f}{'  best' if each is self.best else ''}"
            for each in self.grid
        ]
        return "\n".join([head, *rows])


def find_stages(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    neurons: NeuronSet,
    score: Score | Mapping[str, Iterable[str]],
    *,
    understand: Iterable[int] = (8, 6, 4),
    generate: Iterable[int] = (4, 3, 2),
    stages: str | Iterable[str] = ("understand", "generate"),
    english: str = "en",
    max_tokens: int = 256,
    keep: Keep | None = None,
) -> StageSearch:
    """Searches the split that hurts the target language most and English least when its stages are switched off.

    The score must be of validation texts: a split that is chosen on a column can't be reported on it. The paper chose
    on XQuAD-Chinese and does not say which neurons were off meanwhile; here it is those of `stages`, by default both
    ends, since no single stage but the middle one depends on both numbers.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        tokenizer: of the model; only read for texts.
        neurons: of the target language.
        score: a function of the model that returns a score by language (higher is better), or texts by language, whose
            score is minus their bits per byte. English and at least one other language.
        understand: sizes of the first stage to try.
        generate: sizes of the last.
        stages: what is switched off.
        english: the language that should not be hurt.
        max_tokens: texts are cut to this length.
        keep: called with the name of what is measured (`intact`, or the sizes of a split) and a function that measures
            it; a run folder can answer from what it kept. None: everything is measured.

    Raises:
        ConfigError: stages that don't fit the model's layers, before anything runs; a score without English or without
            another language; an empty grid.

    Source: paper, section 3 and appendix (choice of N1 in 8, 6, 4 and N2 in 4, 3, 2 on XQuAD-Chinese).
    """
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, tuple(neurons.widths), check=False)
    ends = tuple(generate)
    splits = [Stages(first, last) for first in understand for last in ends]
    if not splits:
        raise ConfigError("wanted sizes of the first and the last stage to try, found none. Give understand, generate.")
    parts = [each.of(neurons, stages) for each in splits]
    measure = score if callable(score) else _bits_per_byte(tokenizer, score, max_tokens)
    keep = keep or (lambda name, measure: measure())
    intact = _checked(keep("intact", lambda: measure(anatomy.model)), english)
    grid = []
    for each, part in zip(splits, parts, strict=True):
        change = dict.fromkeys(intact, 0.0)
        if part:
            with ablate(anatomy, part):
                name = f"understand {each.understand}, generate {each.generate}"
                after = _checked(keep(name, lambda: measure(anatomy.model)), english)
            change = {language: after[language] - before for language, before in intact.items()}
        others = [value for language, value in change.items() if language != english]
        grid.append(Split(each, len(part), change, change[english], sum(others) / len(others)))
    return StageSearch(intact, tuple(grid), max(grid, key=lambda split: split.delta))


def _checked(scores: Mapping[str, float], english: str) -> dict[str, float]:
    found = {language: float(value) for language, value in scores.items()}
    if english not in found or len(found) < 2:
        raise ConfigError(
            f"wanted a score of {english!r} and of another language, found {', '.join(found) or 'none'}. Give texts or "
            "scores of both, or name English with english=..."
        )
    return found


def _bits_per_byte(tokenizer: Any, texts: Mapping[str, Iterable[str]], max_tokens: int) -> Score:
    held = {language: list(items) for language, items in texts.items()}

    def measure(model: nn.Module) -> dict[str, float]:
        return {
            language: -likelihood(model, tokenizer, items, max_tokens=max_tokens).bits_per_byte
            for language, items in held.items()
        }

    return measure
