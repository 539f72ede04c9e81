"""The impact of every neuron on one batch, in one call."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from babelscope.impacts.kernels import KernelName
from babelscope.models.anatomy import Anatomy
from babelscope.models.observe import Observer
from babelscope.models.slots import resolve_slots


def neuron_impacts(
    model: nn.Module | Anatomy,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    slots: Iterable[str] | None = None,
    *,
    kernel: KernelName = "eager",
) -> dict[str, list[Tensor]]:
    """The exact impact of every neuron on every sequence of one batch.

    The impact of a neuron is how far its sub-layer's result moves when all its parameters are zero (paper, Eq. 1),
    as a Frobenius norm over all unpadded positions: of the sub-layer's output for `ffn`, `v` and `o`, of the
    attention probabilities for `q` and `k` (Eq. 8; all heads that the neuron feeds, together).

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        input_ids: int64 [B, T].
        attention_mask: [B, T], 1 where a token is real; padding on either side. None: no padding.
        slots: which of q, k, v, o, ffn; None: all.
        kernel: `eager`, `compiled` or `reference`; see `babelscope.impacts.kernels`.

    Returns:
        slot -> layer -> Tensor [B, width], float32 (float64 for a float64 model).

    Raises:
        UnsupportedModelError: the model fails the self-check; says which slot, and what to do.
        NumericsError: an impact is NaN or infinite.

    Source: design note on exact impacts; equal to brute-force zeroing (see tests/detection/test_impacts.py).
    """
    wanted = resolve_slots(slots)
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, wanted)
    with Observer(anatomy, slots=wanted, kernel=kernel) as observer:
        return observer.run(input_ids, attention_mask).impact
