"""From documents to batches: sampling, tokenising, cutting, sharding and bucketing by length.

Tensor names carry their axes: `B` documents of a batch, `T` tokens.
"""

import hashlib
import heapq
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from babelscope.corpora.sources import Corpus
from babelscope.corpora.tokens import TokenizedDocument, document_tokenizer
from babelscope.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

WINDOW = 2048
"""Documents that are sorted by length together, and the most that are tokenised ahead."""

_BLOCK = 256
"""Documents after which processes tell each other which of them are long enough."""

_PATIENCE = 1.0
"""Seconds to wait for a reader to end that may itself wait for input."""


@dataclass(eq=False, slots=True)
class SkipCounts:
    """What became of every document: `seen == used + skipped`. Complete when the documents have all been taken."""

    min_tokens: int
    max_tokens: int
    asked: int | None = None
    """Documents asked for; None for all."""
    seen: int = 0
    """Documents read from the corpus."""
    used: int = 0
    """Documents of the sample that this shard, and in it this process, holds."""
    empty: int = 0
    """Nothing but white space."""
    too_short: int = 0
    """Fewer than `min_tokens` tokens, special ones not counted."""
    not_sampled: int = 0
    """Not drawn; some of them would have been too short, which nobody had to find out."""
    other_shards: int = 0
    """In the sample, but another shard's or process's."""
    cut: int = 0
    """Of the used: cut to `max_tokens`."""

    @property
    def sampled(self) -> int:
        """Documents of the sample, of all shards."""
        return self.used + self.other_shards

    @property
    def skipped(self) -> int:
        """Documents seen and not used by this shard."""
        return self.empty + self.too_short + self.not_sampled + self.other_shards

    def __str__(self) -> str:
        reasons = (
            (self.empty, "empty"),
            (self.too_short, f"too short (under {self.min_tokens} tokens)"),
            (self.not_sampled, "not sampled"),
            (self.other_shards, "left to other shards"),
        )
        asked = f" ({self.asked} asked for)" if self.asked is not None and self.sampled < self.asked else ""
        parts = [f"{self.used} of {self.seen} documents used{asked}"]
        parts += [f"{count} {reason}" for count, reason in reasons if count]
        parts += [f"{self.cut} of the used cut to {self.max_tokens} tokens"] if self.cut else []
        return ", ".join(parts)


def sample_documents(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    documents: int | None,
    max_tokens: int,
    min_tokens: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    part: tuple[int, int] = (0, 1),
    any_of: "Callable[[NDArray[np.bool_]], NDArray[np.bool_]] | None" = None,
) -> tuple[Iterator[TokenizedDocument], SkipCounts]:
    """Draw documents, tokenise and cut them.

    A document is eligible if it isn't empty and keeps at least `min_tokens` tokens after cutting, not counting special
    ones.

    - `documents=None`: every eligible document, streamed, in constant memory.
    - `documents=N` of a bounded corpus: N eligible documents, uniformly without replacement, in one pass. Each document
      has a priority that only `seed` and its index decide, and the N lowest are kept, so that no order of reading and
      no sharding changes the sample. Holds the tokens of N documents: 5 bytes per token.
    - `documents=N` of an unbounded one (Hub stream, iterator): the first N eligible, streamed. A Hub stream arrives
      shuffled by the seed given to `open_corpus`.

    Args:
        corpus: from `open_corpus`.
        tokenizer: a Hugging Face tokenizer.
        documents: how many, over all shards; None for all.
        max_tokens: length that documents are cut to, special tokens included.
        min_tokens: shortest document in use, in tokens that aren't special.
        seed: of the draw.
        shard: (i, n): of the sample, in the order of the corpus, take the documents at positions i, i + n, i + 2n, ...
            The n shards together are the sample.
        part: (i, n): n processes read the corpus together; this one tokenises, and passes on, the i-th part of it. The
            n parts together are the shard, each document at the position it would have in one process.
        any_of: with several parts: tells each process which flags are up in some process; all must call it alike.

    Returns:
        The documents in the order of the corpus, read lazily, and counts that are filled in as they are read.

    Raises:
        ConfigError: settings out of range, at once.
        DataError: no eligible document in the whole corpus, once it has been read.
    """
    added = tokenizer.num_special_tokens_to_add()
    if documents is not None and documents < 1:
        raise ConfigError(f"documents must be at least 1, found {documents}; leave it out (None) to use all")
    if min_tokens < 1:
        raise ConfigError(f"min_tokens must be at least 1, found {min_tokens}; a document without tokens has no impact")
    if min_tokens > max_tokens - added:
        raise ConfigError(
            f"no document can have min_tokens={min_tokens}: they are cut to max_tokens={max_tokens}, {added} of which "
            f"are special; lower min_tokens, or raise max_tokens to at least {min_tokens + added}"
        )
    if not 0 <= shard[0] < shard[1]:
        raise ConfigError(f"shard must be (i, n) with 0 <= i < n, found {shard}; the first of four is (0, 4)")
    counts = SkipCounts(min_tokens, max_tokens, documents)

    def mine(index: int) -> bool:
        # Of neighbours that go to different shards, not of one shard's alone: those may be every n-th document.
        return index // shard[1] % part[1] == part[0]

    reader = _Reader(corpus, document_tokenizer(tokenizer, max_tokens), counts, mine, any_of)
    if documents is not None and corpus.bounded:
        sample = _lowest_priorities(reader, documents, seed)
    else:
        sample = itertools.islice(reader.eligible(), documents)
    return _deal(sample, corpus, counts, shard), counts


