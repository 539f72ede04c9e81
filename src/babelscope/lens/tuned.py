"""The tuned lens: an affine map for each layer, trained so that the layer decodes to what the last one says.

Axes: `N` positions, `M` model width, `V` vocabulary, `L` decoder layers.

Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023), section 3. They
train with SGD on 65 million tokens; here it is Adam on a few documents, until those it doesn't learn from gain no more.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.artifacts import read_tensors, write_tensors
from babelscope.corpora.batching import Batch, batches, padding_id, sample_documents
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.corpora.tokens import TokenizedDocument
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.lens.decode import Unembedding
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import ModelIdentity
from babelscope.progress import task

KIND = "tuned lens"
HELD_OUT = 64
"""Of the documents a tenth, but at most so many, decide when a layer has learned enough; as many again are measured."""
_CHECK = 20
"""Steps between two looks at the documents that decide."""
_GAIN = 0.01
"""Share of the divergence; with less gained between two looks, the rate falls to a third."""
_FALLS = 3
"""Falls of the rate after which a layer stops."""


@dataclass(frozen=True)
class Closeness:
    """How near the decoding of each layer comes to what the last one says: means over positions, L numbers each."""

    divergence: list[float]
    """KL(last || layer) in nats."""
    agreement: list[float]
    """Share of positions whose likeliest token is that of the last layer."""
    documents: int
    positions: int


def closeness(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    texts: str | Path | Iterable[str] | Corpus,
    *,
    tuned: TunedLens | None = None,
    max_tokens: int = 128,
    token_budget: int = 1024,
) -> Closeness:
    """Measures the plain lens, or a tuned one, on texts that it didn't learn from.

    Arguments and errors are those of `TunedLens.train`; ProvenanceError for a tuned lens of another model.
    """
    read = _sample(open_corpus(texts), tokenizer, None, max_tokens, 0)
    return _measure(Unembedding(model, tuned=tuned), _batches(read, tokenizer, token_budget))


@dataclass(frozen=True, eq=False)
class TunedLens:
    """h -> h + h A^T + b for every layer but the last, before the final norm; A and b start at zero."""

    weight: Sequence[Tensor]
    """L tensors A, [M, M] float32; the first is of the embeddings."""
    bias: Sequence[Tensor]
    """L tensors b, [M] float32."""
    model: str
    """Fingerprint of the model."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Model, texts and settings of the training; how many `documents` taught, decided and were only measured, and the
    places of the latter in the corpus (`held_out`); `steps` of each layer; the `Closeness`, `plain` and `tuned`."""

    def __call__(self, layer: int, hidden_NM: Tensor) -> Tensor:
        """The states of a layer, translated; of their own dtype."""
        weight, bias = (each[layer].to(hidden_NM.device) for each in (self.weight, self.bias))
        return hidden_NM + (hidden_NM.to(weight.dtype) @ weight.T + bias).to(hidden_NM.dtype)

    @classmethod
    def untrained(cls, model: nn.Module | Anatomy) -> TunedLens:
        """The lens that changes nothing: with it every layer decodes as without."""
        unembedding = Unembedding(model)
        width, layers, device = unembedding.width, range(len(unembedding.layers)), unembedding.device
        weight = [torch.zeros(width, width, device=device) for _ in layers]
        bias = [torch.zeros(width, device=device) for _ in layers]
        return cls(weight, bias, ModelIdentity.of(unembedding.model).fingerprint)

    @classmethod
    def train(
        cls,
        model: nn.Module | Anatomy,
        tokenizer: Any,
        texts: str | Path | Iterable[str] | Corpus,
        *,
        documents: int | None = None,
        max_tokens: int = 128,
        max_steps: int = 2000,
        learning_rate: float = 1e-3,
        token_budget: int = 1024,
        seed: int = 0,
    ) -> TunedLens:
        """Trains a lens to lower KL(last layer || layer). The model stays as it is.

        The documents fall by lot into three parts: most teach; a tenth, 64 at most, decide; as many are only measured.
        Every 20 steps each layer is measured on those that decide, and keeps its best map. Where that gained less than
        1 %, the rate falls to a third; the third time, the layer stops. A layer that never gains keeps the plain lens.

        Args:
            model: a causal language model of transformers, or its `Anatomy`.
            tokenizer: of the model.
            texts: anything that `open_corpus` takes; of all the languages that the lens shall read. Texts that occur
                twice count once.
            documents: drawn at random; None for all. Their tokens are held in memory.
            max_tokens: documents are cut to this length.
            max_steps: batches to learn from, at most; the documents are gone over as often as that takes.
            learning_rate: of Adam, to begin with.
            token_budget: rows x width of a batch.
            seed: of the draw of documents and of their order.

        Raises:
            ConfigError: less than one step.
            DataError: fewer than three usable documents.
            UnsupportedModelError: a model whose layers can't be decoded.
        """
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, found {max_steps}. Raise it.")
        corpus, lens, draw = open_corpus(texts), cls.untrained(model), random.Random(seed)
        sample = {each.ids.tobytes(): each for each in _sample(corpus, tokenizer, documents, max_tokens, seed)}
        parts = _parts(list(sample.values()), corpus.name, draw)
        teaching, deciding, measured = (_batches(part, tokenizer, token_budget) for part in parts)
        unembedding = Unembedding(model, tuned=lens)
        plain, begun = _measure(unembedding, measured), _measure(unembedding, deciding)
        learners = list(map(_Learner, lens.weight, lens.bias, begun.divergence, [learning_rate] * len(lens.weight)))
        order, step = _forever(teaching, draw), 0
        with task("training the tuned lens", max_steps, "steps") as training:
            while (
                learning := [layer for layer, each in enumerate(learners) if each.falls < _FALLS]
            ) and step < max_steps:
                for batch in islice(order, min(_CHECK, max_steps - step)):
                    step += 1
                    positions = int(batch.counted.sum())
                    for layer, logits_NV, goal_NV in _decoded(unembedding, batch, learning):
                        learners[layer].learn(logits_NV, goal_NV, positions)
                    for layer in learning:
                        learners[layer].step()
                    training.advance()
                now = _measure(unembedding, deciding, learning).divergence
                for layer, divergence in zip(learning, now, strict=True):
                    learners[layer].judge(divergence, step)
        for each in (*lens.weight, *lens.bias):
            each.requires_grad_(False)
        about = {
            "model": ModelIdentity.of(unembedding.model).as_json(),
            "texts": corpus.name,
            "documents": [len(part) for part in parts],
            "held_out": sorted(each.index for each in parts[2]),
            "max_tokens": max_tokens,
            "max_steps": max_steps,
            "learning_rate": learning_rate,
            "seed": seed,
            "steps": [each.steps for each in learners],
            "plain": vars(plain),
            "tuned": vars(_measure(unembedding, measured)),
        }
        return cls(lens.weight, lens.bias, lens.model, about)

    def check_model(self, model: nn.Module) -> None:
        """Raises ProvenanceError if the lens was trained on another model."""
        if self.model != ModelIdentity.of(model).fingerprint:
            name = dict(self.about.get("model") or {}).get("name", "another model")
            raise ProvenanceError(f"the tuned lens was trained on {name}, not on this model. Train one for this model.")

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file."""
        tensors = {"weight": torch.stack(list(self.weight)), "bias": torch.stack(list(self.bias))}
        write_tensors(Path(path), KIND, tensors, {"model": self.model, "about": self.about})

    @classmethod
    def load(cls, path: str | Path) -> TunedLens:
        """Reads what `save` wrote; DataError as in `babelscope.artifacts.read_header`."""
        tensors, header = read_tensors(Path(path), KIND)
        return cls(list(tensors["weight"]), list(tensors["bias"]), header["model"], header["about"])


