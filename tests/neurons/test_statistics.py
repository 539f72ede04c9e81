"""Statistics against lists of per-document values, and merging against never having split.

Axes: `F` folds, `N` units of a slot over all layers, `K` top shares, `B` documents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from babelscope import Anatomy, neuron_impacts
from babelscope.errors import DataError, ProvenanceError
from babelscope.models.observe import Observation, Observer
from babelscope.models.taps import Activation
from babelscope.neurons.statistics import Layout, Statistics, layout_from_json, layout_to_json
from tiny import tiny_model

torch.set_num_threads(1)

FOLDS = 3
SHARES = (0.05, 0.25, 0.5)
SLOTS = ("q", "k", "v", "o", "ffn")

# ----------------------------------------------------------------------------------------------------------------------
# A model's documents, one at a time
# ----------------------------------------------------------------------------------------------------------------------


def _documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 64, (length,), generator=generator) for length in (9, 4, 12, 7, 4, 10, 6)]


def _activations(model: Any, ids: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """slot -> layer -> (values [T, N], gate or value whose sign counts [T, N]) of one document, from a llama."""
    seen: dict[tuple[str, int], Tensor] = {}
    handles = []
    for number, layer in enumerate(model.model.layers):
        for slot, module in (
            ("q", layer.self_attn.q_proj),
            ("k", layer.self_attn.k_proj),
            ("v", layer.self_attn.v_proj),
            ("gate", layer.mlp.gate_proj),
        ):
            handles.append(
                module.register_forward_hook(
                    lambda module, args, output, key=(slot, number): seen.update({key: output[0]})
                )
            )
        for slot, module in (("o", layer.self_attn.o_proj), ("ffn", layer.mlp.down_proj)):
            handles.append(
                module.register_forward_pre_hook(
                    lambda module, args, key=(slot, number): seen.update({key: args[0][0]})
                )
            )
    with torch.no_grad():
        model(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    return {
        slot: [
            (seen[slot, number], seen["gate" if slot == "ffn" else slot, number])
            for number in range(len(model.model.layers))
        ]
        for slot in SLOTS
    }


@pytest.fixture(scope="module")
def measured() -> tuple[Any, list[Tensor], list[dict[str, list[Tensor]]], list[Any]]:
    """A float64 llama, documents, each document's impacts, and its activations."""
    model = tiny_model("llama", torch.float64)
    documents = _documents()
    impacts = [neuron_impacts(model, ids[None]) for ids in documents]
    return model, documents, impacts, [_activations(model, ids) for ids in documents]


def _gather(model: Any, documents: list[Tensor], batches: Sequence[Sequence[int]], per_token: bool) -> Statistics:
    """Statistics of the documents, batch by batch, padded on the right."""
    anatomy = Anatomy(model)
    widths = {slot: tuple(layers) for slot, layers in anatomy.widths().items()}
    statistics = Statistics.empty(Layout(widths, FOLDS, SHARES, (0.5, 2.0)), torch.float64)
    with Observer(anatomy, activations=True) as observer:
        for batch in batches:
            lengths = torch.tensor([len(documents[number]) for number in batch])
            ids = torch.nn.utils.rnn.pad_sequence([documents[number] for number in batch], batch_first=True)
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            observation = observer.run(ids, mask)
            statistics.add(observation, lengths, torch.tensor(batch), per_token=per_token)
    return statistics


def test_a_batch_is_taken_in_without_asking_its_values() -> None:
    """Tensors without values stand for a GPU's: whatever would wait for one raises an error on them."""
    model = tiny_model("llama")
    anatomy = Anatomy(model)
    widths = {slot: tuple(layers) for slot, layers in anatomy.widths().items()}
    statistics = Statistics.empty(Layout(widths, FOLDS, SHARES, (0.5,)))
    with Observer(anatomy, activations=True) as observer:
        seen = observer.run(torch.randint(3, 64, (4, 9)))

    def emptied(sums: Activation) -> Activation:
        return Activation(sums.positive.to("meta"), sums.total.to("meta"), sums.squares.to("meta"))

    observation = Observation(
        {slot: [layer.to("meta") for layer in layers] for slot, layers in seen.impact.items()},
        {slot: [emptied(layer) for layer in layers] for slot, layers in seen.activation.items()},
    )
    on_device = statistics.on("meta")
    on_device.add(observation, torch.tensor([9, 9, 9, 9]), torch.tensor([0, 1, 2, 4]), per_token=True)
    assert statistics.documents.tolist() == [1, 2, 1], "counted on the host"
    assert {value.device.type for values in on_device.slots.values() for value in values.values()} == {"meta"}
    with pytest.raises(NotImplementedError, match="meta tensor"):
        on_device.on("cpu")


