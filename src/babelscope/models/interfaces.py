"""Where transformers lets itself be observed: the shared attention and experts interfaces, and attention masks.

A model is switched to an implementation registered here, which shows what it receives to the tap of its module and
delegates to the implementation that the model used before. Everything is switched back by an ExitStack.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.models.unitmap import UnitMap

TAPS: dict[nn.Module, Any] = {}
"""Which tap observes an attention or experts module now."""

_EAGER, _SDPA = "babelscope_eager", "babelscope_sdpa"


def allowed(mask: Tensor) -> Tensor:
    """Where a boolean or additive attention mask lets a query see a key."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def block_bias(
    mask: Tensor | None,
    position_bias: Tensor | None,
    groups: int,
    dtype: torch.dtype,
    device: torch.device,
    start: int,
    stop: int,
    low: int,
    high: int,
) -> Tensor:
    """The additive mask of a block, [P, R or 1, I, J] (or broadcastable to it)."""
    if mask is None:
        rows, keys = (torch.arange(first, last, device=device) for first, last in ((start, stop), (low, high)))
        visible = keys[None, :] <= rows[:, None]
        return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, -torch.inf)[None, None]
    block = mask[:, :, start:stop, low:high].to(device)
    visible = allowed(block)
    values = torch.zeros(block.shape, dtype=dtype, device=device) if block.dtype == torch.bool else block.to(dtype)
    values = values.masked_fill(~visible, -torch.inf)
    if position_bias is not None:
        last = position_bias.shape[2]
        rows_of_bias = slice(start, stop) if last > 1 else slice(None)
        values = values + position_bias[:, :, rows_of_bias, low:high].to(device, dtype)
    batch, heads = values.shape[:2]
    if heads == 1:
        return values.repeat_interleave(groups, 0)
    return values.reshape(batch * groups, heads // groups, *values.shape[2:])


def _observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Any:
    tap = TAPS.get(module)
    if tap is not None:
        tap.on_attention(query, key, mask, **kwargs)
    config: Any = module.config
    if config._attn_implementation == _EAGER:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask, **kwargs)
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


def _observed_experts(module: nn.Module, hidden: Tensor, expert_ids: Tensor, routing: Tensor) -> Tensor:
    tap = TAPS.get(module)
    if tap is None:
        return experts_forward(module, hidden, expert_ids, routing)
    result: Tensor = tap.on_experts(module, hidden, expert_ids, routing)
    return result


def experts_forward(
    module: nn.Module,
    hidden: Tensor,
    expert_ids: Tensor,
    routing: Tensor,
    visit: Callable[..., Tensor] = lambda expert, token, gate, up, units, weight: units,
) -> Tensor:
    """A mixture of experts written out expert by expert.

    Args:
        module: holds gate_up_proj [E, 2 N, M] and down_proj [E, M, N].
        hidden: [B * T, M].
        expert_ids: [B * T, K]; ids past the last expert belong to other ranks.
        routing: [B * T, K] weights.
        visit: sees (expert, its tokens [m], gate [m, N], up [m, N], units [m, N], weight [m, 1]) and returns the units
            to go on with.
    """
    gate_up, down = module.gate_up_proj, module.down_proj
    assert isinstance(gate_up, Tensor)
    assert isinstance(down, Tensor)
    result = torch.zeros_like(hidden)
    for expert in range(len(down)):
        token, place = (expert_ids == expert).nonzero(as_tuple=True)
        if not len(token):
            continue
        gate, up = nn.functional.linear(hidden[token], gate_up[expert]).chunk(2, dim=-1)
        units = module.act_fn(gate) * up  # type: ignore[operator]
        weight = routing[token, place, None]
        units = visit(expert, token, gate, up, units, weight)
        output = nn.functional.linear(units, down[expert]) * weight
        result.index_add_(0, token, output.to(result.dtype))
    return result


def _eager_mask(**kwargs: Any) -> Tensor | None:
    """The eager mask, except that a row without any key (left padding) sees them all.

    Upstream gives such rows the smallest number of the dtype, which becomes -inf when a float64 model casts its
    scores to float32 for the softmax: the padding turns to NaN and, through 0 * NaN, so does everything else.
    """
    from transformers.masking_utils import eager_mask

    mask = eager_mask(**kwargs)
    if mask is None:
        return None
    blind = ~allowed(mask).any(-1, keepdim=True)
    return mask.masked_fill(blind, 0.0)


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    for name, mask in ((_EAGER, _eager_mask), (_SDPA, sdpa_mask)):
        AttentionInterface.register(name, _observed_attention)
        AttentionMaskInterface.register(name, mask)


@functools.cache
def _register_experts() -> None:
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(_SDPA, _observed_experts)


def _configs(anatomy: UnitMap, modules: Iterable[nn.Module]) -> list[Any]:
    """Every distinct configuration object that these modules, or the model that builds their masks, read."""
    holders = [anatomy.model, getattr(anatomy.model, "base_model", anatomy.model), *modules]
    configs: list[Any] = [holder.config for holder in holders if hasattr(holder, "config")]
    configs += [config.get_text_config() for config in configs if hasattr(config, "get_text_config")]
    return list({id(config): config for config in configs}.values())


def _switch(configs: list[Any], attribute: str, choose: Callable[[Any], str], stack: ExitStack) -> None:
    for config in configs:
        original = getattr(config, attribute, None)
        setattr(config, attribute, choose(config))
        stack.callback(setattr, config, attribute, original)


def switch_attention(anatomy: UnitMap, stack: ExitStack) -> None:
    """Makes attention modules show what they receive to the tap in `TAPS`, until the stack closes."""
    _register()
    modules = [layer.attention.module for layer in anatomy.layers]
    needs_eager = any(hasattr(module, "sinks") for module in modules)

    def choose(config: Any) -> str:
        original = config._attn_implementation
        capped = getattr(config, "attn_logit_softcapping", None) is not None and original != "sdpa"
        own = any(layer.attention.own_attention for layer in anatomy.layers)
        return _EAGER if original in ("eager", _EAGER) or needs_eager or capped or own else _SDPA

    _switch(_configs(anatomy, modules), "_attn_implementation_internal", choose, stack)


def switch_experts(anatomy: UnitMap, stack: ExitStack) -> None:
    """Makes mixtures of experts run expert by expert, shown to the tap in `TAPS`, until the stack closes."""
    _register_experts()
    modules = [layer.ffn.experts for layer in anatomy.layers if layer.ffn.experts is not None]
    _switch(_configs(anatomy, modules), "_experts_implementation_internal", lambda _: _SDPA, stack)


def positions(config: Any) -> int | None:
    """The positions that a model was made for; None where its configuration has no such limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(limit) if limit else None


def evaluation_mode(model: nn.Module, stack: ExitStack) -> None:
    """Evaluation mode, module by module, so that a model half in training comes back as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
        stack.callback(setattr, module, "training", True)
