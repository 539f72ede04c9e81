"""The stages that read the model: detect, select, lens, search, damage. Each calls the library and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from babelscope.errors import ConfigError
from babelscope.report.results import Finding, Section, figure, finding, table
from babelscope.study.config import SEARCHED, Split
from babelscope.study.job import BITS, Job, between, named, portable, spread

if TYPE_CHECKING:
    from babelscope.neurons.neuronset import NeuronSet


def detect(job: Job) -> Section:
    """Scores every neuron on the documents of every language: one run folder per number of documents."""
    from babelscope.detection.detect import Progress
    from babelscope.detection.detect import detect as run
    from babelscope.models.anatomy import Anatomy

    options, asked = job.options, job.options.documents
    count = asked if isinstance(asked, dict) else dict.fromkeys(job.study.languages, asked)
    job.start(len(job.study.languages))
    anatomy = Anatomy(job.model)
    finished = 0

    def tell(progress: Progress) -> None:
        done = finished + progress.languages_done
        part = min(1.0, progress.documents / progress.asked) if progress.asked else 0.0
        job.tell(done + part, job.cells, named(progress.language))

    for documents in dict.fromkeys(count[code] for code in job.study.languages):
        corpora = {code: job.corpus("detect", code) for code in job.study.languages if count[code] == documents}
        settings = {name: value for name, value in asdict(options).items() if name != "documents"}
        run(
            anatomy, job.tokenizer, corpora, documents=documents, seed=job.study.seed,
            run_dir=job.folder / f"run-{documents}", progress=tell, **settings,
        )  # fmt: skip
        finished += len(corpora)
        job.tell(finished, job.cells, "")
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
            table("corpora", "What was read", ("language", "documents", "tokens", "too short", "cut", "source"), rows),
            table("units", "Neurons that were scored", ("slot", "neurons"), [[k, v] for k, v in units.items()]),
        ],
    )


def select(job: Job) -> Section:
    """Chooses the set of each language; writes the neuron files."""
    options = job.options
    job.start(1)
    sets = {
        code: job.atlas.select(code, rule=options.rule, budget=options.budget, exclude=options.exclude)
        for code in job.study.languages
    }
    for code, neurons in sets.items():
        neurons.save(job.folder / f"{code}.safetensors")
    job.passed("")
    slots = list(job.atlas.slots)
    counts = [
        {"language": code, "slot": slot, "layer": layer, "count": count}
        for code, neurons in sets.items()
        for slot, layers in neurons.counts().items()
        for layer, count in enumerate(layers)
    ]
    rows = [
        [named(code), len(neurons), len(neurons) / neurons.universe, *(sum(neurons.counts()[slot]) for slot in slots)]
        for code, neurons in sets.items()
    ]
    findings, figures = [], []
    for rule in dict.fromkeys((options.rule, *options.compare)):
        if rule == "contrast":  # gives a unit to one language only, so nothing is shared
            continue
        chosen = sets if rule == options.rule else by_rule(job, rule)
        pairs = list(_overlaps(chosen))
        findings += _shared(rule, pairs, list(chosen))
        caption = "Share of the column's neurons that the row has too; in brackets what chance would give."
        figures.append(figure(f"overlap {rule}", "overlap", f"Overlap of the sets: rule {rule}", caption, pairs))
    return Section(
        f"Rule {options.rule}, budget {options.budget:g}"
        + (f", without {options.exclude}" if options.exclude else "")
        + ". Overlap of row x and column y is |x and y| / |y|; expected, and the chance of at least as much, are of "
        "random sets with the same counts by layer and slot.",
        findings,
        [table("sets", "Neurons of each language", ("language", "neurons", "share", *slots), rows)],
        [
            figure("counts", "counts", "Neurons by layer and slot", "How many of each language's neurons lie where.",
                   counts),
            *figures,
        ],
    )  # fmt: skip


def by_rule(job: Job, rule: str) -> dict[str, NeuronSet]:
    """Sets of every language by another rule, of the same budget."""
    return {code: job.atlas.select(code, rule=rule, budget=job.study.select.budget) for code in job.study.languages}


def _shared(rule: str, pairs: list[dict[str, Any]], codes: list[str]) -> list[Finding]:
    rows = [[pair["overlap"] - pair["expected"] for pair in pairs if pair["row"] == code] for code in codes]
    if not all(rows):
        return []
    interval = spread(sum(row) / len(row) for row in rows)
    mean = sum(pair["overlap"] for pair in pairs) / len(pairs)
    text = (
        f"Two sets share {mean:.1%} of their neurons on average, {between(interval)} more than sets of the same counts "
        f"by layer and slot would share by chance (95 % interval over languages)."
    )
    return [finding(f"The sets of two languages share more neurons than chance (rule {rule})", interval, text)]


def _overlaps(sets: Mapping[str, NeuronSet]) -> Iterator[dict[str, Any]]:
    """Every ordered pair of sets: the share of the column's neurons that the row has too, beside chance."""
    from babelscope.evaluation.inference import overlap_p

    for row, mine in sets.items():
        for column, theirs in sets.items():
            if row == column or not theirs:
                continue
            shared, chance = len(mine & theirs), mine.expected_overlap(theirs) / len(theirs)
            p = overlap_p(shared, *zip(*mine.strata(theirs), strict=True))
            yield {"row": row, "column": column, "overlap": shared / len(theirs), "expected": chance, "p": p}


