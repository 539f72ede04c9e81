"""Can a model be steered from English to another language? Neurons, difference of means, random sets.

    python experiments/steering.py MODEL RUN --corpus en=SOURCE --corpus fr=SOURCE ... --prompts SOURCE --to fr,zh

RUN holds the atlas. English prompts are continued greedily; `wanted` is the share of continuations in the wanted
language, as the vocabulary profile of the corpora names it, with its 95 % Wilson interval; `bits` is what the intact
model needs per byte of the continuations: higher is less fluent. Random sets have the counts of the tested ones.
"""

from __future__ import annotations

import argparse
from itertools import islice

import babelscope as bs
from babelscope.corpora.sources import open_corpus
from babelscope.editing.steering import residual_means
from babelscope.evaluation.inference import wilson
from babelscope.stages.steering import spoken, ways


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("run")
    parser.add_argument("--corpus", action="append", required=True, metavar="LANGUAGE=SOURCE")
    parser.add_argument("--prompts", required=True, help="English texts; their first words are the prompts")
    parser.add_argument("--to", required=True, help="wanted languages, with commas")
    parser.add_argument("--budget", type=float, default=0.02)
    parser.add_argument("--factors", default="2,4,8")
    parser.add_argument("--alphas", default="0.5,1,2")
    parser.add_argument("--layers", help="of the difference of means, with commas (the middle half)")
    parser.add_argument("--count", type=int, default=60, help="prompts")
    parser.add_argument("--tokens", type=int, default=24, help="of a continuation")
    options = parser.parse_args()
    model, tokenizer = bs.load_model(options.model, dtype="float32")
    anatomy, atlas = bs.Anatomy(model, check=False), bs.Atlas.load(options.run)
    corpora = dict(item.split("=", 1) for item in options.corpus)
    profile = bs.VocabularyProfile.build(tokenizer, corpora, documents=1000)
    means = residual_means(anatomy, tokenizer, corpora, documents=100)
    layers = [int(each) for each in options.layers.split(",")] if options.layers else None
    texts = islice((each.text for each in open_corpus(options.prompts)), options.count)
    prompts = [" ".join(text.split()[:4]) for text in texts]
    print("| to | way | wanted | low | high | bits |\n|---|---|---|---|---|---|")
    for target in options.to.split(","):
        sets = {code: atlas.select(code, budget=options.budget) for code in (target, "en")}
        tried = ways(
            anatomy,
            sets,
            means,
            target,
            "en",
            layers=layers,
            factors=[float(each) for each in options.factors.split(",")],
            alphas=[float(each) for each in options.alphas.split(",")],
        )
        for name, way in tried.items():
            told = spoken(model, tokenizer, profile, prompts, way, options.tokens)
            share = wilson(told["languages"].count(target), len(prompts))
            bits = "–" if told["bits"] is None else f"{told['bits']:.2f}"
            cells = (target, name, f"{share.value:.2f}", f"{share.low:.2f}", f"{share.high:.2f}", bits)
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
