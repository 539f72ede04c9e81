"""The language lens on real text: is the vocabulary profile right, and what do the layers of a model speak?

    python experiments/lens.py MODEL --corpus fr=CORPORA/fr.txt --held-out fr=PARALLEL/fr.txt ... --out O.json
    python experiments/lens.py tinybabel --corpus fr=tinybabel:fr --held-out fr=tinybabel:fr:test ...

Profile: built from the corpora, tested on the held-out texts. Right language of single lines, of windows of tokens and
of single tokens, and the calibration error of the tokens' posteriors, at several sizes of corpus; the last beside
`lingua` and `cld3` on the same lines and tokens. Lingua chooses among the same languages, cld3 among all that it knows.

Lens: mass of the prompt's language, of English and of the unknown by layer on the same lines; English at its largest
beside the prompt's language and its own shuffled control; the pivot, if there is one. The same in the paper's way (an
identifier on the likeliest string, with the final norm and without) and, with `--tuned-documents`, through a tuned
lens, beside how near both lenses are to the model's own distribution on the held-out lines.

For Tinybabel also words: a French sentence and its translation up to a noun; how likely each layer finds the noun in
that language, in English and in French.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import babelscope as bs
from babelscope import tinybabel
from babelscope.corpora.sources import open_corpus
from babelscope.lens.curve import bootstrap_interval
from babelscope.lens.identify import IDENTIFIERS, Guess, guesser
from babelscope.lens.tokens import token_bytes, token_text
from babelscope.lens.tuned import closeness
from babelscope.lens.vocabulary import calibration_error
from babelscope.lens.words import latent_language
from babelscope.tinybabel.grammar import LANGUAGES, grammar
from babelscope.tinybabel.texts import tell
from babelscope.tinybabel.world import fact

RELATIONS = (("likes", "food"), ("speaks", "tongue"))


def main() -> None:
    """Prints the tables; `--out` keeps them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", action="append", required=True, metavar="LANGUAGE=SOURCE")
    parser.add_argument("--held-out", action="append", required=True, metavar="LANGUAGE=SOURCE")
    parser.add_argument("--held-out-texts", type=int, default=None, help="texts per language that test the profile")
    parser.add_argument("--sizes", default="100,1000,all", help="documents of each corpus for the profile")
    parser.add_argument("--identifiers", nargs="*", choices=IDENTIFIERS, default=IDENTIFIERS, help="beside the profile")
    parser.add_argument("--prompts", type=int, default=100, help="lines per language that the model reads; 0 for none")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=0)
    parser.add_argument("--tuned-documents", type=int, help="of each corpus for a tuned lens (none)")
    parser.add_argument("--tuned-steps", type=int, default=2000, help="of its training, at most")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    corpora = dict(each.split("=", 1) for each in options.corpus)
    lines = {
        code: [each.text for each in itertools.islice(open_corpus(source), options.held_out_texts)]
        for code, source in (each.split("=", 1) for each in options.held_out)
    }
    model, tokenizer = bs.load_model(options.model)
    record: dict[str, Any] = {"profile": {}, "lines": {code: len(each) for code, each in lines.items()}}
    print(f"{'profile':<16}{'lines':>8}{'lowest':>10}{'windows':>9}{'tokens':>8}{'ECE':>8}{'unknown':>9}{'seconds':>9}")
    for size in options.sizes.split(","):
        started = time.perf_counter()
        profile = bs.VocabularyProfile.build(tokenizer, corpora, documents=None if size == "all" else int(size))
        seconds = time.perf_counter() - started
        found = profile.evaluate(tokenizer, lines)
        lowest = min(found.text_accuracy.items(), key=lambda item: item[1])
        unknown = float(profile.posterior[profile.script > 0, -1].mean())
        record["profile"][size] = {**vars(found), "unknown": unknown, "seconds": seconds}
        print(
            f"{size + ' documents':<16}{mean(found.text_accuracy.values()):>8.4f}{lowest[0]:>4}{lowest[1]:>6.3f}"
            f"{mean(found.window_accuracy.values()):>9.3f}{mean(found.token_accuracy.values()):>8.3f}"
            f"{found.calibration_error:>8.4f}{unknown:>9.3f}{seconds:>9.1f}"
        )
    record["identifiers"] = identifiers(tokenizer, profile, lines, options.identifiers)
    if options.prompts:
        ways: dict[str, dict[str, Any]] = {"profile": {}}
        for name in options.identifiers:
            ways[name] = {"identifier": name}
            ways[f"{name}, no norm"] = {"identifier": name, "final_norm": False}
        if options.tuned_documents:
            read = [each for code in lines for each in lines[code][: options.prompts]]
            sources = [itertools.islice(open_corpus(each), options.tuned_documents) for each in corpora.values()]
            texts = [each.text for each in itertools.chain(*sources)]
            lens, record["tuned"] = tuned(model, tokenizer, texts, options.tuned_steps, read)
            ways["tuned"] = {"tuned": lens}
        record["lens"] = {}
        for name, settings in ways.items():
            curve = bs.language_lens(
                model,
                tokenizer,
                lines,
                profile,
                documents=options.prompts,
                max_tokens=options.max_tokens,
                new_tokens=options.new_tokens,
                **settings,
            )
            record["lens"][name] = show(name, curve)
    if options.model == tinybabel.NAME:
        record["words"] = words(model, tokenizer)
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def identifiers(
    tokenizer: Any, profile: bs.VocabularyProfile, lines: dict[str, list[str]], names: Iterable[str]
) -> dict[str, Any]:
    """The profile beside identifiers: whole lines, and the lines' tokens with letters, as strings."""
    chances, sure = profile.among_languages().max(1), profile.posterior[:, :-1].max(1).values > 0.5
    texts = [token_text(each) for each in token_bytes(tokenizer)]
    ids = {
        code: [token for line in each for token in encoded(tokenizer, line) if profile.script[token] > 0]
        for code, each in lines.items()
    }

    def by_tokens(line: str) -> Guess:
        chance = profile.likelihood[encoded(tokenizer, line)].log().sum(0).softmax(0).max(0)  # as profile.identify
        return Guess(profile.languages[int(chance.indices)], float(chance.values), True)

    def by_posterior(token: int) -> Guess:
        return Guess(profile.languages[chances.indices[token]], float(chances.values[token]), bool(sure[token]))

    asked: dict[str, tuple[Callable[[str], Guess], Callable[[int], Guess]]] = {"profile": (by_tokens, by_posterior)}
    for name in names:
        guess = guesser(name, profile.languages)
        asked[name] = guess, lambda token, guess=guess: guess(texts[token])
    found = {
        name: {"lines": judged(lines, of_line), "tokens": judged(ids, functools.cache(of_token))}
        for name, (of_line, of_token) in asked.items()
    }
    for kind in ("lines", "tokens"):
        print(f"\n{kind:<10}{'right':>8}{'ECE':>8}{'named':>8}{'right of named':>16}{'others':>8}  right by language")
        for name, both in found.items():
            each = both[kind]
            print(
                f"{name:<10}{mean(each['right'].values()):>8.4f}{each['calibration error']:>8.4f}{each['named']:>8.3f}"
                f"{each['right of named']:>16.3f}{each['others']:>8.3f}  "
                + " ".join(f"{code} {value:.3f}" for code, value in each["right"].items())
            )
    return found


