"""Generation with an edit beside generation without: time, as ratios in one run.

    python benchmarks/edits.py                                      2 layers, random weights: a minute on one core
    python benchmarks/edits.py --layers 24 --vocabulary 151936      the shape of Qwen2.5-0.5B

Greedy decoding of a fixed number of tokens with a cache: on the intact model; with an edit of weights, which costs
nothing per token; with hooks, that hold units at a value, or zero another set in each row of the batch. Entering and
leaving the context is timed by itself, since it happens once and not per token.

The ways take turns within each round, in an order that moves on by one, for as many rounds as `--seconds` allow. A
ratio is the median over rounds of the ratio within a round, so that drift of the machine cancels, with its 95 %
interval from order statistics. `again` is the intact model a second time: what a ratio of nothing looks like here. A
bound is resolved when the interval lies on one side of it. Without a GPU, seconds are of processor time, which other
programs disturb less than the time on the wall; OMP_NUM_THREADS=1 makes the two the same on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from detect import _machine, _model

LEAST_ROUNDS = 9
"""With fewer, the 95 % interval of a median is nearly the whole range."""


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=8, help="tokens to generate")
    parser.add_argument(
        "--share", type=float, default=0.01, help="of all units, drawn evenly from every slot and layer"
    )
    parser.add_argument("--seconds", type=float, default=40, help="of measuring")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = {"machine": _machine(), **_times(options)}
    _print(record, options)
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _neurons(model: Any, share: float) -> Any:
    from babelscope import Anatomy, NeuronSet

    anatomy = Anatomy(model, check=False)
    step = round(1 / share)
    indices = {
        slot: {layer: range(layer % step, width, step) for layer, width in enumerate(widths)}
        for slot, widths in anatomy.widths().items()
    }
    return NeuronSet.from_indices(anatomy, indices)


def _times(options: argparse.Namespace) -> dict[str, Any]:
    from babelscope import ablate

    model = _model(options, vocab_size=options.vocabulary, eos_token_id=None)
    neurons = _neurons(model, options.share)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, options.vocabulary, (options.batch, options.prompt), generator=generator)
    batch = {"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids).to(model.device)}
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "intact": nullcontext,
        "again": nullcontext,
        "zero, by weights": lambda: ablate(model, neurons),
        "scale, by weights": lambda: ablate(model, neurons, op="scale", factor=2.0),
        "clamp, by hooks": lambda: ablate(model, neurons, op="clamp", value=0.1),
        "zero, rows, by hooks": lambda: ablate(model, rows=[neurons] * options.batch),
    }
    entering: dict[str, list[float]] = {way: [] for way in ways}

    def timed(way: str) -> float:
        start = _now()
        with ways[way]():
            middle = _now()
            found = model.generate(
                **batch, max_new_tokens=options.tokens, min_new_tokens=options.tokens, do_sample=False
            )
            end = _now()
        entering[way].append(middle - start + _now() - end)
        assert found.shape[1] == options.prompt + options.tokens
        return end - middle

    for way in ways:
        timed(way)
    rounds: list[dict[str, float]] = []
    until = time.monotonic() + options.seconds
    while len(rounds) < LEAST_ROUNDS or time.monotonic() < until:
        names = list(ways)
        first = len(rounds) % len(names)
        rounds.append({way: timed(way) for way in names[first:] + names[:first]})
    return {
        "neurons": len(neurons),
        "units": neurons.universe,
        "rounds": len(rounds),
        "time": {
            way: {
                "seconds": statistics.median(each[way] for each in rounds),
                **_median([each[way] / each["intact"] for each in rounds]),
                "entering and leaving": statistics.median(entering[way]),
            }
            for way in ways
        },
    }


def _median(ratios: list[float]) -> dict[str, float]:
    """The median with its 95 % interval, from the order statistics that a fair coin puts it between."""
    ordered, count = sorted(ratios), len(ratios)
    outside = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    return {"over intact": statistics.median(ordered), "low": ordered[outside], "high": ordered[-1 - outside]}


def _now() -> float:
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _print(record: dict[str, Any], options: argparse.Namespace) -> None:
    machine = record["machine"]
    print(
        f"layers of Qwen2.5-0.5B: {options.layers}, vocabulary {options.vocabulary}, {options.dtype}, batch "
        f"{options.batch}, {options.prompt} + {options.tokens} tokens, {record['neurons']} of {record['units']} units, "
        f"{record['rounds']} rounds; {machine['gpu'] or str(machine['threads']) + ' CPU threads'}; "
        f"torch {machine['torch']}"
    )
    print(f"\n{'generate':<22}{'seconds':>10}{'ratio':>9}{'95 % interval':>18}{'enter + leave':>16}")
    for way, row in record["time"].items():
        interval = f"{row['low']:.3f}-{row['high']:.3f}"
        print(
            f"{way:<22}{row['seconds']:>9.3f}s{row['over intact']:>9.3f}{interval:>18}"
            f"{row['entering and leaving']:>15.3f}s"
        )


if __name__ == "__main__":
    main()
