"""Selection, from an atlas to a language's set: a rule scores, a budget, eps or top k cuts, exclusions subtract."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from babelscope.detection import lape, plnd
from babelscope.errors import ConfigError
from babelscope.languages import get_language
from babelscope.models.slots import resolve_slots
from babelscope.neurons.neuronset import NeuronSet

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas

logger = logging.getLogger(__name__)

RULES = ("contrast", "minimum", "released", "lape")
DEFAULT_BUDGET = 0.01
"""Share of units for the contrast rule when no budget is given."""
PAPER_BUDGET = 0.0013
"""About the share that the paper switches off."""


@dataclass(frozen=True)
class Request:
    """What to select; see `Atlas.select` for the meaning of each field."""

    rule: str
    budget: float | int | None = None
    eps: float | None = None
    top_k: float | int | None = None
    min_support: float = 1.0
    per_slot: bool | None = None
    slots: tuple[str, ...] | None = None
    exclude: str | None = None
    statistic: str | None = None
    own: Any = None
    others: Any = None

    def as_json(self) -> dict[str, Any]:
        """For a file's header: only what was set."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


def default_rule(settings: Mapping[str, Any]) -> str:
    """The rule that a measurement preset stands for."""
    return {"paper": "minimum", "released": "released"}.get(str(settings.get("preset")), "contrast")


def select(atlas: Atlas, language: str, request: Request) -> NeuronSet:
    """The set of one language; see `Atlas.select`."""
    request = _settled(atlas, request)
    found = _chosen(atlas, language, request)
    if request.exclude is not None:
        alone = replace(request, exclude=None)
        rest = [code for code in atlas.languages if code != language]
        if request.exclude in ("shared", "others"):
            if not rest:
                raise ConfigError(
                    f"exclude={request.exclude!r} needs at least two languages, the atlas holds only {language}. "
                    "Detect more languages."
                )
            others = [_chosen(atlas, code, alone) for code in rest]
            away = others[0]
            for other in others[1:]:
                away = away & other if request.exclude == "shared" else away | other
        else:
            code = get_language(request.exclude).code
            atlas.of(code)
            if code == language:
                raise ConfigError(f"exclude={code!r} would leave nothing of {language}'s own set. Exclude another.")
            away = _chosen(atlas, code, alone)
        found = replace(found - away, provenance=found.provenance)
    return found


def _settled(atlas: Atlas, request: Request) -> Request:
    """Checks a request and fills in defaults."""
    rule = request.rule
    if rule not in RULES:
        raise ConfigError(f"wanted a rule among {', '.join(RULES)}, found {rule!r}. Correct the name.")
    # LAPE was published for FFN units.
    usual = ("ffn",) if rule == "lape" and "ffn" in atlas.slots else _distinct(atlas)
    slots = usual if request.slots is None else resolve_slots(request.slots)
    missing = [slot for slot in slots if slot not in atlas.slots]
    if missing:
        raise ConfigError(f"the atlas holds slots {', '.join(atlas.slots)}, not {missing}. Detect with those slots.")
    if rule in ("contrast", "lape") and len(atlas.languages) < 2:
        raise ConfigError(
            f"rule {rule!r} compares languages, the atlas holds only {atlas.languages[0]}. "
            "Detect more languages, or use rule='minimum' (--rule minimum)."
        )
    if request.statistic not in (None, "impact", "activation"):
        raise ConfigError(f"wanted statistic impact or activation, found {request.statistic!r}. Correct the name.")
    if request.own not in (None, "mean", "minimum") or request.others not in (None, "max", "mean"):
        raise ConfigError(
            f"wanted own=mean or minimum and others=max or mean, found own={request.own!r}, others={request.others!r}. "
            "Correct the names."
        )
    _refuse_useless(rule, request)
    if not 0 < request.min_support <= 1:
        raise ConfigError(f"wanted min_support above 0 and at most 1, found {request.min_support}. Correct it.")
    if request.budget is not None and not (isinstance(request.budget, int) or 0 < request.budget < 1):
        raise ConfigError(
            f"wanted a budget as a share of all units (above 0, below 1) or a whole number of units, "
            f"found {request.budget}. Correct it."
        )
    if isinstance(request.budget, int) and request.budget < 1:
        raise ConfigError(f"wanted a budget of at least one unit, found {request.budget}. Correct it.")
    request = replace(request, slots=slots)
    if rule == "contrast":
        defaults: dict[str, Any] = {
            "statistic": "impact",
            "own": "mean",
            "others": "max",
            "budget": DEFAULT_BUDGET,
            "per_slot": False,
        }
        filled = {name: value for name, value in defaults.items() if getattr(request, name) is None}
        return replace(request, **filled)
    if rule == "minimum":
        if request.eps is None and request.top_k is None and request.budget is None:
            request = replace(request, budget=PAPER_BUDGET)
        # Impacts of different slots have different units, so the paper's rule ranks each slot by itself.
        return replace(request, per_slot=True if request.per_slot is None else request.per_slot)
    if rule == "released" and request.top_k is None:
        if not atlas.layout.top_shares:
            raise ConfigError(
                "rule 'released' needs hits among the top k, and the atlas counted none. "
                "Detect again with top_shares=[0.05] (--top-shares 0.05), or use another rule."
            )
        return replace(request, top_k=max(atlas.layout.top_shares))
    return request


def _distinct(atlas: Atlas) -> tuple[str, ...]:
    """The atlas's slots, without `o` where heads are not grouped: there it is the same unit as `v`, counted twice."""
    widths = atlas.layout.widths
    return tuple(slot for slot in atlas.slots if slot != "o" or widths.get("v") != widths["o"])


