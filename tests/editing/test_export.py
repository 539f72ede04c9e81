"""An exported checkpoint, read by plain transformers, is the edited model; what can't be written is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import tiny
from babelscope import Anatomy, NeuronSet, ablate, export
from babelscope.detection.detect import detect
from babelscope.editing import export as exporting
from babelscope.editing.recorded import record_activations
from babelscope.errors import ConfigError, ProvenanceError, RunFolderError, UnsupportedModelError
from babelscope.neurons.statistics import Layout, Statistics
from builders import byte_llama, byte_tokenizer, letters, make_texts
from editing.cases import EVERY, TOLERANCE, assert_intact, built, logits, snapshot, some, zeroed_by_hand

BIASED = {"llama", "smollm3", "granite", "llama_biases", "gpt2", "bloom", "gpt_neox", "opt", "phi", "starcoder2"}
"""Architectures that have, or can carry, every bias that a constant may need; the others lack one at least."""
SOME_BIASES = {
    "qwen3": "qkvo",
    "gemma2": "qkvo",
    "gemma3": "qkvo",
    "olmo2": "qkvo",
    "olmo3": "qkvo",
    "cohere": "qkvo",
    "olmoe": "qkvo",
    "qwen3_moe": "qkvo",
    "glm": "qkv",
    "qwen2": "qkv",
    "stablelm": "qkv",
    "mistral": "",
    "mixtral": "",
    "phi3": "",
}
"""Slots in which a constant can be put; in the others the export is refused."""
assert set(EVERY) == BIASED | set(SOME_BIASES)


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny.tiny_model("llama", torch.float64)


@contextlib.contextmanager
def loaded(name: str, folder: Path) -> Iterator[PreTrainedModel]:
    """The tiny model in float64 as one gets it from a folder: a cast model has buffers that no checkpoint gives."""
    with built(name) as model:
        model.save_pretrained(folder / "base")
        yield read(folder / "base", model)
    shutil.rmtree(folder / "base")


def read(folder: Path, like: PreTrainedModel) -> PreTrainedModel:
    """By plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    if model.dtype == torch.float64 and hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")
    for name in ("bloom", "gemma2"):  # as in `built`
        if model.config.model_type == name:
            model.config._attn_implementation_internal = like.config._attn_implementation
    return model.eval()


def means(anatomy: Anatomy) -> Statistics:
    """Statistics whose activation means are random numbers."""
    layout = Layout({slot: tuple(widths) for slot, widths in anatomy.widths().items()})
    found = Statistics.empty(layout)
    found.tokens[:] = 1
    generator = torch.Generator().manual_seed(5)
    for values in found.slots.values():
        values["activation_total"].copy_(torch.randn(values["activation_total"].shape, generator=generator))
    return found


@pytest.mark.parametrize("name", EVERY)
def test_zero_is_the_model_zeroed_by_hand(name: str, tmp_path: Path) -> None:
    with loaded(name, tmp_path) as model:
        neurons, before = some(Anatomy(model, check=False)), snapshot(model)
        ids, mask = tiny.ragged_batch(model)
        intact = logits(model, ids, mask)
        done = export(model, letters(), neurons, tmp_path / "out")
        assert_intact(model, before)
        with zeroed_by_hand(model, neurons):
            expected, weights = logits(model, ids, mask), snapshot(model)
        copied = read(tmp_path / "out", model)
        assert torch.equal(logits(copied, ids, mask), expected)
    assert (expected - intact).abs().max() > 1e-3
    assert (done.difference, done.neurons) == (0.0, len(neurons))
    assert done.change > 1e-3
    kept = dict(copied.named_parameters())
    hands = {name: weights[name] for name in kept}
    changed = [name for name in kept if not torch.equal(kept[name], hands[name])]
    assert all((kept[name] == 0)[kept[name] != hands[name]].all() for name in changed)  # the rest of the units' weights


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "qwen3"])
def test_scale_is_the_model_scaled_in_memory(name: str, tmp_path: Path) -> None:
    with loaded(name, tmp_path) as model:
        neurons = some(Anatomy(model, check=False))
        ids, mask = tiny.ragged_batch(model)
        with ablate(model, rows=[neurons], op="scale", factor=2.5):  # by hooks: another way than the export's
            expected = logits(model, ids, mask)
        export(model, letters(), neurons, tmp_path / "out", op="scale", factor=2.5)
        found = logits(read(tmp_path / "out", model), ids, mask)
    assert (found - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("name", "slots"), [*((name, "qkvo+ffn") for name in sorted(BIASED)), *SOME_BIASES.items()])
