"""Detection: one streaming pass over each language's documents, resumable, into an atlas."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from babelscope.artifacts import digest, read_json, run_folder, update_run
from babelscope.corpora.batching import Batch, SkipCounts, batches, padding_id, prefetched, sample_documents
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.detection.atlas import FILE, Atlas
from babelscope.detection.checkpoint import Checkpoint
from babelscope.detection.processes import Processes
from babelscope.errors import ConfigError
from babelscope.impacts.kernels import KernelName, choose_kernel, compute_dtype
from babelscope.languages import get_language
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import ModelIdentity
from babelscope.models.observe import Measure, Observer
from babelscope.models.slots import resolve_slots
from babelscope.neurons.statistics import Layout, Statistics

logger = logging.getLogger(__name__)

PresetName = Literal["default", "paper", "released"]


@dataclass(frozen=True)
class Preset:
    """How impacts are measured and, by default, selected."""

    measure: Measure
    per_token: bool
    """Norm divided by sqrt(counted tokens), so that long documents don't count more; False: the norm, as the paper."""
    count_special: bool
    """BOS and the like attract the same massive activations in every language; the paper counts them."""
    slots: tuple[str, ...]
    about: str


PRESETS: dict[str, Preset] = {
    "default": Preset(
        "exact", True, False, ("q", "k", "v", "o", "ffn"), "exact impact per token, special tokens left out; contrast"
    ),
    "paper": Preset(
        "exact", False, True, ("q", "k", "v", "ffn"), "exact impact as a raw norm over all tokens; minimum"
    ),
    "released": Preset(
        "released", False, True, ("q", "k", "v", "ffn"), "the published code's scores; top k per layer, intersected"
    ),
}


@dataclass(frozen=True)
class Progress:
    """Where a run stands; passed to the progress callback after every batch."""

    language: str
    languages_done: int
    languages: int
    documents: int
    """Of this language, so far."""
    asked: int | None
    """Documents asked for per language; None: all there are."""
    tokens: int
    """Of this process, so far."""
    seconds: float
    """Since the start of this process."""


@dataclass(frozen=True)
class Plan:
    """What a detection would do: for `--dry-run`."""

    model: dict[str, Any]
    family: str
    layers: int
    units: dict[str, int]
    """Units by slot."""
    corpora: dict[str, list[str]]
    documents: int | None
    max_tokens: int
    token_budget: int
    device: str
    kernel: str
    statistics_bytes: int
    """Of all languages together, in host memory and on disk."""
    batch_bytes: int
    """Largest temporary that observing one batch adds to a plain forward pass, about."""


def detect(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    corpora: Mapping[str, Any],
    *,
    documents: int | None = None,
    max_tokens: int = 256,
    min_tokens: int = 8,
    preset: PresetName = "default",
    slots: Iterable[str] | None = None,
    folds: int = 4,
    top_shares: Iterable[float] = (0.01, 0.05, 0.1, 0.25),
    thresholds: Iterable[float] = (),
    seed: int = 0,
    field: str = "text",
    shard: tuple[int, int] = (0, 1),
    token_budget: int | None = None,
    kernel: KernelName = "auto",
    run_dir: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: bool | Callable[[Progress], None] | None = None,
) -> Atlas:
    """Scores every neuron on every document of every language, in one streaming pass.

    Under `torchrun` or `accelerate launch` each process scores its share of the documents; all return the same atlas,
    and the first one writes it. Processes that hold one model together (tensor parallel) score the same documents.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        tokenizer: of the model.
        corpora: language code -> text: a path, `-`, `hub:name:config:field`, any iterable of str, or a list of several
            `Path` or `Corpus` objects.
        documents: per language; drawn at random with the seed from files and lists, the first ones of a stream. None:
            all.
        max_tokens: documents are cut to this length.
        min_tokens: shorter documents are skipped, and counted.
        preset: `default`, `paper` or `released`; see `PRESETS`.
        slots: None: those of the preset.
        folds: parts that documents are dealt to, for stability and intervals.
        top_shares: for top-k rules: shares of a layer's units whose hits are counted.
        thresholds: for eps rules with less than full support: impacts whose exceedances are counted.
        seed: of the draw.
        field: of JSON lines and parquet.
        shard: (i, n): only every n-th document of the sample, from the i-th; merge the atlases with `|`.
        token_budget: rows x width of a batch; None: by device.
        kernel: how attention impacts are computed; `auto`: Triton on a GPU, else compiled when the work repays it.
        run_dir: folder to keep the run in; the same call resumes it after a kill. All processes of a run must see it.
        checkpoint_seconds: how much work a kill may lose.
        progress: True (a line on stderr), None (True on a terminal), or a function of `Progress`.

    Returns:
        The atlas. Resuming gives bit-equal statistics; shards merged and other batch sizes give equal documents and
        tokens, and statistics equal up to the rounding of the forward pass.

    Raises:
        DataError: a corpus is missing, empty, undecodable or all too short.
        ConfigError: settings that contradict.
        UnsupportedModelError: the model fails the self-check.
        NumericsError: an impact is NaN or infinite.
        RunFolderError: the run folder is in use, or was made with other settings.
    """
    job = _prepare(
        model,
        tokenizer,
        corpora,
        documents=documents,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        preset=preset,
        slots=slots,
        folds=folds,
        top_shares=top_shares,
        thresholds=thresholds,
        seed=seed,
        field=field,
        shard=shard,
        token_budget=token_budget,
        kernel=kernel,
    )
    report = _reporter(progress if job.processes.first else False)
    if run_dir is None:
        statistics, records = {}, {}
        with job.observer() as observer:
            for language in job.corpora:
                statistics[language], records[language] = job.run(language, observer, report, None)
        return Atlas(statistics, job.identity, job.settings, records)
    return _in_folder(job, Path(run_dir), report, checkpoint_seconds)


