"""Sets of neurons behave as Python sets of (slot, layer, unit), and their files as nothing else than what was saved."""

from __future__ import annotations

import json
import logging
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
from babelscope import Anatomy, NeuronSet
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.models.load import fingerprint
from tiny import tiny_model

torch.set_num_threads(1)

Neuron = tuple[str, int, int]

WIDTHS = {"q": (4, 4, 4), "v": (2, 2, 2), "ffn": (6, 9, 5)}
NEURONS: list[Neuron] = [
    (slot, layer, unit)
    for slot, widths in WIDTHS.items()
    for layer, width in enumerate(widths)
    for unit in range(width)
]

sets = st.sets(st.sampled_from(NEURONS))
scored = st.dictionaries(st.sampled_from(NEURONS), st.floats(-10, 10, width=32))


def build(neurons: set[Neuron] | dict[Neuron, float], model: str = "abc") -> NeuronSet:
    masks = {slot: [torch.zeros(width, dtype=torch.bool) for width in widths] for slot, widths in WIDTHS.items()}
    scores = {slot: [torch.full((width,), torch.nan) for width in widths] for slot, widths in WIDTHS.items()}
    for slot, layer, unit in neurons:
        masks[slot][layer][unit] = True
        if isinstance(neurons, dict):
            scores[slot][layer][unit] = neurons[slot, layer, unit]
    provenance = {"model": {"fingerprint": model, "name": f"model {model}"}, "language": "fr"}
    return NeuronSet.from_masks(masks, scores, provenance)


def score_of(neurons: NeuronSet, neuron: Neuron) -> float:
    slot, layer, unit = neuron
    place = neurons.indices[slot][layer].tolist().index(unit)
    return float(neurons.scores[slot][layer][place])


def check(found: NeuronSet, expected: set[Neuron]) -> None:
    assert list(found) == [neuron for neuron in NEURONS if neuron in expected], "in order of slot, layer, unit"
    assert len(found) == len(expected)
    assert bool(found) == bool(expected)
    for slot, widths in WIDTHS.items():
        assert len(found[slot]) == len(widths)
        for layer, units in enumerate(found[slot]):
            assert units.dtype == torch.int64
            assert units.tolist() == sorted(unit for s, at, unit in expected if (s, at) == (slot, layer))
            assert found.scores[slot][layer].dtype == torch.float32
            assert found.scores[slot][layer].shape == units.shape


# ----------------------------------------------------------------------------------------------------------------------
# Algebra
# ----------------------------------------------------------------------------------------------------------------------


@given(left=sets, right=sets)
@settings(max_examples=80, deadline=None)
def test_algebra_is_that_of_sets(left: set[Neuron], right: set[Neuron]) -> None:
    one, other = build(left), build(right)
    for operation in (operator.and_, operator.or_, operator.sub, operator.xor):
        check(operation(one, other), operation(left, right))
    check(one, left)
    assert (one == other) == (left == right)
    assert (one != other) == (left != right)
    assert (one <= other) == (left <= right)
    assert (one >= other) == (left >= right)
    assert [neuron in one for neuron in NEURONS] == [neuron in left for neuron in NEURONS]


@given(left=scored, right=scored)
@settings(max_examples=50, deadline=None)
def test_scores_go_along(left: dict[Neuron, float], right: dict[Neuron, float]) -> None:
    """Those of the left operand, and of the right one where the left has none."""
    one, other = build(left), build(right)
    for operation in (operator.and_, operator.or_, operator.sub, operator.xor):
        found = operation(one, other)
        assert {n: score_of(found, n) for n in found} == {n: {**right, **left}[n] for n in found}


