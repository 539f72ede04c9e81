"""Streaming, mergeable sufficient statistics of one language: memory does not grow with the number of documents.

Documents are dealt to folds by their position in the sample, so that split-half stability and intervals need no second
pass. Layers of a slot lie one after the other in the last axis.

Axes: `F` folds, `N` units of a slot over all layers, `K` top-k shares, `E` thresholds, `B` documents of a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from babelscope.errors import DataError, ProvenanceError
from babelscope.models.observe import Observation

IMPACT_FIELDS = ("minimum", "maximum", "total", "squares", "hits", "over")
ACTIVATION_FIELDS = ("positive", "activation_total", "activation_squares")

_REDUCE = {"minimum": torch.minimum, "maximum": torch.maximum}
"""How two shards' values become one; everything else is added."""


@dataclass(frozen=True)
class Layout:
    """The shape that statistics share: which units there are and what is counted."""

    widths: Mapping[str, tuple[int, ...]]
    """Units by slot and layer."""
    folds: int = 4
    top_shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25)
    """Per layer and slot: a document counts as a hit when the unit is among its largest share of units."""
    thresholds: tuple[float, ...] = ()
    """A document counts as over when the unit's impact reaches the threshold."""
    activations: bool = True

    def split(self, slot: str, values: Tensor) -> list[Tensor]:
        """The last axis, layer by layer."""
        return list(values.split(list(self.widths[slot]), dim=-1))

    def kept(self, width: int, share: float) -> int:
        """How many units of a layer a top share is."""
        return max(1, round(width * share))


