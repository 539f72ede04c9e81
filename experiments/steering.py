"""Can a model be steered from English to another language? Neurons, difference of means, random sets.

    python experiments/steering.py MODEL RUN --corpus en=SOURCE --corpus fr=SOURCE ... --prompts SOURCE --to fr,zh

RUN holds the atlas. English prompts are continued greedily; `wanted` is the share of continuations in the wanted
language, as the vocabulary profile of the corpora names it, with its 95 % Wilson interval; `bits` is what the intact
model needs per byte of the continuations: higher is less fluent. Random sets have the counts of the tested ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import babelscope as bs
from babelscope.corpora.sources import open_corpus
from babelscope.editing.continuation import continued
from babelscope.editing.steering import residual_means, steer, steer_by_means
from babelscope.evaluation.inference import wilson
from babelscope.evaluation.likelihood import likelihood

Way = Callable[[], AbstractContextManager[Any]]


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
    middle = range(anatomy.n_layers // 4, anatomy.n_layers * 3 // 4)
    layers = [int(each) for each in options.layers.split(",")] if options.layers else list(middle)
    texts = islice((each.text for each in open_corpus(options.prompts)), options.count)
    prompts = [" ".join(text.split()[:4]) for text in texts]
    print("| to | way | wanted | low | high | bits |\n|---|---|---|---|---|---|")
    for target in options.to.split(","):
        sets = {code: atlas.select(code, budget=options.budget) for code in (target, "en")}
        for name, way in _ways(anatomy, sets, means, target, layers, options):
            with way():
                told = continued(model, tokenizer, prompts, options.tokens)
            spoken = [text for text in told if tokenizer(text, add_special_tokens=False)["input_ids"]]
            named = [profile.identify(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in spoken]
            share = wilson(named.count(target), len(told))
            bits = likelihood(model, tokenizer, spoken).bits_per_byte if spoken else float("nan")
            cells = (target, name, f"{share.value:.2f}", f"{share.low:.2f}", f"{share.high:.2f}", f"{bits:.2f}")
            print("| " + " | ".join(cells) + " |", flush=True)


def _ways(
    anatomy: Any, sets: dict[str, Any], means: Any, target: str, layers: list[int], options: argparse.Namespace
) -> Iterator[tuple[str, Way]]:
    yield "none", nullcontext
    random = {code: neurons.random_like(seed=0) for code, neurons in sets.items()}
    random["en"] = random["en"] - random[target]
    for factor in map(float, options.factors.split(",")):
        yield f"neurons x {factor:g}", lambda f=factor: steer(anatomy, sets[target], sets["en"], factor=f)
        yield f"random x {factor:g}", lambda f=factor: steer(anatomy, random[target], random["en"], factor=f)
    for alpha in map(float, options.alphas.split(",")):
        yield (
            f"means x {alpha:g}",
            lambda a=alpha: steer_by_means(anatomy, means, target, "en", layers=layers, alpha=a),
        )


if __name__ == "__main__":
    main()
