"""Linear modules: which of their rows and columns are units, whatever way they store their matrix."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.errors import UnsupportedModelError


@dataclass(frozen=True)
class Projection:
    """The part of a linear module whose output channels are the units of one slot."""

    module: nn.Module
    rows: Tensor | None = None
    """Output channels in unit order, int64; None: all of them as they are."""

    def take(self, output: Tensor) -> Tensor:
        """The units' values [..., width] in the module's output."""
        if self.rows is None:
            return output
        # Under tensor parallelism: those of this rank's heads, which come first as the first heads do in a whole one.
        rows = self.rows[self.rows < output.shape[-1]]
        return output.index_select(-1, rows.to(output.device))

    def channels(self, units: Tensor) -> Tensor:
        """Output channels of the module for these units."""
        return units if self.rows is None else self.rows[units]


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear module stores its weight as [in, out] (GPT-2's Conv1D)."""
    return type(module).__name__ == "Conv1D"


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(out features, in features) of a linear module, quantised ones included.

    Raises:
        UnsupportedModelError: the module shows neither its features nor a matrix.
    """
    if hasattr(module, "out_features") and hasattr(module, "in_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise UnsupportedModelError(
            f"wanted a linear module with in_features and out_features or a matrix, found {type(module).__name__} with "
            "neither: quantisation or fusing made its channels unreachable. Load the model without it, or quantised by "
            "a method whose modules keep their shape (bitsandbytes)."
        )
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    return shape[::-1] if is_transposed(module) else shape


def dense_weight(module: nn.Module) -> Tensor:
    """The weight [out, in] of a linear module as floating point, dequantised by the module itself if need be."""
    weight = getattr(module, "weight", None)
    out_features, in_features = linear_shape(module)
    stored = (in_features, out_features) if is_transposed(module) else (out_features, in_features)
    if isinstance(weight, Tensor) and tuple(weight.shape) == stored and _is_readable(weight):
        return weight.T if is_transposed(module) else weight
    held = list(itertools.chain(module.parameters(), module.buffers()))
    device = held[0].device if held[0].device.type != "meta" else torch.device("cpu")
    dtype = next((each.dtype for each in held if _is_readable(each)), torch.get_default_dtype())
    columns = []
    with torch.no_grad():  # forward, not a call: the hooks that ask for the weight must not see the probes
        offset = module.forward(torch.zeros(1, in_features, device=device, dtype=dtype))
        for start in range(0, in_features, 1024):
            unit = torch.arange(start, min(start + 1024, in_features), device=device)
            probe = torch.zeros(len(unit), in_features, device=device, dtype=dtype)
            probe[torch.arange(len(unit), device=device), unit] = 1
            columns.append((module.forward(probe) - offset).T)
    return torch.cat(columns, dim=1)


def _is_readable(weight: Tensor) -> bool:
    """Whether the values are there in floating point of 16 bits or more (8-bit ones need a scale kept elsewhere)."""
    return weight.is_floating_point() and weight.element_size() > 1 and weight.device.type != "meta"


def row_places(projection: Projection, units: Tensor) -> list[tuple[nn.Parameter, tuple[Any, ...]]]:
    """The rows of these units, biases included: pairs of a parameter and the index that selects them in it."""
    weight = _float_parameter(projection.module)
    channels = projection.channels(units)
    index: tuple[Any, ...] = (slice(None), channels) if is_transposed(projection.module) else (channels,)
    pairs: list[tuple[nn.Parameter, tuple[Any, ...]]] = [(weight, index)]
    bias = getattr(projection.module, "bias", None)
    if bias is not None:
        pairs.append((bias, (channels,)))
    return pairs


def column_place(module: nn.Module, units: Tensor) -> tuple[nn.Parameter, tuple[Any, ...]]:
    """The columns of these units: a parameter and the index that selects them in it."""
    weight = _float_parameter(module)
    return weight, ((units,) if is_transposed(module) else (slice(None), units))


def _float_parameter(module: nn.Module) -> nn.Parameter:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or weight.ndim != 2:
        raise UnsupportedModelError(
            f"the weight of {type(module).__name__} is quantised, so its rows can't be edited in place. "
            "Load the model without quantization, or edit activations instead of weights."
        )
    return weight
