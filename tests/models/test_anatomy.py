"""Where neurons live, and which models are refused: by their shape, and by a numerical self-check."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.llama import modeling_llama

import oracle
import tiny
from babelscope import Anatomy, neuron_impacts
from babelscope.errors import ConfigError, NumericsError, UnsupportedModelError
from babelscope.models.linear import dense_weight
from babelscope.models.slots import SLOTS, resolve_slots
from tiny import ALL, FAMILIES, PROBED, ragged_batch, tiny_model

torch.set_num_threads(1)

every_model = pytest.mark.parametrize("name", ALL)


# ----------------------------------------------------------------------------------------------------------------------
# Where the units are
# ----------------------------------------------------------------------------------------------------------------------


@every_model
def test_widths(name: str) -> None:
    model = tiny_model(name)
    anatomy = Anatomy(model, check=False)
    assert anatomy.n_layers == oracle.n_layers(model)
    assert anatomy.widths() == {
        slot: [oracle.width(model, slot, layer) for layer in range(anatomy.n_layers)] for slot in oracle.SLOTS
    }


def _selected(model: PreTrainedModel, pairs: list[tuple[Tensor, Any]]) -> dict[str, Tensor]:
    """Parameter name -> bool mask of what the indices select."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    masks: dict[str, Tensor] = {}
    for parameter, index in pairs:
        mask = masks.setdefault(names[id(parameter)], torch.zeros(parameter.shape, dtype=torch.bool))
        mask[index] = True
    return masks


@every_model
def test_weights_are_those_of_the_unit_and_no_others(name: str) -> None:
    """Biases, transposed matrices, fused layouts and experts included; several units at once, out of order."""
    model = tiny_model(name)
    anatomy = Anatomy(model, check=False)
    generator = torch.Generator().manual_seed(0)
    for layer in range(anatomy.n_layers):
        for slot in oracle.SLOTS:
            units = torch.randperm(anatomy.width(slot, layer), generator=generator)[:4]
            cuts = [cut for unit in units.tolist() for cut in oracle.cuts(model, slot, layer, unit)]
            expected = _selected(model, [(cut.parameter, cut.index) for cut in cuts])
            found = _selected(model, anatomy.weights(slot, layer, units))
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected), (slot, layer)


@pytest.mark.parametrize(("name", "layer"), [("phi3", 1), ("gpt2", 0), ("gpt_neox", 1), ("bloom", 0), ("glm", 1)])
def test_fused_matrices_are_dealt_out_completely(name: str, layer: int) -> None:
    """All units of q, k and v together are the whole fused matrix, each row once; so are gate and up."""
    model = tiny_model(name)
    anatomy = Anatomy(model, check=False)
    counts: dict[int, Tensor] = {}
    for slot in ("q", "k", "v"):
        for parameter, index in anatomy.weights(slot, layer, torch.arange(anatomy.width(slot, layer))):
            counts.setdefault(id(parameter), torch.zeros(parameter.shape, dtype=torch.int64))[index] += 1
    assert len(counts) == {"phi3": 1, "glm": 6}.get(name, 2)  # without or with a bias; glm fuses gate and up only
    assert all(bool((count == 1).all()) for count in counts.values())
    pairs = anatomy.weights("ffn", layer, torch.arange(anatomy.width("ffn", layer)))
    masks = _selected(model, pairs)
    assert all(bool(mask.all()) for mask in masks.values())
    assert len(masks) == (2 if name in ("phi3", "glm") else 3)  # gate-up and down; or up, its bias, and down


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_units_of_experts(name: str) -> None:
    model = tiny_model(name)
    anatomy = Anatomy(model, check=False)
    experts = model.model.layers[0].mlp.experts
    unit = anatomy.expert_unit(0, 2, 5)
    with torch.no_grad():
        for parameter, index in anatomy.weights("ffn", 0, torch.tensor([unit])):
            parameter[index] = torch.nan
    nan = {key: value.isnan() for key, value in experts.named_parameters()}
    assert nan["gate_up_proj"][2, [5, 25]].all()
    assert nan["down_proj"][2, :, 5].all()
    assert int(nan["gate_up_proj"].sum()) == 2 * 32
    assert int(nan["down_proj"].sum()) == 32
    assert anatomy.expert_unit(0, 3, 19) == anatomy.width("ffn", 0) - 1
    for expert, inner in ((4, 0), (-1, 0), (0, 20), (0, -1)):
        with pytest.raises(ConfigError, match=rf"experts 0\.\.3 of units 0\.\.19, found expert {expert}, unit {inner}"):
            anatomy.expert_unit(0, expert, inner)


