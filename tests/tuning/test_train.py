"""The recipe: what is trained on, what is measured, what is kept, and that a killed run goes on as if nothing was."""

from __future__ import annotations

import itertools
import json
import logging
import math
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

import babelscope as bs
from babelscope import Anatomy, NeuronAdapterConfig, NeuronSet
from babelscope.errors import ConfigError, DataError, MissingDependencyError, NumericsError, RunFolderError
from babelscope.evaluation.likelihood import likelihood
from babelscope.tuning.proof import changes
from babelscope.tuning.train import ADAPTER, CHECKPOINTS, HISTORY, MODEL, _restrain, pack
from babelscope.tuning.trainer import BitsPerByteTrainer
from builders import BOS, byte_llama, byte_tokenizer, make_texts
from tuning.cases import logits_of, neurons_of

RECIPE: dict[str, Any] = {"max_tokens": 24, "batch_size": 4, "epochs": 1, "evaluations": 4, "learning_rate": 1e-2}
TEXTS = [text + " pili pili usiku" for text in make_texts("sw", 40)]
HELD = {"sw": [text + " pili pili usiku" for text in make_texts("sw", 7)], "fr": make_texts("fr", 6)}


def tuned(model: nn.Module, neurons: Any = None, corpus: Any = TEXTS, held_out: Any = HELD, **options: Any) -> Any:
    neurons = neurons_of(model) if neurons is None else neurons
    options = {"language": "sw", **RECIPE, **options}
    return bs.tune(model, byte_tokenizer(), neurons, corpus, held_out=held_out, **options)


def test_packing_loses_nothing() -> None:
    texts = ["abc", "", "defghij", "k"]
    blocks = pack(byte_tokenizer(), texts, 5)
    tokenizer = byte_tokenizer()
    stream = [token for text in texts for token in [BOS, *tokenizer.encode(text, add_special_tokens=False), 2]]
    assert len(blocks) == math.ceil(len(stream) / 5)
    for number, block in enumerate(blocks):
        part = stream[number * 5 : number * 5 + 5]
        assert block["input_ids"].tolist() == part + [tokenizer.pad_token_id] * (5 - len(part))
        assert block["labels"].tolist() == part + [-100] * (5 - len(part))
        assert block["attention_mask"].tolist() == [1] * len(part) + [0] * (5 - len(part))


def test_the_target_gets_better_and_only_the_neurons_have_changed() -> None:
    model, base = byte_llama(), byte_llama()
    neurons = neurons_of(model)
    result = tuned(model, neurons)
    assert result.after["sw"] < result.before["sw"] - 0.1
    for values, judged in ((result.before, base), (result.after, result.model)):
        for language, texts in HELD.items():
            expected = likelihood(judged, byte_tokenizer(), texts, max_tokens=24).bits_per_byte
            assert values[language] == pytest.approx(expected, rel=1e-9)
    merged = result.merge()
    assert likelihood(merged, byte_tokenizer(), HELD["sw"], max_tokens=24).bits_per_byte == pytest.approx(
        result.after["sw"], rel=1e-5
    )
    assert changes(base, merged, neurons).exact


def test_history_is_whole_and_the_best_state_is_kept() -> None:
    """On texts of another kind the held-out ones get worse at some point, and that stops the training."""
    corpus = ["z" * 20] * 40
    result = tuned(byte_llama(), corpus=corpus, patience=2, evaluations=20, epochs=8)
    evaluations = result.history["evaluations"]
    best = min(evaluations, key=lambda each: each["bits_per_byte"]["sw"])
    assert best["step"] == result.best_step
    assert best["bits_per_byte"] == pytest.approx(result.after, rel=1e-6)
    assert [each["step"] for each in evaluations].index(result.best_step) == len(evaluations) - 3
    blocks = len(pack(byte_tokenizer(), corpus, 24))
    steps = result.history["steps"]
    assert [each["step"] for each in steps] == list(range(1, evaluations[-1]["step"] + 1))
    assert len(steps) < 8 * math.ceil(blocks / 4)
    assert all(math.isfinite(each["loss"]) and each["gradient_norm"] > 0 for each in steps)


