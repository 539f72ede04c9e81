"""The tuned lens: untrained it's the logit lens, training brings unseen texts nearer, and it fits one model only."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import babelscope as bs
import tiny
from babelscope import tinybabel
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.lens import tuned as module
from babelscope.lens.tuned import TunedLens, closeness, closeness_rows
from babelscope.tinybabel.texts import document
from builders import letters, make_texts
from fixtures_text import LETTERS

TEXTS = [text for code in LETTERS for text in make_texts(code, 20)]
PROFILE = bs.VocabularyProfile.build(letters(), {code: make_texts(code, 30) for code in LETTERS})
PROMPTS = {"fr": ["mer", "la lune au mur"], "sw": ["maji ya kwa"]}


def train(model, **options):
    given = {"max_tokens": 24, "max_steps": 40, "token_budget": 256, "learning_rate": 5e-3, **options}
    return TunedLens.train(model, letters(), TEXTS, **given)


def measured(model, tuned, texts):
    """Means over the positions after BOS of KL(last || layer) and of agreement, one text at a time, [L] each."""
    layers = range(len(tuned.weight))
    nats, agreed, positions = [0.0 for _ in layers], [0 for _ in layers], 0
    for text in texts:
        ids = torch.tensor([letters()(text)["input_ids"][:24]])
        with torch.no_grad():
            output = model(input_ids=ids, output_hidden_states=True)
        goal = output.logits[0, 1:].double().softmax(1)
        for layer in layers:
            hidden = output.hidden_states[layer][0, 1:]
            with torch.no_grad():
                found = logits(model, hidden + hidden @ tuned.weight[layer].T + tuned.bias[layer]).double().softmax(1)
            for theirs, mine in zip(goal.tolist(), found.tolist(), strict=True):
                nats[layer] += sum(p * (math.log(p) - math.log(q)) for p, q in zip(theirs, mine, strict=True))
                agreed[layer] += theirs.index(max(theirs)) == mine.index(max(mine))
        positions += len(goal)
    return [each / positions for each in nats], [each / positions for each in agreed]


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


def test_an_untrained_lens_has_no_closeness_to_tell():
    assert closeness_rows(TunedLens.untrained(tiny.tiny_model("llama")).about) == []


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_training_brings_held_out_texts_as_near_as_it_says(name):
    model = tiny.tiny_model(name).train()
    weights = copy.deepcopy(model.state_dict())
    tuned = train(model)
    assert model.training
    assert all(torch.equal(each, weights[key]) for key, each in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    assert tuned.about["documents"] == [48, 6, 6]
    held_out = [TEXTS[place] for place in tuned.about["held_out"]]
    rows = closeness_rows(tuned.about)
    for kind, lens in (("plain", TunedLens.untrained(model)), ("tuned", tuned)):
        nats, agreed = measured(model, lens, held_out)
        assert [row[f"divergence_{kind}"] for row in rows] == pytest.approx(nats, rel=1e-4, abs=1e-7)
        assert [row[f"agreement_{kind}"] for row in rows] == pytest.approx(agreed)
        assert tuned.about[kind]["documents"] == 6
    for row in rows:
        assert row["divergence_tuned"] < 0.9 * row["divergence_plain"]


def test_a_layer_follows_the_gradient_of_the_divergence():
    generator = torch.Generator().manual_seed(0)
    hidden, head, goal = (torch.randn(*shape, generator=generator) for shape in ((5, 8), (8, 20), (5, 20)))
    weight, bias = torch.randn(8, 8, generator=generator), torch.randn(8, generator=generator)
    learner = module._Learner(weight.clone(), bias.clone(), 1.0, 0.1)
    logits_NV = 3 * torch.tanh((hidden + hidden @ learner.own[0].T + learner.own[1]) @ head / 3)
    learner.learn(logits_NV, goal.log_softmax(1), 7)
    weight.requires_grad_()
    bias.requires_grad_()
    chances = (3 * torch.tanh((hidden + hidden @ weight.T + bias) @ head / 3)).softmax(1)
    p = goal.softmax(1)
    ((p * (p.log() - chances.log())).sum() / 7).backward()
    torch.testing.assert_close(learner.own[0].grad, weight.grad)
    torch.testing.assert_close(learner.own[1].grad, bias.grad)


def test_closeness_to_any_text():
    model = tiny.tiny_model("llama")
    tuned = train(model, max_steps=5)
    texts = ["la mer", "maji ya kwa", "p"]
    for lens in (None, tuned):
        found = closeness(model, letters(), texts, tuned=lens, max_tokens=24, token_budget=16)
        nats, agreed = measured(model, lens or TunedLens.untrained(model), texts)
        assert found.divergence == pytest.approx(nats, rel=1e-4, abs=1e-7)
        assert found.agreement == pytest.approx(agreed)
        assert (found.documents, found.positions) == (3, sum(len(letters()(text)["input_ids"]) - 1 for text in texts))


def test_documents_that_decide_or_are_measured_teach_nothing(monkeypatch):
    taught, forever = [], module._forever

    def watch(read, draw):
        taught.extend(
            tuple(row[mask.bool()].tolist())
            for batch in read
            for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        )
        return forever(read, draw)

    monkeypatch.setattr(module, "_forever", watch)
    tuned = TunedLens.train(tiny.tiny_model("llama"), letters(), [*TEXTS, *TEXTS], max_tokens=24, max_steps=1)
    assert tuned.about["documents"] == [48, 6, 6], "a text that occurs twice counts once"
    kept = {tuple(letters()([*TEXTS, *TEXTS][place])["input_ids"][:24]) for place in tuned.about["held_out"]}
    assert len(set(taught)) == 48
    assert len(kept) == 6
    assert not kept & set(taught)


def test_training_stops_where_it_gains_no_more():
    model = tiny.tiny_model("llama")
    settled = train(model, max_steps=3000)
    assert 20 < max(settled.about["steps"]) < 3000 - 20, "long before the limit"
    longer = train(model, max_steps=6000)
    assert torch.equal(longer.weight[1], settled.weight[1])
    short = train(model, max_steps=20)
    for few, many in zip(closeness_rows(short.about), closeness_rows(settled.about), strict=True):
        assert many["divergence_tuned"] < few["divergence_tuned"]


def test_a_rate_far_too_high_leaves_the_plain_lens():
    """Each look finds the map worse, so the best one stays: none at all."""
    tuned = train(tiny.tiny_model("llama"), learning_rate=1e4, max_steps=3000)
    assert tuned.about["steps"] == [0, 0]
    assert not any(bool(each.any()) for each in (*tuned.weight, *tuned.bias))
    assert tuned.about["tuned"] == tuned.about["plain"]


def test_on_a_trained_model_every_layer_comes_nearer():
    model, tokenizer = bs.load_model(tinybabel.NAME)
    options = {"max_tokens": 32, "token_budget": 192}
    texts = [document(code, "train", number) for code in ("en", "fr", "zh") for number in range(30)]
    tuned = TunedLens.train(model, tokenizer, texts, max_steps=20, **options)
    others = [document(code, "test", number) for code in ("en", "fr", "zh") for number in range(4)]
    before, after = (closeness(model, tokenizer, others, tuned=lens, **options) for lens in (None, tuned))
    for layer, (plain, near) in enumerate(zip(before.divergence, after.divergence, strict=True)):
        assert near < 0.9 * plain, f"layer {layer}"
    assert sum(after.agreement) > sum(before.agreement)


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
    assert through.about["settings"]["tuned"]["max_steps"] == 40


def test_saved_and_loaded_bit_for_bit(tmp_path):
    model = tiny.tiny_model("llama")
    tuned = train(model, max_steps=3)
    tuned.save(tmp_path / "tuned.safetensors")
    loaded = TunedLens.load(tmp_path / "tuned.safetensors")
    for mine, theirs in zip((*tuned.weight, *tuned.bias), (*loaded.weight, *loaded.bias), strict=True):
        assert torch.equal(mine, theirs)
        assert not theirs.requires_grad
    assert (loaded.model, loaded.about) == (tuned.model, tuned.about)
    again = train(model, max_steps=3)
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
    with pytest.raises(ConfigError, match="max_steps must be at least 1"):
        train(tiny.tiny_model("llama"), max_steps=0)
    with pytest.raises(DataError, match="no usable document"):
        TunedLens.train(tiny.tiny_model("llama"), letters(), ["", " "], max_tokens=24)
    with pytest.raises(DataError, match=r"three different documents or more .* found 2"):
        TunedLens.train(tiny.tiny_model("llama"), letters(), ["la", "mer", "la"], max_tokens=24)


def test_bfloat16_models_train_in_float32():
    model = tiny.tiny_model("llama", torch.bfloat16)
    tuned = train(model)
    assert tuned.weight[0].dtype == torch.float32
    assert sum(tuned.about["tuned"]["divergence"]) < 0.9 * sum(tuned.about["plain"]["divergence"])
