"""`babelscope tune`: what was typed reaches the library, and what came of it the screen and the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import babelscope as bs
from babelscope import cli
from fixtures_text import save_tiny_model, write_texts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("world")
    model = save_tiny_model(folder / "model")
    loaded, _ = bs.load_model(model)
    units = {"ffn": {0: [1, 5, 9], 1: [2]}, "q": {1: [3]}, "o": {0: [7]}}
    bs.NeuronSet.from_indices(bs.Anatomy(loaded), units).save(folder / "sw.safetensors")
    return model, write_texts(folder / "texts", documents=30), folder / "sw.safetensors"


def words(world: Any, out: Path, *more: object) -> list[str]:
    model, texts, neurons = world
    found = ["tune", model, "--neurons", neurons, "--corpus", f"sw={texts['sw']}", "--held-out", f"fr={texts['fr']}"]
    found += ["--documents", 20, "--max-tokens", 32, "--epochs", 2, "--learning-rate", "0.01", "--out", out, *more]
    return [str(each) for each in found]


def test_from_documents_to_a_merged_model(world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(world, tmp_path / "run", "--merge", "--json")) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["language"], content["neurons"]) == ("sw", 6)
    assert content["parameters"] == 4 * 3 * 32 + 32 + 32
    assert content["after"]["sw"] < content["before"]["sw"]
    assert set(content["after"]) == {"sw", "fr"}
    assert content["merged"]["exact"]
    assert len(content["merged"]["changed"]) == 8
    merged, tokenizer = bs.load_model(content["merged"]["folder"])
    base = AutoModelForCausalLM.from_pretrained(world[0])
    adapted = peft.PeftModel.from_pretrained(base, content["adapter"])
    ids = torch.tensor([tokenizer("kaba twa")["input_ids"]])
    assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-5)

    assert cli.main(words(world, tmp_path / "run")) == 0
    text = capsys.readouterr().out
    assert "Tuned 6 neurons on sw Swahili" in text
    assert f"{content['before']['sw']:.4f}" in text
    assert f"{content['after']['fr']:.4f}" in text


def test_what_is_typed_reaches_the_library(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def stop(*args: Any, **options: Any) -> None:
        asked.update(options)
        raise bs.errors.ConfigError("enough")

    monkeypatch.setattr("babelscope.tuning.train.tune", stop)
    keep = ["--keep", f"zh={world[1]['fr']}", "--keep-share", 0.5]
    keep += ["--others-at-most", 1.5]
    assert cli.main(words(world, tmp_path / "run", "--batch-size", 2, "--seed", 3, "--force", *keep)) == 1
    names = ("documents", "max_tokens", "batch_size", "epochs", "learning_rate", "seed", "force", "language", "run_dir")
    expected = (20, 32, 2, 2.0, 0.01, 3, True, "sw", tmp_path / "run")
    assert tuple(asked[name] for name in names) == expected
    assert list(asked["held_out"]) == ["fr"]
    assert (list(asked["keep"]), asked["keep_share"]) == (["zh"], 0.5)
    assert asked["others_at_most"] == 1.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--corpus", "fr={fr}"], "wanted one --corpus"),
        (["--held-out", "fr={fr}"], "several sources of fr"),
        (["--keep", "sw={fr}"], "sw is to be trained"),
        (["--batch-size", "0"], "batch_size of 1 or more"),
        (["--others-at-most", "0"], "wanted others_at_most above 0 percent"),
    ],
)
def test_errors(world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    more = [each.format(fr=world[1]["fr"]) for each in more]
    assert cli.main(words(world, tmp_path / "run", *more)) == 1
    assert message in capsys.readouterr().err
