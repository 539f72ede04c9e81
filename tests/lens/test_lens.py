"""The lens against models that really end after each layer, with all logits kept and straightforward loops."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaModel

import babelscope as bs
import tiny
from babelscope.editing.edits import ablate
from babelscope.errors import ConfigError, DataError, NumericsError, ProvenanceError, UnsupportedModelError
from babelscope.lens import decode, measure
from babelscope.lens.decode import Unembedding
from builders import byte_tokenizer, letters, make_texts
from fixtures_text import LETTERS

PROFILE = bs.VocabularyProfile.build(letters(), {code: make_texts(code, 30) for code in LETTERS})
TOKENS = len(letters())
lens = functools.partial(bs.language_lens, max_tokens=32)
PROMPTS = {"fr": ["mer", "la lune au mur"], "sw": ["maji ya kwa", "twiga", "p"]}


def layer_list(model):
    return next(
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, torch.nn.ModuleList)
        and any("attn" in n or "attention" in n for n, _ in child.named_modules())
    )


def cut_after(model, layers):
    """The model with only its first layers: norm, unembedding, scale and cap are its own."""
    shorter = copy.deepcopy(model)
    module, name = layer_list(shorter)
    setattr(module, name, getattr(module, name)[:layers])
    return shorter


def expected(model, text, profile=PROFILE):
    """Mass, entropy in bits and likeliest tokens at the positions after BOS: [L + 1, ...]."""
    ids = torch.tensor([letters()(text)["input_ids"]])
    module, name = layer_list(model)
    masses, entropies, tops = [], [], []
    for layers in range(len(getattr(module, name)) + 1):
        with torch.no_grad():
            logits = cut_after(model, layers)(input_ids=ids, use_cache=False).logits[0, 1:].float()
        chances = logits.softmax(1)
        mass, entropy = torch.zeros(len(profile.languages) + 1), 0.0
        for row in chances:
            for token, chance in enumerate(row.tolist()):
                if token < len(profile.posterior):
                    mass += chance * profile.posterior[token]
                else:
                    mass[-1] += chance
                entropy -= chance * math.log2(chance)
        masses.append(mass / len(chances))
        entropies.append(entropy / len(chances))
        tops.append(logits.argmax(1))
    agreement = [float((top == tops[-1]).float().mean()) for top in tops]
    return torch.stack(masses), torch.tensor(entropies), torch.tensor(agreement)


@pytest.mark.parametrize("name", tiny.ALL)
def test_every_layer_of_every_family(name):
    """One text alone here; raggedness has a test of its own."""
    model = tiny.tiny_model(name)
    curve = lens(model, letters(), ["la lune"], PROFILE)
    mass, entropy, agreement = expected(model, "la lune")
    torch.testing.assert_close(curve.mass, mass, atol=1e-5, rtol=0)
    torch.testing.assert_close(curve.entropy[0], entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(curve.agreement[0], agreement)
    assert curve.prompt_languages == ("any",)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "gpt2"])
def test_padding_batches_and_chunks_change_nothing(name, monkeypatch):
    model = tiny.tiny_model(name)
    monkeypatch.setattr(decode, "CHUNK", 11)  # of which the first 8 positions are read together, then the other 3
    monkeypatch.setattr(decode, "_FEW", 0)
    curve = lens(model, letters(), PROMPTS, PROFILE)
    assert curve.prompt_languages == ("fr", "fr", "sw", "sw", "sw")
    texts = [text for lines in PROMPTS.values() for text in lines]
    for place, text in enumerate(texts):
        mass, entropy, _ = expected(model, text)
        torch.testing.assert_close(curve.masses[place], mass, atol=1e-5, rtol=0)
        torch.testing.assert_close(curve.entropy[place], entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(curve.mass, curve.masses.mean(0))
    torch.testing.assert_close(curve.of("sw"), curve.masses[2:].mean(0))
    torch.testing.assert_close(curve.masses.sum(-1), torch.ones(5, curve.n_layers + 1))


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch):
    model = tiny.tiny_model("llama")
    monkeypatch.setattr(decode, "CHUNK", 5)
    most = 0

    def watch(module, args, output):
        nonlocal most
        most = max(most, output.numel() // output.shape[-1])

    unembedding = Unembedding(model)
    handle = model.lm_head.register_forward_hook(watch)
    hidden = torch.randn(23, 32)
    parts = [part for part, _ in unembedding.chunks(1, hidden)]
    handle.remove()
    assert most == 5
    assert [part.stop for part in parts] == [5, 10, 15, 20, 23]


def test_bfloat16_is_close_to_float32():
    exact = lens(tiny.tiny_model("llama"), letters(), PROMPTS, PROFILE)
    rounded = lens(tiny.tiny_model("llama", torch.bfloat16), letters(), PROMPTS, PROFILE)
    assert rounded.masses.dtype == torch.float32
    torch.testing.assert_close(rounded.masses.sum(-1), torch.ones(5, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rounded.masses, exact.masses, atol=0.05, rtol=0)


def test_float64():
    curve = lens(tiny.tiny_model("llama", torch.float64), letters(), ["la lune"], PROFILE)
    torch.testing.assert_close(curve.mass, expected(tiny.tiny_model("llama"), "la lune")[0], atol=1e-5, rtol=0)


def test_without_the_final_norm_only_inner_layers_change():
    model = tiny.tiny_model("llama")
    with_norm = lens(model, letters(), PROMPTS, PROFILE)
    without = lens(model, letters(), PROMPTS, PROFILE, final_norm=False)
    assert torch.equal(with_norm.masses[:, -1], without.masses[:, -1])
    bare = copy.deepcopy(model)
    bare.model.norm = torch.nn.Identity()
    for place, text in enumerate(PROMPTS["fr"]):
        mass, _, _ = expected(bare, text)
        torch.testing.assert_close(without.masses[place, :-1], mass[:-1], atol=1e-5, rtol=0)


def test_control_has_the_same_unknown_and_other_languages():
    curve = lens(tiny.tiny_model("llama"), letters(), PROMPTS, PROFILE)
    assert curve.control is not None
    torch.testing.assert_close(curve.control.sum(-1), torch.ones(5, 3))
    spoken = PROFILE.script > 0
    assert not torch.allclose(curve.control, curve.masses, atol=1e-2)
    # What the profile leaves unknown in tokens that are language moves with them; the rest stays.
    assert float((curve.control[..., -1] - curve.masses[..., -1]).abs().max()) <= float(
        PROFILE.posterior[spoken, -1].max()
    )
    again = lens(tiny.tiny_model("llama"), letters(), PROMPTS, PROFILE, seed=1)
    assert torch.equal(again.masses, curve.masses)
    assert not torch.equal(again.control, curve.control)


def test_generated_positions_are_those_that_choose_the_new_tokens():
    model = tiny.tiny_model("llama")
    curve = lens(model, letters(), PROMPTS, PROFILE, new_tokens=4, grids=9)
    texts = [text for lines in PROMPTS.values() for text in lines]
    for place, text in enumerate(texts):
        ids = torch.tensor([letters()(text)["input_ids"]])
        masses = [[] for _ in range(3)]
        chosen = []
        for _ in range(4):
            for layers in range(3):
                with torch.no_grad():
                    chances = cut_after(model, layers)(input_ids=ids, use_cache=False).logits[0, -1].softmax(0)
                mass = chances[: len(PROFILE.posterior)] @ PROFILE.posterior
                mass[-1] += chances[len(PROFILE.posterior) :].sum()
                masses[layers].append(mass)
            chosen.append(int(chances.argmax()))
            ids = torch.cat([ids, torch.tensor([[chosen[-1]]])], 1)
            if chosen[-1] == model.generation_config.eos_token_id:
                break
        expected_mass = torch.stack([torch.stack(each).mean(0) for each in masses])
        torch.testing.assert_close(curve.masses[place], expected_mass, atol=1e-5, rtol=0)
        vocabulary = [*letters().convert_ids_to_tokens(range(len(letters()))), *[""] * 64]
        shown = [best[0].replace(" ", "▁") for best in curve.grids[place].top[-1]]
        assert shown == [vocabulary[token] for token in chosen]


def test_grid_shows_the_likeliest_tokens():
    model = tiny.tiny_model("gemma2")
    curve = lens(model, letters(), PROMPTS, PROFILE, top_k=3, grids=1)
    assert [grid.prompt_language for grid in curve.grids] == ["fr", "sw"]
    grid = curve.grids[0]
    assert grid.tokens == list("mer")
    ids = torch.tensor([letters()("mer")["input_ids"]])
    for layers in range(4):
        with torch.no_grad():
            chances = cut_after(model, layers)(input_ids=ids, use_cache=False).logits[0, 1:].softmax(1)
        best = chances.topk(3)
        torch.testing.assert_close(torch.tensor(grid.probability[layers]).float(), best.values, atol=1e-5, rtol=1e-5)
        for place, row in enumerate(best.indices.tolist()):
            texts = [
                letters().convert_ids_to_tokens(token).replace("▁", " ") if token < TOKENS else "" for token in row
            ]
            assert grid.top[layers][place] == texts
            own = PROFILE.posterior[row[0]] if row[0] < TOKENS else torch.tensor([0, 0, 0, 1.0])
            sure = int(own.argmax()) if own.max() > 0.5 else 3
            assert grid.language[layers][place] == ("fr", "zh", "sw", "")[sure]


def test_identifier_names_the_likeliest_string_alone(monkeypatch):
    def by_vowel(name, languages):
        assert (name, languages) == ("lingua", PROFILE.languages)
        return lambda text: "" if not text else "fr" if text in "aeiou" else "zh" if text in "xqjz" else ""

    monkeypatch.setattr(measure, "make_identifier", by_vowel)
    model = tiny.tiny_model("llama")
    curve = lens(model, letters(), ["la lune"], PROFILE, identifier="lingua", final_norm=False)
    assert curve.control is None
    ids = torch.tensor([letters()("la lune")["input_ids"]])
    bare = copy.deepcopy(model)
    bare.model.norm = torch.nn.Identity()
    for layers in range(3):
        with torch.no_grad():
            top = cut_after(bare if layers < 2 else model, layers)(input_ids=ids).logits[0, 1:].argmax(1).tolist()
        texts = [letters().convert_ids_to_tokens(token) if token < TOKENS else "?" for token in top]
        counted = [sum(text in each for text in texts) for each in ("aeiou", "xqjz")]
        share = torch.tensor([counted[0], counted[1], 0, len(texts) - sum(counted)]) / len(texts)
        torch.testing.assert_close(curve.mass[layers], share)


def test_lens_under_an_edit_sees_the_edited_model():
    model = tiny.tiny_model("llama")
    neurons = bs.NeuronSet.from_indices(bs.Anatomy(model), {"ffn": {1: list(range(44))}})
    plain = lens(model, letters(), PROMPTS, PROFILE)
    with ablate(model, neurons):
        edited = lens(model, letters(), PROMPTS, PROFILE)
    assert torch.equal(edited.masses[:, :2], plain.masses[:, :2])
    assert not torch.allclose(edited.masses[:, 2], plain.masses[:, 2], atol=1e-3)
    assert torch.equal(lens(model, letters(), PROMPTS, PROFILE).masses, plain.masses)


def test_leaves_the_model_as_it_was():
    model = tiny.tiny_model("llama").train()
    lens(model, letters(), ["la lune"], PROFILE)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_draws_and_reports_progress():
    counted = []
    options = {"documents": 3, "seed": 5, "token_budget": 16, "progress": counted.append}
    curve = lens(tiny.tiny_model("llama"), letters(), make_texts("fr", 9), PROFILE, **options)
    assert len(curve.masses) == sum(counted) == 3
    assert len(counted) > 1


def test_a_model_with_other_last_steps_is_refused():
    model = tiny.tiny_model("gemma2")
    model.config.final_logit_softcapping = 1.0
    Unembedding(model)
    model.lm_head.register_forward_hook(lambda module, args, output: output)
    forward = model.forward

    def twice(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = twice
    with pytest.raises(UnsupportedModelError, match="decodes to probabilities that differ"):
        Unembedding(model)


def test_encoders_and_headless_models_are_refused():
    bert = BertForMaskedLM(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64))
    with pytest.raises(UnsupportedModelError, match="decoder"):
        lens(bert, letters(), ["la"], PROFILE)
    headless = LlamaModel(tiny.tiny_model("llama").config)
    with pytest.raises(UnsupportedModelError, match=r"decoder layers|output head"):
        lens(headless, letters(), ["la"], PROFILE)


def test_nan_is_refused_by_layer():
    model = tiny.tiny_model("llama")
    unembedding = Unembedding(model)
    hidden = torch.randn(2, 32)
    hidden[1] = torch.nan
    with pytest.raises(NumericsError, match="output of layer 1"):
        decode.read_layer(unembedding, 2, hidden, torch.ones(64, 1), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        (["la"], {"max_tokens": 99}, ConfigError, "99, but the model has 64 positions"),
        (["la"], {"max_tokens": 60, "new_tokens": 5}, ConfigError, "65, but the model has 64 positions"),
        (["la"], {"top_k": 0}, ConfigError, "top_k must be at least 1"),
        (["la"], {"new_tokens": -1}, ConfigError, "new_tokens must be at least 0"),
        ({"frensh": ["la"]}, {}, ConfigError, "unknown language"),
        ({}, {}, ConfigError, "prompts of at least one language"),
        ([""], {}, DataError, "no usable document"),
        ([], {}, DataError, "is empty"),
        (["la"], {"identifier": "franc"}, ConfigError, "identifier among lingua, cld3"),
    ],
)
def test_errors(prompts, options, error, message):
    with pytest.raises(error, match=message):
        lens(tiny.tiny_model("llama"), letters(), prompts, PROFILE, **options)


def test_profile_and_tokenizer_must_fit():
    with pytest.raises(ProvenanceError, match="another tokenizer"):
        lens(tiny.tiny_model("llama"), byte_tokenizer(), ["la"], PROFILE)
    profile = bs.VocabularyProfile.build(byte_tokenizer(), {"fr": ["la mer"], "sw": ["maji"]})
    with pytest.raises(ConfigError, match="the tokenizer has 259 tokens, the model only 64"):
        lens(tiny.tiny_model("llama"), byte_tokenizer(), ["la"], profile)
