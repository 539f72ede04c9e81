"""The stages that ask a model tasks: grid and evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.evaluation.claims import Claim
from babelscope.evaluation.grid import Row
from babelscope.evaluation.inference import Interval
from babelscope.evaluation.tables import Summary
from babelscope.report.results import Finding, Section, figure, finding, table
from babelscope.study.job import Job, between, named, spread
from babelscope.study.stages import chosen_split

if TYPE_CHECKING:
    from babelscope.neurons.neuronset import NeuronSet


def grid(job: Job) -> Section:
    """Tasks with parts of each language's set off, in the language and in English."""
    from babelscope.editing.stages import Stages
    from babelscope.evaluation.claims import CRITERIA, claims
    from babelscope.evaluation.grid import Effect, Grid, rows
    from babelscope.evaluation.parts import standard_parts
    from babelscope.evaluation.tables import InLanguage, by_language, judged, summarise

    options, english = job.options, job.study.english
    split = chosen_split(job)
    grids = []
    for task, names in options.tasks.items():
        off = with_items(job, task, options.languages or job.others)
        parts = standard_parts(Stages(split.understand, split.generate), job.sets, english, names)
        grids.append(
            Grid(
                job.model, job.tokenizer, {code: job.sets[code] for code in off}, [task], job.folder, parts=parts,
                draws=options.controls, text_draws=0, english=english, limit=limit_of(options.limit, task),
                seed=job.study.seed, data=job.study.data, batch_size=options.batch_size,
            )
        )  # fmt: skip
    job.start(sum(len(each.cells()) for each in grids))
    effects: list[Effect] = []
    for task, each in zip(options.tasks, grids, strict=True):
        before = job.done
        effects += each.run(lambda done, _, __, task=task, before=before: job.tell(before + done, job.cells, task))  # type: ignore[misc]
        job.done = before + len(each.cells())
    table_rows = rows(effects, english)
    shown = set(map(id, judged(effects)))
    figures = []
    for task in options.tasks:
        records = []
        for effect, row in zip(effects, table_rows, strict=True):
            if row.task != task or id(effect) not in shown:
                continue
            label = named(row.off) + ("" if row.language == row.off else f", in {named(row.language)}")
            place = {"group": f"{row.part} off", "label": label}
            records.append({**place, "value": row.change, "low": row.low, "high": row.high, "control": False})
            for drawn in effect.random:
                change = float((drawn - effect.before).mean())
                records.append({**place, "value": change, "low": None, "high": None, "control": True})
        caption = "Change in the score with 95 % intervals over items; hollow: each random set of the same counts."
        figures.append(
            figure(f"grid {task}", "forest", f"{task}: what switching off does", caption, records, x="change in score")
        )
    findings = [_told(each) for each in claims(effects, english) if each.contrasts]
    title = "Mean scores in percent, in the paper's layout, and beside its numbers where it has them"
    tables = [
        table(
            "summary",
            title,
            [each.name for each in fields(Summary)],
            map(astuple, summarise(effects, job.loader.spec.name, english)),
        ),
        table("grid", "Every part, task and language", [each.name for each in fields(Row)], map(astuple, table_rows)),
    ]
    beside = [
        each for each in by_language(effects, job.loader.spec.name, english) if not math.isnan(each.printed_others)
    ]
    if beside:
        title = "Languages for which the paper prints a number, in percent"
        tables.insert(1, table("languages", title, [each.name for each in fields(InLanguage)], map(astuple, beside)))
    return Section(
        f"The first {split.understand} layers understand, the last {split.generate} generate, those between solve. "
        f"Parts of a language's set were zeroed while the model answered, beside {options.controls} random sets of the "
        "same counts by layer and slot, in the language and in English; cells are paired over items, p-values "
        f"corrected by Holm's method; {CRITERIA['parts']}. A claim holds: {CRITERIA['holds']}. It does not hold: "
        f"{CRITERIA['does not hold']}.",
        findings,
        tables,
        figures,
    )


def _told(claim: Claim) -> Finding:
    """A claim of the paper with all of its contrasts in words; its effect is that of the first."""
    words = "; ".join(
        f"{each.what}: {between(Interval(each.effect, each.low, each.high))} ({each.verdict})"
        for each in claim.contrasts
    )
    first = claim.contrasts[0]
    return Finding(claim.claim, claim.verdict, words, first.effect, first.low, first.high)


def evaluation(job: Job) -> Section:
    """Tasks in each language, intact and without the language's neurons."""
    from babelscope.evaluation.evaluate import evaluate

    options = job.options
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
                f"Without them the score ({main_metric(task)}) falls by {between(loss)} (mean and 95 % interval over "
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
        "Each task was asked in each language, of the intact model and with all neurons of that language zeroed; the "
        "items are the same, and changes are paired over them.",
        findings,
        tables,
        figures,
    )


def with_items(job: Job, task: str, languages: Sequence[str]) -> list[str]:
    """Those of the languages that a task has items in."""
    from babelscope.evaluation.tasks.benchmarks import benchmark_named

    there = benchmark_named(task).languages(None if job.study.data is None else Path(job.study.data))
    return [code for code in languages if code in there]


def main_metric(task: str) -> str:
    """The metric that figures and findings are about."""
    from babelscope.evaluation.tables import METRICS, kind

    return METRICS[kind(task)]


def limit_of(limit: int | Mapping[str, int] | None, task: str) -> int | None:
    """How many items of a task."""
    return limit if limit is None or isinstance(limit, int) else limit.get(task)
