"""Detection beside a plain forward pass: time and peak memory, as ratios in one run.

    python benchmarks/detect.py                    the shape of Qwen2.5-0.5B, random weights, CPU or GPU
    python benchmarks/detect.py --layers 4         a cut model, for a quick look

Time: the decoder's forward pass on a batch (no unembedding, no cache) and the same with the unembedding, against
everything detection does with that batch: the observed pass, and taking it into the statistics. The three alternate
within each repeat, and each ratio is the median over repeats of the ratio within a repeat, so that drift of the
machine cancels. Memory: peak resident set (host) or peak allocation (GPU) of a process that does only that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SLOTS = {"all slots": ("q", "k", "v", "o", "ffn"), "v, o, ffn": ("v", "o", "ffn")}


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=2048, help="in a batch: detect's default on a CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--length", type=int, default=256, help="tokens per document for the times")
    parser.add_argument("--memory-length", type=int, default=512, help="tokens per document for the memory")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=["plain", *SLOTS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps({"peak": _peak(options)}))
        return
    record = {"machine": _machine(), "time": _times(options), "memory": _memory(options)}
    _print(record, options)
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _model(options: argparse.Namespace, **changes: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    config = Qwen2Config(**shape | changes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, options.dtype))
    try:
        with torch.device(device):
            return Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


def _batch(documents: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 151936, (documents, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids)


def _full_batch(options: argparse.Namespace, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As many documents as detect would take at once, at least one."""
    return _batch(max(1, options.tokens // length), length)


def _detector(
    model: Any, slots: tuple[str, ...], measure: Any = "exact"
) -> tuple[Any, Callable[[torch.Tensor, torch.Tensor], Any]]:
    """An observer to enter, and one step of detection on a batch, which gives what was observed."""
    from babelscope.models.anatomy import Anatomy
    from babelscope.models.observe import Observer
    from babelscope.neurons.statistics import Layout, Statistics

    anatomy = Anatomy(model, slots)
    widths = {slot: tuple(anatomy.width(slot, layer) for layer in range(anatomy.n_layers)) for slot in slots}
    gathered = Statistics.empty(Layout(widths)).on(model.device)
    observer = Observer(anatomy, slots=slots, kernel="compiled", activations=True, measure=measure)

    def step(ids: torch.Tensor, mask: torch.Tensor) -> Any:
        seen = observer.run(ids, mask)
        gathered.add(seen, mask.sum(1).cpu(), torch.arange(len(ids)), per_token=True)
        return seen

    return observer, step


def _plain(model: Any, ids: torch.Tensor, mask: torch.Tensor, *, logits: bool = False) -> None:
    runner = model if logits else model.base_model
    device = next(model.parameters()).device
    with torch.no_grad():
        runner(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)


def _seconds(call: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _times(options: argparse.Namespace) -> dict[str, Any]:
    model = _model(options)
    ids, mask = _full_batch(options, options.length)
    found: dict[str, Any] = {}
    for name, slots in SLOTS.items():
        observer, step = _detector(model, slots)

        def observed(step: Callable[..., None] = step, observer: Any = observer) -> float:
            with observer:
                return _seconds(lambda: step(ids, mask))

        calls = {
            "plain": lambda: _seconds(lambda: _plain(model, ids, mask)),
            "with logits": lambda: _seconds(lambda: _plain(model, ids, mask, logits=True)),
            "detection": observed,
        }
        for call in calls.values():
            call()
        rounds = [{key: call() for key, call in calls.items()} for _ in range(options.repeats)]
        median = {key: statistics.median(each[key] for each in rounds) for key in calls}
        found[name] = {
            "seconds": median,
            "over plain": statistics.median(each["detection"] / each["plain"] for each in rounds),
            "over plain with logits": statistics.median(each["detection"] / each["with logits"] for each in rounds),
            "documents": len(ids),
            "tokens": options.length,
        }
    return found


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    def peak(what: str) -> int:
        command = [sys.executable, __file__, "--memory-of", what, "--layers", str(options.layers)]
        command += ["--tokens", str(options.tokens), "--memory-length", str(options.memory_length)]
        command += ["--dtype", options.dtype]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(json.loads(output.strip().splitlines()[-1])["peak"])

    plain = peak("plain")
    found = {name: peak(name) for name in SLOTS}
    return {
        "plain bytes": plain,
        **{name: {"bytes": value, "over plain": value / plain} for name, value in found.items()},
    }


def _peak(options: argparse.Namespace) -> int:
    model = _model(options)
    ids, mask = _full_batch(options, options.memory_length)
    _forget_peak()
    if options.memory_of == "plain":
        _plain(model, ids, mask)
    else:
        observer, step = _detector(model, SLOTS[options.memory_of])
        with observer:
            step(ids, mask)
    return _reached()


def _reached() -> int:
    """Bytes: the peak since `_forget_peak`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM")


def _resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def _forget_peak() -> None:
    """Starts the peak anew, so that building the random weights (larger than any pass) does not count."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def _described(machine: dict[str, Any]) -> str:
    """What it ran on, in words."""
    return f"{machine['gpu'] or str(machine['threads']) + ' CPU threads'}; torch {machine['torch']}"


def _print(record: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"Qwen2.5-0.5B shape, {options.layers} layers, {options.dtype}, batches of {options.tokens} tokens; "
        f"{_described(record['machine'])}"
    )
    print(
        f"\n{f'time, T = {options.length}':<22}{'plain':>10}{'+ logits':>10}{'detection':>11}{'ratio':>8}"
        f"{'to logits':>11}"
    )
    for name, row in record["time"].items():
        seconds = row["seconds"]
        print(
            f"{name:<22}{seconds['plain']:>9.2f}s{seconds['with logits']:>9.2f}s{seconds['detection']:>10.2f}s"
            f"{row['over plain']:>8.2f}{row['over plain with logits']:>11.2f}"
        )
    memory = record["memory"]
    print(f"\n{'memory, T = ' + str(options.memory_length):<22}{'plain':>10}{'detection':>21}{'ratio':>8}")
    for name in SLOTS:
        row = memory[name]
        print(
            f"{name:<22}{memory['plain bytes'] / 2**30:>7.2f}GiB{row['bytes'] / 2**30:>18.2f}GiB"
            f"{row['over plain']:>8.2f}"
        )


if __name__ == "__main__":
    main()
