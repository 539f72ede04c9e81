"""From what an attention layer computed to how switching off each of its channels changes the scores.

Axes: `B` sequences, `T` tokens, `G` kv heads, `R` query heads per kv head, `D` channels of a head, `M` model width.
Source: the design note on exact impacts; every formula is checked against really zeroing the weights in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from babelscope.impacts.kernels import Change

RotationStyle = Literal["half", "interleaved", "interleaved_halves"]
"""Which channels turn together: c and c + D/2 (`half`, Llama), or neighbours (`interleaved`, Cohere; with the angles
stored as two equal halves: `interleaved_halves`, GLM)."""


@dataclass(frozen=True)
class Rotation:
    """A rotary position embedding, as the model passes it to its attention modules."""

    cos: Tensor
    """[B or 1, T, rotary width]; an attention factor (YaRN) may be folded in."""
    sin: Tensor
    style: RotationStyle

    def full(self, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """cos, sin [B or 1, T, width]; partner, sign [width]. Channels past the rotary width pass unchanged."""
        cos, sin = self.cos, self.sin
        rotary = cos.shape[-1]
        if self.style == "interleaved_halves":
            cos, sin = (angle[..., : rotary // 2].repeat_interleave(2, dim=-1) for angle in (cos, sin))
        channel = torch.arange(width, device=cos.device)
        partner, sign = channel.clone(), torch.ones(width, device=cos.device, dtype=cos.dtype)
        turned = channel[:rotary]
        if self.style == "half":
            first = turned < rotary // 2
            partner[:rotary] = torch.where(first, turned + rotary // 2, turned - rotary // 2)
        else:
            first = turned % 2 == 0
            partner[:rotary] = torch.where(first, turned + 1, turned - 1)
        sign[:rotary] = torch.where(first, 1.0, -1.0)
        cos = torch.nn.functional.pad(cos, (0, width - rotary), value=1.0)
        sin = torch.nn.functional.pad(sin, (0, width - rotary), value=0.0)
        return cos, sin, partner, sign

    def apply(self, states_BTHD: Tensor) -> Tensor:
        """The rotation itself; used to recognise which style a model follows."""
        cos, sin, partner, sign = self.full(states_BTHD.shape[-1])
        turned = states_BTHD[..., partner] * -sign
        return states_BTHD * cos[:, :, None] + turned * sin[:, :, None]


def contributions(
    states_BTHD: Tensor, rotation: Rotation | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """What each channel before rotation puts into the rotated vector: into its own channel, and into its partner.

    Returns:
        The contributions, each [B, T, H, D], and for each the channels of the rotated vector that it reaches
        (None: the same channel). One entry without rotation, two with it.
    """
    if rotation is None:
        return (states_BTHD,), (None,)
    cos, sin, partner, sign = rotation.full(states_BTHD.shape[-1])
    own = states_BTHD * cos[:, :, None]
    across = states_BTHD * (sign * sin[..., partner])[:, :, None]
    return (own, across), (None, partner)


def norm_gain(raw_BTHD: Tensor, eps: float, over_heads: bool) -> Tensor:
    """Relative growth f - 1 of the other channels when one channel leaves an RMS norm, [B, T, H, D].

    f = sqrt((sum + n eps) / (sum + n eps - x_c^2)), the sum over one head, or over all heads (OLMo-2).
    """
    squares = raw_BTHD * raw_BTHD
    dims = (2, 3) if over_heads else (3,)
    count = raw_BTHD.shape[3] * (raw_BTHD.shape[2] if over_heads else 1)
    share = squares / (squares.sum(dims, keepdim=True) + count * eps)
    return torch.expm1(-0.5 * torch.log1p(-share))


def query_change(
    before_BTHD: Tensor, key_PTD: Tensor, groups: int, scale: float, rotation: Rotation | None, gain: Tensor | None
) -> Change:
    """Change of the scores when a query channel is off. `before` is before rotation, `key` after; see `Change`."""
    own, reaches = contributions(before_BTHD, rotation)
    factor = -scale if gain is None else -scale * (1 + gain)
    rows = tuple(_by_group(part * factor, groups) for part in own)
    columns = tuple(key_PTD if reach is None else key_PTD[..., reach] for reach in reaches)
    return Change(rows, columns, row_gain=None if gain is None else _by_group(gain, groups))


def key_change(
    before_BTGD: Tensor, query_PRTD: Tensor, scale: float, rotation: Rotation | None, gain: Tensor | None
) -> Change:
    """Change of the scores when a key channel is off: the roles of rows and columns exchanged."""
    own, reaches = contributions(before_BTGD, rotation)
    if gain is not None:
        own = tuple(part * (1 + gain) for part in own)
    columns = tuple(part.transpose(1, 2).flatten(0, 1) for part in own)
    scaled = query_PRTD * -scale
    rows = tuple(scaled if reach is None else scaled[..., reach] for reach in reaches)
    return Change(rows, columns, column_gain=None if gain is None else gain.transpose(1, 2).flatten(0, 1))


def _by_group(states_BTHD: Tensor, groups: int) -> Tensor:
    """[B, T, H, D] -> [B * G, R, T, D]; query heads of one kv head are neighbours."""
    batch, tokens, heads, width = states_BTHD.shape
    return states_BTHD.transpose(1, 2).reshape(batch * groups, heads // groups, tokens, width)
