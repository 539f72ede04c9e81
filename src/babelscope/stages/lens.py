"""The stage `lens`: the language that each layer speaks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.languages import get_language
from babelscope.options import Count, NonNegative, Options, Refused, Several
from babelscope.progress import task
from babelscope.report.results import Figure, Finding, Section, Table, figure, table
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import Job, named, portable
from babelscope.stages.study import Sources, by_language

if TYPE_CHECKING:
    from babelscope.lens.curve import LanguageCurve
    from babelscope.lens.tuned import TunedLens
    from babelscope.stages.study import Study


class LensOptions(Options):
    """Which language each layer speaks."""

    documents: Several = 40
    """prompts per language"""
    prompts: Sources | None = None
    """texts that the model reads; corpus: those of the profile; FILE.jsonl: with the fields language and text; null:
    held-out texts"""
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
    tuned_documents: Count | None = None
    """train a tuned lens on so many texts of each profile, and decode inner layers through it; null: the plain lens"""
    words: Sources | None = None
    """lists with a word a line, the same words in every language: is a word translated by way of English? null: none"""
    grids: NonNegative = 1
    """prompts per language whose tokens are shown"""
    top_k: Count = 5
    """likeliest tokens of a position that are kept"""


CURVE, TUNED = "lens.safetensors", "tuned.safetensors"
BY_FIELD = (".jsonl", ".parquet")
"""Endings of files that name the language of each of their texts."""


class Lens(Stage[LensOptions]):
    """Which language each layer speaks."""

    name, title, options = "lens", "Which language each layer speaks", LensOptions
    texts, also_reads = ("detect",), ("held_out",)
    decides = ("languages", "english", "seed")

    def check(self, options: LensOptions, study: Study) -> Iterator[Refused]:
        """Prompts and words whose languages are known."""
        prompts = options.prompts
        if isinstance(prompts, str) and prompts != "corpus" and "{}" not in prompts and not prompts.endswith(BY_FIELD):
            wanted = "a source with {} for the language, or a .jsonl file with the fields language and text"
            yield Refused("lens.prompts", wanted, repr(prompts), "It does not say which language its texts are in.")
        if isinstance(options.words, str) and "{}" not in options.words:
            yield Refused("lens.words", "a source with {} for the language, or one per language", repr(options.words))

    def sources(self, options: LensOptions, study: Study) -> dict[str, dict[str, str]]:
        """The texts of the profile, the prompts, and the lists of words."""
        prompts = options.prompts
        if prompts is None or prompts == "corpus":
            read = study.corpus("held_out" if prompts is None else "detect")
        elif isinstance(prompts, str) and "{}" not in prompts:
            read = {"": prompts}
        else:
            read = by_language(prompts, study.languages)
        kinds = {"detect": study.corpus("detect"), "held_out" if prompts is None else "prompts": read}
        return kinds | ({"words": by_language(options.words, study.languages)} if options.words else {})

    def cost(self, options: LensOptions, study: Study) -> Cost:
        """Six reads of every prompt."""
        prompts = options.documents * len(study.languages)
        trained = 0.0 if options.tuned_documents is None else 2000.0 * 1024
        return Cost(1, 6 * prompts * options.max_tokens, prompts * options.new_tokens / 8, trained)

    def run(self, job: Job, options: LensOptions) -> Section:
        """Which language each layer speaks."""
        from babelscope.evaluation.inference import wilson

        name = portable(job.loader.spec.name)
        job.start(1)
        curve, tuned = measured(job, options)
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
        asked = [code for code in job.others if code in suggested]
        english = [code for code in asked if suggested[code].pivot == job.study.english]
        share = wilson(len(english), len(asked))
        verdict = "holds" if share.low > 0.5 else "does not hold" if share.high < 0.5 else "undecided"
        claim = f"Layers in the middle speak {named(job.study.english)} whatever the prompt's language"
        text = (
            f"{named(job.study.english)} leads somewhere between the first layers and the last for prompts in "
            f"{len(english)} of {len(asked)} other languages ({share.value:.0%}, 95 % interval {share.low:.0%} to "
            f"{share.high:.0%}); the claim is that it does for most."
        )
        rows = [
            [named(code), each.pivot and named(each.pivot), each.start, each.stop, each.support, each.mass]
            for code, each in suggested.items()
        ]
        columns = ("prompt", "pivot", "first block", "block after the last", "share of resamples", "largest mass")
        how = (
            f"The hidden state of each layer was decoded through the {'tuned lens, the ' if tuned else ''}"
            f"{'final norm and the ' * options.final_norm}unembedding at every position of {options.documents} "
            f"{'held-out ' if options.prompts is None else ''}prompts per language"
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
            [table("pivots", "Where another language takes over", columns, rows), *closeness(tuned)],
            [
                figure("layers", "layers", "Which language each layer speaks",
                       "Share of probability on tokens of each language; layer 0 is the embeddings.", layers),
                figure("tokens", "tokens", "The likeliest token of each layer",
                       "One prompt per language, its first positions.", shown),
                *words(job, options, tuned),
            ],
        )  # fmt: skip


def measured(job: Job, options: LensOptions) -> tuple[LanguageCurve, TunedLens | None]:
    """The curve and the tuned lens, read from the folder of the stage where they are there already."""
    from babelscope.lens.curve import LanguageCurve
    from babelscope.lens.measure import language_lens
    from babelscope.lens.tuned import TunedLens
    from babelscope.lens.vocabulary import VocabularyProfile

    tuned = TunedLens.load(job.folder / TUNED) if (job.folder / TUNED).is_file() else None
    if (job.folder / CURVE).is_file():
        return LanguageCurve.load(job.folder / CURVE), tuned
    corpora = {code: job.corpus("detect", code) for code in job.study.languages}
    with task("vocabulary profile"):
        profile = VocabularyProfile.build(job.tokenizer, corpora, documents=options.profile_documents, cache=job.folder)
    if options.tuned_documents is not None and tuned is None:
        texts = [text.text for corpus in corpora.values() for text in itertools.islice(corpus, options.tuned_documents)]
        tuned = TunedLens.train(job.model, job.tokenizer, texts)
        tuned.save(job.folder / TUNED)
    names = "documents max_tokens new_tokens final_norm identifier grids top_k"
    settings = {name: getattr(options, name) for name in names.split()}
    with task("lens", unit="prompts") as read:
        curve = language_lens(
            job.model,
            job.tokenizer,
            prompts_of(job),
            profile,
            tuned=tuned,
            seed=job.study.seed,
            progress=read.advance,
            **settings,
        )
    curve.save(job.folder / CURVE)
    return curve, tuned


def prompts_of(job: Job) -> dict[str, Corpus]:
    """The prompts by language.

    Raises:
        ConfigError: a file that names the language of each text names one that there is not.
    """
    sources = job.study.texts(job.stage)
    kind = "prompts" if "prompts" in sources else "held_out"
    if "" not in sources[kind]:
        return {code: job.corpus(kind, code) for code in sources[kind]}
    path, field = sources[kind][""], job.study.field
    texts: dict[str, list[str]] = {}
    for code, text in zip(open_corpus(path, "language"), open_corpus(path, field), strict=True):
        texts.setdefault(get_language(code.text).code, []).append(text.text)
    return {code: open_corpus(several) for code, several in texts.items()}


def closeness(tuned: TunedLens | None) -> list[Table]:
    """How near the plain and the tuned lens come to the last layer; nothing without a tuned lens."""
    from babelscope.lens.tuned import closeness_rows

    rows = [] if tuned is None else closeness_rows(tuned.about)
    if tuned is None or not rows:
        return []
    title = (
        "How near each layer comes to the last one, through the plain and the tuned lens: divergence in nats, and how "
        f"often the likeliest token is the same, on {tuned.about['tuned']['documents']} texts that taught it nothing"
    )
    return [table("closeness", title, [name.replace("_", ", ") for name in rows[0]], [row.values() for row in rows])]


def words(job: Job, options: LensOptions, tuned: TunedLens | None) -> list[Figure]:
    """How likely each layer finds a translated word in the target language, in English and in the source."""
    from babelscope.lens.words import latent_table

    if not options.words:
        return []
    lists = {code: [text.text for text in job.corpus("words", code)] for code in job.study.texts(job.stage)["words"]}
    kept = job.cell(
        "words",
        lambda: {
            "rows": latent_table(
                job.model, job.tokenizer, lists, tuned=tuned, final_norm=options.final_norm, seed=job.study.seed
            )
        },
    )
    figures = []
    for target in dict.fromkeys(row["target"] for row in kept["rows"]):
        rows = [row for row in kept["rows"] if row["target"] == target]
        title = f"Words translated from {named(rows[0]['source'])} into {named(target)}"
        caption = f"Probability that the next token begins the word in each language; {rows[0]['prompts']} prompts."
        records = [
            {"series": named(row["language"]), "x": row["layer"], "y": row["probability"]}
            | {name: row[name] for name in ("low", "high")}
            for row in rows
        ]
        figures.append(figure(f"words {target}", "curve", title, caption, records, x="layer", y="probability"))
    return figures


def _titles(codes: Sequence[str]) -> list[str]:
    """Names of languages, numbered where one comes several times."""
    return [
        named(code) + (f" {codes[: at + 1].count(code)}" if codes.count(code) > 1 else "")
        for at, code in enumerate(codes)
    ]


def _spoken(code: str) -> str:
    return named(code) if code else "none"