def test_the_first_loss_is_that_of_the_first_batch() -> None:
    """In nats per token, over the tokens that aren't padding: an oracle of its own."""
    result = tuned(byte_llama(), corpus=TEXTS[:3], held_out=HELD, batch_size=64)
    model = byte_llama()
    blocks = pack(byte_tokenizer(), TEXTS[:3], 24)
    total, count = 0.0, 0
    for block in blocks:
        logits = logits_of(model, block["input_ids"][None], block["attention_mask"][None])[0].double()
        for place in range(1, int(block["attention_mask"].sum())):
            total -= float(logits[place - 1].log_softmax(-1)[block["input_ids"][place]])
            count += 1
    assert result.history["steps"][0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_each_epoch_has_every_block_once_in_an_order_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    step = BitsPerByteTrainer.training_step

    def recording(self: Any, model: nn.Module, inputs: Any, *args: Any) -> torch.Tensor:
        seen.extend(inputs["input_ids"].tolist())
        return step(self, model, inputs, *args)

    monkeypatch.setattr(BitsPerByteTrainer, "training_step", recording)
    tuned(byte_llama(), corpus=TEXTS[:5], epochs=2, seed=5, documents=None)
    blocks = [each["input_ids"].tolist() for each in pack(byte_tokenizer(), TEXTS[:5], 24)]
    assert len(blocks) % 4, "the last batch is not full"
    orders = [torch.randperm(len(blocks), generator=torch.Generator().manual_seed(5 + epoch)) for epoch in range(2)]
    assert seen == [blocks[index] for order in orders for index in order.tolist()]


def test_warm_up_and_cosine() -> None:
    rates = [each["learning_rate"] for each in tuned(byte_llama(), epochs=2, warmup=0.2).history["steps"]]
    total, rise = len(rates), math.ceil(0.2 * len(rates))
    for step, rate in enumerate(rates):
        through = (step - rise) / (total - rise)
        expected = step / rise if step < rise else 0.5 * (1 + math.cos(math.pi * through))
        assert rate == pytest.approx(1e-2 * expected, rel=1e-6)


def test_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tuned(byte_llama(), run_dir=tmp_path / "run")
    assert capsys.readouterr().out == "", "standard output belongs to the caller"
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {"run.json", HISTORY, ADAPTER}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["best_step"], record["after"]) == ("done", result.best_step, result.after)
    assert json.loads((tmp_path / "run" / HISTORY).read_text())["history"] == result.history
    model = byte_llama()
    again = tuned(model, run_dir=tmp_path / "run")
    assert (again.before, again.after, again.history) == (result.before, result.after, result.history)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(logits_of(again.model, ids, torch.ones_like(ids)), logits_of(result.model, ids, ids * 0 + 1))
    with pytest.raises(RunFolderError, match=r"learning_rate: then 0.01, now 0.02"):
        tuned(byte_llama(), run_dir=tmp_path / "run", learning_rate=2e-2)
    with pytest.raises(RunFolderError, match="trained"):
        tuned(byte_llama(), neurons_of(byte_llama(), seed=5), run_dir=tmp_path / "run")


