"""The tuned lens: untrained it's the logit lens, training lowers the divergence, and it fits one model only."""

from __future__ import annotations

import copy

import pytest
import torch

import babelscope as bs
import tiny
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.lens.tuned import TunedLens
from builders import letters, make_texts
from fixtures_text import LETTERS

TEXTS = [text for code in LETTERS for text in make_texts(code, 20)]
PROFILE = bs.VocabularyProfile.build(letters(), {code: make_texts(code, 30) for code in LETTERS})
PROMPTS = {"fr": ["mer", "la lune au mur"], "sw": ["maji ya kwa"]}


def train(model, **options):
    return TunedLens.train(model, letters(), TEXTS, **{"max_tokens": 24, "steps": 40, "token_budget": 256, **options})


def divergence(model, tuned):
    """Mean KL(last || layer) over the positions after BOS, one text at a time, [L]."""
    found, positions = [0.0] * len(tuned.weight), 0
    for text in TEXTS:
        ids = torch.tensor([letters()(text)["input_ids"][:24]])
        with torch.no_grad():
            output = model(input_ids=ids, output_hidden_states=True)
        goal = output.logits[0, 1:].double().softmax(1)
        positions += len(goal)
        for layer in range(len(tuned.weight)):
            hidden = output.hidden_states[layer][0, 1:]
            hidden = hidden + hidden @ tuned.weight[layer].T + tuned.bias[layer]
            with torch.no_grad():
                found[layer] += float((goal * (goal.log() - logits(model, hidden).double().log_softmax(1))).sum())
    return [each / positions for each in found]


def logits(model, hidden):
    if hasattr(model, "transformer"):
        return model.lm_head(model.transformer.ln_f(hidden))
    found = model.lm_head(model.model.norm(hidden))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return found if cap is None else torch.tanh(found / cap) * cap


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2"])
def test_untrained_it_is_the_logit_lens(name):
    model = tiny.tiny_model(name)
    plain = bs.language_lens(model, letters(), PROMPTS, PROFILE, max_tokens=24)
    tuned = bs.language_lens(model, letters(), PROMPTS, PROFILE, max_tokens=24, tuned=TunedLens.untrained(model))
    assert torch.equal(tuned.masses, plain.masses)
    assert torch.equal(tuned.entropy, plain.entropy)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_training_lowers_the_divergence_by_as_much_as_it_says(name):
    model = tiny.tiny_model(name).train()
    weights = copy.deepcopy(model.state_dict())
    tuned = train(model)
    assert model.training
    assert all(torch.equal(each, weights[key]) for key, each in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    assert tuned.about["before"] == pytest.approx(divergence(model, TunedLens.untrained(model)), rel=1e-4)
    assert tuned.about["after"] == pytest.approx(divergence(model, tuned), rel=1e-4)
    for before, after in zip(tuned.about["before"], tuned.about["after"], strict=True):
        assert after < 0.9 * before


def test_the_lens_reads_through_it_and_the_last_layer_stays():
    model = tiny.tiny_model("llama")
    tuned = train(model)
    plain = bs.language_lens(model, letters(), PROMPTS, PROFILE, max_tokens=24)
    through = bs.language_lens(model, letters(), PROMPTS, PROFILE, max_tokens=24, tuned=tuned)
    assert torch.equal(through.masses[:, -1], plain.masses[:, -1])
    ids = torch.tensor([letters()("mer")["input_ids"]])
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, 1:]
        chances = logits(model, hidden + hidden @ tuned.weight[1].T + tuned.bias[1]).softmax(1).mean(0)
    expected = chances[: len(PROFILE.posterior)] @ PROFILE.posterior
    expected[-1] += chances[len(PROFILE.posterior) :].sum()
    torch.testing.assert_close(through.masses[0, 1], expected, atol=1e-5, rtol=0)
    assert float((through.masses[:, :-1] - plain.masses[:, :-1]).abs().max()) > 0.01
    assert through.about["settings"]["tuned"]["steps"] == 40


def test_saved_and_loaded_bit_for_bit(tmp_path):
    model = tiny.tiny_model("llama")
    tuned = train(model, steps=3)
    tuned.save(tmp_path / "tuned.safetensors")
    loaded = TunedLens.load(tmp_path / "tuned.safetensors")
    for mine, theirs in zip((*tuned.weight, *tuned.bias), (*loaded.weight, *loaded.bias), strict=True):
        assert torch.equal(mine, theirs)
        assert not theirs.requires_grad
    assert (loaded.model, loaded.about) == (tuned.model, tuned.about)
    again = train(model, steps=3)
    assert torch.equal(again.weight[1], tuned.weight[1]), "the same training gives the same lens"


def test_of_another_model_it_is_refused():
    tuned = TunedLens.untrained(tiny.tiny_model("llama"))
    other = tiny.tiny_model("qwen2")
    with pytest.raises(ProvenanceError, match="not on this model"):
        bs.language_lens(other, letters(), PROMPTS, PROFILE, max_tokens=24, tuned=tuned)
    with pytest.raises(ProvenanceError, match="not on this model"):
        bs.latent_language(other, letters(), ["mer"], {"fr": ["mer"]}, tuned=tuned)


def test_without_the_final_norm_it_is_refused():
    model = tiny.tiny_model("llama")
    options = {"tuned": TunedLens.untrained(model), "final_norm": False}
    with pytest.raises(ConfigError, match="trained with the final norm"):
        bs.language_lens(model, letters(), PROMPTS, PROFILE, max_tokens=24, **options)
    with pytest.raises(ConfigError, match="trained with the final norm"):
        bs.latent_language(model, letters(), ["mer"], {"fr": ["mer"]}, **options)


def test_nothing_to_learn_from():
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        train(tiny.tiny_model("llama"), steps=0)
    with pytest.raises(DataError, match="no usable document"):
        TunedLens.train(tiny.tiny_model("llama"), letters(), ["", " "], max_tokens=24)


def test_bfloat16_models_train_in_float32():
    model = tiny.tiny_model("llama", torch.bfloat16)
    tuned = train(model)
    assert tuned.weight[0].dtype == torch.float32
    assert sum(tuned.about["after"]) < 0.9 * sum(tuned.about["before"])