def closeness_rows(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """From what a lens says about itself: a row per layer, plain and tuned, on held-out documents.

    `layer`, `divergence_plain` and `divergence_tuned` (KL from the last layer, nats), `agreement_plain` and
    `agreement_tuned` (with its likeliest token); no rows of an untrained lens.
    """
    kinds = ("plain", "tuned") if "plain" in about else ()
    columns = {f"{name}_{kind}": about[kind][name] for name in ("divergence", "agreement") for kind in kinds}
    return [
        {"layer": layer, **dict(zip(columns, values, strict=True))}
        for layer, values in enumerate(zip(*columns.values(), strict=True))
    ]


class _Learner:
    """The training of one layer's map."""

    def __init__(self, weight: Tensor, bias: Tensor, divergence: float, rate: float) -> None:
        self.own, self.best, self.steps, self.falls = (weight, bias), divergence, 0, 0
        self.kept = [each.clone() for each in self.own]
        self.optimizer = torch.optim.Adam([each.requires_grad_() for each in self.own], rate)

    def learn(self, logits_NV: Tensor, goal_NV: Tensor, positions: int) -> None:
        """Adds the gradient of KL(goal || layer) / positions to this map, and to nothing else.

        By the logits it is the difference of the probabilities.
        """
        slope_NV = (logits_NV.detach().softmax(1) - goal_NV.exp()) / positions
        for each, gradient in zip(self.own, torch.autograd.grad(logits_NV, self.own, slope_NV), strict=True):
            each.grad = gradient if each.grad is None else each.grad + gradient

    def step(self) -> None:
        """Follows the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def judge(self, divergence: float, step: int) -> None:
        """Keeps the map if it is the best so far; else, or if it is hardly better, goes on from the best at a third."""
        slow = not divergence < (1 - _GAIN) * self.best
        if divergence < self.best:
            self.best, self.steps, self.kept = divergence, step, [each.clone() for each in self.own]
        if slow:
            self.falls += 1
            self.optimizer.state.clear()
            self.optimizer.param_groups[0]["lr"] /= 3
            for each, best in zip(self.own, self.kept, strict=True):
                each.copy_(best)


def _sample(
    corpus: Corpus, tokenizer: Any, documents: int | None, max_tokens: int, seed: int
) -> Iterator[TokenizedDocument]:
    sample, _ = sample_documents(corpus, tokenizer, documents=documents, max_tokens=max_tokens, min_tokens=1, seed=seed)
    return sample


def _batches(documents: Iterable[TokenizedDocument], tokenizer: Any, token_budget: int) -> list[Batch]:
    return list(batches(documents, token_budget=token_budget, pad_id=padding_id(tokenizer)))


def _parts(documents: list[TokenizedDocument], name: str, draw: random.Random) -> list[list[TokenizedDocument]]:
    """The documents that teach, those that decide, and those that are only measured."""
    if len(documents) < 3:
        raise DataError(
            f"a tuned lens needs three different documents or more (to learn from, to stop by and to be measured on), "
            f"found {len(documents)} in {name}. Give more text."
        )
    draw.shuffle(documents)
    few = min(HELD_OUT, max(1, len(documents) // 10))
    return [documents[2 * few :], documents[:few], documents[few : 2 * few]]


def _forever(read: list[Batch], draw: random.Random) -> Iterator[Batch]:
    while True:
        yield from draw.sample(read, len(read))


def _decoded(unembedding: Unembedding, batch: Batch, layers: Iterable[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For chunks of positions and each layer: its logits [N, V], and the log probabilities [N, V] of the last one."""
    states: list[Tensor] = []
    unembedding.run(batch.input_ids, batch.attention_mask, batch.counted, lambda _, hidden_NM: states.append(hidden_NM))
    last = len(unembedding.layers)
    for part, logits_NV in unembedding.chunks(last, states[last]):
        goal_NV = logits_NV.detach().log_softmax(1)
        for layer in layers:
            yield layer, unembedding.logits(layer, states[layer][part]), goal_NV


@torch.no_grad()
def _measure(unembedding: Unembedding, read: Iterable[Batch], layers: Sequence[int] | None = None) -> Closeness:
    """Of some layers; None for all but the last."""
    layers = range(len(unembedding.layers)) if layers is None else layers
    divergence, agreement = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0)
    documents = positions = 0
    for batch in read:
        documents, positions = documents + len(batch), positions + int(batch.counted.sum())
        for layer, logits_NV, goal_NV in _decoded(unembedding, batch, layers):
            nats = nn.functional.kl_div(logits_NV.log_softmax(1), goal_NV, reduction="sum", log_target=True)
            divergence[layer] += float(nats)
            agreement[layer] += int((logits_NV.argmax(1) == goal_NV.argmax(1)).sum())
    mean_divergence, share = ([each / positions for each in sums.values()] for sums in (divergence, agreement))
    return Closeness(mean_divergence, share, documents, positions)
