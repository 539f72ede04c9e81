"""Throughput of detection by several processes with a thread each: tokens per second, as ratios to one process.

    python benchmarks/processes.py                              1 and 2 processes: some minutes on two cores
    python benchmarks/processes.py --processes 1 2 4 --layers 2

Each run is one `torchrun` of this script: the shape of Qwen2.5-0.5B cut to `--layers` layers, random weights, on the
same documents of `--length` tokens, reading, tokenising and the last reduction included, after a short run that loads
and compiles what there is to. Runs of different size take turns, and a ratio is the median over rounds of the ratio
within a round. With fewer cores than processes, or busy ones, a ratio says little: the cores are in the record.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from detect import _machine, _model


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="tokens per document")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernel", default="compiled")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options)
        return
    found = [{count: _rate(options, count) for count in options.processes} for _ in range(options.rounds)]
    record: dict[str, Any] = {"machine": {**_machine(), "threads": 1}, "tokens per second": found, "ratio": {}}
    least = min(options.processes)
    print(f"{options.documents} documents of {options.length} tokens, {options.layers} layers, {os.cpu_count()} cores")
    print(f"{'processes':<12}{'tokens/s':>10}{'ratio':>8}")
    for count in options.processes:
        ratio = statistics.median(each[count] / each[least] for each in found)
        record["ratio"][count] = ratio
        print(f"{count:<12}{statistics.median(each[count] for each in found):>10.0f}{ratio:>8.2f}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _rate(options: argparse.Namespace, count: int) -> float:
    """Tokens per second of `count` processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), __file__]
    for name in ("layers", "documents", "length", "kernel", "dtype"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*command, "--worker"], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return float(json.loads(done.stdout.strip().splitlines()[-1])["tokens per second"])


def _work(options: argparse.Namespace) -> None:
    from babelscope import Anatomy, detect, load_model

    torch.set_num_threads(1)
    _, tokenizer = load_model("tinybabel")
    model = _model(options, vocab_size=len(tokenizer))
    if torch.cuda.is_available():
        model.to(f"cuda:{os.environ['LOCAL_RANK']}")
    anatomy = Anatomy(model)
    draw = random.Random(0)
    texts = [" ".join(draw.choices("bcdfghjklmnpqrstvz", k=4 * options.length)) for _ in range(options.documents)]

    def run(documents: list[str]) -> Any:
        settings: dict[str, Any] = {"max_tokens": options.length, "token_budget": 4 * options.length}
        return detect(anatomy, tokenizer, {"fr": documents}, kernel=options.kernel, progress=False, **settings)

    run(texts[: 8 * int(os.environ["WORLD_SIZE"])])  # ends when all are done
    started = time.perf_counter()
    atlas = run(texts)
    seconds = time.perf_counter() - started
    counted = int(atlas.of("fr").tokens.sum())
    assert counted >= options.documents * (options.length - 1), "documents are to be of one length"
    if os.environ["RANK"] == "0":
        print(json.dumps({"tokens per second": counted / seconds}))


if __name__ == "__main__":
    main()
