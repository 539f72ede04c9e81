"""What the tests of edits share: models that can be padded in float64, a set in every slot, zeroing by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import oracle
import tiny
from babelscope import Anatomy, NeuronSet
from babelscope.models.interfaces import switch_attention

EVERY = [*tiny.FAMILIES, *tiny.PROBED, "llama_biases"]
TOLERANCE = 1e-12

# In every tiny model: units of the first head and the last and, for experts, of the first expert and the last.
UNITS = {"q": [0, 5, -1], "k": [1, -2], "v": [0, 3, -1], "o": [2, -3], "ffn": [0, 7, -1]}


@contextlib.contextmanager
def built(name: str) -> Iterator[PreTrainedModel]:
    """The tiny model of that name in float64."""
    model = tiny.tiny_model(name, torch.float64)
    model.generation_config.eos_token_id = None  # what is generated has the length that the test asked for
    with contextlib.ExitStack() as stack:
        if name in ("bloom", "gemma2"):  # upstream's eager mask gives NaN on padded rows in float64
            switch_attention(Anatomy(model, check=False), stack)
        yield model


def some(anatomy: Anatomy, slots: tuple[str, ...] = oracle.SLOTS, shift: int = 0) -> NeuronSet:
    """A few units of every layer."""
    indices = {}
    for slot in slots:
        widths = [anatomy.width(slot, layer) for layer in range(anatomy.n_layers)]
        indices[slot] = {
            layer: sorted({(unit + shift) % width for unit in UNITS[slot]}) for layer, width in enumerate(widths)
        }
    return NeuronSet.from_indices(anatomy, indices)


@contextlib.contextmanager
def zeroed_by_hand(model: PreTrainedModel, neurons: NeuronSet | None) -> Iterator[None]:
    """The oracle's own way, neuron by neuron."""
    with contextlib.ExitStack() as stack:
        for slot, layer, unit in neurons if neurons is not None else ():
            stack.enter_context(oracle.zeroed(model, slot, layer, unit))
        yield


def logits(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """At the unpadded tokens."""
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[mask.bool()]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def assert_intact(model: nn.Module, before: dict[str, Tensor]) -> None:
    """All as in the snapshot, bit for bit, and no hook left."""
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called)
        assert not any(hooks), type(module).__name__
