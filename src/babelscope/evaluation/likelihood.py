"""Bits per byte by language, and what switching neurons off does to them.

Per-token perplexity can't be compared between languages or tokenizers, so everything is in bits per UTF-8 byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from babelscope.editing.edits import ablate
from babelscope.errors import ConfigError, DataError
from babelscope.models.anatomy import Anatomy
from babelscope.models.interfaces import evaluation_mode
from babelscope.neurons.neuronset import NeuronSet
from babelscope.progress import task


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of texts, one entry per text."""

    nats: NDArray[np.float64]
    """[n]"""
    n_bytes: NDArray[np.int64]
    """[n] UTF-8 bytes of the predicted part of each text."""

    @property
    def bits_per_byte(self) -> float:
        """Over all texts."""
        return float(self.nats.sum() / self.n_bytes.sum() / math.log(2))


@dataclass(frozen=True)
class DamageMatrix:
    """Change in bits per byte: rows are the neurons switched off, columns the texts."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    base: NDArray[np.float64]
    """[columns] bits per byte of the intact model."""
    change: NDArray[np.float64]
    """[rows, columns] bits per byte, ablated minus intact."""
    low: NDArray[np.float64]
    """[rows, columns] lower end of the 95 % bootstrap interval over texts, the same texts in both conditions."""
    high: NDArray[np.float64]

    def row(self, name: str) -> dict[str, float]:
        """One row, by column."""
        return dict(zip(self.columns, self.change[self.rows.index(name)].tolist(), strict=True))

    def __str__(self) -> str:
        width = max(8, *(len(name) + 2 for name in (*self.rows, *self.columns)))
        lines = ["".join(f"{name:>{width}}" for name in ("off", *self.columns))]
        lines.append("".join([f"{'intact':>{width}}", *(f"{value:>{width}.3f}" for value in self.base)]))
        for name, values in zip(self.rows, self.change, strict=True):
            lines.append("".join([f"{name:>{width}}", *(f"{value:>+{width}.3f}" for value in values)]))
        return "\n".join(lines)


def likelihood(
    model: nn.Module, tokenizer: Any, texts: Iterable[str], *, max_tokens: int = 256, token_budget: int = 4096
) -> Likelihood:
    """Negative log-likelihood of each text under the model.

    A BOS token is put before the text if the tokenizer has one, so that every token is predicted; without one the
    first token is not, and its bytes don't count.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        texts: cut to `max_tokens`.
        max_tokens: including BOS.
        token_budget: rows x width of a batch.

    Raises:
        ConfigError: `max_tokens` leaves no token to predict.
        DataError: no text, or a text without a token to predict.
    """
    if max_tokens < 2:
        raise ConfigError(f"wanted max_tokens of 2 or more (one for context), found {max_tokens}. Raise it.")
    rows = [_tokenize(tokenizer, text, max_tokens) for text in texts]
    if not rows:
        raise DataError("no text to measure bits per byte on. Give at least one.")
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
    nats = np.zeros(len(rows))
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    start = 0
    with ExitStack() as stack:
        evaluation_mode(model, stack)
        while start < len(order):
            count = max(1, token_budget // len(rows[order[start]][0]))
            chosen = order[start : start + count]
            nats[chosen] = _nats(model, [rows[index][0] for index in chosen], device)
            start += count
    return Likelihood(nats, np.array([n_bytes for _, n_bytes in rows], dtype=np.int64))


def damage_matrix(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    sets: Mapping[str, NeuronSet],
    texts: Mapping[str, Iterable[str]],
    *,
    max_tokens: int = 256,
    resamples: int = 1000,
    seed: int = 0,
) -> DamageMatrix:
    """Change in bits per byte of every language's texts when each set of neurons is switched off.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        tokenizer: of the model.
        sets: name -> neurons; random controls are sets like any other.
        texts: language -> held-out texts.
        max_tokens: texts are cut to this length.
        resamples: of the bootstrap over texts.
        seed: of the bootstrap.

    Returns:
        The matrix, with 95 % intervals.
    """
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, check=False)
    held = {language: list(items) for language, items in texts.items()}

    def measure() -> dict[str, Likelihood]:
        return {
            language: likelihood(anatomy.model, tokenizer, items, max_tokens=max_tokens)
            for language, items in held.items()
        }

    intact = measure()
    shape = (len(sets), len(held))
    change, low, high = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    generator = np.random.default_rng(seed)
    draws = {
        language: generator.integers(0, len(items), size=(resamples, len(items))) for language, items in held.items()
    }
    with task("damage matrix", len(sets), "sets") as measured:
        for row, (name, neurons) in enumerate(sets.items()):
            if neurons:
                with ablate(anatomy, neurons):
                    after = measure()
            else:  # a rule may find nothing: a row of zeros
                neurons.check(anatomy)
                after = intact
            measured.advance(what=name)
            for column, language in enumerate(held):
                difference = (after[language].nats - intact[language].nats) / math.log(2)
                n_bytes = intact[language].n_bytes
                change[row, column] = difference.sum() / n_bytes.sum()
                resampled = difference[draws[language]].sum(1) / n_bytes[draws[language]].sum(1)
                low[row, column], high[row, column] = np.quantile(resampled, [0.025, 0.975])
    base = np.array([intact[language].bits_per_byte for language in held])
    return DamageMatrix(tuple(sets), tuple(held), base, change, low, high)


def _tokenize(tokenizer: Any, text: str, max_tokens: int) -> tuple[list[int], int]:
    """Token ids, the first of which is only context, and the bytes of the text that the others cover."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = list(encoded["input_ids"])
    bos = tokenizer.bos_token_id
    room = max_tokens - (bos is not None)
    first = 0 if bos is not None else 1
    if len(ids) <= first:
        raise DataError(f"a text has no token to predict: {text[:40]!r}. Leave out empty texts.")
    if tokenizer.is_fast:
        spans = encoded["offset_mapping"]
        begin = spans[first - 1][1] if first else 0
        predicted = text[begin : spans[min(room, len(ids)) - 1][1]]
    elif first or len(ids) > room:  # no offsets, so the tokens are turned back into text
        predicted = tokenizer.decode(ids[first:room], clean_up_tokenization_spaces=False)
    else:
        predicted = text
    n_bytes = len(predicted.encode())
    return ([bos] if bos is not None else []) + ids[:room], max(1, n_bytes)


def _nats(model: nn.Module, rows: list[list[int]], device: torch.device) -> NDArray[np.float64]:
    width = max(len(row) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids_BT[place, : len(row)] = torch.tensor(row)
        mask_BT[place, : len(row)] = 1
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    target_BT, real_BT = ids_BT[:, 1:], mask_BT[:, 1:].bool()
    losses = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), target_BT.flatten(), reduction="none"
    )
    found = (losses.view(target_BT.shape).double() * real_BT).sum(1)
    return np.asarray(found.cpu().numpy(), dtype=np.float64)
