"""The stage `lens`: the language that each layer speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from babelscope.options import Count, NonNegative, Options, Several
from babelscope.report.results import Finding, Section, figure, table
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import Job, named, portable

if TYPE_CHECKING:
    from babelscope.stages.study import Study


class LensOptions(Options):
    """Which language each layer speaks."""

    documents: Several = 40
    """prompts per language, of the held-out texts"""
    profile_documents: Count = 2000
    """per language, for the vocabulary's languages"""
    max_tokens: Count = 128
    """prompts are cut to this length"""
    new_tokens: NonNegative = 0
    """0: the prompt is read; else the positions that choose so many new tokens"""
    final_norm: bool = True
    """decode inner layers through the final norm"""
    identifier: Literal["lingua", "cld3"] | None = None
    """names tokens as in the paper; null: profile"""
    grids: NonNegative = 1
    """prompts per language whose tokens are shown"""


class Lens(Stage[LensOptions]):
    """Which language each layer speaks."""

    name, title, options = "lens", "Which language each layer speaks", LensOptions
    texts = ("detect", "held_out")
    decides = ("languages", "english", "seed")

    def cost(self, options: LensOptions, study: Study) -> Cost:
        """Six reads of every prompt."""
        prompts = options.documents * len(study.languages)
        return Cost(1, 6 * prompts * options.max_tokens, prompts * options.new_tokens / 8)

    def run(self, job: Job, options: LensOptions) -> Section:
        """Which language each layer speaks."""
        from babelscope.evaluation.inference import wilson
        from babelscope.lens.run import run_lens

        settings, name = dict(vars(options)), portable(job.loader.spec.name)
        job.start(1)
        corpora, prompts = (
            {code: job.corpus(kind, code) for code in job.study.languages} for kind in ("detect", "held_out")
        )
        curve = run_lens(
            job.model,
            job.tokenizer,
            corpora,
            prompts,
            job.folder / "run",
            seed=job.study.seed,
            **settings,
        )
        job.passed("")
        layers = [
            {"model": name, "language": row["prompt_language"], "spoken": row["decoded_language"]}
            | {field: row[field] for field in ("layer", "mass", "low", "high")}
            for row in curve.rows()
        ]
        shown = [
            {
                "prompt": prompt, "layer": layer, "position": position,
                "token": choices[0], "probability": grid.probability[layer][position][0],
                "language": _spoken(grid.language[layer][position]), "language_code": grid.language[layer][position],
            }
            for prompt, grid in zip(_titles([each.prompt_language for each in curve.grids]), curve.grids, strict=True)
            for layer, row in enumerate(grid.top)
            for position, choices in enumerate(row[:24])
        ]  # fmt: skip
        suggested = {each.prompt_language: each for each in curve.stages()}
        english = [code for code in job.others if suggested[code].pivot == job.study.english]
        share = wilson(len(english), len(job.others))
        verdict = "holds" if share.low > 0.5 else "does not hold" if share.high < 0.5 else "undecided"
        claim = f"Layers in the middle speak {named(job.study.english)} whatever the prompt's language"
        text = (
            f"{named(job.study.english)} leads somewhere between the first layers and the last for prompts in "
            f"{len(english)} of {len(job.others)} other languages ({share.value:.0%}, 95 % interval {share.low:.0%} to "
            f"{share.high:.0%}); the claim is that it does for most."
        )
        rows = [
            [named(code), each.pivot and named(each.pivot), each.start, each.stop, each.support, each.mass]
            for code, each in suggested.items()
        ]
        columns = ("prompt", "pivot", "first block", "block after the last", "share of resamples", "largest mass")
        how = (
            f"The hidden state of each layer was decoded through the {'final norm and the ' * options.final_norm}"
            f"unembedding at every position of {options.documents} held-out prompts per language"
            f"{f', of {options.new_tokens} new tokens' * bool(options.new_tokens)}; a token counts for languages "
            + (
                f"as {options.identifier} names it."
                if options.identifier
                else f"in proportion to how often it occurs in {options.profile_documents} documents of each. A pivot "
                "must lead by 0.05 of the mass, and over the same with languages shuffled among tokens, in 95 % of "
                "resamples of the prompts."
            )
        )
        return Section(
            how,
            [Finding(claim, verdict, text, share.value, share.low, share.high)],
            [table("pivots", "Where another language takes over", columns, rows)],
            [
                figure("layers", "layers", "Which language each layer speaks",
                       "Share of probability on tokens of each language; layer 0 is the embeddings.", layers),
                figure("tokens", "tokens", "The likeliest token of each layer",
                       "One prompt per language, its first positions.", shown),
            ],
        )  # fmt: skip


def _titles(codes: Sequence[str]) -> list[str]:
    """Names of languages, numbered where one comes several times."""
    return [
        named(code) + (f" {codes[: at + 1].count(code)}" if codes.count(code) > 1 else "")
        for at, code in enumerate(codes)
    ]


def _spoken(code: str) -> str:
    return named(code) if code else "none"
