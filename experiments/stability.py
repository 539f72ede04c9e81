"""Are a language's sets the same from other documents, and from another domain?

    python experiments/stability.py RUN [OTHER_RUN] --budget 0.01

Split half: sets from the even folds of RUN against sets from its odd folds. Domain: sets from RUN against sets from
OTHER_RUN, detected on other text of the same languages. Overlap is |A & B| / |B|, mean over languages with the least
one beside it; chance is the same for random sets with the counts of A and B per layer and slot.
"""

from __future__ import annotations

import argparse
from typing import Any

import babelscope as bs

RULES: dict[str, dict[str, Any]] = {
    "contrast (default)": {},
    "paper: minimum": {"rule": "minimum"},
    "activation contrast": {"statistic": "activation"},
    "LAPE": {"rule": "lape"},
}


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--budget", type=float, default=0.01)
    options = parser.parse_args()
    atlas = bs.Atlas.load(options.run)
    halves = [{}, {}]
    for language, statistics in atlas.statistics.items():
        halves[0][language], halves[1][language] = statistics.halves()
    pairs = {"split half": tuple(bs.Atlas(half, atlas.model, atlas.settings) for half in halves)}
    if options.other:
        pairs["domain"] = (atlas, bs.Atlas.load(options.other))
    print("| rule | compared | overlap | least | chance |\n|---|---|---|---|---|")
    for name, rule in RULES.items():
        for kind, (one, other) in pairs.items():
            shares, chances = [], []
            for language in atlas.languages:
                left, right = (each.select(language, budget=options.budget, **rule) for each in (one, other))
                if len(right):
                    shares.append(len(left & right) / len(right))
                    chances.append(_chance(left, right))
            mean, chance = sum(shares) / len(shares), sum(chances) / len(chances)
            print(f"| {name} | {kind} | {mean:.2f} | {min(shares):.2f} | {chance:.3f} |")


def _chance(left: bs.NeuronSet, right: bs.NeuronSet) -> float:
    expected = 0.0
    for slot, widths in left.widths.items():
        for width, a, b in zip(widths, left.counts()[slot], right.counts()[slot], strict=True):
            expected += a * b / width
    return expected / len(right)


if __name__ == "__main__":
    main()
