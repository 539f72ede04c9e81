"""The language lens on real text: is the vocabulary profile right, and what do the layers of a model speak?

    python experiments/lens.py MODEL --corpus fr=CORPORA/fr.txt --held-out fr=PARALLEL/fr.txt ... --out O.json
    python experiments/lens.py tinybabel --corpus fr=tinybabel:fr --held-out fr=tinybabel:fr:test ...

Profile: built from the corpora, tested on the held-out texts.
Right language of single lines, of windows of tokens and of single tokens, and the calibration error of the tokens'
posteriors, at several sizes of corpus; the last beside `lingua` on the same lines and tokens, choosing among the same
languages. Lens: mass of the prompt's language, of English and of the unknown by layer on the same lines; English at its
largest beside the prompt's language and its own shuffled control; the pivot, if there is one; and the paper's way
(identifier on the likeliest string, no final norm) beside ours. For Tinybabel also words: a
French sentence and its translation up to a noun; how likely each layer finds the noun in that language, in English and
in French.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import babelscope as bs
from babelscope import tinybabel
from babelscope.corpora.sources import open_corpus
from babelscope.lens.identify import identifier
from babelscope.lens.tokens import token_bytes, token_text
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
    parser.add_argument("--no-lingua", action="store_true", help="neither in the table nor in the lens")
    parser.add_argument("--prompts", type=int, default=100, help="lines per language that the model reads")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=0)
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
    if not options.no_lingua:
        record["lingua"] = beside(lingua(tokenizer, profile, lines), found)
    record["lens"] = {}
    ways: dict[str, dict[str, Any]] = {"profile": {}}
    if not options.no_lingua:
        ways["lingua"] = {"identifier": "lingua"}
        ways["lingua, no norm"] = {"identifier": "lingua", "final_norm": False}
    for name, settings in ways.items():
        curve = bs.language_lens(
            model, tokenizer, lines, profile, documents=options.prompts, max_tokens=options.max_tokens,
            new_tokens=options.new_tokens, **settings,
        )  # fmt: skip
        record["lens"][name] = show(name, curve)
    if options.model == tinybabel.NAME:
        record["words"] = words(model, tokenizer)
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def lingua(tokenizer: Any, profile: bs.VocabularyProfile, lines: dict[str, list[str]]) -> dict[str, Any]:
    """Lingua without abstention on whole lines, and on the strings of the lines' tokens with letters."""
    from lingua import Language, LanguageDetectorBuilder

    known = {each.iso_code_639_1.name.lower(): each for each in Language.all()}
    codes = {known[code]: code for code in profile.languages}
    detector = LanguageDetectorBuilder.from_languages(*codes).build()
    text_accuracy = {
        code: mean(codes.get(detector.detect_language_of(line)) == code for line in each)
        for code, each in lines.items()
    }
    texts = [token_text(each) for each in token_bytes(tokenizer)]
    sure: dict[int, tuple[float, str]] = {}
    find = identifier("lingua", profile.languages)
    confidence, right, named, correct = [], [], [], []
    for code, each in lines.items():
        ids = [token for line in each for token in tokenizer(line, add_special_tokens=False)["input_ids"]]
        ids = [token for token in ids if profile.script[token] > 0]
        for token in set(ids) - sure.keys():
            best = detector.compute_language_confidence_values(texts[token])[0]
            sure[token] = best.value, codes[best.language]
        confidence.append(torch.tensor([sure[token][0] for token in ids]))
        right.append(torch.tensor([float(sure[token][1] == code) for token in ids]))
        answers = [answer for token in ids if (answer := find(texts[token]))]
        named.append(len(answers) / len(ids))
        correct.append(mean(answer == code for answer in answers) if answers else 0.0)
    return {
        "text_accuracy": text_accuracy,
        "token_accuracy": {code: float(each.mean()) for code, each in zip(lines, right, strict=True)},
        "calibration_error": calibration_error(confidence, right),
        "share_named": mean(named),
        "accuracy_of_named": mean(correct),
    }


def beside(other: dict[str, Any], found: Any) -> dict[str, Any]:
    """Prints the profile and lingua on the same lines and tokens."""
    print(f"\n{'':<6}{'lines: profile':>16}{'lingua':>10}{'tokens: profile':>18}{'lingua':>10}")
    columns = [found.text_accuracy, other["text_accuracy"], found.token_accuracy, other["token_accuracy"]]
    for code in found.text_accuracy:
        first, second, third, fourth = (each[code] for each in columns)
        print(f"{code:<6}{first:>16.4f}{second:>10.4f}{third:>18.3f}{fourth:>10.3f}")
    first, second, third, fourth = (mean(each.values()) for each in columns)
    print(f"{'mean':<6}{first:>16.4f}{second:>10.4f}{third:>18.3f}{fourth:>10.3f}")
    print(f"ECE of tokens: profile {found.calibration_error:.4f}, lingua {other['calibration_error']:.4f}")
    print(f"lingua names {other['share_named']:.3f} of the tokens, {other['accuracy_of_named']:.3f} of those rightly")
    return other


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
    draw = torch.randint(len(chosen), (1000, len(chosen)), generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"layer": layer, "English": round(float(masses[:, layer, english].mean()), 3)}
    for name, other in (("less own", masses[:, layer, own]), ("less control", control[:, layer, english])):
        lead = masses[:, layer, english] - other
        low, high = torch.quantile(lead[draw].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        found[name] = [round(value, 3) for value in (float(lead.mean()), low, high)]
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
        sure = latent.probability[~latent.shared]
        mean_LC = sure.mean(0)
        layer = int(mean_LC[:-1, 1].argmax())
        draw = torch.randint(len(sure), (1000, len(sure)), generator=torch.Generator().manual_seed(0))
        lead = (sure[:, layer, 1] - sure[:, layer, 0])[draw].mean(1)
        ends = [round(float(value), 3) for value in torch.quantile(lead, torch.tensor([0.025, 0.975]))]
        print(
            f"  {code} ({len(sure)} prompts) "
            + " ".join("/".join(f"{value:.3f}" for value in row) for row in mean_LC.tolist())
            + f"; English less target in layer {layer}: {ends}"
        )
        found[code] = {"prompts": len(sure), "mean": mean_LC.tolist(), "layer": layer, "English less target": ends}
    return found


if __name__ == "__main__":
    main()
