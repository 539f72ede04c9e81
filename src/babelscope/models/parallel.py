"""A model that several processes hold together, by the tensor-parallel plan of transformers.

Each process (rank) holds some heads and some intermediate units: rows of W_Q, W_K, W_V, W_up and W_gate, and the
columns of W_O and W_down that they meet. What is read of a unit on its rank is complete, so the ranks' findings are
put side by side and never added. All ranks must come to the same calls in the same order.

Axes: `B` sequences, `N` units, `E` experts, `P` ranks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from babelscope.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from babelscope.models.unitmap import UnitMap


def is_sharded(weight: object) -> bool:
    """Whether a parameter is a DTensor, of which this process may hold a part only."""
    return hasattr(weight, "full_tensor")


def whole(weight: Any) -> Tensor:
    """The parameter as one tensor. Of a sharded one, every rank gets all parts: a collective call."""
    full: Tensor = weight.full_tensor() if is_sharded(weight) else weight
    return full


def matching(weight: Any, width: int) -> Tensor:
    """Of a weight [M, N], the columns that an input of this width meets: this rank's, or all (a collective call)."""
    mine: Tensor = weight.to_local() if is_sharded(weight) else weight
    return mine if mine.shape[-1] == width else whole(weight)


def find_mesh(model: nn.Module) -> Any:
    """The ranks that hold the model together, as a DeviceMesh; None for a model that this process holds alone.

    Raises:
        ConfigError: other processes run beside the ranks of the model.
        UnsupportedModelError: sharded in another way besides, or by a version of transformers that hides it.
    """
    ranks = getattr(model, "_tp_size", None) or 1
    if ranks == 1:
        return None
    weight: Any = next((each for each in model.parameters() if is_sharded(each)), None)
    if weight is None or weight.device_mesh.size() != ranks:
        raise UnsupportedModelError(
            "wanted parameters sharded by the tensor-parallel plan of transformers alone (as DTensor), found "
            f"{'plain parts' if weight is None else 'FSDP or another plan besides'}. Update transformers, or load the "
            "model with load_model(..., tensor_parallel=True) or device_map."
        )
    if dist.get_world_size() != ranks:
        raise ConfigError(
            f"{ranks} of {dist.get_world_size()} processes hold this model together; one model for all processes is "
            "supported. Start one torchrun per copy of the model, and give each its --shard."
        )
    return weight.device_mesh


def check_parts(anatomy: UnitMap) -> None:
    """UnsupportedModelError, by name, where the plan cuts through a head or leaves uneven parts."""
    ranks, plan = anatomy.mesh.size(), getattr(anatomy.model, "tp_plan", None) or {}
    if getattr(anatomy.config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            "the model is quantised and held by several processes, and its parts can't be read. Load it without "
            "quantization, or without tensor_parallel."
        )
    styles = {module: plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name)) for name, module in anatomy.model.named_modules()}
    for layer in anatomy.layers:
        part, ffn = layer.attention, layer.ffn
        counts = [
            (part.query.module, part.n_heads, "query heads"),
            (part.key.module, part.n_kv_heads, "key-value heads"),
            (part.value.module, part.n_kv_heads, "key-value heads"),
        ]
        if "ffn" in anatomy.slots:
            counts.append((ffn.experts or ffn.down, ffn.width, "intermediate units"))  # type: ignore[arg-type]
        for module, count, what in counts:
            if count % ranks and styles[module] not in (None, "colwise_gather_output", "rowwise_split_input"):
                raise UnsupportedModelError(
                    f"layer {layer.index} has {count} {what}, which {ranks} processes can't share evenly. "
                    f"Start a number of processes that divides {count}, or load the model with device_map."
                )


def side_by_side(found: Sequence[Tensor], widths: Sequence[tuple[int, int]], mesh: Any) -> list[Tensor]:
    """Every rank's units beside those of the others, in one exchange per dtype and device.

    Args:
        found: [B, E * N / P] each: of this rank; [B, E * N]: what every rank has seen whole.
        widths: (E, N) of each; E = 1 without experts.
        mesh: from `find_mesh`.

    Returns:
        [B, E * N] each, in unit order, the same on all ranks.
    """
    result = list(found)
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place, (values, (experts, units)) in enumerate(zip(found, widths, strict=True)):
        if values.shape[1] != experts * units:
            groups.setdefault((values.dtype, values.device), []).append(place)
    for places in groups.values():
        mine = torch.cat([found[place].flatten() for place in places])
        every = mine.new_empty(mesh.size() * len(mine))
        dist.all_gather_into_tensor(every, mine, group=mesh.get_group())
        parts = every.view(mesh.size(), -1).split([found[place].numel() for place in places], dim=1)
        for place, part in zip(places, parts, strict=True):
            batch, (experts, _) = len(found[place]), widths[place]
            result[place] = part.reshape(mesh.size(), batch, experts, -1).permute(1, 2, 0, 3).reshape(batch, -1)
    return result
