"""A checkpoint whose weights are not those of its configuration is refused by name; nothing is drawn at random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from babelscope import cli, load_model
from babelscope.errors import ConfigError, DataError
from fixtures_text import save_tiny_model

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def saved(folder: Path, change: Change = dict, **config: object) -> Path:
    """The tiny model with other tensors, or another configuration, in its files."""
    save_tiny_model(folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**content, **config}), encoding="utf-8")
    return folder


def prefixed(prefix: str) -> Change:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def test_the_model_as_it_was_saved_loads(tmp_path: Path) -> None:
    model, _ = load_model(saved(tmp_path / "model"))
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    loaded = dict(model.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items() if name in loaded)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "base_model.model.", "module."])
def test_a_prefix_is_named_and_stripped_only_when_told(tmp_path: Path, prefix: str) -> None:
    folder = saved(tmp_path / "model", prefixed(prefix))
    with pytest.raises(DataError, match=rf"missing.*no place.*begin with '{prefix}'.*--strip-prefix {prefix}"):
        load_model(folder)
    model, _ = load_model(folder, strip_prefix=prefix)
    plain, _ = load_model(saved(tmp_path / "plain"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def without(part: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "config", "expected"),
    [
        (without("layers.1.mlp.up_proj"), {}, r"1 tensors .* missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (without("lm_head"), {"tie_word_embeddings": False}, r"missing: lm_head\.weight"),
        (dict, {"num_hidden_layers": 9}, r"missing: model\.layers\.\d.* and \d+ more"),
        (dict, {"num_hidden_layers": 1}, r"no place in the model: model\.layers\.1.*Is num_hidden_layers"),
        (lambda tensors: {**tensors, "model.extra.weight": torch.ones(2, 2)}, {}, r"no place.*model\.extra\.weight"),
        (lambda tensors: {name: torch.zeros_like(each) for name, each in tensors.items()}, {}, "every weight .* zero"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Change, config: dict[str, object], expected: str) -> None:
    folder = saved(tmp_path / "model", change, **config)
    with pytest.raises(DataError, match=expected):
        load_model(folder)


def test_another_shape_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", intermediate_size=7)
    with pytest.raises(DataError, match=r"6 tensors have another shape: .*mlp"):
        load_model(folder)


def test_a_truncated_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert cli.main(["show", str(folder)]) in (0, 1)
    capsys.readouterr()
    text = tmp_path / "fr.txt"
    text.write_text("la mer est belle ce soir\n" * 4, encoding="utf-8")
    assert cli.main(["detect", str(folder), "--corpus", f"fr={text}", "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "could not load" in error
    assert "Traceback" not in error


def test_the_command_refuses_before_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "model", prefixed("_orig_mod."))
    text = tmp_path / "fr.txt"
    text.write_text("la mer est belle ce soir\n" * 4, encoding="utf-8")
    words = ["detect", str(folder), "--corpus", f"fr={text}", "--documents", "2", "--min-tokens", "2"]
    words += ["--max-tokens", "32", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 1
    assert "--strip-prefix _orig_mod." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main([*words, "--strip-prefix", "_orig_mod."]) == 0


def test_an_adapter_in_the_folder_is_named_and_applied_only_when_asked(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = saved(tmp_path / "model")
    model, _ = load_model(folder)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(folder)
    assert (folder / "adapter_config.json").is_file()
    with pytest.raises(ConfigError, match=r"holds a model and an adapter .* adapter=True \(--adapter\)"):
        load_model(folder)
    applied, _ = load_model(folder, adapter=True)
    ids = torch.arange(5)[None] + 3
    with torch.no_grad():
        assert torch.allclose(applied(ids).logits, tuned(ids).logits, atol=1e-5)
    (folder / "adapter_config.json").unlink()
    plain, _ = load_model(folder)
    with torch.no_grad():
        assert not torch.allclose(plain(ids).logits, tuned(ids).logits, atol=1e-4)
    with pytest.raises(ConfigError, match="holds no adapter"):
        load_model(folder, adapter=True)
