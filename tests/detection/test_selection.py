"""Rules of selection on small atlases made by hand, against the same rules in plain Python.

Of the contrast only what any good form of it must have is tested: its formula is a matter of experiments.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from babelscope import Atlas, NeuronSet
from babelscope.errors import ConfigError
from babelscope.neurons.statistics import Layout, Statistics
from babelscope.options import defaults_of
from babelscope.rules.contrast import ContrastOptions

torch.set_num_threads(1)
DEFAULT_BUDGET = defaults_of(ContrastOptions)["budget"]

Neuron = tuple[str, int, int]
Documents = list[dict[str, list[list[float]]]]
"""document -> slot -> layer -> impact of every unit"""

LAYOUT = Layout({"v": (4, 4), "ffn": (7, 5)}, folds=2, top_shares=(0.25, 0.5), thresholds=(3.0, 5.0))
NEURONS: list[Neuron] = [
    (s, layer, u) for s, ws in LAYOUT.widths.items() for layer, w in enumerate(ws) for u in range(w)
]


def statistics_of(documents: Documents, layout: Layout = LAYOUT, active: Mapping[str, list[int]] | None = None) -> Any:
    """Statistics of documents of 10 tokens each, filled in by plain loops; `active` are tokens by slot and unit."""
    found = Statistics.empty(layout)
    for position, document in enumerate(documents):
        fold = position % layout.folds
        found.documents[fold] += 1
        found.tokens[fold] += 10
        for slot, layers in document.items():
            values, place = found.slots[slot], 0
            for layer in layers:
                for unit, impact in enumerate(layer):
                    n = place + unit
                    values["minimum"][fold, n] = min(float(values["minimum"][fold, n]), impact)
                    values["maximum"][fold, n] = max(float(values["maximum"][fold, n]), impact)
                    values["total"][fold, n] += impact
                    values["squares"][fold, n] += impact**2
                    above = sum(other > impact for other in layer)
                    for number, share in enumerate(layout.top_shares):
                        values["hits"][number, fold, n] += above < max(1, round(share * len(layer)))
                    for number, threshold in enumerate(layout.thresholds):
                        values["over"][number, fold, n] += impact >= threshold
                place += len(layer)
    for slot, counts in (active or {}).items():
        found.slots[slot]["positive"][0] = torch.tensor(counts)
    return found


def draw(seed: str, count: int, layout: Layout = LAYOUT) -> Documents:
    """Random impacts from 0 to 8 without ties within a layer; a unit has a level of its own in each language."""
    generator = random.Random(seed)
    level = {slot: [[generator.uniform(0, 6) for _ in range(w)] for w in ws] for slot, ws in layout.widths.items()}
    return [
        {
            slot: [[level[slot][at][u] + generator.uniform(0, 2) for u in range(w)] for at, w in enumerate(ws)]
            for slot, ws in layout.widths.items()
        }
        for _ in range(count)
    ]


DOCUMENTS = {language: draw(language, 6) for language in ("fr", "zh", "sw")}


def make(documents: Mapping[str, Documents] = DOCUMENTS, preset: str = "default", **changes: Any) -> Atlas:
    layout = replace(LAYOUT, **changes)
    return Atlas(
        {language: statistics_of(each, layout) for language, each in documents.items()},
        {"name": "by hand", "fingerprint": "abc"},
        {"preset": preset},
        {language: [{"documents": len(each)}] for language, each in documents.items()},
    )


ATLAS = make()


def impacts(language: str, neuron: Neuron) -> list[float]:
    slot, layer, unit = neuron
    return [document[slot][layer][unit] for document in DOCUMENTS[language]]


def minimum(language: str, neuron: Neuron) -> float:
    return min(impacts(language, neuron))


def mean(language: str, neuron: Neuron) -> float:
    return sum(impacts(language, neuron)) / 6


def hits(language: str, neuron: Neuron, share: float) -> int:
    """Documents in which the unit is among the top share of its layer."""
    slot, layer, unit = neuron
    count = 0
    for document in DOCUMENTS[language]:
        ranked = sorted(document[slot][layer], reverse=True)[: max(1, round(share * len(document[slot][layer])))]
        count += document[slot][layer][unit] in ranked
    return count


def best(neurons: list[Neuron], score: Any, count: int) -> set[Neuron]:
    return set(sorted(neurons, key=lambda neuron: -score(neuron))[:count])


# ----------------------------------------------------------------------------------------------------------------------
# The paper's rule
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 1.0, 2.5, 4.0, 100.0])
@pytest.mark.parametrize("language", DOCUMENTS)
def test_eps_is_reached_in_every_document(language: str, eps: float) -> None:
    found = ATLAS.select(language, rule="minimum", eps=eps)
    assert set(found) == {n for n in NEURONS if minimum(language, n) >= eps}
    if 0 < eps < 5:
        assert 0 < len(found) < len(NEURONS)


def test_eps_itself_is_reached() -> None:
    documents = draw("x", 2)
    documents[0]["ffn"][0][3] = 2.5
    documents[1]["ffn"][0][3] = 2.5
    atlas = make({"fr": documents})
    assert ("ffn", 0, 3) in atlas.select("fr", rule="minimum", eps=2.5)
    assert ("ffn", 0, 3) not in atlas.select("fr", rule="minimum", eps=2.5000002)


@pytest.mark.parametrize("support", [1 / 6, 0.5, 2 / 3, 1.0])
@pytest.mark.parametrize("eps", [3.0, 5.0])
def test_eps_with_less_than_full_support(eps: float, support: float) -> None:
    found = ATLAS.select("fr", rule="minimum", eps=eps, min_support=support)
    expected = {n for n in NEURONS if sum(value >= eps for value in impacts("fr", n)) >= round(6 * support)}
    assert set(found) == expected
    assert expected


@pytest.mark.parametrize("support", [1 / 6, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_top_k_with_support(share: float, support: float) -> None:
    expected = {n for n in NEURONS if hits("fr", n, share) >= round(6 * support)}
    assert set(ATLAS.select("fr", rule="minimum", top_k=share, min_support=support)) == expected
    assert set(ATLAS.select("fr", rule="released", top_k=share, min_support=support)) == expected
    assert 0 < len(expected) < len(NEURONS)


def test_top_k_as_a_number_of_units() -> None:
    """Both layers of v have 4 units, so 0.25 is one unit and 0.5 two; in ffn a number means nothing."""
    one = ATLAS.select("fr", rule="released", top_k=1, slots="v")
    assert one == ATLAS.select("fr", rule="released", top_k=0.25, slots="v")
    assert ATLAS.select("fr", rule="released", top_k=2, slots="v") == ATLAS.select(
        "fr", rule="released", top_k=0.5, slots="v"
    )
    with pytest.raises(ConfigError, match=r"top_k=2 was not counted for slot ffn"):
        ATLAS.select("fr", rule="released", top_k=2, slots="ffn")


def test_the_released_rule_by_default() -> None:
    expected = {n for n in NEURONS if hits("zh", n, 0.5) == 6}
    assert set(ATLAS.select("zh", rule="released")) == expected
    assert set(make(preset="released").select("zh")) == expected


# ----------------------------------------------------------------------------------------------------------------------
# Budgets
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 21))
def test_a_budget_over_all_slots(count: int) -> None:
    found = ATLAS.select("fr", rule="minimum", budget=count, per_slot=False)
    assert set(found) == best(NEURONS, lambda n: minimum("fr", n), count)


@pytest.mark.parametrize("count", range(1, 21))
def test_a_budget_split_over_the_slots(count: int) -> None:
    """8 of the 20 units are in v: a budget of 5 is 2 and 3. What does not divide goes to the largest remainder."""
    found = ATLAS.select("fr", rule="minimum", budget=count)
    assert len(found) == count
    counts = {slot: sum(values) for slot, values in found.counts().items()}
    for slot, units in (("v", 8), ("ffn", 12)):
        assert abs(counts[slot] - count * units / 20) <= 0.5
        mine = [n for n in NEURONS if n[0] == slot]
        assert {n for n in found if n[0] == slot} == best(mine, lambda n: minimum("fr", n), counts[slot])


def test_a_small_budget_split_over_many_slots_is_not_lost() -> None:
    layout = Layout({slot: (10,) for slot in ("q", "k", "v", "o", "ffn")}, folds=1)
    atlas = Atlas({"fr": statistics_of(draw("many", 3, layout), layout)}, {}, {})
    for count in range(1, 8):
        assert len(atlas.select("fr", rule="minimum", budget=count)) == count


@given(share=st.floats(0.001, 0.999), per_slot=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_budget_as_a_share(share: float, per_slot: bool) -> None:
    found = ATLAS.select("zh", rule="minimum", budget=share, per_slot=per_slot)
    assert len(found) == round(share * 20)
    assert found == ATLAS.select("zh", rule="minimum", budget=max(1, round(share * 20)), per_slot=per_slot).top(
        round(share * 20)
    )


def test_a_budget_among_what_reaches_eps() -> None:
    over = [n for n in NEURONS if minimum("fr", n) >= 2.0]
    assert len(over) > 4
    found = ATLAS.select("fr", rule="minimum", eps=2.0, budget=4, per_slot=False)
    assert set(found) == best(over, lambda n: minimum("fr", n), 4)
    assert set(ATLAS.select("fr", rule="minimum", eps=2.0, budget=20, per_slot=False)) == set(over)


def test_a_budget_that_can_not_be_filled_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = ATLAS.select("fr", rule="minimum", eps=5.0, budget=19, per_slot=False)
    assert f"the budget allows 19 units, only {len(found)} qualify under rule minimum" in caplog.text


def test_slots_restrict_the_choice_and_the_budget() -> None:
    found = ATLAS.select("fr", rule="minimum", budget=0.5, slots=("up",))
    mine = [n for n in NEURONS if n[0] == "ffn"]
    assert set(found) == best(mine, lambda n: minimum("fr", n), 6)
    assert found.widths == LAYOUT.widths, "the universe stays that of the atlas, so that sets combine"
    assert len(found | ATLAS.select("fr", rule="minimum", budget=1, slots="v")) == 7


def test_the_presets_default_rules_and_budgets() -> None:
    big = Layout({"ffn": (1000, 1000)}, folds=1)
    documents = {language: draw(f"big {language}", 2, big) for language in ("fr", "zh")}

    def atlas(preset: str) -> Atlas:
        return Atlas({code: statistics_of(each, big) for code, each in documents.items()}, {}, {"preset": preset})

    paper = atlas("paper")
    assert len(paper.select("fr")) == round(0.0013 * 2000)
    assert paper.select("fr") == paper.select("fr", rule="minimum", budget=0.0013)
    default = atlas("default")
    assert len(default.select("fr")) == round(DEFAULT_BUDGET * 2000)
    assert default.select("fr") == default.select("fr", rule="contrast", budget=DEFAULT_BUDGET)
    assert default.select("fr") != default.select("fr", rule="minimum", budget=DEFAULT_BUDGET)


# ----------------------------------------------------------------------------------------------------------------------
# Exclusions and provenance
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [{"rule": "minimum", "eps": 3.0}, {"rule": "minimum", "budget": 12}])
def test_exclusions(rule: dict[str, Any]) -> None:
    fr, zh, sw = (set(ATLAS.select(language, **rule)) for language in ("fr", "zh", "sw"))
    assert fr & zh & sw
    assert fr - (zh | sw)
    assert set(ATLAS.select("fr", **rule, exclude="shared")) == fr - (zh & sw)
    assert set(ATLAS.select("fr", **rule, exclude="others")) == fr - (zh | sw)
    assert set(ATLAS.select("fr", **rule, exclude="zh")) == fr - zh
    assert set(ATLAS.select("fr", **rule, exclude="Chinese")) == fr - zh


def test_scores_and_provenance_of_what_was_selected() -> None:
    found = ATLAS.select("fra", rule="minimum", budget=9, exclude="zh")
    for slot, layers in found.indices.items():
        for layer, units in enumerate(layers):
            expected = [minimum("fr", (slot, layer, unit)) for unit in units.tolist()]
            assert found.scores[slot][layer].tolist() == pytest.approx(expected)
    assert found.provenance["model"] == {"name": "by hand", "fingerprint": "abc"}
    assert found.provenance["language"] == "fr"
    assert found.provenance["detector"] == "plnd"
    assert found.provenance["languages"] == ["fr", "zh", "sw"]
    assert found.provenance["corpus"] == [{"documents": 6}]
    chosen = found.provenance["selection"]
    assert (chosen["rule"], chosen["budget"], chosen["exclude"], chosen["per_slot"]) == ("minimum", 9, "zh", True)


def test_top_of_a_selection_follows_the_scores() -> None:
    assert ATLAS.select("fr", rule="minimum", budget=12, per_slot=False).top(5) == ATLAS.select(
        "fr", rule="minimum", budget=5, per_slot=False
    )


# ----------------------------------------------------------------------------------------------------------------------
# LAPE
# ----------------------------------------------------------------------------------------------------------------------

LAPE_LAYOUT = Layout({"v": (20, 20), "ffn": (150, 250)}, folds=2)


def _lape_atlas() -> tuple[Atlas, dict[str, dict[str, list[int]]]]:
    """1000 tokens per language; most units are rarely active, some in one language only, some never."""
    generator = random.Random(5)
    counts: dict[str, dict[str, list[int]]] = {language: {} for language in DOCUMENTS}
    for slot, widths in LAPE_LAYOUT.widths.items():
        for language in counts:
            counts[language][slot] = [generator.randint(0, 300) for _ in range(sum(widths))]
        for unit in range(sum(widths)):
            if generator.random() < 0.15:
                favourite = generator.choice(sorted(counts))
                for language in counts:
                    counts[language][slot][unit] = generator.randint(500, 1000) if language == favourite else unit % 40
            elif generator.random() < 0.05:
                for language in counts:
                    counts[language][slot][unit] = 0
    atlas = Atlas({}, {}, {"preset": "default"})
    for language, by_slot in counts.items():
        found = statistics_of([], LAPE_LAYOUT)
        found.documents[:] = 50
        found.tokens[:] = 500
        for slot, values in by_slot.items():
            found.slots[slot]["positive"][0] = torch.tensor(values) // 3
            found.slots[slot]["positive"][1] = torch.tensor(values) - torch.tensor(values) // 3
        atlas.statistics[language] = found
    return atlas, counts


def _lape(probabilities: dict[str, list[float]], rate: float) -> dict[str, set[int]]:
    """The published selection, unit by unit."""
    languages = list(probabilities)
    units = len(probabilities[languages[0]])
    everything = sorted(value for values in probabilities.values() for value in values)
    level = everything[round(len(everything) * 0.95) - 1]
    entropies = []
    for unit in range(units):
        values = [probabilities[language][unit] for language in languages]
        if not any(value > level for value in values):
            continue
        shares = [value / sum(values) for value in values]
        entropies.append((-sum(share * math.log(share) for share in shares if share > 0), unit))
    chosen = [unit for _, unit in sorted(entropies)[: round(units * rate)]]
    return {language: {u for u in chosen if probabilities[language][u] > level} for language in languages}


def _flat(slot: str, unit: int) -> Neuron:
    first = LAPE_LAYOUT.widths[slot][0]
    return (slot, 0, unit) if unit < first else (slot, 1, unit - first)


@pytest.mark.parametrize(("budget", "rate"), [(None, 0.01), (0.05, 0.05), (3, 3 / 400)])
def test_lape_is_the_published_selection(budget: float | int | None, rate: float) -> None:
    atlas, counts = _lape_atlas()
    expected = _lape({language: [c / 1000 for c in by["ffn"]] for language, by in counts.items()}, rate)
    assert sum(map(len, expected.values())) >= 3
    for language in counts:
        found = atlas.select(language, rule="lape", budget=budget)
        assert set(found) == {_flat("ffn", unit) for unit in expected[language]}
        assert found.provenance["detector"] == "lape"


def test_lape_over_named_slots_ranks_them_together() -> None:
    atlas, counts = _lape_atlas()
    both = {language: [c / 1000 for c in by["v"] + by["ffn"]] for language, by in counts.items()}
    expected = _lape(both, 0.05)
    for language in counts:
        found = atlas.select(language, rule="lape", budget=0.05, slots=("v", "ffn"))
        assert set(found) == {_flat("v", u) if u < 40 else _flat("ffn", u - 40) for u in expected[language]}
    assert any(
        slot == "v"
        for language in counts
        for slot, _, _ in atlas.select(language, rule="lape", budget=0.05, slots=("v", "ffn"))
    )
    alone = {language: [c / 1000 for c in by["v"]] for language, by in counts.items()}
    for language in counts:
        found = atlas.select(language, rule="lape", budget=0.05, slots="v")
        assert set(found) == {_flat("v", unit) for unit in _lape(alone, 0.05)[language]}


# ----------------------------------------------------------------------------------------------------------------------
# The contrast: properties
# ----------------------------------------------------------------------------------------------------------------------


@st.composite
def worlds(draw_from: Any) -> Mapping[str, Documents]:
    seed = draw_from(st.integers(0, 10_000))
    languages = ("fr", "zh", "sw")[: draw_from(st.integers(2, 3))]
    return {language: draw(f"{seed} {language}", 3) for language in languages}


FORMS = [
    {},
    {"rest_statistic": "mean"},
    {"target_statistic": "minimum"},
    {"target_statistic": "minimum", "rest_statistic": "mean"},
]


@pytest.mark.parametrize("form", FORMS)
@given(world=worlds(), count=st.integers(1, 20), per_slot=st.booleans())
@settings(max_examples=25, deadline=None)
def test_contrast_takes_only_what_the_language_needs_more(
    form: dict[str, str], world: Mapping[str, Documents], count: int, per_slot: bool
) -> None:
    found = make(world).select("fr", rule="contrast", budget=count, per_slot=per_slot, **form)
    assert len(found) <= count

    def values(language: str, neuron: Neuron) -> list[float]:
        slot, layer, unit = neuron
        return [document[slot][layer][unit] for document in world[language]]

    needed = set()
    for neuron in NEURONS:
        own = values("fr", neuron)
        mine = min(own) if form.get("target_statistic") == "minimum" else sum(own) / len(own)
        rest = [sum(values(code, neuron)) / 3 for code in world if code != "fr"]
        if mine > (sum(rest) / len(rest) if form.get("rest_statistic") == "mean" else max(rest)):
            needed.add(neuron)
    assert set(found) <= needed
    if not per_slot:
        assert len(found) == min(count, len(needed))
    assert all(bool((score > 0).all()) for layers in found.scores.values() for score in layers)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("slot", ["v", "ffn"])
@given(world=worlds(), count=st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_contrast_is_free_of_the_slots_units(
    form: dict[str, str], slot: str, world: Mapping[str, Documents], count: int
) -> None:
    """Impacts of attention probabilities and of FFN outputs have different units: a thousandfold changes nothing."""

    def scaled(document: dict[str, list[list[float]]]) -> dict[str, list[list[float]]]:
        return {s: [[v * 1024 if s == slot else v for v in layer] for layer in ls] for s, ls in document.items()}

    plain = make(world).select("fr", rule="contrast", budget=count, **form)
    other = {language: [scaled(document) for document in documents] for language, documents in world.items()}
    assert make(other).select("fr", rule="contrast", budget=count, **form) == plain


@given(world=worlds())
@settings(max_examples=15, deadline=None)
def test_contrast_sets_grow_with_the_budget(world: Mapping[str, Documents]) -> None:
    atlas = make(world)
    sets = [atlas.select("fr", rule="contrast", budget=count) for count in range(1, 21)]
    assert all(small <= large for small, large in itertools.pairwise(sets))


def test_contrast_against_the_largest_gives_disjoint_sets() -> None:
    sets = [ATLAS.select(language, rule="contrast", budget=20) for language in DOCUMENTS]
    assert sum(map(len, sets)) == len(sets[0] | sets[1] | sets[2])


def test_contrast_where_nothing_is_needed_more(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = make({"fr": DOCUMENTS["fr"], "zh": DOCUMENTS["fr"]}).select("fr", rule="contrast", budget=5)
    assert len(found) == 0
    assert "only 0 qualify under rule contrast" in caplog.text


def test_contrast_of_activations() -> None:
    atlas, counts = _lape_atlas()
    found = atlas.select("fr", rule="contrast", statistic="activation", budget=30)
    assert len(found) == 30
    needed = {
        _flat(slot, unit)
        for slot, values in counts["fr"].items()
        for unit, value in enumerate(values)
        if value > max(counts[other][slot][unit] for other in ("zh", "sw"))
    }
    assert set(found) <= needed


# ----------------------------------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({"rule": "contrats"}, r"wanted a rule, found 'contrats'\. Did you mean contrast\?"),
        ({"rule": "minimum", "budget": 0.0}, r"budget: wanted a share of all units .* found 0\.0"),
        ({"rule": "minimum", "budget": 1.0}, r"found 1\.0"),
        ({"rule": "minimum", "budget": -0.1}, r"found -0\.1"),
        ({"rule": "minimum", "budget": 12.0}, r"found 12\.0"),
        ({"rule": "minimum", "budget": 0}, "or a whole number of units .*found 0"),
        ({"rule": "minimum", "budget": -3}, "or a whole number of units .*found -3"),
        ({"rule": "minimum", "eps": 1.0, "min_support": 0.0}, "min_support: wanted a share above 0"),
        ({"rule": "minimum", "eps": 1.0, "min_support": 1.5}, "at most 1, found 1.5"),
        ({"rule": "minimum", "eps": 2.0, "min_support": 0.5}, r"counted \[3\.0, 5\.0\].*thresholds=\[2\.0\]"),
        ({"rule": "minimum", "top_k": 0.3}, r"top_k=0\.3 was not counted for slot v; .*top_shares=\[0\.3\]"),
        ({"rule": "released", "top_k": 7}, "top_k=7 was not counted"),
        ({"rule": "minimum", "slots": ("q",)}, r"the atlas holds slots v, ffn, not \['q'\]"),
        ({"rule": "minimum", "slots": ("w",)}, "wanted slots among"),
        ({"rule": "minimum", "exclude": "fr"}, "would leave nothing of fr's own set"),
        ({"rule": "minimum", "exclude": "de"}, "the atlas holds fr, zh, sw, not 'de'"),
        ({"rule": "minimum", "exclude": "nonsense"}, "unknown language 'nonsense'"),
        ({"rule": "contrast", "statistic": "activations"}, "statistic: wanted one of impact, activation"),
        ({"rule": "contrast", "target_statistic": "max"}, "target_statistic: wanted one of mean, minimum"),
        ({"rule": "contrast", "rest_statistic": "minimum"}, "rest_statistic: wanted one of max, mean"),
        ({"rule": "contrast", "eps": 1.0}, "rule 'contrast' has no use for eps"),
        ({"rule": "contrast", "top_k": 0.25}, "no use for top_k"),
        ({"rule": "contrast", "min_support": 0.5}, "no use for min_support"),
        ({"rule": "contrast", "statistic": "activation", "target_statistic": "minimum"}, "no use for target_statistic"),
        ({"rule": "minimum", "statistic": "impact"}, "no use for statistic"),
        ({"rule": "minimum", "budget": 3, "min_support": 0.5}, "no use for min_support"),
        ({"rule": "released", "eps": 1.0}, "no use for eps"),
        ({"rule": "lape", "top_k": 0.25, "per_slot": True}, "no use for per_slot, top_k"),
    ],
)
def test_requests_that_can_not_be_honoured(request_: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ATLAS.select("fr", **request_)


@pytest.mark.parametrize("request_", [{"rule": "contrast"}, {"rule": "lape"}, {}])
def test_a_comparison_with_one_language(request_: dict[str, Any]) -> None:
    alone = make({"fr": DOCUMENTS["fr"]})
    with pytest.raises(ConfigError, match=r"compares languages, the atlas holds only fr\. .*rule='minimum'"):
        alone.select("fr", **request_)
    with pytest.raises(ConfigError, match="needs at least two languages"):
        alone.select("fr", rule="minimum", exclude="shared")


def test_hits_that_were_not_counted_at_all() -> None:
    with pytest.raises(ConfigError, match=r"counted none\. Detect again with top_shares"):
        make(top_shares=()).select("fr", rule="released")
    with pytest.raises(ConfigError, match="the atlas counted none"):
        make(thresholds=()).select("fr", rule="minimum", eps=1.0, min_support=0.5)


def test_a_language_that_the_atlas_lacks() -> None:
    with pytest.raises(ConfigError, match="the atlas holds fr, zh, sw, not 'de'"):
        ATLAS.select("de")
    with pytest.raises(ConfigError, match="unknown language 'klingon'"):
        ATLAS.select("klingon")


def test_selected_sets_are_neuron_sets() -> None:
    assert isinstance(ATLAS.select("fr", rule="minimum", budget=3), NeuronSet)


def test_o_is_left_out_where_it_is_the_same_unit_as_v() -> None:
    """Heads that are not grouped make `v` and `o` one unit under two names, which must not take two places."""
    layout = Layout({"v": (4,), "o": (4,)}, folds=2)
    documents = {language: draw(language, 4, layout) for language in ("fr", "zh")}
    atlas = Atlas({code: statistics_of(texts, layout) for code, texts in documents.items()}, {}, {})
    by_default = atlas.select("fr", rule="minimum", budget=2)
    assert by_default.counts() == {"v": [2], "o": [0]}
    assert sum(atlas.select("fr", rule="minimum", budget=4, slots=("v", "o")).counts()["o"]) == 2

    grouped = Layout({"v": (4,), "o": (8,)}, folds=2)
    documents = {language: draw(language, 4, grouped) for language in ("fr", "zh")}
    atlas = Atlas({code: statistics_of(texts, grouped) for code, texts in documents.items()}, {}, {})
    assert sum(atlas.select("fr", rule="minimum", budget=3).counts()["o"]) == 2
