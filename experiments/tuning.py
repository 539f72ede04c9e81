"""Does it matter which neurons are trained? The language's, random ones, LoRA of the same size, or everything.

    python experiments/tuning.py MODEL --language sw --neurons contrast=SW.safetensors --neurons paper=SW2.safetensors \
        --corpus CORPORA/sw.txt --texts sw=PARALLEL/sw.txt --texts en=PARALLEL/en.txt ... --dev :300 --test 300:700 \
        --documents 100,200,400,800 --rates 3e-4,1e-3,3e-3 --seeds 3 --out tuning.json

Every arm is the same call of `babelscope.tune`. The rate of an arm is the one whose bits per byte on the target's
development texts (lines `--dev`) are best, mean over seeds; that text also stops the training. What is reported is the
change on the test texts (lines `--test`), of the target and the mean over the other languages, with 95 % intervals by
bootstrap over seeds and texts together. A seed draws the documents, their order, LoRA's start and the random sets; the
test texts and draws of the bootstrap are the same for all arms. Finished runs in `--out` are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import babelscope as bs
from babelscope.evaluation.likelihood import likelihood
from babelscope.tuning.adapter import locate


def main() -> None:
    """Runs what is missing in `--out` and prints one table per number of documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--language", required=True)
    parser.add_argument("--neurons", action="append", required=True, metavar="NAME=FILE", help="one arm per set")
    parser.add_argument("--corpus", type=Path, required=True, help="a text file; --join lines are a document")
    parser.add_argument("--lines", default=":", help="which lines of --corpus, as a slice")
    parser.add_argument("--texts", action="append", required=True, metavar="LANGUAGE=FILE")
    parser.add_argument("--dev", default=":300", help="lines of --texts that choose rate and step, as a slice")
    parser.add_argument("--test", default="300:700", help="lines of --texts that are reported")
    parser.add_argument("--join", type=int, default=5, help="lines joined to one text")
    parser.add_argument("--documents", default="400")
    parser.add_argument("--rates", default="3e-4,1e-3,3e-3", help="for neurons and LoRA")
    parser.add_argument("--full-rates", default="3e-5,1e-4,3e-4", help="for all weights; empty: without that arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    texts = dict(item.split("=", 1) for item in options.texts)
    test = {language: joined(Path(path), options.test, options.join) for language, path in texts.items()}
    own_dev = joined(Path(texts[options.language]), options.dev, options.join)
    corpus = joined(options.corpus, options.lines, options.join)
    sets = {name: bs.NeuronSet.load(path) for name, path in (item.split("=", 1) for item in options.neurons)}
    varied = {"documents", "rates", "full_rates", "seeds", "out"}
    settings = {name: str(value) for name, value in vars(options).items() if name not in varied}
    record = json.loads(options.out.read_text()) if options.out.exists() else {"settings": settings, "runs": {}}
    if record["settings"] != settings:
        raise SystemExit(f"{options.out} was made with other settings: {record['settings']}. Give another --out.")

    def bits(model: Any, tokenizer: Any) -> dict[str, Any]:
        found = {name: likelihood(model, tokenizer, each, max_tokens=options.max_tokens) for name, each in test.items()}
        return {
            name: {"bits": (each.nats / np.log(2)).tolist(), "bytes": each.n_bytes.tolist()}
            for name, each in found.items()
        }

    if "base" not in record:
        record["base"] = bits(*bs.load_model(options.model, dtype="float32"))
    for documents in (int(each) for each in options.documents.split(",")):
        for arm, (what, rates) in arms(sets, options).items():
            for rate in rates:
                for seed in range(options.seeds):
                    name = f"{documents}/{arm}/{rate:g}/{seed}"
                    if name in record["runs"]:
                        continue
                    started = time.monotonic()
                    model, tokenizer = bs.load_model(options.model, dtype="float32")
                    result = bs.tune(
                        model, tokenizer, what(model, seed), corpus, language=options.language,
                        held_out={options.language: own_dev}, held_out_documents=len(own_dev), documents=documents,
                        max_tokens=options.max_tokens, epochs=options.epochs,
                        learning_rate=rate, seed=seed,
                    )  # fmt: skip
                    record["runs"][name] = {
                        "documents": documents, "arm": arm, "rate": rate, "seed": seed,
                        "dev": result.after[options.language], "best_step": result.best_step,
                        "parameters": result.parameters, "seconds": time.monotonic() - started,
                        "test": bits(result.model, tokenizer),
                    }  # fmt: skip
                    options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")
        print(table(record, documents, options.language))


def arms(sets: dict[str, Any], options: argparse.Namespace) -> dict[str, tuple[Callable[..., Any], list[float]]]:
    """Name -> (what to train, from a model and a seed; the rates to try)."""
    rates = [float(each) for each in options.rates.split(",")]
    first = next(iter(sets.values()))
    found: dict[str, Any] = {name: (lambda model, seed, one=one: one, rates) for name, one in sets.items()}
    found["random"] = (lambda model, seed: first.random_like(seed), rates)
    found["LoRA"] = (lambda model, seed: lora(model, first), rates)
    full = [float(each) for each in options.full_rates.split(",") if each]
    return {**found, "all weights": (lambda model, seed: None, full)} if full else found


def lora(model: Any, neurons: Any) -> Any:
    """LoRA on the modules that hold the neurons, of the rank whose number of parameters is nearest to theirs."""
    from peft import LoraConfig

    modules = locate(bs.Anatomy(model, check=False), neurons)
    shapes = [model.get_submodule(name).weight.shape for name in modules]
    wanted = sum(
        len(index) * shape[0 if kind.__name__ == "Columns" else 1]
        for (kind, index), shape in zip(modules.values(), shapes, strict=True)
    )
    rank = max(1, round(wanted / sum(map(sum, shapes))))
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(modules), task_type="CAUSAL_LM")


