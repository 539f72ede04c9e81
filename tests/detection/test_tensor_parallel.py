"""One model held by two processes (tensor parallel, gloo) gives the atlas that one process gives.

Axes: `B` sequences, `N` units. In float64, so that selected sets are equal to the last neuron.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from babelscope import Anatomy, Atlas, neuron_impacts
from babelscope.detection.detect import Progress
from babelscope.detection.processes import Processes
from babelscope.errors import BabelscopeError, ConfigError, UnsupportedModelError
from babelscope.models.load import fingerprint, load_model
from babelscope.models.observe import Observer
from babelscope.models.parallel import check_parts, find_mesh
from detection.test_detect import assert_bit_equal, assert_equal_up_to_rounding, run
from detection.test_processes import free_port
from fixtures_text import character_tokenizer
from tiny import ragged_batch, tiny_model

torch.set_num_threads(1)

FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "olmo2", "mixtral", "gpt_neox")
"""Plain, Q/K norms, soft caps, fused and gathered projections, norms over all heads, experts, fused by head."""


def _model(name: str) -> Any:
    """Heads and units that two processes can share."""
    if name != "gpt_neox":
        return tiny_model(name, torch.float64)
    import tiny

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 44}
    config = tiny.GPTNeoXConfig(**tiny._TOKENS, **sizes, rope_parameters={**tiny._ROPE, "partial_rotary_factor": 0.5})
    return tiny._build(tiny.GPTNeoXForCausalLM, config).double()


def _work(rank: int, count: int, port: int, folder: Path, task: Callable[..., None], name: str) -> None:
    """What torchrun would start."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    try:
        model, _ = load_model(folder / name, dtype="float64", tensor_parallel=True)
        if hasattr(model.config, "num_experts_per_tok"):
            model.set_experts_implementation("eager")
        task(model, rank, folder)
    except BabelscopeError as error:
        (folder / f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        os._exit(3)


def _start(folder: Path, task: Callable[..., None], name: str, count: int = 2, ends: tuple[int, ...] = (0, 0)) -> None:
    """Runs `task(model, rank, folder)` in processes that hold the model together."""
    if not (folder / name).exists():
        _model(name).save_pretrained(folder / name)
        character_tokenizer().save_pretrained(folder / name)
    context, port = multiprocessing.get_context("fork"), free_port()
    children = [context.Process(target=_work, args=(rank, count, port, folder, task, name)) for rank in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    found = tuple(child.exitcode for child in children)
    assert found == ends or (found[0] == ends[0] == -signal.SIGKILL and found[1]), "who lost a peer ends too, somehow"


def _impacts(model: Any, rank: int, folder: Path) -> None:
    found = neuron_impacts(model, *ragged_batch(model))
    torch.save({"impacts": found, "fingerprint": fingerprint(model)}, folder / f"found-{rank}.pt")


@pytest.mark.parametrize("name", FAMILIES)
def test_impacts_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    _start(tmp_path, _impacts, name)
    model = _model(name)
    expected = neuron_impacts(model, *ragged_batch(model))
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt", weights_only=True)
        assert found["fingerprint"] == fingerprint(model), "sets and atlases know the model again"
        for slot, layers in expected.items():
            for layer, values_BN in enumerate(layers):
                torch.testing.assert_close(found["impacts"][slot][layer], values_BN, rtol=1e-5, atol=1e-9)


def _detect(model: Any, rank: int, folder: Path) -> None:
    run(model, run_dir=folder / "run", checkpoint_seconds=0.0).save(folder / f"rank-{rank}.safetensors")


def _detect_killed(model: Any, rank: int, folder: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.language == "zh" and progress.documents > 3:
            os.kill(os.getpid(), signal.SIGKILL)

    run(model, run_dir=folder / "run", checkpoint_seconds=0.0, progress=stop)


def test_the_same_atlas_as_one_process_also_after_a_kill(tmp_path: Path) -> None:
    alone = run(_model("qwen3"))
    _start(tmp_path, _detect_killed, "qwen3", ends=(-signal.SIGKILL, 1))
    kept = sorted(path.name for path in (tmp_path / "run" / "languages").iterdir() if path.suffix == ".safetensors")
    assert kept == ["fr.safetensors", "zh.partial.safetensors"], "one checkpoint, as one process would keep"
    _start(tmp_path, _detect, "qwen3")
    found = [Atlas.load(tmp_path / f"rank-{rank}.safetensors") for rank in range(2)]
    written = Atlas.load(tmp_path / "run")
    assert_bit_equal(found[1], found[0])
    assert_bit_equal(written, found[0])
    assert_equal_up_to_rounding(written, alone, 2e-7)
    assert written.corpora == alone.corpora, "documents counted once, not once per process"
    assert written.model["fingerprint"] == alone.model["fingerprint"]
    for language, rule in itertools.product(alone.languages, ("contrast", "minimum", "lape")):
        mine, theirs = (atlas.select(language, rule=rule, budget=0.05) for atlas in (written, alone))
        assert len(mine) >= (1 if rule == "lape" else 10)
        assert set(mine) == set(theirs)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


def _released(model: Any, rank: int, folder: Path) -> None:
    run(model, preset="released").save(folder / f"released-{rank}.safetensors")


def test_the_published_codes_scores(tmp_path: Path) -> None:
    _start(tmp_path, _released, "llama")
    assert_equal_up_to_rounding(
        Atlas.load(tmp_path / "released-1.safetensors"), run(_model("llama"), preset="released"), 2e-7
    )


def _anatomy(model: Any, rank: int, folder: Path) -> None:
    Anatomy(model)


def test_more_processes_than_key_value_heads(tmp_path: Path) -> None:
    _start(tmp_path, _anatomy, "llama_one_kv_head", ends=(3, 3))
    assert (tmp_path / "error-0.txt").read_text() == (
        "UnsupportedModelError: layer 0 has 1 key-value heads, which 2 processes can't share evenly. "
        "Start a number of processes that divides 1, or load the model with device_map."
    )


def _held(ranks: int | None, mesh: int | None) -> Any:
    """As much of a model as is looked at: its ranks as transformers counts them, and a parameter over such a mesh."""
    weight = SimpleNamespace() if mesh is None else SimpleNamespace(full_tensor=None, device_mesh=_mesh(mesh))
    return SimpleNamespace(_tp_size=ranks, parameters=lambda: iter([weight]))


def _mesh(size: int) -> Any:
    return SimpleNamespace(size=lambda: size)


@pytest.mark.parametrize(("mesh", "found"), [(None, "plain parts"), (4, "FSDP or another plan besides")])
def test_a_model_held_in_another_way(mesh: int | None, found: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"sharded by the tensor-parallel plan .* found {found}"):
        find_mesh(_held(2, mesh))


def test_other_processes_beside_those_that_hold_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    with pytest.raises(ConfigError, match=r"2 of 4 processes .* Start one torchrun per copy of the model, .* --shard"):
        find_mesh(_held(2, 2))
    assert find_mesh(_held(4, 4)).size() == 4
    assert find_mesh(_held(None, None)) is None


def test_a_quantised_model() -> None:
    anatomy: Any = SimpleNamespace(
        mesh=_mesh(2), model=SimpleNamespace(), config=SimpleNamespace(quantization_config={"bits": 4})
    )
    with pytest.raises(UnsupportedModelError, match="quantised and held by several processes"):
        check_parts(anatomy)


def test_out_of_memory_ends_the_run_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halved by one process alone, the batches would no longer be those of the others."""

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Processes, "join", classmethod(lambda cls, one_model=False: Processes(one_model=True)))
    monkeypatch.setattr(Observer, "run", full)
    with pytest.raises(ConfigError, match=r"which can't halve the batch by itself\. Lower token_budget"):
        run()


def test_one_process_can_not_share_a_model_out(tmp_path: Path) -> None:
    _model("llama").save_pretrained(tmp_path / "llama")
    character_tokenizer().save_pretrained(tmp_path / "llama")
    with pytest.raises(ConfigError, match="tensor_parallel shares a model out over several processes, found one"):
        load_model(tmp_path / "llama", tensor_parallel=True)
