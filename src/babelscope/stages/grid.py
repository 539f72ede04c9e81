"""The stage `grid`: tasks with parts of each language's set off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Literal

from babelscope.options import Controls, Count, Language, NonNegative, Options, Refused
from babelscope.report.results import Finding, Section, figure, table
from babelscope.stages.asking import answers, limit_of, with_items
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import Job, between, beyond_the_layers, chosen_split, named, strangers
from babelscope.stages.study import SEARCHED

if TYPE_CHECKING:
    from babelscope.evaluation.claims import Claim
    from babelscope.stages.study import Study


PartName = Literal[
    "all",
    "understand",
    "solve",
    "generate",
    "attention",
    "ffn",
    "solve-attention",
    "solve-ffn",
    "understand-generate",
    "all-but-understand",
    "all-but-generate",
    "all-but-solve-attention",
    "all-minus-english",
    "all-minus-shared",
    "understand-equal",
    "solve-equal",
    "generate-equal",
]
"""The parts of a language's set that can be switched off; a test compares with the library's."""


class GridOptions(Options):
    """Tasks with parts of each set off, beside random sets, in the language and in English."""

    tasks: tuple[str, ...] | dict[str, tuple[PartName, ...]] = ()
    """tasks, or task: [parts to switch off]"""
    parts: tuple[PartName, ...] | None = None
    """parts to switch off, where tasks names none; null: all but -equal"""
    languages: tuple[Language, ...] | None = None
    """languages whose sets are switched off; null: all but English"""
    ops: tuple[str, ...] = ("zero",)
    """operations on the neurons: zero, scale=X, clamp=X, or mean (over the tokens of the atlas)"""
    limit: Count | dict[str, Count] | None = None
    """first items of each task, or by task; null: all"""
    controls: Controls = 5
    """random sets per part on tasks; 0 or at least 2"""
    english_controls: bool = True
    """random sets answer the tasks in English too, so that delta stands beside theirs"""
    texts: NonNegative = 0
    """held-out texts per language to measure bits per byte on; 0: none"""
    text_controls: Controls = 20
    """random sets per part on texts; 0 or at least 2"""
    batch_size: Count = 8
    """prompts at once"""
    chat_template: bool = False
    """ask a chat model in its template"""

    def by_task(self) -> dict[str, tuple[str, ...]]:
        """Task -> the parts to switch off."""
        if isinstance(self.tasks, Mapping):
            return dict(self.tasks)
        from babelscope.evaluation.parts import PARTS

        return dict.fromkeys(self.tasks, self.parts or PARTS)


class Grid(Stage[GridOptions]):
    """Tasks with parts of each language's set off, in the language and in English."""

    name, title, options = "grid", "What breaks, by stage and structure", GridOptions
    needs = ("select",)
    also_reads = ("held_out",)
    decides = ("languages", "english", "seed", "split", "data")

    def required(self, study: Study) -> tuple[str, ...]:
        """The search of the split too, where the study searches it."""
        return (*self.needs, "search") if study.split == SEARCHED else self.needs

    def tasks(self, options: GridOptions) -> tuple[str, ...]:
        """The tasks of the grid."""
        return tuple(options.tasks)

    def sources(self, options: GridOptions, study: Study) -> dict[str, dict[str, str]]:
        """Held-out texts, where bits per byte are asked for."""
        return {"held_out": study.corpus("held_out")} if options.texts else {}

    def check(self, options: GridOptions, study: Study) -> Iterator[Refused]:
        """Languages of the study; a split within the layers."""
        if not isinstance(study.split, str):
            yield from beyond_the_layers(study, "split", study.split.understand, study.split.generate)
        yield from strangers(study, "grid.languages", options.languages or ())
        if options.parts and isinstance(options.tasks, Mapping):
            yield Refused("grid.parts", "parts in one place", "them beside grid.tasks too", "Drop one of them.")
        if "mean" in options.ops and "select" in study.given and "detect" not in {*study.stages, *study.given}:
            yield Refused("grid.ops", "an atlas for the operation mean", "none", "Give atlas: RUN.")
        if not options.tasks:
            yield Refused("stages", "grid.tasks for the stage grid", "none", "Add it, or drop grid from stages.")

    def cost(self, options: GridOptions, study: Study) -> Cost:
        """Every task, for the intact model, every part and its random sets, in two languages."""
        total, languages = Cost(), len(options.languages or study.languages) - (options.languages is None)
        for task, parts in options.by_task().items():
            cells = languages * (1 + len(parts) * len(options.ops) * (1 + options.controls))
            total += answers(task, 2 * cells, options.limit, options.batch_size)
        if options.texts:
            parts = next(iter(options.by_task().values()), ())
            cells = languages * (1 + len(parts) * len(options.ops) * (1 + options.text_controls))
            total += Cost(cells, 2.0 * cells * options.texts * 256)
        return total

    def run(self, job: Job, options: GridOptions) -> Section:
        """Tasks with parts of each language's set off, in the language and in English."""
        from babelscope.editing.stages import Stages
        from babelscope.evaluation.cells import BITS
        from babelscope.evaluation.claims import CRITERIA, claims
        from babelscope.evaluation.grid import Effect, Grid, Row, rows
        from babelscope.evaluation.parts import standard_parts
        from babelscope.evaluation.tables import InLanguage, Summary, by_language, judged, summarise

        english = job.study.english
        split = chosen_split(job)
        grids: list[Grid] = []
        held = job.texts("held_out", options.texts) if options.texts else None  # measured beside the first task
        reference = job.atlas if "mean" in options.ops else None
        for task, names in options.by_task().items():
            off = with_items(job, task, options.languages or job.others)
            grids.append(
                Grid(
                    job.model,
                    job.tokenizer,
                    {code: job.sets[code] for code in off},
                    [task],
                    job.folder,
                    parts=standard_parts(Stages(split.understand, split.generate), job.sets, english, names),
                    ops=options.ops,
                    reference=reference,
                    texts=None if held is None or grids else {code: held[code] for code in {*off, english}},
                    draws=options.controls,
                    english_controls=options.english_controls,
                    text_draws=options.text_controls if held is not None and not grids else 0,
                    english=english,
                    limit=limit_of(options.limit, task),
                    seed=job.study.seed,
                    data=job.study.data,
                    batch_size=options.batch_size,
                    chat_template=options.chat_template,
                )
            )
        job.start(sum(len(each.cells()) for each in grids))
        effects: list[Effect] = []
        for task, each in zip(options.tasks, grids, strict=True):
            before = job.done
            effects += each.run(lambda done, _, __, task=task, before=before: job.task.reach(before + done, task))  # type: ignore[misc]
            job.task.reach(before + len(each.cells()))
        table_rows = rows(effects, english)
        shown = set(map(id, judged(effects)))
        figures = []
        for task in dict.fromkeys(row.task for row in table_rows):
            records = []
            for effect, row in zip(effects, table_rows, strict=True):
                if row.task != task or id(effect) not in shown:
                    continue
                label = named(row.off) + ("" if row.language == row.off else f", in {named(row.language)}")
                done = "off" if row.op == "zero" else row.op
                place = {"group": f"{row.part} {done}", "label": label}
                records.append({**place, "value": row.change, "low": row.low, "high": row.high, "control": False})
                for drawn in effect.random:
                    change = float((drawn - effect.before).mean())
                    records.append({**place, "value": change, "low": None, "high": None, "control": True})
            what = "bits per byte" if task == BITS else "the score"
            caption = f"Change in {what} with 95 % intervals over items; hollow: each random set of the same counts."
            figures.append(
                figure(
                    f"grid {task}",
                    "forest",
                    f"{task}: what switching off does",
                    caption,
                    records,
                    x="change in bits per byte" if task == BITS else "change in score",
                )
            )
        findings = [_told(each) for each in claims(effects, english, options.ops[0]) if each.contrasts]
        title = "Mean scores in percent, in the paper's layout, and beside its numbers where it has them"
        tables = [
            table(
                "summary",
                title,
                [each.name for each in fields(Summary)],
                map(astuple, summarise(effects, job.loader.spec.name, english)),
            ),
            table(
                "grid", "Every part, task and language", [each.name for each in fields(Row)], map(astuple, table_rows)
            ),
        ]
        beside = [
            each for each in by_language(effects, job.loader.spec.name, english) if not math.isnan(each.printed_others)
        ]
        if beside:
            title = "Languages for which the paper prints a number, in percent"
            tables.insert(
                1, table("languages", title, [each.name for each in fields(InLanguage)], map(astuple, beside))
            )
        return Section(
            f"The first {split.understand} layers understand, the last {split.generate} generate, those between solve. "
            f"Parts of a language's set were zeroed while the model answered, beside {options.controls} random sets "
            "of the "
            "same counts by layer and slot, in the language and in English; cells are paired over items, p-values "
            f"corrected by Holm's method; {CRITERIA['parts']}. A claim holds: {CRITERIA['holds']}. It does not hold: "
            f"{CRITERIA['does not hold']}.",
            findings,
            tables,
            figures,
        )


def _told(claim: Claim) -> Finding:
    """A claim of the paper with all of its contrasts in words; its effect is that of the first."""
    from babelscope.evaluation.inference import Interval

    words = "; ".join(
        f"{each.what}: {between(Interval(each.effect, each.low, each.high))} ({each.verdict})"
        for each in claim.contrasts
    )
    first = claim.contrasts[0]
    return Finding(claim.claim, claim.verdict, words, first.effect, first.low, first.high)
