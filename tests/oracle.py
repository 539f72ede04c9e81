"""The impact of a neuron by its definition: zero its weights, run the model again, measure the difference.

Slow, and deliberately without a line in common with `babelscope`: where the weights of a neuron live is written down
here by hand, per architecture, from the modeling files of transformers.

Measured per sequence, as a Frobenius norm over the unpadded positions, at
- `ffn`, `v`, `o`: the output of the module that holds W_down, or W_O;
- `q`, `k`: the attention probabilities of all heads, rows of unpadded queries.
Everything before the edited layer is unchanged, so the difference is the layer's own.

Axes: `B` batch, `T` query tokens, `S` key tokens, `H` query heads, `D` head dim.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

Slot = Literal["q", "k", "v", "o", "ffn"]
SLOTS: tuple[Slot, ...] = ("q", "k", "v", "o", "ffn")


# ----------------------------------------------------------------------------------------------------------------------
# Where the weights are
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Names of one architecture's weights, as written in its modeling file."""

    layers: str = "model.layers"
    """Path of the list of layers."""
    attention: str = "self_attn"
    """Path of the attention module inside a layer; `qkv` and `o` are inside it."""
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Three projections, or the one that fuses them."""
    order: Literal["separate", "concatenated", "per head"] = "separate"
    """Rows of a fused projection: [all q | all k | all v], or [q | k | v] once for every head."""
    o: str = "o_proj"
    up: str = "mlp.up_proj"
    gate: str | None = "mlp.gate_proj"
    """None: no gate. The same name as `up`: one matrix holding [gate | up]."""
    down: str = "mlp.down_proj"
    transposed: bool = False
    """transformers' Conv1D, whose weight is [in, out]."""


_LLAMA = Layout()

LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "olmo3"), _LLAMA),
    **dict.fromkeys(("cohere", "smollm3", "stablelm", "granite", "mixtral", "qwen3_moe", "olmoe"), _LLAMA),
    "glm": Layout(gate="mlp.gate_up_proj", up="mlp.gate_up_proj"),
    "phi3": Layout(qkv=("qkv_proj",), order="concatenated", gate="mlp.gate_up_proj", up="mlp.gate_up_proj"),
    "starcoder2": Layout(gate=None, up="mlp.c_fc", down="mlp.c_proj"),
    "phi": Layout(o="dense", gate=None, up="mlp.fc1", down="mlp.fc2"),
    "opt": Layout(layers="model.decoder.layers", o="out_proj", gate=None, up="fc1", down="fc2"),
    "gpt2": Layout(
        layers="transformer.h",
        attention="attn",
        qkv=("c_attn",),
        order="concatenated",
        o="c_proj",
        gate=None,
        up="mlp.c_fc",
        down="mlp.c_proj",
        transposed=True,
    ),
    "gpt_neox": Layout(
        layers="gpt_neox.layers",
        attention="attention",
        qkv=("query_key_value",),
        order="per head",
        o="dense",
        gate=None,
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    ),
    "bloom": Layout(
        layers="transformer.h",
        attention="self_attention",
        qkv=("query_key_value",),
        order="per head",
        o="dense",
        gate=None,
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    ),
}
"""By `config.model_type`. Mixture-of-experts layers are told by their `mlp.experts`, with 3-D weights."""


def _layout(model: PreTrainedModel) -> Layout:
    return LAYOUTS[model.config.model_type]


def _layer(model: PreTrainedModel, layer: int) -> nn.Module:
    return model.get_submodule(f"{_layout(model).layers}.{layer}")


def _experts(block: nn.Module) -> nn.Module | None:
    return getattr(getattr(block, "mlp", None), "experts", None)


def _heads(model: PreTrainedModel) -> tuple[int, int, int]:
    """Query heads, kv heads, head dim."""
    config = model.config
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return n_heads, n_kv_heads, head_dim


def n_layers(model: PreTrainedModel) -> int:
    """How many layers the model has."""
    return len(model.get_submodule(_layout(model).layers))


def width(model: PreTrainedModel, slot: Slot, layer: int) -> int:
    """How many neurons the slot has in that layer."""
    n_heads, n_kv_heads, head_dim = _heads(model)
    if slot in ("q", "o"):
        return n_heads * head_dim
    if slot in ("k", "v"):
        return n_kv_heads * head_dim
    block, layout = _layer(model, layer), _layout(model)
    if (experts := _experts(block)) is not None:
        n_experts, _, intermediate = experts.down_proj.shape
        return n_experts * intermediate
    weight = block.get_submodule(layout.down).weight
    return weight.shape[0 if layout.transposed else 1]


