"""Stages and structures: each unit of a set lies in exactly one part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from babelscope import Anatomy, NeuronSet, Stages
from babelscope.errors import ConfigError

LAYERS = 6


@pytest.fixture(scope="module")
def neurons() -> NeuronSet:
    """Two units in every slot of every layer."""
    anatomy = Anatomy(tiny._llama(num_hidden_layers=LAYERS), check=False)
    return NeuronSet.from_indices(
        anatomy, {slot: {layer: [layer, 7 + layer] for layer in range(LAYERS)} for slot in anatomy.slots}
    )


def test_the_papers_split() -> None:
    found = Stages().layers(32)
    assert found == {"understand": range(8), "solve": range(8, 30), "generate": range(30, 32)}


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12))
def test_the_stages_are_all_layers_in_order(understand: int, generate: int, n_layers: int) -> None:
    stages = Stages(understand, generate)
    if understand + generate > n_layers:
        with pytest.raises(ConfigError):
            stages.layers(n_layers)
    else:
        found = stages.layers(n_layers)
        assert [layer for each in found.values() for layer in each] == list(range(n_layers))
        assert (len(found["understand"]), len(found["generate"])) == (understand, generate)


def test_everything_but_task_solving_attention(neurons: NeuronSet) -> None:
    stages = Stages(understand=2, generate=1)
    found = neurons - stages.of(neurons, "solve", "attention")
    expected = {(slot, layer, unit) for slot, layer, unit in neurons if slot == "ffn" or layer not in (2, 3, 4)}
    assert set(found) == expected


def test_of_is_what_it_says(neurons: NeuronSet) -> None:
    stages = Stages(understand=2, generate=1)
    layers = {"understand": {0, 1}, "solve": {2, 3, 4}, "generate": {5}}
    for stage, where in layers.items():
        for structure, slots in {"attention": set("qkvo"), "ffn": {"ffn"}}.items():
            found = set(stages.of(neurons, stage, structure))
            assert found == {each for each in neurons if each[0] in slots and each[1] in where} != set()
    assert set(stages.of(neurons, ["understand", "generate"])) == {each for each in neurons if each[1] in (0, 1, 5)}
    assert stages.of(neurons, structures="ffn") == neurons.at(slots=("ffn",))
    assert stages.of(neurons) == neurons
    assert Stages(99, 99).of(neurons, structures="attention") == neurons.at(slots=("q", "k", "v", "o"))
    assert not Stages(0, 0).of(neurons, "generate")


def test_a_set_of_some_slots(neurons: NeuronSet) -> None:
    only = NeuronSet.from_masks({"v": neurons.masks()["v"]})
    assert set(Stages(2, 1).of(only, "solve", "attention")) == {each for each in only if each[1] in (2, 3, 4)}
    assert not Stages(2, 1).of(only, "solve", "ffn")


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        ((4, 3), r"understand \(4 layers\) and generate \(3\) overlap: the model has 6 layers"),
        ((7, 0), "the stage understand has 7 layers, the model only 6"),
        ((0, 9), "the stage generate has 9 layers, the model only 6"),
    ],
)
def test_stages_that_do_not_fit(neurons: NeuronSet, stages: tuple[int, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Stages(*stages).of(neurons, "solve")


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "2", None])
def test_sizes_that_are_no_numbers_of_layers(wrong: object) -> None:
    with pytest.raises(ConfigError, match="wanted understand as a number of layers"):
        Stages(understand=wrong)
    with pytest.raises(ConfigError, match="wanted generate as a number of layers"):
        Stages(generate=wrong)


def test_unknown_names(neurons: NeuronSet) -> None:
    with pytest.raises(ConfigError, match=r"a stage among understand, solve, generate, found \['solving'\]"):
        Stages(2, 1).of(neurons, ["solve", "solving"])
    with pytest.raises(ConfigError, match="a structure among attention, ffn, found"):
        Stages(2, 1).of(neurons, "solve", "mlp")
    with pytest.raises(ConfigError, match=r"a stage among .* found none"):
        Stages(2, 1).of(neurons, [])
