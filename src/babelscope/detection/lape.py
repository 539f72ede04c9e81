"""LAPE: language activation probability entropy (Tang et al., ACL 2024), from the same statistics.

A unit's activation probability in a language is the share of tokens at which its gate is above 0. Normalised over
languages it is a distribution; a language-specific unit has a low entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from babelscope.detection.contrast import Others, contrast
from babelscope.neurons.statistics import Statistics

RATE = 0.01
"""Share of units that are kept: those of lowest entropy (published setting)."""
BAR = 0.95
"""Quantile of all activation probabilities that a unit must reach in some language, and in each language it is
assigned to (published setting)."""


def activation_shares(by_language: dict[str, Statistics], slot: str) -> Tensor:
    """Share of active tokens, float64 [languages, N]."""
    return torch.stack([statistics.positive_share(slot) for statistics in by_language.values()])


def entropy(shares: Tensor) -> Tensor:
    """Entropy over languages of the normalised activation probabilities, in nats, [N]; inf for a unit never active."""
    total = shares.sum(0)
    normalised = shares / total.clamp_min(1e-30)
    values = -torch.special.xlogy(normalised, normalised).sum(0)
    return torch.where(total > 0, values, torch.full_like(values, torch.inf))


def lape_sets(shares: Tensor, *, rate: float = RATE, bar: float = BAR) -> tuple[Tensor, Tensor]:
    """The published selection.

    Args:
        shares: [languages, N] activation probabilities of all units, all slots and layers together.
        rate: share of units kept.
        bar: quantile of the probabilities that counts as active.

    Returns:
        bool [languages, N], the units of each language; and the entropies [N].
    """
    values = entropy(shares)
    level = _quantile(shares.flatten(), bar)
    eligible = (shares > level).any(0) & values.isfinite()
    ranked = torch.where(eligible, values, torch.full_like(values, torch.inf))
    count = min(round(rate * shares.shape[1]), int(eligible.sum()))
    chosen = torch.zeros(shares.shape[1], dtype=torch.bool)
    chosen[ranked.sort(stable=True).indices[:count]] = True
    return chosen & (shares > level), values


def activation_contrast(
    by_language: dict[str, Statistics], language: str, slot: str, *, others: Others = "max"
) -> Tensor:
    """The contrast on shares of active tokens instead of impacts, [N]; see `contrast`."""
    shares_LN = activation_shares(by_language, slot)
    place = list(by_language).index(language)
    return contrast(shares_LN, shares_LN[place], place, by_language[language].layout, slot, others)


def _quantile(values: Tensor, share: float) -> Tensor:
    """Like torch.quantile, which refuses more than 16 million values."""
    return values.kthvalue(max(1, round(share * len(values)))).values
