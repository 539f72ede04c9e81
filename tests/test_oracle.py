"""The oracle itself: it edits what it says, leaves nothing behind, and agrees with formulas worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

import oracle
from tiny import ALL, ragged_batch, tiny_model

torch.set_num_threads(1)

every_model = pytest.mark.parametrize("name", ALL)


def _impact(model: PreTrainedModel, side: str, slot: oracle.Slot, layer: int, unit: int) -> Tensor:
    input_ids, attention_mask = ragged_batch(model, side)
    with oracle.DoubleSteps():
        return oracle.brute_force_impact(model, input_ids, attention_mask, slot, layer, unit)


@every_model
def test_leaves_the_model_as_it_was(name: str) -> None:
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attention = model.config._attn_implementation
    input_ids, attention_mask = ragged_batch(model)
    for slot in oracle.SLOTS:
        oracle.brute_force_impact(model, input_ids, attention_mask, slot, oracle.n_layers(model) - 1, 3)
    with pytest.raises(RuntimeError), oracle.zeroed(model, "v", 0, 1):
        raise RuntimeError
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.config._attn_implementation == attention
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@every_model
def test_zeroing_touches_every_weight_of_the_unit_and_no_other(name: str) -> None:
    """Counted: one row, one column, or the rows and the column of a feed-forward unit, in that layer only."""
    model = tiny_model(name)
    for layer in range(oracle.n_layers(model)):
        for slot in oracle.SLOTS:
            before = {key: value.clone() for key, value in model.named_parameters()}
            with oracle.zeroed(model, slot, layer, 5):
                changed = {key: int((value != before[key]).sum()) for key, value in model.named_parameters()}
            changed = {key: count for key, count in changed.items() if count}
            assert all(f".{layer}." in key for key in changed)
            hidden = model.config.hidden_size  # every row and column meets the residual stream on its other side
            assert set(changed.values()) <= {1, hidden, 2 * hidden}  # 1: a bias; 2: gate and up in one matrix
            gated = oracle._layout(model).gate is not None
            lines = sum(count for count in changed.values() if count > 1) // hidden
            assert lines == ((3 if gated else 2) if slot == "ffn" else 1)


@every_model
def test_a_unit_without_weights_has_no_impact(name: str) -> None:
    model = tiny_model(name, torch.float64)
    for slot in oracle.SLOTS:
        with oracle.zeroed(model, slot, 1, 6):
            assert _impact(model, "left", slot, 1, 6).eq(0).all()
            assert _impact(model, "left", slot, 1, 7).gt(0).any() or slot == "ffn"


@every_model
def test_the_side_of_the_padding_and_its_tokens_do_not_matter(name: str) -> None:
    model = tiny_model(name, torch.float64)
    input_ids, _ = ragged_batch(model, "right", (5, 9, 12))
    for slot in oracle.SLOTS:
        right = _impact(model, "right", slot, 1, 4)
        torch.testing.assert_close(_impact(model, "left", slot, 1, 4), right, rtol=1e-11, atol=1e-12)
        for row, length in enumerate((5, 9, 12)):
            alone = input_ids[row : row + 1, :length]
            with oracle.DoubleSteps():
                impact = oracle.brute_force_impact(model, alone, torch.ones_like(alone), slot, 1, 4)
            torch.testing.assert_close(impact, right[row : row + 1], rtol=1e-11, atol=1e-12)


def _captured_qkv(model: PreTrainedModel, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the model itself takes for queries, keys and values of its heads, [B, heads, T, head_dim] each."""
    input_ids, attention_mask = ragged_batch(model)
    captured: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    if model.config.model_type == "bloom":
        attention = model.transformer.h[layer].self_attention

        def split(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            captured[layer] = attention._reshape(output)

        handle = attention.query_key_value.register_forward_hook(split)
        with torch.no_grad():
            model(input_ids=input_ids, attention_mask=attention_mask)
        handle.remove()
        return captured[layer]

    def capture(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> tuple:
        captured[module.layer_idx] = (q, k, v)
        return oracle._attention(module, q, k, v, *args, **kwargs)

    AttentionInterface.register("oracle_test_capture", capture)
    AttentionMaskInterface.register("oracle_test_capture", oracle._mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("oracle_test_capture")
    with torch.no_grad():
        model(input_ids=input_ids, attention_mask=attention_mask)
    model.set_attn_implementation(before)
    return captured[layer]


@every_model
def test_units_are_the_channels_of_the_heads_they_are_said_to_be(name: str) -> None:
    model = tiny_model(name, torch.float64)
    layer = 1
    whole = _captured_qkv(model, layer)
    _, _, head_dim = oracle._heads(model)
    for which, slot in enumerate(("q", "k", "v")):
        unit = head_dim + 3  # head 1, channel 3
        if oracle.width(model, slot, layer) <= unit:
            unit = 3
        head, channel = divmod(unit, head_dim)
        with oracle.zeroed(model, slot, layer, unit):
            without = _captured_qkv(model, layer)
        for other in {0, 1, 2} - {which}:
            assert torch.equal(without[other], whole[other])
        changed = (without[which] != whole[which]).any(dim=2).any(dim=0)  # [heads, head_dim]
        assert changed[head].any()
        if "olmo" not in name:  # OLMo's Q/K norms mix the heads
            changed[head] = False
            assert not changed.any()
        if slot == "v" or name.startswith(("gpt2", "opt", "bloom")):  # not rotated
            assert without[which][:, head, :, channel].eq(0).all()


@every_model
def test_ffn_units_feed_the_matrix_they_are_said_to_feed(name: str) -> None:
    model = tiny_model(name, torch.float64)
    layer, unit = 1, 7
    block = oracle._layer(model, layer)
    if oracle._experts(block) is not None:
        pytest.skip("experts have no module between their matrices")
    down = block.get_submodule(oracle._layout(model).down)
    seen: list[Tensor] = []
    handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    input_ids, attention_mask = ragged_batch(model)
    with torch.no_grad(), oracle.DoubleSteps():  # or the padding of float64 Gemma 2 is NaN
        model(input_ids=input_ids, attention_mask=attention_mask)
        with oracle.zeroed(model, "ffn", layer, unit):
            model(input_ids=input_ids, attention_mask=attention_mask)
    handle.remove()
    whole, without = seen
    assert without[..., unit].eq(0).all()
    without[..., unit] = whole[..., unit]
    assert torch.equal(whole, without)


def test_ffn_by_hand_on_llama() -> None:
    """|| h_n || * || W_down[:, n] ||, with h from the MLP's input and its weights."""
    model = tiny_model("llama_biases", torch.float64)
    input_ids, attention_mask = ragged_batch(model)
    layer, unit = 1, 17
    mlp = model.model.layers[layer].mlp
    seen: list[Tensor] = []
    handle = mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=input_ids, attention_mask=attention_mask)
    handle.remove()

    with torch.no_grad():
        gate = seen[0] @ mlp.gate_proj.weight[unit] + mlp.gate_proj.bias[unit]
        up = seen[0] @ mlp.up_proj.weight[unit] + mlp.up_proj.bias[unit]
        h_BT = gate * torch.sigmoid(gate) * up * attention_mask
        expected = h_BT.norm(dim=1) * mlp.down_proj.weight[:, unit].norm()
    found = oracle.brute_force_impact(model, input_ids, attention_mask, "ffn", layer, unit)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # 1e-6: Llama's RMSNorm rounds to float32


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_experts_by_hand(name: str) -> None:
    """|| w h_n || * || W_down[:, n] || over the tokens that were sent to the expert, w the routing weight."""
    model = tiny_model(name, torch.float64)
    input_ids, attention_mask = ragged_batch(model)
    layer = 0
    experts = model.model.layers[layer].mlp.experts
    seen: list[tuple[Tensor, ...]] = []
    handle = experts.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        model(input_ids=input_ids, attention_mask=attention_mask)
    handle.remove()

    x_NM, chosen_NK, weight_NK = seen[0]
    for expert, inner in ((0, 3), (1, 19), (2, 0), (3, 11)):
        gate_row, up_row = experts.gate_up_proj[expert].detach()[[inner, 20 + inner]]
        gate = x_NM @ gate_row
        h_N = gate * torch.sigmoid(gate) * (x_NM @ up_row)
        h_BT = (h_N * torch.where(chosen_NK == expert, weight_NK, 0).sum(-1)).view(input_ids.shape) * attention_mask
        expected = h_BT.norm(dim=1) * experts.down_proj[expert, :, inner].detach().norm()
        found = oracle.brute_force_impact(model, input_ids, attention_mask, "ffn", layer, expert * 20 + inner)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("slot", ["q", "k"])
@pytest.mark.parametrize("name", ["gpt2", "gpt2_inverse_layer_scale", "opt", "bloom"])
def test_attention_by_hand_where_nothing_rotates(name: str, slot: oracle.Slot) -> None:
    """softmax(S - s q_c k_c^T) - softmax(S) in the one head that owns the channel."""
    model = tiny_model(name, torch.float64)
    layer, head, channel = 1, 2, 5
    q, k, _ = _captured_qkv(model, layer)
    scale = 1 / math.sqrt(8)
    if name == "gpt2_inverse_layer_scale":
        scale /= layer + 1
    if name == "opt":
        scale = 1.0  # OPT's queries arrive scaled

    _, attention_mask = ragged_batch(model)
    tokens = attention_mask.shape[1]
    bias = torch.zeros(tokens, tokens, dtype=torch.float64).masked_fill(torch.ones(tokens, tokens).triu(1) > 0, -1e30)
    if name == "bloom":  # 4 heads: slopes 2^-2, 2^-4, 2^-6, 2^-8
        bias = bias + 2.0 ** (-2 * (head + 1)) * torch.arange(tokens)
    scores = scale * q[:, head] @ k[:, head].mT + bias
    term = scale * q[:, head, :, channel, None] * k[:, head, None, :, channel]
    difference = ((scores - term).softmax(-1) - scores.softmax(-1)) * attention_mask[..., None]
    expected = difference.flatten(1).norm(dim=1)

    assert torch.allclose(_impact(model, "right", slot, layer, head * 8 + channel), expected, rtol=1e-6)


@every_model
def test_float32_steps_change_little(name: str) -> None:
    """The double-precision variant of a float64 model is the same model, and so is what the oracle runs."""
    model = tiny_model(name, torch.float64)
    input_ids, _ = ragged_batch(model)  # whole rows: padded rows are NaN in float64 under the eager attention
    with torch.no_grad():
        plain = model(input_ids=input_ids).logits
        with oracle.DoubleSteps():
            double = model(input_ids=input_ids).logits
            if name != "bloom":
                model.set_attn_implementation(oracle.ATTENTION)
            recorded = model(input_ids=input_ids).logits
    torch.testing.assert_close(double, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recorded, double, rtol=1e-12, atol=1e-12)


@every_model
def test_tiny_models_are_not_vacuous(name: str) -> None:
    model = tiny_model(name)
    assert all(parameter.std() > 0.05 for parameter in model.parameters() if parameter.ndim == 1)
    input_ids, attention_mask = ragged_batch(model)
    for layer in range(oracle.n_layers(model)):
        p_BTHS = oracle._measured(model, input_ids, attention_mask, "q", layer)
        rows = p_BTHS.unflatten(-1, (-1, input_ids.shape[1]))[2, 6:]  # the unpadded sequence, from 7 keys on
        assert 0.2 < rows.amax(-1).mean() < 0.9, "attention is uniform or saturated"
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000


def test_weights_are_the_same_in_every_dtype_and_every_call() -> None:
    single, double = tiny_model("llama"), tiny_model("llama", torch.float64)
    for left, right in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(left.double(), right)
