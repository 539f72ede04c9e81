"""Chosen rows and columns as parameters: the base at first, the dense gradient's own numbers, and an exact merge."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tiny
from babelscope import Anatomy, NeuronSet, neuron_impacts
from babelscope.errors import ConfigError, NumericsError, ProvenanceError, UnsupportedModelError
from babelscope.models.slots import SLOTS
from babelscope.tuning.adapter import Adapted, ExpertUnits, Rows, attach, detach, locate
from babelscope.tuning.proof import changes
from tuning.cases import logits_of, loss_of, neurons_of, perturb


def chosen(model: nn.Module, neurons: NeuronSet) -> dict[str, Tensor]:
    """True where a weight belongs to the set, by parameter name: from the anatomy, not from the adapter."""
    anatomy = Anatomy(model, check=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    masks = {name: torch.zeros(parameter.shape, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for slot in SLOTS:
        for layer, units in enumerate(neurons[slot]):
            for parameter, index in anatomy.weights(slot, layer, units):
                masks[names[id(parameter)]][index] = True
    return masks


def dense_deltas(model: nn.Module, gradients: bool) -> dict[str, Tensor]:
    """The adapter's deltas, or their gradients, scattered into tensors of the shape of each weight."""
    names = {id(parameter): name.replace(".base_layer", "") for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for module in model.modules():
        if not isinstance(module, Adapted):
            continue
        change = module.neuron_delta["default"]
        values = copy.deepcopy(change)
        if gradients:
            for target, source in zip(values.parameters(), change.parameters(), strict=True):
                target.data = source.grad
        for weight, index, delta in values.additions(module.base_layer):
            dense = found.setdefault(names[id(weight)], torch.zeros_like(weight))
            dense[index] += delta.detach()
    return found


@pytest.mark.parametrize("name", tiny.ALL)
def test_at_first_it_is_the_base_bit_by_bit(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.tiny_model(name, dtype)
        if dtype == torch.bfloat16 and hasattr(model.config, "num_experts_per_tok"):
            model.set_experts_implementation("eager")  # the default, grouped_mm, wants rows of 16 bytes
        batch = tiny.ragged_batch(model)
        before = logits_of(model, *batch)
        parameters = attach(model, neurons_of(model))
        assert torch.equal(logits_of(model, *batch), before)
        assert {each.dtype for each in parameters} == {torch.float32}


@pytest.mark.parametrize("name", tiny.ALL)
def test_gradients_are_those_of_the_dense_weights(name: str) -> None:
    model = tiny.tiny_model(name, torch.float64)
    neurons = neurons_of(model)
    batch = tiny.ragged_batch(model, lengths=(9, 9))  # padding makes upstream's gradients NaN in float64 (Gemma 2)
    inside = chosen(model, neurons)
    loss_of(model, *batch).backward()
    dense = {key: each.grad.masked_fill(~inside[key], 0) for key, each in model.named_parameters() if inside[key].any()}
    model.zero_grad()
    parameters = attach(model, neurons)
    assert {key for key, each in model.named_parameters() if each.requires_grad} == {
        key for key, _ in model.named_parameters() if ".neuron_delta." in key
    }
    loss_of(model, *batch).backward()
    sparse = dense_deltas(model, gradients=True)
    assert set(sparse) == set(dense)
    scale = max(float(each.abs().max()) for each in dense.values())
    for key, each in dense.items():
        assert (sparse[key] - each).abs().max() <= 1e-12 * max(1.0, scale), key
    assert sum(each.numel() for each in parameters) == sum(int(each.sum()) for each in inside.values())


@pytest.mark.parametrize("name", tiny.ALL)
def test_merged_it_computes_the_same_and_nothing_else_has_changed(name: str) -> None:
    model = tiny.tiny_model(name)
    base = copy.deepcopy(model)
    neurons = neurons_of(model)
    batch = tiny.ragged_batch(model)
    parameters = attach(model, neurons)
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        loss_of(model, *batch).backward()
        optimiser.step()
    trained = logits_of(model, *batch)
    assert (trained - logits_of(base, *batch)).abs().max() > 1e-3
    merged = detach(model, merge=True)
    assert not any(isinstance(module, Adapted) for module in merged.modules())
    assert (logits_of(merged, *batch) - trained).abs().max() <= 1e-6 * max(1.0, float(trained.abs().max()))
    inside = chosen(base, neurons)
    before, after = dict(base.named_parameters()), dict(merged.named_parameters())
    assert list(before) == list(after)
    for key in before:
        assert torch.equal(before[key][~inside[key]], after[key][~inside[key]]), key
    report = changes(base, merged, neurons)
    assert report.exact
    assert {each.name for each in report.tensors if each.values} <= {key for key, each in inside.items() if each.any()}


def test_where_it_is_agrees_with_the_anatomy() -> None:
    """On a fused matrix the rows of several slots meet in one module."""
    model = tiny.tiny_model("phi3")
    neurons = neurons_of(model)
    found = locate(Anatomy(model, check=False), neurons)
    assert set(found) == {
        f"model.layers.{layer}.{name}"
        for layer in range(2)
        for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }
    kind, index = found["model.layers.1.self_attn.qkv_proj"]
    assert kind is Rows
    assert len(index) == sum(len(neurons[slot][1]) for slot in "qkv")
    assert all(torch.equal(index, index.unique(sorted=True)) for _, index in found.values())


def test_two_adapters_on_one_unit_of_an_expert_add_before_the_activation() -> None:
    """Side by side they must compute what merging both computes: the gate is not linear."""
    model = tiny.tiny_model("mixtral", torch.float64)
    neurons = neurons_of(model).at(slots=("ffn",))
    batch = tiny.ragged_batch(model)
    attach(model, neurons)
    for module in [each for each in model.modules() if isinstance(each, Adapted)]:
        module.neuron_delta["second"] = ExpertUnits(module.base_layer, module.neuron_delta["default"].index[::2])
        perturb(list(module.neuron_delta.parameters()))
    side_by_side = logits_of(model, *batch)
    for module in [each for each in model.modules() if isinstance(each, Adapted)]:
        module.write("second")
    assert (logits_of(detach(model, merge=True), *batch) - side_by_side).abs().max() < 1e-12


def test_an_expert_without_tokens_still_has_a_gradient() -> None:
    """Or DDP would wait for it."""
    model = tiny.tiny_model("mixtral")
    parameters = attach(model, neurons_of(model))
    loss_of(model, *tiny.ragged_batch(model, lengths=(2,))).backward()
    assert all(each.grad is not None for each in parameters)


def test_nothing_of_the_size_of_a_weight_gets_a_gradient() -> None:
    model = tiny.tiny_model("llama")
    neurons = neurons_of(model, share=0.05)
    parameters = attach(model, neurons)
    loss_of(model, *tiny.ragged_batch(model)).backward()
    with_gradient = [each for each in model.parameters() if each.grad is not None]
    assert {id(each) for each in with_gradient} == {id(each) for each in parameters}


def test_gradient_checkpointing_changes_nothing() -> None:
    found = []
    for checkpointing in (False, True):
        model = tiny.tiny_model("qwen2").train()
        if checkpointing:
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()
        parameters = attach(model, neurons_of(model))
        loss_of(model, *tiny.ragged_batch(model)).backward()
        found.append([each.grad for each in parameters])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_impacts_of_an_adapted_model_are_those_of_the_merged_one(name: str) -> None:
    """Who asks an adapted module for its weight gets the changed one, in the orientation of a linear module."""
    model = tiny.tiny_model(name)
    batch = tiny.ragged_batch(model)
    perturb(attach(model, neurons_of(model)))
    adapted = neuron_impacts(model, *batch)
    merged = neuron_impacts(detach(model, merge=True), *batch)
    for slot in SLOTS:
        for first, second in zip(adapted[slot], merged[slot], strict=True):
            assert torch.allclose(first, second, rtol=1e-4, atol=1e-6), slot


def test_unmerging_restores_every_bit() -> None:
    model = tiny.tiny_model("llama", torch.bfloat16)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    perturb(attach(model, neurons_of(model)))
    adapted = [each for each in model.modules() if isinstance(each, Adapted)]
    for module in adapted:
        module.write("default")
    assert any(
        not torch.equal(each, before[key.replace(".base_layer", "")])
        for key, each in model.state_dict().items()
        if ".neuron_delta." not in key
    )
    for module in adapted:
        module.unmerge()
    detach(model)
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())


def test_detaching_leaves_the_base() -> None:
    model = tiny.tiny_model("gpt2")
    batch = tiny.ragged_batch(model)
    before = logits_of(model, *batch)
    names = list(model.state_dict())
    perturb(attach(model, neurons_of(model)))
    assert not torch.equal(logits_of(model, *batch), before)
    assert list(detach(model).state_dict()) == names
    assert torch.equal(logits_of(model, *batch), before)


class Quantised(nn.Module):
    """As a quantised linear module: integers and a scale, no weight to write to."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        scale = linear.weight.detach().abs().amax() / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight.to(states.dtype) * self.scale.to(states.dtype), self.bias)


def test_a_quantised_base_can_be_trained_but_not_merged() -> None:
    model = tiny.tiny_model("llama_biases")
    for layer in model.model.layers:
        for name, child in list(layer.mlp.named_children()):
            if isinstance(child, nn.Linear):
                setattr(layer.mlp, name, Quantised(child))
    neurons = neurons_of(model)
    batch = tiny.ragged_batch(model)
    before = logits_of(model, *batch)
    parameters = attach(model, neurons)
    assert torch.equal(logits_of(model, *batch), before)
    loss_of(model, *batch).backward()
    assert all(each.grad is not None and each.dtype == torch.float32 for each in parameters)
    with pytest.raises(UnsupportedModelError, match=r"quantised, offloaded or shared out.*merge there"):
        detach(model, merge=True)


class Opaque(nn.Module):
    """As a module that quantisation has packed: without a weight, and without features if it has no `like`."""

    def __init__(self, like: nn.Linear | None = None) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False)
        if like is not None:
            self.in_features, self.out_features = like.in_features, like.out_features

    def forward(self, states: Tensor) -> Tensor:
        return states.new_zeros(*states.shape[:-1], self.out_features)


def test_what_quantisation_made_unreachable_is_named() -> None:
    model = tiny.tiny_model("llama")
    neurons = neurons_of(model)
    names = list(model.state_dict())
    down, model.model.layers[1].mlp.down_proj = model.model.layers[1].mlp.down_proj, Opaque()
    with pytest.raises(UnsupportedModelError, match=r"found Opaque with neither: quantisation.*bitsandbytes"):
        attach(model, neurons, force=True)
    model.model.layers[1].mlp.down_proj = down
    assert list(model.state_dict()) == names

    model.model.layers[1].mlp.down_proj = Opaque(down)
    loss_of(model, *tiny.ragged_batch(model)).detach()
    attach(model, neurons, force=True)
    with pytest.raises(UnsupportedModelError, match="of Opaque are quantised"):
        detach(model, merge=True)

    model = tiny.tiny_model("mixtral")
    neurons = neurons_of(model)
    for layer in model.model.layers:
        experts = layer.mlp.experts
        experts.down_proj = nn.Parameter(experts.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"experts of \w+ are quantised.*leave the slot ffn out"):
        attach(model, neurons, force=True)
    assert not any(isinstance(module, Adapted) for module in model.modules())
    assert len(attach(model, neurons.at(slots=("q",)), force=True)) == 2


def test_sets_that_cannot_be_trained() -> None:
    model = tiny.tiny_model("llama")
    neurons = neurons_of(model)
    with pytest.raises(ConfigError, match=r"no neurons.*larger budget"):
        attach(model, neurons - neurons)
    with pytest.raises(ProvenanceError, match="other widths"):
        attach(model, neurons_of(tiny.tiny_model("qwen2")))
    other = tiny.tiny_model("llama")
    with torch.no_grad():
        other.model.norm.weight[0] += 1
    with pytest.raises(ProvenanceError, match=r"found in.*this model has the fingerprint.*force=True"):
        attach(other, neurons)
    attach(other, neurons, force=True)
    with pytest.raises(ConfigError, match="carries an adapter already"):
        attach(other, neurons, force=True)


def test_values_that_are_not_finite_are_never_merged() -> None:
    model = tiny.tiny_model("llama")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    parameters = attach(model, neurons_of(model))
    perturb(parameters)
    with torch.no_grad():
        parameters[-1].fill_(torch.inf)
    with pytest.raises(NumericsError, match=r"NaN or infinite.*lower learning rate"):
        detach(model, merge=True)
    assert all(torch.equal(each, before[key]) for key, each in detach(model).state_dict().items())
