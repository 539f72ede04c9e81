"""Edits of weights: exact for zero and scale, no cost per token, restored bit for bit."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.editing.operations import Operation
from babelscope.errors import UnsupportedModelError
from babelscope.models.anatomy import Anatomy

Place = tuple[nn.Parameter, tuple[Any, ...]]
"""A parameter and the index that selects the units' weights in it."""


def places(anatomy: Anatomy, slot: str, layer: int, units: Tensor, operation: Operation) -> list[Place] | str:
    """The weights to multiply, or the reason why they can't be edited in place.

    Zero takes all the weights of a unit (paper, section 2.1). Scale takes those that its contribution is linear in:
    the rows of W_Q, W_K and W_V with their biases, so the factor acts on the projection's output, before a Q/K norm
    if the model has one; the columns of W_O and W_down.
    """
    part = anatomy.layers[layer]
    attention, ffn = part.attention, part.ffn
    if slot == "ffn":
        modules = [each.module for each in (ffn.up, ffn.gate) if each is not None] + [ffn.down or ffn.experts]
    else:
        modules = [{"q": attention.query.module, "k": attention.key.module, "v": attention.value.module}.get(slot)]
        modules = [modules[0] or attention.output]
    if any(hasattr(module, "base_layer") for module in modules):
        return "an adapter adds to the weights"
    try:
        found = anatomy.weights(slot, layer, units)
    except UnsupportedModelError:
        return "the weights are quantised"
    if operation.name == "scale" and slot == "ffn":
        down = ffn.down.weight if ffn.down is not None else getattr(ffn.experts, "down_proj", None)
        found = [place for place in found if place[0] is down]
    for weight, _ in found:
        if weight.device.type == "meta":
            return "the weights are offloaded"
        if not weight.is_floating_point() or weight.element_size() < 2 or type(weight.data) is not Tensor:
            return "the weights are quantised or sharded"
    return found


def multiply(found: list[Place], factor: float, stack: ExitStack) -> None:
    """Multiplies the weights by a factor (0: sets them to zero, whatever they are) until the stack closes."""
    saved: list[tuple[Tensor, tuple[Any, ...], Tensor]] = []
    stack.callback(_restore, saved)
    for weight, index in found:
        here = tuple(part.to(weight.device) if isinstance(part, Tensor) else part for part in index)
        before = weight.data[here].clone()
        saved.append((weight.data, here, before))
        weight.data[here] = torch.zeros_like(before) if factor == 0 else before * factor


def _restore(saved: list[tuple[Tensor, tuple[Any, ...], Tensor]]) -> None:
    """Puts the values back, the last first; an interrupt meanwhile waits until that is done."""
    try:
        _put_back(saved)
    except BaseException:
        _put_back(saved)
        raise


def _put_back(saved: list[tuple[Tensor, tuple[Any, ...], Tensor]]) -> None:
    while saved:
        data, index, value = saved[-1]
        data[index] = value
        saved.pop()
