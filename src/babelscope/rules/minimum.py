"""The rule `minimum`, the paper's: units that every document of the language needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from babelscope.errors import ConfigError
from babelscope.options import Budget, Share
from babelscope.rules.contract import Rule, RuleOptions
from babelscope.rules.cutting import among_top, reaches_eps, within_budget

if TYPE_CHECKING:
    from torch import Tensor

    from babelscope.detection.atlas import Atlas

PAPER_BUDGET = 0.0013
"""About the share of all units that the paper switches off."""


class MinimumOptions(RuleOptions):
    """What every document of the language needs."""

    budget: Budget | None = None
    """Neurons per language: a share of all units below 1, or a number. Null: 0.0013 where nothing else cuts."""
    eps: float | None = None
    """Keep units whose impact reaches this in the documents (the paper's Eq. 2)."""
    top_k: Budget | None = None
    """Keep units among the top of their layer in the documents: one of the shares or numbers that detection counted."""
    min_support: Share = 1.0
    """Share of the documents in which `eps` or `top_k` must hold."""
    per_slot: bool = True
    """Split the budget over the slots by their size: impacts of different slots have different units."""

    def check(self) -> None:
        """Refuses a support of nothing."""
        if self.min_support != 1 and self.eps is None and self.top_k is None:
            raise ConfigError(
                "rule 'minimum' has no use for min_support without eps or top_k. Leave it out or give one of them."
            )


class Minimum(Rule[MinimumOptions]):
    """What every document of the language needs.

    A unit belongs to the paper's set at eps exactly when its smallest impact over the documents is at least eps, so one
    number answers every eps.
    """

    name, title, options = "minimum", "what every document of the language needs", MinimumOptions
    source = "Zhao et al. 2024, Eq. 2"
    detector = "plnd"

    def settled(self, atlas: Atlas, options: MinimumOptions) -> MinimumOptions:
        """The paper's budget where nothing else cuts."""
        nothing = options.eps is None and options.top_k is None and options.budget is None
        return options.changed(budget=PAPER_BUDGET) if nothing else options

    def choose(
        self, atlas: Atlas, language: str, options: MinimumOptions, slots: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Units that reach eps or the top k, the highest minimum within the budget."""
        import torch

        scores = {slot: atlas.of(language).minimum(slot) for slot in slots}
        masks = {slot: torch.ones(len(values), dtype=torch.bool) for slot, values in scores.items()}
        for slot in slots:
            if options.eps is not None:
                masks[slot] &= reaches_eps(atlas, language, slot, options.eps, options.min_support)
            if options.top_k is not None:
                masks[slot] &= among_top(atlas, language, slot, options.top_k, options.min_support)
        return scores, within_budget(language, self.name, scores, masks, options.budget, options.per_slot)
