"""The rule `contrast`, the default: what one language needs and the others do not.

With `own` the statistic of the language (its mean impact, or its share of active tokens) and `against` that of the
other languages, a unit scores

    (own - against) / scale  *  (own - against) / own

strength times purity. The first factor is the surplus, in units of the layer's mean, so that impacts of attention
probabilities, attention outputs and FFN outputs can stand in one ranking; alone it does the most harm to the language
at a given size, but drags units along that the others need too. The second is the share of the unit's use that is
surplus; alone it picks the purest units, many of them weak. The product does about as much harm to the other languages
as the purest and about as much to the language as the strongest (docs/experiments).

Below zero (the language needs it less than others do) the sign is kept and the size is the surplus alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from babelscope.options import Budget
from babelscope.rules.contract import Rule, RuleOptions
from babelscope.rules.cutting import within_budget

if TYPE_CHECKING:
    from torch import Tensor

    from babelscope.detection.atlas import Atlas
    from babelscope.neurons.statistics import Layout


class ContrastOptions(RuleOptions):
    """What the language needs more than any other does."""

    budget: Budget = 0.01
    """Neurons per language: a share of all units below 1, or a number."""
    per_slot: bool = False
    """Split the budget over the slots by their size instead of ranking all slots together."""
    statistic: Literal["impact", "activation"] = "impact"
    """Rank by impacts, or by shares of active tokens."""
    target_statistic: Literal["mean", "minimum"] = "mean"
    """Statistic of the language's documents."""
    rest_statistic: Literal["max", "mean"] = "max"
    """Statistic over the other languages."""

    def check(self) -> None:
        """Refuses a statistic of documents for activations, which are counted over tokens."""
        if self.statistic == "activation" and self.target_statistic != "mean":
            self.refuse(
                "target_statistic",
                "mean, since statistic=activation has no use for target_statistic",
                "Leave target_statistic out.",
            )


class Contrast(Rule[ContrastOptions]):
    """What the language needs more than any other does."""

    name, title, options = "contrast", "what the language needs more than any other does", ContrastOptions
    source = "Babelscope (docs/decisions/0007)"
    detector, overlapping, compares = "plnd", False, True

    def choose(
        self, atlas: Atlas, language: str, options: ContrastOptions, slots: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Units with a score above zero, the highest within the budget."""
        scores = {slot: self._scores(atlas, language, slot, options) for slot in slots}
        masks = {slot: values > 0 for slot, values in scores.items()}
        return scores, within_budget(language, self.name, scores, masks, options.budget, options.per_slot)

    def _scores(self, atlas: Atlas, language: str, slot: str, options: ContrastOptions) -> Tensor:
        import torch

        place = list(atlas.statistics).index(language)
        if options.statistic == "activation":
            values_LN = torch.stack([statistics.positive_share(slot) for statistics in atlas.statistics.values()])
            own_N = values_LN[place]
        else:
            values_LN = torch.stack([statistics.mean(slot) for statistics in atlas.statistics.values()])
            own_N = values_LN[place] if options.target_statistic == "mean" else atlas.of(language).minimum(slot)
        return contrast(values_LN, own_N, place, atlas.layout, slot, options.rest_statistic)


def contrast(
    values_LN: Tensor,
    own_N: Tensor,
    place: int,
    layout: Layout,
    slot: str,
    rest_statistic: Literal["max", "mean"] = "max",
) -> Tensor:
    """Contrast of one language against the others.

    Args:
        values_LN: float64 [languages, N], the statistic that the others are held to, of every language.
        own_N: float64 [N], the statistic of the language itself.
        place: the row of the language in `values_LN`.
        layout: the layers of the units.
        slot: the slot of the units.
        rest_statistic: hold against the language the largest of the others, or their mean.

    Returns:
        float64 [N]; above 0 exactly where the language needs the unit more.
    """
    import torch

    rest_LN = torch.cat([values_LN[:place], values_LN[place + 1 :]])
    against_N = rest_LN.amax(0) if rest_statistic == "max" else rest_LN.mean(0)
    surplus_N = own_N - against_N
    scale_N = torch.cat([layer.mean().expand(layer.shape[-1]) for layer in layout.split(slot, values_LN)])
    strength_N = surplus_N / torch.where(scale_N > 0, scale_N, torch.ones_like(scale_N))
    purity_N = torch.where(surplus_N > 0, surplus_N / own_N.clamp_min(torch.finfo(own_N.dtype).tiny), 1.0)
    return strength_N * purity_N