def encoded(tokenizer: Any, line: str) -> list[int]:
    """The tokens of a line, BOS left out."""
    ids: list[int] = tokenizer(line, add_special_tokens=False)["input_ids"]
    return ids


def judged(items: dict[str, list[Any]], guess: Callable[[Any], Guess]) -> dict[str, Any]:
    """Guesses beside the truth, every language of the same weight.

    `right`: share right by language, sure or not; `named`: share surely of one of the languages; `right of named`:
    share right of those; `others`: share surely of another language; and the calibration error of the confidences.
    """
    confidence, right, named, correct, others = [], {}, [], [], []
    for code, each in items.items():
        found = [guess(item) for item in each]
        confidence.append(torch.tensor([one.confidence for one in found]))
        right[code] = torch.tensor([float(one.language == code) for one in found])
        certain = [one.language for one in found if one.sure]
        chosen = [language for language in certain if language]
        named.append(len(chosen) / len(each))
        others.append((len(certain) - len(chosen)) / len(each))
        if chosen:
            correct.append(chosen.count(code) / len(chosen))
    return {
        "right": {code: float(each.double().mean()) for code, each in right.items()},
        "calibration error": calibration_error(confidence, list(right.values())),
        "named": mean(named),
        "right of named": mean(correct or [0.0]),
        "others": mean(others),
    }


def tuned(
    model: Any, tokenizer: Any, texts: list[str], steps: int, lines: list[str]
) -> tuple[bs.TunedLens, dict[str, Any]]:
    """Trains a tuned lens, and shows how near it and the plain lens come to the last layer on other lines."""
    started = time.perf_counter()
    lens = bs.TunedLens.train(model, tokenizer, texts, max_steps=steps)
    seconds = time.perf_counter() - started
    print(f"\ntuned lens: {len(texts)} texts, {seconds:.0f} s, steps by layer {lens.about['steps']}")
    found = {"plain": closeness(model, tokenizer, lines), "tuned": closeness(model, tokenizer, lines, tuned=lens)}
    for name, each in found.items():
        print(f"  {name}: nats from the last layer " + " ".join(f"{value:.2f}" for value in each.divergence), end="")
        print("; agreement " + " ".join(f"{value:.2f}" for value in each.agreement))
    return lens, {"about": dict(lens.about), "seconds": seconds} | {name: vars(each) for name, each in found.items()}


