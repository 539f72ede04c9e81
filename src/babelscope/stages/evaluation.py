"""The stage `evaluation`: tasks in each language, intact and without its neurons."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from babelscope.options import Count, Language, Options, Refused
from babelscope.report.results import Section, figure, finding, table
from babelscope.stages.asking import answers, limit_of, main_metric, with_items
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import Job, between, named, spread, strangers

if TYPE_CHECKING:
    from babelscope.neurons.neuronset import NeuronSet
    from babelscope.stages.study import Study


class EvaluationOptions(Options):
    """Tasks in each language: the intact model, and without that language's neurons."""

    tasks: tuple[str, ...] = ()
    """of babelscope or of lm-evaluation-harness"""
    languages: tuple[Language, ...] | None = None
    """null: all"""
    limit: Count | dict[str, Count] | None = None
    """first items of each task, or by task; null: all"""
    batch_size: Count = 8
    """prompts at once"""


class Evaluation(Stage[EvaluationOptions]):
    """Tasks in each language, intact and without the language's neurons."""

    name, title, options = "evaluation", "Tasks, intact and without neurons", EvaluationOptions
    needs = ("select",)
    decides = ("languages", "english", "data")

    def tasks(self, options: EvaluationOptions) -> tuple[str, ...]:
        """The tasks that are asked."""
        return options.tasks

    def check(self, options: EvaluationOptions, study: Study) -> Iterator[Refused]:
        """Languages of the study."""
        yield from strangers(study, "evaluation.languages", options.languages or ())
        if not options.tasks:
            remedy = "Add it, or drop evaluation from stages."
            yield Refused("stages", "evaluation.tasks for the stage evaluation", "none", remedy)

    def cost(self, options: EvaluationOptions, study: Study) -> Cost:
        """Every task twice in every language."""
        total, languages = Cost(), len(options.languages or study.languages)
        for task in options.tasks:
            total += answers(task, 2 * languages, options.limit, options.batch_size)
        return total

    def run(self, job: Job, options: EvaluationOptions) -> Section:
        """Tasks in each language, intact and without the language's neurons."""
        from babelscope.evaluation.evaluate import evaluate

        asked = [
            (task, code)
            for task in options.tasks
            for code in with_items(job, task, options.languages or job.study.languages)
        ]
        job.start(2 * len(asked))

        def scores(task: str, code: str, neurons: NeuronSet | None) -> dict[str, Any]:
            kind = "intact" if neurons is None else "without"
            found = evaluate(
                job.model, job.tokenizer, [task], [code], neurons, limit_of(options.limit, task), data=job.study.data,
                run_dir=job.folder / "runs" / f"{task}-{code}-{kind}", batch_size=options.batch_size,
            )  # fmt: skip
            return {score.metric: {**score.as_json(), "scores": list(score.items)} for score in found.scores}

        rows, figures, findings = [], [], []
        changes: dict[str, list[float]] = {task: [] for task in options.tasks}
        records: dict[str, list[dict[str, Any]]] = {task: [] for task in options.tasks}
        for task, code in asked:
            intact = job.cell(f"{task}-{code}-intact", partial(scores, task, code, None))
            without = job.cell(
                f"{task}-{code}-without",
                partial(scores, task, code, job.sets[code]),
            )
            for metric, before in intact.items():
                after = without[metric]
                change = spread(b - a for a, b in zip(before["scores"], after["scores"], strict=True))
                rows.append(
                    [task, named(code), metric, before["items"], before["value"], before["low"], before["high"],
                     after["value"], change.value, change.low, change.high]
                )  # fmt: skip
                if metric == main_metric(task):
                    changes[task].append(-change.value)
                    for label, each in (("intact", before), ("without its neurons", after)):
                        place = {"group": named(code), "label": label}
                        records[task].append({**place, **{name: each[name] for name in ("value", "low", "high")}})
        for task in options.tasks:
            loss = spread(changes[task])
            findings.append(
                finding(
                    f"{task} needs the neurons of its language",
                    loss,
                    f"Without them the score ({main_metric(task)}) falls by {between(loss)} (mean and 95 % interval "
                    "over "
                    f"{len(changes[task])} languages).",
                )
            )
            caption = f"Score ({main_metric(task)}) with 95 % intervals over items."
            figures.append(figure(f"scores {task}", "bars", task, caption, records[task], x="score"))
        columns = (
            "task", "language", "metric", "items", "intact", "low", "high", "without", "change", "change low",
            "change high",
        )  # fmt: skip
        tables = [table("scores", "Scores", columns, rows)]
        return Section(
            "Each task was asked in each language, of the intact model and with all neurons of that language zeroed; "
            "the "
            "items are the same, and changes are paired over them.",
            findings,
            tables,
            figures,
        )
