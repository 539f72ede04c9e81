"""The rule `released`: the top k units of every layer in every document, as the published code selects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from babelscope.errors import ConfigError
from babelscope.options import Budget, Share
from babelscope.rules.contract import Rule, RuleOptions
from babelscope.rules.cutting import among_top, within_budget

if TYPE_CHECKING:
    from torch import Tensor

    from babelscope.detection.atlas import Atlas


class ReleasedOptions(RuleOptions):
    """The top of every layer in every document."""

    top_k: Budget | None = None
    """The top of a layer: one of the shares or numbers that detection counted. Null: the largest of them."""
    min_support: Share = 1.0
    """Share of the documents in which a unit must be among the top."""
    budget: Budget | None = None
    """Neurons per language: a share of all units below 1, or a number. Null: all that qualify."""
    per_slot: bool = False
    """Split the budget over the slots by their size instead of ranking all slots together."""


class Released(Rule[ReleasedOptions]):
    """The top of every layer in every document.

    It differs from the published code in one thing: a budget keeps the best units, where that code cuts in the order of
    a Python set.
    """

    name, title, options = "released", "the top of every layer in every document, as published", ReleasedOptions
    source = "code of Zhao et al. 2024"
    detector = "plnd"

    def settled(self, atlas: Atlas, options: ReleasedOptions) -> ReleasedOptions:
        """The largest counted k where none is given."""
        if options.top_k is not None:
            return options
        if not atlas.layout.top_shares:
            raise ConfigError(
                "rule 'released' needs hits among the top k, and the atlas counted none. "
                "Detect again with top_shares=[0.05] (--top-shares 0.05), or use another rule."
            )
        return options.changed(top_k=max(atlas.layout.top_shares))

    def choose(
        self, atlas: Atlas, language: str, options: ReleasedOptions, slots: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Units among the top k, the highest minimum within the budget."""
        assert options.top_k is not None
        scores = {slot: atlas.of(language).minimum(slot) for slot in slots}
        masks = {slot: among_top(atlas, language, slot, options.top_k, options.min_support) for slot in slots}
        return scores, within_budget(language, self.name, scores, masks, options.budget, options.per_slot)
