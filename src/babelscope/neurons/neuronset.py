"""A set of neurons: algebra over (slot, layer, unit), scores, and one portable file."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from babelscope.artifacts import read_tensors, write_tensors
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import ModelIdentity, fingerprint
from babelscope.models.slots import ALIASES, SLOTS, resolve_slots

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

KIND = "neurons"


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons of one model. Immutable; operators make new sets.

    `fr["ffn"][3]` is the sorted int64 tensor of units of slot `ffn` in layer 3. `fr & zh`, `fr | zh`, `fr - zh` and
    `fr ^ zh` are set algebra; `len`, `in` (of a (slot, layer, unit) triple), `==` and `<=` do what they say.
    """

    widths: Mapping[str, tuple[int, ...]]
    """Units of the model by slot and layer: the universe of the set."""
    indices: Mapping[str, tuple[Tensor, ...]]
    """Sorted int64 [n] by slot and layer, for every slot of `widths`."""
    scores: Mapping[str, tuple[Tensor, ...]] = field(repr=False)
    """float32 [n] beside each index; NaN where a unit has no score."""
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Where the set comes from: model, detector, settings, corpora, versions."""

    @classmethod
    def from_indices(
        cls,
        anatomy: Anatomy,
        indices: Mapping[str, Mapping[int, Iterable[Any]]],
        scores: Mapping[str, Mapping[int, Iterable[float]]] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> NeuronSet:
        """A set from slot -> layer -> units.

        Args:
            anatomy: of the model that the units belong to.
            indices: units as integers, or as (expert, unit) pairs in a mixture of experts. Slot names may be aliases
                (`up`, `gate` and `down` are `ffn`).
            scores: a score beside each unit, in the same order.
            provenance: added to the model's identity.

        Raises:
            ConfigError: an unknown slot, or a layer or unit out of range.
        """
        widths = {slot: tuple(widths) for slot, widths in anatomy.widths().items()}
        found: dict[str, list[dict[int, float]]] = {slot: [{} for _ in layers] for slot, layers in widths.items()}
        for name, by_layer in indices.items():
            slot = ALIASES.get(name, name)
            if slot not in widths:
                raise ConfigError(
                    f"wanted slots among {', '.join(widths)} (up, gate and down mean ffn), found {name!r}. "
                    "Correct the slot, or build the anatomy with it."
                )
            for layer, units in by_layer.items():
                if not 0 <= layer < anatomy.n_layers:
                    raise ConfigError(
                        f"slot {name}: the model has layers 0..{anatomy.n_layers - 1}, found layer {layer}. "
                        "Correct the layer."
                    )
                several = list(units)
                beside = list((scores or {}).get(name, {}).get(layer, []))
                if beside and len(beside) != len(several):
                    raise ConfigError(
                        f"slot {name}, layer {layer}: {len(several)} units, but {len(beside)} score(s). "
                        "Give one for each, in the same order, or none."
                    )
                for place, unit in enumerate(several):
                    number = _unit_number(anatomy, name, layer, unit)
                    if not 0 <= number < widths[slot][layer]:
                        raise ConfigError(
                            f"slot {name}, layer {layer}: units are 0..{widths[slot][layer] - 1}, found {number}. "
                            "Correct the unit (k and v units live in kv-head space), or the model."
                        )
                    found[slot][layer][number] = float(beside[place]) if beside else float("nan")
        return cls._from_dicts(
            widths, found, {"model": ModelIdentity.of(anatomy.model).as_json(), **(provenance or {})}
        )

    @classmethod
    def _from_dicts(
        cls, widths: Mapping[str, tuple[int, ...]], found: Mapping[str, list[dict[int, float]]], provenance: Any
    ) -> NeuronSet:
        ordered = {slot: [sorted(units.items()) for units in layers] for slot, layers in found.items()}
        return cls(
            widths,
            {
                slot: tuple(torch.tensor([unit for unit, _ in units], dtype=torch.int64) for units in layers)
                for slot, layers in ordered.items()
            },
            {
                slot: tuple(torch.tensor([score for _, score in units], dtype=torch.float32) for units in layers)
                for slot, layers in ordered.items()
            },
            provenance,
        )

    @classmethod
    def from_masks(
        cls,
        masks: Mapping[str, list[Tensor]],
        scores: Mapping[str, list[Tensor]] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> NeuronSet:
        """A set from boolean masks [width] by slot and layer, with scores [width] beside them."""
        widths = {slot: tuple(len(mask) for mask in layers) for slot, layers in masks.items()}
        indices = {slot: tuple(mask.nonzero()[:, 0].long() for mask in layers) for slot, layers in masks.items()}
        beside = {
            slot: tuple(
                scores[slot][layer][units].float() if scores else torch.full((len(units),), torch.nan)
                for layer, units in enumerate(layers)
            )
            for slot, layers in indices.items()
        }
        return cls(widths, indices, beside, dict(provenance or {}))

    # -- looking ---------------------------------------------------------------------------------------------------

    def __getitem__(self, slot: str) -> tuple[Tensor, ...]:
        name = resolve_slots((slot,))[0]
        if name not in self.indices:
            raise ConfigError(
                f"this set knows the slots {', '.join(self.indices)}, not {slot!r}. Detect with that slot to have it."
            )
        return self.indices[name]

    def __len__(self) -> int:
        return sum(len(units) for layers in self.indices.values() for units in layers)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        for slot, layers in self.indices.items():
            for layer, units in enumerate(layers):
                for unit in units.tolist():
                    yield slot, layer, unit

    def __contains__(self, neuron: Any) -> bool:
        if not (isinstance(neuron, tuple) and len(neuron) == 3):
            return False
        name, layer, unit = neuron
        layers = self.indices.get(str(ALIASES.get(name, name)), ())
        return 0 <= layer < len(layers) and bool((layers[layer] == unit).any())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return self._same_universe(other) and all(
            torch.equal(mine, theirs)
            for slot in self.indices
            for mine, theirs in zip(self.indices[slot], other.indices[slot], strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __le__(self, other: NeuronSet) -> bool:
        return len(self - other) == 0

    def __repr__(self) -> str:
        counts = ", ".join(f"{slot} {sum(values)}" for slot, values in self.counts().items() if sum(values))
        share = f"{len(self) / self.universe:.2%}" if self.universe else "0 %"
        return f"NeuronSet({len(self)} neurons, {share}: {counts or 'empty'})"

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(next(iter(self.widths.values()), ()))

    @property
    def universe(self) -> int:
        """Units of the model, over the slots that the set knows."""
        return sum(sum(layers) for layers in self.widths.values())

    def counts(self) -> dict[str, list[int]]:
        """Neurons by slot and layer."""
        return {slot: [len(units) for units in layers] for slot, layers in self.indices.items()}

    def strata(self, other: NeuronSet) -> list[tuple[int, int, int]]:
        """By slot and layer: neurons of this set, neurons of the other, and units there are."""
        mine, theirs = self.counts(), other.counts()
        return [
            place
            for slot, widths in self.widths.items()
            for place in zip(mine[slot], theirs[slot], widths, strict=True)
        ]

    def expected_overlap(self, other: NeuronSet) -> float:
        """Neurons that random sets with these numbers by slot and layer share: the sum of n m / width."""
        return sum(n * m / max(1, width) for n, m, width in self.strata(other))

    def masks(self) -> dict[str, list[Tensor]]:
        """Boolean masks [width] by slot and layer."""
        return {
            slot: [
                torch.zeros(width, dtype=torch.bool).index_fill_(0, units, True)
                for width, units in zip(self.widths[slot], layers, strict=True)
            ]
            for slot, layers in self.indices.items()
        }

    # -- algebra ---------------------------------------------------------------------------------------------------

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, "&", lambda mine, theirs: mine & theirs)

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, "|", lambda mine, theirs: mine | theirs)

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, "-", lambda mine, theirs: mine & ~theirs)

    def __xor__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, "^", lambda mine, theirs: mine ^ theirs)

    def at(self, layers: Iterable[int] | None = None, slots: Iterable[str] | None = None) -> NeuronSet:
        """The part in these layers and slots (None: all)."""
        keep = set(range(self.n_layers)) if layers is None else {int(layer) for layer in layers}
        outside = sorted(keep - set(range(self.n_layers)))
        if outside:
            raise ConfigError(f"the model has layers 0..{self.n_layers - 1}, found {outside}. Correct the layers.")
        names = set(self.indices) if slots is None else set(resolve_slots(slots))
        return self._keep(
            {
                slot: [mask & (layer in keep and slot in names) for layer, mask in enumerate(masks)]
                for slot, masks in self.masks().items()
            },
            {"at": {"layers": sorted(keep), "slots": sorted(names)}},
        )

    def top(self, count: int) -> NeuronSet:
        """The neurons with the largest scores (ties: first slot, layer and unit first); ConfigError without scores."""
        if count < 0:
            raise ConfigError(f"wanted a number of neurons of 0 or more, found {count}. Correct it.")
        flat = torch.cat([torch.cat(self.scores[slot]) for slot in self.scores]) if self.scores else torch.empty(0)
        if flat.isnan().any():
            raise ConfigError("these neurons have no scores to rank by. Make the set with Atlas.select or give scores.")
        best = torch.zeros(len(flat), dtype=torch.bool)
        best[flat.sort(descending=True, stable=True).indices[:count]] = True
        masks, start = self.masks(), 0
        for slot, layers in self.indices.items():
            for layer, units in enumerate(layers):
                masks[slot][layer][units] = best[start : start + len(units)]
                start += len(units)
        return self._keep(masks, {"top": count})

    def random_like(self, seed: int = 0, *, overlap: bool = False) -> NeuronSet:
        """As many units per slot and layer, drawn at random: the control for any claim about this set.

        Args:
            seed: of the draw.
            overlap: allow units of this set. Without it they are left out, except where a layer has too few others:
                there the rest is filled up from the set, with a warning.
        """
        generator = torch.Generator().manual_seed(seed)
        masks = self.masks()
        filled = []
        for slot, layers in masks.items():
            for layer, mask in enumerate(layers):
                count, width = int(mask.sum()), len(mask)
                order = torch.randperm(width, generator=generator)
                if not overlap:
                    order = torch.cat([order[~mask[order]], order[mask[order]]])
                    if count > width - count:
                        filled.append(f"{slot} of layer {layer}")
                layers[layer] = torch.zeros_like(mask).index_fill_(0, order[:count], True)
        if filled:
            places = ", ".join(filled)
            logger.warning("random_like: more than half of %s is in the set, so the draw overlaps it", places)
        return NeuronSet.from_masks(
            masks, provenance={**self.provenance, "derived": {"random_like": seed, "overlap": overlap}}
        )

    def _same_universe(self, other: NeuronSet) -> bool:
        mine, theirs = ({slot: tuple(each) for slot, each in one.widths.items()} for one in (self, other))
        return mine == theirs

    def _combine(self, other: NeuronSet, name: str, operation: Any) -> NeuronSet:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        mine, theirs = self._fingerprint(), other._fingerprint()
        if not self._same_universe(other) or (mine and theirs and mine != theirs):
            raise ProvenanceError(
                f"wanted two sets of one model, found {self._model_name()} and {other._model_name()} "
                f"(fingerprints {mine}, {theirs}; slots {list(self.widths)}, {list(other.widths)}). "
                "Combine sets that were detected on the same model with the same slots."
            )
        left, right = self.masks(), other.masks()
        masks = {slot: [operation(a, b) for a, b in zip(left[slot], right[slot], strict=True)] for slot in left}
        dense = self._dense_scores()
        beside = other._dense_scores()
        scores = {
            slot: [torch.where(a.isnan(), b, a) for a, b in zip(layers, beside[slot], strict=True)]
            for slot, layers in dense.items()
        }
        derived = {"operation": name, "left": _short(self.provenance), "right": _short(other.provenance)}
        return NeuronSet.from_masks(masks, scores, {"model": self.provenance.get("model"), "derived": derived})

    def _keep(self, masks: Mapping[str, list[Tensor]], derived: Mapping[str, Any]) -> NeuronSet:
        earlier = self.provenance.get("derived", [])
        steps = [*(earlier if isinstance(earlier, list) else [earlier]), dict(derived)]
        return NeuronSet.from_masks(masks, self._dense_scores(), {**self.provenance, "derived": steps})

    def _dense_scores(self) -> dict[str, list[Tensor]]:
        return {
            slot: [
                torch.full((width,), torch.nan).index_copy_(0, units, scores)
                for width, units, scores in zip(self.widths[slot], layers, self.scores[slot], strict=True)
            ]
            for slot, layers in self.indices.items()
        }

    # -- keeping ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes the set as safetensors: `{slot}.{layer}.index` (int32), `{slot}.{layer}.score` (float32), a header."""
        tensors: dict[str, Tensor] = {}
        for slot, layers in self.indices.items():
            for layer, units in enumerate(layers):
                if len(units):
                    tensors[f"{slot}.{layer}.index"] = units.to(torch.int32)
                    tensors[f"{slot}.{layer}.score"] = self.scores[slot][layer].to(torch.float32)
        widths = {slot: list(layers) for slot, layers in self.widths.items()}
        write_tensors(Path(path), KIND, tensors, {"widths": widths, "provenance": dict(self.provenance)})

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | Anatomy | None = None, *, force: bool = False) -> NeuronSet:
        """Reads a set.

        Args:
            path: a file that `save` wrote.
            model: the model that it will be used on; checked.
            force: use it on another model all the same (the shapes must still fit).

        Raises:
            DataError: the file is missing, truncated, or not a neuron file.
            ProvenanceError: the set belongs to another model.
        """
        tensors, header = read_tensors(Path(path), KIND)
        names = set(tensors)
        try:
            widths = {str(slot): tuple(int(w) for w in layers) for slot, layers in header["widths"].items()}
            provenance = dict(header["provenance"])
            empty = torch.empty(0)
            indices = {
                slot: tuple(tensors.get(f"{slot}.{layer}.index", empty).long() for layer in range(len(layers)))
                for slot, layers in widths.items()
            }
            scores = {
                slot: tuple(tensors.get(f"{slot}.{layer}.score", empty).float() for layer in range(len(layers)))
                for slot, layers in widths.items()
            }
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{path}: the neuron file's header is damaged ({error!r}). Make it again.") from None
        for slot, layers in indices.items():
            for layer, units in enumerate(layers):
                inside = len(units) == 0 or (int(units.min()) >= 0 and int(units.max()) < widths[slot][layer])
                if not inside or len(scores[slot][layer]) != len(units) or bool((units[1:] <= units[:-1]).any()):
                    raise DataError(
                        f"{path}: slot {slot}, layer {layer}: wanted sorted units within 0..{widths[slot][layer] - 1}, "
                        "each with a score; the file is damaged. Make it again."
                    )
        infinite = [slot for slot, layers in scores.items() if any(bool(each.isinf().any()) for each in layers)]
        if infinite:
            raise DataError(f"{path}: slot {infinite[0]} has scores that are infinite. Make the file again.")
        unknown = sorted(set(widths) - set(SLOTS))
        if unknown:
            raise DataError(f"{path}: unknown slots {unknown}. It was written by another version; make it again.")
        known = {f"{slot}.{layer}.{part}" for slot, layers in widths.items() for layer in range(len(layers))
                 for part in ("index", "score")}  # fmt: skip
        if names - known:
            raise DataError(
                f"{path}: found neurons of a slot or a layer that the model of the file does not have: "
                f"{', '.join(sorted(names - known)[:4])}. Correct the file, or make it again."
            )
        found = cls(widths, indices, scores, provenance)
        if model is not None:
            found.check(model, force=force)
        return found

    def check(self, model: nn.Module | Anatomy, *, force: bool = False, known: str | None = None) -> None:
        """Makes sure that the set belongs to a model.

        Args:
            model: the model.
            force: accept another model if the shapes fit.
            known: the fingerprint that the model had before its weights were edited; accepted too.

        Raises:
            ProvenanceError: it was made for another model; with `force`, only when the shapes don't fit either.
        """
        anatomy = model if isinstance(model, Anatomy) else Anatomy(model, tuple(self.widths), check=False)
        widths = {slot: tuple(anatomy.width(slot, layer) for layer in range(anatomy.n_layers)) for slot in self.widths}
        if widths != {slot: tuple(layers) for slot, layers in self.widths.items()}:
            raise ProvenanceError(
                f"the neurons were found in {self._model_name()}, whose layers have other widths than this model's. "
                "Use the model they were found in; force can't help here."
            )
        mine = self._fingerprint()
        if force or mine == known:
            return
        theirs = fingerprint(anatomy.model)
        if mine != theirs:
            raise ProvenanceError(
                f"the neurons were found in {self._model_name()} (fingerprint {mine or 'missing'}), this model has the "
                f"fingerprint {theirs}. Load that model, or pass force=True (--force) if you know that they match, for "
                "example for a fine-tuned copy."
            )

    def _fingerprint(self) -> str:
        return str((self.provenance.get("model") or {}).get("fingerprint", ""))

    def _model_name(self) -> str:
        return str((self.provenance.get("model") or {}).get("name", "an unnamed model"))


def _unit_number(anatomy: Anatomy, slot: str, layer: int, unit: Any) -> int:
    """Index of a unit given as an integer or, in the FFN, as (expert, unit)."""
    try:
        if not (isinstance(unit, tuple) and ALIASES.get(slot, slot) == "ffn"):
            return operator.index(unit)
        expert, inner = (operator.index(part) for part in unit)
    except (TypeError, ValueError):
        raise ConfigError(
            f"slot {slot}, layer {layer}: wanted units as integers, or as (expert, unit) in slot ffn, found {unit!r}. "
            "Correct it."
        ) from None
    return anatomy.expert_unit(layer, expert, inner)


def _short(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {key: provenance[key] for key in ("language", "detector", "derived") if key in provenance}