def show(name: str, curve: Any) -> dict[str, Any]:
    """A table of the lens: mass of the prompt's own language, of English and of the unknown by layer."""
    layers = range(curve.n_layers + 1)
    print(f"\n{name}: own / English / unknown by layer (0 = embeddings)")
    for code in dict.fromkeys(curve.prompt_languages):
        mass = curve.of(code)
        own, english = (mass[:, curve.languages.index(each)] for each in (code, "en"))
        cells = [f"{own[at]:.2f}/{english[at]:.2f}/{mass[at, -1]:.2f}" for at in layers]
        print(f"  {code:<4}" + " ".join(f"{cell:>15}" for cell in cells))
    print("  bits of entropy ", [round(float(value), 2) for value in curve.entropy.mean(0)])
    print("  agreement       ", [round(float(value), 2) for value in curve.agreement.mean(0)])
    english = (
        {}
        if curve.control is None
        else {code: largest(curve, code) for code in dict.fromkeys(curve.prompt_languages) if code != "en"}
    )
    for code, found in english.items():
        print(f"  {code:<4}" + ", ".join(f"{each} {value}" for each, value in found.items()))
    stages = [*curve.stages(pivot="en"), *curve.stages()]
    for stage in dict.fromkeys(map(str, stages)):
        print("  " + stage)
    return {
        "languages": [*curve.languages, "unknown"],
        "mass": {code: curve.of(code).tolist() for code in dict.fromkeys(curve.prompt_languages)},
        "english": english,
        "stages": [str(stage) for stage in stages],
    }


def largest(curve: Any, code: str) -> dict[str, Any]:
    """English in the layer behind the embeddings where it has most, less the prompt's language, less its own control.

    With 95 % bootstrap intervals over prompts.
    """
    chosen = [place for place, each in enumerate(curve.prompt_languages) if each == code]
    english, own = curve.languages.index("en"), curve.languages.index(code)
    masses, control = curve.masses[chosen].double(), curve.control[chosen].double()
    layer = 1 + int(masses[:, 1:-1, english].mean(0).argmax())
    found: dict[str, Any] = {"layer": layer, "English": round(float(masses[:, layer, english].mean()), 3)}
    for name, other in (("less own", masses[:, layer, own]), ("less control", control[:, layer, english])):
        lead = masses[:, layer, english] - other
        found[name] = [round(float(each), 3) for each in (lead.mean(), *bootstrap_interval(lead, 1000, 0))]
    return found


def words(model: Any, tokenizer: Any, count: int = 60) -> dict[str, Any]:
    """A French sentence of Tinybabel, then its translation up to the word: is that word on its way in English first?"""
    found: dict[str, Any] = {}
    print("\nwords, French to ...: probability in the target language/English/French by layer; English on its largest")
    for code in LANGUAGES:
        if code in ("en", "fr"):
            continue
        rng, prompts = random.Random(0), []
        kept: dict[str, list[str]] = {each: [] for each in (code, "en", "fr")}
        while len(prompts) < count:
            relation, slot = rng.choice(RELATIONS)
            stated = fact(relation, rng)
            told = {each: tell(grammar(each), stated, grammar(each).relations[relation]["say"][0]) for each in kept}
            spans = {each: next(span for span in told[each].spans if span.slot == slot) for each in kept}
            prompt = f"{told['fr'].text}\n{told[code].text[: spans[code].start].rstrip()}"
            spoken = {each: told[each].text[spans[each].start : spans[each].end] for each in kept}
            prompts.append(prompt)
            for each, word in spoken.items():
                kept[each].append(word)
        latent = latent_language(model, tokenizer, prompts, kept)
        sure, mean_LC = latent.telling, latent.mean()
        layer = int(mean_LC[:-1, 1].argmax())
        ends = [round(float(each), 3) for each in bootstrap_interval(sure[:, layer, 1] - sure[:, layer, 0], 1000, 0)]
        print(
            f"  {code} ({len(sure)} prompts) "
            + " ".join("/".join(f"{value:.3f}" for value in row) for row in mean_LC.tolist())
            + f"; English less target in layer {layer}: {ends}"
        )
        found[code] = {"prompts": len(sure), "mean": mean_LC.tolist(), "layer": layer, "English less target": ends}
    return found


if __name__ == "__main__":
    main()