def _refuse_useless(rule: str, request: Request) -> None:
    """A setting that the rule would ignore is an error, not a silent no-op."""
    allowed = {
        "contrast": {"budget", "per_slot", "statistic", "own", "others"},
        "minimum": {"budget", "eps", "top_k", "per_slot"},
        "released": {"top_k", "budget", "per_slot"},
        "lape": {"budget"},
    }[rule]
    named = {"budget", "eps", "top_k", "per_slot", "statistic", "own", "others"}
    useless = sorted(name for name in named - allowed if getattr(request, name) is not None)
    if request.min_support != 1 and request.eps is None and request.top_k is None and rule != "released":
        useless.append("min_support")
    if request.own is not None and request.statistic == "activation":
        useless.append("own")
    if useless:
        raise ConfigError(
            f"rule {rule!r} has no use for {', '.join(useless)}; it takes {', '.join(sorted(allowed))}. "
            "Leave them out or choose another rule."
        )


def _chosen(atlas: Atlas, language: str, request: Request) -> NeuronSet:
    assert request.slots is not None
    if request.rule == "lape":
        scores, masks = _lape(atlas, language, request)
    else:
        scores = {slot: _scores(atlas, language, slot, request) for slot in request.slots}
        masks = _cut(atlas, language, request, scores)
    full_masks, full_scores = {}, {}
    for slot, widths in atlas.layout.widths.items():
        units = sum(widths)
        mask = masks.get(slot, torch.zeros(units, dtype=torch.bool))
        score = scores.get(slot, torch.full((units,), torch.nan, dtype=torch.float64))
        full_masks[slot] = atlas.layout.split(slot, mask)
        full_scores[slot] = atlas.layout.split(slot, score.float())
    detector = "lape" if request.rule == "lape" else "plnd"
    return NeuronSet.from_masks(full_masks, full_scores, atlas.provenance(language, detector, request.as_json()))


def _scores(atlas: Atlas, language: str, slot: str, request: Request) -> Tensor:
    if request.rule == "contrast":
        if request.statistic == "activation":
            return lape.activation_contrast(atlas.statistics, language, slot, others=request.others)
        return plnd.impact_contrast(atlas.statistics, language, slot, own=request.own, others=request.others)
    return plnd.minimum_scores(atlas.of(language), slot)


def _cut(atlas: Atlas, language: str, request: Request, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Boolean masks [N] by slot: eps and top k first, then the best within the budget."""
    masks = {slot: torch.ones(len(values), dtype=torch.bool) for slot, values in scores.items()}
    statistics = atlas.of(language)
    for slot in masks:
        if request.eps is not None:
            masks[slot] &= _reaches_eps(atlas, language, slot, request)
        if request.top_k is not None:
            share = _counted_share(atlas, slot, request.top_k)
            masks[slot] &= statistics.hit_share(slot, share) >= request.min_support - 1e-12
    if request.rule == "contrast":
        masks = {slot: mask & (scores[slot] > 0) for slot, mask in masks.items()}
    if request.budget is None:
        return masks
    sizes = [len(values) for values in scores.values()]
    count, available = _count(request.budget, sum(sizes)), sum(int(mask.sum()) for mask in masks.values())
    if available < count:
        message = "%s: the budget allows %d units, only %d qualify under rule %s"
        logger.warning(message, language, count, available, request.rule)
    if request.per_slot:
        parts = _dealt(count, sizes)
        return {slot: _best(scores[slot], masks[slot], part) for slot, part in zip(scores, parts, strict=True)}
    flat = _best(torch.cat(list(scores.values())), torch.cat(list(masks.values())), count)
    return dict(zip(scores, flat.split(sizes), strict=True))


def _count(budget: float | int, total: int) -> int:
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
    ranked = torch.where(mask, scores, torch.full_like(scores, -torch.inf))
    chosen = torch.zeros_like(mask)
    chosen[ranked.sort(descending=True, stable=True).indices[:count]] = True
    return chosen & mask


def _reaches_eps(atlas: Atlas, language: str, slot: str, request: Request) -> Tensor:
    statistics = atlas.of(language)
    assert request.eps is not None
    if request.min_support == 1:
        return statistics.minimum(slot) >= request.eps
    if request.eps not in atlas.layout.thresholds:
        raise ConfigError(
            f"eps={request.eps} with min_support={request.min_support} needs counts of documents over that eps; the "
            f"atlas counted {list(atlas.layout.thresholds) or 'none'}. Use one of those, min_support=1, or detect "
            f"again with thresholds=[{request.eps}] (--thresholds {request.eps})."
        )
    return statistics.over_share(slot, request.eps) >= request.min_support - 1e-12


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


def _lape(atlas: Atlas, language: str, request: Request) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Published LAPE over the chosen slots together."""
    slots = request.slots or ()
    shares = [lape.activation_shares(atlas.statistics, slot) for slot in slots]
    rate = lape.RATE
    if request.budget is not None:
        units = sum(each.shape[1] for each in shares)
        rate = _count(request.budget, units) / units
    masks, entropies = lape.lape_sets(torch.cat(shares, dim=1), rate=rate)
    place = list(atlas.statistics).index(language)
    sizes = [each.shape[1] for each in shares]
    return (
        dict(zip(slots, (-entropies).split(sizes), strict=True)),
        dict(zip(slots, masks[place].split(sizes), strict=True)),
    )
