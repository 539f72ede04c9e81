"""Edits of a model in memory that always restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from babelscope.models.anatomy import Anatomy
from babelscope.neurons.neuronset import NeuronSet


@contextmanager
def ablate(model: nn.Module | Anatomy, neurons: NeuronSet, *, force: bool = False) -> Iterator[None]:
    """Switches neurons off for as long as the context is open: all their weights, biases included, are zero.

    It edits weights, so generation costs nothing extra, and it restores them bit for bit, also after an exception.
    Contexts may be nested; they close in reverse order.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        neurons: the set.
        force: allow a set of another model with the same shapes.

    Raises:
        ProvenanceError: the set belongs to another model.
        UnsupportedModelError: a weight is quantised and can't be edited in place.

    Source: paper, section 2.1 ("deactivating" a neuron sets its parameters to zero).
    """
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, tuple(neurons.widths), check=False)
    neurons.check(anatomy, force=force)
    saved: list[tuple[nn.Parameter, tuple[Any, ...], torch.Tensor]] = []
    try:
        for slot, layers in neurons.indices.items():
            for layer, units in enumerate(layers):
                if not len(units):
                    continue
                for weight, index in anatomy.weights(slot, layer, units):
                    saved.append((weight, index, weight.data[index].clone()))
                    weight.data[index] = 0
        yield
    finally:
        for weight, index, value in reversed(saved):
            weight.data[index] = value
