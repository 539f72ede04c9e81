"""The adapter as a method of PEFT: everything PEFT promises for its own methods, unmodified."""

from __future__ import annotations

import copy
import enum
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file
from torch import nn

import tiny
from babelscope import Anatomy, NeuronAdapterConfig, NeuronSet
from babelscope.errors import ConfigError, DataError, MissingDependencyError, ProvenanceError
from babelscope.tuning.peft_method import METHOD, NeuronLayer, NeuronTuner
from babelscope.tuning.proof import changes
from tuning.cases import logits_of, loss_of, neurons_of, perturb

TRAINED = ("llama", "gpt2", "phi3", "mixtral", "opt")


def trained(model: nn.Module, steps: int = 3) -> None:
    """A few steps of AdamW on what asks for gradients."""
    optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    batch = tiny.ragged_batch(model)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(model, *batch).backward()
        optimiser.step()


def test_the_pseudo_member_of_the_enum_is_as_good_as_a_real_one() -> None:
    """PEFT's enum is closed; if an upgrade breaks this, the registration has to be rewritten."""
    member = PeftType(METHOD)
    assert isinstance(PeftType, enum.EnumType)
    assert member is PeftType[METHOD] is getattr(PeftType, METHOD)
    assert member in list(PeftType)
    assert member == METHOD == member.value == member.name
    assert copy.deepcopy(member) is member
    assert json.dumps(member) == f'"{METHOD}"'
    assert PeftType("LORA") is PeftType.LORA
    assert len(set(PeftType)) == len(list(PeftType)) == len(PeftType.__members__)
    assert PEFT_TYPE_TO_TUNER_MAPPING[METHOD] is NeuronTuner
    assert PEFT_TYPE_TO_CONFIG_MAPPING[METHOD] is NeuronAdapterConfig


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_every_family_from_start_to_merge(name: str) -> None:
    model = tiny.tiny_model(name)
    base, batch = copy.deepcopy(model), tiny.ragged_batch(model)
    neurons = neurons_of(model)
    adapted = get_peft_model(model, NeuronAdapterConfig.from_neurons(neurons))
    assert torch.equal(logits_of(adapted, *batch), logits_of(base, *batch))
    trained(adapted)
    logits = logits_of(adapted, *batch)
    with adapted.disable_adapter():
        assert torch.equal(logits_of(adapted, *batch), logits_of(base, *batch))
    merged = adapted.merge_and_unload()
    assert type(merged) is type(base)
    assert (logits_of(merged, *batch) - logits).abs().max() <= 1e-6 * max(1.0, float(logits.abs().max()))
    report = changes(base, merged, neurons)
    assert report.exact
    assert any(each.values for each in report.tensors)


def test_trainable_parameters_are_the_rows_and_columns() -> None:
    model = tiny.tiny_model("llama")
    neurons = NeuronSet.from_indices(Anatomy(model, check=False), {"ffn": {0: [1, 2, 3]}, "k": {1: [5]}})
    adapted = get_peft_model(model, NeuronAdapterConfig.from_neurons(neurons))
    assert adapted.get_nb_trainable_parameters()[0] == 3 * 3 * 32 + 32
    assert all("neuron_delta" in name for name, each in adapted.named_parameters() if each.requires_grad)


@pytest.mark.parametrize("name", TRAINED)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = tiny.tiny_model(name)
    base, batch = copy.deepcopy(model), tiny.ragged_batch(model)
    neurons = neurons_of(model)
    adapted = get_peft_model(model, NeuronAdapterConfig.from_neurons(neurons))
    perturb([each for each in adapted.parameters() if each.requires_grad])
    adapted.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json", ".md"}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(each.numel() for each in tensors.values()) == adapted.get_nb_trainable_parameters()[0]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == (METHOD, "CAUSAL_LM")
    assert config["provenance"]["model"] == neurons.provenance["model"]

    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits_of(loaded, *batch), logits_of(adapted, *batch))
    assert loaded.peft_config["default"].neuron_set() == neurons
    assert not any(each.requires_grad for each in loaded.parameters())
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True, low_cpu_mem_usage=True)
    assert torch.equal(logits_of(again, *batch), logits_of(adapted, *batch))
    assert again.get_nb_trainable_parameters() == adapted.get_nb_trainable_parameters()