def plan(model: nn.Module | Anatomy, tokenizer: Any, corpora: Mapping[str, Any], **settings: Any) -> Plan:
    """What `detect` would do with these arguments, without reading a document, scoring or writing anything.

    It takes the settings of `detect` that decide the work: from `documents` to `kernel`.
    """
    job = _prepare(model, tokenizer, corpora, **settings)
    one = Statistics.empty(job.layout)
    size = sum(value.numel() * value.element_size() for value in one.tensors("x").values())
    units = {slot: sum(widths) for slot, widths in job.layout.widths.items()}
    rows = max(1, job.token_budget // job.max_tokens)
    return Plan(
        model=job.identity,
        family=job.anatomy.family,
        layers=job.anatomy.n_layers,
        units=units,
        corpora={language: [part.name for part in parts] for language, parts in job.corpora.items()},
        documents=job.documents,
        max_tokens=job.max_tokens,
        token_budget=job.token_budget,
        device=str(_device(job.anatomy.model)),
        kernel=job.kernel,
        statistics_bytes=size * len(job.corpora),
        batch_bytes=rows * sum(units.values()) * 4 * 4,
    )


@dataclass(frozen=True)
class _Job:
    """Everything that is settled before the first forward pass."""

    anatomy: Anatomy
    tokenizer: Any
    corpora: dict[str, list[Corpus]]
    layout: Layout
    slots: tuple[str, ...]
    measure: Measure
    per_token: bool
    count_special: bool
    documents: int | None
    max_tokens: int
    min_tokens: int
    seed: int
    shard: tuple[int, int]
    token_budget: int
    kernel: KernelName
    identity: dict[str, Any]
    settings: dict[str, Any]
    processes: Processes

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
            "seed": self.seed,
            "shard": list(self.shard),
            "token_budget": self.token_budget,
            "corpora": {language: [part.identity() for part in parts] for language, parts in self.corpora.items()},
        }

    def observer(self) -> Observer:
        """Observes the model for as long as its context is open."""
        return Observer(self.anatomy, slots=self.slots, kernel=self.kernel, activations=True, measure=self.measure)

    def documents_of(self, language: str) -> tuple[Generator[Batch], SkipCounts]:
        """Batches of a language, and counts that fill up while they are read."""
        parts = self.corpora[language]
        corpus = parts[0] if len(parts) == 1 else _chained(parts)
        sample, counts = sample_documents(
            corpus,
            self.tokenizer,
            documents=self.documents,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            seed=self.seed,
            shard=self.shard,
            part=self.processes.part,
            any_of=None if self.processes.part[1] == 1 else self.processes.any_of,
        )
        made = batches(
            prefetched(sample),
            token_budget=self.token_budget,
            pad_id=padding_id(self.tokenizer),
            count_special=self.count_special,
        )
        return made, counts

    def run(
        self, language: str, observer: Observer, report: Callable[[Progress], None], checkpoint: Checkpoint | None
    ) -> tuple[Statistics, list[dict[str, Any]]]:
        """Scores one language, this process's share from its checkpoint if there is one; returns that of all."""
        statistics = Statistics.empty(self.layout, compute_dtype(next(self.anatomy.model.parameters())))
        done, halved = 0, 0
        if checkpoint is not None:
            statistics, done, halved = checkpoint.load(language, statistics)
        device = _device(self.anatomy.model)
        statistics = statistics.on("cpu" if device.type == "meta" else device)
        made, counts = self.documents_of(language)
        started, tokens, order = time.monotonic(), 0, list(self.corpora)
        with closing(made):  # ends the reader, also when a batch fails
            for number, batch in enumerate(made):
                if number < done:
                    continue
                halved += self._score(batch, observer, statistics)
                tokens += int(batch.attention_mask.sum())
                report(
                    Progress(
                        language,
                        order.index(language),
                        len(order),
                        int(statistics.documents.sum()),
                        self.documents,
                        tokens,
                        time.monotonic() - started,
                    )
                )
                if checkpoint is not None:
                    checkpoint.save(language, statistics, number + 1, halved)
        logger.info("%s: %s", language, counts)
        mine = torch.tensor([counts.used, counts.cut, halved])
        used, cut, halved = self.processes.reduced(mine).tolist()
        statistics = self.processes.together(statistics.on("cpu"))
        identities = [part.identity() for part in self.corpora[language]]
        record = {
            "name": " + ".join(part.name for part in self.corpora[language]),
            "identity": "unknown" if "unknown" in identities else digest(identities),
            "shard": list(self.shard),
            "seed": self.seed,
            "asked": self.documents,
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
        return statistics, [record]

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
            statistics.add(observation, batch.counted.sum(1), batch.position, per_token=self.per_token)
            return 0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("out of memory with %d documents of %d tokens: going on with half", *batch.input_ids.shape)
        return 1 + sum(self._score(half, observer, statistics) for half in batch.halves())


def _in_folder(job: _Job, folder: Path, report: Callable[[Progress], None], seconds: float) -> Atlas:
    for parts in job.corpora.values():
        fixed = next((part.name for part in parts if not part.rewindable), None)
        if fixed:
            logger.warning("%s can be read only once: if this run is killed, it must start again", fixed)
    about = {
        "model": job.identity,
        "languages": list(job.corpora),
        "corpora_asked": {language: [part.name for part in parts] for language, parts in job.corpora.items()},
    }
    processes = job.processes
    with run_folder(folder, job.asked(), about) if processes.first else nullcontext():
        processes.wait()  # for the first to have opened the folder
        checkpoint = Checkpoint(folder, seconds, job.layout, processes)
        # What all processes see together decides: the first writes a file only after all have come that far.
        if processes.agree((folder / FILE).exists()):
            logger.info("%s is finished already; nothing to do", folder)
            atlas = Atlas.load(folder)
            processes.wait()
            if processes.first and read_json(folder / "run.json").get("status") != "done":
                _record_end(folder, atlas, checkpoint)  # killed between the atlas and the record
            return atlas
        statistics, records = {}, {}
        with ExitStack() as stack:
            observer: Observer | None = None
            for language in job.corpora:
                found = checkpoint.finished(language)
                if not processes.agree(found is not None) or found is None:
                    if observer is None:
                        observer = stack.enter_context(job.observer())
                    found = job.run(language, observer, report, checkpoint)
                    if processes.first:
                        checkpoint.finish(language, *found)
                statistics[language], records[language] = found
        atlas = Atlas(statistics, job.identity, job.settings, records)
        processes.wait()  # for the others to have read what is finished, which goes now
        if processes.first:
            atlas.save(folder)
            _record_end(folder, atlas, checkpoint)
        processes.wait()
        return atlas


def _record_end(folder: Path, atlas: Atlas, checkpoint: Checkpoint) -> None:
    update_run(folder, status="done", corpora=atlas.corpora)
    checkpoint.clear()


def _prepare(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    corpora: Mapping[str, Any],
    *,
    documents: int | None = None,
    max_tokens: int = 256,
    min_tokens: int = 8,
    preset: str = "default",
    slots: Iterable[str] | None = None,
    folds: int = 4,
    top_shares: Iterable[float] = (0.01, 0.05, 0.1, 0.25),
    thresholds: Iterable[float] = (),
    seed: int = 0,
    field: str = "text",
    shard: tuple[int, int] = (0, 1),
    token_budget: int | None = None,
    kernel: KernelName = "auto",
) -> _Job:
    if preset not in PRESETS:
        raise ConfigError(f"wanted a preset among {', '.join(PRESETS)}, found {preset!r}. Correct the name.")
    chosen = PRESETS[preset]
    if not corpora:
        raise ConfigError("no corpus given. Give one per language, for example --corpus fr=french.txt.")
    if folds < 1:
        raise ConfigError(f"wanted folds of 1 or more, found {folds}. Correct it.")
    top_shares = tuple(top_shares)
    if any(not 0 < share <= 1 for share in top_shares):
        raise ConfigError(f"wanted top shares above 0 and at most 1, found {top_shares}. Correct them.")
    wanted = resolve_slots(slots) if slots is not None else chosen.slots
    if chosen.measure == "released" and "o" in wanted:
        raise ConfigError("the published code has no score for slot o. Leave it out, or choose another preset.")
    opened: dict[str, list[Corpus]] = {}
    for language, spec in corpora.items():
        code = get_language(language).code
        if code in opened:
            raise ConfigError(f"language {code!r} was given twice. Give all its files in one list.")
        several = (
            isinstance(spec, list | tuple) and bool(spec) and all(isinstance(item, Path | Corpus) for item in spec)
        )
        opened[code] = [open_corpus(item, field=field, seed=seed) for item in (spec if several else [spec])]
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, wanted)
    longest = getattr(anatomy.config, "max_position_embeddings", None)
    if longest is not None and max_tokens > longest:
        raise ConfigError(
            f"max_tokens is {max_tokens}, but the model has {longest} positions. Lower max_tokens to {longest} or less."
        )
    vocabulary = anatomy.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}. Load the tokenizer of this model."
        )
    widths = {slot: tuple(anatomy.width(slot, layer) for layer in range(anatomy.n_layers)) for slot in wanted}
    device = _device(anatomy.model)
    settings = {
        "preset": preset,
        "measure": chosen.measure,
        "per_token": chosen.per_token,
        "count_special": chosen.count_special,
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "slots": list(wanted),
        "dtype": str(next(anatomy.model.parameters()).dtype).removeprefix("torch."),
        "family": anatomy.family,
    }
    job = _Job(
        anatomy=anatomy,
        tokenizer=tokenizer,
        corpora=opened,
        layout=Layout(widths, folds, top_shares, tuple(thresholds)),
        slots=wanted,
        measure=chosen.measure,
        per_token=chosen.per_token,
        count_special=chosen.count_special,
        documents=documents,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        seed=seed,
        shard=shard,
        token_budget=(16384 if device.type == "cuda" else 2048) if token_budget is None else token_budget,
        kernel=choose_kernel(kernel, _operations(anatomy, wanted, documents, max_tokens, len(opened))),
        identity=ModelIdentity.of(anatomy.model).as_json(),
        settings=settings,
        processes=Processes.join(one_model=anatomy.mesh is not None),
    )
    for language in opened:
        job.documents_of(language)  # reads nothing yet, but refuses settings out of range before a folder is made
    return job


