"""Models in GGUF files: the same weights as the checkpoint, and what is said when a file cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from babelscope import load_model
from babelscope.errors import DataError, MissingDependencyError
from babelscope.models.load import ModelIdentity, fingerprint
from babelscope.stages.study import Model
from babelscope.study.config import contradictions, study_of
from babelscope.study.keys import model_identity
from tiny import VOCABULARY, tiny_model

torch.set_num_threads(1)


def write_gguf(
    path: Path,
    name: str = "llama",
    architecture: str | None = None,
    file_type: gguf.LlamaFileType | None = None,
    blocks: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """The tiny model of that name in the layout that llama.cpp's converter writes, matrices in `blocks` or float32."""
    model = tiny_model(name)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture or name)
    writer.add_name("tiny")
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if name == "gemma3":
        writer.add_key_length(head)
        writer.add_sliding_window(config.sliding_window)
    else:
        writer.add_rope_dimension_count(head)
    tokens = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens += [f"<{number}>" for number in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(VOCABULARY)])
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH.GEMMA3 if name == "gemma3" else gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers
    )
    tied = config.tie_word_embeddings
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and tied:
            continue
        array = value.float().numpy()
        if name == "llama" and ("q_proj" in key or "k_proj" in key):
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            array = array.reshape(heads, 2, head // 2, -1).swapaxes(1, 2).reshape(array.shape)
        if name == "gemma3" and "norm" in key:
            array = array + np.float32(1)
        array, raw_dtype = np.ascontiguousarray(array), None
        if blocks is not None and array.ndim == 2 and array.shape[1] % 32 == 0:
            array, raw_dtype = gguf.quantize(array, blocks), blocks
        writer.add_tensor(names.get_name(key, (".weight", ".bias")), array, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_weights_are_those_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", name, file_type=gguf.LlamaFileType.ALL_F32)
    model, tokenizer = load_model(file, dtype="float32")
    expected = dict(tiny_model(name).named_parameters())
    assert set(dict(model.named_parameters())) == set(expected)
    for key, value in model.named_parameters():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=key)
    assert not model.training
    assert len(tokenizer("ab")["input_ids"]) >= 2


def test_a_folder_with_one_file_and_provenance(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", file_type=gguf.LlamaFileType.MOSTLY_Q4_K_M)
    identity = ModelIdentity.of(load_model(tmp_path, dtype="float32")[0])
    assert identity.name == str(file)
    assert identity.fingerprint == fingerprint(tiny_model("llama"))
    assert identity.as_json()["quantization"] == "Q4_K_M"
    model, tokenizer = load_model(file, dtype="float32")
    model.save_pretrained(tmp_path / "ordinary")
    tokenizer.save_pretrained(tmp_path / "ordinary")
    again = ModelIdentity.of(load_model(tmp_path / "ordinary")[0])
    assert (again.quantization, again.fingerprint) == ("Q4_K_M", identity.fingerprint)


def test_quantised_weights_become_ordinary_ones(tmp_path: Path) -> None:
    """transformers would leave linear layers packed, and packed layers have no weights to observe."""
    blocks = gguf.GGMLQuantizationType.Q8_0
    model, _ = load_model(write_gguf(tmp_path / "q8.gguf", blocks=blocks), dtype="float32")
    original = tiny_model("llama")
    quantised = [
        name for name, weight in original.named_parameters() if weight.dim() == 2 and weight.shape[1] % 32 == 0
    ]
    assert any("proj" in name for name in quantised)
    loaded = dict(model.named_parameters())
    for name, weight in original.named_parameters():
        expected = weight.detach()
        if name in quantised:
            expected = torch.from_numpy(gguf.dequantize(gguf.quantize(expected.numpy(), blocks), blocks))
        torch.testing.assert_close(loaded[name].detach(), expected, rtol=0, atol=1e-6, msg=name)
    assert not hasattr(model.config, "quantization_config")
    assert all(type(module) is torch.nn.Linear for name, module in model.named_modules() if name.endswith("_proj"))


def test_without_a_stated_type_the_tensors_say_it(tmp_path: Path) -> None:
    assert ModelIdentity.of(load_model(write_gguf(tmp_path / "a.gguf"), dtype="float32")[0]).quantization == "F32"


def test_a_study_tells_files_apart(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    before = model_identity(Model(name=str(file)))
    assert model_identity(Model(name=str(tmp_path))) == before
    write_gguf(file, "gemma3")
    assert model_identity(Model(name=str(file))) != before


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"architecture nonesuch, which transformers cannot read.*llama"):
        load_model(write_gguf(tmp_path / "other.gguf", architecture="nonesuch"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no such file")
    with pytest.raises(DataError, match=r"wanted a GGUF file, found one that cannot be read at .*broken\.gguf"):
        load_model(broken)
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_model(broken)
    with pytest.raises(DataError, match=r"wanted one GGUF file, found 3 in .*broken\.gguf, other\.gguf"):
        load_model(tmp_path)
    with pytest.raises(DataError, match="no model folder"):
        load_model(tmp_path / "absent.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"babelscope\[gguf\]"):
        load_model(tmp_path / "whole.gguf")


def test_a_study_takes_a_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    corpora = {"detect": "tinybabel:{}", "held_out": "tinybabel:{}:test"}
    asked = {"models": [str(file)], "languages": ["en", "fr"], "corpora": corpora, "stages": ["lens"]}
    assert list(contradictions(study_of(asked))) == []
    missing = study_of({**asked, "models": [str(tmp_path / "other.gguf")]})
    assert [problem.found for problem in contradictions(missing)] == [f"no folder {tmp_path / 'other.gguf'}"]
