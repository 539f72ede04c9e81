"""Steering a model towards a language: by its neurons, and by the baseline that any such claim has to beat.

Axes: `B` sequences of a batch, `T` tokens, `L` layers, `M` model width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from babelscope.editing.edits import Edits, ablate, intact_fingerprint
from babelscope.editing.hooks import refuse_compiled, without_compiling
from babelscope.editing.recorded import read_documents
from babelscope.errors import ConfigError, ProvenanceError
from babelscope.models.anatomy import Anatomy
from babelscope.neurons.neuronset import NeuronSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def steer(
    model: nn.Module | Anatomy, target: NeuronSet, source: NeuronSet, *, factor: float = 2.0, force: bool = False
) -> Iterator[tuple[Edits, Edits]]:
    """Amplifies one language's neurons and silences another's for as long as the context is open.

    Neurons of both languages are left alone: they can't be amplified and silenced at once, and serve both.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        target: neurons of the language that is wanted; multiplied by `factor`.
        source: neurons of the language that is not; set to zero.
        factor: of `ablate`'s `scale`.
        force: allow sets of another model with the same shapes.

    Yields:
        The two open edits: of what is amplified, and of what is silenced.

    Raises:
        ConfigError: nothing is left of a set without the other; and as in `ablate`.
        ProvenanceError: the sets belong to another model.
    """
    amplified, silenced = target - source, source - target
    if not amplified or not silenced:
        raise ConfigError(
            f"wanted neurons of each language that are not the other's, found {len(amplified)} of the target and "
            f"{len(silenced)} of the source ({len(target & source)} shared). Select smaller sets, or use ablate alone."
        )
    with (
        ablate(model, amplified, op="scale", factor=factor, force=force) as up,
        ablate(model, silenced, force=force) as down,
    ):
        yield up, down


@dataclass(frozen=True)
class ResidualMeans:
    """The mean state of the residual stream behind each layer, by language."""

    means: Mapping[str, Tensor] = field(repr=False)
    """float64 [L, M]"""
    tokens: Mapping[str, int]
    """How many each mean is over."""
    fingerprint: str
    """Of the model."""

    def difference(self, target: str, source: str) -> Tensor:
        """Mean of `target` minus mean of `source`, float64 [L, M]; ConfigError for a language that it lacks."""
        lacking = [language for language in (target, source) if language not in self.means]
        if lacking:
            raise ConfigError(f"wanted means of {', '.join(self.means)}, found {', '.join(lacking)}. Gather its texts.")
        return self.means[target] - self.means[source]


def residual_means(
    model: nn.Module | Anatomy,
    tokenizer: PreTrainedTokenizerBase,
    corpora: Mapping[str, Any],
    *,
    documents: int | None = None,
    max_tokens: int = 256,
    min_tokens: int = 8,
    token_budget: int = 4096,
    seed: int = 0,
) -> ResidualMeans:
    """The mean state behind each layer over the tokens of each language, in one streaming pass.

    Padding and special tokens don't count: BOS alone can be a thousand times larger than any other state.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        tokenizer: of the model.
        corpora: by language, whatever `open_corpus` takes: any iterable of str, a path, ...
        documents: per language, drawn at random; None: all.
        max_tokens: documents are cut to this length.
        min_tokens: shorter documents are skipped.
        token_budget: rows x width of a batch.
        seed: of the draw.

    Raises:
        ConfigError: no corpus; settings out of range.
        DataError: a corpus without a usable document.
    """
    if not corpora:
        raise ConfigError("no corpus given. Give one per language, such as {'fr': texts, 'en': texts}.")
    anatomy = _layers_of(model)
    draw = {"documents": documents, "max_tokens": max_tokens, "min_tokens": min_tokens, "seed": seed}
    means, tokens = {}, {}
    for language, corpus in corpora.items():
        with ExitStack() as stack:
            adding = _Adding(anatomy, stack)
            read_documents(anatomy.model, tokenizer, corpus, adding.start, token_budget=token_budget, **draw)
        means[language] = torch.stack([total.cpu() for total in adding.totals]) / adding.tokens
        tokens[language] = adding.tokens
    return ResidualMeans(means, tokens, intact_fingerprint(anatomy.model))


@contextmanager
def steer_by_means(
    model: nn.Module | Anatomy,
    means: ResidualMeans,
    target: str,
    source: str,
    *,
    layers: Iterable[int] | None = None,
    alpha: float = 1.0,
    force: bool = False,
) -> Iterator[dict[int, int]]:
    """Adds the difference of two languages' mean states behind some layers for as long as the context is open.

    The baseline for steering by neurons (difference of means, DiffMean): it knows the two languages' texts, but
    nothing of neurons. It acts on every token; no weight is touched.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        means: of this model.
        target: the language that is wanted.
        source: the language to move away from.
        layers: behind which the difference is added; None: the middle half.
        alpha: how much of it; 1 moves the mean of the source onto that of the target, behind one layer.
        force: allow means of another model with the same shapes.

    Yields:
        By layer, the forward passes in which it was added so far.

    Raises:
        ConfigError: a language without a mean, or a layer that the model lacks; on leaving without an exception: no
            forward pass ran.
        ProvenanceError: the means are of another model.
        UnsupportedModelError: a compiled model.
    """
    anatomy = _layers_of(model)
    difference_LM = means.difference(target, source)
    middle = range(anatomy.n_layers // 4, anatomy.n_layers - anatomy.n_layers // 4)
    chosen = sorted({int(layer) for layer in (middle if layers is None else layers)})
    if not chosen or chosen[0] < 0 or chosen[-1] >= anatomy.n_layers:
        raise ConfigError(f"the model has layers 0..{anatomy.n_layers - 1}, found {chosen or 'none'}. Correct layers.")
    width = anatomy.model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    mine = intact_fingerprint(anatomy.model)
    if difference_LM.shape != (anatomy.n_layers, width) or (means.fingerprint != mine and not force):
        raise ProvenanceError(
            f"the means {list(difference_LM.shape)} are of a model with fingerprint {means.fingerprint}; this one has "
            f"{anatomy.n_layers} layers of {width} and {mine}. Gather them on this model, or pass force=True if the "
            "shapes match and you know that they fit."
        )
    fired = dict.fromkeys(chosen, 0)
    with ExitStack() as stack:
        refuse_compiled(anatomy)
        without_compiling(anatomy, stack)
        for layer in chosen:
            hook = _added(difference_LM[layer] * alpha, layer, fired)
            stack.callback(anatomy.layers[layer].module.register_forward_hook(hook).remove)
        yield fired
    if not all(fired.values()):
        raise ConfigError(
            f"nothing was added behind layers {[layer for layer, times in fired.items() if not times]}: no forward "
            "pass of the model ran inside the context. Run the model inside the with block."
        )


def _layers_of(model: nn.Module | Anatomy) -> Anatomy:
    """An anatomy for its layers: of the slots only one that every supported model has."""
    return model if isinstance(model, Anatomy) else Anatomy(model, ("v",), check=False)


class _Adding:
    """Sums the states behind each layer over the counted tokens of the batch that runs, until the stack closes."""

    def __init__(self, anatomy: Anatomy, stack: ExitStack) -> None:
        self.counted = torch.empty(0)
        self.tokens = 0
        self.totals: list[Any] = [0.0] * anatomy.n_layers
        for layer in anatomy.layers:
            stack.callback(layer.module.register_forward_hook(self._hook(layer.index)).remove)

    def start(self, counted_BT: Tensor) -> None:
        """Before each forward pass: which of its tokens count."""
        self.counted = counted_BT
        self.tokens += int(counted_BT.sum())

    def _hook(self, layer: int) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> None:
            states_BTM = output[0] if isinstance(output, tuple) else output
            self.totals[layer] += states_BTM[self.counted.to(states_BTM.device)].double().sum(0)

        return add


def _added(difference_M: Tensor, layer: int, fired: dict[int, int]) -> Any:
    def add(module: nn.Module, args: Any, output: Any) -> Any:
        states_BTM = output[0] if isinstance(output, tuple) else output
        fired[layer] += 1
        moved = states_BTM + difference_M.to(states_BTM.device, states_BTM.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return add
