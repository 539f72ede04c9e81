"""Generation with an edit beside generation without: time, as ratios in one run.

    python benchmarks/edits.py                    the shape of Qwen2.5-0.5B, random weights, CPU or GPU
    python benchmarks/edits.py --layers 4         a cut model, for a quick look

Greedy decoding of a fixed number of tokens with a cache, on the intact model; with a zero edit, which changes weights;
with the same edit by hooks, as a different set in each row of the batch needs it. Entering and leaving the context
is timed by itself, since it happens once and not per token. The ways take turns within each repeat, in an order that
moves on by one, and each ratio is the median over repeats of the ratio within a repeat, so that drift of the machine
cancels. `again` is the intact model a second time: what a ratio of nothing looks like on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

WAYS = ("intact", "again", "zero, by weights", "zero, by hooks")


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate")
    parser.add_argument(
        "--share", type=float, default=0.01, help="of all units, drawn evenly from every slot and layer"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = {"machine": _machine(), **_times(options)}
    _print(record, options)
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _model(options: argparse.Namespace) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=options.layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, options.dtype))
    try:
        with torch.device(device):
            return Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


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

    model = _model(options)
    neurons = _neurons(model, options.share)
    ids = torch.randint(0, 151936, (options.batch, options.prompt), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids).to(model.device)}
    edits: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "intact": nullcontext,
        "again": nullcontext,
        "zero, by weights": lambda: ablate(model, neurons),
        "zero, by hooks": lambda: ablate(model, rows=[neurons] * options.batch),
    }

    def generate() -> torch.Tensor:
        return model.generate(**batch, max_new_tokens=options.tokens, min_new_tokens=options.tokens, do_sample=False)

    entering: dict[str, list[float]] = {way: [] for way in WAYS}

    def timed(way: str) -> float:
        start = _now()
        with edits[way]():
            middle = _now()
            found = generate()
            end = _now()
        entering[way].append(middle - start + _now() - end)
        assert found.shape[1] == options.prompt + options.tokens
        return end - middle

    for way in WAYS:
        timed(way)
    rounds = []
    for repeat in range(options.repeats):
        order = [WAYS[(place + repeat) % len(WAYS)] for place in range(len(WAYS))]
        rounds.append({way: timed(way) for way in order})
    return {
        "neurons": len(neurons),
        "units": neurons.universe,
        "time": {
            way: {
                "seconds": statistics.median(each[way] for each in rounds),
                "over intact": statistics.median(each[way] / each["intact"] for each in rounds),
                "entering and leaving": statistics.median(entering[way]),
            }
            for way in WAYS
        },
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _machine() -> dict[str, Any]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _print(record: dict[str, Any], options: argparse.Namespace) -> None:
    machine = record["machine"]
    print(
        f"Qwen2.5-0.5B shape, {options.layers} layers, {options.dtype}, batch {options.batch}, {options.prompt} + "
        f"{options.tokens} tokens, {record['neurons']} of {record['units']} units off; "
        f"{machine['gpu'] or str(machine['threads']) + ' CPU threads'}; torch {machine['torch']}"
    )
    print(f"\n{'generate':<20}{'seconds':>10}{'ratio':>9}{'enter + leave':>16}")
    for way, row in record["time"].items():
        print(f"{way:<20}{row['seconds']:>9.3f}s{row['over intact']:>9.3f}{row['entering and leaving']:>15.3f}s")


if __name__ == "__main__":
    main()