def _operations(anatomy: Anatomy, slots: Iterable[str], documents: int | None, tokens: int, languages: int) -> int:
    """About how many exponentials the attention impacts of the whole job need, and a tenth of what it sums."""
    layers = range(anatomy.n_layers)
    exponentials = sum(layer.attention.n_heads * layer.attention.head_dim for layer in anatomy.layers) * tokens**2 // 2
    summed = sum(anatomy.width(slot, layer) for slot in slots for layer in layers) * tokens
    return (exponentials * len({"q", "k"} & set(slots)) + summed // 10) * languages * (documents or 1000)


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


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; the CPU allocator raises a RuntimeError that says so."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text


def _reporter(progress: bool | Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    if callable(progress):
        return progress
    if progress is None:
        progress = sys.stderr.isatty()
    return _Line() if progress else lambda _: None


class _Line:
    """A progress line per language on stderr, through tqdm (which transformers brings along)."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._language = ""

    def __call__(self, progress: Progress) -> None:
        from tqdm import tqdm

        if progress.language != self._language:
            if self._bar is not None:
                self._bar.close()
            self._language = progress.language
            self._bar = tqdm(
                total=progress.asked,
                unit="doc",
                desc=f"{progress.language} ({progress.languages_done + 1}/{progress.languages})",
            )
        self._bar.set_postfix_str(f"{progress.tokens / max(progress.seconds, 1e-9):.0f} tokens/s", refresh=False)
        self._bar.update(progress.documents - self._bar.n)
        if progress.asked is not None and progress.documents >= progress.asked:
            self._bar.close()