def test_dense_layers_among_experts() -> None:
    anatomy = Anatomy(tiny_model("qwen3_moe"), check=False)
    assert [anatomy.width("ffn", layer) for layer in range(3)] == [80, 44, 80]
    assert anatomy.expert_unit(1, 0, 43) == 43
    with pytest.raises(ConfigError, match=r"experts 0\.\.0"):
        anatomy.expert_unit(1, 1, 0)


def test_slot_names_and_aliases() -> None:
    assert resolve_slots(None) == SLOTS
    assert resolve_slots("v") == ("v",)
    assert resolve_slots(["ffn", "q"]) == ("q", "ffn"), "in canonical order"
    assert resolve_slots(["gate", "up", "down"]) == ("ffn",)
    for wrong in (["q", "w"], [], "qk"):
        with pytest.raises(ConfigError, match="wanted slots among q, k, v, o, ffn"):
            resolve_slots(wrong)
    anatomy = Anatomy(tiny_model("llama"), slots=("gate", "k"), check=False)
    assert anatomy.slots == ("k", "ffn")
    assert list(anatomy.widths()) == ["k", "ffn"]
    assert anatomy.width("up", 0) == anatomy.width("down", 0) == anatomy.width("ffn", 0) == 44


def test_names_of_families() -> None:
    assert Anatomy(tiny_model("llama"), check=False).family == "Llama"
    assert all(not Anatomy(tiny_model(name), check=False).family.startswith("recognised") for name in FAMILIES)
    for name in PROBED:
        model = tiny_model(name)
        assert Anatomy(model, check=False).family == f"recognised: {model.config.model_type}"


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_dense_weight_is_out_by_in(name: str) -> None:
    model = tiny_model(name)
    layer = Anatomy(model, check=False).layers[0]
    assert layer.ffn.down is not None
    weight = dense_weight(layer.ffn.down)
    assert weight.shape == (32, 44)
    states = torch.randn(3, 44, generator=torch.Generator().manual_seed(0))
    bias = getattr(layer.ffn.down, "bias", None)
    expected = states @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(layer.ffn.down(states), expected)


# ----------------------------------------------------------------------------------------------------------------------
# What passes the self-check
# ----------------------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_the_self_check(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(name, dtype)
    assert Anatomy(model).slots == SLOTS
    impacts = neuron_impacts(model, *ragged_batch(model))
    exact = neuron_impacts(tiny_model(name), *ragged_batch(model))
    for slot in SLOTS:
        assert impacts[slot][0].dtype == torch.float32
        difference = (impacts[slot][0] - exact[slot][0]).norm() / exact[slot][0].norm()
        assert difference < (0.1 if dtype == torch.bfloat16 else 0.02)


class Int8Linear(nn.Module):
    """A linear layer kept as 8-bit integers with a scale per output channel, as quantised checkpoints have it."""

    def __init__(self, linear: nn.Linear, as_parameter: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        weight = (linear.weight.detach() / scale).round().to(torch.int8)
        if as_parameter:
            self.weight = nn.Parameter(weight, requires_grad=False)
        else:
            self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight.to(states.dtype) * self.scale.to(states.dtype), self.bias)


def _quantise(model: nn.Module, as_parameter: bool) -> None:
    for module in list(model.model.layers.modules()):  # type: ignore[union-attr]
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child, as_parameter))


@pytest.mark.parametrize("as_parameter", [False, True])
@pytest.mark.parametrize("name", ["llama_biases", "qwen3"])
def test_quantised_linears(name: str, as_parameter: bool) -> None:
    """Their weights are probed; their impacts are those of the dequantised model."""
    model, dense = tiny_model(name), tiny_model(name)
    _quantise(model, as_parameter)
    for key, module in model.named_modules():
        if isinstance(module, Int8Linear):
            dense.get_submodule(key).weight.data = module.weight.float() * module.scale
            torch.testing.assert_close(dense_weight(module), module.weight.float() * module.scale, rtol=1e-6, atol=1e-7)
    batch = ragged_batch(model)
    found, expected = neuron_impacts(model, *batch), neuron_impacts(dense, *batch)
    for slot in SLOTS:
        for layer in range(2):
            torch.testing.assert_close(found[slot][layer], expected[slot][layer], rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match=r"Int8Linear is quantised.*Load the model without quantization"):
        Anatomy(model, check=False).weights("q", 0, torch.tensor([0]))


def _triple(mlp: nn.Module, states: Tensor) -> Tensor:
    return 3 * modeling_llama.LlamaMLP.forward(mlp, states)  # type: ignore[arg-type]


