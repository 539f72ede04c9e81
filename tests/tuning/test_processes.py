"""Two processes (gloo, forks of this one) train as one does, each with the whole model (DDP) or with half (FSDP).

Accelerate shards over GPUs only; here it is made to do so over processes on the CPU, and the rest is as on GPUs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import babelscope as bs
import tiny
from babelscope import Anatomy, NeuronAdapterConfig, NeuronSet
from babelscope.errors import NumericsError, UnsupportedModelError
from babelscope.tuning.proof import changes
from babelscope.tuning.train import ADAPTER, CHECKPOINTS, HISTORY, MODEL, pack
from babelscope.tuning.trainer import BitsPerByteTrainer
from builders import byte_llama, byte_tokenizer, make_texts
from tuning.cases import logits_of, neurons_of
from tuning.test_train import HELD, RECIPE, TEXTS

torch.set_num_threads(1)

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="for the CPU alone: a process that is forked can't use a GPU of the first"
)

FEW = TEXTS[:19]
ADAPTED = Path(ADAPTER) / "adapter_model.safetensors"
KILLED = 9


def few_neurons() -> NeuronSet:
    """Of some modules one row, of which the second process then has no part."""
    units = {"ffn": {0: [3], 1: [1, 5, 9]}, "q": {0: [2]}, "v": {1: [0, 1]}, "o": {0: [4]}}
    return NeuronSet.from_indices(Anatomy(byte_llama(), check=False), units)


def tuned(folder: Path, neurons: NeuronSet | None, model: nn.Module | None = None, **options: Any) -> Any:
    return bs.tune(
        model or byte_llama(), byte_tokenizer(), neurons, FEW, language="sw", run_dir=folder,
        **{**RECIPE, "held_out": HELD, **options},
    )  # fmt: skip


def keeping(keeps: bool) -> dict[str, Any]:
    """Few blocks of another language, so that some batches of some process have none; and a third one that loses."""
    held_out = {**HELD, "th": ["{}[]<>~^|" * 7, "^{|}<[]>~" * 5]}
    keep = {"zh": make_texts("zh", 9)}
    return {"keep": keep, "keep_share": 0.4, "held_out": held_out, "others_at_most": 0.05} if keeps else {}


def shard_on_the_cpu() -> None:
    """Has accelerate do for processes on the CPU what it does for those on GPUs when FSDP is asked for."""
    ordinary = AcceleratorState.__init__

    def with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        ordinary(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_fsdp


def start(sharded: bool, task: Callable[..., None], *arguments: Any) -> list[int]:
    """Runs a task in two processes as `accelerate launch` would start them; their exit codes."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank: int) -> None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        place |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
        if sharded:
            place |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": 2, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
            place["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
            shard_on_the_cpu()
        os.environ.update({name: str(value) for name, value in place.items()})
        AcceleratorState._reset_state(reset_partial_state=True)
        task(rank, *arguments)

    children = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
        child.kill()
    return [child.exitcode for child in children]


def train(rank: int, folder: Path, killed: bool, whole: bool, keeps: bool) -> None:
    evaluate, calls = BitsPerByteTrainer.evaluate, itertools.count(1)

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        if next(calls) == 4 and killed:
            self.accelerator.wait_for_everyone()
            os._exit(KILLED)
        return evaluate(self, *args, **options)

    BitsPerByteTrainer.evaluate = counting  # type: ignore[method-assign]
    result = tuned(folder, None if whole else few_neurons(), **keeping(keeps))
    held = [each.to_local() if isinstance(each, DTensor) else each for each in result.model.parameters()]
    about = {"after": dict(result.after), "parameters": result.parameters, "held": sum(each.numel() for each in held)}
    (folder.parent / f"rank-{rank}.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("sharded", "whole", "keeps"),
    [(False, False, False), (False, False, True), (True, False, True), (True, True, False)],
)
def test_killed_and_resumed_they_give_the_curve_of_one(sharded: bool, whole: bool, keeps: bool, tmp_path: Path) -> None:
    folder, run = tmp_path / "alone", tmp_path / "run"
    one = tuned(folder, None if whole else few_neurons(), **keeping(keeps))
    if keeps:
        assert 0 < one.share < 1
    else:
        assert len(pack(byte_tokenizer(), FEW, 24)) % 4, "the last batch is not full"
    assert start(sharded, train, run, True, whole, keeps) == [KILLED, KILLED]
    kept = sorted(int(path.name.partition("-")[2]) for path in (run / CHECKPOINTS).iterdir())
    assert len(kept) == 2
    assert start(sharded, train, run, False, whole, keeps) == [0, 0]

    two = json.loads((run / HISTORY).read_text())
    steps, expected = two["history"]["steps"], one.history["steps"]
    assert len(steps) > kept[-1]
    assert [each["loss"] for each in steps] == pytest.approx([each["loss"] for each in expected], rel=1e-5)
    norms = [each["gradient_norm"] for each in expected]
    assert [each["gradient_norm"] for each in steps] == pytest.approx(norms, rel=1e-4)
    assert [each["step"] for each in two["history"]["evaluations"]] == [
        each["step"] for each in one.history["evaluations"]
    ]
    assert two["share"] == one.share
    assert two["before"] == pytest.approx(one.before, rel=1e-6)
    assert two["after"] == pytest.approx(one.after, rel=1e-5)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first["after"] == second["after"]
    total = sum(each.numel() for each in one.model.parameters())
    assert first["parameters"] == second["parameters"] == one.parameters
    if sharded:
        assert first["held"] + second["held"] == total
        assert 0.4 * total < second["held"] <= 0.5 * total
    else:
        assert first["held"] == second["held"] == total

    file = Path(MODEL) / "model.safetensors" if whole else ADAPTED
    here, there = load_file(run / file), load_file(folder / file)
    assert {name: each.shape for name, each in here.items()} == {name: each.shape for name, each in there.items()}
    assert all(torch.allclose(each, there[name], atol=2e-5) for name, each in here.items())
    assert any(each.abs().max() > 0.01 for each in here.values())
    assert {path.name for path in run.iterdir()} - {".lock"} == {"run.json", HISTORY, file.parts[0]}
    if not whole:
        model = byte_llama()
        merged = tuned(run, few_neurons(), **keeping(keeps)).merge()
        assert changes(model, merged, few_neurons()).exact
        ids = torch.arange(3, 40)[None]
        adapted = PeftModel.from_pretrained(model, folder / ADAPTER)
        assert torch.allclose(logits_of(merged, ids, ids * 0 + 1), logits_of(adapted, ids, ids * 0 + 1), atol=1e-3)


def share(rank: int, folder: Path, model: nn.Module, neurons: NeuronSet) -> None:
    tuned(folder, neurons, model, epochs=0.5)


@pytest.mark.parametrize("name", ["bfloat16", "experts"])
def test_deltas_in_float32_and_experts_are_sharded_too(name: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 272, "num_local_experts": 4, "num_experts_per_tok": 2}
    models = {
        "bfloat16": lambda: byte_llama(torch.bfloat16),
        "experts": lambda: tiny._build(tiny.MixtralForCausalLM, tiny.MixtralConfig(**{**tiny._GROUPED, **sizes})),
    }
    neurons = neurons_of(models[name]())
    one = tuned(tmp_path / "alone", neurons, models[name](), epochs=0.5)
    assert start(True, share, tmp_path / "run", models[name](), neurons) == [0, 0]
    two = json.loads((tmp_path / "run" / HISTORY).read_text())
    losses = [[each["loss"] for each in history["steps"]] for history in (one.history, two["history"])]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if name == "bfloat16" else 1e-5)
    here, there = (load_file(tmp_path / run / ADAPTED) for run in ("run", "alone"))
    assert {key: each.dtype for key, each in here.items()} == dict.fromkeys(there, torch.float32)
    assert all(torch.allclose(each, there[key], atol=3e-3) for key, each in here.items())
    assert any(each.abs().max() > 0.02 for each in here.values())


