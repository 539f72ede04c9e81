"""The stage `grid`: tasks with parts of each language's set off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, field, fields
from typing import TYPE_CHECKING, Literal

from babelscope.evaluation.claims import Claim
from babelscope.evaluation.grid import Row
from babelscope.evaluation.inference import Interval
from babelscope.evaluation.tables import Summary
from babelscope.options import Controls, Count, Language, Options, Refused
from babelscope.report.results import Finding, Section, figure, table
from babelscope.stages.asking import answers, limit_of, with_items
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import Job, between, beyond_the_layers, chosen_split, named, strangers
from babelscope.stages.study import SEARCHED

if TYPE_CHECKING:
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

    tasks: dict[str, tuple[PartName, ...]] = field(default_factory=dict)
    """task: [parts to switch off]"""
    languages: tuple[Language, ...] | None = None
    """whose sets; null: all but English"""
    limit: Count | dict[str, Count] | None = None
    """first items of each task, or by task; null: all"""
    controls: Controls = 5
    """random sets per part; 0 or at least 2"""
    batch_size: Count = 8
    """prompts at once"""


class Grid(Stage[GridOptions]):
    """Tasks with parts of each language's set off, in the language and in English."""

    name, title, options = "grid", "What breaks, by stage and structure", GridOptions
    needs = ("select",)
    decides = ("languages", "english", "seed", "split", "data")

    def required(self, study: Study) -> tuple[str, ...]:
        """The search of the split too, where the study searches it."""
        return (*self.needs, "search") if study.split == SEARCHED else self.needs

    def tasks(self, options: GridOptions) -> tuple[str, ...]:
        """The tasks of the grid."""
        return tuple(options.tasks)

    def check(self, options: GridOptions, study: Study) -> Iterator[Refused]:
        """Languages of the study; a split within the layers."""
        if not isinstance(study.split, str):
            yield from beyond_the_layers(study, "split", study.split.understand, study.split.generate)
        yield from strangers(study, "grid.languages", options.languages or ())
        if not options.tasks:
            yield Refused("stages", "grid.tasks for the stage grid", "none", "Add it, or drop grid from stages.")

    def cost(self, options: GridOptions, study: Study) -> Cost:
        """Every task, for the intact model, every part and its random sets, in two languages."""
        total, languages = Cost(), len(options.languages or study.languages) - (options.languages is None)
        for task, parts in options.tasks.items():
            cells = languages * (1 + len(parts) * (1 + options.controls))
            total += answers(task, 2 * cells, options.limit, options.batch_size)
        return total

    def run(self, job: Job, options: GridOptions) -> Section:
        """Tasks with parts of each language's set off, in the language and in English."""
        from babelscope.editing.stages import Stages
        from babelscope.evaluation.claims import CRITERIA, claims
        from babelscope.evaluation.grid import Effect, Grid, rows
        from babelscope.evaluation.parts import standard_parts
        from babelscope.evaluation.tables import InLanguage, by_language, judged, summarise

        english = job.study.english
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
            effects += each.run(lambda done, _, __, task=task, before=before: job.task.reach(before + done, task))  # type: ignore[misc]
            job.task.reach(before + len(each.cells()))
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
                figure(
                    f"grid {task}", "forest", f"{task}: what switching off does", caption, records, x="change in score"
                )
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
    words = "; ".join(
        f"{each.what}: {between(Interval(each.effect, each.low, each.high))} ({each.verdict})"
        for each in claim.contrasts
    )
    first = claim.contrasts[0]
    return Finding(claim.claim, claim.verdict, words, first.effect, first.low, first.high)
