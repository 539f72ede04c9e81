"""The stage `search`: the split of the layers, on validation texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from babelscope.options import Count, Language, NonNegative, Options, Refused, Several
from babelscope.report.results import Section, figure, table
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import Job, beyond_the_layers, named, strangers

if TYPE_CHECKING:
    from babelscope.stages.study import Study


class SearchOptions(Options):
    """The split that hurts a language most and English least, on validation texts."""

    understand: tuple[NonNegative, ...] = (8, 6, 4)
    """sizes of the first stage to try"""
    generate: tuple[NonNegative, ...] = (4, 3, 2)
    """sizes of the last"""
    language: Language | None = None
    """whose neurons are off; null: the first that isn't English"""
    stages: tuple[Literal["understand", "solve", "generate"], ...] = ("understand", "generate")
    """what is off"""
    texts: Count = 20
    """per language"""
    max_tokens: Several = 256
    """texts are cut to this length"""


class Search(Stage[SearchOptions]):
    """Searches the split of the layers on validation texts."""

    name, title, options = "search", "Where understanding ends and generation begins", SearchOptions
    needs = ("select",)
    texts = ("validation",)
    decides = ("languages", "english", "seed")

    def check(self, options: SearchOptions, study: Study) -> Iterator[Refused]:
        """Sizes within the model's layers; a language of the study other than English."""
        yield from beyond_the_layers(study, "search", max(options.understand), max(options.generate))
        yield from strangers(study, "search.language", (options.language,) if options.language else ())
        if options.language == study.english:
            yield Refused("search.language", f"a language other than {study.english}", study.english, "Name another.")

    def cost(self, options: SearchOptions, study: Study) -> Cost:
        """Texts of two languages for every split, and for the intact model."""
        cells = 1 + len(options.understand) * len(options.generate)
        return Cost(cells, 2.0 * cells * options.texts * options.max_tokens)

    def run(self, job: Job, options: SearchOptions) -> Section:
        """Searches the split of the layers on validation texts."""
        from babelscope.evaluation.stages import find_stages

        english = job.study.english
        target = options.language or job.others[0]
        held = job.texts("validation", options.texts, (english, target))
        job.start(1 + len(options.understand) * len(options.generate))

        found = find_stages(
            job.model, job.tokenizer, job.sets[target], held, understand=options.understand, generate=options.generate,
            stages=options.stages, english=english,
            max_tokens=options.max_tokens, keep=job.cell,
        )  # fmt: skip
        best = found.best
        job.leave(understand=best.stages.understand, generate=best.stages.generate)
        records = [
            {"understand": each.stages.understand, "generate": each.stages.generate, "value": each.delta}
            for each in found.grid
        ]
        rows = [
            [each.stages.understand, each.stages.generate, each.neurons, each.english, each.others, each.delta]
            for each in found.grid
        ]
        columns = (
            "understand",
            "generate",
            "neurons off",
            f"change in {named(english)}",
            f"in {named(target)}",
            "delta",
        )
        return Section(
            f"For each split the neurons of {named(target)} in the stages {' and '.join(options.stages)} were "
            "switched off "
            f"and {options.texts} validation texts of {named(target)} and {named(english)} measured; a score is minus "
            "bits "
            f"per byte. The best split, {best.stages.understand} and {best.stages.generate}, has the largest change in "
            f"{named(english)} minus change in {named(target)}. What is reported elsewhere is of other texts.",
            [],
            [table("splits", "Splits of the layers", columns, rows)],
            [figure("search", "search", "Splits of the layers",
                    f"Change in {named(english)} minus change in {named(target)}: larger is more selective.", records)],
        )  # fmt: skip