@given(
    neurons=scored,
    layers=st.none() | st.sets(st.integers(0, 2)),
    slots=st.none() | st.sets(st.sampled_from(["q", "v", "ffn", "up"]), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_parts(neurons: dict[Neuron, float], layers: set[int] | None, slots: set[str] | None) -> None:
    names = None if slots is None else {"ffn" if slot == "up" else slot for slot in slots}
    found = build(neurons).at(layers=layers, slots=slots)
    expected = {n for n in neurons if (names is None or n[0] in names) and (layers is None or n[1] in layers)}
    check(found, expected)
    assert {n: score_of(found, n) for n in found} == {n: neurons[n] for n in expected}


@given(neurons=scored, count=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_top(neurons: dict[Neuron, float], count: int) -> None:
    ranked = sorted(neurons, key=lambda neuron: (-neurons[neuron], NEURONS.index(neuron)))
    check(build(neurons).top(count), set(ranked[:count]))


@given(neurons=sets)
@settings(max_examples=30, deadline=None)
def test_counts_masks_and_universe(neurons: set[Neuron]) -> None:
    found = build(neurons)
    assert found.universe == len(NEURONS)
    assert found.n_layers == 3
    assert found.counts() == {
        slot: [sum(n[:2] == (slot, layer) for n in neurons) for layer in range(3)] for slot in WIDTHS
    }
    masks = found.masks()
    assert {n for n in NEURONS if masks[n[0]][n[1]][n[2]]} == neurons
    again = NeuronSet.from_masks(masks)
    assert again == found
    assert all(score.isnan().all() for layers in again.scores.values() for score in layers)


def test_membership_and_looking() -> None:
    found = build({("ffn", 1, 8), ("q", 0, 0)})
    assert ("up", 1, 8) in found, "an alias"
    for other in (("ffn", 1, 7), ("ffn", 3, 8), ("ffn", -1, 8), ("k", 0, 0), ("nonsense", 0, 0), (1, 8), "ffn", None):
        assert other not in found
    assert found["gate"][1].tolist() == [8]
    assert repr(found) == "NeuronSet(2 neurons, 5.26%: q 1, ffn 1)"
    assert repr(build(set())) == "NeuronSet(0 neurons, 0.00%: empty)"
    with pytest.raises(ConfigError, match=r"knows the slots q, v, ffn, not 'k'"):
        found["k"]
    with pytest.raises(ConfigError, match=r"wanted slots among"):
        found["w"]
    with pytest.raises(ConfigError, match=r"layers 0\.\.2, found \[3\]"):
        found.at(layers=[0, 3])
    with pytest.raises(ConfigError, match="no scores to rank by"):
        found.top(1)
    with pytest.raises(ConfigError, match="found -1"):
        build({("q", 0, 0): 1.0}).top(-1)


def test_a_set_is_not_hashable_and_equals_nothing_else() -> None:
    found = build({("q", 0, 0)})
    with pytest.raises(TypeError):
        hash(found)
    assert found != {("q", 0, 0)}
    for operation in (operator.and_, operator.or_, operator.sub, operator.xor, operator.le):
        with pytest.raises(TypeError):
            operation(found, {("q", 0, 0)})


# ----------------------------------------------------------------------------------------------------------------------
# Random controls
# ----------------------------------------------------------------------------------------------------------------------


@given(neurons=sets, seed=st.integers(0, 10), overlap=st.booleans())
@settings(max_examples=60, deadline=None)
def test_random_like(neurons: set[Neuron], seed: int, overlap: bool) -> None:
    found = build(neurons)
    drawn = found.random_like(seed, overlap=overlap)
    assert drawn.counts() == found.counts()
    assert drawn == found.random_like(seed, overlap=overlap)
    for slot, widths in WIDTHS.items():
        for layer, width in enumerate(widths):
            mine, theirs = set(found[slot][layer].tolist()), set(drawn[slot][layer].tolist())
            if not overlap:
                assert len(mine & theirs) == max(0, 2 * len(mine) - width), "only as much as there is no room"
    assert drawn.provenance["model"] == found.provenance["model"]
    assert drawn.provenance["derived"] == {"random_like": seed, "overlap": overlap}


def test_random_like_is_uniform_and_differs_by_seed() -> None:
    found = build({("ffn", 1, 0), ("ffn", 1, 1)})
    drawn = [found.random_like(seed) for seed in range(400)]
    counts = torch.zeros(9)
    for each in drawn:
        counts[each["ffn"][1]] += 1
    assert counts[:2].sum() == 0
    assert (counts[2:] - 400 * 2 / 7).abs().max() < 40  # standard deviation 9
    overlapping = torch.zeros(9)
    for seed in range(400):
        overlapping[found.random_like(seed, overlap=True)["ffn"][1]] += 1
    assert (overlapping - 400 * 2 / 9).abs().max() < 40


def test_random_like_warns_where_there_is_no_room(caplog: pytest.LogCaptureFixture) -> None:
    crowded = build({("v", 2, 0), ("v", 2, 1), ("q", 0, 1)})
    with caplog.at_level(logging.WARNING):
        crowded.random_like(0)
    assert "more than half of v of layer 2 is in the set" in caplog.text
    caplog.clear()
    crowded.at(slots=["q"]).random_like(0)
    assert not caplog.text


# ----------------------------------------------------------------------------------------------------------------------
# From indices
# ----------------------------------------------------------------------------------------------------------------------


def anatomy(name: str = "llama") -> Anatomy:
    return Anatomy(tiny_model(name), check=False)


def test_from_indices() -> None:
    place = anatomy()
    found = NeuronSet.from_indices(place, {"up": {1: [7, 3, 3]}, "down": {0: torch.tensor([5])}, "k": {1: [15]}})
    assert list(found) == [("k", 1, 15), ("ffn", 0, 5), ("ffn", 1, 3), ("ffn", 1, 7)]
    assert found.widths == {slot: tuple(widths) for slot, widths in place.widths().items()}
    assert found.provenance["model"]["fingerprint"] == fingerprint(place.model)
    assert all(math.isnan(score_of(found, neuron)) for neuron in found)
    with_scores = NeuronSet.from_indices(place, {"q": {0: [9, 2]}}, {"q": {0: [0.5, 1.5]}}, {"language": "fr"})
    assert [score_of(with_scores, neuron) for neuron in with_scores] == [1.5, 0.5]
    assert with_scores.provenance["language"] == "fr"


def test_from_indices_with_expert_addresses() -> None:
    place = anatomy("mixtral")
    found = NeuronSet.from_indices(place, {"ffn": {0: [(3, 19), (0, 1), 25], 1: [(1, 4)]}})
    assert list(found) == [("ffn", 0, 1), ("ffn", 0, 25), ("ffn", 0, 79), ("ffn", 1, 24)]


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        ({"w": {0: [1]}}, r"wanted slots among q, k, v, o, ffn .*found 'w'"),
        ({"q": {2: [1]}}, r"slot q: the model has layers 0\.\.1, found layer 2"),
        ({"q": {-1: [1]}}, r"found layer -1"),
        ({"k": {0: [16]}}, r"slot k, layer 0: units are 0\.\.15, found 16\. .*kv-head space"),
        ({"up": {0: [-1]}}, r"slot up, layer 0: units are 0\.\.43, found -1"),
        ({"ffn": {0: [(1, 0)]}}, r"layer 0 has experts 0\.\.0 of units 0\.\.43, found expert 1"),
        ({"q": {0: [(0, 3)]}}, r"slot q, layer 0: .*found \(0, 3\)"),
        ({"ffn": {0: [1.5]}}, r"slot ffn, layer 0: .*found 1\.5"),
        ({"ffn": {0: ["1"]}}, r"slot ffn, layer 0: .*found '1'"),
    ],
)
def test_from_indices_names_what_is_wrong(indices: dict[str, dict[int, list[Any]]], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        NeuronSet.from_indices(anatomy(), indices)


def test_from_indices_with_too_few_scores() -> None:
    with pytest.raises(ConfigError, match=r"slot ffn, layer 1: 2 units, but 1 score"):
        NeuronSet.from_indices(anatomy(), {"ffn": {1: [1, 2]}}, {"ffn": {1: [0.5]}})


def test_from_indices_of_a_slot_that_the_anatomy_lacks() -> None:
    with pytest.raises(ConfigError, match=r"wanted slots among q .*found 'v'.*build the anatomy with it"):
        NeuronSet.from_indices(Anatomy(tiny_model("llama"), ("q",), check=False), {"v": {0: [0]}})


# ----------------------------------------------------------------------------------------------------------------------
# Different models
# ----------------------------------------------------------------------------------------------------------------------


def test_sets_of_different_models_do_not_combine() -> None:
    one, other = build({("q", 0, 0)}, "abc"), build({("q", 0, 0)}, "def")
    for operation in (operator.and_, operator.or_, operator.sub, operator.xor, operator.le):
        with pytest.raises(ProvenanceError, match=r"found model abc and model def \(fingerprints abc, def"):
            operation(one, other)
    nameless = NeuronSet.from_masks(one.masks())
    assert len(one | nameless) == 1, "a set without a model goes with any of the same widths"
    fewer = NeuronSet.from_masks({slot: masks for slot, masks in one.masks().items() if slot != "v"})
    with pytest.raises(ProvenanceError, match=r"slots \['q', 'v', 'ffn'\], \['q', 'ffn'\]"):
        operator.or_(one, fewer)


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[NeuronSet, Path]:
    found = NeuronSet.from_indices(
        anatomy(), {"ffn": {1: [3, 40]}, "k": {0: [15, 2]}}, {"ffn": {1: [0.25, -1.5]}}, {"language": "fr"}
    )
    path = tmp_path / "deep" / "fr.safetensors"
    found.save(path)
    return found, path


def test_saved_and_loaded(saved: tuple[NeuronSet, Path]) -> None:
    found, path = saved
    loaded = NeuronSet.load(path, tiny_model("llama"))
    assert loaded == found
    assert loaded.provenance == found.provenance
    assert loaded.widths == found.widths
    for slot in found.widths:
        for layer in range(2):
            assert loaded[slot][layer].dtype == torch.int64
            torch.testing.assert_close(
                loaded.scores[slot][layer], found.scores[slot][layer], rtol=0, atol=0, equal_nan=True
            )
    assert [item.name for item in path.parent.iterdir()] == ["fr.safetensors"], "no temporary file stays"


def test_format_of_the_file(saved: tuple[NeuronSet, Path]) -> None:
    """What other programs may rely on."""
    _, path = saved
    tensors = load_file(path)
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in tensors.items() if "k.0.score" not in name} == {
        "ffn.1.index": (torch.int32, [3, 40]),
        "ffn.1.score": (torch.float32, [0.25, -1.5]),
        "k.0.index": (torch.int32, [2, 15]),
    }
    assert tensors["k.0.score"].isnan().tolist() == [True, True]
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["babelscope"])
    assert header["schema"] == 1
    assert header["kind"] == "neurons"
    assert header["widths"]["ffn"] == [44, 44]
    assert header["provenance"]["model"]["fingerprint"] == fingerprint(tiny_model("llama"))


