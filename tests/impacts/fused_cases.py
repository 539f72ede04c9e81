"""Runs the Triton kernel on the cases of `test_fused.py` and writes what it found: `python fused_cases.py FILE`.

A program of its own, because Triton settles at its first import whether it interprets, and transformers imports it.
Not a test: without a GPU it interprets, tile by tile in numpy, which proves the arithmetic and not the speed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from impacts.test_kernels import Case, make

SMALL: dict[str, Any] = {"pairs": 2, "heads": 2, "tokens": 19, "block": 10}
CASES: dict[str, dict[str, Any]] = {
    "rank 1": {"rank": 1},
    "rank 2, one query head per kv head": {"heads": 1},
    "row gain": {"row_gain": True},
    "column gain": {"column_gain": True},
    "soft cap": {"cap": 1.5},
    "window, more keys than a tile": {"pairs": 1, "heads": 1, "tokens": 43, "window": 33, "block": 32},
    "left padding": {"left_padding": 5},
    "everything": {
        "row_gain": True,
        "column_gain": True,
        "cap": 3.0,
        "sink": True,
        "window": 9,
        "left_padding": 3,
        "position_bias": True,
    },
    "small channels beside large ones": {"width": 4, "size": torch.tensor([1e-6, 1e-3, 1.0, 4.0])},
    "overflowing channels": {"size": torch.tensor([1.0, 40.0, 400.0, 1e4, 1e-3]), "sink": True},
    **{f"{width} channels": {"pairs": 1, "width": width} for width in (64, 80, 96, 128, 256)},
}
MODELS = ("qwen3", "gemma2")
"""Grouped heads with norms of queries and keys; soft cap and window."""


def case(name: str, **changes: Any) -> Case:
    return make(**{**SMALL, **CASES[name], **changes}, dtype=torch.float32)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [3, 12], and a mask of padding on the right, on the left, and none."""
    ids = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    mask[1, :3] = 0
    return ids, mask


def main(path: str) -> None:
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    from safetensors.torch import save_file

    from babelscope.impacts import fused
    from babelscope.impacts.kernels import impact_squares
    from babelscope.models.scoring import neuron_impacts
    from tiny import tiny_model

    found = {name: case(name).impacts("triton") for name in CASES}
    first, second = case("rank 1"), case("column gain", seed=1)
    fused.BIAS_ELEMENTS = 1  # a strip of rows per block
    both = impact_squares(first.attention, [first.change, second.change, second.change], "triton")
    found |= {f"together {place}": squares.double().sqrt() for place, squares in enumerate(both)}
    for name in MODELS:
        for slot, layers in neuron_impacts(tiny_model(name), *batch(), ("q", "k"), kernel="triton").items():
            found |= {f"{name} {slot} {layer}": values.double() for layer, values in enumerate(layers)}
    assert not fused_failed(), fused_failed()
    save_file({name: values.contiguous() for name, values in found.items()}, path)


def fused_failed() -> list[Exception]:
    from babelscope.impacts import kernels

    return kernels._failed


if __name__ == "__main__":
    main(sys.argv[1])
