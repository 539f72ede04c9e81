"""The stage `detect`: every neuron scored on the documents of every language."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from babelscope.detection.options import DetectOptions
from babelscope.options import Refused, without
from babelscope.report.results import Section, table
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import RUN, Job, named, portable

if TYPE_CHECKING:
    from babelscope.stages.study import Study


STUDY_WIDE = ("seed", "field")
"""Settings that a study has once, for all stages."""
USUAL = 1000
"""Documents of a language that an estimate counts with where all are asked for, however many there are."""
Settings = without(DetectOptions, "Settings", (*STUDY_WIDE, "shard"))
"""The settings of detection in a study; shards are of the command, for several machines."""


class Detect(Stage[DetectOptions]):
    """Scores every neuron on the documents of every language: one run folder per number of documents."""

    name, title, options = "detect", "Which neurons each language needs", Settings
    texts = ("detect",)
    decides = ("languages", "seed")

    def check(self, options: DetectOptions, study: Study) -> Iterator[Refused]:
        """A number of documents for each language; lengths that agree."""
        documents = options.documents
        lacking = [code for code in study.languages if isinstance(documents, dict) and code not in documents]
        if lacking:
            wanted = f"a number for each of {', '.join(study.languages)}"
            yield Refused("detect.documents", wanted, f"none for {', '.join(lacking)}", "Add it.")
        if options.min_tokens > options.max_tokens:
            wanted = f"at most detect.max_tokens ({options.max_tokens})"
            yield Refused("detect.min_tokens", wanted, str(options.min_tokens), "Lower it, or raise max_tokens.")

    def cost(self, options: DetectOptions, study: Study) -> Cost:
        """One and a half reads of every document."""
        asked = options.documents
        documents = sum(asked.values()) if isinstance(asked, dict) else (asked or USUAL) * len(study.languages)
        return Cost(len(study.languages), 1.5 * documents * options.max_tokens)

    def run(self, job: Job, options: DetectOptions) -> Section:
        """Scores every neuron on the documents of every language: one run folder per number of documents."""
        from babelscope.detection.detect import Progress
        from babelscope.detection.detect import detect as run
        from babelscope.models.anatomy import Anatomy

        job.start(len(job.study.languages))

        def tell(progress: Progress) -> None:
            part = min(1.0, progress.documents / progress.asked) if progress.asked else 0.0
            job.task.reach(progress.languages_done + part, named(progress.language))

        run(
            Anatomy(job.model),
            job.tokenizer,
            {code: job.corpus("detect", code) for code in job.study.languages},
            run_dir=job.folder / RUN,
            progress=tell,
            **{name: getattr(job.study, name) for name in STUDY_WIDE},
            **vars(options),
        )
        job.task.reach(len(job.study.languages))
        atlas = job.atlas
        rows = []
        for code in job.study.languages:
            records, skipped = atlas.corpora[code], [record["skipped"] for record in atlas.corpora[code]]
            read = [sum(record[name] for record in records) for name in ("documents", "tokens")]
            short = sum(each["empty"] + each["too_short"] for each in skipped)
            rows.append([named(code), *read, short, sum(each["cut"] for each in skipped), portable(records[0]["name"])])
        units = {slot: sum(widths) for slot, widths in atlas.layout.widths.items()}
        return Section(
            f"Every neuron was scored on every document by how much zeroing it would change the output of its layer "
            f"(preset {options.preset}), in one streaming pass; documents drawn with seed {job.study.seed}, cut to "
            f"{options.max_tokens} tokens, left out below {options.min_tokens}.",
            tables=[
                table(
                    "corpora", "What was read", ("language", "documents", "tokens", "too short", "cut", "source"), rows
                ),
                table("units", "Neurons that were scored", ("slot", "neurons"), [[k, v] for k, v in units.items()]),
            ],
        )