@given(neurons=scored)
@settings(max_examples=20, deadline=None)
def test_any_set_survives_a_file(tmp_path_factory: pytest.TempPathFactory, neurons: dict[Neuron, float]) -> None:
    path = tmp_path_factory.mktemp("sets") / "set.safetensors"
    found = build(neurons)
    found.save(path)
    loaded = NeuronSet.load(path)
    check(loaded, set(neurons))
    assert {n: score_of(loaded, n) for n in loaded} == neurons


def test_another_model_is_refused(saved: tuple[NeuronSet, Path]) -> None:
    found, path = saved
    other = tiny_model("llama")
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(ProvenanceError, match=rf"fingerprint {fingerprint(other)}\. .*force=True \(--force\)"):
        NeuronSet.load(path, other)
    with pytest.raises(ProvenanceError):
        found.check(Anatomy(other, check=False))
    assert NeuronSet.load(path, other, force=True) == found
    assert NeuronSet.load(path) == found


@pytest.mark.parametrize("force", [False, True])
def test_another_shape_is_refused_even_with_force(saved: tuple[NeuronSet, Path], force: bool) -> None:
    _, path = saved
    for other in (tiny._llama(intermediate_size=40), tiny._llama(num_hidden_layers=3), tiny_model("qwen2")):
        with pytest.raises(ProvenanceError, match="force can't help here"):
            NeuronSet.load(path, other, force=force)


