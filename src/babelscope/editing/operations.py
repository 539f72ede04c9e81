"""What an edit does to a unit: zero, scale, clamp to a number, or the unit's mean over a reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from babelscope.errors import ConfigError, ProvenanceError
from babelscope.models.anatomy import Anatomy
from babelscope.neurons.statistics import Statistics

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas

OPERATIONS: dict[str, str | None] = {"zero": None, "scale": "factor", "clamp": "value", "mean": "reference"}
"""Each operation and the argument that it needs."""

ON_WEIGHTS = ("zero", "scale")
"""Operations that a change of weights does exactly, at no cost per token."""


@dataclass(frozen=True)
class Operation:
    """What happens to each unit of an edit."""

    name: str
    number: float | None = None
    """The factor of `scale`, the value of `clamp`."""
    means: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)
    """For `mean`: float64 [width] by slot and layer."""

    @classmethod
    def parse(cls, op: str, *, factor: Any = None, value: Any = None, reference: Any = None) -> Operation:
        """An operation without its means yet; ConfigError when the argument it needs is missing, or another is there.

        Args:
            op: one of `OPERATIONS`.
            factor: of `scale`.
            value: of `clamp`.
            reference: of `mean`; read later by `with_means`.
        """
        if op not in OPERATIONS:
            raise ConfigError(f"wanted op among {', '.join(OPERATIONS)}, found {op!r}. Correct the name.")
        given = {"factor": factor, "value": value, "reference": reference}
        needed = OPERATIONS[op]
        if needed is not None and given[needed] is None:
            raise ConfigError(f"op={op!r} needs {needed}=..., found none. Give it.")
        extra = [name for name, each in given.items() if each is not None and name != needed]
        if extra:
            raise ConfigError(
                f"op={op!r} takes {needed or 'no argument'}, found {', '.join(extra)}. Leave it out, or choose another "
                "op."
            )
        if needed not in ("factor", "value"):
            return cls(op)
        number = given[needed]
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise ConfigError(f"op={op!r}: wanted a finite number as {needed}, found {number!r}. Correct it.")
        return cls(op, float(number))

    def with_means(
        self, reference: Atlas | Statistics, anatomy: Anatomy, slots: Iterable[str], intact: str, force: bool
    ) -> Operation:
        """The same operation, with the units' means over a reference.

        Each language of an atlas weighs the same, however many tokens it has: otherwise the mean would be that of the
        language with the largest corpus.

        Args:
            reference: an atlas, or the statistics of one language.
            anatomy: of the model to be edited.
            slots: that the edit touches.
            intact: fingerprint of the model before any edit.
            force: accept an atlas of another model with the same shapes.

        Raises:
            ProvenanceError: the reference was made on another model.
            ConfigError: it is no reference, or lacks a slot or the activations.
        """
        languages = getattr(reference, "statistics", None)
        several: list[Any] = list(languages.values()) if isinstance(languages, Mapping) else [reference]
        if not several or not all(isinstance(each, Statistics) for each in several):
            raise ConfigError(
                f"op='mean': wanted an Atlas or the Statistics of one language as reference, found "
                f"{type(reference).__name__}. Make one with babelscope.detect."
            )
        theirs = (getattr(reference, "model", None) or {}).get("fingerprint", intact)
        if theirs != intact and not force:
            raise ProvenanceError(
                f"op='mean': the reference was made on a model with fingerprint {theirs}, this model has {intact}. "
                "Detect on this model, or pass force=True if you know that they match."
            )
        return Operation(self.name, None, {slot: _means(several, anatomy, slot) for slot in slots})

    def conflicts(self, other: Operation) -> bool:
        """Whether the two would leave a unit at different values."""
        if (self.name, self.number) != (other.name, other.number):
            return True
        shared = self.means.keys() & other.means.keys()
        return any(
            not torch.equal(mine, theirs)
            for slot in shared
            for mine, theirs in zip(self.means[slot], other.means[slot], strict=True)
        )

    def target(self, slot: str, layer: int, units: Tensor) -> Tensor:
        """The values that the units take, float64 [n]; for `scale` the factors."""
        if self.name == "mean":
            return self.means[slot][layer][units]
        return torch.full((len(units),), self.number or 0.0, dtype=torch.float64)

    def apply(self, part: Tensor, target: Tensor) -> Tensor:
        """The units' new activations.

        Args:
            part: [..., n], their activations.
            target: [n], on the same device and of the same dtype.
        """
        return part * target if self.name == "scale" else target.expand_as(part)

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name} ({OPERATIONS[self.name]}={self.number:g})"


def _means(several: list[Statistics], anatomy: Anatomy, slot: str) -> tuple[Tensor, ...]:
    widths = tuple(anatomy.width(slot, layer) for layer in range(anatomy.n_layers))
    for each in several:
        if slot not in each.slots or "activation_total" not in each.slots[slot]:
            what = "activations" if slot in each.slots else f"slot {slot}"
            raise ConfigError(
                f"op='mean': wanted mean activations of slot {slot}, but the reference lacks {what}. "
                f"Detect with that slot and with activations, or leave slot {slot} out with neurons.at(slots=...)."
            )
        if tuple(each.layout.widths[slot]) != widths:
            raise ProvenanceError(
                f"op='mean', slot {slot}: the reference has layers of {tuple(each.layout.widths[slot])} units, the "
                f"model {widths}. Detect on this model; force can't help here."
            )
        if not int(each.tokens.sum()):
            raise ConfigError("op='mean': the reference counted no token, so there is no mean. Detect on some text.")
    mean = torch.stack([each.activation_mean(slot) for each in several]).mean(0)
    return tuple(mean.split(list(widths)))
