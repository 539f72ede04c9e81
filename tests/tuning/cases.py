"""What the tests of tuning share: random sets, the loss and the logits of a batch, deltas that aren't zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from babelscope import Anatomy, NeuronSet


def neurons_of(model: nn.Module, seed: int = 0, share: float = 0.2) -> NeuronSet:
    """A random set over all slots and layers."""
    generator = torch.Generator().manual_seed(seed)
    anatomy = Anatomy(model, check=False)
    units = {
        slot: {
            layer: torch.randperm(width, generator=generator)[: max(2, int(share * width))].tolist()
            for layer, width in enumerate(widths)
        }
        for slot, widths in anatomy.widths().items()
    }
    return NeuronSet.from_indices(anatomy, units)


def loss_of(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())


def logits_of(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def perturb(parameters: list[nn.Parameter], scale: float = 0.05, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
