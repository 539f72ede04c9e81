"""The stage `detect`: every neuron scored on the documents of every language."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from babelscope.options import Count, Language, Options, Refused, Several, Share
from babelscope.report.results import Section, table
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import Job, named, portable

if TYPE_CHECKING:
    from babelscope.stages.study import Study


class DetectOptions(Options):
    """Which neurons each language needs."""

    documents: Count | dict[Language, Count] = 1000
    """per language, or by language"""
    max_tokens: Several = 256
    """documents are cut to this length"""
    min_tokens: Count = 8
    """shorter documents are skipped"""
    preset: Literal["default", "paper", "released"] = "default"
    """how impacts are measured"""
    kernel: Literal["auto", "triton", "compiled", "eager", "reference"] = "auto"
    """that computes attention impacts"""
    token_budget: Several | None = None
    """tokens of a batch; null: by device"""
    slots: tuple[str, ...] | None = None
    """only these of q, k, v, o and ffn; null: those of the preset"""
    top_shares: tuple[Share, ...] = (0.01, 0.05, 0.1, 0.25)
    """shares of a layer's units whose hits are counted, for select.top_k"""
    thresholds: tuple[float, ...] = ()
    """impacts whose exceedances are counted, for select.eps with select.min_support"""
    folds: Count = 4
    """parts that documents are dealt to, for stability and intervals"""


class Detect(Stage[DetectOptions]):
    """Scores every neuron on the documents of every language: one run folder per number of documents."""

    name, title, options = "detect", "Which neurons each language needs", DetectOptions
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
        documents = sum(asked.values()) if isinstance(asked, dict) else asked * len(study.languages)
        return Cost(len(study.languages), 1.5 * documents * options.max_tokens)

    def run(self, job: Job, options: DetectOptions) -> Section:
        """Scores every neuron on the documents of every language: one run folder per number of documents."""
        from babelscope.detection.detect import Progress
        from babelscope.detection.detect import detect as run
        from babelscope.models.anatomy import Anatomy

        asked = options.documents
        count = asked if isinstance(asked, dict) else dict.fromkeys(job.study.languages, asked)
        job.start(len(job.study.languages))
        anatomy = Anatomy(job.model)
        finished = 0

        def tell(progress: Progress) -> None:
            done = finished + progress.languages_done
            part = min(1.0, progress.documents / progress.asked) if progress.asked else 0.0
            job.task.reach(done + part, named(progress.language))

        for documents in dict.fromkeys(count[code] for code in job.study.languages):
            corpora = {code: job.corpus("detect", code) for code in job.study.languages if count[code] == documents}
            settings = {name: value for name, value in vars(options).items() if name != "documents"}
            run(
                anatomy, job.tokenizer, corpora, documents=documents, seed=job.study.seed,
                run_dir=job.folder / f"run-{documents}", progress=tell, **settings,
            )  # fmt: skip
            finished += len(corpora)
            job.task.reach(finished)
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