@dataclass(frozen=True)
class _Reader:
    """Reads a corpus, and tokenises those of its documents that are this process's."""

    corpus: Corpus
    tokenize: Callable[[int, str], TokenizedDocument]
    counts: SkipCounts
    mine: Callable[[int], bool]
    any_of: "Callable[[NDArray[np.bool_]], NDArray[np.bool_]] | None"

    def eligible(
        self, wanted: Callable[[int], bool] = lambda index: True
    ) -> Iterator[tuple[int, TokenizedDocument | None]]:
        """Index and tokens (None: another process has them) of the eligible documents among the wanted ones.

        All others are counted. Unwanted documents aren't tokenised.
        """
        import numpy as np

        documents, counts = iter(self.corpus), self.counts
        while block := list(itertools.islice(documents, 1 if self.any_of is None else _BLOCK)):
            tried = {each.index: each.text for each in block if each.text.strip() and wanted(each.index)}
            held = {index: self.tokenize(index, text) for index, text in tried.items() if self.mine(index)}
            enough = {index for index, each in held.items() if int((~each.special).sum()) >= counts.min_tokens}
            if self.any_of is not None and tried:
                flags = self.any_of(np.array([index in enough for index in tried]))
                enough = set(itertools.compress(tried, flags))
            for document in block:
                index = document.index
                counts.seen += 1
                if not document.text.strip():
                    counts.empty += 1
                elif index not in tried or not wanted(index):  # by now, after those before it in the block
                    counts.not_sampled += 1
                elif index not in enough:
                    counts.too_short += 1
                else:
                    yield index, held.get(index)


def _lowest_priorities(reader: _Reader, documents: int, seed: int) -> Iterator[tuple[int, TokenizedDocument | None]]:
    heap: list[tuple[int, int, TokenizedDocument | None]] = []  # the worst on top: (-priority, index, tokens)

    def beats_the_worst(index: int) -> bool:
        return len(heap) < documents or _priority(seed, index) < -heap[0][0]

    for index, document in reader.eligible(beats_the_worst):
        entry = (-_priority(seed, index), index, document)
        if len(heap) < documents:
            heapq.heappush(heap, entry)
        else:
            heapq.heapreplace(heap, entry)
            reader.counts.not_sampled += 1
    yield from ((index, document) for _, index, document in sorted(heap, key=lambda entry: entry[1]))


def _priority(seed: int, index: int) -> int:
    """128 random bits that only the seed and the index decide, on every machine and in every version of Python."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=16).digest())


def _deal(
    sample: Iterable[tuple[int, TokenizedDocument | None]], corpus: Corpus, counts: SkipCounts, shard: tuple[int, int]
) -> Iterator[TokenizedDocument]:
    """Numbers the documents of the sample and passes on the shard's that this process has."""
    for position, (_, document) in enumerate(sample):
        if document is not None and position % shard[1] == shard[0]:
            counts.used += 1
            counts.cut += document.cut
            yield replace(document, position=position)
        else:
            counts.other_shards += 1
    if not counts.sampled:
        raise DataError(f"no usable document in {corpus.name}: {counts}; lower min_tokens, or give longer documents")
    if counts.asked is not None and counts.sampled < counts.asked:
        logger.warning("%s has fewer documents than asked for: %s", corpus.name, counts)


# Batches