def ruin(rank: int, folder: Path) -> None:
    with pytest.raises(NumericsError, match=r"step (\d+): .*not finite.*state before it is in"):
        tuned(folder, neurons_of(byte_llama()), learning_rate=1e30)


def test_sharing_a_model_they_stop_together_before_it_is_lost(tmp_path: Path) -> None:
    assert start(True, ruin, tmp_path / "run") == [0, 0]
    kept = load_file(tmp_path / "run" / ADAPTED)
    assert all(each.isfinite().all() for each in kept.values())
    assert any(each.abs().max() > 1e20 for each in kept.values())


def use_the_trainer(rank: int, folder: Path) -> None:
    """As a script of one's own would, launched with --fsdp_state_dict_type FULL_STATE_DICT."""
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    settings = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1, remove_unused_columns=False,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    model = get_peft_model(base, NeuronAdapterConfig.from_neurons(few_neurons()))
    trainer = Trainer(model=model, args=settings, train_dataset=pack(byte_tokenizer(), TEXTS[:8], 24))
    trainer.train()
    with pytest.raises(UnsupportedModelError, match=r"shared out over processes \(FSDP\).*saved adapter"):
        model.merge_and_unload()
    trainer.save_model(str(folder / ADAPTER))


def test_the_trainer_of_transformers_shards_the_adapter(tmp_path: Path) -> None:
    byte_llama().save_pretrained(tmp_path / "model")
    assert start(True, use_the_trainer, tmp_path) == [0, 0]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    merged = PeftModel.from_pretrained(base, tmp_path / ADAPTER).merge_and_unload()
    report = changes(byte_llama(), merged, few_neurons())
    assert report.exact
    assert sum(each.values > 0 for each in report.tensors) == 9
