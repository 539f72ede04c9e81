"""Edits of a model in memory that always restore."""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from babelscope.editing.forward import ForwardWatch, When
from babelscope.editing.hooks import Site, refuse_compiled, without_compiling
from babelscope.editing.operations import ON_WEIGHTS, Operation, RecordedActivations
from babelscope.editing.weights import Place, multiply, places
from babelscope.errors import ConfigError, UnsupportedModelError
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import fingerprint
from babelscope.models.slots import resolve_slots
from babelscope.neurons.neuronset import NeuronSet

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas
    from babelscope.neurons.statistics import Statistics

logger = logging.getLogger(__name__)

Units = dict[tuple[str, int], tuple[Tensor, Tensor | None]]
"""By (slot, layer): the units of an edit, int64 [n], and which row edits which of them, bool [R, n] (None: all)."""


@dataclass
class Edits:
    """What an open `ablate` does."""

    operation: Operation
    units: Units = field(repr=False)
    on_weights: tuple[tuple[str, int], ...] = ()
    """(slot, layer) of the units that are edited by their weights: in every forward pass, at no cost."""
    _sites: dict[tuple[str, int], Site] = field(default_factory=dict, repr=False)
    _watch: ForwardWatch | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """How many units are edited."""
        return sum(len(units) for units, _ in self.units.values())

    @property
    def fired(self) -> dict[tuple[str, int], int]:
        """(slot, layer) -> forward passes in which the edit was applied, for units that are edited by hooks."""
        return {place: site.fired for place, site in self._sites.items()}

    def _check_fired(self) -> None:
        """An edit that never fired is an error, not a silent no-op."""
        silent = [site for site in self._sites.values() if not site.fired]
        if not silent:
            return
        assert self._watch is not None
        if not self._watch.passes:
            raise ConfigError(
                "the edit never fired: no forward pass of the model ran inside the ablate context. Run the model "
                "inside the with block."
            )
        if not self._watch.matching:
            positions = self._watch.positions
            raise ConfigError(
                f"the edit never fired: {self._watch.passes} forward passes ran, none with a token for "
                f"when={self._watch.when!r}, positions={positions if positions is None else positions.tolist()}. "
                "Correct them; when='generation' needs generate with a cache."
            )
        raise UnsupportedModelError(
            f"the edit never fired at {'; '.join(map(str, silent))}, though {self._watch.passes} forward passes ran: "
            "the model was compiled or uses custom kernels that skip hooks. Load it without them."
        )


@dataclass
class _Open:
    """A model with open edits."""

    intact: str
    """Its fingerprint before the first of them: by its weights alone, a nested set would not fit."""
    edits: list[Edits] = field(default_factory=list)


_OPEN: weakref.WeakKeyDictionary[nn.Module, _Open] = weakref.WeakKeyDictionary()


