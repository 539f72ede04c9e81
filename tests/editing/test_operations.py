"""Scale, clamp and mean against hooks written by hand; what a mean is taken over."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import oracle
import tiny
from babelscope import Anatomy, Atlas, NeuronSet, ablate, detect
from babelscope.errors import ConfigError, ProvenanceError, UnsupportedModelError
from builders import byte_llama, byte_tokenizer, make_texts
from editing.cases import EVERY, TOLERANCE, logits, some

Change = Callable[[Tensor, str, int], Tensor]
"""(activations [..., n], slot, layer) -> new ones."""


@contextlib.contextmanager
def by_hand(model: PreTrainedModel, neurons: NeuronSet, change: Change) -> Iterator[None]:
    """Hooks on the modules of the oracle's layouts; no experts."""
    handles = []
    layout = oracle._layout(model)
    for slot, layers in neurons.indices.items():
        for layer, units in enumerate(layers):
            if not len(units):
                continue
            block = oracle._layer(model, layer)
            attention = block.get_submodule(layout.attention)
            if slot in ("q", "k", "v"):
                places = [oracle._projection_row(model, slot, int(unit)) for unit in units]
                rows = torch.tensor([row for _, row in places])

                def after(module, args, output, rows=rows, slot=slot, layer=layer):
                    output = output.clone()
                    output[..., rows] = change(output[..., rows], slot, layer)
                    return output

                handles.append(attention.get_submodule(layout.qkv[places[0][0]]).register_forward_hook(after))
            else:

                def before(module, args, units=units, slot=slot, layer=layer):
                    states = args[0].clone()
                    states[..., units] = change(states[..., units], slot, layer)
                    return (states,)

                module = attention.get_submodule(layout.o) if slot == "o" else block.get_submodule(layout.down)
                handles.append(module.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dense(name: str) -> bool:
    return name not in ("mixtral", "qwen3_moe", "olmoe")


@pytest.mark.parametrize("name", EVERY)
def test_scale_by_weights_and_by_hooks_is_the_contribution_times_the_factor(name: str) -> None:
    model = tiny.tiny_model(name, torch.float64)
    neurons = some(Anatomy(model, check=False))
    ids, mask = tiny.ragged_batch(model, lengths=(9, 9))
    for factor in (-1.7, 0.0, 3.0):
        with ablate(model, neurons, op="scale", factor=factor) as by_weights:
            found = logits(model, ids, mask)
        with ablate(model, rows=[neurons], op="scale", factor=factor):
            hooked = logits(model, ids, mask)
        assert not by_weights.fired
        assert (found - hooked).abs().max() <= TOLERANCE
        if dense(name):
            with by_hand(model, neurons, lambda part, slot, layer, factor=factor: part * factor):
                assert (found - logits(model, ids, mask)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("slot", ["ffn", "o"])
def test_a_scaled_unit_adds_its_contribution_times_the_factor(slot: str) -> None:
    """By its definition: output(f) = output(0) + f * (output(1) - output(0)), at the unit's own sub-layer."""
    model = tiny.tiny_model("llama_biases", torch.float64)
    neurons = some(Anatomy(model, check=False), (slot,)).at(layers=[0])
    layer = model.model.layers[0]
    seen = []
    module = layer.mlp if slot == "ffn" else layer.self_attn.o_proj
    module.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    ids, mask = tiny.ragged_batch(model)
    logits(model, ids, mask)
    for factor in (0.0, 4.0):
        with ablate(model, neurons, op="scale", factor=factor):
            logits(model, ids, mask)
    one, none, four = seen
    assert (four - (none + 4 * (one - none))).abs().max() <= TOLERANCE
    with ablate(model, neurons):
        logits(model, ids, mask)
    assert torch.equal(seen[3], none)


@pytest.mark.parametrize("name", [name for name in EVERY if dense(name)])
def test_clamp_against_hooks_by_hand(name: str) -> None:
    model = tiny.tiny_model(name, torch.float64)
    neurons = some(Anatomy(model, check=False))
    ids, mask = tiny.ragged_batch(model, lengths=(9, 9))
    with by_hand(model, neurons, lambda part, slot, layer: torch.full_like(part, 0.7)):
        expected = logits(model, ids, mask)
    with ablate(model, neurons, op="clamp", value=0.7):
        found = logits(model, ids, mask)
    assert (found - expected).abs().max() <= TOLERANCE
    assert (found - logits(model, ids, mask)).abs().max() > 1e-3


def test_clamp_on_experts_acts_at_the_tokens_routed_to_them() -> None:
    model = tiny.tiny_model("mixtral", torch.float64)
    anatomy = Anatomy(model, check=False)
    neurons = NeuronSet.from_indices(anatomy, {"ffn": {0: [(2, 5)]}})
    experts = model.model.layers[0].mlp.experts
    ids, mask = tiny.ragged_batch(model, lengths=(9, 9))
    seen = []
    handle = experts.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    logits(model, ids, mask)
    with ablate(model, neurons):
        logits(model, ids, mask)
    with ablate(model, neurons, op="clamp", value=0.7):
        logits(model, ids, mask)
    handle.remove()
    (_, chosen, routing), _ = seen[0]
    weight = (routing * (chosen == 2)).sum(1, keepdim=True).double()
    expected = seen[1][1] + 0.7 * weight * experts.down_proj.detach()[2, :, 5]
    assert 0 < (weight > 0).sum() < len(weight)
    assert (seen[2][1] - expected).abs().max() <= TOLERANCE


# -- mean ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> tuple[PreTrainedModel, Atlas, dict[str, list[str]]]:
    model = byte_llama(torch.float64, attention_bias=True)
    texts = {"fr": make_texts("fr", 6), "sw": make_texts("sw", 3)}
    return model, detect(model, byte_tokenizer(), texts, max_tokens=48), texts


def means_by_hand(model: PreTrainedModel, texts: list[str], slot: str, layer: int) -> Tensor:
    """Over all tokens but BOS."""
    block, kept = model.model.layers[layer], []
    handle = (
        block.self_attn.k_proj.register_forward_hook(lambda module, args, out: kept.append(out[0, 1:]))
        if slot == "k"
        else block.mlp.down_proj.register_forward_pre_hook(lambda module, args: kept.append(args[0][0, 1:]))
    )
    with torch.no_grad():
        for text in texts:
            model(**byte_tokenizer()(text, return_tensors="pt", return_token_type_ids=False))
    handle.remove()
    return torch.cat(kept).mean(0)


def test_mean_of_a_unit_over_one_language(reference) -> None:
    model, atlas, texts = reference
    neurons = NeuronSet.from_indices(Anatomy(model), {"k": {0: [1, 5], 1: [2]}, "ffn": {1: [0, 43]}})
    ids, mask = tiny.ragged_batch(model)

    means = {
        (slot, layer): means_by_hand(model, texts["sw"], slot, layer)[neurons[slot][layer]]
        for slot, layer in (("k", 0), ("k", 1), ("ffn", 1))
    }
    with by_hand(model, neurons, lambda part, slot, layer: means[slot, layer].expand_as(part)):
        expected = logits(model, ids, mask)
    with ablate(model, neurons, op="mean", reference=atlas.of("sw")) as edits:
        found = logits(model, ids, mask)
    assert edits.fired == {("k", 0): 1, ("k", 1): 1, ("ffn", 1): 1}
    assert (found - expected).abs().max() <= 1e-10


def test_the_languages_of_an_atlas_weigh_the_same(reference) -> None:
    model, atlas, texts = reference
    neurons = NeuronSet.from_indices(Anatomy(model), {"ffn": {0: [3, 7]}})
    ids, mask = tiny.ragged_batch(model)
    seen = []
    with ablate(model, neurons, op="mean", reference=atlas):
        handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(
            lambda module, args: seen.append(args[0][..., [3, 7]])
        )
        logits(model, ids, mask)
    handle.remove()
    each = [means_by_hand(model, texts[language], "ffn", 0)[[3, 7]] for language in texts]
    assert (seen[0] - torch.stack(each).mean(0)).abs().max() <= 1e-12


def test_references_that_are_refused(reference) -> None:
    model, atlas, texts = reference
    neurons = NeuronSet.from_indices(Anatomy(model), {"ffn": {0: [3, 7]}})
    other = byte_llama(torch.float64)
    theirs = NeuronSet.from_indices(Anatomy(other), {"ffn": {0: [3, 7]}})
    with (
        pytest.raises(ProvenanceError, match="reference was made on a model"),
        ablate(other, theirs, op="mean", reference=atlas),
    ):
        pass
    narrow = byte_llama(torch.float64, intermediate_size=20)
    units = NeuronSet.from_indices(Anatomy(narrow), {"ffn": {0: [3]}})
    with (
        pytest.raises(ProvenanceError, match="layers of"),
        ablate(narrow, units, op="mean", reference=atlas, force=True),
    ):
        pass
    silent = copy.deepcopy(atlas)
    del silent.of("fr").slots["ffn"]["activation_total"]
    attention = detect(model, byte_tokenizer(), {"sw": texts["sw"]}, slots=("q",), max_tokens=48)
    for part, lacking in ((attention, "slot ffn"), (silent, "activations")):
        with (
            pytest.raises(ConfigError, match=f"the reference lacks {lacking}"),
            ablate(model, neurons, op="mean", reference=part),
        ):
            pass


def test_mean_on_experts_is_refused() -> None:
    mixtral = tiny.MixtralForCausalLM(
        tiny.MixtralConfig(**{**tiny._GROUPED, "vocab_size": 272}, num_local_experts=4, num_experts_per_tok=2)
    ).eval()
    atlas = detect(mixtral, byte_tokenizer(), {"sw": make_texts("sw", 2)}, slots=("ffn",), max_tokens=48)
    neurons = NeuronSet.from_indices(Anatomy(mixtral), {"ffn": {0: [3]}})
    implementation = mixtral.config._experts_implementation
    with (
        pytest.raises(UnsupportedModelError, match="op='mean' on experts"),
        ablate(mixtral, neurons, op="mean", reference=atlas),
    ):
        pass
    assert mixtral.config._experts_implementation == implementation
