"""What an edit does to a unit: zero, scale, clamp to a number, or values that the unit has on a reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from babelscope.editing.forward import Draw
from babelscope.errors import ConfigError, ProvenanceError
from babelscope.models.anatomy import Anatomy
from babelscope.neurons.statistics import Statistics

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas

OPERATIONS: dict[str, str | None] = {
    "zero": None,
    "scale": "factor",
    "clamp": "value",
    "mean": "reference",
    "median": "reference",
    "resample": "reference",
}
"""Each operation and the argument that it needs."""

ON_WEIGHTS = ("zero", "scale")
"""Operations that a change of weights does exactly, at no cost per token."""


@dataclass(frozen=True, eq=False)
class RecordedActivations:
    """Activations of some units, token by token: a row of every tensor is one and the same token."""

    units: Mapping[tuple[str, int], Tensor] = field(repr=False)
    """By (slot, layer): int64 [n], ascending."""
    values: Mapping[tuple[str, int], Tensor] = field(repr=False)
    """By (slot, layer): float32 [C, n] on the CPU, in the order of `units`."""
    widths: Mapping[str, tuple[int, ...]] = field(repr=False)
    """By slot: the units of each layer of the model."""
    tokens: int
    """C"""
    fingerprint: str
    """Of the model."""

    def at(self, slot: str, layer: int, units: Tensor) -> Tensor:
        """The values of these units (int64 [n]), float32 [C, n]; ConfigError for a unit that was not recorded."""
        known = self.units.get((slot, layer), torch.empty(0, dtype=torch.int64))
        lacking = units[~torch.isin(units, known)].tolist()
        if lacking:
            shown = ", ".join(map(str, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
            raise ConfigError(
                f"slot {slot}, layer {layer}: the reference lacks {len(lacking)} of {len(units)} units to edit "
                f"({shown}). Record the activations of all of them; of several sets with one | two."
            )
        return self.values[slot, layer][:, torch.searchsorted(known, units)]


@dataclass(frozen=True)
class Operation:
    """What happens to each unit of an edit."""

    name: str
    number: float | None = None
    """The factor of `scale`, the value of `clamp`."""
    means: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)
    """For `mean`: float64 [width] by slot and layer."""
    recorded: RecordedActivations | None = field(default=None, repr=False)
    """For `median` and `resample`."""
    seed: int = 0
    """Of `resample`."""

    @classmethod
    def parse(
        cls, op: str, *, factor: Any = None, value: Any = None, reference: Any = None, seed: int = 0
    ) -> Operation:
        """An operation without its reference yet; ConfigError when what it needs is missing, or more is there.

        Args:
            op: one of `OPERATIONS`.
            factor: of `scale`.
            value: of `clamp`.
            reference: of the others but `zero`; read later by `with_reference`.
            seed: of `resample`; the others don't draw.
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
        if not isinstance(seed, int) or abs(seed) >= 1 << 63:
            raise ConfigError(f"wanted seed as an integer of 64 bits, found {seed!r}. Correct it.")
        if needed not in ("factor", "value"):
            return cls(op, seed=seed if op == "resample" else 0)
        number = given[needed]
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise ConfigError(f"op={op!r}: wanted a finite number as {needed}, found {number!r}. Correct it.")
        return cls(op, float(number))

    def with_reference(
        self,
        reference: Atlas | Statistics | RecordedActivations,
        anatomy: Anatomy,
        slots: Iterable[str],
        intact: str,
        force: bool,
    ) -> Operation:
        """The same operation, with the units' values on a reference.

        For `mean` each language of an atlas weighs the same, however many tokens it has: otherwise the mean would be
        that of the language with the largest corpus.

        Args:
            reference: for `mean` an atlas, or the statistics of one language; for `median` and `resample` recorded
                activations.
            anatomy: of the model to be edited.
            slots: that the edit touches.
            intact: fingerprint of the model before any edit.
            force: accept a reference of another model with the same shapes.

        Raises:
            ProvenanceError: the reference was made on another model.
            ConfigError: it is no reference for this operation, or lacks a slot or the activations.
        """
        several, theirs = self._read(reference, intact)
        if theirs != intact and not force:
            raise ProvenanceError(
                f"op={self.name!r}: the reference was made on a model with fingerprint {theirs}, this model has "
                f"{intact}. Make one of this model, or pass force=True if you know that they match."
            )
        for slot in slots:
            widths = tuple(anatomy.width(slot, layer) for layer in range(anatomy.n_layers))
            for each in several:
                found = each.widths if isinstance(each, RecordedActivations) else each.layout.widths
                if tuple(found.get(slot, widths)) != widths:
                    raise ProvenanceError(
                        f"op={self.name!r}, slot {slot}: the reference has layers of {tuple(found[slot])} units, the "
                        f"model {widths}. Make one of this model; force can't help here."
                    )
        if isinstance(reference, RecordedActivations):
            return replace(self, recorded=reference)
        return replace(self, means={slot: _means(several, slot) for slot in slots})

    def _read(self, reference: Any, intact: str) -> tuple[list[Any], str]:
        """What the reference holds, and the fingerprint of its model (`intact` if it doesn't say)."""
        if self.name != "mean":
            if not isinstance(reference, RecordedActivations):
                raise ConfigError(
                    f"op={self.name!r}: wanted RecordedActivations as reference, found {type(reference).__name__}. An "
                    "atlas holds sums over tokens, not the value at each. Record those with "
                    "babelscope.editing.recorded.record_activations."
                )
            return [reference], reference.fingerprint
        languages = getattr(reference, "statistics", None)
        several: list[Any] = list(languages.values()) if isinstance(languages, Mapping) else [reference]
        if not several or not all(isinstance(each, Statistics) for each in several):
            raise ConfigError(
                f"op='mean': wanted an Atlas or the Statistics of one language as reference, found "
                f"{type(reference).__name__}. Make one with babelscope.detect."
            )
        return several, (getattr(reference, "model", None) or {}).get("fingerprint", intact)

    @property
    def draw(self) -> Draw | None:
        """What draws a recorded token for each token of a batch: for `resample`, else None.

        The seed, the token and its place in its sequence decide alone. So a step on a cache, a pass without one, a beam
        and a batch with other rows and other padding all draw the same.
        """
        if self.name != "resample":
            return None

        def drawn(ids: Tensor, place: Tensor) -> Tensor:
            assert self.recorded is not None
            seed = _mixed(torch.tensor(self.seed, device=ids.device))
            return _mixed(_mixed(seed + place.to(ids.device)) + ids) % self.recorded.tokens

        return drawn

    def conflicts(self, other: Operation) -> bool:
        """Whether the two would leave a unit at different values."""
        mine, theirs = ((each.name, each.number, each.seed, id(each.recorded)) for each in (self, other))
        if mine != theirs:
            return True
        shared = self.means.keys() & other.means.keys()
        return any(
            not torch.equal(one, two)
            for slot in shared
            for one, two in zip(self.means[slot], other.means[slot], strict=True)
        )

    def target(self, slot: str, layer: int, units: Tensor) -> Tensor:
        """The values that the units take, float64 [n]; for `scale` the factors; for `resample` all of [C, n]."""
        if self.name == "mean":
            return self.means[slot][layer][units]
        if self.recorded is not None:
            values = self.recorded.at(slot, layer, units)
            return values if self.name == "resample" else values.double().median(0).values
        return torch.full((len(units),), self.number or 0.0, dtype=torch.float64)

    def apply(self, part: Tensor, target: Tensor) -> Tensor:
        """The units' new activations.

        Args:
            part: [..., n], their activations.
            target: [n] or [..., n], on the same device and of the same dtype.
        """
        return part * target if self.name == "scale" else target.expand_as(part)

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name} ({OPERATIONS[self.name]}={self.number:g})"


def _mixed(numbers: Tensor) -> Tensor:
    """A hash of int64 numbers, each bit of it as good as random: the step of splitmix64, in wrapping arithmetic."""
    mixed = numbers - 0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return mixed


def _means(several: list[Statistics], slot: str) -> tuple[Tensor, ...]:
    for each in several:
        if slot not in each.slots or "activation_total" not in each.slots[slot]:
            what = "activations" if slot in each.slots else f"slot {slot}"
            raise ConfigError(
                f"op='mean': wanted mean activations of slot {slot}, but the reference lacks {what}. "
                f"Detect with that slot and with activations, or leave slot {slot} out with neurons.at(slots=...)."
            )
        if not int(each.tokens.sum()):
            raise ConfigError("op='mean': the reference counted no token, so there is no mean. Detect on some text.")
    mean = torch.stack([each.activation_mean(slot) for each in several]).mean(0)
    return tuple(mean.split(list(several[0].layout.widths[slot])))
