"""One pass over text gives the same atlas however it is cut up, killed and resumed, and says what stopped it.

What is bit-equal, and what is not:

- documents and tokens, by fold: always;
- every tensor: a run that is repeated, and one that was killed and resumed, whatever the batch it was killed at;
- integer counts (hits, exceedances, positive activations) of shards merged, of other batch sizes and of batches halved
  for lack of memory: here, in float32 and float64; the rounding of the forward pass depends on the shape of the batch
  and may tip a unit that is on the edge (in bfloat16 it does, for less than 1 % of them);
- minima, maxima and sums of the same: not bit-equal; within 1e-6 of the slot's largest value in float32 (measured:
  4e-7), 1e-12 in float64 (4e-16; 2e-7 where the model itself rounds to float32), 3 % in bfloat16 (0.9 %).
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

import oracle
from babelscope import Anatomy, Atlas, detect
from babelscope.artifacts import run_folder
from babelscope.detection.detect import Progress, plan
from babelscope.detection.options import DetectOptions
from babelscope.errors import ConfigError, DataError, NumericsError, RunFolderError
from babelscope.models.observe import Observer
from babelscope.options import defaults_of, help_of
from babelscope.progress import Task, shown
from builders import letters, make_texts
from fixtures_text import LETTERS
from tiny import tiny_model

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[2]
CORPORA = {"fr": make_texts("fr", 13), "zh": make_texts("zh", 9)}
SETTINGS: dict[str, Any] = {"max_tokens": 32, "token_budget": 100, "thresholds": (0.1,), "folds": 3, "progress": False}


def run(model: nn.Module | None = None, corpora: Any = None, **changes: Any) -> Atlas:
    return detect(model or tiny_model("llama"), letters(), corpora or CORPORA, **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def whole() -> Atlas:
    return run()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of the batches that were really run."""
    seen: list[tuple[int, int]] = []
    original = Observer.run

    def counting(self: Observer, input_ids: Tensor, *args: Any) -> Any:
        seen.append((input_ids.shape[0], input_ids.shape[1]))
        return original(self, input_ids, *args)

    monkeypatch.setattr(Observer, "run", counting)
    return seen


def assert_bit_equal(found: Atlas, expected: Atlas) -> None:
    assert found.languages == expected.languages
    assert found.settings == expected.settings
    assert found.model == expected.model
    for language in expected.languages:
        mine, theirs = found.of(language).tensors("x"), expected.of(language).tensors("x")
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name].dtype == value.dtype
            assert torch.equal(mine[name], value), (language, name)


def assert_equal_up_to_rounding(found: Atlas, expected: Atlas, tolerance: float, counts_off: float = 0.0) -> None:
    assert found.languages == expected.languages
    for language in expected.languages:
        mine, theirs = found.of(language), expected.of(language)
        assert torch.equal(mine.documents, theirs.documents)
        assert torch.equal(mine.tokens, theirs.tokens)
        for slot, values in theirs.slots.items():
            for name, value in values.items():
                difference = (mine.slots[slot][name].double() - value.double()).abs()
                if value.is_floating_point():
                    assert difference.max() <= tolerance * value.abs().max(), (language, slot, name)
                else:
                    assert (difference > 0).double().mean() <= counts_off, (language, slot, name)


# ----------------------------------------------------------------------------------------------------------------------
# The same atlas
# ----------------------------------------------------------------------------------------------------------------------


def test_a_run_repeated_is_bit_equal(whole: Atlas) -> None:
    assert_bit_equal(run(), whole)
    assert whole.languages == ("fr", "zh")
    assert whole.of("fr").documents.tolist() == [5, 4, 4]
    assert int(whole.of("fr").tokens.sum()) == sum(min(len(text), 31) for text in CORPORA["fr"])


@pytest.mark.parametrize(
    ("dtype", "tolerance", "counts_off"),
    [(torch.float32, 1e-6, 0.0), (torch.float64, 1e-12, 0.0), (torch.bfloat16, 0.03, 0.01)],
)
def test_shards_and_batches_of_one(dtype: torch.dtype, tolerance: float, counts_off: float) -> None:
    model = tiny_model("qwen3", dtype)
    whole = run(model)
    shards = run(model, shard=(0, 2)) | run(model, shard=(1, 2))
    assert_equal_up_to_rounding(shards, whole, tolerance, counts_off)
    assert_equal_up_to_rounding(run(model, token_budget=1), whole, tolerance, counts_off)


