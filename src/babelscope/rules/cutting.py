"""Cutting a ranking: a budget, an eps, or the top k, which several rules share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from babelscope.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from babelscope.detection.atlas import Atlas

logger = logging.getLogger(__name__)


def within_budget(
    language: str,
    rule: str,
    scores: dict[str, Tensor],
    masks: dict[str, Tensor],
    budget: float | int | None,
    per_slot: bool,
) -> dict[str, Tensor]:
    """The best of the units that qualify.

    Args:
        language: for the warning where fewer qualify than the budget allows.
        rule: for the same.
        scores: float [N] by slot.
        masks: bool [N] by slot, the units that qualify.
        budget: a share of all units below 1, or a number. None: all that qualify.
        per_slot: split the budget over the slots by their size instead of ranking all slots together.

    Returns:
        bool [N] by slot.
    """
    import torch

    if budget is None:
        return masks
    sizes = [len(values) for values in scores.values()]
    count, available = units_of(budget, sum(sizes)), sum(int(mask.sum()) for mask in masks.values())
    if available < count:
        message = "%s: the budget allows %d units, only %d qualify under rule %s"
        logger.warning(message, language, count, available, rule)
    if per_slot:
        parts = _dealt(count, sizes)
        return {slot: _best(scores[slot], masks[slot], part) for slot, part in zip(scores, parts, strict=True)}
    flat = _best(torch.cat(list(scores.values())), torch.cat(list(masks.values())), count)
    return dict(zip(scores, flat.split(sizes), strict=True))


def units_of(budget: float | int, total: int) -> int:
    """A budget as a number of units."""
    return min(total, budget if isinstance(budget, int) else round(budget * total))


def _dealt(count: int, sizes: list[int]) -> list[int]:
    """A number of units in parts proportional to the sizes that add up to it (largest remainders first)."""
    exact = [count * size / sum(sizes) for size in sizes]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda place: parts[place] - exact[place])
    for place in by_remainder[: count - sum(parts)]:
        parts[place] += 1
    return parts


def _best(scores: Tensor, mask: Tensor, count: int) -> Tensor:
    """The `count` highest scores within the mask (ties: first unit first)."""
    import torch

    ranked = torch.where(mask, scores, torch.full_like(scores, -torch.inf))
    chosen = torch.zeros_like(mask)
    chosen[ranked.sort(descending=True, stable=True).indices[:count]] = True
    return chosen & mask


def reaches_eps(atlas: Atlas, language: str, slot: str, eps: float, min_support: float) -> Tensor:
    """Units whose impact reaches eps in the share `min_support` of the documents, bool [N].

    Raises:
        ConfigError: a share below 1 needs counts that the atlas lacks.
    """
    statistics = atlas.of(language)
    if min_support == 1:
        return statistics.minimum(slot) >= eps
    if eps not in atlas.layout.thresholds:
        raise ConfigError(
            f"eps={eps} with min_support={min_support} needs counts of documents over that eps; the "
            f"atlas counted {list(atlas.layout.thresholds) or 'none'}. Use one of those, min_support=1, or detect "
            f"again with thresholds=[{eps}] (--thresholds {eps})."
        )
    return statistics.over_share(slot, eps) >= min_support - 1e-12


def among_top(atlas: Atlas, language: str, slot: str, top_k: float | int, min_support: float) -> Tensor:
    """Units among the top k of their layer in the share `min_support` of the documents, bool [N].

    Raises:
        ConfigError: the atlas did not count that k.
    """
    return atlas.of(language).hit_share(slot, _counted_share(atlas, slot, top_k)) >= min_support - 1e-12


def _counted_share(atlas: Atlas, slot: str, top_k: float | int) -> float:
    """The counted top share that `top_k` names, as a share or as a number of units per layer."""
    for share in atlas.layout.top_shares:
        numbers = {atlas.layout.kept(width, share) for width in atlas.layout.widths[slot]}
        if (isinstance(top_k, float) and abs(share - top_k) < 1e-12) or (isinstance(top_k, int) and numbers == {top_k}):
            return share
    raise ConfigError(
        f"top_k={top_k} was not counted for slot {slot}; counted shares per layer: {list(atlas.layout.top_shares)}. "
        f"Use one of those, or detect again with top_shares=[{top_k}] (--top-shares {top_k})."
    )
