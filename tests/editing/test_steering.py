"""Steering by neurons is two edits; steering by means adds what a loop over single documents finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from babelscope import Anatomy, NeuronSet, ablate
from babelscope.editing.steering import ResidualMeans, residual_means, steer, steer_by_means
from babelscope.errors import ConfigError, DataError, ProvenanceError, UnsupportedModelError
from builders import BOS, byte_llama, byte_tokenizer, letters, make_texts
from editing.cases import TOLERANCE, assert_intact, built, logits, snapshot, some, zeroed_by_hand

TEXTS = {language: make_texts(language, 7) for language in ("fr", "zh")}


@pytest.fixture
def llama() -> PreTrainedModel:
    return byte_llama(torch.float64)


# -- by neurons ------------------------------------------------------------------------------------------------------


def test_amplified_and_silenced_and_shared(llama: PreTrainedModel) -> None:
    anatomy = Anatomy(llama, check=False)
    target = NeuronSet.from_indices(anatomy, {"ffn": {0: [1, 2, 30], 1: [5]}, "o": {0: [3]}})
    source = NeuronSet.from_indices(anatomy, {"ffn": {0: [2, 31], 1: [6]}, "v": {1: [0]}})
    ids, mask = tiny.ragged_batch(llama)
    before, intact = snapshot(llama), logits(llama, ids, mask)
    only = NeuronSet.from_indices(anatomy, {"ffn": {0: [31], 1: [6]}, "v": {1: [0]}})
    with zeroed_by_hand(llama, only):
        for layer, units in {0: [1, 30], 1: [5]}.items():
            llama.model.layers[layer].mlp.down_proj.weight.data[:, units] *= 3.5
        llama.model.layers[0].self_attn.o_proj.weight.data[:, 3] *= 3.5
        expected = logits(llama, ids, mask)
    llama.load_state_dict(before, strict=False)
    with steer(llama, target, source, factor=3.5) as (up, down):
        found = logits(llama, ids, mask)
        assert (len(up), len(down)) == (4, 3)
    assert (found - expected).abs().max() <= TOLERANCE
    assert (expected - intact).abs().max() > 1e-2
    assert_intact(llama, before)


def test_sets_that_leave_nothing(llama: PreTrainedModel) -> None:
    neurons = some(Anatomy(llama, check=False))
    for target, source in ((neurons, neurons), (neurons.at(layers=[0]), neurons), (neurons, neurons.at(layers=[0]))):
        with pytest.raises(ConfigError, match=r"found \d+ of the target and \d+ of the source \(\d+ shared\)"):  # noqa: SIM117
            with steer(llama, target, source):
                pass


def test_sets_of_another_model(llama: PreTrainedModel) -> None:
    anatomy = Anatomy(byte_llama(torch.float64, attention_bias=True), check=False)
    one, two = some(anatomy), some(anatomy, shift=1)
    with pytest.raises(ProvenanceError), steer(llama, one, two):
        pass
    with steer(llama, one, two, force=True):
        pass


# -- by means --------------------------------------------------------------------------------------------------------


def states(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """Behind each layer, [T, M]: of one unpadded document; the last before the final norm."""
    kept = []
    layers = [layer.module for layer in Anatomy(model, check=False).layers]
    handles = [
        layer.register_forward_hook(lambda module, args, out: kept.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return [each[0] for each in kept]


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2", "opt", "gpt_neox", "gemma2", "qwen3_moe"])
def test_means_are_those_of_single_documents(name: str) -> None:
    with built(name) as model:
        tokenizer, before = letters(), snapshot(model)
        model.train()
        found = residual_means(model, tokenizer, TEXTS, max_tokens=24, token_budget=80)
        assert all(module.training for module in model.modules())
        model.eval()
        assert_intact(model, before)
        for language, texts in TEXTS.items():
            documents = [
                tokenizer(text, return_tensors="pt", truncation=True, max_length=24).input_ids for text in texts
            ]
            assert all(each[0, 0] == BOS for each in documents)
            every = [states(model, ids) for ids in documents]
            for layer in range(len(every[0])):
                expected = torch.cat([each[layer][1:] for each in every]).mean(0)
                assert (found.means[language][layer] - expected).abs().max() <= 1e-11
                with_bos = torch.cat([each[layer] for each in every]).mean(0)
                assert (with_bos - expected).abs().max() > 1e-3
            assert found.tokens[language] == sum(each.shape[1] - 1 for each in documents)


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2", "opt", "gemma2", "mixtral"])
def test_the_difference_is_added_behind_the_chosen_layers(name: str) -> None:
    with built(name) as model:
        before = snapshot(model)
        ids, mask = tiny.ragged_batch(model, "left")
        means = residual_means(model, letters(), TEXTS, max_tokens=24)
        intact = logits(model, ids, mask)
        last = Anatomy(model, check=False).n_layers - 1
        kept = []
        layers = [layer.module for layer in Anatomy(model, check=False).layers]

        def watch(module: object, args: object, output: object) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)

        with steer_by_means(model, means, "fr", "zh", layers=[last], alpha=0.7) as fired:
            handle = layers[last].register_forward_hook(watch)
            moved = logits(model, ids, mask)
            handle.remove()
        assert fired == {last: 1}
        handle = layers[last].register_forward_hook(watch)
        logits(model, ids, mask)
        handle.remove()
        expected = 0.7 * (means.means["fr"][last] - means.means["zh"][last])
        assert (kept[0] - kept[1] - expected)[mask.bool()].abs().max() <= 1e-11
        assert (moved - intact).abs().max() > 1e-3
        assert_intact(model, before)
        assert torch.equal(logits(model, ids, mask), intact)


def test_one_layer_moves_the_mean_of_the_source_onto_the_target(llama: PreTrainedModel) -> None:
    """The meaning of alpha = 1: the source's documents, steered, have the target's mean."""
    tokenizer = byte_tokenizer()
    means = residual_means(llama, tokenizer, TEXTS)
    with steer_by_means(llama, means, "fr", "zh", layers=[0]):
        steered = residual_means(llama, tokenizer, {"zh": TEXTS["zh"]})
    assert (steered.means["zh"][0] - means.means["fr"][0]).abs().max() <= 1e-12
    assert (steered.means["zh"][1] - means.means["zh"][1]).abs().max() > 1e-3


def test_cached_generation_is_steered_at_every_token(llama: PreTrainedModel) -> None:
    llama.generation_config.eos_token_id = None
    ids, mask = tiny.ragged_batch(llama, "left")
    means = residual_means(llama, byte_tokenizer(), TEXTS)
    batch = {"input_ids": ids, "attention_mask": mask, "do_sample": False, "max_new_tokens": 6}
    intact = llama.generate(**batch)
    with steer_by_means(llama, means, "fr", "zh", layers=[0, 1], alpha=4) as fired:
        cached = llama.generate(**batch)
        assert fired == {0: 6, 1: 6}
        assert torch.equal(llama.generate(**batch, use_cache=False), cached)
    assert not torch.equal(cached, intact)
    assert torch.equal(llama.generate(**batch), intact)


def test_it_comes_off_after_an_exception_and_beside_an_edit(llama: PreTrainedModel) -> None:
    means = residual_means(llama, byte_tokenizer(), TEXTS)
    neurons, before = some(Anatomy(llama, check=False)), snapshot(llama)
    with pytest.raises(KeyboardInterrupt), ablate(llama, neurons), steer_by_means(llama, means, "fr", "zh", layers=[0]):
        raise KeyboardInterrupt
    assert_intact(llama, before)
    assert llama.generation_config.disable_compile is None


def test_bfloat16(llama: PreTrainedModel) -> None:
    means = residual_means(llama, byte_tokenizer(), TEXTS)
    model = llama.to(torch.bfloat16)
    ids, mask = tiny.ragged_batch(model)
    with steer_by_means(model, means, "fr", "zh", layers=[1]):  # a model and its bfloat16 copy are one model
        assert logits(model, ids, mask).dtype == torch.bfloat16


def test_what_is_refused(llama: PreTrainedModel) -> None:
    means = residual_means(llama, byte_tokenizer(), TEXTS)

    def refused(error: type[Exception], match: str, model: PreTrainedModel = llama, **changes: object) -> None:
        arguments = {"means": means, "target": "fr", "source": "zh", "layers": [0], **changes}
        with pytest.raises(error, match=match), steer_by_means(model, **arguments):
            pass

    refused(ConfigError, "wanted means of fr, zh, found sw", target="sw")
    refused(ConfigError, r"layers 0\.\.1, found \[0, 2\]", layers=[0, 2])
    refused(ConfigError, r"layers 0\.\.1, found none", layers=[])
    refused(ConfigError, r"nothing was added behind layers \[0\]")
    refused(ProvenanceError, "fingerprint", byte_llama(attention_bias=True))
    refused(ProvenanceError, "2 layers of 48", byte_llama(hidden_size=48), force=True)
    moved = ResidualMeans(means.means, means.tokens, "other")
    refused(ProvenanceError, "fingerprint other", means=moved)
    with steer_by_means(llama, moved, "fr", "zh", layers=[0], force=True):
        llama(input_ids=torch.tensor([[1, 5]]))
    with pytest.raises(ConfigError, match="no corpus given"):
        residual_means(llama, byte_tokenizer(), {})
    with pytest.raises(DataError):
        residual_means(llama, byte_tokenizer(), {"fr": ["", "  "]})
    llama.model.layers[0].compile()
    refused(UnsupportedModelError, "compiled")