@dataclass(frozen=True)
class Cut:
    """A part of a parameter that belongs to one neuron."""

    parameter: nn.Parameter
    index: tuple[int | slice, ...]


def _row(projection: nn.Module, index: int, transposed: bool) -> list[Cut]:
    """An output channel: its weights and its bias."""
    everything = slice(None)
    cuts = [Cut(projection.weight, (everything, index) if transposed else (index, everything))]
    if projection.bias is not None:
        cuts.append(Cut(projection.bias, (index,)))
    return cuts


def _column(projection: nn.Module, index: int, transposed: bool) -> list[Cut]:
    """An input channel."""
    everything = slice(None)
    return [Cut(projection.weight, (index, everything) if transposed else (everything, index))]


def _projection_row(model: PreTrainedModel, slot: Slot, unit: int) -> tuple[int, int]:
    """Which of the layout's q/k/v projections holds the unit, and in which row of it."""
    n_heads, n_kv_heads, head_dim = _heads(model)
    which = ("q", "k", "v").index(slot)
    order = _layout(model).order
    if order == "separate":
        return which, unit
    if order == "concatenated":
        starts = (0, n_heads * head_dim, (n_heads + n_kv_heads) * head_dim)
        return 0, starts[which] + unit
    head, channel = divmod(unit, head_dim)
    return 0, (head * 3 + which) * head_dim + channel


def cuts(model: PreTrainedModel, slot: Slot, layer: int, unit: int) -> list[Cut]:
    """All the weights of one neuron."""
    layout, block = _layout(model), _layer(model, layer)
    attention = block.get_submodule(layout.attention)
    if slot == "o":
        return _column(attention.get_submodule(layout.o), unit, layout.transposed)
    if slot != "ffn":
        which, row = _projection_row(model, slot, unit)
        return _row(attention.get_submodule(layout.qkv[which]), row, layout.transposed)

    everything = slice(None)
    if (experts := _experts(block)) is not None:
        intermediate = experts.down_proj.shape[-1]
        expert, inner = divmod(unit, intermediate)
        return [
            Cut(experts.gate_up_proj, (expert, inner, everything)),
            Cut(experts.gate_up_proj, (expert, intermediate + inner, everything)),
            Cut(experts.down_proj, (expert, everything, inner)),
        ]
    up, down = block.get_submodule(layout.up), block.get_submodule(layout.down)
    found = _column(down, unit, layout.transposed)
    if layout.gate == layout.up:
        intermediate = up.weight.shape[0] // 2
        return found + _row(up, unit, False) + _row(up, intermediate + unit, False)
    if layout.gate is not None:
        found += _row(block.get_submodule(layout.gate), unit, layout.transposed)
    return found + _row(up, unit, layout.transposed)


@contextlib.contextmanager
def zeroed(model: PreTrainedModel, slot: Slot, layer: int, unit: int) -> Iterator[None]:
    """The model without that neuron; every bit of it is back afterwards."""
    found = cuts(model, slot, layer, unit)
    saved = [cut.parameter.detach()[cut.index].clone() for cut in found]
    try:
        with torch.no_grad():
            for cut in found:
                cut.parameter[cut.index] = 0
        yield
    finally:
        with torch.no_grad():
            for cut, value in zip(found, saved, strict=True):
                cut.parameter[cut.index] = value


# ----------------------------------------------------------------------------------------------------------------------
# What is measured
# ----------------------------------------------------------------------------------------------------------------------

ATTENTION = "oracle_recording"
"""Name of the recording attention in transformers' registries."""

_probabilities: dict[int, Tensor] = {}
"""Layer -> attention probabilities [B, H, T, S] of the last forward pass under `ATTENTION`."""