BATCHES = {
    "one by one": [[n] for n in range(7)],
    "one batch": [[2, 5, 0, 3, 6, 1, 4]],
    "two": [[2, 4, 6], [0, 1, 3, 5]],
}


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("batches", BATCHES)
def test_equals_what_lists_of_documents_give(measured: Any, batches: str, per_token: bool) -> None:
    model, documents, impacts, activations = measured
    statistics = _gather(model, documents, BATCHES[batches], per_token)
    close: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}  # Llama's norms round to float32, differently in a batch
    for fold in range(FOLDS):
        members = [number for number in range(7) if number % FOLDS == fold]
        assert statistics.documents[fold] == len(members)
        assert statistics.tokens[fold] == sum(len(documents[number]) for number in members)
        for slot in SLOTS:
            values = statistics.slots[slot]
            place = 0
            for layer in range(2):
                rows = [
                    impacts[number][slot][layer][0] / (math.sqrt(len(documents[number])) if per_token else 1)
                    for number in members
                ]
                width = len(rows[0])
                here = slice(place, place + width)
                place += width
                stacked = torch.stack(rows)
                torch.testing.assert_close(values["minimum"][fold, here], stacked.min(0).values, **close)
                torch.testing.assert_close(values["maximum"][fold, here], stacked.max(0).values, **close)
                torch.testing.assert_close(values["total"][fold, here], stacked.sum(0), **close)
                torch.testing.assert_close(values["squares"][fold, here], (stacked**2).sum(0), **close)
                for number, share in enumerate(SHARES):
                    kept = max(1, round(share * width))
                    hits = sum((row >= row.sort(descending=True).values[kept - 1]).int() for row in rows)
                    assert values["hits"][number, fold, here].tolist() == torch.as_tensor(hits).tolist()
                for number, threshold in enumerate((0.5, 2.0)):
                    over = (stacked >= threshold).sum(0)
                    assert values["over"][number, fold, here].tolist() == over.tolist()
                active = torch.cat([activations[number][slot][layer][1] for number in members])
                sums = torch.cat([activations[number][slot][layer][0] for number in members])
                assert values["positive"][fold, here].tolist() == (active > 0).sum(0).tolist()
                torch.testing.assert_close(values["activation_total"][fold, here], sums.sum(0), **close)
                torch.testing.assert_close(values["activation_squares"][fold, here], (sums**2).sum(0), **close)
            assert place == values["minimum"].shape[1]


