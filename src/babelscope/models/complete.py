"""Whether the weights of a checkpoint are those that its configuration asks for, or what to do about it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from babelscope.errors import DataError

PREFIXES = ("_orig_mod.", "base_model.model.", "module.", "model.model.")
"""Prefixes that torch.compile, PEFT, data parallelism and wrappers leave in the names of tensors."""
SHOWN = 4
"""Names of tensors that a message lists."""


def check_loaded(source: str, model: nn.Module, info: Mapping[str, Any]) -> None:
    """Refuses a model whose weights are not those of its checkpoint.

    Args:
        source: the folder or the name on the Hub, for messages.
        model: as `from_pretrained` returned it.
        info: what `from_pretrained` tells with `output_loading_info`.

    Raises:
        DataError: tensors that are missing (they were drawn at random), that nothing takes, or of another shape; or
            all weights are zero.
    """
    missing, unexpected = sorted(info.get("missing_keys", ())), sorted(info.get("unexpected_keys", ()))
    mismatched = [
        f"{name} {tuple(there)}, not {tuple(asked)}" for name, there, asked in info.get("mismatched_keys", ())
    ]
    problems = [
        f"{len(names)} {what}: {_listed(names)}"
        for names, what in (
            (missing, "tensors that config.json asks for are missing"),
            (unexpected, "tensors have no place in the model"),
            (mismatched, "tensors have another shape"),
        )
        if names
    ]
    if problems:
        raise DataError(f"{source}: the weights do not fit config.json. {'; '.join(problems)}. {_remedy(unexpected)}")
    weights = [each for each in model.parameters() if each.dim() > 1 and each.is_floating_point()]
    if weights and all(each.device.type != "meta" and not bool(each.detach().any()) for each in weights):
        raise DataError(f"{source}: every weight of the model is zero. Save the model again.")


def _remedy(unexpected: Collection[str]) -> str:
    for prefix in PREFIXES:
        if unexpected and all(name.startswith(prefix) for name in unexpected):
            return (
                f"All of these names begin with {prefix!r}: load them without it (strip_prefix={prefix!r} or "
                f"--strip-prefix {prefix}), or save the unwrapped model."
            )
    layers = {number for name in unexpected if (number := re.search(r"\.(\d+)\.", name))}
    if unexpected and len(layers) == len(unexpected):
        return "Is num_hidden_layers in config.json that of the weights? Correct it, or fetch the checkpoint again."
    return "Fetch or save the checkpoint again: with missing weights the model would be partly random."


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:SHOWN]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
