"""Detection by length, batch and documents, beside the machine's ceilings: time, memory, rates; a table and a chart.

    python benchmarks/sweep.py                              the shape of Qwen2.5-0.5B cut to 4 layers, CPU or GPU
    python benchmarks/sweep.py --svg docs/figures/cost.svg

Ceilings: floating-point operations per second of a large matrix product, exponentials per second of `torch.exp` on what
fits in a cache. Beside them: the operations of the plain forward pass per second of it, and the exponentials that q and
k need (one for each channel, query and visible key) per second that detection takes more than the pass with v, o and
ffn alone. Times alternate within each repeat, ratios are medians over repeats; memory is that of processes of their
own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from detect import SLOTS, _batch, _described, _detector, _machine, _memory, _model, _plain, _seconds

MOST_TOKENS = 8192
"""Of a batch; larger ones are left out."""


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record, `--svg FILE` the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--documents", type=int, nargs="+", default=[8, 16, 32, 64], help="in batches of 4, T = 256")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="also peaks, which takes longer than all the rest")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    model = _model(options)
    record: dict[str, Any] = {"machine": _machine(), "ceilings": _ceilings(options), "cells": []}
    _head(record, options)
    for length in options.lengths:
        for batch in (each for each in options.batches if each * length <= MOST_TOKENS):
            record["cells"].append(_cell(model, length, batch, options))
            _line(record["cells"][-1])
    record["documents"] = _by_documents(model, options)
    for row in record["documents"]:
        print(f"{row['documents']:>4} documents of 256 tokens: {row['seconds']:.2f} s, {row['each']:.3f} s each")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    if options.svg:
        _chart(record, options.svg)


def _ceilings(options: argparse.Namespace) -> dict[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if torch.cuda.is_available() else 2048
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, options.dtype)) for _ in range(2))
    values = torch.randn(2**24 if torch.cuda.is_available() else 2**17, device=device)
    powers = torch.empty_like(values)

    def exponentials() -> None:
        for _ in range(100):
            torch.exp(values, out=powers)

    products = min(_seconds(lambda: left @ right) for _ in range(8))
    return {
        "operations per second": 2 * size**3 / products,
        "exponentials per second": 100 * len(values) / min(_seconds(exponentials) for _ in range(8)),
    }


def _cell(model: Any, length: int, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    sizes = argparse.Namespace(**{**vars(options), "tokens": batch * length, "memory_length": length})
    ids, mask = _batch(batch, length)
    detectors = {name: _detector(model, slots) for name, slots in SLOTS.items()}

    def times() -> dict[str, float]:
        found = {"plain": _seconds(lambda: _plain(model, ids, mask))}
        for name, (observer, step) in detectors.items():
            with observer:
                found[name] = _seconds(partial(step, ids, mask))
        return found

    times()
    rounds = [times() for _ in range(options.repeats)]
    config = model.config
    pairs = batch * options.layers * config.num_attention_heads * length * (length + 1) // 2
    width = config.hidden_size // config.num_attention_heads
    weights = sum(each.numel() for each in model.model.layers.parameters())
    operations = 2 * weights * batch * length + 4 * pairs * width
    added = [each["all slots"] - each["v, o, ffn"] for each in rounds]
    return {
        "length": length,
        "batch": batch,
        "seconds": {name: statistics.median(each[name] for each in rounds) for name in rounds[0]},
        "over plain": {name: statistics.median(each[name] / each["plain"] for each in rounds) for name in SLOTS},
        "operations per second": operations / statistics.median(each["plain"] for each in rounds),
        "exponentials per second": 2 * pairs * width / statistics.median(added),
        "memory over plain": {name: each["over plain"] for name, each in _memory(sizes).items() if name in SLOTS}
        if options.memory
        else {},
    }


def _by_documents(model: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One step after the other on as many documents, statistics included."""
    observer, step = _detector(model, SLOTS["all slots"])
    ids, mask = _batch(4, 256)
    rows = []

    def steps(count: int) -> None:
        for _ in range(count):
            step(ids, mask)

    with observer:
        steps(1)
        for documents in options.documents:
            seconds = _seconds(partial(steps, documents // 4))
            rows.append({"documents": documents, "seconds": seconds, "each": seconds / documents})
    return rows


def _head(record: dict[str, Any], options: argparse.Namespace) -> None:
    ceilings = record["ceilings"]
    print(
        f"Qwen2.5-0.5B shape, {options.layers} layers, {options.dtype}; "
        f"{_described(record['machine'])}\n"
        f"ceilings: {ceilings['operations per second'] / 1e9:,.0f} billion operations (matrix product) and "
        f"{ceilings['exponentials per second'] / 1e9:.2f} billion exponentials per second\n\n"
        f"{'T':>5}{'batch':>6}{'plain':>9}{'v,o,ffn':>9}{'all':>7}{'Gop/s':>8}{'Gexp/s':>8}"
        f"{'  memory: v,o,ffn, all' * options.memory}"
    )


def _line(cell: dict[str, Any]) -> None:
    ratios = cell["over plain"]
    memory = "".join(f"{ratio:>11.2f}" for ratio in reversed(cell["memory over plain"].values()))
    print(
        f"{cell['length']:>5}{cell['batch']:>6}{cell['seconds']['plain']:>8.3f}s{ratios['v, o, ffn']:>9.2f}"
        f"{ratios['all slots']:>7.2f}{cell['operations per second'] / 1e9:>8.0f}"
        f"{cell['exponentials per second'] / 1e9:>8.2f}{memory}",
        flush=True,
    )


def _chart(record: dict[str, Any], path: Path) -> None:
    """Left the ratios by length, right the seconds by documents."""
    import altair as alt

    from babelscope.report.charts import for_paper
    from babelscope.report.files import vl_convert

    ratios = [
        {"tokens": cell["length"], "batch": str(cell["batch"]), "slots": name, "ratio": ratio}
        for cell in record["cells"]
        for name, ratio in cell["over plain"].items()
    ]
    lengths = sorted({cell["length"] for cell in record["cells"]})
    by_length = (
        alt.Chart(alt.Data(values=ratios))
        .mark_line(point={"size": 70})
        .encode(
            x=alt.X("tokens:Q", scale=alt.Scale(type="log", base=2), axis=alt.Axis(values=lengths), title="tokens"),
            y=alt.Y("ratio:Q", title="times a plain forward pass", scale=alt.Scale(domainMin=0)),
            color=alt.Color("slots:N"),
            detail="batch:N",
            shape=alt.Shape("batch:N", sort=None),
        )
    )
    by_documents = (
        alt.Chart(alt.Data(values=record["documents"]))
        .mark_line(point=True)
        .encode(
            x=alt.X("documents:Q", title="documents of 256 tokens"),
            y=alt.Y("seconds:Q", title="seconds, all slots"),
        )
    )
    drawn = alt.hconcat(by_length.properties(width=320, height=240), by_documents.properties(width=240, height=240))
    path.write_text(vl_convert().vegalite_to_svg(for_paper(drawn)), encoding="utf-8")


if __name__ == "__main__":
    main()