@dataclass
class Statistics:
    """Sufficient statistics of one language."""

    layout: Layout
    documents: Tensor
    """int64 [F]"""
    tokens: Tensor
    """int64 [F], counted tokens"""
    slots: dict[str, dict[str, Tensor]] = field(repr=False)
    """slot -> field -> values. `minimum`, `maximum` float32 (float64 for a float64 model) [F, N]; `total`, `squares`
    (of the impact per document) float64 [F, N]; `hits` int32 [K, F, N]; `over` int32 [E, F, N]; `positive` int64
    [F, N]; `activation_total`, `activation_squares` (over tokens) float64 [F, N]."""

    @classmethod
    def empty(cls, layout: Layout, dtype: torch.dtype = torch.float32) -> Statistics:
        """No documents yet; `dtype` is that of the impacts."""
        slots = {}
        for slot, widths in layout.widths.items():
            shape = (layout.folds, sum(widths))
            slots[slot] = {
                "minimum": torch.full(shape, torch.inf, dtype=dtype),
                "maximum": torch.zeros(shape, dtype=dtype),
                "total": torch.zeros(shape, dtype=torch.float64),
                "squares": torch.zeros(shape, dtype=torch.float64),
                "hits": torch.zeros(len(layout.top_shares), *shape, dtype=torch.int32),
                "over": torch.zeros(len(layout.thresholds), *shape, dtype=torch.int32),
            }
            if layout.activations:
                slots[slot] |= {
                    "positive": torch.zeros(shape, dtype=torch.int64),
                    "activation_total": torch.zeros(shape, dtype=torch.float64),
                    "activation_squares": torch.zeros(shape, dtype=torch.float64),
                }
        counts = torch.zeros(2, layout.folds, dtype=torch.int64)
        return cls(layout, counts[0].clone(), counts[1].clone(), slots)

    def on(self, device: torch.device | str) -> Statistics:
        """The same with what is kept of units on a device, where `add` then works; not copied if it is there already.

        Documents and tokens stay on the host.
        """
        slots = {
            slot: {name: value.to(device) for name, value in values.items()} for slot, values in self.slots.items()
        }
        return Statistics(self.layout, self.documents, self.tokens, slots)

    def add(self, observation: Observation, counted_tokens: Tensor, position: Tensor, *, per_token: bool) -> None:
        """Takes in one batch, without waiting for a GPU to finish it; to the bit the same from run to run.

        Args:
            observation: of the batch.
            counted_tokens: int64 [B], on the host.
            position: int64 [B], on the host, place in the sample; decides the fold.
            per_token: keep the impact per token (norm / sqrt(counted tokens)) instead of the norm.
        """
        fold = position % self.layout.folds
        self.documents += torch.bincount(fold, minlength=self.layout.folds)
        self.tokens.index_add_(0, fold, counted_tokens)
        device = next(iter(self.slots.values()))["minimum"].device
        # Not blocking, for a blocking copy to a GPU waits for all its work; and row by row, for a scattered addition
        # there comes out otherwise each time.
        rows_of = {
            index: (fold == index).nonzero()[:, 0].to(device, non_blocking=True) for index in fold.unique().tolist()
        }
        fold_B, lengths = (each.to(device, non_blocking=True) for each in (fold, counted_tokens))
        for slot, values in self.slots.items():
            impact_BN = _side_by_side(observation.impact[slot], device)
            if per_token:
                impact_BN /= lengths.to(impact_BN.dtype).sqrt()[:, None]
            self._count_hits(slot, impact_BN, fold_B)
            sums_BN: dict[str, Tensor] = {}
            if self.layout.activations:
                seen = observation.activation[slot]
                sums_BN = {
                    "positive": _side_by_side([each.positive for each in seen], device).round_(),
                    "activation_total": _side_by_side([each.total for each in seen], device),
                    "activation_squares": _side_by_side([each.squares for each in seen], device),
                }
            for index, rows in rows_of.items():
                part = impact_BN[rows]
                wide = part.double()
                values["minimum"][index] = torch.minimum(values["minimum"][index], part.amin(0))
                values["maximum"][index] = torch.maximum(values["maximum"][index], part.amax(0))
                values["total"][index] += wide.sum(0)
                values["squares"][index] += wide.square().sum(0)
                for place, threshold in enumerate(self.layout.thresholds):
                    values["over"][place, index] += (part >= threshold).sum(0, dtype=torch.int32)
                for name, taken_BN in sums_BN.items():
                    values[name][index] += taken_BN[rows].to(values[name].dtype).sum(0)

    def _count_hits(self, slot: str, impact_BN: Tensor, fold_B: Tensor) -> None:
        """Counts for each unit and share: it is among that share of its layer's units in this document."""
        hits_KFN = self.slots[slot]["hits"]
        # The largest share first, for the next are among it; not sorted, which is most of the work.
        shares = sorted(zip(self.layout.top_shares, hits_KFN.flatten(1), strict=True), key=lambda each: -each[0])
        first, units_BN = 0, impact_BN.shape[1]
        for width, alike in itertools.groupby(self.layout.widths[slot]):  # layers in a row, all at once
            layers, units = len(list(alike)), None
            values = impact_BN[:, first : first + layers * width].unflatten(1, (layers, width))
            starts_L1 = first + width * torch.arange(layers, device=fold_B.device)[:, None]
            starts_BL1 = fold_B[:, None, None] * units_BN + starts_L1
            for share, hits in shares:
                values, among = values.topk(min(values.shape[2], self.layout.kept(width, share)), dim=2, sorted=False)
                units = among if units is None else units.gather(2, among)
                places = (starts_BL1 + units).flatten()
                hits.scatter_add_(0, places, torch.ones_like(places, dtype=hits.dtype))
            first += layers * width

    def merge(self, other: Statistics) -> Statistics:
        """Both shards together; ProvenanceError when they count different things."""
        if self.layout != other.layout:
            raise ProvenanceError(
                "wanted statistics of one shape, found shards that differ in slots, folds, top shares, thresholds or "
                "activations. Merge shards of one command only."
            )
        slots = {
            slot: {name: _REDUCE.get(name, torch.add)(value, other.slots[slot][name]) for name, value in values.items()}
            for slot, values in self.slots.items()
        }
        return Statistics(self.layout, self.documents + other.documents, self.tokens + other.tokens, slots)

    def halves(self) -> tuple[Statistics, Statistics]:
        """The even and the odd folds apart, for split-half stability. ProvenanceError with fewer than two folds."""
        if self.layout.folds < 2:
            raise ProvenanceError("split halves need two folds or more; detect again with folds=2 or more.")
        even = torch.arange(self.layout.folds) % 2 == 0
        return self._of_folds(even), self._of_folds(~even)

    def _of_folds(self, keep: Tensor) -> Statistics:
        neutral = Statistics.empty(self.layout, next(iter(self.slots.values()))["minimum"].dtype)
        slots = {
            slot: {name: torch.where(keep[:, None], value, neutral.slots[slot][name]) for name, value in values.items()}
            for slot, values in self.slots.items()
        }
        return Statistics(self.layout, self.documents * keep, self.tokens * keep, slots)

    # -- over all folds --------------------------------------------------------------------------------------------

    def minimum(self, slot: str) -> Tensor:
        """Smallest impact over documents, float64 [N]. The paper's rule: at least eps in every document (Eq. 2)."""
        return self.slots[slot]["minimum"].amin(0).double()

    def mean(self, slot: str) -> Tensor:
        """Mean impact over documents, float64 [N]."""
        return self.slots[slot]["total"].sum(0) / self.documents.sum().clamp_min(1)

    def deviation(self, slot: str) -> Tensor:
        """Standard deviation of the impact over documents, float64 [N]."""
        second = self.slots[slot]["squares"].sum(0) / self.documents.sum().clamp_min(1)
        return (second - self.mean(slot).square()).clamp_min(0).sqrt()

    def hit_share(self, slot: str, share: float) -> Tensor:
        """Share of documents in which the unit is among the top share of its layer, float64 [N]."""
        place = self.layout.top_shares.index(share)
        return self.slots[slot]["hits"][place].sum(0).double() / self.documents.sum().clamp_min(1)

    def over_share(self, slot: str, threshold: float) -> Tensor:
        """Share of documents in which the impact reaches the threshold, float64 [N]."""
        place = self.layout.thresholds.index(threshold)
        return self.slots[slot]["over"][place].sum(0).double() / self.documents.sum().clamp_min(1)

    def positive_share(self, slot: str) -> Tensor:
        """Share of counted tokens at which the unit is active, float64 [N]; needs activations."""
        return self.slots[slot]["positive"].sum(0).double() / self.tokens.sum().clamp_min(1)

    def activation_mean(self, slot: str) -> Tensor:
        """Mean activation over counted tokens, float64 [N]; needs activations."""
        return self.slots[slot]["activation_total"].sum(0) / self.tokens.sum().clamp_min(1)

    # -- files -----------------------------------------------------------------------------------------------------

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All tensors by name, on the host, for a safetensors file; empty ones are left out."""
        named = {f"{prefix}.documents": self.documents, f"{prefix}.tokens": self.tokens}
        for slot, values in self.on("cpu").slots.items():
            named |= {f"{prefix}.{slot}.{name}": value for name, value in values.items() if value.numel()}
        return named

    @classmethod
    def from_tensors(cls, layout: Layout, tensors: Mapping[str, Tensor], prefix: str, where: Any) -> Statistics:
        """Back from a file; DataError when a tensor is missing or has another shape."""
        result = cls.empty(layout)

        def take(name: str, like: Tensor) -> Tensor:
            found = tensors[f"{prefix}.{name}"]
            if found.shape != like.shape:
                raise KeyError(f"{prefix}.{name} of shape {tuple(like.shape)}")
            return found

        try:
            result.documents, result.tokens = take("documents", result.documents), take("tokens", result.tokens)
            for slot, values in result.slots.items():
                for name, value in values.items():
                    if value.numel():
                        values[name] = take(f"{slot}.{name}", value)
        except KeyError as error:
            raise DataError(f"{where}: the file has no tensor {error}; it is damaged. Make it again.") from None
        return result


def _side_by_side(layers: Sequence[Tensor], device: torch.device) -> Tensor:
    """[B, N] of all layers, a new tensor; layers may lie on different devices."""
    return torch.cat([layer.to(device) for layer in layers], dim=1)


def layout_from_json(content: Mapping[str, Any]) -> Layout:
    """A layout from a file's header."""
    return Layout(
        widths={slot: tuple(layers) for slot, layers in content["widths"].items()},
        folds=int(content["folds"]),
        top_shares=_floats(content["top_shares"]),
        thresholds=_floats(content["thresholds"]),
        activations=bool(content["activations"]),
    )


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """A layout for a file's header."""
    return {
        "widths": {slot: list(layers) for slot, layers in layout.widths.items()},
        "folds": layout.folds,
        "top_shares": list(layout.top_shares),
        "thresholds": list(layout.thresholds),
        "activations": layout.activations,
    }


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