def test_a_constant_becomes_a_bias_where_there_can_be_one(name: str, slots: str, tmp_path: Path) -> None:
    with loaded(name, tmp_path) as model:
        anatomy = Anatomy(model, check=False)
        reference, before, config = means(anatomy), snapshot(model), model.config.to_dict()
        usable = tuple(slot for slot in ("q", "k", "v", "o", "ffn") if slot in slots)
        for slot in {"q", "k", "v", "o", "ffn"} - set(usable):
            with pytest.raises(UnsupportedModelError, match=r"has no such bias.*Leave those slots out|on experts"):
                export(model, letters(), some(anatomy, (slot,)), tmp_path / "out", op="mean", reference=reference)
            assert [path.name for path in tmp_path.iterdir()] == ["base"]
        if usable:
            neurons = some(anatomy, usable)
            ids, mask = tiny.ragged_batch(model)
            with ablate(model, neurons, op="mean", reference=reference):
                expected = logits(model, ids, mask)
            done = export(model, letters(), neurons, tmp_path / "out", op="mean", reference=reference)
            found = logits(read(tmp_path / "out", model), ids, mask)
            assert (found - expected).abs().max() <= TOLERANCE
            assert (expected - logits(model, ids, mask)).abs().max() > 1e-2
            assert done.difference <= TOLERANCE
        assert_intact(model, before)
        assert model.config.to_dict() == config


def test_a_median_is_a_constant_and_a_draw_is_none(tmp_path: Path) -> None:
    model, tokenizer = byte_llama(torch.float64), byte_tokenizer()
    neurons = some(Anatomy(model, check=False))
    recorded = record_activations(model, tokenizer, make_texts("fr", 5), neurons)
    ids, mask = tiny.ragged_batch(model)
    with ablate(model, neurons, op="median", reference=recorded):
        expected = logits(model, ids, mask)
    export(model, tokenizer, neurons, tmp_path / "out", op="median", reference=recorded)
    assert (logits(read(tmp_path / "out", model), ids, mask) - expected).abs().max() <= TOLERANCE
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| reference | {recorded.tokens} recorded tokens |" in card
    with pytest.raises(ConfigError, match="which no weight can hold"):
        export(model, tokenizer, neurons, tmp_path / "other", op="resample", reference=recorded)


def test_clamp_is_a_constant_too(llama: PreTrainedModel, tmp_path: Path) -> None:
    neurons = some(Anatomy(llama, check=False))
    ids, mask = tiny.ragged_batch(llama)
    with ablate(llama, neurons, op="clamp", value=-1.25):
        expected = logits(llama, ids, mask)
    done = export(llama, letters(), neurons, tmp_path / "out", op="clamp", value=-1.25)
    assert (logits(read(tmp_path / "out", llama), ids, mask) - expected).abs().max() <= TOLERANCE
    assert done.switched == ("attention_bias", "mlp_bias")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["attention_bias"] is True
    assert llama.config.attention_bias is False
    assert llama.model.layers[0].self_attn.q_proj.bias is None


def test_only_the_needed_settings_are_turned_on(llama: PreTrainedModel, tmp_path: Path) -> None:
    neurons = some(Anatomy(llama, check=False), ("ffn",))
    assert export(llama, letters(), neurons, tmp_path / "out", op="clamp", value=1.0).switched == ("mlp_bias",)


def test_experts_have_no_bias(tmp_path: Path) -> None:
    model = tiny.tiny_model("mixtral", torch.float64)
    with pytest.raises(UnsupportedModelError, match="slot ffn, layer 0: experts have no bias"):
        export(model, letters(), some(Anatomy(model, check=False), ("ffn",)), tmp_path / "out", op="clamp", value=1.0)


