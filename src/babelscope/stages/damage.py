"""The stage `damage`: every language's texts without each language's neurons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from babelscope.options import Controls, Options, Several
from babelscope.report.results import Section, figure, finding, table
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import BITS, Job, between, by_rule, named, spread

if TYPE_CHECKING:
    from babelscope.neurons.neuronset import NeuronSet
    from babelscope.stages.study import Study


class DamageOptions(Options):
    """Bits per byte of every language's texts without each language's neurons."""

    texts: Several = 20
    """held-out texts per language"""
    max_tokens: Several = 256
    """texts are cut to this length"""
    controls: Controls = 5
    """random sets per language; 0 or at least 2"""


class Damage(Stage[DamageOptions]):
    """Bits per byte of every language's texts without each language's neurons, beside other rules and random sets."""

    name, title, options = "damage", "What breaks without a language's neurons", DamageOptions
    needs = ("select",)
    texts = ("held_out",)
    decides = ("languages", "seed", "select.compare")

    def cost(self, options: DamageOptions, study: Study) -> Cost:
        """All texts for every set of every kind."""
        kinds, languages = 1 + len(study.select.compare) + options.controls, len(study.languages)
        return Cost(kinds, float(kinds * (languages + 1) * languages * options.texts * options.max_tokens))

    def run(self, job: Job, options: DamageOptions) -> Section:
        """Measures the texts of every language without each language's neurons, beside other rules and random sets."""
        from babelscope.editing.controls import controls
        from babelscope.evaluation.likelihood import damage_matrix
        from babelscope.models.anatomy import Anatomy

        codes = job.study.languages
        held = job.texts("held_out", options.texts)
        mine = job.sets

        def random_sets(number: int) -> dict[str, NeuronSet]:
            return {code: sets[number] for code, sets in drawn.items()}

        kinds: dict[str, Callable[[], Mapping[str, NeuronSet]]] = {"selected": lambda: mine}
        for rule in job.study.select.compare:
            kinds[rule] = partial(by_rule, job, rule)
        drawn = {
            code: controls(neurons, options.controls, seed=job.study.seed) if options.controls else []
            for code, neurons in mine.items()
        }
        for number in range(options.controls):
            kinds[f"random {number + 1}"] = partial(random_sets, number)
        job.start(len(kinds))
        anatomy = Anatomy(job.model, check=False)

        def measured(make: Callable[[], Mapping[str, NeuronSet]]) -> dict[str, Any]:
            found = damage_matrix(
                anatomy, job.tokenizer, make(), held, max_tokens=options.max_tokens, seed=job.study.seed
            )
            return {name: getattr(found, name).tolist() for name in ("base", "change", "low", "high")}

        matrices = {kind: job.cell(kind, partial(measured, make)) for kind, make in kinds.items()}
        own, others = ({kind: _harm(each["change"], at) for kind, each in matrices.items()} for at in ("own", "others"))
        random = [kind for kind in kinds if kind.startswith("random ")]
        findings, rows, forest = [], [], []
        selective = spread(a - b for a, b in zip(own["selected"], others["selected"], strict=True))
        findings.append(
            finding(
                "Switching off a language's neurons harms that language more than the others",
                selective,
                f"Its own texts cost {between(spread(own['selected']))} bits per byte more, those of the other "
                "languages "
                f"{between(spread(others['selected']))}; the difference is {between(selective)} (means over "
                f"{len(codes)} "
                "languages with 95 % intervals).",
            )
        )
        drawn_own = [sum(own[kind][at] for kind in random) / len(random) for at in range(len(codes))] if random else []
        if random:
            beyond = spread(a - b for a, b in zip(own["selected"], drawn_own, strict=True))
            findings.append(
                finding(
                    "A language's neurons matter more to it than random ones",
                    beyond,
                    f"{between(beyond)} bits per byte more harm than {len(random)} random sets of the same counts by "
                    "layer "
                    f"and slot do, which do {between(spread(drawn_own))}.",
                )
            )
        titles = {kind: f"rule {kind}" for kind in kinds} | {"selected": f"rule {job.study.select.rule}"}
        titles |= {kind: f"random sets {number}" for number, kind in enumerate(random, start=1)}
        for kind in matrices:
            rows.append([titles[kind], *(part for side in (own, others) for part in _cells(spread(side[kind])))])
        for kind in [kind for kind in matrices if kind not in random]:
            matrix = matrices[kind]
            forest += [
                {"group": titles[kind], "label": named(code), "control": False, "value": matrix["change"][at][at],
                 "low": matrix["low"][at][at], "high": matrix["high"][at][at]}
                for at, code in enumerate(codes)
            ]  # fmt: skip
        forest += [
            {
                "group": "random sets (mean)",
                "label": named(code),
                "value": value,
                "low": None,
                "high": None,
                "control": True,
            }
            for code, value in zip(codes, drawn_own, strict=False)
        ]
        figures = [
            figure(f"damage {kind}", "matrix", f"Damage matrix: {titles[kind]}",
                   f"{BITS.capitalize()}: the row's neurons off, the column's held-out texts.",
                   [{"row": row, "column": column,
                     **{"value": matrices[kind]["change"][i][j], "low": matrices[kind]["low"][i][j],
                        "high": matrices[kind]["high"][i][j]}}
                    for i, row in enumerate(codes) for j, column in enumerate(codes)])
            for kind in matrices if kind not in random[1:]
        ]  # fmt: skip
        job.leave(change={kind: matrix["change"] for kind, matrix in matrices.items()})
        title = "Harm of each language's neurons to the language itself"
        caption = "Change in bits per byte of its own held-out texts, with 95 % intervals over texts."
        columns = ("sets", "own", "own low", "own high", "others", "others low", "others high")
        base = [[named(code), value] for code, value in zip(codes, matrices["selected"]["base"], strict=True)]
        return Section(
            f"{options.texts} held-out texts per language, cut to {options.max_tokens} tokens, in bits per UTF-8 byte; "
            f"sets are zeroed. Random sets ({options.controls} per language) have the same counts by layer and slot "
            "and "
            "share no neuron with the tested set. Intervals of cells are by bootstrap over texts, those of means "
            "over languages.",
            findings,
            [
                table("harm", "Mean harm over languages, in bits per byte", columns, rows),
                table("intact", "The intact model", ("language", "bits per byte"), base),
            ],
            [figure("own", "forest", title, caption, forest, x=BITS), *figures],
        )


def _harm(change: list[list[float]], at: str) -> list[float]:
    """By language: harm to its own texts, or the mean over the others'."""
    if at == "own":
        return [row[place] for place, row in enumerate(change)]
    return [(sum(row) - row[place]) / (len(row) - 1) for place, row in enumerate(change)]


def _cells(interval: Any) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high
