"""The language lens beside a plain forward pass: time and peak memory, as ratios in one run.

    python benchmarks/lens.py                    the shape of Qwen2.5-0.5B, random weights, CPU or GPU
    python benchmarks/lens.py --layers 4         a cut model, for a quick look

Time, on one batch: the forward pass with the model's own logits (`plain`); the same with every layer's states through
final norm and unembedding, a chunk at a time, and nothing done with the logits (`all layers`); and the lens, which
decodes every layer too and reads language mass, entropy and likeliest tokens from them, the shuffled control included.
The three alternate within each repeat, and each ratio is the median over repeats of the ratio within a repeat. Memory:
peak resident set (host) or peak allocation (GPU) of a process that does only that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from babelscope.lens.decode import LayerStates, Unembedding, read_layer
from detect import _batch, _forget_peak, _machine, _model, _plain, _seconds

LANGUAGES = 11
WAYS = ("plain", "all layers", "lens")


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=128, help="tokens per prompt")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps({"peak": _peak(options)}))
        return
    record = {"machine": _machine(), "time": _times(options), "memory": _memory(options)}
    machine, times, memory = record["machine"], record["time"], record["memory"]
    print(
        f"Qwen2.5-0.5B shape, {options.layers} layers, {options.dtype}, batch {options.batch} x {options.length}; "
        f"{machine['gpu'] or str(machine['threads']) + ' CPU threads'}; torch {machine['torch']}"
    )
    print(f"\n{'':<12}{'time':>9}{'memory':>12}")
    for way in WAYS:
        print(f"{way:<12}{times['seconds'][way]:>8.2f}s{memory[way] / 2**30:>9.2f}GiB")
    print(
        f"lens: {times['over all layers']:.2f} of all layers' logits, {times['over plain']:.2f} of plain; "
        f"memory {memory['lens'] / memory['plain']:.2f} of plain"
    )
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _ways(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Callable[[], None]]:
    unembedding = Unembedding(model)
    rows = torch.rand(unembedding.vocabulary, LANGUAGES + 1, generator=torch.Generator().manual_seed(2))
    posterior = rows / rows.sum(1, keepdim=True)
    table = torch.cat([posterior, posterior.flip(0)], 1).to(unembedding.device)

    def decode(layer: int, states: torch.Tensor) -> None:
        for _ in unembedding.chunks(states):
            pass

    def read(layer: int, states: torch.Tensor) -> None:
        read_layer(unembedding, layer, states, table)

    def run(visit: Callable[[int, torch.Tensor], None]) -> None:
        with LayerStates(unembedding, visit) as states, torch.no_grad():
            states.run(ids, mask, mask)

    return {
        "plain": lambda: _plain(model, ids, mask, logits=True),
        "all layers": lambda: run(decode),
        "lens": lambda: run(read),
    }


def _times(options: argparse.Namespace) -> dict[str, Any]:
    calls = _ways(_model(options), *_batch(options, options.length))
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
        command = [sys.executable, __file__, "--memory-of", way, "--layers", str(options.layers)]
        command += ["--batch", str(options.batch), "--length", str(options.length), "--dtype", options.dtype]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[way] = int(json.loads(output.strip().splitlines()[-1])["peak"])
    return found


def _peak(options: argparse.Namespace) -> int:
    call = _ways(_model(options), *_batch(options, options.length))[options.memory_of]
    _forget_peak()
    call()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