def test_summaries_over_all_folds(measured: Any) -> None:
    model, documents, impacts, activations = measured
    statistics = _gather(model, documents, BATCHES["two"], per_token=False)
    close: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
    for slot in SLOTS:
        values = torch.stack([torch.cat([layer[0] for layer in each[slot]]) for each in impacts])
        torch.testing.assert_close(statistics.minimum(slot), values.min(0).values, **close)
        torch.testing.assert_close(statistics.mean(slot), values.mean(0), **close)
        torch.testing.assert_close(statistics.deviation(slot), values.std(0, correction=0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(statistics.over_share(slot, 0.5), (values >= 0.5).double().mean(0))
        shares = statistics.hit_share(slot, 0.25)
        width = values.shape[1] // 2
        assert shares[:width].sum().item() == pytest.approx(round(0.25 * width)), "each document has that many hits"
        gates = torch.cat([torch.cat([layer[1] for layer in each[slot]], dim=1) for each in activations])
        sums = torch.cat([torch.cat([layer[0] for layer in each[slot]], dim=1) for each in activations])
        assert torch.equal(statistics.positive_share(slot), (gates > 0).double().mean(0))
        torch.testing.assert_close(statistics.activation_mean(slot), sums.mean(0), **close)


# ----------------------------------------------------------------------------------------------------------------------
# Splitting and merging, on numbers whose sums are exact in float64
# ----------------------------------------------------------------------------------------------------------------------

WIDTHS = {"v": (3, 5), "ffn": (7, 2)}
LAYOUT = Layout(WIDTHS, folds=3, top_shares=(0.3, 0.6), thresholds=(1.0, 4.0))


def _observed(documents: int, seed: int) -> tuple[Observation, Tensor]:
    """Impacts without ties within a document, in steps of 1/64, and a number of tokens for each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        return torch.stack([torch.randperm(400, generator=generator)[:width] / 64 for _ in range(documents)])

    def activation(width: int) -> Activation:
        return Activation(draw(width).floor(), draw(width) - 3, draw(width))

    impact = {slot: [draw(width) for width in widths] for slot, widths in WIDTHS.items()}
    sums = {slot: [activation(width) for width in widths] for slot, widths in WIDTHS.items()}
    return Observation(impact, sums), torch.randint(1, 50, (documents,), generator=generator)


def _take(observation: Observation, rows: list[int]) -> Observation:
    return Observation(
        {slot: [layer[rows] for layer in layers] for slot, layers in observation.impact.items()},
        {
            slot: [Activation(each.positive[rows], each.total[rows], each.squares[rows]) for each in layers]
            for slot, layers in observation.activation.items()
        },
    )


def _assert_equal(found: Statistics, expected: Statistics) -> None:
    assert found.layout == expected.layout
    assert torch.equal(found.documents, expected.documents)
    assert torch.equal(found.tokens, expected.tokens)
    for slot, values in expected.slots.items():
        assert found.slots[slot].keys() == values.keys()
        for name, value in values.items():
            assert found.slots[slot][name].dtype == value.dtype
            assert torch.equal(found.slots[slot][name], value), (slot, name)


@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=14),
    cuts=st.sets(st.integers(1, 13)),
    seed=st.integers(0, 100),
    order=st.permutations(range(4)),
)
@settings(max_examples=60, deadline=None)
def test_shards_and_batches_in_any_order_are_one_run(
    owners: list[int], cuts: set[int], seed: int, order: list[int]
) -> None:
    """`owners[i]` is the shard of document i; each shard reads its documents in batches that end at the cuts."""
    observation, tokens = _observed(len(owners), seed)
    whole = Statistics.empty(LAYOUT)
    whole.add(observation, tokens, torch.arange(len(owners)), per_token=False)

    shards = []
    for shard in range(4):
        statistics = Statistics.empty(LAYOUT)
        members = [number for number, owner in enumerate(owners) if owner == shard]
        bounds = [0, *sorted(cut for cut in cuts if cut < len(members)), len(members)]
        for start, stop in itertools.pairwise(bounds):
            rows = members[start:stop]
            if rows:
                statistics.add(_take(observation, rows), tokens[rows], torch.tensor(rows), per_token=False)
        shards.append(statistics)
    merged = shards[order[0]]
    for number in order[1:]:
        merged = merged.merge(shards[number])
    _assert_equal(merged, whole)


@given(documents=st.integers(1, 14), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_halves_are_the_even_and_the_odd_folds(documents: int, seed: int) -> None:
    observation, tokens = _observed(documents, seed)
    whole = Statistics.empty(LAYOUT)
    whole.add(observation, tokens, torch.arange(documents), per_token=True)
    even, odd = whole.halves()
    for half, folds in ((even, (0, 2)), (odd, (1,))):
        rows = [number for number in range(documents) if number % 3 in folds]
        expected = Statistics.empty(LAYOUT)
        if rows:
            expected.add(_take(observation, rows), tokens[rows], torch.tensor(rows), per_token=True)
        _assert_equal(half, expected)
    _assert_equal(even.merge(odd), whole)


def test_merging_leaves_both_as_they_were() -> None:
    one, other = Statistics.empty(LAYOUT), Statistics.empty(LAYOUT)
    for statistics, seed in ((one, 1), (other, 2)):
        observation, tokens = _observed(4, seed)
        statistics.add(observation, tokens, torch.arange(4), per_token=True)
    copies = [{name: value.clone() for name, value in each.tensors("x").items()} for each in (one, other)]
    merged = one.merge(other)
    for value in merged.tensors("x").values():
        value.add_(1)
    for each, copy in zip((one, other), copies, strict=True):
        assert all(torch.equal(value, copy[name]) for name, value in each.tensors("x").items())


def test_nothing_merged_with_something_is_that() -> None:
    observation, tokens = _observed(5, 0)
    statistics = Statistics.empty(LAYOUT)
    statistics.add(observation, tokens, torch.arange(5), per_token=True)
    _assert_equal(Statistics.empty(LAYOUT).merge(statistics), statistics)
    _assert_equal(statistics.merge(Statistics.empty(LAYOUT)), statistics)


@pytest.mark.parametrize(
    "other",
    [
        replace(LAYOUT, folds=4),
        replace(LAYOUT, top_shares=(0.3,)),
        replace(LAYOUT, thresholds=()),
        replace(LAYOUT, activations=False),
        replace(LAYOUT, widths={"v": (3, 5)}),
        replace(LAYOUT, widths={"v": (5, 3), "ffn": (7, 2)}),
    ],
)
def test_what_counts_other_things_does_not_merge(other: Layout) -> None:
    with pytest.raises(ProvenanceError, match="Merge shards of one command only"):
        Statistics.empty(LAYOUT).merge(Statistics.empty(other))


def test_a_single_fold_has_no_halves() -> None:
    with pytest.raises(ProvenanceError, match="folds=2 or more"):
        Statistics.empty(replace(LAYOUT, folds=1)).halves()


def test_no_documents_are_no_division_by_zero() -> None:
    empty = Statistics.empty(LAYOUT)
    assert empty.mean("v").tolist() == empty.deviation("v").tolist() == [0.0] * 8
    assert empty.positive_share("v").tolist() == empty.hit_share("v", 0.3).tolist() == [0.0] * 8


def test_without_activations() -> None:
    layout = replace(LAYOUT, activations=False)
    statistics = Statistics.empty(layout)
    observation, tokens = _observed(3, 0)
    statistics.add(Observation(observation.impact, {}), tokens, torch.arange(3), per_token=False)
    assert "positive" not in statistics.slots["v"]
    assert statistics.documents.sum() == 3


def test_hits_are_of_each_layer_by_itself_whatever_its_width() -> None:
    """Layers of one width in a row are counted together, others apart."""
    widths = (4, 4, 9, 4, 4)
    statistics = Statistics.empty(Layout({"ffn": widths}, FOLDS, SHARES, activations=False))
    values = [
        torch.rand(5, width, generator=torch.Generator().manual_seed(place)) for place, width in enumerate(widths)
    ]
    statistics.add(Observation({"ffn": values}, {}), torch.ones(5, dtype=torch.int64), torch.arange(5), per_token=False)
    for hits_FN, share in zip(statistics.slots["ffn"]["hits"], SHARES, strict=True):
        wanted = torch.zeros(FOLDS, sum(widths), dtype=torch.int32)
        for document in range(5):
            for place, layer in enumerate(values):
                among = layer[document].argsort(descending=True)[: statistics.layout.kept(widths[place], share)]
                wanted[document % FOLDS, sum(widths[:place]) + among] += 1
        assert torch.equal(hits_FN, wanted)


def test_a_top_share_is_never_nothing() -> None:
    assert [LAYOUT.kept(width, 0.3) for width in (1, 3, 5, 7)] == [1, 1, 2, 2]
    observation, tokens = _observed(1, 0)
    statistics = Statistics.empty(replace(LAYOUT, top_shares=(1e-9, 1.0)))
    statistics.add(observation, tokens, torch.arange(1), per_token=False)
    first, all_ = statistics.slots["ffn"]["hits"].sum(1)
    assert first[:7].tolist() == torch.nn.functional.one_hot(observation.impact["ffn"][0][0].argmax(), 7).tolist()
    assert all_.tolist() == [1] * 9


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [LAYOUT, replace(LAYOUT, thresholds=(), top_shares=(), activations=False)])
def test_back_from_tensors(layout: Layout) -> None:
    statistics = Statistics.empty(layout, torch.float64)
    observation, tokens = _observed(5, 0)
    statistics.add(observation, tokens, torch.arange(5), per_token=True)
    assert layout_from_json(layout_to_json(layout)) == layout
    tensors = statistics.tensors("fr")
    assert all(name.startswith("fr.") and tensor.numel() for name, tensor in tensors.items())
    _assert_equal(Statistics.from_tensors(layout, tensors, "fr", "a file"), statistics)


@pytest.mark.parametrize("name", ["fr.documents", "fr.v.minimum", "fr.ffn.hits", "fr.v.positive"])
def test_a_missing_or_misshapen_tensor(name: str) -> None:
    tensors = Statistics.empty(LAYOUT).tensors("fr")
    value = tensors.pop(name)
    with pytest.raises(DataError, match=rf"a file: the file has no tensor .*{name}.*Make it again"):
        Statistics.from_tensors(LAYOUT, tensors, "fr", "a file")
    tensors[name] = value[..., :-1]
    with pytest.raises(DataError, match=rf"a file: the file has no tensor .*{name}.*Make it again"):
        Statistics.from_tensors(LAYOUT, tensors, "fr", "a file")
