"""The stage `steering`: English prompts continued in another language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from babelscope.options import Budget, Count, Language, Options, Positive, Refused, Several
from babelscope.report.results import Section, figure, finding, table
from babelscope.stages.contract import Cost, Stage
from babelscope.stages.job import Job, between, named, spread, strangers

if TYPE_CHECKING:
    from babelscope.editing.steering import ResidualMeans
    from babelscope.lens.vocabulary import VocabularyProfile
    from babelscope.models.anatomy import Anatomy
    from babelscope.neurons.neuronset import NeuronSet
    from babelscope.stages.study import Study


Way = Callable[[], AbstractContextManager[Any]]
"""Opens an edit of the model."""


class SteeringOptions(Options):
    """English prompts continued with a language amplified and English off."""

    to: tuple[Language, ...] = ()
    """wanted languages"""
    prompts: Several = 20
    """first words of English held-out texts"""
    words: Count = 4
    """of a prompt"""
    new_tokens: Count = 24
    """of a continuation"""
    budget: Budget = 0.02
    """neurons per language"""
    factors: tuple[Positive, ...] = (2.0, 4.0)
    """of the amplified neurons"""
    alphas: tuple[Positive, ...] = (1.0,)
    """of the baseline that adds a difference of means"""


class Steering(Stage[SteeringOptions]):
    """English prompts continued with a language amplified and English off, beside random sets and means."""

    name, title, options = "steering", "Turning one language into another", SteeringOptions
    needs = ("detect",)
    texts = ("detect", "held_out")
    decides = ("languages", "english", "seed", "select.rule")

    def check(self, options: SteeringOptions, study: Study) -> Iterator[Refused]:
        """Languages of the study other than English."""
        yield from strangers(study, "steering.to", options.to)
        if study.english in options.to:
            yield Refused("steering.to", f"languages other than {study.english}", study.english, "Drop it.")
        if not options.to:
            yield Refused(
                "stages", "steering.to for the stage steering", "none", "Add it, or drop steering from stages."
            )

    def cost(self, options: SteeringOptions, study: Study) -> Cost:
        """Means of every language, and continuations in every way."""
        cells = len(options.to) * (1 + 2 * len(options.factors) + len(options.alphas))
        return Cost(cells, 100.0 * 256 * len(study.languages), cells * options.new_tokens)

    def run(self, job: Job, options: SteeringOptions) -> Section:
        """English prompts continued with a language amplified and English off, beside random sets and means."""
        from babelscope.editing.steering import residual_means
        from babelscope.evaluation.inference import wilson
        from babelscope.lens.vocabulary import VocabularyProfile
        from babelscope.models.anatomy import Anatomy

        english, codes, seed = job.study.english, job.study.languages, job.study.seed
        anatomy = Anatomy(job.model, check=False)
        corpora = {code: job.corpus("detect", code) for code in codes}
        profile = VocabularyProfile.build(job.tokenizer, corpora, documents=1000, cache=job.folder)
        texts = job.texts("held_out", options.prompts, (english,))[english]
        prompts = [" ".join(text.split()[: options.words]) for text in texts]
        sets = {
            code: job.atlas.select(code, rule=job.study.select.rule, budget=options.budget)
            for code in (*options.to, english)
        }
        means = residual_means(anatomy, job.tokenizer, corpora, documents=100, seed=seed)
        tried = {
            target: ways(
                anatomy, sets, means, target, english, factors=options.factors, alphas=options.alphas, seed=seed
            )
            for target in options.to
        }  # fmt: skip
        job.start(sum(map(len, tried.values())))
        records, rows, beyond = [], [], []
        for target in options.to:
            hits = {}
            for name, way in tried[target].items():
                say = partial(spoken, job.model, job.tokenizer, profile, prompts, way, options.new_tokens)
                cell = job.cell(f"{target}-{name}", say)
                hits[name] = [code == target for code in cell["languages"]]
                share = wilson(sum(hits[name]), len(prompts))
                place = {"group": named(target), "label": name}
                records.append({**place, "value": share.value, "low": share.low, "high": share.high})
                rows.append(
                    [
                        named(target),
                        name,
                        share.value,
                        share.low,
                        share.high,
                        cell["bits"],
                        prompts[0],
                        cell["texts"][0],
                    ]
                )
            first = f"{options.factors[0]:g}"
            pairs = zip(hits[f"neurons x {first}"], hits[f"random x {first}"], strict=True)
            beyond += [float(mine) - float(other) for mine, other in pairs]
        more = spread(beyond)
        return Section(
            f"The first {options.words} words of {len(prompts)} held-out texts in {named(english)} were continued "
            f"greedily by {options.new_tokens} tokens, with a language's neurons amplified and {named(english)}'s "
            "zeroed, with random sets of the same counts, and with the difference of the languages' mean states added "
            "behind the middle layers. The language of a continuation is the one whose texts make its tokens "
            "likeliest; "
            "the bits per byte are what the intact model needs for the continuations: the more, the less fluent.",
            [
                finding(
                    "Amplifying a language's neurons makes the model speak it, random ones do not",
                    more,
                    f"At a factor of {options.factors[0]:g} the share of continuations in the wanted language is "
                    f"{between(more)} above that of random sets (95 % interval over prompts).",
                )
            ],
            [table("steering", "Continuations in the wanted language",
                   ("to", "way", "share", "low", "high", "bits per byte", "a prompt", "its continuation"), rows)],
            [figure("steering", "bars", "Continuations in the wanted language",
                    "Share of prompts, with 95 % Wilson intervals.", records, x="share of prompts")],
        )  # fmt: skip


def ways(
    anatomy: Anatomy,
    sets: Mapping[str, NeuronSet],
    means: ResidualMeans,
    target: str,
    source: str,
    *,
    factors: Sequence[float],
    alphas: Sequence[float],
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, Way]:
    """By name, what may turn one language into another: nothing, its neurons, random ones, the difference of means.

    Args:
        anatomy: of the model.
        sets: of both languages.
        means: of both languages.
        target: the wanted language.
        source: the language that is left; its neurons are zeroed.
        factors: to amplify the target's neurons by, and random sets of the same counts.
        alphas: how much of the difference of means is added.
        layers: behind which it is added; None: the middle half.
        seed: of the random sets.
    """
    from babelscope.editing.steering import steer, steer_by_means

    random = {code: sets[code].random_like(seed=seed) for code in (target, source)}
    found: dict[str, Way] = {"nothing": nullcontext}
    for factor in factors:
        found[f"neurons x {factor:g}"] = partial(steer, anatomy, sets[target], sets[source], factor=factor)
        found[f"random x {factor:g}"] = partial(
            steer, anatomy, random[target], random[source] - random[target], factor=factor
        )
    for alpha in alphas:
        found[f"means x {alpha:g}"] = partial(
            steer_by_means, anatomy, means, target, source, alpha=alpha, layers=layers
        )
    return found


def spoken(
    model: Any, tokenizer: Any, profile: VocabularyProfile, prompts: Sequence[str], way: Way, new_tokens: int
) -> dict[str, Any]:
    """What a model says in one of the `ways`.

    Returns:
        `texts`, the continuations; `languages`, as the profile names them, `""` for nothing said; `bits`, what the
        intact model needs per byte of them, None where nothing was said.
    """
    from babelscope.corpora.tokens import tokens_before
    from babelscope.editing.continuation import continued
    from babelscope.evaluation.likelihood import likelihood

    with way():
        texts = continued(model, tokenizer, prompts, new_tokens)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    context = 0 if tokens_before(tokenizer) else 1  # tokens that only others are predicted from
    longer = [text for text, each in zip(texts, ids, strict=True) if len(each) > context]
    return {
        "texts": texts,
        "languages": [profile.identify(each) if each else "" for each in ids],
        "bits": likelihood(model, tokenizer, longer).bits_per_byte if longer else None,
    }