def test_a_set_without_a_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    nameless = NeuronSet.from_masks(NeuronSet.from_indices(Anatomy(model, check=False), {"q": {0: [1]}}).masks())
    with pytest.raises(ProvenanceError, match=r"found in an unnamed model \(fingerprint missing\)"):
        nameless.check(model)
    nameless.check(model, force=True)


def test_a_half_precision_copy_is_the_same_model(saved: tuple[NeuronSet, Path]) -> None:
    found, path = saved
    assert NeuronSet.load(path, tiny_model("llama", torch.bfloat16)) == found


# Damage


def _rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["babelscope"])
    tensors = load_file(path)
    change(header, tensors)
    header.pop("checksum", None)  # as in a file of an earlier version
    save_file(tensors, path, metadata={"babelscope": json.dumps(header)})


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file(saved: tuple[NeuronSet, Path], kept: int) -> None:
    _, path = saved
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"{path} is not a whole safetensors file .*copy it again or make it again"):
        NeuronSet.load(path)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(DataError, match=rf"no file {path}\. Check the path"):
        NeuronSet.load(path)
    with pytest.raises(DataError, match=r"no file .*\. Check the path"):
        NeuronSet.load(tmp_path)
    path.write_text("this is something else entirely")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        NeuronSet.load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="not one of Babelscope's"):
        NeuronSet.load(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"babelscope": "[1]"})
    with pytest.raises(DataError, match="not one of Babelscope's"):
        NeuronSet.load(path)
    save_file({"x": torch.zeros(3)}, path, metadata={"babelscope": json.dumps({"schema": 1, "kind": "atlas"})})
    with pytest.raises(DataError, match="wanted a file of kind 'neurons', found 'atlas'"):
        NeuronSet.load(path)
    newer = json.dumps({"schema": 2, "kind": "neurons", "version": "9.1"})
    save_file({"x": torch.zeros(3)}, path, metadata={"babelscope": newer})
    with pytest.raises(DataError, match=r"has schema 2, .*reads schema 1\. Read it with the version .*\(9\.1\)"):
        NeuronSet.load(path)


