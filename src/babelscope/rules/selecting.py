"""From a rule's choice to a set of neurons: slots, exclusions, and the file's header."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, Any

from babelscope.errors import ConfigError
from babelscope.languages import get_language
from babelscope.models.slots import resolve_slots
from babelscope.neurons.neuronset import NeuronSet
from babelscope.rules.contract import RULES, Rule, RuleOptions

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas


def usual_rule(settings: dict[str, Any]) -> str:
    """The rule that the preset of a measurement stands for."""
    return {"paper": "minimum", "released": "released"}.get(str(settings.get("preset")), "contrast")


def select(atlas: Atlas, language: str, name: str, options: RuleOptions) -> NeuronSet:
    """The neurons of a language by a rule; see `Atlas.select`."""
    rule = RULES[name]()
    slots = rule.usual_slots(atlas) if options.slots is None else resolve_slots(options.slots)
    missing = [slot for slot in slots if slot not in atlas.slots]
    if missing:
        raise ConfigError(f"the atlas holds slots {', '.join(atlas.slots)}, not {missing}. Detect with those slots.")
    if rule.compares and len(atlas.languages) < 2:
        raise ConfigError(
            f"rule {name!r} compares languages, the atlas holds only {atlas.languages[0]}. "
            "Detect more languages, or use rule='minimum' (--rule minimum)."
        )
    options = rule.settled(atlas, options).changed(slots=slots)
    chosen = _chosen(atlas, language, rule, options)
    if options.exclude is None:
        return chosen
    return replace(chosen - _excluded(atlas, language, rule, options), provenance=chosen.provenance)


def _excluded(atlas: Atlas, language: str, rule: Rule[Any], options: RuleOptions) -> NeuronSet:
    """The neurons to take away: selected in the same way in other languages."""
    what = options.exclude
    alone = options.changed(exclude=None)
    if what not in ("shared", "others"):
        code = get_language(str(what)).code
        atlas.of(code)
        if code == language:
            raise ConfigError(f"exclude={code!r} would leave nothing of {language}'s own set. Exclude another.")
        return _chosen(atlas, code, rule, alone)
    rest = [code for code in atlas.languages if code != language]
    if not rest:
        raise ConfigError(
            f"exclude={what!r} needs at least two languages, the atlas holds only {language}. Detect more languages."
        )
    return reduce(and_ if what == "shared" else or_, (_chosen(atlas, code, rule, alone) for code in rest))


def _chosen(atlas: Atlas, language: str, rule: Rule[Any], options: RuleOptions) -> NeuronSet:
    import torch

    assert options.slots is not None
    scores, masks = rule.choose(atlas, language, options, options.slots)
    full_masks, full_scores = {}, {}
    for slot, widths in atlas.layout.widths.items():
        units = sum(widths)
        mask = masks.get(slot, torch.zeros(units, dtype=torch.bool))
        score = scores.get(slot, torch.full((units,), torch.nan, dtype=torch.float64))
        full_masks[slot] = atlas.layout.split(slot, mask)
        full_scores[slot] = atlas.layout.split(slot, score.float())
    selected = {"rule": rule.name, **{key: value for key, value in options.as_json().items() if value is not None}}
    return NeuronSet.from_masks(full_masks, full_scores, atlas.provenance(language, rule.detector, selected))
