"""Does a language's set carry the language? Switch it off and measure every language's bits per byte.

    python experiments/damage.py MODEL RUN --texts fr=FILE --texts zh=FILE ... --lines 600: --out FILE.json

For each selection rule and budget: the set of every language of the atlas in RUN is zeroed, and the change in bits per
byte of every language's texts is measured on the same held-out texts. `own` is the change on the set's language,
`others` the mean over the other languages; both are means over languages, with a 95 % interval by bootstrap over
languages. Random
controls have the same number of units per layer and slot as the contrast sets.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import babelscope as bs

RULES: dict[str, dict[str, Any]] = {
    "contrast": {},
    "paper (minimum)": {"rule": "minimum"},
    "paper - shared": {"rule": "minimum", "exclude": "shared"},
    "activation contrast": {"statistic": "activation"},
    "LAPE": {"rule": "lape"},
}


def main() -> None:
    """Prints one table per budget; `--out` keeps the full matrices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("run", type=Path)
    parser.add_argument("--texts", action="append", required=True, metavar="LANGUAGE=FILE")
    parser.add_argument("--lines", default=":", help="which lines of the files, as a slice")
    parser.add_argument("--join", type=int, default=3, help="lines joined to one text")
    parser.add_argument("--limit", type=int, default=12, help="texts per language")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--budgets", default="0.0013,0.01,0.03")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--controls", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    atlas = bs.Atlas.load(options.run)
    model, tokenizer = bs.load_model(options.model, dtype="float32")
    anatomy = bs.Anatomy(model, check=False)
    texts = {language: _texts(path, options) for language, path in (item.split("=", 1) for item in options.texts)}
    record: dict[str, Any] = {"languages": list(texts), "budgets": {}}
    for budget in (float(each) for each in options.budgets.split(",")):
        print(
            f"\n## budget {budget:.2%}\n\n| rule | neurons | own | others | ratio | languages with own > 5 x others |"
        )
        print("|---|---|---|---|---|---|")
        rows: dict[str, Any] = {}
        for name in options.rules.split(","):
            sets = {language: atlas.select(language, budget=budget, **RULES[name]) for language in texts}
            rows[name] = _row(name, _measure(anatomy, tokenizer, sets, texts, options.max_tokens), sets)
        contrast = {language: atlas.select(language, budget=budget) for language in texts}
        draws = []
        for seed in range(options.controls):
            sets = {language: neurons.random_like(seed=seed) for language, neurons in contrast.items()}
            draws.append(_measure(anatomy, tokenizer, sets, texts, options.max_tokens))
        if draws:
            rows["random"] = _row(f"random, {options.controls} draws", np.mean(draws, axis=0), contrast)
            rows["random"]["draws"] = [_summary(each)["own"] for each in draws]
        record["budgets"][str(budget)] = rows
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def _texts(path: str, options: argparse.Namespace) -> list[str]:
    start, _, stop = options.lines.partition(":")
    lines = Path(path).read_text(encoding="utf-8").splitlines()[int(start or 0) : int(stop) if stop else None]
    joined = [" ".join(lines[at : at + options.join]) for at in range(0, len(lines), options.join)]
    return [text for text in joined if text.strip()][: options.limit]


def _measure(
    anatomy: Any, tokenizer: Any, sets: dict[str, Any], texts: dict[str, list[str]], max_tokens: int
) -> np.ndarray:
    matrix = bs.damage_matrix(anatomy, tokenizer, sets, texts, max_tokens=max_tokens, resamples=1)
    return matrix.change


def _summary(change: np.ndarray) -> dict[str, Any]:
    own = np.diag(change)
    others = (change.sum(1) - own) / (len(change) - 1)
    draws = np.random.default_rng(0).integers(0, len(own), size=(2000, len(own)))
    interval = [np.quantile(each[draws].mean(1), [0.025, 0.975]).tolist() for each in (own, others)]
    wins = int((own > 5 * others).sum())
    return {"own": own.mean(), "others": others.mean(), "own 95%": interval[0], "others 95%": interval[1], "wins": wins}


def _row(name: str, change: np.ndarray, sets: dict[str, Any]) -> dict[str, Any]:
    found = _summary(change)
    count = round(float(np.mean([len(neurons) for neurons in sets.values()])))
    print(
        f"| {name} | {count} | {found['own']:.4f} [{found['own 95%'][0]:.4f}, {found['own 95%'][1]:.4f}] "
        f"| {found['others']:.4f} [{found['others 95%'][0]:.4f}, {found['others 95%'][1]:.4f}] "
        f"| {found['own'] / found['others']:.1f} | {found['wins']} of {len(change)} |",
        flush=True,
    )
    return {**found, "neurons": count, "matrix": change.tolist()}


if __name__ == "__main__":
    main()