@pytest.mark.parametrize("name", ["gemma2", "mixtral", "bloom", "gpt2"])
def test_shards_and_batches_of_one_in_other_families(name: str) -> None:
    model = tiny_model(name)
    whole = run(model)
    shards = run(model, shard=(0, 2)) | run(model, shard=(1, 2))
    assert_equal_up_to_rounding(shards, whole, 1e-6)
    assert_equal_up_to_rounding(run(model, token_budget=1), whole, 1e-6)


def test_three_shards_on_disk_in_any_order(whole: Atlas, tmp_path: Path) -> None:
    for shard in (2, 0, 1):
        run(shard=(shard, 3), run_dir=tmp_path / str(shard))
    merged = Atlas.load(tmp_path / "1") | Atlas.load(tmp_path / "2") | Atlas.load(tmp_path / "0")
    assert_equal_up_to_rounding(merged, whole, 1e-6)
    assert sum(record["documents"] for record in merged.corpora["fr"]) == 13
    assert [record["shard"] for record in merged.corpora["fr"]] == [[1, 3], [2, 3], [0, 3]]


def test_a_run_folder_gives_the_same_as_none(whole: Atlas, tmp_path: Path) -> None:
    atlas = run(run_dir=tmp_path / "run")
    assert_bit_equal(atlas, whole)
    assert_bit_equal(Atlas.load(tmp_path / "run"), whole)
    assert sorted(item.name for item in (tmp_path / "run").iterdir()) in (
        [".lock", "atlas.safetensors", "run.json"],
        ["atlas.safetensors", "run.json"],
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "done"
    assert record["corpora"]["zh"][0]["documents"] == 9


# ----------------------------------------------------------------------------------------------------------------------
# Killed and resumed
# ----------------------------------------------------------------------------------------------------------------------


def batches_of(runs: list[tuple[int, int]]) -> int:
    """How many batches both languages take."""
    run()
    count = len(runs)
    runs.clear()
    return count


def killer(after: int) -> Callable[[Progress], None]:
    """A progress callback that kills its own process after so many batches, before that batch is in a checkpoint."""
    left = after

    def report(progress: Progress) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    return report


def killed_after(batches: int, folder: Path) -> None:
    """Runs in another process, which dies of SIGKILL."""
    child = multiprocessing.get_context("fork").Process(
        target=run, kwargs={"run_dir": folder, "checkpoint_seconds": 0.0, "progress": killer(batches)}
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("batches", [1, 2, 4, 5, 6, -1])
def test_killed_and_resumed_is_bit_equal(
    batches: int, whole: Atlas, tmp_path: Path, runs: list[tuple[int, int]]
) -> None:
    total = batches_of(runs)
    assert total == 7, "4 batches of the first language, 3 of the second"
    batches = batches if batches > 0 else total
    folder = tmp_path / "run"
    killed_after(batches, folder)
    assert not (folder / "atlas.safetensors").exists()
    assert json.loads((folder / "run.json").read_text())["status"] == "running"

    resumed = run(run_dir=folder, checkpoint_seconds=0.0)
    assert_bit_equal(resumed, whole)
    assert_bit_equal(Atlas.load(folder), whole)
    assert len(runs) == total - (batches - 1), "only the batch at work when it was killed is done again"
    assert not (folder / "languages").exists()
    assert resumed.corpora == whole.corpora


def test_killed_again_and_again(whole: Atlas, tmp_path: Path, runs: list[tuple[int, int]]) -> None:
    for _ in range(3):
        killed_after(2, tmp_path / "run")
    assert_bit_equal(run(run_dir=tmp_path / "run"), whole)
    assert len(runs) == 7 - 3


def test_a_killed_program_is_resumed_by_another(whole: Atlas, tmp_path: Path, runs: list[tuple[int, int]]) -> None:
    """A Python program of its own, not a fork of this one: nothing survives but the folder."""
    source = (
        "import importlib.util, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        f"spec = importlib.util.spec_from_file_location('detection_tests', {__file__!r})\n"
        "tests = importlib.util.module_from_spec(spec)\n"
        "sys.modules['detection_tests'] = tests\n"
        "spec.loader.exec_module(tests)\n"
        f"tests.run(run_dir={str(tmp_path / 'run')!r}, checkpoint_seconds=0.0, progress=tests.killer(3))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert_bit_equal(run(run_dir=tmp_path / "run"), whole)
    assert len(runs) == 7 - 2


def test_a_checkpoint_is_written_only_when_due(tmp_path: Path, runs: list[tuple[int, int]]) -> None:
    folder = tmp_path / "run"
    seen: list[bool] = []

    def look(progress: Progress) -> None:
        seen.append((folder / "languages" / "fr.partial.safetensors").exists())

    run(run_dir=folder, checkpoint_seconds=3600.0, progress=look)
    assert not any(seen)
    assert len(seen) == len(runs) == 7


def test_a_finished_run_called_again_does_nothing(
    whole: Atlas, tmp_path: Path, runs: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    run(run_dir=folder)
    before = {item.name: (item.stat().st_mtime_ns, item.read_bytes()) for item in folder.iterdir()}
    runs.clear()
    with caplog.at_level(logging.INFO):
        again = run(run_dir=folder)
    assert_bit_equal(again, whole)
    assert runs == []
    assert "finished already" in caplog.text
    after = {item.name: (item.stat().st_mtime_ns, item.read_bytes()) for item in folder.iterdir()}
    assert {name: value for name, value in after.items() if name != ".lock"} == {
        name: value for name, value in before.items() if name != ".lock"
    }


def test_killed_between_the_atlas_and_the_record(whole: Atlas, tmp_path: Path, runs: list[tuple[int, int]]) -> None:
    folder = tmp_path / "run"
    run(run_dir=folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (folder / "languages").mkdir()
    (folder / "languages" / "fr.safetensors").write_bytes(b"left over")
    (folder / "languages" / ".zh.safetensors.x1.tmp").write_bytes(b"left over")
    runs.clear()
    assert_bit_equal(run(run_dir=folder), whole)
    assert runs == []
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    assert not (folder / "languages").exists()


def test_killed_while_the_record_was_written(whole: Atlas, tmp_path: Path) -> None:
    (tmp_path / ".run.json.abc.tmp").write_bytes(b"{")
    (tmp_path / ".lock").touch()
    assert_bit_equal(run(run_dir=tmp_path), whole)


# ----------------------------------------------------------------------------------------------------------------------
# Run folders
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    """A folder with one finished language."""
    folder = tmp_path / "run"

    def stop(progress: Progress) -> None:
        if progress.language == "zh":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(run_dir=folder, progress=stop)
    assert (folder / "languages" / "fr.safetensors").exists()
    return folder


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seed": 1}, r"seed: then 0, now 1\)"),
        ({"documents": 5}, r"documents: then 1000, now 5\)"),
        ({"max_tokens": 30}, r"settings\.max_tokens: then 32, now 30\)"),
        ({"min_tokens": 9}, r"settings\.min_tokens: then 8, now 9\)"),
        ({"token_budget": 101}, r"token_budget: then 100, now 101\)"),
        ({"folds": 2}, r"folds: then 3, now 2\)"),
        ({"thresholds": ()}, r"thresholds: then \[0\.1\], now \[\]\)"),
        ({"top_shares": (0.5,)}, r"top_shares: then \[0\.01, 0\.05, 0\.1, 0\.25\], now \[0\.5\]\)"),
        ({"shard": (0, 2)}, r"shard: then \[0, 1\], now \[0, 2\]\)"),
        ({"slots": ("v",)}, r"settings\.slots: then \['q', 'k', 'v', 'o', 'ffn'\], now \['v'\]\)"),
        ({"preset": "paper"}, r"settings\.preset: then 'default', now 'paper'"),
        ({"corpora": {**CORPORA, "zh": CORPORA["zh"][:-1]}}, r"corpora\.zh: then \['sha256:\w+'\], now \['sha256:"),
        ({"corpora": {**CORPORA, "sw": CORPORA["zh"]}}, r"corpora\.sw: then None, now \['sha256:"),
        ({"model": "another"}, r"model: then '\w{32}', now '\w{32}'\)"),
    ],
)
def test_a_folder_made_with_other_settings(half_done: Path, changes: dict[str, Any], match: str) -> None:
    before = (half_done / "run.json").read_bytes()
    if "model" in changes:
        changes = {"model": _changed(tiny_model("llama"))}
    with pytest.raises(RunFolderError, match=match) as caught:
        run(run_dir=half_done, **changes)
    assert str(caught.value).startswith(f"{half_done} was made with other settings (")
    assert str(caught.value).endswith("Repeat those settings to resume it, or give another folder with --out.")
    assert (half_done / "run.json").read_bytes() == before


def _changed(model: Any) -> Any:
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    return model


def _hold(folder: Path, ready: Any, done: Any) -> None:
    with run_folder(folder, {"command": "detect"}, {}):
        ready.set()
        done.wait(60)


def test_a_folder_in_use_by_another_process(tmp_path: Path, runs: list[tuple[int, int]]) -> None:
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(folder, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RunFolderError, match=rf"another process is writing {folder}\. Wait for it to end, or give"):
            run(run_dir=folder)
        assert runs == []
    finally:
        done.set()
        other.join(60)
    run(run_dir=folder)
    assert runs, "free again"


def test_the_lock_of_a_killed_process_does_not_stay(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed_after(1, folder)
    run(run_dir=folder)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"is not empty and not a run folder \(no run\.json\)"):
        run(run_dir=tmp_path)
    assert {item.name for item in tmp_path.iterdir()} <= {"thesis.tex", ".lock"}
    with pytest.raises(RunFolderError, match="is a file, or lies under one"):
        run(run_dir=tmp_path / "thesis.tex")
    with pytest.raises(RunFolderError, match="is a file, or lies under one"):
        run(run_dir=tmp_path / "thesis.tex" / "run")


def test_a_damaged_record(half_done: Path) -> None:
    (half_done / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json: not JSON"):
        run(run_dir=half_done)


def test_a_command_that_did_nothing_leaves_the_folder_free(tmp_path: Path) -> None:
    """A typing error in a setting, or an empty corpus, must not cost the folder's name."""
    for changes in ({"min_tokens": 40}, {"documents": 0}, {"shard": (2, 2)}, {"token_budget": 0}):
        with pytest.raises(ConfigError):
            run(run_dir=tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="no usable document"):
        run(corpora={"fr": ["", "x"]}, run_dir=tmp_path / "run")
    run(run_dir=tmp_path / "run")


# ----------------------------------------------------------------------------------------------------------------------
# Memory and numbers
# ----------------------------------------------------------------------------------------------------------------------


def _limited(monkeypatch: pytest.MonkeyPatch, rows: int, error: Exception) -> None:
    original = Observer.run

    def limited(self: Observer, input_ids: Tensor, *args: Any) -> Any:
        if len(input_ids) > rows:
            raise error
        return original(self, input_ids, *args)

    monkeypatch.setattr(Observer, "run", limited)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch_and_goes_on(
    error: Exception, whole: Atlas, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _limited(monkeypatch, 2, error)
    with caplog.at_level(logging.WARNING):
        atlas = run(token_budget=400)
    assert_equal_up_to_rounding(atlas, whole, 1e-6)
    halved = sum(records[0]["batches_halved"] for records in atlas.corpora.values())
    assert halved == caplog.text.count("out of memory with") > 3
    assert whole.corpora["fr"][0]["batches_halved"] == 0
    assert "documents of 32 tokens: going on with half" in caplog.text


def test_halved_batches_are_counted_across_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _limited(monkeypatch, 2, OUT_OF_MEMORY[0])
    unbroken = run()
    killed_after(3, tmp_path / "run")
    resumed = run(run_dir=tmp_path / "run")
    assert_bit_equal(resumed, unbroken)
    assert resumed.corpora == unbroken.corpora


def test_out_of_memory_with_a_single_document(monkeypatch: pytest.MonkeyPatch) -> None:
    _limited(monkeypatch, 0, OUT_OF_MEMORY[0])
    with pytest.raises(ConfigError, match=r"a single document of 32 tokens does not fit in memory\. Lower max_tokens"):
        run()


def test_other_errors_are_not_taken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    _limited(monkeypatch, 2, RuntimeError("The size of tensor a must match the size of tensor b"))
    with pytest.raises(RuntimeError, match="size of tensor a"):
        run()


@pytest.mark.parametrize(
    ("path", "slot"), [("self_attn.k_proj", "q"), ("self_attn.v_proj", "v"), ("mlp.gate_proj", "ffn")]
)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_breaks_is_named_by_layer_and_slot(path: str, slot: str, layer: int, value: float) -> None:
    model = tiny_model("llama")
    anatomy = Anatomy(model)
    with torch.no_grad():
        model.model.layers[layer].get_submodule(path).weight[2, 3] = value
    with pytest.raises(NumericsError, match=rf"layer {layer}, slot {slot}: .*NaN or infinite"):
        run(anatomy)  # type: ignore[arg-type]


def test_float16_that_overflows_on_some_text() -> None:
    """Not on the self-check's tokens: found by the run."""
    model = tiny_model("llama", torch.float16)
    anatomy = Anatomy(model)
    token = letters()("q")["input_ids"][1]
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e4)
        model.get_input_embeddings().weight[token] = torch.inf
    with pytest.raises(NumericsError, match=r"layer 0, slot q: .*load it in bfloat16 or float32 instead of float16"):
        run(anatomy, {"zh": ["aaaaaaaaaaaa", "aaaaaaaaaaaq"]})  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------------------
# Presets
# ----------------------------------------------------------------------------------------------------------------------

DOCUMENT = "aeioulmnraeoi"


def _single(preset: str, name: str = "llama") -> tuple[Any, Tensor, Atlas]:
    model = tiny_model(name, torch.float64)
    ids = torch.tensor(letters()(DOCUMENT)["input_ids"])[None]
    return model, ids, run(model, {"fr": [DOCUMENT]}, preset=preset)


@pytest.mark.parametrize(("preset", "first"), [("default", 1), ("paper", 0)])
def test_special_tokens_and_the_norm(preset: str, first: int) -> None:
    """The default leaves BOS out and divides by sqrt(tokens); the paper's preset counts all, as a plain norm."""
    model, ids, atlas = _single(preset)
    tokens = ids.shape[1] - first
    assert int(atlas.of("fr").tokens.sum()) == tokens == 14 - first
    assert atlas.slots == (("q", "k", "v", "o", "ffn") if preset == "default" else ("q", "k", "v", "ffn"))
    mask = torch.ones_like(ids)
    for slot in atlas.slots:
        scores = atlas.layout.split(slot, atlas.of("fr").minimum(slot))
        for layer in range(2):
            unit = int(scores[layer].argmax())
            with oracle.DoubleSteps():
                whole = oracle._measured(model, ids, mask, slot, layer)  # type: ignore[arg-type]
                with oracle.zeroed(model, slot, layer, unit):  # type: ignore[arg-type]
                    without = oracle._measured(model, ids, mask, slot, layer)  # type: ignore[arg-type]
            expected = float((without - whole)[0, first:].norm())
            expected /= math.sqrt(tokens) if preset == "default" else 1
            assert float(scores[layer][unit]) == pytest.approx(expected, rel=1e-5)


def _captured(model: Any, ids: Tensor) -> tuple[dict[int, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Queries and keys after rotation by layer, and inputs or outputs of modules by name."""
    rotated: dict[int, tuple[Tensor, Tensor]] = {}
    seen: dict[str, Tensor] = {}

    def capture(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        rotated[module.layer_idx] = (q[0], k[0])  # type: ignore[index]
        return oracle._attention(module, q, k, v, *args, **kwargs)

    AttentionInterface.register("detect_test_capture", capture)
    AttentionMaskInterface.register("detect_test_capture", oracle._mask)
    handles = []
    for number, layer in enumerate(model.model.layers):
        handles += [
            layer.mlp.up_proj.register_forward_hook(
                lambda module, args, output, number=number: seen.update({f"up {number}": output[0]})
            ),
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda module, args, number=number: seen.update({f"o {number}": args[0][0]})
            ),
        ]
    before = model.config._attn_implementation
    model.set_attn_implementation("detect_test_capture")
    with torch.no_grad():
        model(input_ids=ids)
    model.set_attn_implementation(before)
    for handle in handles:
        handle.remove()
    return rotated, seen


def test_the_published_codes_scores() -> None:
    """Written out from the published formulas: 4 query heads on 2 kv heads of 8 channels, 13 letters after BOS."""
    model, ids, atlas = _single("released")
    assert atlas.slots == ("q", "k", "v", "ffn")
    rotated, seen = _captured(model, ids)
    tokens = ids.shape[1]
    visible = torch.ones(tokens, tokens).tril().bool()
    for layer in range(2):
        found = {slot: atlas.layout.split(slot, atlas.of("fr").minimum(slot))[layer] for slot in atlas.slots}
        # FFN: the sum over tokens of |up(x)|.
        torch.testing.assert_close(found["ffn"], seen[f"up {layer}"].abs().sum(0), rtol=1e-6, atol=0)
        # V: the sum over tokens of |attention output|, the largest of the group's query heads.
        magnitude = seen[f"o {layer}"].abs().sum(0)
        value = [max(magnitude[(2 * g + r) * 8 + c] for r in range(2)) for g in range(2) for c in range(8)]
        torch.testing.assert_close(found["v"], torch.stack(value), rtol=1e-6, atol=0)
        # Q: the squared difference of the probabilities when q_c k_c^T is taken from the scores, undivided.
        query, key = rotated[layer]
        score = torch.zeros(4, 8, dtype=torch.float64)
        for head in range(4):
            scores = query[head] @ key[head // 2].T / math.sqrt(8)
            plain = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            for channel in range(8):
                less = scores - torch.outer(query[head, :, channel], key[head // 2, :, channel])
                changed = less.masked_fill(~visible, -torch.inf).softmax(-1)
                score[head, channel] = ((changed - plain) ** 2).sum()
        torch.testing.assert_close(found["q"], score.flatten(), rtol=1e-6, atol=1e-12)
        # K: the same number, of the kv head's largest query head.
        torch.testing.assert_close(found["k"], score.view(2, 2, 8).amax(1).flatten(), rtol=1e-6, atol=1e-12)


def test_released_has_no_slot_o(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no score for slot o"):
        run(preset="released", slots=("v", "o"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_slots_may_be_named_by_aliases() -> None:
    assert run(slots=("up", "k")).slots == ("k", "ffn")


# ----------------------------------------------------------------------------------------------------------------------
# Text
# ----------------------------------------------------------------------------------------------------------------------


def test_skipped_documents_are_counted_by_reason() -> None:
    texts = [*CORPORA["fr"], "", "  ", "short", "a" * 100]
    atlas = run(corpora={"fr": texts, "zh": CORPORA["zh"]}, documents=10)
    record = atlas.corpora["fr"][0]
    assert record["documents"] == 10 == int(atlas.of("fr").documents.sum())
    assert record["skipped"]["seen"] == 17
    assert record["skipped"]["empty"] == 2
    assert record["skipped"]["too_short"] + record["skipped"]["not_sampled"] == 5
    assert atlas.corpora["zh"][0]["documents"] == 9, "all there are"
    everything = run(corpora={"fr": texts}).corpora["fr"][0]["skipped"]
    long = sum(len(text) > 31 for text in texts)
    assert everything == {
        "seen": 17,
        "empty": 2,
        "too_short": 1,
        "not_sampled": 0,
        "other_shards": 0,
        "cut": long,
    }


def test_several_files_of_a_language_are_one_corpus(tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_text("\n".join(CORPORA["fr"][:6]) + "\n")
    paths[1].write_text("\n".join(CORPORA["fr"][6:]) + "\n")
    expected = run(corpora={"fr": CORPORA["fr"]})
    assert_bit_equal(run(corpora={"fra": paths}), expected)
    assert_bit_equal(run(corpora={"French": tmp_path}), expected)
    rows = tmp_path / "c.jsonl"
    rows.write_text("".join(json.dumps({"body": text}) + "\n" for text in CORPORA["fr"]))
    assert_bit_equal(run(corpora={"fr": rows}, field="body"), expected)


def test_a_stream_is_read_once_and_says_so_when_resuming_would_need_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stream() -> Iterator[str]:
        yield from CORPORA["fr"]

    expected = run(corpora={"fr": CORPORA["fr"]})
    assert_bit_equal(run(corpora={"fr": stream()}), expected)
    with caplog.at_level(logging.WARNING):
        atlas = run(corpora={"fr": stream()}, run_dir=tmp_path / "run")
    assert_bit_equal(atlas, expected)
    assert "can be read only once: if this run is killed, it must start again" in caplog.text
    assert atlas.corpora["fr"][0]["identity"] == "unknown"


@pytest.mark.parametrize(
    ("corpora", "error", "match"),
    [
        ({}, ConfigError, "no corpus given"),
        ({"fr": []}, DataError, "is empty"),
        (
            {"fr": ["", "abc", " "]},
            DataError,
            r"0 of 3 documents used .1000 asked for., 2 empty, 1 too short \(under 8 tokens\)",
        ),
        ({"fr": "/nowhere/fr.txt"}, DataError, "no file /nowhere/fr.txt"),
        ({"fr": [1, 2]}, DataError, "document 0 is of type int"),
        ({"fx": CORPORA["fr"]}, ConfigError, "unknown language 'fx'"),
        ({"frensh": CORPORA["fr"]}, ConfigError, "did you mean.*French|French"),
        ({"fr": CORPORA["fr"], "fra_Latn": CORPORA["fr"]}, ConfigError, "language 'fr' was given twice"),
    ],
)
def test_corpora_that_can_not_be_used(corpora: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        detect(tiny_model("llama"), letters(), corpora, **SETTINGS)


def test_undecodable_bytes_in_the_second_language(tmp_path: Path) -> None:
    path = tmp_path / "zh.txt"
    path.write_bytes("\n".join(CORPORA["zh"]).encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError, match=rf"{path}, line 10, byte offset \d+"):
        run(corpora={"fr": CORPORA["fr"], "zh": path})


# ----------------------------------------------------------------------------------------------------------------------
# Settings, plan, progress
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"preset": "papr"}, "preset: wanted one of default, paper, released, found 'papr'"),
        ({"slots": ("w",)}, "wanted slots among"),
        ({"folds": 0}, "folds: wanted a whole number of 1 or more, found 0"),
        ({"top_shares": (0.0,)}, r"top_shares\[0\]: wanted a share above 0 and at most 1, found 0\.0"),
        ({"top_shares": (0.5, 1.5)}, r"top_shares\[1\]: wanted a share .*, found 1\.5"),
        ({"max_tokens": 65}, r"max_tokens is 65, but the model has 64 positions\. Lower max_tokens to 64"),
        ({"min_tokens": 32}, "raise max_tokens"),
        ({"shard": (2, 2)}, r"shard: wanted \(i, n\) with 0 <= i < n"),
        ({"documents": 0}, "documents: wanted a whole number of 1 or more, found 0"),
        ({"token_budget": 0}, "token_budget: wanted a whole number of 1 or more, found 0"),
    ],
)
@pytest.mark.parametrize("function", [detect, plan])
def test_settings_that_can_not_be_honoured(function: Any, changes: dict[str, Any], match: str) -> None:
    settings = {**SETTINGS, **changes}
    if function is plan:
        settings.pop("progress")
    with pytest.raises(ConfigError, match=match):
        function(tiny_model("llama"), letters(), CORPORA, **settings)


def test_a_tokenizer_of_another_model() -> None:
    from builders import byte_tokenizer

    with pytest.raises(ConfigError, match=r"the tokenizer has 259 tokens, the model only 64\. Load the tokenizer of"):
        detect(tiny_model("llama"), byte_tokenizer(), CORPORA, **SETTINGS)


def test_the_keywords_are_the_settings() -> None:
    """Names, order and defaults: a second list of them must not drift."""
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(detect).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("run_dir", "checkpoint_seconds", "progress")
    }
    assert list(keywords.items()) == list(defaults_of(DetectOptions).items())
    assert set(help_of(DetectOptions)) == set(keywords)


def test_settings_are_read_without_torch() -> None:
    probe = "import sys, babelscope.detection.options; print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True).strip() == "set()"


def test_a_number_of_documents_for_each_language(tmp_path: Path) -> None:
    """As if each language had been detected with its own number."""
    both = run(documents={"French": 5, "zh": 8}, run_dir=tmp_path / "run")
    assert {code: int(both.of(code).documents.sum()) for code in both.languages} == {"fr": 5, "zh": 8}
    assert [both.corpora[code][0]["asked"] for code in ("fr", "zh")] == [5, 8]
    alone = run(corpora={"fr": CORPORA["fr"]}, documents=5) | run(corpora={"zh": CORPORA["zh"]}, documents=8)
    assert_bit_equal(both, alone)
    again = run(documents={"zh": 8, "fr": 5}, run_dir=tmp_path / "run")
    assert_bit_equal(again, both)
    with pytest.raises(RunFolderError, match=r"documents\.zh: then 8, now 7"):
        run(documents={"fr": 5, "zh": 7}, run_dir=tmp_path / "run")
    planned = plan(tiny_model("llama"), letters(), CORPORA, documents={"fr": 5, "zh": 8}, max_tokens=32)
    assert planned.documents == {"fr": 5, "zh": 8}


@pytest.mark.parametrize(
    ("documents", "match"),
    [
        ({"fr": 5}, r"documents: wanted a number for each language, found none for zh\. Add one for zh\."),
        ({"fr": 5, "zh": 0}, r"documents\.zh: wanted a whole number of 1 or more, found 0"),
        ({"fr": 5, "klingon": 3}, "Unknown language 'klingon'"),
        ("all", "documents: wanted .* found 'all'"),
    ],
)
def test_numbers_of_documents_that_can_not_be(tmp_path: Path, documents: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        run(documents=documents, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_thousand_documents_by_default() -> None:
    texts = ["abcdefghij" * 2] * 1005
    usual = run(corpora={"fr": texts}, token_budget=8192)
    assert int(usual.of("fr").documents.sum()) == 1000
    every = run(corpora={"fr": texts}, token_budget=8192, documents=None)
    assert int(every.of("fr").documents.sum()) == 1005


def test_plan_reads_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[tuple[int, int]]
) -> None:
    monkeypatch.chdir(tmp_path)
    taken = 0

    def stream() -> Iterator[str]:
        nonlocal taken
        taken += 1
        yield "a text that nobody reads"

    source = stream()
    path = tmp_path / "zh.txt"
    path.write_text("\n".join(CORPORA["zh"]))
    planned = plan(
        tiny_model("llama"), letters(), {"fr": source, "zh": path}, documents=7, max_tokens=32, token_budget=640
    )
    assert list(tmp_path.iterdir()) == [path]
    assert runs == []
    assert taken == 0
    assert next(source) == "a text that nobody reads"
    assert planned.units == {"q": 64, "k": 32, "v": 32, "o": 64, "ffn": 88}
    assert (planned.family, planned.layers, planned.documents, planned.max_tokens) == ("Llama", 2, 7, 32)
    assert (planned.device, planned.kernel, planned.token_budget) == ("cpu", "eager", 640)
    assert planned.corpora == {"fr": ["a generator"], "zh": [str(path)]}
    atlas = run(folds=4, thresholds=())
    held = sum(value.nbytes for language in ("fr", "zh") for value in atlas.of(language).tensors("x").values())
    assert planned.statistics_bytes == held


def test_progress_after_every_batch(runs: list[tuple[int, int]]) -> None:
    seen: list[Progress] = []
    atlas = run(documents=9, progress=seen.append)
    assert len(seen) == len(runs)
    assert [each.language for each in seen] == sorted(each.language for each in seen)
    last = {each.language: each for each in seen}
    assert [(each.documents, each.asked, each.languages_done, each.languages) for each in last.values()] == [
        (9, 9, 0, 2),
        (9, 9, 1, 2),
    ]
    special = 9
    assert last["zh"].tokens == int(atlas.of("zh").tokens.sum()) + special
    for before, after in itertools.pairwise(seen):
        assert after.language != before.language or (
            after.documents > before.documents and after.tokens > before.tokens and after.seconds >= before.seconds
        )


def test_a_progress_line_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    run(progress=True)
    assert capsys.readouterr().err.startswith("babelscope: detection")
    run(progress=None)
    assert capsys.readouterr().err == "", "no terminal, no line"


def test_a_view_is_told_and_nothing_is_said_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks lie within each other: the detection, a language; a line of its own would come through the view."""
    told: list[list[str]] = []

    class View:
        def update(self, tasks: Sequence[Task]) -> None:
            told.append([str(one.name) for one in tasks])

    with shown(View()):
        run(progress=None)
    assert ["detection", "fr (1/2)"] in told
    assert ["detection", "zh (2/2)"] in told
    assert capsys.readouterr().err == ""


def test_a_run_that_stops_leaves_no_reader_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("babelscope.corpora.batching._PATIENCE", 60.0)

    def stop(progress: Progress) -> None:
        assert any(thread.name == "babelscope reader" for thread in threading.enumerate())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corpora={"fr": (text for text in itertools.cycle(CORPORA["fr"]))}, documents=None, progress=stop)
    assert not any(thread.name == "babelscope reader" for thread in threading.enumerate())


def test_the_model_is_returned_as_it_was() -> None:
    model = tiny_model("gpt2").train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    attention = model.config._attn_implementation

    def check() -> None:
        assert all(module.training for module in model.modules())
        assert model.config._attn_implementation == attention
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())

    run(model)
    check()

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, progress=stop)
    check()


def test_the_letters_of_the_languages_differ() -> None:
    assert set(LETTERS["fr"]) != set(LETTERS["zh"]), "or the corpora of this file would tell nothing apart"