@contextmanager
def ablate(
    model: nn.Module | Anatomy,
    neurons: NeuronSet | None = None,
    *,
    op: str = "zero",
    factor: float | None = None,
    value: float | None = None,
    reference: Atlas | Statistics | RecordedActivations | None = None,
    seed: int = 0,
    rows: Sequence[NeuronSet | None] | None = None,
    when: When = "all",
    positions: Iterable[int] | None = None,
    force: bool = False,
) -> Iterator[Edits]:
    """Switches neurons off, or changes them otherwise, for as long as the context is open.

    `zero` and `scale` edit weights, at no cost per token; with `rows`, `when` or `positions`, for the other operations,
    and where weights are quantised, offloaded or under an adapter, activations are edited by hooks. Both give the same
    logits. Everything is restored bit for bit, also after an exception or an interrupt. Contexts may be nested; they
    close in reverse order.

    What an operation changes is the unit's activation: for q, k and v the projection's output, bias included and before
    a Q/K norm, if the model has one (so scaling is felt through the norm); for o the input of W_O; for ffn the input of
    W_down (in a mixture of experts, before the routing weight).

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        neurons: the set, for every row of a batch.
        op: `zero`; `scale` by `factor`; `clamp` to `value`; `mean` or `median` of the unit over the tokens of
            `reference`; `resample`: at each token the values that all units have at one token of `reference`, which is
            drawn at random.
        factor: for `scale`; above 1 amplifies.
        value: for `clamp`.
        reference: for `mean`: an atlas with activations (each of its languages weighs the same), or one language of it.
            For `median` and `resample`: what `record_activations` returns, of all the units. The median of an even
            number of tokens is the lower of the two in the middle.
        seed: for `resample`. The same token at the same place gets the same draw, in every pass and batch; average over
            seeds.
        rows: instead of `neurons`: a set, or None for no edit, for each row of the batch. When the batch is a multiple,
            each serves as many rows in turn (`generate` repeats rows so for beams and several return sequences).
        when: `prompt` (the pass that reads the prompt), `generation` (one new token on a filled cache), or `all`.
        positions: only tokens at these places, counted from 0 at each row's first unpadded token; None: all tokens.
        force: allow a set, or a reference, of another model with the same shapes.

    Yields:
        The open edit; `fired` counts the forward passes in which each slot and layer was edited by hooks.

    Raises:
        ProvenanceError: the set or the reference belongs to another model.
        ConfigError: arguments that are missing or contradict; no neuron at all; a unit out of range; a slot that the
            anatomy lacks; a unit that an open edit holds at another value; a batch that does not fit `rows`. On leaving
            without an exception: no forward pass ran that the edit is meant for.
        UnsupportedModelError: a compiled model, a model sharded by tensor parallelism, a reference's value on experts;
            on leaving without an exception, forward passes that skipped the hooks.

    Source: paper, section 2.1 ("deactivating" a neuron sets its parameters to zero).
    """
    operation = Operation.parse(op, factor=factor, value=value, reference=reference, seed=seed)
    sets = _sets(neurons, rows)
    slots = dict.fromkeys(slot for each in sets if each is not None for slot in each.widths)
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, resolve_slots(slots), check=False)
    with ExitStack() as stack:
        opened = _OPEN.get(anatomy.model) or _Open(intact_fingerprint(anatomy.model))
        for each in sets:
            if each is not None:
                check_set(each, anatomy, opened.intact, force)
        units = units_of(sets, by_row=rows is not None)
        if reference is not None:
            slots = dict.fromkeys(slot for slot, _ in units)
            operation = operation.with_reference(reference, anatomy, slots, opened.intact, force)
        watch = ForwardWatch(when, positions, None if rows is None else len(rows), operation.draw)
        edits = Edits(operation, units, _watch=watch)
        _apply(edits, anatomy, watch, opened, stack)
        yield edits
    edits._check_fired()


def _apply(edits: Edits, anatomy: Anatomy, watch: ForwardWatch, opened: _Open, stack: ExitStack) -> None:
    """Everything is looked at first, so that a refusal leaves the model untouched."""
    if (getattr(anatomy.model, "_tp_size", None) or 1) > 1:
        raise UnsupportedModelError(
            "the model is sharded by tensor parallelism, so a unit's weights are on one rank only. Load it with "
            "device_map instead of tp_plan."
        )
    on_weights: dict[tuple[str, int], list[Place]] = {}
    by_hooks: dict[tuple[str, int], Site] = {}
    direct = edits.operation.name in ON_WEIGHTS and not watch.needed
    reasons: Counter[str] = Counter()
    for (slot, layer), (units, members) in edits.units.items():
        found = places(anatomy, slot, layer, units, edits.operation) if direct else ""
        if isinstance(found, list):
            on_weights[slot, layer] = found
            continue
        if found:
            reasons[found] += 1
        by_hooks[slot, layer] = Site(anatomy.layers[layer], slot, units, members, edits.operation, watch)
    for reason, times in reasons.items():
        logger.warning(
            "%s in %d of %d edited places (slots of layers), so activations are edited there by hooks, at a cost per "
            "token",
            reason,
            times,
            len(edits.units),
        )
    edits.on_weights, edits._sites = tuple(on_weights), by_hooks
    _refuse_conflicts(edits, opened)
    if by_hooks:
        refuse_compiled(anatomy)
        without_compiling(anatomy, stack)
        watch.install(anatomy, stack)
        for site in by_hooks.values():
            site.install(stack)
    if not opened.edits:
        _OPEN[anatomy.model] = opened
    opened.edits.append(edits)
    stack.callback(_close, anatomy.model, opened, edits)
    for found in on_weights.values():
        multiply(found, 0.0 if edits.operation.number is None else edits.operation.number, stack)


