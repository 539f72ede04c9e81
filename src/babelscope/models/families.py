"""The table of architectures: where each family keeps the matrices that hold neurons. Data, no logic.

A row is enough to support a family. Architectures without a row are recognised by trying, for each role, the names
that occur anywhere in this table; in both cases a numerical self-check decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fusion = Literal["none", "concatenated", "per_head"]
"""How query, key and value share a matrix: not at all; [all q | all k | all v]; or [q | k | v] head by head."""


@dataclass(frozen=True)
class Family:
    """Names of modules and parameters. Paths are dotted; those of a role are tried in order."""

    name: str
    model_types: tuple[str, ...]
    """`config.model_type` values."""
    examples: str
    """Models that users know, for the support table."""
    layers: tuple[str, ...]
    """Path from the causal language model to the list of decoder layers."""
    attention: str
    """From a decoder layer to its attention module."""
    query: str
    """From the attention module; the same name for all three means one fused matrix."""
    key: str
    value: str
    output: str
    up: str
    """From a decoder layer; FFN matrix whose row is a unit."""
    down: str
    """From a decoder layer; FFN matrix whose column is a unit."""
    gate: str | None = None
    """From a decoder layer; None for a plain FFN; the same name as `up` means [gate | up] in one matrix."""
    experts: str | None = None
    """From a decoder layer to a module with 3-D `gate_up_proj` and `down_proj`; layers without it are dense."""
    fusion: Fusion = "none"
    query_norm: str | None = None
    """From the attention module; a norm between projection and rotation."""
    key_norm: str | None = None
    query_scale: str | None = None
    """Attribute of the attention module by which it multiplies queries before the attention function."""
    own_attention: bool = False
    """The attention module computes its probabilities itself (ALiBi added) instead of calling the shared interface."""
    note: str = ""
    """For the support table."""


_LLAMA = Family(
    name="Llama",
    model_types=("llama",),
    examples="Llama 1-3, Vicuna, Chinese Llama",
    layers=("model.layers",),
    attention="self_attn",
    query="q_proj",
    key="k_proj",
    value="v_proj",
    output="o_proj",
    up="mlp.up_proj",
    gate="mlp.gate_proj",
    down="mlp.down_proj",
)


def _like_llama(name: str, model_types: tuple[str, ...], examples: str, note: str = "", **changes: object) -> Family:
    fields = {**_LLAMA.__dict__, "name": name, "model_types": model_types, "examples": examples, "note": note}
    return Family(**{**fields, **changes})


FAMILIES: tuple[Family, ...] = (
    _LLAMA,
    _like_llama("Mistral", ("mistral",), "Mistral 7B, Mistral-7b-Instruct", "sliding window"),
    Family(
        name="BLOOM",
        model_types=("bloom",),
        examples="BLOOM, BLOOMZ",
        layers=("transformer.h",),
        attention="self_attention",
        query="query_key_value",
        key="query_key_value",
        value="query_key_value",
        fusion="per_head",
        output="dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        own_attention=True,
        note="ALiBi",
    ),
    _like_llama("Qwen2", ("qwen2",), "Qwen2, Qwen2.5", "Q/K/V biases"),
    _like_llama("Qwen3", ("qwen3",), "Qwen3", "Q/K norm", query_norm="q_norm", key_norm="k_norm"),
    _like_llama("Gemma 2", ("gemma2",), "Gemma 2", "soft-capping, sliding window"),
    _like_llama(
        "Gemma 3",
        ("gemma3_text", "gemma3"),
        "Gemma 3 (text)",
        "Q/K norm, sliding window",
        layers=("model.layers", "model.language_model.layers"),
        query_norm="q_norm",
        key_norm="k_norm",
    ),
    _like_llama(
        "Phi-3",
        ("phi3",),
        "Phi-3, Phi-3.5, Phi-4",
        "fused Q/K/V and gate/up",
        query="qkv_proj",
        key="qkv_proj",
        value="qkv_proj",
        fusion="concatenated",
        up="mlp.gate_up_proj",
        gate="mlp.gate_up_proj",
    ),
    Family(
        name="GPT-NeoX",
        model_types=("gpt_neox",),
        examples="Pythia, GPT-NeoX-20B",
        layers=("gpt_neox.layers",),
        attention="attention",
        query="query_key_value",
        key="query_key_value",
        value="query_key_value",
        fusion="per_head",
        output="dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        note="partial rotary",
    ),
    Family(
        name="GPT-2",
        model_types=("gpt2",),
        examples="GPT-2, DistilGPT-2",
        layers=("transformer.h",),
        attention="attn",
        query="c_attn",
        key="c_attn",
        value="c_attn",
        fusion="concatenated",
        output="c_proj",
        up="mlp.c_fc",
        down="mlp.c_proj",
        note="learned positions",
    ),
    Family(
        name="OPT",
        model_types=("opt",),
        examples="OPT",
        layers=("model.decoder.layers",),
        attention="self_attn",
        query="q_proj",
        key="k_proj",
        value="v_proj",
        output="out_proj",
        up="fc1",
        down="fc2",
        query_scale="scaling",
        note="learned positions",
    ),
    _like_llama(
        "OLMo-2",
        ("olmo2",),
        "OLMo-2",
        "Q/K norm over all heads: q and k cost a factor of n_heads more",
        query_norm="q_norm",
        key_norm="k_norm",
    ),
    _like_llama("Mixtral", ("mixtral",), "Mixtral 8x7B", "experts", experts="mlp.experts"),
    _like_llama(
        "Qwen3-MoE",
        ("qwen3_moe",),
        "Qwen3-30B-A3B",
        "experts, Q/K norm",
        experts="mlp.experts",
        query_norm="q_norm",
        key_norm="k_norm",
    ),
)

MODEL_TYPES: dict[str, Family] = {model_type: family for family in FAMILIES for model_type in family.model_types}
