"""The language lens beside a plain forward pass that decodes every layer: time and peak memory, as ratios in one run.

    python benchmarks/lens.py                              three shapes, random weights, CPU or GPU
    python benchmarks/lens.py --shapes Qwen2.5-0.5B --layers 24

Time, on one batch: the forward pass with the model's own logits (`plain`); the same with every layer's states through
final norm and unembedding, a chunk at a time, and nothing done with the logits (`all layers`); and the lens, which
reads language mass, entropy and likeliest tokens from them, the shuffled control included (`lens`; the goal is at most
1.5 times `all layers`). The three alternate within each repeat, and each ratio is the median over repeats of the ratio
within a repeat. On a CPU seconds are those of the processor, which other processes disturb less. Memory: peak resident
set (host) or peak allocation (GPU) of a process that does only that, for the first shape and length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from babelscope.lens.decode import Unembedding, read_layer
from detect import _forget_peak, _machine, _model, _plain, _reached

LANGUAGES = 11
WAYS = ("plain", "all layers", "lens")
SHAPES = {
    "Qwen2.5-0.5B": {"num_hidden_layers": 4},
    "8M, 8 thousand tokens": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
        "num_hidden_layers": 8,
    },
    "Tinybabel": {
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "num_hidden_layers": 8,
    },
}
"""What is other than in Qwen2.5-0.5B; of that, only four of its 24 layers, each of which is decoded."""


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--layers", type=int, help="of every shape (its own)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, nargs="+", default=[64, 256], help="tokens per prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(_peak(options))
        return
    machine = _machine()
    print(f"{options.dtype}, batch {options.batch}; {machine['gpu'] or machine['threads']}", end="")
    print(f"{'' if machine['gpu'] else ' CPU threads'}; torch {machine['torch']}\n")
    print(f"{'seconds':<28}{'plain':>9}{'all layers':>12}{'lens':>9}{'lens / all layers':>19}{'lens / plain':>14}")
    record: dict[str, Any] = {"machine": machine, "time": {}}
    for shape, length in itertools.product(options.shapes, options.length):
        name = f"{shape} x {length}"
        record["time"][name] = found = _times(options, shape, length)
        plain, layers, lens = (found["seconds"][way] for way in WAYS)
        print(
            f"{name:<28}{plain:>9.3f}{layers:>12.3f}{lens:>9.3f}{found['over all layers']:>19.2f}"
            f"{found['over plain']:>14.2f}"
        )
    record["memory"] = memory = _memory(options)
    print(f"\npeak memory, {options.shapes[0]}: " + ", ".join(f"{way} {memory[way] / 2**30:.2f} GiB" for way in WAYS))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _ways(options: argparse.Namespace, shape: str, length: int) -> dict[str, Callable[[], None]]:
    model = _model(options, **SHAPES[shape] | ({"num_hidden_layers": options.layers} if options.layers else {}))
    ids = torch.randint(0, model.config.vocab_size, (options.batch, length))
    mask, none = torch.ones_like(ids), torch.zeros(ids.numel(), dtype=torch.bool)
    unembedding = Unembedding(model)
    posterior = torch.rand(unembedding.vocabulary, LANGUAGES + 1)
    posterior /= posterior.sum(1, keepdim=True)
    table = torch.cat([posterior, posterior.flip(0)], 1).to(unembedding.device)

    def decode(layer: int, states: torch.Tensor) -> None:
        for _ in unembedding.chunks(layer, states):
            pass

    def read(layer: int, states: torch.Tensor) -> None:
        read_layer(unembedding, layer, states, table, none)

    return {
        "plain": lambda: _plain(model, ids, mask, logits=True),
        "all layers": lambda: unembedding.run(ids, mask, mask, decode) and None,
        "lens": lambda: unembedding.run(ids, mask, mask, read) and None,
    }


def _seconds(call: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    call()
    return time.process_time() - start


def _times(options: argparse.Namespace, shape: str, length: int) -> dict[str, Any]:
    calls = _ways(options, shape, length)
    for call in calls.values():
        call()
    rounds = [{way: _seconds(call) for way, call in calls.items()} for _ in range(options.repeats)]
    return {
        "seconds": {way: statistics.median(each[way] for each in rounds) for way in WAYS},
        "over all layers": statistics.median(each["lens"] / each["all layers"] for each in rounds),
        "over plain": statistics.median(each["lens"] / each["plain"] for each in rounds),
    }


def _memory(options: argparse.Namespace) -> dict[str, int]:
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--memory-of", way, "--shapes", options.shapes[0]]
        command += ["--batch", str(options.batch), "--length", str(options.length[0]), "--dtype", options.dtype]
        command += ["--layers", str(options.layers)] if options.layers else []
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[way] = int(output.split()[-1])
    return found


def _peak(options: argparse.Namespace) -> int:
    call = _ways(options, options.shapes[0], options.length[0])[options.memory_of]
    _forget_peak()
    call()
    return _reached()


if __name__ == "__main__":
    main()