def prefetched(source: Iterator[Item], ahead: int = WINDOW) -> Generator[Item]:
    """The same items in the same order, taken from `source` in a thread, up to `ahead` before they are asked for.

    An error of the source comes when all items before it have been taken. The thread starts with the first item that is
    asked for; it ends with the source, or soon after this iterator is closed or dropped, and closes the source.
    """
    waiting: queue.Queue[tuple[list[Item], BaseException | None]] = queue.Queue(ahead)
    stopped = threading.Event()

    def read() -> None:
        error: BaseException | None = None
        try:
            for item in source:
                waiting.put(([item], None))
                if stopped.is_set():
                    return
        except BaseException as raised:
            error = raised
        finally:
            if isinstance(source, Generator):
                source.close()
        waiting.put(([], error))

    thread = threading.Thread(target=read, name="babelscope reader", daemon=True)
    thread.start()
    try:
        while True:
            items, error = waiting.get()
            yield from items
            if error is not None:
                raise error
            if not items:
                return
    finally:
        stopped.set()
        with suppress(queue.Empty):  # room for the item that the reader may be holding
            while True:
                waiting.get_nowait()
        thread.join(_PATIENCE)


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Documents of similar length, padded on the right, longest first. All tensors are on the CPU."""

    input_ids: "Tensor"
    """[B, T] int64"""
    attention_mask: "Tensor"
    """[B, T] int64, 1 at tokens, 0 at padding"""
    counted: "Tensor"
    """[B, T] bool, the tokens that enter statistics: no padding and, unless asked for, no special tokens"""
    document_index: "Tensor"
    """[B] int64, place in the corpus"""
    position: "Tensor"
    """[B] int64, place among the sampled documents of the whole corpus; `position % folds` deals them into folds"""
    n_bytes: "Tensor"
    """[B] int64, UTF-8 bytes of the text that the tokens cover"""

    def __len__(self) -> int:
        return len(self.input_ids)

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two batches of half the documents, each no wider than its longest, for when the whole runs out of memory.

        Raises:
            ValueError: a batch of one document.
        """
        if len(self) < 2:
            raise ValueError("a batch of one document can't be halved")
        half = (len(self) + 1) // 2
        return self._rows(slice(None, half)), self._rows(slice(half, None))

    def _rows(self, rows: slice) -> "Batch":
        width = int(self.attention_mask[rows].sum(dim=1).max())
        return Batch(
            input_ids=self.input_ids[rows, :width],
            attention_mask=self.attention_mask[rows, :width],
            counted=self.counted[rows, :width],
            document_index=self.document_index[rows],
            position=self.position[rows],
            n_bytes=self.n_bytes[rows],
        )


def batches(
    documents: Iterable[TokenizedDocument],
    *,
    token_budget: int,
    window: int = WINDOW,
    pad_id: int = 0,
    max_batch: int | None = None,
    count_special: bool = False,
) -> Generator[Batch]:
    """Group documents of similar length.

    Within a window of documents they are sorted by length, longest first (so that a batch that doesn't fit in memory
    shows early), ties in the order of the corpus. The same documents and arguments give the same batches: a run that
    resumes skips as many as it has done.

    Args:
        documents: read a window at a time.
        token_budget: bound of rows times width, padding included. A document longer than that is a batch of its own.
        window: documents that are sorted together.
        pad_id: fills what the attention mask hides; see `padding_id`.
        max_batch: bound of rows; None for none.
        count_special: count special tokens in statistics too, as the paper does.

    Raises:
        ConfigError: a setting under 1.
    """
    for name, value in (("token_budget", token_budget), ("window", window), ("max_batch", max_batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, found {value}")
    return _batches(iter(documents), token_budget, window, pad_id, max_batch or window, count_special)


def _batches(
    documents: Iterator[TokenizedDocument],
    token_budget: int,
    window: int,
    pad_id: int,
    max_batch: int,
    count_special: bool,
) -> Generator[Batch]:
    while bucket := list(itertools.islice(documents, window)):
        bucket.sort(key=lambda document: -len(document.ids))
        start = 0
        while start < len(bucket):
            rows = min(max(1, token_budget // len(bucket[start].ids)), max_batch)
            yield _collate(bucket[start : start + rows], pad_id, count_special)
            start += rows


def _collate(documents: list[TokenizedDocument], pad_id: int, count_special: bool) -> Batch:
    import torch

    shape = (len(documents), max(len(document.ids) for document in documents))
    ids_BT = torch.full(shape, pad_id, dtype=torch.int64)
    mask_BT = torch.zeros(shape, dtype=torch.int64)
    counted_BT = torch.zeros(shape, dtype=torch.bool)
    for row, document in enumerate(documents):
        length = len(document.ids)
        ids_BT[row, :length] = torch.from_numpy(document.ids)
        mask_BT[row, :length] = 1
        counted_BT[row, :length] = True if count_special else torch.from_numpy(~document.special)
    return Batch(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        counted=counted_BT,
        document_index=torch.tensor([document.index for document in documents]),
        position=torch.tensor([document.position for document in documents]),
        n_bytes=torch.tensor([document.n_bytes for document in documents]),
    )


def padding_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """An id to pad with: the tokenizer's own, else its EOS, else 0. Padding is masked, so any valid id does."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
