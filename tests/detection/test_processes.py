"""Several processes (gloo, forks of this one) make the atlas that one process makes, survive a kill, and hold no text.

Counts are equal; sums and minima are equal up to the rounding of the forward pass, whose batches differ (see
test_detect.py), here in float64 so that selected sets are equal to the last neuron.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from babelscope import Atlas
from babelscope.corpora import batching
from babelscope.detection.detect import Progress
from babelscope.models.observe import Observer
from builders import make_texts
from detection.test_detect import assert_bit_equal, assert_equal_up_to_rounding, run
from tiny import tiny_model

torch.set_num_threads(1)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def work(rank: int, count: int, port: int, folder: Path, killed_at: int | None, changes: dict[str, Any]) -> None:
    """What torchrun would start: finds the others by its environment; saves what it found and how many batches."""
    place = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    batches, original = itertools.count(1), Observer.run

    def counting(self: Observer, *args: Any) -> Any:
        if (number := next(batches)) == killed_at and rank == count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(self, *args)
        (folder.parent / f"batches-{rank}.txt").write_text(str(number))
        return found

    Observer.run = counting  # type: ignore[method-assign]
    atlas = run(tiny_model("qwen3", torch.float64), run_dir=folder, checkpoint_seconds=0.0, **changes)
    atlas.save(folder.parent / f"rank-{rank}.safetensors")


def start(count: int, folder: Path, killed_at: int | None = None, **changes: Any) -> list[Atlas]:
    """What each process found; empty when one was killed (torchrun then ends the others)."""
    for old in folder.parent.glob("batches-*.txt"):
        old.unlink()
    context, port = multiprocessing.get_context("fork"), free_port()
    children = [
        context.Process(target=work, args=(rank, count, port, folder, killed_at, changes)) for rank in range(count)
    ]
    for child in children:
        child.start()
    children[-1].join(120)
    if killed_at is not None:
        assert children[-1].exitcode == -signal.SIGKILL
        for child in children:
            child.kill()
    for child in children:
        child.join(120)
    if killed_at is not None:
        return []
    assert [child.exitcode for child in children] == [0] * count
    return [Atlas.load(folder.parent / f"rank-{rank}.safetensors") for rank in range(count)]


def batches_run(folder: Path) -> int:
    return sum(int(path.read_text()) for path in folder.parent.glob("batches-*.txt"))


@pytest.fixture(scope="module")
def alone() -> Atlas:
    return run(tiny_model("qwen3", torch.float64))


@pytest.mark.parametrize("count", [2, 4])
def test_the_same_atlas_as_one_process(count: int, alone: Atlas, tmp_path: Path) -> None:
    found = start(count, tmp_path / "run")
    for atlas in found[1:]:
        assert_bit_equal(atlas, found[0])
    written = Atlas.load(tmp_path / "run")
    assert_bit_equal(written, found[0])
    assert_equal_up_to_rounding(written, alone, 2e-7)
    assert written.corpora == alone.corpora, "the record is that of all the documents, not of one process"
    assert sum(record["documents"] for records in written.corpora.values() for record in records) == 22
    for language, rule in itertools.product(alone.languages, ("contrast", "minimum", "lape")):
        mine, theirs = (atlas.select(language, rule=rule, budget=0.05) for atlas in (written, alone))
        assert len(mine) >= (1 if rule == "lape" else 10)
        assert set(mine) == set(theirs)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "atlas.safetensors", "run.json"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


def test_more_processes_than_documents(tmp_path: Path) -> None:
    few = {"fr": make_texts("fr", 2)}
    found = start(4, tmp_path / "run", corpora=few, folds=1)[0]
    assert found.of("fr").documents.sum() == 2
    assert_equal_up_to_rounding(found, run(tiny_model("qwen3", torch.float64), few, folds=1), 2e-7)


def test_a_shard_by_two_processes_merges_with_a_shard_by_one(alone: Atlas, tmp_path: Path) -> None:
    first = start(2, tmp_path / "run", shard=(0, 2))[0]
    both = first | run(tiny_model("qwen3", torch.float64), shard=(1, 2))
    assert_equal_up_to_rounding(both, alone, 2e-7)
    assert first.of("fr").documents.sum() == 7
    assert first.corpora["fr"][0]["skipped"]["other_shards"] == 6


def test_killed_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    whole = start(2, tmp_path / "a" / "run")[0]
    total = batches_run(tmp_path / "a" / "run")
    folder = tmp_path / "b" / "run"
    start(2, folder, killed_at=2)
    partial = sorted(path.name for path in (folder / "languages").iterdir())
    assert "fr.1of2.partial.safetensors" in partial
    done = batches_run(folder)
    again = start(2, folder)[0]
    assert_bit_equal(again, whole)
    assert batches_run(folder) + done <= total + 1, "what was scored is not scored again"
    assert not (folder / "languages").exists()
    assert_bit_equal(start(2, folder)[1], whole)
    assert batches_run(folder) == 0, "finished"


def test_another_number_of_processes_goes_on_with_the_finished_languages(alone: Atlas, tmp_path: Path) -> None:
    whole = start(2, tmp_path / "a" / "run")[0]
    folder = tmp_path / "b" / "run"
    start(2, folder, killed_at=_batches_of_last_rank(tmp_path / "a" / "run"))  # in the second language
    assert [path.name for path in (folder / "languages").iterdir() if "partial" not in path.name] == ["fr.safetensors"]
    alone_now = run(tiny_model("qwen3", torch.float64), run_dir=folder)
    assert_equal_up_to_rounding(alone_now, alone, 2e-7)
    for name, value in whole.of("fr").tensors("x").items():
        assert torch.equal(alone_now.of("fr").tensors("x")[name], value), "kept, not scored again"


def test_each_process_tokenises_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = batching.document_tokenizer

    def counting(*args: Any) -> Any:
        tokenize, file = original(*args), tmp_path / f"tokenised-{os.environ['RANK']}.txt"

        def counted(index: int, *rest: Any) -> Any:
            with file.open("a") as stream:
                stream.write(f"{index}\n")
            return tokenize(index, *rest)

        return counted

    monkeypatch.setattr(batching, "document_tokenizer", counting)
    start(2, tmp_path / "run", corpora={"fr": make_texts("fr", 13)})
    tokenised = [[int(line) for line in (tmp_path / f"tokenised-{rank}.txt").open()] for rank in range(2)]
    assert sorted(tokenised[0] + tokenised[1]) == list(range(13))
    assert [len(each) for each in tokenised] == [7, 6]


def _batches_of_last_rank(folder: Path) -> int:
    return int((folder.parent / "batches-1.txt").read_text())


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    texts = tmp_path / "fr.txt"
    texts.write_text("\n".join(make_texts("fr", 12)), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = ["-m", "babelscope", "detect", "tinybabel", "--corpus", f"fr={texts}", "--min-tokens", "1"]
    done = subprocess.run(
        [sys.executable, *launch, *command, "--out", str(tmp_path / "run"), "--json"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads(done.stdout)  # one process speaks
    assert content["file"] == str(tmp_path / "run" / "atlas.safetensors")
    assert int(Atlas.load(tmp_path / "run").of("fr").documents.sum()) == 12


def test_memory_does_not_grow_with_the_documents() -> None:
    """Resident memory after 100 and after 1000 documents of 10 kB: kept, they would be 9 MB more."""
    held: dict[int, int] = {}

    def stream() -> Iterator[str]:
        for number in range(1000):
            yield f"{number} " + "abcdefgh" * 1250

    def measure(progress: Progress) -> None:
        status = Path("/proc/self/status").read_text()
        held[progress.documents] = int(status.partition("VmRSS:")[2].split()[0])

    run(corpora={"fr": stream()}, slots=("ffn",), max_tokens=12, token_budget=12 * 50, progress=measure)
    assert max(held) == 1000
    early = max(value for documents, value in held.items() if documents <= 100)
    assert held[1000] - early < 3_000, "kB"
