"""The stages that put neurons to use: steering and tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from babelscope.evaluation.inference import Interval
from babelscope.report.results import Section, figure, finding, table
from babelscope.study.job import BITS, Job, between, named, spread
from babelscope.study.paper import printed_enhancement
from babelscope.tuning.verdict import ALL

if TYPE_CHECKING:
    from babelscope.editing.steering import ResidualMeans
    from babelscope.lens.vocabulary import VocabularyProfile
    from babelscope.models.anatomy import Anatomy
    from babelscope.neurons.neuronset import NeuronSet
    from babelscope.tuning.experiment import Experiment

Way = Callable[[], AbstractContextManager[Any]]
"""Opens an edit of the model."""


def steering(job: Job) -> Section:
    """English prompts continued with a language amplified and English off, beside random sets and means."""
    from babelscope.editing.steering import residual_means
    from babelscope.evaluation.inference import wilson
    from babelscope.lens.vocabulary import VocabularyProfile
    from babelscope.models.anatomy import Anatomy

    options, english, codes, seed = job.options, job.study.english, job.study.languages, job.study.seed
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
                [named(target), name, share.value, share.low, share.high, cell["bits"], prompts[0], cell["texts"][0]]
            )
        first = f"{options.factors[0]:g}"
        pairs = zip(hits[f"neurons x {first}"], hits[f"random x {first}"], strict=True)
        beyond += [float(mine) - float(other) for mine, other in pairs]
    more = spread(beyond)
    return Section(
        f"The first {options.words} words of {len(prompts)} held-out texts in {named(english)} were continued "
        f"greedily by {options.new_tokens} tokens, with a language's neurons amplified and {named(english)}'s "
        "zeroed, with random sets of the same counts, and with the difference of the languages' mean states added "
        "behind the middle layers. The language of a continuation is the one whose texts make its tokens likeliest; "
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
    from babelscope.editing.continuation import continued
    from babelscope.evaluation.likelihood import likelihood

    with way():
        texts = continued(model, tokenizer, prompts, new_tokens)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    context = 0 if tokenizer.bos_token_id is not None else 1  # tokens that only others are predicted from
    longer = [text for text, each in zip(texts, ids, strict=True) if len(each) > context]
    return {
        "texts": texts,
        "languages": [profile.identify(each) if each else "" for each in ids],
        "bits": likelihood(model, tokenizer, longer).bits_per_byte if longer else None,
    }


def tuning(job: Job) -> Section:
    """Neurons of a language trained on its documents, beside the other arms."""
    from babelscope.tuning.bench import run_experiment

    asked = experiment(job)
    groups = asked.groups()
    job.start(sum(len(asked.rates_of(arm)) for _, _, arm in groups) + (len(asked.seeds) - 1) * len(groups))

    def told(line: str) -> None:
        job.done = min(job.done + 1, job.cells - 1)
        job.tell(job.done, job.cells, line)

    found = run_experiment(asked, job.folder / "experiment", told)
    together = [row for row in found.rows if row.language == (ALL if len(asked.languages) > 1 else asked.languages[0])]
    largest, arm = max(asked.documents), next(iter(asked.neurons))
    figures = []
    titles = {"target": "the tuned language", "others": "the other languages"}
    for side, title in titles.items():
        records = [
            {"series": row.arm, "x": row.documents, "y": change.value, "low": change.low, "high": change.high}
            for row in together
            if (change := getattr(row, side)) is not None
        ]
        caption = (
            f"By documents trained on; below zero is better. {arm.capitalize()}: the language's neurons by that rule. "
            "Bands are 95 % intervals over texts and runs."
        )
        axes = {"x": "documents trained on", "y": BITS}
        figures.append(figure(f"tuning {side}", "curve", f"{BITS.capitalize()}: {title}", caption, records, **axes))
    findings = []
    for row in together:
        if row.documents == largest and row.arm == arm and row.target_to_random is not None:
            more = Interval(-row.target_to_random.value, -row.target_to_random.high, -row.target_to_random.low)
            text = (
                f"With {largest} documents held-out texts of the tuned language gain {between(more)} bits per byte "
                f"more than with as many random neurons, each at its best learning rate (means over "
                f"{', '.join(map(named, asked.languages))})."
            )
            findings.append(finding("Training a language's own neurons helps it more than random ones", more, text))
    columns = ("language", "documents", "arm", "rate", "parameters", "before", "change", "low", "high", "others",
               "others low", "others high", "tasks before", "tasks change", "tasks low", "tasks high")  # fmt: skip
    rows = [
        [_who(row.language), row.documents, row.arm, row.rate, row.parameters, row.target_before, *_cells(row.target),
         *_cells(row.others), row.tasks_before, *_cells(row.tasks)]
        for row in found.rows
    ]  # fmt: skip
    tables = [
        table("tuning", "Bits per byte of the tuned language and the others; scores of tasks", columns, rows),
        table("verdicts", "Which arm is best", ("verdict",), [[_said(each)] for each in found.verdicts]),
    ]
    printed = [
        [task, each, *(100 * value if value is not None else None for value in _scores(found.rows, arm, each)), score]
        for task in asked.tasks
        for each in asked.documents
        if (score := printed_enhancement(job.loader.spec.name, task, each)) is not None
    ]
    if printed:
        title = "Measured (mean over tasks and languages) beside what the paper prints, in percent"
        tables.append(table("printed", title, ("task", "documents", "before", "after", "printed"), printed))
    recipe = ", ".join(f"{name} {value}" for name, value in asked.recipe.items())
    return Section(
        f"Only the chosen neurons' rows and columns were trained ({recipe}); validation texts chose the step and "
        f"(of several) the learning rate; {asked.texts} held-out texts per language are told. Random neurons have the "
        "same counts by layer and slot; LoRA about as many parameters.",
        findings,
        tables,
        figures,
    )


def experiment(job: Job) -> Experiment:
    """The arms as the library compares them."""
    from babelscope.tuning.experiment import Experiment

    study, options = job.study, job.options
    sources = {
        kind: str(getattr(study.corpora, kind) or study.corpora.held_out)
        for kind in ("detect", "validation", "held_out")
    }
    rates = [] if options.learning_rates is None else [list(options.learning_rates)]
    return Experiment.of(
        {
            "model": job.loader.spec.name, "dtype": job.loader.spec.dtype,
            "languages": list(options.languages),
            "others": [code for code in study.languages if code not in options.languages],
            "neurons": {study.select.rule: str(job.folder.parent / "select" / "{}.safetensors")},
            "corpus": sources["detect"], "validation": sources["validation"], "test": sources["held_out"],
            "documents": list(options.documents), "seeds": list(options.seeds), "arms": list(options.arms),
            "random": options.random, "rates": {arm: tried for tried in rates for arm in ("neurons", "lora")},
            "texts": options.texts, "tasks": list(options.tasks), "limit": options.limit, "data": study.data,
            "recipe": {name: getattr(options, name) for name in ("epochs", "batch_size", "max_tokens", "evaluations")},
        }
    )  # fmt: skip


def _who(language: str) -> str:
    return "mean" if language == ALL else named(language)


def _said(verdict: str) -> str:
    """A verdict with the language's name: it begins with the code."""
    language, _, rest = verdict.partition(", ")
    return f"{_who(language)}, {rest}"


def _cells(interval: Interval | None) -> tuple[float | None, ...]:
    return (None, None, None) if interval is None else (interval.value, interval.low, interval.high)


def _scores(rows: Sequence[Any], arm: str, documents: int) -> tuple[float | None, float | None]:
    """Of tasks before and after, mean over languages."""
    here = [row for row in rows if (row.arm, row.documents) == (arm, documents) and row.tasks is not None]
    if not here:
        return None, None
    return here[-1].tasks_before, here[-1].tasks_before + here[-1].tasks.value
