"""The stage `select`: the set of each language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from babelscope.errors import ConfigError
from babelscope.options import Budget, Choice, Options, Refused, extended, fields_of
from babelscope.report.results import Finding, Section, figure, finding, table
from babelscope.rules.contract import RULES, all_settings, options_of
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import Job, between, by_rule, named, spread

if TYPE_CHECKING:
    from babelscope.neurons.neuronset import NeuronSet
    from babelscope.stages.study import Study


RuleName = Annotated[str, Choice(RULES.names, "RULE")]


class SelectOptions(Options):
    """The set of each language."""

    rule: RuleName = "contrast"
    """contrast, minimum (the paper's), released or lape"""
    budget: Budget = 0.01
    """neurons per language, a share of all units or a number"""
    exclude: str | None = None
    """shared, others or a language"""
    compare: tuple[RuleName, ...] = ()
    """other rules of the same budget beside it in damage"""


COMMON = ("budget", "exclude")
"""The settings of rules that `SelectOptions` has itself."""
SelectSettings = extended(
    SelectOptions, "SelectSettings", {name: setting for name, setting in all_settings().items() if name not in COMMON}
)
"""With the settings of every rule, those of other packages too."""


def rule_settings(options: SelectOptions) -> dict[str, Any]:
    """The settings of the rule that are given."""
    wanted = fields_of(RULES[options.rule].options)
    given = {name: getattr(options, name) for name in all_settings()}
    return {name: value for name, value in given.items() if value is not None and (name in wanted or name != "budget")}


class Select(Stage[SelectOptions]):
    """Chooses the set of each language; writes the neuron files."""

    name, title, options = "select", "The neurons of each language", SelectSettings
    needs = ("detect",)
    decides = ("languages",)

    def check(self, options: SelectOptions, study: Study) -> Iterator[Refused]:
        """A known thing to exclude."""
        if options.exclude not in (None, "shared", "others", *study.languages):
            wanted = f"shared, others or one of {', '.join(study.languages)}"
            yield Refused("select.exclude", wanted, repr(options.exclude))
        try:
            options_of(options.rule, rule_settings(options))
        except ConfigError as error:
            yield Refused("select.rule", "a rule with settings of its own", options.rule, _sentence(str(error)))

    def cost(self, options: SelectOptions, study: Study) -> Cost:
        """Next to nothing."""
        return Cost(1)

    def run(self, job: Job, options: SelectOptions) -> Section:
        """Chooses the set of each language; writes the neuron files."""
        job.start(1)
        sets = {
            code: job.atlas.select(code, rule=options.rule, **rule_settings(options)) for code in job.study.languages
        }
        for code, neurons in sets.items():
            neurons.save(job.folder / f"{code}.safetensors")
        job.passed("")
        slots = list(job.atlas.slots)
        counts = [
            {"language": code, "slot": slot, "layer": layer, "count": count}
            for code, neurons in sets.items()
            for slot, layers in neurons.counts().items()
            for layer, count in enumerate(layers)
        ]
        rows = [
            [
                named(code),
                len(neurons),
                len(neurons) / neurons.universe,
                *(sum(neurons.counts()[slot]) for slot in slots),
            ]
            for code, neurons in sets.items()
        ]
        findings, figures = [], []
        for rule in dict.fromkeys((options.rule, *options.compare)):
            if rule == "contrast":  # gives a unit to one language only, so nothing is shared
                continue
            chosen = sets if rule == options.rule else by_rule(job, rule)
            pairs = list(_overlaps(chosen))
            findings += _shared(rule, pairs, list(chosen))
            caption = "Share of the column's neurons that the row has too; in brackets what chance would give."
            figures.append(figure(f"overlap {rule}", "overlap", f"Overlap of the sets: rule {rule}", caption, pairs))
        return Section(
            f"Rule {options.rule}, budget {options.budget:g}"
            + (f", without {options.exclude}" if options.exclude else "")
            + ". Overlap of row x and column y is |x and y| / |y|; expected, and the chance of at least as much, are of"
            " random sets with the same counts by layer and slot.",
            findings,
            [table("sets", "Neurons of each language", ("language", "neurons", "share", *slots), rows)],
            [
                figure("counts", "counts", "Neurons by layer and slot",
                       "How many of each language's neurons lie where.", counts),
                *figures,
            ],
        )  # fmt: skip


def _shared(rule: str, pairs: list[dict[str, Any]], codes: list[str]) -> list[Finding]:
    rows = [[pair["overlap"] - pair["expected"] for pair in pairs if pair["row"] == code] for code in codes]
    if not all(rows):
        return []
    interval = spread(sum(row) / len(row) for row in rows)
    mean = sum(pair["overlap"] for pair in pairs) / len(pairs)
    text = (
        f"Two sets share {mean:.1%} of their neurons on average, {between(interval)} more than sets of the same counts "
        f"by layer and slot would share by chance (95 % interval over languages)."
    )
    return [finding(f"The sets of two languages share more neurons than chance (rule {rule})", interval, text)]


def _overlaps(sets: Mapping[str, NeuronSet]) -> Iterator[dict[str, Any]]:
    """Every ordered pair of sets: the share of the column's neurons that the row has too, beside chance."""
    from babelscope.evaluation.inference import overlap_p

    for row, mine in sets.items():
        for column, theirs in sets.items():
            if row == column or not theirs:
                continue
            shared, chance = len(mine & theirs), mine.expected_overlap(theirs) / len(theirs)
            p = overlap_p(shared, *zip(*mine.strata(theirs), strict=True))
            yield {"row": row, "column": column, "overlap": shared / len(theirs), "expected": chance, "p": p}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
