"""The rule `lape`: language activation probability entropy (Tang et al., ACL 2024).

A unit's activation probability in a language is the share of tokens at which its gate is above 0. Normalised over
languages it is a distribution; a language-specific unit has a low entropy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from babelscope.options import Budget
from babelscope.rules.contract import Rule, RuleOptions
from babelscope.rules.cutting import units_of

if TYPE_CHECKING:
    from torch import Tensor

    from babelscope.detection.atlas import Atlas

RATE = 0.01
"""Share of units that are kept: those of lowest entropy (published setting)."""
BAR = 0.95
"""Quantile of all activation probabilities that a unit must reach in some language, and in each language it is
assigned to (published setting)."""


class LapeOptions(RuleOptions):
    """Units that are active in few languages."""

    budget: Budget | None = None
    """Units of lowest entropy, of all languages together: a share of all units below 1, or a number. Null: 0.01."""


class Lape(Rule[LapeOptions]):
    """Units whose activation is concentrated on few languages, by entropy over languages."""

    name, title, options = "lape", "units whose activation is concentrated on few languages", LapeOptions
    source = "Tang et al. 2024 (ACL), published thresholds"
    detector, compares = "lape", True

    def usual_slots(self, atlas: Atlas) -> tuple[str, ...]:
        """FFN units, for which it was published."""
        return ("ffn",) if "ffn" in atlas.slots else super().usual_slots(atlas)

    def choose(
        self, atlas: Atlas, language: str, options: LapeOptions, slots: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The published selection over the slots together; a score is minus the entropy."""
        import torch

        shares = [torch.stack([each.positive_share(slot) for each in atlas.statistics.values()]) for slot in slots]
        sizes = [share_LN.shape[1] for share_LN in shares]
        rate = RATE if options.budget is None else units_of(options.budget, sum(sizes)) / sum(sizes)
        masks_LN, entropies_N = lape_sets(torch.cat(shares, dim=1), rate=rate)
        place = list(atlas.statistics).index(language)
        return (
            dict(zip(slots, (-entropies_N).split(sizes), strict=True)),
            dict(zip(slots, masks_LN[place].split(sizes), strict=True)),
        )


def entropy(shares: Tensor) -> Tensor:
    """Entropy over languages of the normalised activation probabilities, in nats, [N]; inf for a unit never active."""
    import torch

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
    import torch

    values = entropy(shares)
    level = _quantile(shares.flatten(), bar)
    eligible = (shares > level).any(0) & values.isfinite()
    ranked = torch.where(eligible, values, torch.full_like(values, torch.inf))
    count = min(round(rate * shares.shape[1]), int(eligible.sum()))
    chosen = torch.zeros(shares.shape[1], dtype=torch.bool)
    chosen[ranked.sort(stable=True).indices[:count]] = True
    return chosen & (shares > level), values


def _quantile(values: Tensor, share: float) -> Tensor:
    """Like torch.quantile, which refuses more than 16 million values."""
    return values.kthvalue(max(1, round(share * len(values)))).values
