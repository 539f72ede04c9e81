"""One detection that is settled: its model, corpora and settings, and the scoring of one language."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from babelscope.artifacts import digest
from babelscope.corpora.batching import Batch, SkipCounts, batches, padding_id, prefetched, sample_documents
from babelscope.corpora.sources import Corpus
from babelscope.detection.checkpoint import Checkpoint
from babelscope.detection.options import PRESETS, DetectOptions, Preset
from babelscope.detection.processes import Processes
from babelscope.errors import ConfigError
from babelscope.impacts.kernels import KernelName, compute_dtype
from babelscope.models.anatomy import Anatomy
from babelscope.models.observe import Observer
from babelscope.neurons.statistics import Layout, Statistics
from babelscope.progress import task

logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Progress:
    """Where a run stands; passed to the progress callback after every batch."""

    language: str
    languages_done: int
    languages: int
    documents: int
    """Of this language, so far."""
    asked: int | None
    """Documents asked for in this language; None: all there are."""
    tokens: int
    """Of this process, so far."""
    seconds: float
    """Since the start of this process."""


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Job:
    """Everything that is settled before the first forward pass."""

    anatomy: Anatomy
    tokenizer: Any
    corpora: dict[str, list[Corpus]]
    options: DetectOptions
    layout: Layout
    slots: tuple[str, ...]
    token_budget: int
    kernel: KernelName
    identity: dict[str, Any]
    settings: dict[str, Any]
    processes: Processes

    @property
    def preset(self) -> Preset:
        """How impacts are measured."""
        return PRESETS[self.options.preset]

    @property
    def device(self) -> torch.device:
        """The device of the model's first weights."""
        return next(self.anatomy.model.parameters()).device

    @property
    def documents(self) -> int | dict[str, int | None] | None:
        """Documents asked for: per language, or by language where the numbers differ."""
        documents = self.options.documents
        if not isinstance(documents, dict):
            return documents
        return {language: self.options.documents_of(language) for language in self.corpora}

    def asked(self) -> dict[str, Any]:
        """What decides the numbers of a run folder; compared when it is resumed."""
        return {
            "command": "detect",
            "model": self.identity["fingerprint"],
            "tokenizer": digest(self.tokenizer.get_vocab()),
            "settings": self.settings,
            "folds": self.layout.folds,
            "top_shares": list(self.layout.top_shares),
            "thresholds": list(self.layout.thresholds),
            "documents": self.documents,
            "seed": self.options.seed,
            "shard": list(self.options.shard),
            "token_budget": self.token_budget,
            "corpora": {language: [part.identity() for part in parts] for language, parts in self.corpora.items()},
        }

    def observer(self) -> Observer:
        """Observes the model for as long as its context is open."""
        measure = self.preset.measure
        return Observer(self.anatomy, slots=self.slots, kernel=self.kernel, activations=True, measure=measure)

    def read(self, language: str) -> tuple[Generator[Batch], SkipCounts]:
        """Batches of a language, and counts that fill up while they are read."""
        parts, options = self.corpora[language], self.options
        corpus = parts[0] if len(parts) == 1 else _chained(parts)
        sample, counts = sample_documents(
            corpus,
            self.tokenizer,
            documents=options.documents_of(language),
            max_tokens=options.max_tokens,
            min_tokens=options.min_tokens,
            seed=options.seed,
            shard=options.shard,
            part=self.processes.part,
            any_of=None if self.processes.part[1] == 1 else self.processes.any_of,
        )
        made = batches(
            prefetched(sample),
            token_budget=self.token_budget,
            pad_id=padding_id(self.tokenizer),
            count_special=self.preset.count_special,
        )
        return made, counts

    def run(
        self, language: str, observer: Observer, report: Report, checkpoint: Checkpoint | None
    ) -> tuple[Statistics, Records]:
        """Scores one language, this process's share from its checkpoint if there is one; returns that of all."""
        statistics = Statistics.empty(self.layout, compute_dtype(next(self.anatomy.model.parameters())))
        done, halved = 0, 0
        if checkpoint is not None:
            statistics, done, halved = checkpoint.load(language, statistics)
        statistics = statistics.on("cpu" if self.device.type == "meta" else self.device)
        made, counts = self.read(language)
        started, tokens, order = time.monotonic(), 0, list(self.corpora)
        number_of, asked = order.index(language), self.options.documents_of(language)
        total = None if asked is None else asked / (self.options.shard[1] * self.processes.part[1])
        # `closing` ends the reader, also when a batch fails.
        with closing(made), task(f"{language} ({number_of + 1}/{len(order)})", total, "documents") as shown:
            for number, batch in enumerate(made):
                if number < done:
                    continue
                halved += self._score(batch, observer, statistics)
                tokens += int(batch.attention_mask.sum())
                documents, seconds = int(statistics.documents.sum()), time.monotonic() - started
                shown.reach(documents, f"{tokens / max(seconds, 1e-9):.0f} tokens/s")
                report(Progress(language, number_of, len(order), documents, asked, tokens, seconds))
                if checkpoint is not None:
                    checkpoint.save(language, statistics, number + 1, halved)
        logger.info("%s: %s", language, counts)
        mine = torch.tensor([counts.used, counts.cut, halved])
        used, cut, halved = self.processes.reduced(mine).tolist()
        statistics = self.processes.together(statistics.on("cpu"))
        return statistics, [self._record(language, statistics, counts, used, cut, halved)]

    def _record(
        self, language: str, statistics: Statistics, counts: SkipCounts, used: int, cut: int, halved: int
    ) -> dict[str, Any]:
        """What was read of a language, by all processes together."""
        parts = self.corpora[language]
        identities = [part.identity() for part in parts]
        return {
            "name": " + ".join(part.name for part in parts),
            "identity": "unknown" if "unknown" in identities else digest(identities),
            "shard": list(self.options.shard),
            "seed": self.options.seed,
            "asked": self.options.documents_of(language),
            "documents": int(statistics.documents.sum()),
            "tokens": int(statistics.tokens.sum()),
            "skipped": {
                "seen": counts.seen,
                "empty": counts.empty,
                "too_short": counts.too_short,
                "not_sampled": counts.not_sampled,
                "other_shards": counts.sampled - used,
                "cut": cut,
            },
            "batches_halved": halved,
        }

    def _score(self, batch: Batch, observer: Observer, statistics: Statistics) -> int:
        """Scores a batch; halves it as often as memory asks. Returns how often."""
        try:
            observation = observer.run(batch.input_ids, batch.attention_mask, batch.counted)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if self.processes.one_model:
                raise ConfigError(
                    f"out of memory with {len(batch)} documents of {batch.input_ids.shape[1]} tokens, on one of the "
                    "processes that hold the model together, which can't halve the batch by itself. Lower "
                    "token_budget (--token-budget) and start again in another run folder."
                ) from error
            if len(batch) == 1:
                raise ConfigError(
                    f"a single document of {batch.input_ids.shape[1]} tokens does not fit in memory. "
                    "Lower max_tokens (--max-tokens), or load the model in a smaller dtype."
                ) from error
        else:
            statistics.add(observation, batch.counted.sum(1), batch.position, per_token=self.preset.per_token)
            return 0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("out of memory with %d documents of %d tokens: going on with half", *batch.input_ids.shape)
        return 1 + sum(self._score(half, observer, statistics) for half in batch.halves())


def _chained(parts: list[Corpus]) -> Corpus:
    def texts() -> Iterator[object]:
        for part in parts:
            for document in part:
                yield document.text

    return replace(
        parts[0],
        name=" + ".join(part.name for part in parts),
        rewindable=all(part.rewindable for part in parts),
        bounded=all(part.bounded for part in parts),
        texts=texts,
        content=lambda: digest([part.identity() for part in parts]),
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; the CPU allocator raises a RuntimeError that says so."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text
