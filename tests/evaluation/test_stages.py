"""The search for stages: every cell is the model with those neurons off, the best is the paper's."""

from __future__ import annotations

import itertools

import pytest
from transformers import PreTrainedModel

import oracle
from babelscope import Anatomy, NeuronSet, Stages, find_stages
from babelscope.errors import ConfigError
from babelscope.evaluation.likelihood import likelihood
from builders import byte_llama, byte_tokenizer, make_texts
from editing.cases import assert_intact, snapshot, zeroed_by_hand

LAYERS = 5


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return byte_llama(num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def neurons(model: PreTrainedModel) -> NeuronSet:
    anatomy = Anatomy(model, check=False)
    units = {layer: [layer, 9, 20 + layer] for layer in range(LAYERS)}
    return NeuronSet.from_indices(anatomy, {slot: units if slot == "ffn" else {1: [3]} for slot in oracle.SLOTS})


TEXTS = {language: make_texts(language, 4) for language in ("fr", "zh")} | {"en": make_texts("sw", 5)}


def test_the_grid_by_hand(model: PreTrainedModel, neurons: NeuronSet) -> None:
    tokenizer, before = byte_tokenizer(), snapshot(model)

    def bits() -> dict[str, float]:
        return {each: likelihood(model, tokenizer, texts).bits_per_byte for each, texts in TEXTS.items()}

    found = find_stages(model, tokenizer, neurons, TEXTS, understand=(3, 1, 0), generate=(2, 1))
    assert_intact(model, before)
    intact = bits()
    assert [each.stages for each in found.grid] == [Stages(*two) for two in itertools.product((3, 1, 0), (2, 1))]
    assert found.intact == {language: -value for language, value in intact.items()}
    deltas = []
    for split in found.grid:
        first, last = split.stages.understand, split.stages.generate
        off = neurons.at(layers=[layer for layer in range(LAYERS) if layer < first or layer >= LAYERS - last])
        with zeroed_by_hand(model, off):
            harm = {language: value - intact[language] for language, value in bits().items()}
        assert split.neurons == len(off)
        assert split.change == pytest.approx({language: -value for language, value in harm.items()}, abs=1e-5)
        assert split.english == pytest.approx(-harm["en"], abs=1e-5)
        assert split.others == pytest.approx(-(harm["fr"] + harm["zh"]) / 2, abs=1e-5)
        deltas.append((harm["fr"] + harm["zh"]) / 2 - harm["en"])
    assert len({round(each, 3) for each in deltas}) > 1
    assert found.best is found.grid[deltas.index(max(deltas))]
    assert str(found).count("best") == 1
    assert len(str(found).splitlines()) == 7


def test_a_score_of_ones_own(model: PreTrainedModel, neurons: NeuronSet) -> None:
    """Harm to the target counts, harm to English counts against; of equals the first wins."""
    weight = model.model.layers[0].mlp.down_proj.weight
    last = model.model.layers[LAYERS - 1].mlp.down_proj.weight

    def score(each: PreTrainedModel) -> dict[str, float]:
        assert each is model
        first_off, last_off = bool((weight[:, 9] == 0).all()), bool((last[:, 9] == 0).all())
        return {"xx": 5 - 3 * first_off - last_off, "en": 4 - 2 * last_off}

    found = find_stages(model, None, neurons, score, understand=(0, 1, 2), generate=(0, 1))
    assert found.intact == {"xx": 5, "en": 4}
    rows = [
        (each.stages.understand, each.stages.generate, each.english, each.others, each.delta) for each in found.grid
    ]
    assert rows == [
        (0, 0, 0, 0, 0),
        (0, 1, -2, -1, -1),
        (1, 0, 0, -3, 3),
        (1, 1, -2, -4, 2),
        (2, 0, 0, -3, 3),
        (2, 1, -2, -4, 2),
    ]
    assert found.best.stages == Stages(1, 0)
    solving = find_stages(model, None, neurons, score, understand=(1,), generate=(0, 1), stages="solve")
    assert [each.delta for each in solving.grid] == [-1, 0]
    other = find_stages(model, None, neurons, score, understand=(0,), generate=(0, 1), english="xx")
    assert [each.delta for each in other.grid] == [0, 1]


def test_what_is_refused(model: PreTrainedModel, neurons: NeuronSet) -> None:
    def never(_: object) -> dict[str, float]:
        raise AssertionError("ran")

    with pytest.raises(ConfigError, match="overlap: the model has 5 layers"):
        find_stages(model, None, neurons, never, understand=(1, 4), generate=(2,))
    with pytest.raises(ConfigError, match=r"found none\. Give understand, generate"):
        find_stages(model, None, neurons, never, understand=())
    with pytest.raises(ConfigError, match="wanted a score of 'en' and of another language, found fr"):
        find_stages(model, byte_tokenizer(), neurons, {"fr": TEXTS["fr"]}, understand=(1,), generate=(1,))
