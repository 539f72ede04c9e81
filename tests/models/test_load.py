"""Loading from a folder, the errors that say what is wrong with it, and the fingerprint that tells models apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from babelscope import load_model
from babelscope.errors import ConfigError, DataError
from babelscope.models import load
from babelscope.models.load import ModelIdentity, fingerprint
from fixtures_text import save_tiny_model
from tiny import tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


# ----------------------------------------------------------------------------------------------------------------------
# Loading
# ----------------------------------------------------------------------------------------------------------------------


def test_a_saved_folder(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32, "as saved"
    expected = dict(tiny_model("llama").named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in model.named_parameters())
    assert tokenizer("ab")["input_ids"][0] == tokenizer.bos_token_id
    identity = ModelIdentity.of(model)
    assert identity.name == str(folder)
    assert identity.model_type == "llama"
    assert identity.as_json() == {
        "name": str(folder),
        "revision": None,
        "model_type": "llama",
        "fingerprint": fingerprint(tiny_model("llama")),
    }


@pytest.mark.parametrize(
    ("device_map", "rank", "expected"), [(None, None, "cuda:0"), (None, "1", "cuda:1"), ("cpu", "1", None)]
)
def test_placed_on_the_gpu_of_this_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device_map: str | None, rank: str | None, expected: str | None
) -> None:
    """As if there were GPUs."""
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nn.Module, "to", lambda self, place: moved.append(place))
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    load.load_and_place(folder, device_map=device_map)
    assert [place for place in moved if str(place).startswith("cuda")] == ([expected] if expected else [])


def test_without_a_gpu_it_stays_where_it_was_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load.load_and_place(folder)[0].device.type == "cpu"


@pytest.mark.parametrize("device_map", ["cuda:2", "cuda:one"])
def test_a_gpu_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch, device_map: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=f"such as auto, cpu, cuda, cuda:0, cuda:1, found '{device_map}'"):
        load_model(folder, device_map=device_map)


def test_a_misspelt_tinybabel(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("not on the Hub")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(DataError, match=r"could not load 'tinybable' \(did you mean tinybabel\?\)"):
        load_model("tinybable")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("float64", torch.float64),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtypes(folder: Path, dtype: str | torch.dtype, expected: torch.dtype) -> None:
    model, _ = load_model(str(folder), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


@pytest.mark.parametrize("dtype", ["bfloat61", "int8", "nn", ""])
def test_unknown_dtype(folder: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match=rf"wanted a dtype such as auto.*found '{dtype}'. Correct the name"):
        load_model(folder, dtype=dtype)


def test_options_are_passed_on(folder: Path) -> None:
    model, _ = load_model(folder, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_a_missing_folder(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_model(folder.with_name("tiny-lama"))
    assert str(caught.value) == (
        f"no model folder {folder.with_name('tiny-lama')} (did you mean tiny-llama?). "
        "Check the path, or give a name on the Hub."
    )
    with pytest.raises(DataError, match=r"nor its parent .*nowhere\)\. Check the path"):
        load_model(folder.parent / "nowhere" / "model")
    with pytest.raises(DataError, match="no model folder"):
        load_model("./tiny-llama")


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no config.json, but nothing at all"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "weights.bin").write_text("x")
    with pytest.raises(DataError, match=r"has no config.json, but notes.txt, weights.bin\. Give the folder that"):
        load_model(tmp_path)


def test_a_folder_that_is_cut_short(folder: Path, tmp_path: Path) -> None:
    for item in folder.iterdir():
        (tmp_path / item.name).write_bytes(item.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"could not load '{tmp_path}'"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(DataError, match=rf"could not load '{tmp_path}'"):
        load_model(tmp_path)


def test_a_folder_of_another_kind_of_model(tmp_path: Path, folder: Path) -> None:
    for item in folder.iterdir():
        (tmp_path / item.name).write_bytes(item.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(DataError, match=r"could not load .*no-such-type"):
        load_model(tmp_path)


def test_a_name_on_the_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def missing(*args: object, **kwargs: object) -> None:
        raise OSError("no-such/model is not a local folder and is not a valid model identifier")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(DataError, match=r"could not load 'no-such/model'(?s:.*)hf auth login"):
        load_model("no-such/model")


# ----------------------------------------------------------------------------------------------------------------------
# The fingerprint
# ----------------------------------------------------------------------------------------------------------------------


def test_fingerprint_survives_saving_and_precision(folder: Path) -> None:
    expected = fingerprint(tiny_model("llama"))
    assert len(expected) == 32
    assert fingerprint(load_model(folder)[0]) == expected
    assert fingerprint(load_model(folder, dtype="bfloat16")[0]) == expected
    assert fingerprint(tiny_model("llama", torch.float64)) == expected
    assert fingerprint(tiny_model("llama", torch.bfloat16).float()) == expected, "there and back"


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_fingerprint_with_tied_weights(name: str, tmp_path: Path) -> None:
    """An output head that is the embedding matrix is not a parameter of its own, before and after saving."""
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    assert fingerprint(type(model).from_pretrained(tmp_path)) == fingerprint(model)


def test_fingerprint_tells_models_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("llama", "llama_biases", "qwen3", "gpt2", "opt", "mixtral")
    known = {fingerprint(tiny_model(name)) for name in names}
    assert len(known) == len(names)
    monkeypatch.setattr(tiny, "SEED", tiny.SEED + 1)
    assert fingerprint(tiny_model("llama")) not in known


def test_fingerprint_notices_a_training_step() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    ids, _ = tiny.ragged_batch(model)
    model(input_ids=ids, labels=ids).loss.backward()
    assert fingerprint(model) == before
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.01 * parameter.grad
    assert fingerprint(model) != before


def test_fingerprint_depends_on_names_and_shapes() -> None:
    def model(name: str, *shape: int) -> nn.Module:
        module = nn.Module()
        module.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        return module

    prints = [fingerprint(model("a", 2, 6)), fingerprint(model("b", 2, 6)), fingerprint(model("a", 3, 4))]
    assert len(set(prints)) == 3


def test_fingerprint_reads_a_bounded_number_of_values() -> None:
    """A matrix of 10^12 values, all of them one number in memory: to read it whole would take 4 TB."""
    module = nn.Module()
    module.vast = nn.Parameter(torch.ones(1, 1).expand(10**6, 10**6))
    assert module.vast.untyped_storage().nbytes() == 4
    ones = fingerprint(module)
    module.vast = nn.Parameter(torch.full((1, 1), 2.0).expand(10**6, 10**6))
    assert fingerprint(module) != ones


def test_fingerprint_looks_all_over_a_large_matrix() -> None:
    """Also at the last value, and in every stretch of twice the sampling distance."""
    size = 10 * load._SAMPLES
    prints = set()
    starts = [*range(0, size - 20, size // 17), size - 1]
    for start in starts:
        module = nn.Module()
        module.weight = nn.Parameter(torch.zeros(size))
        with torch.no_grad():
            module.weight[start : start + 20] = 1
        prints.add(fingerprint(module))
    assert len(prints) == len(starts)


def test_fingerprint_of_offloaded_and_quantised_tensors() -> None:
    module = nn.Module()
    module.here = nn.Parameter(torch.ones(3))
    module.offloaded = nn.Parameter(torch.ones(2, 3, device="meta"))
    with_both = fingerprint(module)
    module.quantised = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    assert fingerprint(module) == with_both
    module.offloaded = nn.Parameter(torch.ones(3, 2, device="meta"))
    assert fingerprint(module) != with_both
