"""torch.compile with a way out: what can't be compiled here runs as it is written, and says so once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils import _pytree

logger = logging.getLogger(__name__)

R = TypeVar("R")


def compiled(
    fused: Callable[..., R],
    otherwise: Callable[..., R],
    prepare: Callable[[torch.Tensor], torch.Tensor],
    name: str,
    options: dict[str, Any] | None = None,
) -> Callable[..., R]:
    """`fused`, compiled for every size.

    Args:
        fused: what the compiler gets.
        otherwise: the same result in steps that store less; where compiling fails, this runs from then on. It isn't
            left to torch.compile, which would run `fused` in one piece.
        prepare: for every tensor among the arguments; tells the compiler which sizes vary.
        name: for the log.
        options: of inductor.
    """
    from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

    function = torch.compile(fused, dynamic=True, fullgraph=True, options=options)
    broken: list[Exception] = []

    def run(*arguments: Any) -> R:
        if not broken:
            try:
                return function(*_pytree.tree_map_only(torch.Tensor, prepare, arguments))
            except (BackendCompilerFailed, FailOnRecompileLimitHit) as error:
                logger.warning("%s could not be compiled, so it runs eagerly, several times slower", name)
                logger.debug("torch.compile: %s", error)
                broken.append(error)
        return otherwise(*arguments)

    return run
