"""The contrast between languages: what one language needs and the others do not. Open to every detector.

With `own` the statistic of the language (its mean impact, or its share of active tokens) and `against` that of the
other languages, a unit scores

    (own - against) / scale  *  (own - against) / own

strength times purity. The first factor is the surplus, in units of the layer's mean, so that impacts of attention
probabilities, attention outputs and FFN outputs can stand in one ranking; alone it does the most harm to the language
at a given size, but drags units along that the others need too. The second is the share of the unit's use that is
surplus; alone it picks the purest units, many of them weak. The product does about as much harm to the other languages
as the purest and about as much to the language as the strongest: see docs/experiments.md for the table.

Below zero (the language needs it less than others do) the sign is kept and the size is the surplus alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from babelscope.neurons.statistics import Layout

Others = Literal["max", "mean"]


def contrast(values_LN: Tensor, own_N: Tensor, place: int, layout: Layout, slot: str, others: Others = "max") -> Tensor:
    """Contrast of one language against the others.

    Args:
        values_LN: float64 [languages, N], the statistic that the others are held to, of every language.
        own_N: float64 [N], the statistic of the language itself.
        place: of the language in `values_LN`.
        layout: of the units.
        slot: which slot the units are of.
        others: hold against the language the largest of the others, or their mean.

    Returns:
        float64 [N]; above 0 exactly where the language needs the unit more.
    """
    rest_LN = torch.cat([values_LN[:place], values_LN[place + 1 :]])
    against_N = rest_LN.amax(0) if others == "max" else rest_LN.mean(0)
    surplus_N = own_N - against_N
    scale_N = torch.cat([layer.mean().expand(layer.shape[-1]) for layer in layout.split(slot, values_LN)])
    strength_N = surplus_N / torch.where(scale_N > 0, scale_N, torch.ones_like(scale_N))
    purity_N = torch.where(surplus_N > 0, surplus_N / own_N.clamp_min(torch.finfo(own_N.dtype).tiny), 1.0)
    return strength_N * purity_N
