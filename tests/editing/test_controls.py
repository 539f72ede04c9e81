"""Controls are as large as the set, in the same places, apart from it, and as active as it if asked."""

from __future__ import annotations

import pytest
import torch

from babelscope import NeuronSet
from babelscope.editing.controls import controls
from babelscope.errors import ConfigError, ProvenanceError
from babelscope.neurons.statistics import Layout, Statistics

WIDTHS = {"q": (64, 64), "ffn": (400, 300)}


def statistics(widths: dict[str, tuple[int, ...]] = WIDTHS) -> Statistics:
    """Impacts and activities of two unlike orders, heavy-tailed as real ones."""
    result = Statistics.empty(Layout(widths, folds=2))
    generator = torch.Generator().manual_seed(1)
    result.documents += 5
    result.tokens += 50
    for values in result.slots.values():
        values["total"] += torch.randn(values["total"].shape, generator=generator, dtype=torch.float64).mul(1.5).exp()
        values["activation_squares"] += torch.rand(values["total"].shape, generator=generator, dtype=torch.float64)
    return result


def strongest(field: str, share: float = 0.05) -> NeuronSet:
    """The units with the largest values in each layer."""
    found, masks = statistics(), {}
    for slot in WIDTHS:
        layers = found.layout.split(slot, found.slots[slot][field].sum(0))
        masks[slot] = [values >= values.quantile(1 - share) for values in layers]
    return NeuronSet.from_masks(masks, provenance={"model": {"fingerprint": "abc"}})


@pytest.mark.parametrize("match", ["count", "activity", "impact"])
@pytest.mark.parametrize("overlap", [False, True])
def test_as_many_in_each_slot_and_layer_and_apart_from_the_set(match: str, overlap: bool) -> None:
    neurons = strongest("total")
    found = controls(neurons, 8, match=match, statistics=statistics(), overlap=overlap)
    assert len(found) == 8
    for each in found:
        assert each.counts() == neurons.counts()
        assert each.widths == neurons.widths
        assert each.provenance["model"] == {"fingerprint": "abc"}
        assert overlap or not each & neurons
    assert all(found[0] != other for other in found[1:])
    assert overlap == any(bool(each & neurons) for each in found)


def test_the_seed_decides() -> None:
    neurons = strongest("total")
    first, again, other = (controls(neurons, 3, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert controls(neurons, 5, seed=1)[:3] == first  # more of them leave the first ones as they were


@pytest.mark.parametrize(("match", "field"), [("impact", "total"), ("activity", "activation_squares")])
def test_matched_controls_are_as_active(match: str, field: str) -> None:
    # Every second one of the strongest, so that there are others like them.
    numbers = statistics()
    strong = strongest(field, 0.3)
    neurons = NeuronSet.from_masks(
        {
            slot: [mask & (torch.arange(len(mask)) % 2 == 0) for mask in layers]
            for slot, layers in strong.masks().items()
        }
    )

    def level(each: NeuronSet, slot: str) -> float:
        layers = numbers.layout.split(slot, numbers.slots[slot][field].sum(0))
        return float(
            torch.cat([values.log()[mask] for values, mask in zip(layers, each.masks()[slot], strict=True)]).mean()
        )

    for slot in WIDTHS:
        target = level(neurons, slot)
        matched = [level(each, slot) for each in controls(neurons, 10, match=match, statistics=numbers)]
        plain = [level(each, slot) for each in controls(neurons, 10)]
        miss, plainly = (sum(abs(value - target) for value in values) for values in (matched, plain))
        assert miss < 0.35 * plainly


def test_every_other_unit_can_be_drawn() -> None:
    neurons = NeuronSet.from_masks({"ffn": [torch.arange(8) == 0]})
    drawn = {unit for each in controls(neurons, 100) for _, _, unit in each}
    assert drawn == set(range(1, 8))


def test_refusals() -> None:
    neurons = strongest("total")
    half = NeuronSet.from_masks({"ffn": [torch.arange(9) < 5]})
    with pytest.raises(ConfigError, match="5 of 9 units"):
        controls(half)
    assert len(controls(half, 2, overlap=True)[0]) == 5
    with pytest.raises(ConfigError, match="needs statistics"):
        controls(neurons, match="impact")
    with pytest.raises(ConfigError, match="wanted match among"):
        controls(neurons, match="size")
    with pytest.raises(ConfigError, match="1 control or more"):
        controls(neurons, 0)
    with pytest.raises(ConfigError, match="lack slot ffn"):
        controls(neurons, match="impact", statistics=statistics({"q": (64, 64)}))
    with pytest.raises(ProvenanceError, match="one model"):
        controls(neurons, match="impact", statistics=statistics({"q": (64, 64), "ffn": (300, 300)}))
