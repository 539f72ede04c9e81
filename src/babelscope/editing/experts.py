"""Edits inside a mixture of experts, whose units no hook can reach: through the experts interface of transformers.

A unit's activation is taken before the routing weight, at the tokens that are routed to its expert.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from babelscope.errors import UnsupportedModelError
from babelscope.models.interfaces import experts_forward

if TYPE_CHECKING:
    from babelscope.editing.hooks import Site

_NAME = "babelscope_edited"

_SITES: dict[nn.Module, list[Site]] = {}
"""Open edits by experts module, the outermost first."""


def edit_experts(module: nn.Module, site: Site, stack: ExitStack) -> None:
    """Applies a site's edit in an experts module until the stack closes.

    Raises:
        UnsupportedModelError: a value from a reference, which a mixture of experts has no one meaning for, or weights
            that can't be read.
    """
    if site.operation.name not in ("zero", "scale", "clamp"):
        raise UnsupportedModelError(
            f"{site}: op={site.operation.name!r} on experts. A unit has an activation only at tokens routed to its "
            "expert, so a reference holds none to put in its place at the others. Use zero, scale or clamp, or leave "
            "ffn out."
        )
    weights = (module.gate_up_proj, module.down_proj)
    if any(not isinstance(each, Tensor) or each.element_size() < 2 or each.device.type == "meta" for each in weights):
        raise UnsupportedModelError(
            f"{site}: the experts' weights are quantised or offloaded, so they can't be run expert by expert. Load the "
            "model without quantization and offloading."
        )
    _register()
    config: Any = module.config
    stack.callback(setattr, config, "_experts_implementation_internal", config._experts_implementation)
    config._experts_implementation_internal = _NAME
    sites = _SITES.setdefault(module, [])
    sites.append(site)
    stack.callback(_forget, module, site)
    stack.callback(module.register_forward_pre_hook(_not_skipped).remove)


def _forget(module: nn.Module, site: Site) -> None:
    _SITES[module].remove(site)
    if not _SITES[module]:
        del _SITES[module]


def _not_skipped(module: nn.Module, args: Any) -> None:
    config: Any = module.config
    if config._experts_implementation != _NAME:
        raise UnsupportedModelError(
            f"the experts run by {config._experts_implementation!r} now, which would skip the edit: something switched "
            "them inside the ablate context, such as an observed forward pass. Use op='zero' or 'scale' for all rows "
            "and tokens, which edit weights."
        )


@functools.cache
def _register() -> None:
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(_NAME, _edited_experts)


def _edited_experts(module: nn.Module, hidden: Tensor, expert_ids: Tensor, routing: Tensor) -> Tensor:
    sites = [site for site in _SITES.get(module, ()) if site.runs()]
    for site in sites:
        site.fired += 1

    def visit(expert: int, token: Tensor, gate: Tensor, up: Tensor, units: Tensor, weight: Tensor) -> Tensor:
        for site in sites:
            units = _edited(site, expert, token, units)
        return units

    return experts_forward(module, hidden, expert_ids, routing, visit)


def _edited(site: Site, expert: int, token: Tensor, units: Tensor) -> Tensor:
    """`units` [m, N] of one expert at its routed tokens, with the site's units of that expert replaced."""
    width = site.layer.ffn.width
    channels, target = site.moved(units)
    mine = (channels // width == expert).nonzero()[:, 0]
    if not len(mine):
        return units
    inner = channels[mine] - expert * width
    part = units.index_select(-1, inner)
    result = site.operation.apply(part, target[mine])
    tokens = site.watch.batch.tokens if site.watch.batch is not None else 1
    mask = site.mask_of(token // tokens, token % tokens)
    if mask is not None:
        result = torch.where(mask if mask.shape[1] == 1 else mask[:, mine], result, part)
    return units.index_copy(-1, inner, result)
