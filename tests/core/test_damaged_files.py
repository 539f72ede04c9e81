"""Files that were damaged or written wrongly are refused by name, never read as if they were whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from babelscope import Anatomy, Atlas, NeuronSet, detect
from babelscope.artifacts import CHECKSUM, read_header, read_tensors, write_tensors
from babelscope.errors import DataError
from builders import byte_llama, byte_tokenizer, make_texts


def rewritten(path: Path, tensors: dict[str, torch.Tensor], keep_checksum: bool = False) -> None:
    """Other tensors under the same header, as a file of an earlier version has it: without a checksum."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    (name,) = metadata
    header = json.loads(metadata[name])
    if not keep_checksum:
        header.pop(CHECKSUM)
    save_file(tensors, path, metadata={name: json.dumps(header)})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model = byte_llama()
    NeuronSet.from_indices(Anatomy(model, check=False), {"ffn": {0: [1, 2]}}).save(folder / "fr.safetensors")
    detect(model, byte_tokenizer(), {"fr": make_texts("fr", 3)}, max_tokens=32).save(folder / "atlas.safetensors")
    return folder


@pytest.mark.parametrize("name", ["fr.safetensors", "atlas.safetensors"])
def test_any_flipped_bit_of_the_tensors_is_noticed(files: Path, tmp_path: Path, name: str) -> None:
    whole = (files / name).read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    load = NeuronSet.load if name.startswith("fr") else Atlas.load
    step = max(1, (len(whole) - start) // 40)
    for at in range(start, len(whole), step):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        (tmp_path / name).write_bytes(bytes(damaged))
        with pytest.raises(DataError, match="checksum is wrong"):
            load(tmp_path / name)


def test_a_changed_header_is_noticed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", "thing", {"x": torch.ones(2)}, {"language": "fr"})
    assert read_tensors(tmp_path / "a.safetensors", "thing")[1]["language"] == "fr"
    text = (tmp_path / "a.safetensors").read_bytes().replace(b'\\"fr\\"', b'\\"zh\\"')
    (tmp_path / "a.safetensors").write_bytes(text)
    assert read_header(tmp_path / "a.safetensors")["language"] == "zh"
    with pytest.raises(DataError, match="checksum is wrong"):
        read_tensors(tmp_path / "a.safetensors", "thing")


def test_a_file_of_an_earlier_version_has_no_checksum_and_is_read(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "fr.safetensors"
    path.write_bytes((files / path.name).read_bytes())
    rewritten(path, load_file(path))
    assert NeuronSet.load(path) == NeuronSet.load(files / path.name)


@pytest.mark.parametrize("name", ["ffn.99.index", "up.0.index", "x.0.index", "ffn.0.indices"])
def test_neurons_of_a_layer_or_a_slot_that_there_is_not(files: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "fr.safetensors"
    path.write_bytes((files / path.name).read_bytes())
    rewritten(path, {**load_file(path), name: torch.tensor([1], dtype=torch.int32)})
    with pytest.raises(DataError, match=f"a slot or a layer that the model of the file does not have: {name}"):
        NeuronSet.load(path)


def test_scores_that_are_infinite(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "fr.safetensors"
    path.write_bytes((files / path.name).read_bytes())
    rewritten(path, {**load_file(path), "ffn.0.score": torch.tensor([1.0, torch.inf])})
    with pytest.raises(DataError, match="slot ffn has scores that are infinite"):
        NeuronSet.load(path)


def test_an_atlas_of_nan(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "atlas.safetensors"
    path.write_bytes((files / path.name).read_bytes())
    tensors = load_file(path)
    name = next(name for name, each in tensors.items() if each.is_floating_point())
    rewritten(path, {**tensors, name: torch.full_like(tensors[name], torch.nan)})
    with pytest.raises(DataError, match="holds NaN, which no detection writes"):
        Atlas.load(path)
