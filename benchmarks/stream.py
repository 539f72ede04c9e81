"""Host memory while a large corpus is read: peak resident set at 1 and at 10 GB, and over ten times the documents.

    python benchmarks/stream.py                                 1 and 10 GB of JSON lines: some minutes on one core
    python benchmarks/stream.py --gigabytes 0.02 0.2 --scored 200

Reading: `open_corpus` and `sample_documents` as `detect --documents N` calls them, in a process of its own per size.
The corpus is a gzip file whose one part, 16 MB of random documents, is repeated (gzip reads parts one after the other
as one stream), which saves the time of writing another; every byte is unpacked, decoded, parsed and drawn from. Peaks
leave out what the process held before it opened the corpus.

Scoring: `detect` over a stream without an end to draw from, all documents, on Tinybabel: resident memory after so many
documents and after ten times as many.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detect import _forget_peak, _machine, _resident

PART = 16_000_000
"""Bytes of different documents."""


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--documents", type=int, default=2000, help="to draw")
    parser.add_argument("--scored", type=int, default=1000, help="documents scored at first; then ten times as many")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--score", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read or options.score:
        print(json.dumps(_scored(options) if options.score else _read(options)))
        return
    record: dict[str, Any] = {"machine": _machine(), "reading": [], "documents": options.documents}
    print(f"{'reading':<22}{'documents':>12}{'seconds':>9}{'MB/s':>7}{'peak':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for gigabytes in options.gigabytes:
            corpus = Path(folder) / "corpus.jsonl.gz"
            size = _write(corpus, gigabytes)
            found = {"bytes": size, **_apart(["--read", str(corpus), "--documents", str(options.documents)])}
            record["reading"].append(found)
            print(
                f"{f'{size / 1e9:.2f} GB of text':<22}{found['seen']:>12,}{found['seconds']:>9.0f}"
                f"{size / found['seconds'] / 1e6:>7.0f}{found['peak'] / 1e6:>6.0f} MB"
            )
    record["scoring"] = _apart(["--score", "--scored", str(options.scored)])
    print("\nscoring" + " " * 15 + f"{'documents':>12}{'resident':>25}")
    for documents, held in record["scoring"].items():
        print(f"{'':<22}{int(documents):>12,}{held / 1e6:>22.1f} MB")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _apart(arguments: list[str]) -> dict[str, Any]:
    output = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def _text(draw: random.Random, words: list[str]) -> str:
    return " ".join(draw.choices(words, k=draw.choice((5, 30, 200, 1500))))


def _words(draw: random.Random) -> list[str]:
    return ["".join(draw.choices("abcdefghijklmnoprstuvz", k=draw.randint(2, 9))) for _ in range(5000)]


def _write(path: Path, gigabytes: float) -> int:
    """Writes a corpus of about so many bytes of JSON lines; returns how many they are."""
    draw = random.Random(0)
    words, lines, size = _words(draw), [], 0
    while size < PART:
        lines.append(json.dumps({"text": _text(draw, words)}) + "\n")
        size += len(lines[-1])
    part, times = gzip.compress("".join(lines).encode(), 6), round(gigabytes * 1e9 / size)
    with path.open("wb") as stream:
        for _ in range(times):
            stream.write(part)
    return size * times


def _read(options: argparse.Namespace) -> dict[str, Any]:
    from babelscope import load_model
    from babelscope.corpora.batching import batches, padding_id, prefetched, sample_documents
    from babelscope.corpora.sources import open_corpus

    _, tokenizer = load_model("tinybabel")
    tokenizer("a first text")
    before = _resident("VmRSS")
    _forget_peak()
    started = time.perf_counter()
    sample, counts = sample_documents(
        open_corpus(options.read), tokenizer, documents=options.documents, max_tokens=256, min_tokens=8, seed=0
    )
    drawn = sum(len(batch) for batch in batches(prefetched(sample), token_budget=2048, pad_id=padding_id(tokenizer)))
    assert drawn == options.documents
    seconds = time.perf_counter() - started
    return {"seen": counts.seen, "seconds": seconds, "before": before, "peak": _resident("VmHWM") - before}


def _scored(options: argparse.Namespace) -> dict[int, int]:
    from babelscope import Anatomy, detect, load_model
    from babelscope.detection.detect import Progress

    model, tokenizer = load_model("tinybabel", dtype="float32")
    held: dict[int, int] = {}

    def stream() -> Iterator[str]:
        draw = random.Random(1)
        words = _words(draw)
        for _ in range(10 * options.scored):
            yield _text(draw, words)

    def keep(progress: Progress) -> None:
        held[progress.documents] = _resident("VmRSS")

    detect(Anatomy(model), tokenizer, {"fr": stream()}, max_tokens=32, min_tokens=1, kernel="eager", progress=keep)
    first = next(documents for documents in held if documents >= options.scored)
    return {documents: held[documents] for documents in (first, max(held))}


if __name__ == "__main__":
    main()