def test_a_factor_between_w_down_and_the_residual_stream_is_seen() -> None:
    """The check measures at the output of the FFN, where a unit counts three times what W_down shows of it."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.__class__ = type("TripleMLP", (type(layer.mlp),), {"forward": _triple})
    with pytest.raises(UnsupportedModelError, match=r"slot ffn, unit .*really zeroing it changes the sub-layer output"):
        Anatomy(model)
    assert Anatomy(model, ("q", "k", "v", "o")).slots == ("q", "k", "v", "o")


def test_a_factor_behind_the_experts_is_seen() -> None:
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        block = type(layer.mlp)
        forward = {"forward": lambda mlp, states, block=block: 2.5 * block.forward(mlp, states)}
        layer.mlp.__class__ = type("ScaledExperts", (block,), forward)
    with pytest.raises(UnsupportedModelError, match="slot ffn, unit"):
        Anatomy(model)


def test_matrices_beside_the_experts_are_not_left_out() -> None:
    """A shared MLP by any name."""
    model = tiny_model("mixtral")
    model.model.layers[0].mlp.any_name = nn.Linear(32, 20)
    with pytest.raises(UnsupportedModelError, match=r"beside the routed experts \(mlp.any_name.weight\)"):
        Anatomy(model, check=False)
    assert Anatomy(model, ("v",), check=False).slots == ("v",)


def test_experts_beside_a_dense_ffn_are_not_left_out() -> None:
    model = tiny_model("llama")
    model.model.layers[1].experts = tiny_model("mixtral").model.layers[0].mlp.experts
    with pytest.raises(UnsupportedModelError, match=r"layer 1: .* beside its dense FFN \(experts.gate_up_proj"):
        Anatomy(model, check=False)


def test_matrices_that_hold_no_units_are_named() -> None:
    assert Anatomy(tiny_model("llama"), check=False).unscored(0) == []
    assert Anatomy(tiny_model("phi3"), check=False).unscored(1) == []
    assert Anatomy(tiny_model("mixtral"), check=False).unscored(0) == ["mlp.gate.weight"]
    assert Anatomy(tiny_model("llama"), ("o", "ffn"), check=False).unscored(0) == [
        f"self_attn.{name}_proj.weight" for name in "qkv"
    ]


# ----------------------------------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------------------------------


def _refused(model: nn.Module, slots: tuple[str, ...] | None = None) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        Anatomy(model, resolve_slots(slots))
    return str(caught.value)


def test_encoder_decoder() -> None:
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    message = _refused(T5ForConditionalGeneration(config))
    assert message.startswith("T5ForConditionalGeneration is an encoder-decoder")
    assert message.endswith("Choose a causal language model.")


def test_a_module_that_is_no_transformers_model() -> None:
    message = _refused(nn.Linear(3, 3))
    assert "found Linear without a config" in message
    assert "babelscope.load_model" in message


def test_a_compiled_model() -> None:
    model = tiny_model("llama")
    message = _refused(torch.compile(model))  # type: ignore[arg-type]
    assert "wrapped by torch.compile" in message
    assert "model._orig_mod" in message
    assert Anatomy(torch.compile(model)._orig_mod, check=False).family == "Llama"  # type: ignore[union-attr]


def test_an_architecture_without_the_pattern() -> None:
    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1, expand=1)
    message = _refused(MambaForCausalLM(config))
    assert "no decoder layers at 'model.layers' or" in message
    assert "MambaForCausalLM" in message
    assert "Known families: Llama, Mistral, BLOOM" in message
    assert "CONTRIBUTING.md" in message


def test_names_that_fit_around_heads_that_do_not() -> None:
    """Falcon's names are BLOOM's, but its queries share one key and value."""
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert "This layout of heads is not known" in _refused(FalconForCausalLM(FalconConfig(**sizes, multi_query=True)))


def test_attention_that_does_not_use_the_shared_interface() -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = FalconForCausalLM(FalconConfig(**sizes, multi_query=False)).eval()
    message = _refused(model)
    assert "layer 0, slot q" in message
    assert "pass slots without q" in message
    assert Anatomy(model, ("v", "o", "ffn")).slots == ("v", "o", "ffn")


def _refused_only(model: nn.Module, slot: str) -> None:
    """Refused because of that slot, which the message names with the remedy; the rest of the model is let through."""
    message = _refused(model)
    assert re.search(rf"\bslot {slot}\b", message), message
    assert re.search(r"[Pp]ass slots without (q and k|.)", message), message
    assert slot != "ffn"
    assert Anatomy(model, ("ffn",)).slots == ("ffn",)
    assert neuron_impacts(model, *ragged_batch(model), slots=("ffn",)).keys() == {"ffn"}


def test_queries_scaled_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = modeling_llama.apply_rotary_pos_emb

    def scaled(query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        query, key = rotate(query, *args, **kwargs)
        return query * (1 + 0.1 * torch.arange(query.shape[2], dtype=query.dtype))[:, None], key

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", scaled)
    _refused_only(tiny_model("llama"), "q")
    assert "the attention function received something else (nearest: half rotation" in _refused(tiny_model("llama"))
    assert Anatomy(tiny_model("llama"), ("v", "o", "ffn")).slots == ("v", "o", "ffn")


def test_queries_scaled_near_the_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Ministral 3, whose scale is 1 for the first 16,384 positions."""
    rotate = modeling_llama.apply_rotary_pos_emb
    model = tiny_model("llama")
    far: list[bool] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        far.append(bool(kwargs["position_ids"].max() > 40))

    model.model.layers[0].self_attn.register_forward_pre_hook(note, with_kwargs=True)

    def scaled(query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        query, key = rotate(query, *args, **kwargs)
        return (1.1 * query if far and far[-1] else query), key

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", scaled)
    assert "layer 0, slot q: wanted queries" in _refused(model)
    assert far == [True]


def test_keys_scaled_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = modeling_llama.apply_rotary_pos_emb

    def scaled(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        query, key = rotate(*args, **kwargs)
        return query, key * (1 + 0.1 * torch.arange(key.shape[2], dtype=key.dtype))[:, None]

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", scaled)
    _refused_only(tiny_model("llama"), "k")


class NormedLinear(nn.Linear):
    """The norm hides inside the projection, so that no name shows it."""

    def forward(self, states: Tensor) -> Tensor:
        heads = super().forward(states).unflatten(-1, (2, -1))
        return nn.functional.normalize(heads, dim=-1).flatten(-2)


@pytest.mark.parametrize("slot", ["q", "k", "v"])
def test_a_norm_hidden_in_a_projection(slot: str) -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        getattr(layer.self_attn, f"{slot}_proj").__class__ = NormedLinear
    _refused_only(model, slot)


@pytest.mark.parametrize("slot", ["q", "k"])
def test_another_norm_than_rms_on_queries_or_keys(slot: str) -> None:
    model = tiny_model("qwen3")
    for layer in model.model.layers:
        setattr(layer.self_attn, f"{slot}_norm", nn.LayerNorm(16))
    _refused_only(model, slot)


def test_only_the_last_layer_differs() -> None:
    model = tiny_model("qwen3")
    model.model.layers[-1].self_attn.k_norm = nn.LayerNorm(16)
    assert "layer 1, slot k" in _refused(model)


def test_real_layer_norms_on_queries_and_keys() -> None:
    config = CohereConfig(**tiny._GROUPED, rope_parameters=dict(tiny._ROPE), use_qk_norm=True)
    _refused_only(tiny._build(CohereForCausalLM, config), "q")


def test_a_norm_between_the_ffns_matrices() -> None:
    """Switching a unit off then changes all the others."""
    model = tiny_model("starcoder2")
    for layer in model.model.layers:
        layer.mlp.act = nn.Sequential(nn.GELU(), nn.RMSNorm(44))
    message = _refused(model)
    assert "slot ffn" in message
    assert "Pass slots without ffn (q, k, v, o)" in message
    assert Anatomy(model, ("q", "k", "v", "o")).slots == ("q", "k", "v", "o")


def _skip_down(mlp: nn.Module) -> Callable[[Tensor], Tensor]:
    """Computes the MLP from the weights, as a fused kernel does: W_down's module is never called."""

    def forward(states: Tensor) -> Tensor:
        gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
        linear = nn.functional.linear
        return linear(nn.functional.silu(linear(states, gate)) * linear(states, up), down)

    return forward


def test_hooks_that_never_fire() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.forward = _skip_down(layer.mlp)
    message = _refused(model)
    assert "layer 0, slot ffn: the forward pass never reached the observed module" in message
    assert "pass slots without ffn" in message
    assert Anatomy(model, ("q", "k", "v", "o")).slots == ("q", "k", "v", "o")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    ("slot", "path"), [("v", "self_attn.v_proj"), ("ffn", "mlp.up_proj"), ("k", "self_attn.k_proj")]
)
def test_nan_weights_are_named(slot: str, path: str, layer: int) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[layer].get_submodule(path).weight[3, 5] = torch.nan
    with pytest.raises(NumericsError, match=rf"layer {layer}, slot {'q' if slot == 'k' else slot}: .* NaN or infinite"):
        Anatomy(model)
    anatomy = Anatomy(model, check=False)  # found later, by a run over text, it is named as well
    with pytest.raises(NumericsError, match=rf"layer {layer}, slot {'q' if slot == 'k' else slot}: .* NaN or infinite"):
        neuron_impacts(anatomy, *ragged_batch(model))


def test_a_refused_model_is_returned_as_it_was() -> None:
    model = tiny_model("qwen3").train()
    model.model.layers[-1].self_attn.k_norm = nn.LayerNorm(16)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    _refused(model)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
