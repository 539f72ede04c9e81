"""Does a language's set carry the language? Switch it off and measure every language's bits per byte.

    python experiments/damage.py MODEL RUN --texts fr=SOURCE --texts zh=SOURCE ... --lines 600: --out O.json --svg O.svg

For each rule and budget, the set of every language of the atlas in RUN is zeroed, and the change in bits per byte of
every language's texts is measured on the same held-out texts. `own` is the change on the set's language, `others` the
mean over the other languages; both are means over languages, with 95 % intervals by bootstrap over languages. Random
sets have the same number of units per layer and slot as the contrast sets. `--svg` draws the trade-off as curves over
budgets.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import babelscope as bs
from babelscope.corpora.sources import open_corpus

Scores = Callable[[Any, int, str], torch.Tensor]
"""(atlas, place of the language, slot) -> a score per unit."""


def _means(atlas: Any, slot: str) -> torch.Tensor:
    return torch.stack([each.mean(slot) for each in atlas.statistics.values()])


def _surplus(atlas: Any, place: int, slot: str) -> torch.Tensor:
    means = _means(atlas, slot)
    return means[place] - torch.cat([means[:place], means[place + 1 :]]).amax(0)


def _relative(atlas: Any, place: int, slot: str) -> torch.Tensor:
    layers = [each.mean().expand(each.shape[-1]) for each in atlas.layout.split(slot, _means(atlas, slot))]
    return _surplus(atlas, place, slot) / torch.cat(layers)


def _purity(atlas: Any, place: int, slot: str) -> torch.Tensor:
    return _surplus(atlas, place, slot) / _means(atlas, slot)[place].clamp_min(1e-30)


def _standardised(atlas: Any, place: int, slot: str) -> torch.Tensor:
    return _surplus(atlas, place, slot) / (list(atlas.statistics.values())[place].deviation(slot) + 1e-30)


RULES: dict[str, dict[str, Any] | Scores] = {
    "contrast (default)": {},
    "surplus": _surplus,
    "surplus / layer mean": _relative,
    "surplus / own": _purity,
    "surplus / deviation": _standardised,
    "paper: minimum": {"rule": "minimum"},
    "paper - shared": {"rule": "minimum", "exclude": "shared"},
    "activation contrast": {"statistic": "activation"},
    "LAPE": {"rule": "lape"},
}
"""Settings of `Atlas.select`, or a score that ranks all units of all slots together."""


def main() -> None:
    """Prints one table per budget; `--out` keeps the full matrices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("run", type=Path)
    parser.add_argument("--texts", action="append", required=True, metavar="LANGUAGE=SOURCE")
    parser.add_argument("--lines", default=":", help="which documents, as a slice")
    parser.add_argument("--join", type=int, default=3, help="documents joined to one text")
    parser.add_argument("--limit", type=int, default=8, help="texts per language")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--budgets", default="0.0013,0.005,0.01,0.03")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--controls", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    atlas = bs.Atlas.load(options.run)
    model, tokenizer = bs.load_model(options.model, dtype="float32")
    anatomy = bs.Anatomy(model, check=False)
    texts = {language: _texts(path, options) for language, path in (item.split("=", 1) for item in options.texts)}
    record: dict[str, Any] = {"languages": list(texts), "budgets": {}}

    def measure(sets: dict[str, Any]) -> np.ndarray:
        return bs.damage_matrix(anatomy, tokenizer, sets, texts, max_tokens=options.max_tokens, resamples=1).change

    for budget in (float(each) for each in options.budgets.split(",")):
        print(f"\n**{budget:.2%} of units**\n\n| rule | neurons | own | others | own / others | own > 5 x others |")
        print("|---|---|---|---|---|---|")
        rows: dict[str, Any] = {}
        for name in options.rules.split(","):
            sets = {language: _select(atlas, language, name, budget) for language in texts}
            rows[name] = _row(name, [measure(sets)], sets)
        sets = {language: atlas.select(language, budget=budget) for language in texts}
        draws = [
            measure({language: neurons.random_like(seed=seed) for language, neurons in sets.items()})
            for seed in range(options.controls)
        ]
        if draws:
            rows["random"] = _row("random", draws, sets)
        record["budgets"][str(budget)] = rows
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.svg:
        options.svg.write_text(_curves(record), encoding="utf-8")