@pytest.mark.parametrize("whole", [False, True])
def test_a_killed_run_goes_on_to_the_same_numbers(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: str) -> Any:
        model = byte_llama()
        return bs.tune(
            model, byte_tokenizer(), None if whole else neurons_of(model), TEXTS, held_out=HELD, language="sw",
            run_dir=tmp_path / folder, **RECIPE,
        )  # fmt: skip

    unbroken = run("unbroken")
    calls = 0
    evaluate = BitsPerByteTrainer.evaluate

    def killed(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(BitsPerByteTrainer, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    monkeypatch.undo()
    checkpoints = sorted((tmp_path / "killed" / CHECKPOINTS).iterdir())
    assert len(checkpoints) == 2
    torn = tmp_path / "killed" / CHECKPOINTS / "checkpoint-99"
    torn.mkdir()
    (torn / "optimizer.pt").write_bytes(b"half")  # the state would have been written last
    resumed = run("killed")
    assert resumed.history == unbroken.history
    assert resumed.after == unbroken.after
    assert not (tmp_path / "killed" / CHECKPOINTS).exists()
    place = Path(MODEL) / "model.safetensors" if whole else Path(ADAPTER) / "adapter_model.safetensors"
    first, second = (load_file(tmp_path / folder / place) for folder in ("unbroken", "killed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_lost(tmp_path: Path) -> None:
    model = byte_llama()
    neurons = neurons_of(model)
    with pytest.raises(
        NumericsError, match=r"step (\d+): .*not finite.*Lower the learning rate.*state before it is in"
    ) as found:
        tuned(model, neurons, learning_rate=1e30, run_dir=tmp_path / "run")
    assert int(str(found.value).split()[1].rstrip(":")) > 1
    kept = load_file(tmp_path / "run" / ADAPTER / "adapter_model.safetensors")
    assert all(each.isfinite().all() for each in kept.values())
    assert any(each.abs().max() > 1e20 for each in kept.values()), "the state of the step before, not of the start"
    base = byte_llama()
    with pytest.raises(NumericsError, match="give a run folder"):
        tuned(base, neurons, learning_rate=1e30)
    expected = byte_llama().state_dict()
    assert all(torch.equal(each, expected[name]) for name, each in base.state_dict().items())


def test_without_texts_of_its_own_the_last_tenth_is_held_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "babelscope"):
        result = tuned(byte_llama(), held_out={"fr": HELD["fr"]})
    assert list(result.before) == ["sw", "fr"]
    expected = likelihood(byte_llama(), byte_tokenizer(), TEXTS[-4:], max_tokens=24).bits_per_byte
    assert result.before["sw"] == pytest.approx(expected)
    assert "the last 4 documents are held out" in caplog.text


def test_held_out_texts_are_never_trained_on(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "babelscope.tuning.train.pack", lambda tokenizer, texts, n: seen.extend(texts) or pack(tokenizer, texts, n)
    )
    tuned(byte_llama(), held_out={"sw": TEXTS[:5]})
    assert seen == TEXTS[5:]
    assert "5 of 40 documents are held out" in caplog.text


def test_documents_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(
        "babelscope.tuning.train.pack", lambda tokenizer, texts, n: seen.append(texts) or pack(tokenizer, texts, n)
    )
    for seed, corpus in ((0, TEXTS), (0, iter(TEXTS)), (1, TEXTS)):
        tuned(byte_llama(), corpus=corpus, documents=10, seed=seed)
    assert [len(each) for each in seen] == [10, 10, 10]
    assert seen[1] == TEXTS[:10], "what can be read only once is not searched to its end"
    assert seen[0] != seen[2]


def test_fewer_documents_than_asked_for_are_all_used(caplog: pytest.LogCaptureFixture) -> None:
    tuned(byte_llama(), documents=400)
    assert "fewer documents than asked for: 40 of 40 documents used (400 asked for)" in caplog.text


def test_other_things_to_train() -> None:
    """The arms of a comparison: an adapter of PEFT, and all weights."""
    lora = tuned(byte_llama(), LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
    assert lora.after["sw"] < lora.before["sw"]
    assert type(lora.merge()) is type(byte_llama())
    model = byte_llama()
    whole = bs.tune(model, byte_tokenizer(), None, TEXTS, held_out=HELD, language="sw", **RECIPE)
    assert whole.model is model is whole.merge()
    assert whole.after["sw"] < whole.before["sw"]
    untouched = [
        name for name, each in byte_llama().state_dict().items() if torch.equal(each, model.state_dict()[name])
    ]
    assert untouched == []


KEPT = make_texts("fr", 30)


@pytest.mark.parametrize("whole", [False, True])
def test_kept_languages_move_less(whole: bool) -> None:
    after = []
    for keep in ({}, {"fr": KEPT}):
        model = byte_llama()
        neurons = None if whole else neurons_of(model)
        result = bs.tune(
            model, byte_tokenizer(), neurons, TEXTS, language="sw", held_out=HELD, keep=keep,
            **{**RECIPE, "epochs": 4, "patience": 9, "learning_rate": 3e-2 if neurons is not None else 1e-3},
        )  # fmt: skip
        assert result.after["sw"] < result.before["sw"] - 0.1
        after.append(result.after["fr"] - result.before["fr"])
    alone, beside = after
    assert beside < min(alone, 0), "they are trained on too"


def test_kept_blocks_are_of_every_language_as_many(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[list[int]] = []
    step = BitsPerByteTrainer.training_step

    def recording(self: Any, model: nn.Module, inputs: Any, *args: Any) -> torch.Tensor:
        seen.extend(inputs["input_ids"].tolist())
        return step(self, model, inputs, *args)

    monkeypatch.setattr(BitsPerByteTrainer, "training_step", recording)
    corpora = {"fr": [*HELD["fr"], *KEPT], "zh": make_texts("zh", 2)}
    with caplog.at_level(logging.INFO):
        tuned(byte_llama(), keep=corpora, keep_share=0.25, documents=None, epochs=2, patience=9)
    blocks = {name: [each["input_ids"].tolist() for each in pack(byte_tokenizer(), texts, 24)]
              for name, texts in {"sw": TEXTS, "fr": KEPT, "zh": corpora["zh"]}.items()}  # fmt: skip
    own, share = len(blocks["sw"]), round(len(blocks["sw"]) * 0.25)
    assert len(blocks["zh"]) < share < len(blocks["fr"])
    assert f"zh: {len(blocks['zh'])} blocks to keep it by, where {share} would do; used again" in caplog.text
    turns = [
        block
        for pair in itertools.zip_longest(blocks["fr"][:share], blocks["zh"])
        for block in pair
        if block is not None
    ]
    again = itertools.cycle(turns)
    for epoch in (seen[: own + share], seen[own + share :]):
        kept = [next(again) for _ in range(share)]
        assert sorted(epoch) == sorted(blocks["sw"] + kept)
        assert sorted(epoch[-share:]) != sorted(kept), "nothing is mixed"


@pytest.mark.parametrize("kind", ["neurons", "lora", "whole"])
def test_others_lose_no_more_than_was_asked(kind: str, tmp_path: Path) -> None:
    """All changes are scaled by one share: the largest 64th at which no other language loses more.

    The limit is half of what the free training costs, which the test measures, and the rates are low enough that a
    training is no chaos: so the test asks the same on every processor, whatever rounding does to the numbers.
    """
    noise = random.Random(0)
    held = {**HELD, "zh": ["".join(noise.choices("{}[]<>~^|#@%&", k=60)) for _ in range(4)]}
    options = {**RECIPE, "held_out": held, "language": "sw", "patience": 9}
    options |= {"learning_rate": {"neurons": 1e-2, "lora": 1e-2, "whole": 3e-3}[kind], "epochs": 4}

    def train(**more: Any) -> Any:
        model = byte_llama()
        trained = {"neurons": lambda: neurons_of(model), "lora": lambda: LoraConfig(task_type="CAUSAL_LM")}
        what = trained[kind]() if kind in trained else None
        return bs.tune(model, byte_tokenizer(), what, TEXTS, **{**options, **more})

    def lost(after: Any) -> float:
        return max(100 * (after[name] / free.before[name] - 1) for name in ("fr", "zh"))

    free = train()
    limit = lost(free.after) / 2
    assert limit > 0.2, "nothing was to be done"
    result = train(others_at_most=limit, run_dir=tmp_path / "run")
    assert 0 < result.share < 1 == free.share
    assert result.share * 64 == int(result.share * 64)
    assert lost(result.after) <= limit
    assert result.after["sw"] < result.before["sw"]
    base = dict(train(learning_rate=1e-12).model.named_parameters())
    now, end = (dict(each.model.named_parameters()) for each in (result, free))
    for name, each in now.items():
        scaled = base[name] + result.share * (end[name] - base[name])
        torch.testing.assert_close(each, scaled if each.requires_grad else base[name], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        for name, each in now.items():
            if each.requires_grad:
                each.copy_(base[name] + (result.share + 1 / 64) * (end[name] - base[name]))
    more = {name: likelihood(result.model, byte_tokenizer(), held[name], max_tokens=24).bits_per_byte for name in held}
    assert lost(more) > limit, "more was possible"
    again = train(others_at_most=limit, run_dir=tmp_path / "run")
    assert (again.share, again.after) == (result.share, result.after)
    for name, texts in held.items():
        found = likelihood(again.model, byte_tokenizer(), texts, max_tokens=24).bits_per_byte
        assert found == pytest.approx(result.after[name], rel=1e-5)
    assert train(others_at_most=1e9).share == 1


def test_where_nothing_is_allowed_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    part = nn.Linear(3, 2)
    start = {name: each.detach() + 1 for name, each in part.named_parameters()}

    def measure() -> dict[str, float]:
        return {
            "sw": 2.0,
            "fr": 1 + sum(float((each - start[name]).abs().sum()) for name, each in part.named_parameters()),
        }

    share, after = _restrain(part, start, measure, {"sw": 2.0, "fr": 1.0}, measure(), "sw", 1.0)
    assert (share, after["fr"]) == (0, 1)
    assert all(torch.equal(each, start[name]) for name, each in part.named_parameters())
    assert "any part of the changes costs another language more than 1 %, so none is left" in caplog.text
    with pytest.raises(ConfigError, match="by held-out texts of other languages, found none"):
        tuned(byte_llama(), held_out=None, others_at_most=1.0)
    with pytest.raises(ConfigError, match="wanted others_at_most above 0 percent, found 0"):
        tuned(byte_llama(), others_at_most=0.0)


def test_what_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match="sw is to be trained, so it can't be kept as it is"):
        tuned(byte_llama(), keep={"sw": KEPT})
    with pytest.raises(DataError, match="fr: found no text to keep it by"):
        tuned(byte_llama(), keep={"zh": make_texts("zh", 2), "fr": HELD["fr"]})
    with pytest.raises(ConfigError, match="wanted epochs, keep_share and learning_rate above 0"):
        tuned(byte_llama(), keep={"fr": KEPT}, keep_share=0.0)


def test_settings_and_corpora_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = byte_llama()
    with pytest.raises(ConfigError, match="no neurons"):
        tuned(model, neurons_of(model) - neurons_of(model))
    with pytest.raises(ConfigError, match=r"unknown settings \['epoch'\].*epochs"):
        tuned(model, epoch=3)
    with pytest.raises(ConfigError, match="batch_size of 1 or more, found 0"):
        tuned(model, batch_size=0)
    with pytest.raises(ConfigError, match=r"found 0, 1.0, 0.01 and 0.1"):
        tuned(model, epochs=0)
    with pytest.raises(DataError, match=r"too few.*Give more documents"):
        tuned(model, corpus=TEXTS[:1], held_out={})
    with pytest.raises(DataError, match="no usable document"):
        tuned(model, corpus=["", " "])
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "babelscope\[tune\]"'):
        tuned(model)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, r"wants FSDP version 2, found version 1\..*--fsdp_version 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, r"over GPUs.*found none.*Launch without it"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, r"launched with DEEPSPEED.*--use_fsdp --fsdp_version 2"),
    ],
)
def test_launches_that_cannot_be_used(
    launch: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "")  # is changed, so to be put back
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        tuned(byte_llama(), run_dir=tmp_path / "run")


def test_trl_trains_it_unmodified_also_with_checkpointed_activations(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    curves = []
    for checkpointing in (False, True):
        model = byte_llama()
        neurons = NeuronSet.from_indices(Anatomy(model, check=False), {"ffn": {0: [1, 2], 1: [3]}, "v": {0: [4]}})
        settings = SFTConfig(
            output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, report_to="none",
            max_length=24, packing=False, disable_tqdm=True, save_strategy="no", bf16=False, use_cpu=True,
            gradient_checkpointing=checkpointing, logging_steps=1,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_dict({"text": TEXTS[:8]}),
            processing_class=byte_tokenizer(),
            peft_config=NeuronAdapterConfig.from_neurons(neurons),
        )
        trainer.train()
        curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.model.is_gradient_checkpointing is checkpointing
        report = changes(byte_llama(), trainer.model.merge_and_unload(), neurons)
        assert report.exact
        assert sum(each.values > 0 for each in report.tensors) == 7
    assert len(curves[0]) == 3
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_resuming_runs_no_code_of_a_checkpoint(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer keeps optimiser, schedule and random states as torch files: weights_only=True is what guards them."""
    monkeypatch.setattr(TrainerCallback, "on_save", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tuned(byte_llama(), run_dir=tmp_path / "run")
    monkeypatch.undo()
    (checkpoint,) = (tmp_path / "run" / CHECKPOINTS).iterdir()
    torch.save(Bomb(tmp_path / "exploded"), checkpoint / name)
    if name == "training_args.bin":  # is never read
        tuned(byte_llama(), run_dir=tmp_path / "run")
    else:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            tuned(byte_llama(), run_dir=tmp_path / "run")
    assert not (tmp_path / "exploded").exists()
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "bomb")
    torch.load(tmp_path / "bomb", weights_only=False)
    assert (tmp_path / "exploded").exists(), "the bomb is one"