def lens(job: Job) -> Section:
    """Which language each layer speaks."""
    from babelscope.evaluation.inference import wilson
    from babelscope.lens.run import run_lens

    options, name = asdict(job.options), portable(job.loader.spec.name)
    job.start(1)
    corpora, prompts = (
        {code: job.corpus(kind, code) for code in job.study.languages} for kind in ("detect", "held_out")
    )
    curve = run_lens(
        job.model, job.tokenizer, corpora, prompts, job.folder / "run", progress=False, seed=job.study.seed, **options
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
        f"The hidden state of each layer was decoded through the {'final norm and the ' * job.options.final_norm}"
        f"unembedding at every position of {job.options.documents} held-out prompts per language"
        f"{f', of {job.options.new_tokens} new tokens' * bool(job.options.new_tokens)}; a token counts for languages "
        + (
            f"as {job.options.identifier} names it."
            if job.options.identifier
            else f"in proportion to how often it occurs in {job.options.profile_documents} documents of each. A pivot "
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


def search(job: Job) -> Section:
    """Searches the split of the layers on validation texts."""
    from babelscope.evaluation.likelihood import likelihood
    from babelscope.evaluation.stages import find_stages

    options, english = job.options, job.study.english
    target = options.language or job.others[0]
    held = job.texts("validation", options.texts, (english, target))
    job.start(1 + len(options.understand) * len(options.generate))

    def score(model: Any) -> Mapping[str, float]:
        """Called for the intact model first and then for each split in order, so a number names the cell."""
        return job.cell(
            f"{job.done}",
            lambda: {
                code: -likelihood(model, job.tokenizer, texts, max_tokens=options.max_tokens).bits_per_byte
                for code, texts in held.items()
            },
        )

    found = find_stages(
        job.model, job.tokenizer, job.sets[target], score, understand=options.understand, generate=options.generate,
        stages=options.stages, english=english,
    )  # fmt: skip
    best = found.best
    records = [
        {"understand": each.stages.understand, "generate": each.stages.generate, "value": each.delta}
        for each in found.grid
    ]
    rows = [
        [each.stages.understand, each.stages.generate, each.neurons, each.english, each.others, each.delta]
        for each in found.grid
    ]
    columns = ("understand", "generate", "neurons off", f"change in {named(english)}", f"in {named(target)}", "delta")
    return Section(
        f"For each split the neurons of {named(target)} in the stages {' and '.join(options.stages)} were switched off "
        f"and {options.texts} validation texts of {named(target)} and {named(english)} measured; a score is minus bits "
        f"per byte. The best split, {best.stages.understand} and {best.stages.generate}, has the largest change in "
        f"{named(english)} minus change in {named(target)}. What is reported elsewhere is of other texts.",
        [],
        [table("splits", "Splits of the layers", columns, rows)],
        [figure("search", "search", "Splits of the layers",
                f"Change in {named(english)} minus change in {named(target)}: larger is more selective.", records)],
    )  # fmt: skip


def chosen_split(job: Job) -> Split:
    """The split that the study gives, or the best that `search` found."""
    from babelscope.artifacts import read_json

    split = job.study.split
    if isinstance(split, Split):
        return split
    assert split == SEARCHED
    result = read_json(job.folder.parent / "search" / "result.json")
    rows = result["tables"][0]["rows"]
    if not rows:
        raise ConfigError("the search tried no split. Give sizes in search.understand and search.generate.")
    best = max(rows, key=lambda row: row[5])
    return Split(best[0], best[1])


def damage(job: Job) -> Section:
    """Bits per byte of every language's texts without each language's neurons, beside other rules and random sets."""
    from babelscope.editing.controls import controls
    from babelscope.evaluation.likelihood import damage_matrix
    from babelscope.models.anatomy import Anatomy

    options, codes = job.options, job.study.languages
    held = job.texts("held_out", options.texts)
    mine = job.sets

    def random_sets(number: int) -> dict[str, NeuronSet]:
        return {code: sets[number] for code, sets in drawn.items()}

    kinds: dict[str, Callable[[], Mapping[str, NeuronSet]]] = {"selected": lambda: mine}
    for rule in job.study.select.compare:
        kinds[rule] = partial(by_rule, job, rule)
    drawn = {
        code: controls(neurons, options.controls, seed=job.study.seed) if options.controls else []
        for code, neurons in mine.items()
    }
    for number in range(options.controls):
        kinds[f"random {number + 1}"] = partial(random_sets, number)
    job.start(len(kinds))
    anatomy = Anatomy(job.model, check=False)

    def measured(make: Callable[[], Mapping[str, NeuronSet]]) -> dict[str, Any]:
        found = damage_matrix(anatomy, job.tokenizer, make(), held, max_tokens=options.max_tokens, seed=job.study.seed)
        return {name: getattr(found, name).tolist() for name in ("base", "change", "low", "high")}

    matrices = {kind: job.cell(kind, partial(measured, make)) for kind, make in kinds.items()}
    own, others = ({kind: _harm(each["change"], at) for kind, each in matrices.items()} for at in ("own", "others"))
    random = [kind for kind in kinds if kind.startswith("random ")]
    findings, rows, forest = [], [], []
    selective = spread(a - b for a, b in zip(own["selected"], others["selected"], strict=True))
    findings.append(
        finding(
            "Switching off a language's neurons harms that language more than the others",
            selective,
            f"Its own texts cost {between(spread(own['selected']))} bits per byte more, those of the other languages "
            f"{between(spread(others['selected']))}; the difference is {between(selective)} (means over {len(codes)} "
            "languages with 95 % intervals).",
        )
    )
    drawn_own = [sum(own[kind][at] for kind in random) / len(random) for at in range(len(codes))] if random else []
    if random:
        beyond = spread(a - b for a, b in zip(own["selected"], drawn_own, strict=True))
        findings.append(
            finding(
                "A language's neurons matter more to it than random ones",
                beyond,
                f"{between(beyond)} bits per byte more harm than {len(random)} random sets of the same counts by layer "
                f"and slot do, which do {between(spread(drawn_own))}.",
            )
        )
    titles = {kind: f"rule {kind}" for kind in kinds} | {"selected": f"rule {job.study.select.rule}"}
    titles |= {kind: f"random sets {number}" for number, kind in enumerate(random, start=1)}
    for kind in matrices:
        rows.append([titles[kind], *(part for side in (own, others) for part in _cells(spread(side[kind])))])
    for kind in [kind for kind in matrices if kind not in random]:
        matrix = matrices[kind]
        forest += [
            {"group": titles[kind], "label": named(code), "control": False, "value": matrix["change"][at][at],
             "low": matrix["low"][at][at], "high": matrix["high"][at][at]}
            for at, code in enumerate(codes)
        ]  # fmt: skip
    forest += [
        {
            "group": "random sets (mean)",
            "label": named(code),
            "value": value,
            "low": None,
            "high": None,
            "control": True,
        }
        for code, value in zip(codes, drawn_own, strict=False)
    ]
    figures = [
        figure(f"damage {kind}", "matrix", f"Damage matrix: {titles[kind]}",
               f"{BITS.capitalize()}: the row's neurons off, the column's held-out texts.",
               [{"row": row, "column": column,
                 **{"value": matrices[kind]["change"][i][j], "low": matrices[kind]["low"][i][j],
                    "high": matrices[kind]["high"][i][j]}}
                for i, row in enumerate(codes) for j, column in enumerate(codes)])
        for kind in matrices if kind not in random[1:]
    ]  # fmt: skip
    title = "Harm of each language's neurons to the language itself"
    caption = "Change in bits per byte of its own held-out texts, with 95 % intervals over texts."
    columns = ("sets", "own", "own low", "own high", "others", "others low", "others high")
    base = [[named(code), value] for code, value in zip(codes, matrices["selected"]["base"], strict=True)]
    return Section(
        f"{options.texts} held-out texts per language, cut to {options.max_tokens} tokens, in bits per UTF-8 byte; "
        f"sets are zeroed. Random sets ({options.controls} per language) have the same counts by layer and slot and "
        "share no neuron with the tested set. Intervals of cells are by bootstrap over texts, those of means "
        "over languages.",
        findings,
        [
            table("harm", "Mean harm over languages, in bits per byte", columns, rows),
            table("intact", "The intact model", ("language", "bits per byte"), base),
        ],
        [figure("own", "forest", title, caption, forest, x=BITS), *figures],
    )


def _harm(change: list[list[float]], at: str) -> list[float]:
    """By language: harm to its own texts, or the mean over the others'."""
    if at == "own":
        return [row[place] for place, row in enumerate(change)]
    return [(sum(row) - row[place]) / (len(row) - 1) for place, row in enumerate(change)]


def _cells(interval: Any) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high
