"""Recording the activations of some units, which `median` and `resample` take their values from.

Axes: `B` sequences, `T` tokens, `C` counted tokens of all documents, `n` units of one slot in one layer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from babelscope.corpora.batching import batches, padding_id, sample_documents
from babelscope.corpora.sources import open_corpus
from babelscope.editing.edits import check_set, has_open_edits, intact_fingerprint, units_of
from babelscope.editing.forward import ForwardWatch
from babelscope.editing.hooks import Site, refuse_compiled
from babelscope.editing.operations import Operation, RecordedActivations
from babelscope.errors import ConfigError, UnsupportedModelError
from babelscope.models.anatomy import Anatomy
from babelscope.models.interfaces import evaluation_mode
from babelscope.models.slots import resolve_slots
from babelscope.neurons.neuronset import NeuronSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def record_activations(
    model: nn.Module | Anatomy,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Any,
    neurons: NeuronSet,
    *,
    documents: int | None = None,
    max_tokens: int = 256,
    min_tokens: int = 8,
    token_budget: int = 4096,
    seed: int = 0,
    force: bool = False,
) -> RecordedActivations:
    """Records the activations of a set's units at every token of some documents.

    A unit's activation is what an edit of it replaces; see `ablate`. Padding and special tokens (BOS) don't count.
    Takes 4 bytes per token and unit.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        tokenizer: of the model.
        corpus: whatever `open_corpus` takes: any iterable of str, a path, ...
        neurons: the units.
        documents: how many, drawn at random; None: all.
        max_tokens: documents are cut to this length.
        min_tokens: shorter documents are skipped.
        token_budget: rows x width of a batch.
        seed: of the draw.
        force: allow a set of another model with the same shapes.

    Raises:
        ProvenanceError: the set belongs to another model.
        ConfigError: an empty set; a unit out of range; an open edit; settings out of range.
        DataError: a corpus without a usable document.
        UnsupportedModelError: units of experts; a compiled model, or one that skips hooks otherwise.
    """
    if not neurons:
        raise ConfigError("there is nothing to record: the set is empty. Give at least one neuron.")
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, resolve_slots(neurons.widths), check=False)
    if has_open_edits(anatomy.model):
        raise ConfigError("the model has an open edit, which would be recorded. Leave its ablate context first.")
    fingerprint = intact_fingerprint(anatomy.model)
    check_set(neurons, anatomy, fingerprint, force)
    refuse_compiled(anatomy)
    units = {place: each for place, (each, _) in units_of([neurons]).items()}
    for slot, layer in units:
        if slot == "ffn" and anatomy.layers[layer].ffn.experts is not None:
            raise UnsupportedModelError(
                f"layer {layer}, slot ffn: a unit of an expert has an activation only at the tokens routed to it, so "
                "there is none for every token. Leave ffn out with neurons.at(slots=...)."
            )
    kept = {place: _Kept(anatomy, *place, each) for place, each in units.items()}
    tokens = 0

    def start(counted_BT: Tensor) -> None:
        nonlocal tokens
        tokens += int(counted_BT.sum())
        for each in kept.values():
            each.counted = counted_BT

    draw = {"documents": documents, "max_tokens": max_tokens, "min_tokens": min_tokens, "seed": seed}
    with ExitStack() as stack:
        for each in kept.values():
            each.install(stack)
        read_documents(anatomy.model, tokenizer, corpus, start, token_budget=token_budget, **draw)
    values = {place: torch.cat([torch.empty(0, len(each.units)), *each.parts]) for place, each in kept.items()}
    for place, found in values.items():
        if len(found) != tokens:
            raise UnsupportedModelError(
                f"{kept[place]}: wanted {tokens} tokens, recorded {len(found)}: the module was skipped or ran several "
                "times. Load the model without custom kernels, or leave those units out."
            )
    widths = {slot: tuple(neurons.widths[slot]) for slot, _ in units}
    return RecordedActivations(units, values, widths, tokens, fingerprint)


def read_documents(
    model: Any, tokenizer: Any, corpus: Any, start: Callable[[Tensor], None], *, token_budget: int, **draw: Any
) -> None:
    """Runs a model over documents, for hooks that watch it.

    Args:
        model: a causal language model of transformers; its head does not run.
        tokenizer: of the model.
        corpus: whatever `open_corpus` takes.
        start: called before each forward pass with the tokens that count in it, bool [B, T].
        token_budget: rows x width of a batch.
        **draw: of `sample_documents`.

    Raises:
        ConfigError, DataError: as `sample_documents`.
    """
    sample, _ = sample_documents(open_corpus(corpus), tokenizer, **draw)
    device = model.get_input_embeddings().weight.device
    with ExitStack() as stack:
        evaluation_mode(model, stack)
        stack.enter_context(torch.no_grad())
        for batch in batches(sample, token_budget=token_budget, pad_id=padding_id(tokenizer)):
            start(batch.counted)
            model.base_model(
                input_ids=batch.input_ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                use_cache=False,
            )


class _Kept(Site):
    """Keeps the units' activations at the counted tokens, where an edit would change them."""

    def __init__(self, anatomy: Anatomy, slot: str, layer: int, units: Tensor) -> None:
        super().__init__(anatomy.layers[layer], slot, units, None, Operation("zero"), ForwardWatch("all", None, None))
        self.counted = torch.empty(0)
        """bool [B, T], of the batch that runs."""
        self.parts: list[Tensor] = []

    def _edited(self, states: Tensor) -> Tensor:
        part = states.index_select(-1, self.channels.to(states.device)).flatten(0, -2)
        self.parts.append(part[self.counted.flatten().to(part.device)].float().cpu())
        return states
