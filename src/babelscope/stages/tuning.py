"""The stage `tuning`: neurons of a language trained on its documents, beside other arms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from babelscope.evaluation.inference import Interval
from babelscope.options import Count, Language, NonNegative, Options, Positive, Refused, Several
from babelscope.report.results import Section, figure, finding, table
from babelscope.stages.asking import answers
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import BITS, Job, between, named, strangers
from babelscope.stages.paper import printed_enhancement
from babelscope.tuning.verdict import ALL

if TYPE_CHECKING:
    from babelscope.stages.study import Study
    from babelscope.tuning.experiment import Experiment


class TuningOptions(Options):
    """Chosen neurons trained on documents of their language."""

    languages: tuple[Language, ...] = ()
    """one tuned model each"""
    arms: tuple[Literal["neurons", "random", "lora", "full"], ...] = ("neurons", "random")
    """neurons, random, lora, full"""
    random: Count = 1
    """random sets, each trained with every seed"""
    documents: tuple[Several, ...] = (100, 400)
    """to train on; the detection corpus"""
    seeds: tuple[NonNegative, ...] = (0,)
    """one training each"""
    learning_rates: tuple[Positive, ...] | None = None
    """to try for neurons, random and lora; null: 3e-4, 1e-3, 3e-3"""
    epochs: Positive = 3.0
    """passes over the documents"""
    batch_size: Count = 8
    """blocks per step"""
    max_tokens: Several = 256
    """length of a block"""
    evaluations: Count = 10
    """on validation texts, over a training"""
    texts: Several = 20
    """validation texts that choose rate and step, held-out texts that are told"""
    tasks: tuple[str, ...] = ()
    """scored before and after"""
    limit: Count | None = None
    """first items of each task; null: all"""


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
        """One source with {} for all languages, validation texts, languages of the study."""
        kinds = ("detect", "held_out", "validation")
        several = [kind for kind in kinds if isinstance(getattr(study.corpora, kind), dict)]
        if several:
            wanted = "one source with {} for tuning"
            yield Refused(f"corpora.{several[0]}", wanted, "one per language", "Name the files alike.")
        if study.corpora.validation is None:
            remedy = "Add texts that are not in detect or held_out."
            yield Refused("corpora", "the key validation for tuning", "none", remedy)
        yield from strangers(study, "tuning.languages", options.languages)
        if not options.languages:
            remedy = "Add it, or drop tuning from stages."
            yield Refused("stages", "tuning.languages for the stage tuning", "none", remedy)

    def cost(self, options: TuningOptions, study: Study) -> Cost:
        """Every training, and what is measured on the way and in the end."""
        trained, cells = 0.0, 0
        trainings = len(options.learning_rates or (0, 0, 0)) - 1 + len(options.seeds)
        for _, _, documents in product(options.languages, options.arms, options.documents):
            trained += trainings * documents * options.max_tokens * options.epochs
            cells += trainings
        read = (2.0 + options.evaluations) * cells * options.texts * options.max_tokens
        total = Cost(cells, read + 2.0 * cells * len(study.languages) * options.texts * 256, 0, trained)
        for task in options.tasks:
            answered = answers(task, 2 * cells, options.limit, 8)
            total += Cost(0, answered.read, answered.steps)
        return total

    def run(self, job: Job, options: TuningOptions) -> Section:
        """Neurons of a language trained on its documents, beside the other arms."""
        from babelscope.tuning.bench import run_experiment

        asked = experiment(job)
        groups = asked.groups()
        job.start(sum(len(asked.rates_of(arm)) for _, _, arm in groups) + (len(asked.seeds) - 1) * len(groups))

        def told(line: str) -> None:
            job.task.reach(min(job.done + 1, (job.task.total or 1) - 1), line)

        found = run_experiment(asked, job.folder / "experiment", told)
        together = [
            row for row in found.rows if row.language == (ALL if len(asked.languages) > 1 else asked.languages[0])
        ]
        largest, arm = max(asked.documents), next(iter(asked.neurons))
        figures = []
        titles = {"target": "the tuned language", "others": "the other languages"}
        for side, title in titles.items():
            records = [
                {"series": row.arm, "x": row.documents, "y": change.value, "low": change.low, "high": change.high}
                for row in together
                if (change := getattr(row, side)) is not None
            ]
            caption = (
                f"By documents trained on; below zero is better. {arm.capitalize()}: the language's neurons by that "
                "rule. "
                "Bands are 95 % intervals over texts and runs."
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
                    f"{', '.join(map(named, asked.languages))})."
                )
                findings.append(finding("Training a language's own neurons helps it more than random ones", more, text))
        columns = ("language", "documents", "arm", "rate", "parameters", "before", "change", "low", "high", "others",
                   "others low", "others high", "tasks before", "tasks change", "tasks low", "tasks high")  # fmt: skip
        rows = [
            [_who(row.language), row.documents, row.arm, row.rate, row.parameters, row.target_before,
             *_cells(row.target), *_cells(row.others), row.tasks_before, *_cells(row.tasks)]
            for row in found.rows
        ]  # fmt: skip
        tables = [
            table("tuning", "Bits per byte of the tuned language and the others; scores of tasks", columns, rows),
            table("verdicts", "Which arm is best", ("verdict",), [[_said(each)] for each in found.verdicts]),
        ]
        printed = [
            [
                task,
                each,
                *(100 * value if value is not None else None for value in _scores(found.rows, arm, each)),
                score,
            ]
            for task in asked.tasks
            for each in asked.documents
            if (score := printed_enhancement(job.loader.spec.name, task, each)) is not None
        ]
        if printed:
            title = "Measured (mean over tasks and languages) beside what the paper prints, in percent"
            tables.append(table("printed", title, ("task", "documents", "before", "after", "printed"), printed))
        recipe = ", ".join(f"{name} {value}" for name, value in asked.recipe.items())
        return Section(
            f"Only the chosen neurons' rows and columns were trained ({recipe}); validation texts chose the step and "
            f"(of several) the learning rate; {asked.texts} held-out texts per language are told. Random neurons have "
            "the "
            "same counts by layer and slot; LoRA about as many parameters.",
            findings,
            tables,
            figures,
        )


def experiment(job: Job) -> Experiment:
    """The arms as the library compares them."""
    from babelscope.tuning.experiment import Experiment

    study, options = job.study, job.study.tuning
    sources = {
        kind: str(getattr(study.corpora, kind) or study.corpora.held_out)
        for kind in ("detect", "validation", "held_out")
    }
    rates = [] if options.learning_rates is None else [list(options.learning_rates)]
    return Experiment.of(
        {
            "model": job.loader.spec.name, "dtype": job.loader.spec.dtype,
            "languages": list(options.languages),
            "others": [code for code in study.languages if code not in options.languages],
            "neurons": {study.select.rule: str(job.folder.parent / "select" / "{}.safetensors")},
            "corpus": sources["detect"], "validation": sources["validation"], "test": sources["held_out"],
            "documents": list(options.documents), "seeds": list(options.seeds), "arms": list(options.arms),
            "random": options.random, "rates": {arm: tried for tried in rates for arm in ("neurons", "lora")},
            "texts": options.texts, "tasks": list(options.tasks), "limit": options.limit, "data": study.data,
            "recipe": {name: getattr(options, name) for name in ("epochs", "batch_size", "max_tokens", "evaluations")},
        }
    )  # fmt: skip


def _who(language: str) -> str:
    return "mean" if language == ALL else named(language)


def _said(verdict: str) -> str:
    """A verdict with the language's name: it begins with the code."""
    language, _, rest = verdict.partition(", ")
    return f"{_who(language)}, {rest}"


def _cells(interval: Interval | None) -> tuple[float | None, ...]:
    return (None, None, None) if interval is None else (interval.value, interval.low, interval.high)


def _scores(rows: Sequence[Any], arm: str, documents: int) -> tuple[float | None, float | None]:
    """Of tasks before and after, mean over languages."""
    here = [row for row in rows if (row.arm, row.documents) == (arm, documents) and row.tasks is not None]
    if not here:
        return None, None
    return here[-1].tasks_before, here[-1].tasks_before + here[-1].tasks.value
