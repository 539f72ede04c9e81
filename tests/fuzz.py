"""Random files and random answers: each is read or refused with one of Babelscope's errors, soon and in bounded memory.

    python tests/fuzz.py --files 10000        (make fuzz)

A failure names its number; `--first NUMBER --files 1` makes the same file again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import re
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from babelscope.corpora.sources import open_corpus
from babelscope.errors import BabelscopeError
from babelscope.evaluation import metrics
from babelscope.evaluation.letters import choice_letter
from babelscope.evaluation.numbers import READINGS
from babelscope.evaluation.tasks.benchmarks import TABLE
from babelscope.evaluation.tasks.confusion import read_prompts
from babelscope.evaluation.tasks.data import read_csqa, read_mgsm, read_squad, read_xlsum
from babelscope.evaluation.tasks.prompts import WORDS
from babelscope.neurons.neuronset import NeuronSet
from babelscope.study.config import load_study, template

SECONDS = 20
"""A file or an answer that takes longer hangs."""
MEMORY = 768
"""MiB that all of them together may need above what the process had at the start."""
LANGUAGES = ("en", "de", "fr", "zh", "es", "ru", "vi", "th", "ar", "sw")
NASTY = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\xe2\x80\xa8", b"\xc2\x85", b"\x0c",
    b"[" * 3000, b"{" * 3000, b'"\\ud83d"', b"9" * 5000, b"1e999", b"NaN", b"null", b"\xf4\x90\x80\x80", b"a" * 100_000,
    b"\t", b'"',
    b"]", b"}", b",", b": ", b"- ", b"&a [*a]", b"!!python/object:os.system", b"-1", b"true", b"1.5", b"[]", b"{}",
)  # fmt: skip
QUESTION = {"stem": "Où ?", "choices": [{"label": "A", "text": "ici"}, {"label": "B", "text": "là"}]}
SQUAD = {"data": [{"paragraphs": [{"context": "Il pleut à Orléans.", "qas": [
    {"id": "q", "question": "Où ?", "answers": [{"text": "Orléans", "answer_start": 11}]}]}]}]}  # fmt: skip


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def a_table() -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows([["prompt", "id"], ["Bonjour !", "1"], ["Ça va\n?", "2"]])
    return out.getvalue().encode()


READERS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], Any]]] = {
    "text": ("x.txt", lambda: "Il pleut.\nЗавтра 雨\n".encode() * 5, lambda path: list(open_corpus(path))),
    "rows": ("x.jsonl", lambda: lines([{"text": "un"}, {"text": "雨"}] * 3), lambda path: list(open_corpus(path))),
    "array": ("x.json", lambda: json.dumps([{"text": "un"}] * 5).encode(), lambda path: list(open_corpus(path))),
    "mgsm": ("x.tsv", lambda: "Combien ?\t18\nEt ça ?\t7500.0\n".encode(), read_mgsm),
    "squad": ("x.json", lambda: json.dumps(SQUAD).encode(), read_squad),
    "csqa": ("x.jsonl", lambda: lines([{"id": "1", "question": QUESTION, "answerKey": "A"}] * 2), read_csqa),
    "xlsum": ("x.jsonl", lambda: lines([{"id": "1", "title": "t", "text": "x", "summary": "s"}] * 2), read_xlsum),
    "confusion": ("fr.csv", a_table, read_prompts),
    "study": ("x.yaml", lambda: template().encode(), load_study),
    "short study": ("x.yaml", lambda: b"extends: tinybabel-quick\n", load_study),
    "neurons": ("x.safetensors", lambda: NEURON_FILE, NeuronSet.load),
}
"""By kind: the file's name, a good one, and what reads it."""
TASKS = {"mgsm": "mgsm", "squad": "xquad", "csqa": "xcsqa", "xlsum": "xlsum"}
"""By kind: the task that asks what the file holds."""
NEURON_FILE = b""
"""Set by `run`."""


def mutated(draw: random.Random, content: bytes) -> bytes:
    """The content with something done to it, or something else altogether."""
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(content) + 1)
        change = draw.randrange(12)
        if change == 0:
            content = content[:at]
        elif change == 1:
            content = content[:at] + draw.choice(NASTY) + content[at:]
        elif change == 2:
            content = content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
        elif change == 3:
            end = min(len(content), at + draw.randrange(1, 40))
            content = content[:at] + draw.choice(NASTY) + content[end:]
        elif change == 4:
            encoding = draw.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "cp500"))
            content = content.decode("utf-8", "replace").encode(encoding, "replace")
        elif change == 5:
            content = draw.randbytes(draw.randrange(2000))
        elif change == 6:
            content = content * draw.randrange(3)
        elif change == 7:
            content = draw.choice(NASTY) + content
        else:
            content = of_another_type(draw, content)
    return content


