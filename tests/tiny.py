"""Tiny random causal language models of many architectures, built from configs: nothing is downloaded.

Weights are drawn so that no test on them is vacuous: biases and norm weights are far from their initial 0 and 1,
attention is neither uniform nor saturated, and the sizes that a wrong layout could confuse differ from each other
(hidden, heads x head_dim, kv heads x head_dim, intermediate, experts x intermediate), where the family allows it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GlmConfig,
    GlmForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

VOCABULARY = 64
SEED = 20240229

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# 4 query heads on 2 kv heads of 8 channels; 44 intermediate units are no multiple of any of these.
_GROUPED = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

_ROPE = {"rope_type": "default", "rope_theta": 100.0}
"""A small base, so that every rotary channel turns visibly within a dozen tokens."""

WEIGHT_STD = 0.2
"""With 32 inputs of unit size: projections of about 1.1 and attention scores of about 1.3."""


def _fill(model: PreTrainedModel) -> None:
    """Draw every parameter: matrices from N(0, 0.2^2), embeddings from N(0, 1), vectors moved by N(0, 0.3^2)."""
    generator = torch.Generator().manual_seed(SEED)
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }  # a tied output head is the same tensor
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                # Biases and zero-centred norm weights start at 0, other norm weights at 1: keep the centre.
                parameter.add_(0.3 * noise)
            elif id(parameter) in embeddings:
                parameter.copy_(noise)
            else:
                parameter.copy_(WEIGHT_STD * noise)


def _build(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = model_class(config)
    _fill(model)
    return model.eval()


def _llama(**changes: object) -> PreTrainedModel:
    return _build(LlamaForCausalLM, LlamaConfig(**{**_GROUPED, "rope_parameters": dict(_ROPE), **changes}))


def _mistral() -> PreTrainedModel:
    return _build(MistralForCausalLM, MistralConfig(**_GROUPED, rope_parameters=dict(_ROPE), sliding_window=4))


def _bloom() -> PreTrainedModel:
    return _build(BloomForCausalLM, BloomConfig(**_TOKENS, hidden_size=32, n_layer=2, n_head=4))


def _qwen2(**changes: object) -> PreTrainedModel:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
    return _build(Qwen2ForCausalLM, Qwen2Config(**{**_GROUPED, **sizes, "rope_parameters": dict(_ROPE), **changes}))


def _qwen3() -> PreTrainedModel:
    return _build(Qwen3ForCausalLM, Qwen3Config(**_GROUPED, rope_parameters=dict(_ROPE), head_dim=16))


def _gemma2() -> PreTrainedModel:
    return _build(
        Gemma2ForCausalLM,
        Gemma2Config(
            **{**_GROUPED, "num_hidden_layers": 3},
            rope_parameters=dict(_ROPE),
            head_dim=16,
            query_pre_attn_scalar=6,  # not head_dim, so that a scale taken from head_dim is caught
            attn_logit_softcapping=2.0,  # scores reach 4: the cap bends them
            sliding_window=4,
        ),
    )


def _gemma3() -> PreTrainedModel:
    return _build(
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **{**_GROUPED, "num_hidden_layers": 3},
            head_dim=16,
            query_pre_attn_scalar=6,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        ),
    )


def _phi3(partial_rotary_factor: float = 1.0) -> PreTrainedModel:
    rope = {**_ROPE, "partial_rotary_factor": partial_rotary_factor}
    return _build(Phi3ForCausalLM, Phi3Config(**_GROUPED, rope_parameters=rope))


def _gpt_neox() -> PreTrainedModel:
    sizes = {name: value for name, value in _GROUPED.items() if name != "num_key_value_heads"}
    sizes |= {"hidden_size": 48, "num_attention_heads": 3}  # head_dim 16, of which 4 channels turn
    rope = {**_ROPE, "partial_rotary_factor": 0.25}
    return _build(GPTNeoXForCausalLM, GPTNeoXConfig(**sizes, rope_parameters=rope))


def _gpt2(**changes: object) -> PreTrainedModel:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 44, "n_positions": 64}
    return _build(GPT2LMHeadModel, GPT2Config(**{**_TOKENS, **sizes, **changes}))


def _opt(**changes: object) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"ffn_dim": 44, "max_position_embeddings": 64}
    return _build(OPTForCausalLM, OPTConfig(**{**_TOKENS, **sizes, **changes}))


def _olmo2() -> PreTrainedModel:
    return _build(Olmo2ForCausalLM, Olmo2Config(**_GROUPED, rope_parameters=dict(_ROPE)))


def _mixtral() -> PreTrainedModel:
    sizes = {**_GROUPED, "intermediate_size": 20}
    rope = dict(_ROPE)
    config = MixtralConfig(**sizes, rope_parameters=rope, num_local_experts=4, num_experts_per_tok=2)
    return _build(MixtralForCausalLM, config)


def _qwen3_moe() -> PreTrainedModel:
    config = Qwen3MoeConfig(
        **{**_GROUPED, "num_hidden_layers": 3},
        rope_parameters=dict(_ROPE),
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        mlp_only_layers=[1],
    )
    return _build(Qwen3MoeForCausalLM, config)


def _starcoder2() -> PreTrainedModel:
    config = Starcoder2Config(**_GROUPED, rope_parameters=dict(_ROPE), sliding_window=5)
    return _build(Starcoder2ForCausalLM, config)


def _cohere() -> PreTrainedModel:
    return _build(CohereForCausalLM, CohereConfig(**_GROUPED, rope_parameters=dict(_ROPE), use_qk_norm=False))


def _glm() -> PreTrainedModel:
    rope = {**_ROPE, "partial_rotary_factor": 0.5}
    return _build(GlmForCausalLM, GlmConfig(**_GROUPED, rope_parameters=rope, head_dim=8))


def _smollm3() -> PreTrainedModel:
    sizes = {**_GROUPED, "num_hidden_layers": 3}
    config = SmolLM3Config(**sizes, rope_parameters=dict(_ROPE), no_rope_layers=[1, 0, 1])  # 0: no rotation there
    return _build(SmolLM3ForCausalLM, config)


def _stablelm() -> PreTrainedModel:
    rope = {**_ROPE, "partial_rotary_factor": 0.5}
    config = StableLmConfig(**_GROUPED, rope_parameters=rope, use_qkv_bias=True, qk_layernorm=False)
    return _build(StableLmForCausalLM, config)


def _granite() -> PreTrainedModel:
    config = GraniteConfig(
        **_GROUPED,
        rope_parameters=dict(_ROPE),
        attention_multiplier=0.5,
        embedding_multiplier=2.0,
        residual_multiplier=0.6,
    )
    return _build(GraniteForCausalLM, config)


def _phi() -> PreTrainedModel:
    rope = {**_ROPE, "partial_rotary_factor": 0.5}
    return _build(PhiForCausalLM, PhiConfig(**_GROUPED, rope_parameters=rope, qk_layernorm=False))


def _olmo3() -> PreTrainedModel:
    config = Olmo3Config(
        **_GROUPED,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": dict(_ROPE), "full_attention": dict(_ROPE)},
    )
    return _build(Olmo3ForCausalLM, config)


def _olmoe() -> PreTrainedModel:
    sizes = {**_GROUPED, "intermediate_size": 20}
    config = OlmoeConfig(**sizes, rope_parameters=dict(_ROPE), num_experts=4, num_experts_per_tok=2)
    return _build(OlmoeForCausalLM, config)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "mistral": _mistral,
    "bloom": _bloom,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "opt": _opt,
    "olmo2": _olmo2,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
}
"""The architectures of the support table."""

PROBED: dict[str, Callable[[], PreTrainedModel]] = {
    "starcoder2": _starcoder2,
    "cohere": _cohere,
    "glm": _glm,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "granite": _granite,
    "phi": _phi,
    "olmo3": _olmo3,
    "olmoe": _olmoe,
}
"""Architectures that no table names: they have to be recognised by probing."""

VARIANTS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama_biases": functools.partial(_llama, attention_bias=True, mlp_bias=True),
    "llama_wide_heads": functools.partial(_llama, head_dim=16),  # heads x head_dim = 64, hidden = 32
    "llama_one_kv_head": functools.partial(_llama, num_key_value_heads=1),
    "llama_yarn": functools.partial(
        _llama,  # cos^2 + sin^2 = 1.3
        rope_parameters={**_ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ),
    "qwen2_sliding": functools.partial(_qwen2, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "phi3_partial_rotary": functools.partial(_phi3, partial_rotary_factor=0.5),
    "gpt2_inverse_layer_scale": functools.partial(_gpt2, scale_attn_by_inverse_layer_idx=True),
    "opt_post_norm": functools.partial(_opt, do_layer_norm_before=False),
}
"""Settings of one architecture that change what a neuron does."""

ALL: dict[str, Callable[[], PreTrainedModel]] = {**FAMILIES, **PROBED, **VARIANTS}


def tiny_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build the tiny model of that name, in eval mode.

    The weights are the same float32 numbers in every dtype (a float64 model is an exact copy of the float32 one).
    """
    model = ALL[name]().to(dtype)
    if dtype == torch.float64 and hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the default, grouped_mm, refuses float64
    return model


def ragged_batch(
    model: PreTrainedModel, side: Literal["left", "right"] = "right", lengths: Sequence[int] = (5, 9, 12)
) -> tuple[Tensor, Tensor]:
    """Random token sequences of different lengths in one padded batch.

    The sequences do not depend on `side`. The padding holds ordinary tokens, so that an attention mask that gets lost
    somewhere shows in the numbers.

    Returns:
        `input_ids` int64 [batch, max(lengths)] and `attention_mask` int64 of the same shape, 0 on padding.
    """
    generator = torch.Generator().manual_seed(SEED + 1)
    vocabulary = model.config.get_text_config().vocab_size
    width = max(lengths)
    input_ids = torch.randint(3, vocabulary, (len(lengths), width), generator=generator)
    attention_mask = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        tokens = torch.randint(3, vocabulary, (length,), generator=generator)
        span = slice(width - length, width) if side == "left" else slice(0, length)
        input_ids[row, span] = tokens
        attention_mask[row, span] = 1
    return input_ids, attention_mask