def _select(atlas: Any, language: str, name: str, budget: float) -> Any:
    rule = RULES[name]
    if isinstance(rule, dict):
        return atlas.select(language, budget=budget, **rule)
    place = atlas.languages.index(language)
    scores = {slot: rule(atlas, place, slot) for slot in atlas.slots}
    flat = torch.cat(list(scores.values()))
    keep = torch.zeros(len(flat), dtype=torch.bool)
    keep[flat.topk(round(budget * len(flat))).indices] = True
    parts = keep.split([len(each) for each in scores.values()])
    masks = {slot: atlas.layout.split(slot, part) for slot, part in zip(scores, parts, strict=True)}
    return bs.NeuronSet.from_masks(masks, provenance={"model": atlas.model})


def _texts(path: str, options: argparse.Namespace) -> list[str]:
    start, _, stop = options.lines.partition(":")
    lines = [each.text for each in islice(open_corpus(path), int(start or 0), int(stop) if stop else None)]
    joined = [" ".join(lines[at : at + options.join]) for at in range(0, len(lines), options.join)]
    return [text for text in joined if text.strip()][: options.limit]


def _row(name: str, draws: list[np.ndarray], sets: dict[str, Any]) -> dict[str, Any]:
    change = np.mean(draws, axis=0)
    own = np.diag(change)
    others = (change.sum(1) - own) / (len(change) - 1)
    resampled = np.random.default_rng(0).integers(0, len(own), size=(2000, len(own)))
    (own_low, own_high), (low, high) = (np.quantile(each[resampled].mean(1), [0.025, 0.975]) for each in (own, others))
    count = round(float(np.mean([len(neurons) for neurons in sets.values()])))
    wins = int((own > 5 * others).sum())
    print(
        f"| {name} | {count} | {own.mean():.4f} [{own_low:.4f}, {own_high:.4f}] "
        f"| {others.mean():.4f} [{low:.4f}, {high:.4f}] | {own.mean() / others.mean():.1f} | {wins} of {len(own)} |",
        flush=True,
    )
    universe = next(iter(sets.values())).widths
    slots = {slot: sum(sum(each.counts()[slot]) for each in sets.values()) / len(sets) for slot in universe}
    return {
        "own": own.mean(),
        "others": others.mean(),
        "own 95%": [own_low, own_high],
        "others 95%": [low, high],
        "wins": wins,
        "neurons": count,
        "by slot": slots,
        "matrix": change.tolist(),
    }


def _curves(record: dict[str, Any]) -> str:
    """Own change against the others', both in log scale, one curve per rule over the budgets."""
    width, height, margin = 760, 460, 60
    curves: dict[str, list[tuple[float, float]]] = {}
    for rows in record["budgets"].values():
        for name, row in rows.items():
            if row["own"] > 0 and row["others"] > 0:
                curves.setdefault(name, []).append((row["others"], row["own"]))
    points = [point for curve in curves.values() for point in curve]
    x_low, x_high = (f(point[0] for point in points) for f in (min, max))
    y_low, y_high = (f(point[1] for point in points) for f in (min, max))

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = (math.log(point[0]) - math.log(x_low)) / (math.log(x_high) - math.log(x_low))
        y = (math.log(point[1]) - math.log(y_low)) / (math.log(y_high) - math.log(y_low))
        return margin + x * (width - margin - 200), height - margin - y * (height - 2 * margin)

    colours = ["#1b6ca8", "#d1495b", "#66a182", "#edae49", "#6f4e7c", "#00798c", "#8d5524", "#b56576", "#444", "#999"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        '  font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{margin}" y="24" font-size="14">Harm to the language and to the others, over budgets</text>',
        f'<text x="{margin}" y="{height - 14}">mean change of the other languages, bits per byte (log scale)</text>',
        f'<text transform="translate(16 {height - margin}) rotate(-90)">change of the own language (log scale)</text>',
    ]
    for value in (0.0001, 0.001, 0.01, 0.1, 1.0):
        if x_low <= value <= x_high:
            x = at((value, y_low))[0]
            parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="40" y2="{height - margin}" stroke="#ddd"/>')
            parts.append(f'<text x="{x:.0f}" y="{height - margin + 16}" text-anchor="middle">{value:g}</text>')
        if y_low <= value <= y_high:
            y = at((x_low, value))[1]
            parts.append(f'<line x1="{margin}" x2="{width - 200}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
            parts.append(f'<text x="{margin - 6}" y="{y + 4:.0f}" text-anchor="end">{value:g}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = colours[number % len(colours)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, curve))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in map(at, curve)]
        y = 50 + 20 * number
        parts.append(f'<rect x="{width - 180}" y="{y - 9}" width="12" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{width - 162}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
