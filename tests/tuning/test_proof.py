"""A proof that can fail: changed values are counted where they are, and those outside the neurons are found."""

from __future__ import annotations

import pytest
import torch

import tiny
from babelscope import Anatomy, NeuronSet
from babelscope.errors import ProvenanceError
from babelscope.tuning.proof import changes


def one_unit() -> tuple[torch.nn.Module, torch.nn.Module, NeuronSet]:
    base, tuned = tiny.tiny_model("llama"), tiny.tiny_model("llama")
    return base, tuned, NeuronSet.from_indices(Anatomy(base, check=False), {"ffn": {1: [7]}, "o": {0: [3, 4]}})


def test_rows_and_columns_are_counted() -> None:
    base, tuned, neurons = one_unit()
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight[7, :5] += 1
        tuned.model.layers[0].self_attn.o_proj.weight[:, 3:5] += 1
    report = changes(base, tuned, neurons)
    assert report.exact
    found = {each.name: (each.rows, each.columns, each.values) for each in report.tensors if each.values}
    assert found == {
        "model.layers.1.mlp.up_proj.weight": (1, 5, 5),
        "model.layers.0.self_attn.o_proj.weight": (32, 2, 64),
    }
    assert "every other value is bit-identical" in str(report)
    assert report.as_json()["untouched"] == len(report.tensors) - 2


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("model.layers.1.mlp.up_proj.weight", (8, 0), 1.0),
        ("model.layers.1.mlp.down_proj.weight", (0, 6), 1.0),
        ("model.norm.weight", (2,), 1.0),
        ("lm_head.weight", (0, 0), torch.nan),
    ],
)
def test_one_value_elsewhere_is_found(name: str, at: tuple[int, ...], value: float) -> None:
    base, tuned, neurons = one_unit()
    with torch.no_grad():
        tuned.get_parameter(name)[at] += value
    report = changes(base, tuned, neurons)
    assert not report.exact
    assert {each.name: each.outside for each in report.tensors if each.outside} == {name: 1}
    assert "HAVE CHANGED" in str(report)


def test_the_sign_of_zero_counts_and_equal_nans_do_not() -> None:
    base, tuned, neurons = one_unit()
    with torch.no_grad():
        base.model.norm.weight[:2] = torch.tensor([0.0, torch.nan])
        tuned.model.norm.weight[:2] = torch.tensor([-0.0, torch.nan])
    (found,) = (each for each in changes(base, tuned, neurons).tensors if each.values)
    assert (found.name, found.values) == ("model.norm.weight", 1)


def test_models_that_cannot_be_compared() -> None:
    base, tuned, neurons = one_unit()
    with pytest.raises(ProvenanceError, match="other tensors"):
        changes({}, tuned, neurons)
    with pytest.raises(ProvenanceError, match="same dtype"):
        changes(base.to(torch.bfloat16), tuned, neurons)