def of_another_type(draw: random.Random, content: bytes) -> bytes:
    """Text with one of its quoted strings or numbers made into another value."""
    values = [b"null", b"7", b"[]", b"{}", b'""', b"true", b"-0.0", b'"\\udc00"', b"[1]", b'{"a": 1}', b'["x", 2]']
    tokens = list(re.finditer(rb'"[^"]*"|\b\d+\b|\[\]|\{\}', content))
    if not tokens:
        return content
    token = draw.choice(tokens)
    return content[: token.start()] + draw.choice(values) + content[token.end() :]


def answer(draw: random.Random) -> str:
    """Random Unicode, with the marks of numbers and choices among it."""
    marks = ("####", "\\boxed{", "}", "$", "**", " ", "\n", "1", "٣", "，", "1/0", "10^", "e9999", "½", "万", "A",
             "(B)", "Ｂ", "-", ".", "\\frac{1}{0}", "9" * 400, "\u200f", "\ud800", "٬", "Réponse : ")  # fmt: skip
    return "".join(
        draw.choice(marks) if draw.random() < 0.6 else chr(draw.randrange(0x110000)) for _ in range(draw.randrange(60))
    )


def read_file(number: int, folder: Path) -> str:
    draw = random.Random(f"file {number}")
    kind = draw.choice(list(READERS))
    name, good, read = READERS[kind]
    content = mutated(draw, good())
    if kind in ("text", "rows", "array") and draw.random() < 0.2:
        name += ".gz"
        content = gzip.compress(content, mtime=0)
        content = mutated(draw, content) if draw.random() < 0.5 else content
    (folder / "a").mkdir(exist_ok=True)
    path = folder / "a" / name
    path.write_bytes(content)
    try:
        held = read(path)
        for row in held if kind in TASKS else ():
            said = [(-1.0, False)] * len(row["choices"]) if kind == "csqa" else answer(draw)
            benchmark = TABLE[TASKS[kind]]
            assert isinstance(benchmark.prompt(WORDS["fr"], row), str)
            assert all(0 <= value <= 1 for value in benchmark.score("fr", row, said).values())
        return f"{kind}: read"
    except BabelscopeError as error:
        if not str(error).strip():
            raise RuntimeError("an error without a word") from error
        return f"{kind}: refused"
    finally:
        path.unlink()


def read_answer(number: int) -> str:
    draw = random.Random(f"answer {number}")
    said, language = answer(draw), draw.choice(LANGUAGES)
    references = [answer(draw) or "x" for _ in range(2)]
    for reading in READINGS.values():
        reading(said, language)
    choice_letter(said, ["A", "B", "C"])
    for score in (metrics.exact_match, metrics.token_f1, metrics.contains):
        assert 0 <= score(said, references, language) <= 1
    assert 0 <= metrics.rouge_l(said, references[0]) <= 1
    return "answers: read"


def run(first: int, files: int) -> tuple[Counter[str], list[str], float]:
    """What became of the files, the failures, and the MiB that were needed on top."""
    global NEURON_FILE
    NEURON_FILE = _neuron_file()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    counts: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + files):
            for name, once in (("file", lambda n: read_file(n, Path(folder))), ("answer", read_answer)):
                signal.alarm(SECONDS)
                try:
                    counts[once(number)] += 1
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    failures.append(f"{name} {number}: {error!r:.200} in {last.filename}:{last.lineno}")
                finally:
                    signal.alarm(0)
    return counts, failures, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def _neuron_file() -> bytes:
    import tiny
    from babelscope import Anatomy

    made = NeuronSet.from_indices(Anatomy(tiny.tiny_model("llama"), check=False), {"ffn": {0: [1, 2], 1: [3]}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "n.safetensors"
        made.save(path)
        return path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    start = time.monotonic()
    counts, failures, memory = run(given.first, given.files)
    for kind, count in sorted(counts.items()):
        print(f"{count:>7}  {kind}")
    print(f"{given.files} files, {len(failures)} failures, {memory:.0f} MiB, {time.monotonic() - start:.0f} s")
    print("\n".join(failures[:50]))
    if failures or memory > MEMORY:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
