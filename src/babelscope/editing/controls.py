"""Controls for any claim about a set: random sets like it in size, place and, if wanted, in how active they are."""

from __future__ import annotations

import bisect
import random
from typing import Literal, get_args

import torch
from torch import Tensor

from babelscope.errors import ConfigError, ProvenanceError
from babelscope.neurons.neuronset import NeuronSet
from babelscope.neurons.statistics import Statistics

Match = Literal["count", "activity", "impact"]
"""What a control shares with the tested set: `count` of units per slot and layer; besides, unit by unit, the `activity`
(root mean square activation over tokens) or the mean `impact` over documents."""

_NEAREST = 10
"""A unit's stand-in is drawn from this many unused units that are closest in rank (in narrow layers from a twentieth of
them): a smaller choice would make the draws alike, a larger one would match worse."""


def controls(
    neurons: NeuronSet,
    count: int = 20,
    *,
    match: Match = "count",
    statistics: Statistics | None = None,
    seed: int = 0,
    overlap: bool = False,
) -> list[NeuronSet]:
    """Random sets with as many units as a set has in each slot and layer.

    Args:
        neurons: the tested set.
        count: how many controls; one is a draw, not a control.
        match: see `Match`.
        statistics: of the language, for `activity` and `impact`: `atlas.of("fr")`.
        seed: the same seed gives the same controls; controls of one call differ from each other.
        overlap: allow units of the tested set.

    Raises:
        ConfigError: an unknown `match`; statistics that are missing; without `overlap`, a layer with too few
            other units.
        ProvenanceError: the statistics are of another model.
    """
    if match not in get_args(Match):
        raise ConfigError(f"wanted match among {', '.join(get_args(Match))}, found {match!r}. Correct it.")
    if count < 1:
        raise ConfigError(f"wanted 1 control or more, found {count}. Ask for 20, say.")
    values = None if match == "count" else _values(neurons, match, statistics)
    masks = neurons.masks()
    for slot, layers in masks.items():
        for layer, mask in enumerate(layers):
            chosen = int(mask.sum())
            if not overlap and chosen > len(mask) - chosen:
                raise ConfigError(
                    f"slot {slot}, layer {layer}: the set holds {chosen} of {len(mask)} units, so no control without "
                    "any of them is as large. Test a smaller set (neurons.top), or pass overlap=True."
                )
    found = []
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        drawn = {
            slot: [
                _draw(mask, None if values is None else values[slot][layer], draw, overlap)
                for layer, mask in enumerate(layers)
            ]
            for slot, layers in masks.items()
        }
        made = {"match": match, "seed": seed, "number": number, "overlap": overlap}
        found.append(NeuronSet.from_masks(drawn, provenance={**neurons.provenance, "derived": {"control": made}}))
    return found


def _values(neurons: NeuronSet, match: str, statistics: Statistics | None) -> dict[str, list[Tensor]]:
    if statistics is None:
        raise ConfigError(f'match={match!r} needs statistics=..., found none. Give atlas.of("fr"), say.')
    result = {}
    for slot, widths in neurons.widths.items():
        if not any(map(len, neurons.indices[slot])):
            result[slot] = [torch.zeros(width) for width in widths]
            continue
        if slot not in statistics.slots:
            raise ConfigError(f"match={match!r}: the statistics lack slot {slot}. Detect with that slot.")
        if tuple(statistics.layout.widths[slot]) != tuple(widths):
            raise ProvenanceError(
                f"match={match!r}, slot {slot}: the set is of layers with {tuple(widths)} units, the statistics of "
                f"{tuple(statistics.layout.widths[slot])}. Take both from one model."
            )
        if match == "impact":
            flat = statistics.mean(slot)
        elif "activation_squares" in statistics.slots[slot]:
            flat = (statistics.slots[slot]["activation_squares"].sum(0) / statistics.tokens.sum().clamp_min(1)).sqrt()
        else:
            raise ConfigError("match='activity': the statistics hold no activations. Detect again, or match='impact'.")
        result[slot] = statistics.layout.split(slot, flat)
    return result


def _draw(mask: Tensor, values: Tensor | None, draw: random.Random, overlap: bool) -> Tensor:
    """A control of one slot in one layer, bool [width]."""
    tested = mask.nonzero()[:, 0].tolist()
    free = list(range(len(mask))) if overlap else (~mask).nonzero()[:, 0].tolist()
    if values is None:
        chosen = draw.sample(free, len(tested))
    else:
        each = values.tolist()
        free.sort(key=each.__getitem__)
        draw.shuffle(tested)
        nearest = max(2, min(_NEAREST, len(free) // 20))
        chosen = []
        for unit in tested:
            place = bisect.bisect_left(free, each[unit], key=each.__getitem__)
            low = max(0, min(place - nearest // 2, len(free) - nearest))
            chosen.append(free.pop(draw.randrange(low, min(len(free), low + nearest))))
    return torch.zeros_like(mask).index_fill_(0, torch.tensor(chosen, dtype=torch.int64), True)
