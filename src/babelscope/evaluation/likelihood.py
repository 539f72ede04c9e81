"""Bits per byte by language, and what switching neurons off does to them.

Per-token perplexity can't be compared between languages or tokenizers, so everything is in bits per UTF-8 byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from babelscope.corpora.tokens import beginning, tokens_before
from babelscope.editing.edits import ablate
from babelscope.errors import ConfigError, DataError
from babelscope.lens.tokens import token_bytes
from babelscope.models.anatomy import Anatomy
from babelscope.models.interfaces import evaluation_mode, positions
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

    The tokenizer decides what is put before a text, such as BOS, as for tasks, detection and training. If it puts
    something there, every token of the text is predicted; else the first token is not, and its bytes don't count.
    A character that is cut between two tokens counts with the bytes of the predicted ones.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        texts: cut to `max_tokens`.
        max_tokens: with what the tokenizer puts before a text.
        token_budget: rows x width of a batch.

    Raises:
        ConfigError: `max_tokens` leaves no token to predict, or a text longer than the model's positions.
        DataError: no text, or a text without a token to predict.
    """
    if max_tokens < 2:
        raise ConfigError(f"wanted max_tokens of 2 or more (one for context), found {max_tokens}. Raise it.")
    rows = [_tokenize(tokenizer, text, max_tokens) for text in texts]
    if not rows:
        raise DataError("no text to measure bits per byte on. Give at least one.")
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
    longest, limit = len(rows[order[0]][0]), positions(model.config)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"a text has {longest} tokens, and the model {limit} positions: what is beyond them is no measure of it. "
            f"Lower max_tokens ({max_tokens}) to {limit} or less."
        )
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
    before = tokens_before(tokenizer)
    start = beginning(tokenizer, text, max_tokens + 1)
    encoded = tokenizer(
        start, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
    )  # fmt: skip
    ids = list(encoded["input_ids"])
    room, first = max_tokens - len(before), 0 if before else 1
    if len(ids) <= first:
        raise DataError(f"a text has no token to predict: {text[:40]!r}. Leave out empty texts.")
    if room <= first:
        raise ConfigError(
            f"wanted max_tokens above {len(before) + first}, of which none is predicted, found {max_tokens}. Raise it."
        )
    if tokenizer.is_fast:
        ends = [_bytes_by_offset(tokenizer, start, ids, encoded["offset_mapping"], n) for n in (first, room)]
    else:
        ends = [_bytes_by_decoding(tokenizer, ids, n) for n in (first, room)]
    return before + ids[:room], max(1, ends[1] - ends[0])


def _bytes_by_offset(tokenizer: Any, text: str, ids: list[int], spans: list[tuple[int, int]], count: int) -> int:
    """UTF-8 bytes of the text that the first `count` tokens cover, also where the next one shares a character."""
    if count == 0:
        return 0
    whole = len(text[: spans[min(count, len(ids)) - 1][1]].encode())
    if count >= len(ids) or spans[count][0] >= spans[count - 1][1]:
        return whole
    clean = count - 1  # the last token that begins where a character does
    while clean and spans[clean][0] < spans[clean - 1][1]:
        clean -= 1
    spelled = _spelled(tokenizer)
    known = len(text[: spans[clean - 1][1]].encode()) if clean else 0
    return min(known + sum(len(spelled[token]) for token in ids[clean:count]), whole - 1)


def _bytes_by_decoding(tokenizer: Any, ids: list[int], count: int) -> int:
    """The same for a tokenizer without offsets: bytes of what they say, and one for each that adds nothing."""

    def said(end: int) -> str:
        return str(tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)).rstrip("\ufffd")

    count = min(count, len(ids))
    silent = 0
    while silent < min(3, count) and count < len(ids) and said(count - silent - 1) == said(count):
        silent += 1
    return len(said(count).encode()) + silent


@lru_cache(maxsize=4)
def _spelled(tokenizer: Any) -> list[bytes]:
    return token_bytes(tokenizer)


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
