"""The tuned lens: an affine map for each layer, trained so that the layer decodes to what the last one says.

Axes: `N` positions, `M` model width, `V` vocabulary, `L` decoder layers.

Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023), section 3. They
train with SGD on 65 million tokens; here it is Adam with a falling rate, for a few documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.artifacts import read_tensors, write_tensors
from babelscope.corpora.batching import Batch, batches, padding_id, sample_documents
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.errors import ConfigError, ProvenanceError
from babelscope.lens.decode import Unembedding
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import ModelIdentity

KIND = "tuned lens"


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
    """Model, texts and settings of the training; `before` and `after`: KL by layer on these texts, in nats."""

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
        steps: int = 200,
        learning_rate: float = 1e-3,
        token_budget: int = 1024,
        seed: int = 0,
    ) -> TunedLens:
        """Trains a lens to lower KL(last layer || layer). The model stays as it is.

        Args:
            model: a causal language model of transformers, or its `Anatomy`.
            tokenizer: of the model.
            texts: anything that `open_corpus` takes; of all the languages that the lens shall read.
            documents: drawn at random; None for all.
            max_tokens: documents are cut to this length.
            steps: batches to learn from; the documents are gone over as often as that takes.
            learning_rate: of Adam; falls to 0 in a straight line.
            token_budget: rows x width of a batch.
            seed: of the draw of documents.

        Raises:
            ConfigError: less than one step.
            DataError: no usable document.
            UnsupportedModelError: a model whose layers can't be decoded.
        """
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, found {steps}. Raise it.")
        corpus, lens = open_corpus(texts), cls.untrained(model)
        read = list(_batches(corpus, tokenizer, documents, max_tokens, token_budget, seed))
        unembedding = Unembedding(model, tuned=lens)
        before = _divergence(unembedding, read)
        for each in (*lens.weight, *lens.bias):
            each.requires_grad_()
        optimizer = torch.optim.Adam([*lens.weight, *lens.bias], learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, steps)
        for batch in itertools.islice(itertools.cycle(read), steps):
            count = int(batch.counted.sum())
            for layer, loss in _losses(unembedding, batch):
                own = lens.weight[layer], lens.bias[layer]
                for parameter, gradient in zip(own, torch.autograd.grad(loss / count, own), strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        for each in (*lens.weight, *lens.bias):
            each.requires_grad_(False)
        about = {
            "model": ModelIdentity.of(unembedding.model).as_json(), "texts": corpus.name, "documents": documents,
            "max_tokens": max_tokens, "steps": steps, "learning_rate": learning_rate, "seed": seed,
            "before": before.tolist(), "after": _divergence(unembedding, read).tolist(),
        }  # fmt: skip
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


def _batches(
    corpus: Corpus, tokenizer: Any, documents: int | None, max_tokens: int, token_budget: int, seed: int
) -> Iterator[Batch]:
    sample, _ = sample_documents(corpus, tokenizer, documents=documents, max_tokens=max_tokens, min_tokens=1, seed=seed)
    return batches(sample, token_budget=token_budget, pad_id=padding_id(tokenizer))


def _losses(unembedding: Unembedding, batch: Batch) -> Iterator[tuple[int, Tensor]]:
    """For chunks of positions and every layer but the last: KL(last || layer), summed over positions, in nats."""
    states: list[Tensor] = []
    unembedding.run(batch.input_ids, batch.attention_mask, batch.counted, lambda _, hidden_NM: states.append(hidden_NM))
    last = len(unembedding.layers)
    for part, logits_NV in unembedding.chunks(last, states[last]):
        goal_NV = logits_NV.detach().log_softmax(1)
        for layer in range(last):
            found_NV = unembedding.logits(layer, states[layer][part]).log_softmax(1)
            yield layer, nn.functional.kl_div(found_NV, goal_NV, reduction="sum", log_target=True)


@torch.no_grad()
def _divergence(unembedding: Unembedding, read: Iterable[Batch]) -> Tensor:
    """[L] float64, mean over positions of KL(last || layer), in nats."""
    found, positions = torch.zeros(len(unembedding.layers), dtype=torch.float64), 0
    for batch in read:
        positions += int(batch.counted.sum())
        for layer, loss in _losses(unembedding, batch):
            found[layer] += float(loss)
    return found / positions
