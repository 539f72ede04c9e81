"""PLND scores: from impact statistics to how much a language needs each unit."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from babelscope.detection.contrast import Others, contrast
from babelscope.neurons.statistics import Statistics

Own = Literal["mean", "minimum"]


def minimum_scores(statistics: Statistics, slot: str) -> Tensor:
    """Smallest impact over the language's documents, float64 [N].

    A unit belongs to the paper's set at eps exactly when this is at least eps (Eq. 2), so one number answers every eps.
    """
    return statistics.minimum(slot)


def impact_contrast(
    by_language: dict[str, Statistics], language: str, slot: str, *, own: Own = "mean", others: Others = "max"
) -> Tensor:
    """How much more a language needs each unit than the other languages do, [N]; see `contrast`.

    Args:
        by_language: statistics of every language.
        language: whose neurons.
        slot: which slot.
        own: statistic of the language, its mean or its minimum over documents.
        others: largest, or mean, of the other languages' means.
    """
    statistics = by_language[language]
    means_LN = torch.stack([each.mean(slot) for each in by_language.values()])
    mine = statistics.mean(slot) if own == "mean" else statistics.minimum(slot)
    return contrast(means_LN, mine, list(by_language).index(language), statistics.layout, slot, others)
