"""The values that the operation `mean` sets units to, read once and told by a hash: they decide what is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from babelscope.artifacts import digest
from babelscope.editing.edits import intact_fingerprint
from babelscope.editing.operations import Operation
from babelscope.errors import ConfigError
from babelscope.models.anatomy import Anatomy
from babelscope.neurons.neuronset import NeuronSet

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas
    from babelscope.neurons.statistics import Statistics


def read_means(
    model: Any, reference: Atlas | Statistics | None, sets: Iterable[NeuronSet], *, force: bool = False
) -> Operation:
    """The operation `mean` with the values that units of these sets would take.

    Args:
        model: a causal language model of transformers.
        reference: an atlas with activations, or one language of it.
        sets: in whose slots the means are wanted.
        force: accept a reference of another model of the same shape.

    Raises:
        ConfigError: no reference, or one without a slot or without activations.
        ProvenanceError: a reference of another model.
    """
    if reference is None:
        raise ConfigError(
            "op 'mean' needs the units' mean activations, found none. Give the atlas of a detection run with "
            "activations: reference=ATLAS (--reference RUN)."
        )
    slots = dict.fromkeys(slot for each in sets for slot, layers in each.indices.items() if any(map(len, layers)))
    mean = Operation.parse("mean", reference=reference)
    return mean.with_reference(reference, Anatomy(model, check=False), slots, intact_fingerprint(model), force)


def means_digest(mean: Operation, neurons: NeuronSet) -> str:
    """A short hash of the values that the units of a set take."""
    return digest(
        {
            slot: [mean.target(slot, layer, units.long()).tolist() for layer, units in enumerate(layers)]
            for slot, layers in neurons.indices.items()
            if any(map(len, layers))
        }
    )