def test_in_a_new_process_the_name_of_the_config_is_enough(tmp_path: Path) -> None:
    model = tiny.tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, NeuronAdapterConfig.from_neurons(neurons_of(model)))
    perturb([each for each in adapted.parameters() if each.requires_grad])
    adapted.save_pretrained(tmp_path / "adapter")
    code = (
        "import sys, peft, torch\nfrom babelscope import NeuronAdapterConfig, load_model\n"
        "from transformers import AutoModelForCausalLM\n"
        "base = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "model = peft.PeftModel.from_pretrained(base, sys.argv[2])\n"
        "print(float(model(torch.arange(3, 9)[None]).logits.double().sum()))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "adapter")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = float(adapted(torch.arange(3, 9)[None]).logits.detach().double().sum())
    assert float(done.stdout) == pytest.approx(expected, rel=1e-6)


def test_several_adapters_side_by_side(tmp_path: Path) -> None:
    model = tiny.tiny_model("llama")
    base, batch = copy.deepcopy(model), tiny.ragged_batch(model)
    first, second = neurons_of(model, seed=0), neurons_of(model, seed=1).at(layers=[1])
    adapted = get_peft_model(model, NeuronAdapterConfig.from_neurons(first), adapter_name="first")
    perturb([each for each in adapted.parameters() if each.requires_grad])
    alone = logits_of(adapted, *batch)
    adapted.add_adapter("second", NeuronAdapterConfig.from_neurons(second))
    assert torch.equal(logits_of(adapted, *batch), alone), "an adapter that is added is not active yet"
    adapted.set_adapter("second")
    assert torch.equal(logits_of(adapted, *batch), logits_of(base, *batch))
    assert all(".second." in name for name, each in adapted.named_parameters() if each.requires_grad)
    perturb([each for each in adapted.parameters() if each.requires_grad], seed=2)
    other = logits_of(adapted, *batch)
    adapted.set_adapter("first")
    assert torch.equal(logits_of(adapted, *batch), alone)

    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "second", adapter_name="second")
    assert torch.equal(logits_of(loaded, *batch), other)
    loaded.load_adapter(tmp_path / "first", "first")
    loaded.set_adapter("first")
    assert torch.equal(logits_of(loaded, *batch), alone)

    adapted.base_model.set_adapter(["first", "second"])
    both = logits_of(adapted, *batch)
    adapted.merge_adapter()
    assert (logits_of(adapted, *batch) - both).abs().max() < 1e-5
    adapted.unmerge_adapter()
    assert torch.equal(logits_of(adapted, *batch), both)
    adapted.delete_adapter("first")
    assert torch.equal(logits_of(adapted, *batch), other)
    merged = adapted.merge_and_unload()
    assert changes(base, merged, second).exact
    assert (logits_of(merged, *batch) - other).abs().max() < 1e-5


def test_merging_one_of_two_leaves_the_other_working() -> None:
    model = tiny.tiny_model("llama")
    batch = tiny.ragged_batch(model)
    adapted = get_peft_model(model, NeuronAdapterConfig.from_neurons(neurons_of(model, seed=0)), adapter_name="first")
    adapted.add_adapter("second", NeuronAdapterConfig.from_neurons(neurons_of(model, seed=1)))
    adapted.base_model.set_adapter(["first", "second"])
    perturb([each for name, each in adapted.named_parameters() if "neuron_delta" in name])
    both = logits_of(adapted, *batch)
    adapted.merge_adapter(["first"])
    assert (logits_of(adapted, *batch) - both).abs().max() < 1e-5
    with adapted.disable_adapter():
        logits_of(adapted, *batch)
    assert not any(each.merged_adapters for each in adapted.modules() if isinstance(each, NeuronLayer))


def test_unload_gives_the_base_back() -> None:
    model = tiny.tiny_model("mixtral")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    adapted = get_peft_model(model, NeuronAdapterConfig.from_neurons(neurons_of(model)))
    perturb([each for each in adapted.parameters() if each.requires_grad])
    after = adapted.unload().state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_deltas_stay_in_float32_over_bfloat16(tmp_path: Path) -> None:
    model = tiny.tiny_model("llama", torch.bfloat16)
    base, batch = copy.deepcopy(model), tiny.ragged_batch(model)
    adapted = get_peft_model(model, NeuronAdapterConfig.from_neurons(neurons_of(model)), autocast_adapter_dtype=False)
    trained(adapted)
    assert {each.dtype for each in adapted.parameters() if each.requires_grad} == {torch.float32}
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits_of(loaded, *batch), logits_of(adapted, *batch))


def test_adapter_on_another_base(tmp_path: Path) -> None:
    model = tiny.tiny_model("llama")
    other = copy.deepcopy(model)
    get_peft_model(model, NeuronAdapterConfig.from_neurons(neurons_of(model))).save_pretrained(tmp_path)
    with torch.no_grad():
        other.model.norm.weight[0] += 1
    with pytest.raises(ProvenanceError, match=r"adapter is not of this base.*fingerprint.*adapter_config\.json"):
        PeftModel.from_pretrained(other, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "force": True}))
    PeftModel.from_pretrained(other, tmp_path)
    with pytest.raises(ProvenanceError, match="other widths"):
        PeftModel.from_pretrained(tiny.tiny_model("qwen2"), tmp_path)


def test_configurations_that_cannot_be_used() -> None:
    neurons = neurons_of(tiny.tiny_model("llama"))
    with pytest.raises(ConfigError, match="no neurons"):
        NeuronAdapterConfig.from_neurons(neurons - neurons)
    for damage in ({"ffn": ["1 x", ""]}, {"ffn": ["999", ""]}, {"ffn": [""]}, {}):
        config = NeuronAdapterConfig(neurons=damage, widths={"ffn": [44, 44]})
        with pytest.raises(DataError, match=r"adapter_config\.json is damaged"):
            config.neuron_set()


def test_without_peft_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "babelscope.tuning.peft_method")
    with pytest.raises(MissingDependencyError, match=r'pip install "babelscope\[tune\]"'):
        __import__("babelscope.tuning.peft_method")


def test_the_method_is_not_one_of_pefts_own() -> None:
    assert METHOD not in Path(peft.utils.peft_types.__file__).read_text()