def has_open_edits(model: nn.Module) -> bool:
    """Whether an `ablate` of the model is open."""
    return model in _OPEN


def intact_fingerprint(model: nn.Module) -> str:
    """The model's fingerprint, without the edits that are open."""
    opened = _OPEN.get(model)
    return fingerprint(model) if opened is None else opened.intact


def _close(model: nn.Module, opened: _Open, edits: Edits) -> None:
    opened.edits[:] = [each for each in opened.edits if each is not edits]
    if not opened.edits:
        _OPEN.pop(model, None)


def _sets(neurons: NeuronSet | None, rows: Sequence[NeuronSet | None] | None) -> list[NeuronSet | None]:
    if (neurons is None) == (rows is None):
        found = "neither" if neurons is None else "both"
        raise ConfigError(
            f"wanted either neurons (a set for every row) or rows (a set for each), found {found}. Pass one of them."
        )
    if isinstance(rows, NeuronSet):
        raise ConfigError(
            "wanted rows as a list with a set (or None) for each row, found one NeuronSet. Pass neurons=."
        )
    sets = [neurons] if rows is None else list(rows)
    wrong = next((each for each in sets if each is not None and not isinstance(each, NeuronSet)), None)
    if wrong is not None:
        raise ConfigError(f"wanted neurons as a NeuronSet, found {type(wrong).__name__}. Load or select one.")
    if not any(sets):
        what = "the set is empty" if rows is None else f"rows lists {len(sets)} sets without a neuron"
        raise ConfigError(f"there is nothing to edit: {what}. Give at least one neuron, or run the model as it is.")
    return sets


def check_set(neurons: NeuronSet, anatomy: Anatomy, intact: str, force: bool) -> None:
    """ProvenanceError or ConfigError unless a set fits a model whose fingerprint before any edit is `intact`."""
    resolve_slots(tuple(neurons.widths))
    lacking = [slot for slot in neurons.indices if slot not in anatomy.slots and any(map(len, neurons.indices[slot]))]
    if lacking:
        raise ConfigError(
            f"the set has neurons in slot {', '.join(lacking)}, but the anatomy was built for "
            f"{', '.join(anatomy.slots)}. Take neurons.at(slots=...) of those, or build the anatomy with that slot."
        )
    neurons.check(anatomy, force=force, known=intact)
    for slot, layers in neurons.indices.items():
        for layer, units in enumerate(layers):
            width = neurons.widths[slot][layer]
            if len(units) and (int(units.min()) < 0 or int(units.max()) >= width):
                raise ConfigError(
                    f"slot {slot}, layer {layer}: units are 0..{width - 1}, found {int(units.min())}.."
                    f"{int(units.max())}. Correct the set (k and v units live in kv-head space)."
                )


def units_of(sets: list[NeuronSet | None], *, by_row: bool = False) -> Units:
    """The units of all sets together; `by_row`: and which set has which."""
    found: dict[tuple[str, int], list[Tensor]] = {}
    nothing = torch.empty(0, dtype=torch.int64)
    for row, each in enumerate(sets):
        for slot, layers in each.indices.items() if each is not None else ():
            for layer, units in enumerate(layers):
                found.setdefault((slot, layer), [nothing] * len(sets))[row] = units.long().unique()
    result: Units = {}
    for place, several in found.items():
        union = torch.cat(several).unique()
        if len(union):
            members = torch.stack([torch.isin(union, units) for units in several]) if by_row else None
            result[place] = (union, members)
    return result


def _refuse_conflicts(edits: Edits, opened: _Open) -> None:
    """Weights may be edited on top of each other, for they come back in order; an activation takes one value only."""
    for other in opened.edits:
        if not edits.operation.conflicts(other.operation):
            continue
        for place, (units, _) in edits.units.items():
            if place not in other.units or (place in edits.on_weights and place in other.on_weights):
                continue
            both = units[torch.isin(units, other.units[place][0])].tolist()
            if both:
                shown = ", ".join(map(str, both[:5])) + (", ..." if len(both) > 5 else "")
                raise ConfigError(
                    f"slot {place[0]}, layer {place[1]}: an open edit ({other.operation}) holds unit {shown}, which "
                    f"this one ({edits.operation}) would change too. Close it first, or take those units out of one "
                    "of the sets."
                )