def _set_header(key: str, value: Any) -> Callable[[dict[str, Any], Any], None]:
    return lambda header, tensors: header.update({key: value})


def _set_tensor(name: str, values: list[int] | list[float] | None) -> Callable[[Any, dict[str, torch.Tensor]], None]:
    def change(header: Any, tensors: dict[str, torch.Tensor]) -> None:
        if values is None:
            del tensors[name]
        else:
            tensors[name] = torch.tensor(values, dtype=tensors[name].dtype)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda header, tensors: header.pop("widths"), "header is damaged"),
        (_set_header("widths", [1, 2]), "header is damaged"),
        (_set_header("widths", {"ffn": ["a"]}), "header is damaged"),
        (_set_header("widths", {"ffn": 44}), "header is damaged"),
        (_set_header("provenance", "x"), "header is damaged"),
        (_set_header("widths", {"w": [4]}), r"unknown slots \['w'\]"),
        (_set_tensor("ffn.1.index", [40, 3]), r"slot ffn, layer 1: wanted sorted units within 0\.\.43"),
        (_set_tensor("ffn.1.index", [3, 3]), "wanted sorted units"),
        (_set_tensor("ffn.1.index", [3, 44]), "wanted sorted units"),
        (_set_tensor("ffn.1.index", [-1, 3]), "wanted sorted units"),
        (_set_tensor("ffn.1.index", [3]), "each with a score"),
        (_set_tensor("ffn.1.index", None), "each with a score"),
        (_set_tensor("ffn.1.score", None), "each with a score"),
    ],
)
def test_a_damaged_file(saved: tuple[NeuronSet, Path], change: Callable[..., None], match: str) -> None:
    _, path = saved
    _rewritten(path, change)
    with pytest.raises(DataError, match=match) as caught:
        NeuronSet.load(path)
    assert str(path) in str(caught.value)