def _attention(
    module: nn.Module,
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention, softmax in the model's own precision (the eager path of transformers rounds it to float32)."""
    group = q_BHTD.shape[1] // k_BGSD.shape[1]
    k_BHSD, v_BHSD = k_BGSD.repeat_interleave(group, dim=1), v_BGSD.repeat_interleave(group, dim=1)
    scale = q_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    scores = scale * (q_BHTD @ k_BHSD.mT)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # Not -inf: the rows of left padding see no key at all, and NaN would spread to the layers above.
    scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    p_BHTS = scores.softmax(-1)
    _probabilities[module.layer_idx] = p_BHTS
    return (p_BHTS @ v_BHSD).transpose(1, 2).contiguous(), p_BHTS


def _mask(*args: Any, **kwargs: Any) -> Tensor:
    """Boolean mask, True where attention goes; always materialised."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def _record_bloom(attention: nn.Module, layer: int) -> list[torch.utils.hooks.RemovableHandle]:
    """BLOOM computes its attention inline: repeat it beside the module, from the fused projection's output."""
    held: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        held["qkv"] = output

    def repeat(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        batch, tokens, _ = held["qkv"].shape
        heads, head_dim = module.num_heads, module.head_dim
        q, k, _ = held["qkv"].view(batch, tokens, heads, 3, head_dim).permute(3, 0, 2, 1, 4)
        scores = q @ k.mT / head_dim**0.5 + kwargs["alibi"].view(batch, heads, 1, tokens)
        _probabilities[layer] = (scores + kwargs["attention_mask"]).softmax(-1)

    return [
        attention.query_key_value.register_forward_hook(keep),
        attention.register_forward_hook(repeat, with_kwargs=True),
    ]


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids counted from the first unpadded token, as `generate` does: the side of the padding is irrelevant."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def _measured(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, slot: Slot, layer: int) -> Tensor:
    """Run the model; return what an edit of that slot and layer is measured on, [B, T, anything], 0 on padding."""
    layout, block = _layout(model), _layer(model, layer)
    attention = block.get_submodule(layout.attention)
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen["output"] = output

    handles = []
    if slot in ("v", "o"):
        handles.append(attention.get_submodule(layout.o).register_forward_hook(keep))
    elif slot == "ffn":
        down = _experts(block) or block.get_submodule(layout.down)
        handles.append(down.register_forward_hook(keep))
    elif model.config.model_type == "bloom":
        handles += _record_bloom(attention, layer)

    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = positions(attention_mask)
    before = model.config._attn_implementation
    try:
        if model.config.model_type != "bloom":
            model.set_attn_implementation(ATTENTION)
            assert model.config._attn_implementation == ATTENTION
        with torch.no_grad():
            model(**inputs)
        value = _probabilities[layer].transpose(1, 2) if slot in ("q", "k") else seen["output"]
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(before)
        _probabilities.clear()
    batch, tokens = input_ids.shape
    value = value.reshape(batch, tokens, -1)  # OPT's MLP and the experts see [B * T, M]
    return torch.where(attention_mask.bool()[..., None], value, 0)


class DoubleSteps(TorchFunctionMode):
    """Leaves out the float32 steps inside a float64 model (RMSNorm, rotation, softmax), which then is float64 all over.

    Modeling files cast to float32 for the sake of bfloat16 models. In a float64 model that costs 9 digits, and a
    difference of two passes shows it. Under this mode formulas can be compared to the last digits.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = [torch.float64 if argument is torch.float32 else argument for argument in args]
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def brute_force_impacts(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, slot: Slot, layer: int, units: Sequence[int]
) -> Tensor:
    """`brute_force_impact` of several units of a slot and layer, [units, B], with the unedited pass run only once."""
    whole = _measured(model, input_ids, attention_mask, slot, layer)
    impacts = []
    for unit in units:
        with zeroed(model, slot, layer, unit):
            without = _measured(model, input_ids, attention_mask, slot, layer)
        impacts.append((without - whole).flatten(1).norm(dim=1))
    return torch.stack(impacts)


def brute_force_impact(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, slot: Slot, layer: int, unit: int
) -> Tensor:
    """How much the sub-layer's output (`v`, `o`, `ffn`) or attention (`q`, `k`) changes without that neuron.

    Args:
        model: a tiny model of an architecture in `LAYOUTS`, in eval mode.
        input_ids: int64 [B, T].
        attention_mask: int64 [B, T], 0 on padding.
        slot: which kind of neuron.
        layer: in which layer.
        unit: index in the slot: heads x head_dim (`q`, `o`), kv heads x head_dim (`k`, `v`), intermediate units
            (`ffn`; experts x intermediate units in a mixture of experts).

    Returns:
        [B], the model's dtype: Frobenius norm of the difference over the unpadded positions of each sequence.
    """
    return brute_force_impacts(model, input_ids, attention_mask, slot, layer, [unit])[0]