def joined(path: Path, lines: str, join: int) -> list[str]:
    """Texts of `join` lines each, from a slice of a file."""
    start, _, stop = lines.partition(":")
    chosen = path.read_text(encoding="utf-8").splitlines()[int(start or 0) : int(stop) if stop else None]
    return [" ".join(chosen[at : at + join]) for at in range(0, len(chosen), join)]


def table(record: dict[str, Any], documents: int, target: str) -> str:
    """The arms at their best rates, as Markdown."""
    runs = [run for run in record["runs"].values() if run["documents"] == documents]
    lines = [
        f"\n**{documents} documents, {target}**: change in bits per byte\n",
        "| arm | parameters | rate | target | others | target - random |",
        "|---|---|---|---|---|---|",
    ]
    chosen = {
        arm: best_rate([run for run in runs if run["arm"] == arm]) for arm in dict.fromkeys(r["arm"] for r in runs)
    }
    draws = {arm: draw(record["base"], mine, target) for arm, mine in chosen.items()}
    for arm, mine in chosen.items():
        own, others = draws[arm]
        lines.append(
            f"| {arm} | {mine[0]['parameters']:,} | {mine[0]['rate']:g} | {interval(own)} | {interval(others)} | "
            f"{interval(own - draws['random'][0]) if arm != 'random' and 'random' in draws else ''} |"
        )
    return "\n".join(lines)


def best_rate(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, one per seed, at the rate that is best on the development texts."""
    rates = sorted({run["rate"] for run in runs})
    mean = {rate: np.mean([run["dev"] for run in runs if run["rate"] == rate]) for rate in rates}
    return [run for run in runs if run["rate"] == min(rates, key=lambda rate: mean[rate])]


def draw(base: dict[str, Any], runs: list[dict[str, Any]], target: str, resamples: int = 2000) -> tuple[Any, Any]:
    """Change on the target and mean change on the others: element 0 as measured, the rest bootstrap draws."""
    generator = np.random.default_rng(0)  # the same draws for every arm: differences between arms are paired
    seeds = np.vstack([np.arange(len(runs)), generator.integers(0, len(runs), (resamples, len(runs)))])
    changes = {}
    for language, before in base.items():
        n_bytes = np.array(before["bytes"])
        size = len(n_bytes)
        texts = np.vstack([np.arange(size), generator.integers(0, size, (resamples, size))])
        difference = np.array([np.array(run["test"][language]["bits"]) - before["bits"] for run in runs])
        by_seed = np.stack([each[texts].sum(1) / n_bytes[texts].sum(1) for each in difference])  # [seeds, draws]
        changes[language] = np.take_along_axis(by_seed, seeds.T, axis=0).mean(0)
    return changes[target], np.mean([each for language, each in changes.items() if language != target], axis=0)


def interval(draws: Any) -> str:
    """The measured value and its 95 % interval."""
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return f"{draws[0]:+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