@pytest.mark.parametrize("op", [{}, {"op": "scale", "factor": 0.3}, {"op": "clamp", "value": 0.5}])
def test_in_bfloat16(op: dict, tmp_path: Path) -> None:
    tiny.tiny_model("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="bfloat16")
    before = snapshot(model)
    done = export(model, letters(), some(Anatomy(model, check=False)), tmp_path / "out", **op)
    copied = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert copied.dtype == torch.bfloat16
    assert {each.dtype for each in copied.parameters()} == {torch.bfloat16}
    assert (done.difference == 0) == ("value" not in op)
    assert_intact(model, before)


FRESH = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["hello there", "ab"], return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        logits = model(**batch).logits
    tokens = model.generate(**batch, max_new_tokens=12, do_sample=False)
    save_file({"logits": logits, "tokens": tokens}, folder + ".found")
assert "babelscope" not in sys.modules
"""


def test_a_fresh_process_of_plain_transformers(tmp_path: Path) -> None:
    """The same logits and the same generations, cached and left-padded, as the model edited in memory."""
    model, tokenizer = byte_llama(torch.float32, eos_token_id=None), byte_tokenizer()
    model.generation_config.eos_token_id = None
    anatomy = Anatomy(model, check=False)
    units = {layer: range(0, anatomy.width("ffn", layer), 3) for layer in range(anatomy.n_layers)}
    neurons = NeuronSet.from_indices(anatomy, {"ffn": units, "v": {0: [1, 2]}})
    reference = detect(model, tokenizer, {"fr": make_texts("fr", 8)}, max_tokens=32)
    ways = {"zero": {}, "mean": {"op": "mean", "reference": reference}}
    for name, way in ways.items():
        export(model, tokenizer, neurons, tmp_path / name, **way)
    folders = [str(tmp_path / name) for name in ways]
    subprocess.run([sys.executable, "-c", FRESH, *folders], check=True, capture_output=True)

    batch = tokenizer(["hello there", "ab"], return_tensors="pt", padding=True, padding_side="left")
    real = batch["attention_mask"].bool()
    intact = model.generate(**batch, max_new_tokens=12, do_sample=False)
    for name, way in ways.items():
        found = load_file(tmp_path / f"{name}.found")
        with ablate(model, neurons, **way), torch.no_grad():
            expected = model(**batch).logits
            tokens = model.generate(**batch, max_new_tokens=12, do_sample=False)
        assert torch.allclose(found["logits"][real], expected[real], rtol=0, atol=0 if name == "zero" else 1e-4)
        assert torch.equal(found["tokens"], tokens)
        assert not torch.equal(intact, tokens)


def test_what_lies_in_the_folder(tmp_path: Path) -> None:
    model = byte_llama(torch.float32)
    model.generation_config.max_new_tokens = 77
    model.config._name_or_path = str(tmp_path / "private" / "base")
    neurons = some(Anatomy(model, check=False))
    neurons.provenance.update({"language": "fr", "selection": {"rule": "contrast", "budget": 0.1}})
    done = export(model, byte_tokenizer(), neurons, str(tmp_path / "new" / "out"), max_shard_size="20KB")
    folder = tmp_path / "new" / "out"
    assert done.folder == folder
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    assert NeuronSet.load(folder / exporting.NEURONS) == neurons
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] == 77
    assert AutoTokenizer.from_pretrained(folder)("été")["input_ids"] == byte_tokenizer()("été")["input_ids"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- babelscope\n---\n\n# base, edited\n")
    for fact in (
        "| operation | zero |",
        "| language | fr |",
        "| selection | rule contrast, budget 0.1 |",
        f"| neurons | {len(neurons)} of",
        done.fingerprint,
    ):
        assert fact in card
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text(encoding="utf-8"), path

    copied = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ProvenanceError), ablate(copied, neurons):
        pass


def test_a_base_model_on_the_hub_is_named(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.config._name_or_path = "someone/somewhere"
    export(llama, letters(), some(Anatomy(llama, check=False)), tmp_path / "out", op="scale", factor=2)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "\nbase_model: someone/somewhere\n---\n" in card
    assert "| operation | scale (factor=2) |" in card


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = byte_llama(torch.float32, tie_word_embeddings=True)
    export(model, byte_tokenizer(), some(Anatomy(model, check=False)), tmp_path / "out")
    copied = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert copied.lm_head.weight.data_ptr() == copied.model.embed_tokens.weight.data_ptr()
    assert torch.equal(copied.lm_head.weight, model.lm_head.weight)


# Refusals: nothing is written, the model is left as it was


def refused(model: PreTrainedModel, folder: Path, error: type[Exception], match: str, **arguments: object) -> None:
    neurons = arguments.pop("neurons", None) or some(Anatomy(model, check=False))
    there = sorted(folder.rglob("*"))
    before = snapshot(model)
    with pytest.raises(error, match=match):
        export(model, letters(), neurons, folder / "out", **arguments)
    assert sorted(folder.rglob("*")) == there
    assert {name: each.equal(before[name]) for name, each in snapshot(model).items()} == dict.fromkeys(before, True)


def test_a_folder_with_something_in_it(llama: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    refused(llama, tmp_path, RunFolderError, "not an empty folder. Give a new one")
    (tmp_path / "out" / "mine.txt").unlink()
    export(llama, letters(), some(Anatomy(llama, check=False)), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_a_file_of_that_name(llama: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    refused(llama, tmp_path, RunFolderError, "not an empty folder")


def test_arguments_and_sets_as_in_ablate(llama: PreTrainedModel, tmp_path: Path) -> None:
    refused(llama, tmp_path, ConfigError, "op='mean' needs reference", op="mean")
    refused(llama, tmp_path, ConfigError, "wanted neurons as a NeuronSet", neurons=3)
    other = tiny.tiny_model("llama_biases", torch.float64)
    foreign = some(Anatomy(other, check=False))
    refused(llama, tmp_path, ProvenanceError, "fingerprint", neurons=foreign)
    export(llama, letters(), foreign, tmp_path / "out", force=True)


def test_an_open_edit(llama: PreTrainedModel, tmp_path: Path) -> None:
    neurons = some(Anatomy(llama, check=False))
    with ablate(llama, neurons):
        refused(llama, tmp_path, UnsupportedModelError, "open edit", neurons=neurons)


def test_a_compiled_model(llama: PreTrainedModel, tmp_path: Path) -> None:
    neurons = some(Anatomy(llama, check=False))
    with pytest.raises(UnsupportedModelError, match=r"torch\.compile"):
        export(torch.compile(llama), letters(), neurons, tmp_path / "out")
    llama.model.layers[1].compile()
    refused(llama, tmp_path, UnsupportedModelError, r"model\.layers\.1 is compiled", op="clamp", value=1.0)


def test_an_adapter(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.lm_head.base_layer = torch.nn.Identity()
    refused(llama, tmp_path, UnsupportedModelError, "Merge the adapter first")


def test_weights_that_cannot_be_written(llama: PreTrainedModel, tmp_path: Path) -> None:
    down = llama.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    down.forward = lambda states: states @ down.weight.to(states.dtype).T
    neurons = some(Anatomy(llama, check=False))
    with pytest.raises(UnsupportedModelError, match="slot ffn, layer 1: the weights are quantised or sharded, so"):
        export(llama, letters(), neurons, tmp_path / "out")


def test_weights_in_two_places(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.model.layers[1].mlp.up_proj.weight = llama.model.layers[0].mlp.up_proj.weight
    refused(llama, tmp_path, UnsupportedModelError, r"slot ffn, layer 0: model\.layers\.0\S+ and model\.layers\.1")


def test_a_checkpoint_that_reads_back_otherwise(llama: PreTrainedModel, tmp_path: Path, monkeypatch) -> None:
    """Weights that were lost, and a setting that was lost."""
    real = type(llama).from_pretrained

    def moved(*args: object, **options: object) -> PreTrainedModel:
        model = real(*args, **options)
        model.model.layers[0].mlp.up_proj.weight.data[3, 3] += 1e-9
        return model

    monkeypatch.setattr(type(llama), "from_pretrained", moved)
    refused(llama, tmp_path, UnsupportedModelError, r"does not give back model\.layers\.0\.mlp\.up_proj\.weight")

    def other(*args: object, **options: object) -> PreTrainedModel:
        model = real(*args, **options)
        model.model.norm.variance_epsilon = 1e-3
        return model

    monkeypatch.setattr(type(llama), "from_pretrained", other)
    refused(llama, tmp_path, UnsupportedModelError, "logits differ by .* Please report it")


def test_a_model_that_was_cast(tmp_path: Path) -> None:
    model = tiny.tiny_model("gemma3", torch.float64)
    refused(model, tmp_path, UnsupportedModelError, r"Buffers .*\(model\.embed_tokens\.embed_scale\)")


def test_biases_in_the_wrong_place_are_noticed(llama: PreTrainedModel, tmp_path: Path, monkeypatch) -> None:
    """Even in bfloat16, where a bias is rounded."""
    model = llama.to(torch.bfloat16)
    monkeypatch.setattr(exporting, "dense_weight", lambda module: module.weight.flip(0))
    refused(model, tmp_path, UnsupportedModelError, "logits differ by", op="clamp", value=3.0)


def test_an_interrupt_leaves_nothing(llama: PreTrainedModel, tmp_path: Path, monkeypatch) -> None:
    def stopped(*_: object) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "_read_back", stopped)
    refused(llama, tmp_path, KeyboardInterrupt, "^$", op="clamp", value=1.0)
