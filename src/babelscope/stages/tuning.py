"""The stage `tuning`: neurons of a language trained on its documents, beside other arms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from babelscope.options import Refused
from babelscope.report.results import Section, figure, finding, table
from babelscope.stages.asking import answers
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import BITS, Job, between, named, strangers
from babelscope.stages.paper import printed_enhancement
from babelscope.stages.study import by_language
from babelscope.tuning.options import KINDS, TuningOptions

if TYPE_CHECKING:
    from babelscope.evaluation.inference import Interval
    from babelscope.neurons.neuronset import NeuronSet
    from babelscope.stages.study import Study


class Tuning(Stage[TuningOptions]):
    """Neurons of a language trained on its documents, beside the other arms."""

    name, title, options = "tuning", "Training only a language's neurons", TuningOptions
    needs = ("select",)
    texts = ("detect", "validation", "held_out")
    decides = ("languages", "seed", "data")

    def tasks(self, options: TuningOptions) -> tuple[str, ...]:
        """The tasks that are scored before and after."""
        return options.tasks

    def check(self, options: TuningOptions, study: Study) -> Iterator[Refused]:
        """Validation texts, languages of the study, an atlas for the arms of other rules."""
        rules = [arm for arm in options.arms if arm not in KINDS]
        if rules and "select" in study.given and "detect" not in {*study.stages, *study.given}:
            yield Refused(
                "tuning.arms", "an atlas to select by other rules from", "none", "Give atlas: RUN, or drop it."
            )
        if options.others_at_most is not None and set(study.languages) <= set(options.languages[:1]):
            yield Refused("tuning.others_at_most", "another language to spare", "none", "Add it to languages.")
        if study.corpora.validation is None:
            remedy = "Add texts that are not in detect or held_out."
            yield Refused("corpora", "the key validation for tuning", "none", remedy)
        yield from strangers(study, "tuning.languages", options.languages)
        if not options.languages:
            remedy = "Add it, or drop tuning from stages."
            yield Refused("stages", "tuning.languages for the stage tuning", "none", remedy)

    def sources(self, options: TuningOptions, study: Study) -> dict[str, dict[str, str]]:
        """The texts to train on, to choose by, to report, and those that other languages are kept by."""
        train = study.corpus("detect") if options.train is None else by_language(options.train, options.languages)
        keep = {} if options.keep is None else {"keep": by_language(options.keep, study.languages)}
        return super().sources(options, study) | {"detect": train} | keep

    def cost(self, options: TuningOptions, study: Study) -> Cost:
        """Every training, and what is measured on the way and in the end."""
        trained, cells = 0.0, 0
        kept = 1.0 if options.keep is None else 2.0
        for _, documents, arm in options.groups():
            trainings = len(options.rates(arm)) - 1 + (options.random if arm == "random" else 1) * len(options.seeds)
            trained += trainings * documents * options.max_tokens * options.epochs * kept
            cells += trainings
        read = (2.0 + options.evaluations) * cells * options.texts * options.max_tokens
        total = Cost(cells, read + 2.0 * cells * len(study.languages) * options.texts * 256, 0, trained)
        for task in options.tasks:
            answered = answers(task, 2 * cells, options.limit, 8)
            total += Cost(0, answered.read, answered.steps)
        return total

    def run(self, job: Job, options: TuningOptions) -> Section:
        """Neurons of a language trained on its documents, beside the other arms."""
        from babelscope.evaluation.inference import Interval
        from babelscope.tuning.arms import Arms
        from babelscope.tuning.verdict import ALL

        job.start(options.trainings())
        sources = job.study.texts(job.stage)
        measured = (*options.languages, *(code for code in job.study.languages if code not in options.languages))
        validated = options.languages if options.others_at_most is None else measured
        read = {"detect": options.languages, "validation": validated, "held_out": measured, "keep": measured}
        found = Arms(
            options,
            job.loader.fresh,
            {code: dict(arms_of(job, options, code)) for code in options.languages},
            {
                kind: {code: job.corpus(kind, code) for code in codes if code in sources[kind]}
                for kind, codes in read.items()
                if kind in sources
            },
            job.folder / "arms",
            job.task,
            job.study.data,
        ).run()
        titles_of = {arm: job.study.select.rule if arm == "neurons" else arm for arm in options.arms}
        together = [
            row for row in found.rows if row.language == (ALL if len(options.languages) > 1 else options.languages[0])
        ]
        largest = max(options.documents)
        arm = next((arm for arm in options.arms if arm not in ("random", "lora", "full")), options.arms[0])
        figures = []
        titles = {"target": "the tuned language", "others": "the other languages"}
        for side, title in titles.items():
            records = [
                {
                    "series": titles_of[row.arm],
                    "x": row.documents,
                    "y": change.value,
                    "low": change.low,
                    "high": change.high,
                }
                for row in together
                if (change := getattr(row, side)) is not None
            ]
            caption = (
                f"By documents trained on; below zero is better. {titles_of[arm].capitalize()}: the language's neurons "
                "by that rule. Bands are 95 % intervals over texts and runs."
            )
            axes = {"x": "documents trained on", "y": BITS}
            figures.append(figure(f"tuning {side}", "curve", f"{BITS.capitalize()}: {title}", caption, records, **axes))
        findings = []
        for row in together:
            if row.documents == largest and row.arm == arm and row.target_to_random is not None:
                more = Interval(-row.target_to_random.value, -row.target_to_random.high, -row.target_to_random.low)
                text = (
                    f"With {largest} documents held-out texts of the tuned language gain {between(more)} bits per byte "
                    f"more than with as many random neurons, each at its best learning rate (means over "
                    f"{', '.join(map(named, options.languages))})."
                )
                findings.append(finding("Training a language's own neurons helps it more than random ones", more, text))
        columns = ("language", "documents", "arm", "rate", "parameters", "before", "change", "low", "high", "others",
                   "others low", "others high", "tasks before", "tasks change", "tasks low", "tasks high")  # fmt: skip
        rows = [
            [_who(row.language), row.documents, titles_of[row.arm], row.rate, row.parameters, row.target_before,
             *_cells(row.target), *_cells(row.others), row.tasks_before, *_cells(row.tasks)]
            for row in found.rows
        ]  # fmt: skip
        tables = [
            table("tuning", "Bits per byte of the tuned language and the others; scores of tasks", columns, rows),
            table("verdicts", "Which arm is best", ("verdict",), [[_said(each, titles_of)] for each in found.verdicts]),
        ]
        printed = [
            [
                task,
                each,
                *(100 * value if value is not None else None for value in _scores(found.rows, arm, each)),
                score,
            ]
            for task in options.tasks
            for each in options.documents
            if (score := printed_enhancement(job.loader.spec.name, task, each)) is not None
        ]
        if printed:
            title = "Measured (mean over tasks and languages) beside what the paper prints, in percent"
            tables.append(table("printed", title, ("task", "documents", "before", "after", "printed"), printed))
        recipe = ", ".join(f"{name} {value}" for name, value in options.recipe().items())
        return Section(
            f"Only the chosen neurons' rows and columns were trained ({recipe}); validation texts chose the step and "
            f"(of several) the learning rate; {options.texts} held-out texts per language are told. Random neurons "
            "have the same counts by layer and slot; LoRA about as many parameters.",
            findings,
            tables,
            figures,
        )


def arms_of(job: Job, options: TuningOptions, language: str) -> Iterator[tuple[str, NeuronSet]]:
    """The sets of a language by arm: the selected one, and one of each other rule of the same budget."""
    yield "neurons", job.sets[language]
    for arm in options.arms:
        if arm not in KINDS:
            yield arm, job.atlas.select(language, rule=arm, budget=job.study.select.budget)


def _who(language: str) -> str:
    return "mean" if language == "all" else named(language)


def _said(verdict: str, titles: Mapping[str, str]) -> str:
    """A verdict with the names of the language, with whose code it begins, and of the arms."""
    language, _, rest = verdict.partition(", ")
    start, colon, end = rest.partition(": ")
    return f"{_who(language)}, {start}{colon}{re.sub(r'[a-z]+', lambda word: titles.get(word[0], word[0]), end)}"


def _cells(interval: Interval | None) -> tuple[float | None, ...]:
    return (None, None, None) if interval is None else (interval.value, interval.low, interval.high)


def _scores(rows: Sequence[Any], arm: str, documents: int) -> tuple[float | None, float | None]:
    """Of tasks before and after, mean over languages."""
    here = [row for row in rows if (row.arm, row.documents) == (arm, documents) and row.tasks is not None]
    if not here:
        return None, None
    return here[-1].tasks_before, here[-1].tasks_before + here[-1].tasks.value
