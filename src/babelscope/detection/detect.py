"""Detection: one streaming pass over each language's documents, resumable, into an atlas."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from babelscope.artifacts import read_json, run_folder, update_run
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.detection.atlas import FILE, Atlas
from babelscope.detection.checkpoint import Checkpoint
from babelscope.detection.job import Job, Progress, Report
from babelscope.detection.options import PRESETS, DetectOptions, PresetName
from babelscope.detection.processes import Processes
from babelscope.errors import ConfigError
from babelscope.impacts.kernels import KernelName, choose_kernel
from babelscope.languages import get_language
from babelscope.models.anatomy import Anatomy
from babelscope.models.interfaces import positions
from babelscope.models.load import ModelIdentity
from babelscope.models.observe import Observer
from babelscope.models.slots import resolve_slots
from babelscope.neurons.statistics import Layout, Statistics
from babelscope.progress import Lines, is_shown, shown, task

logger = logging.getLogger(__name__)

__all__ = ["PRESETS", "Plan", "Progress", "detect", "plan"]


@dataclass(frozen=True)
class Plan:
    """What a detection would do: for `--dry-run`."""

    model: dict[str, Any]
    family: str
    layers: int
    units: dict[str, int]
    """Units by slot."""
    corpora: dict[str, list[str]]
    documents: int | dict[str, int | None] | None
    """Asked for: per language, or by language where the numbers differ; None: all there are."""
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
    documents: int | Mapping[str, int] | None = 1000,
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
        documents: per language, or language -> number; drawn at random with the seed from files and lists, the first
            ones of a stream. None: all.
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
        progress: True (lines on stderr), None (True on a terminal where nothing else shows `babelscope.progress`), or a
            function of `Progress`.

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
    options = DetectOptions(
        documents=dict(documents) if isinstance(documents, Mapping) else documents,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        preset=preset,
        slots=_several(slots),
        folds=folds,
        top_shares=tuple(top_shares),
        thresholds=tuple(thresholds),
        seed=seed,
        field=field,
        shard=shard,
        token_budget=token_budget,
        kernel=kernel,
    )
    job = _prepare(model, tokenizer, corpora, options)
    lines = progress is True or (progress is None and sys.stderr.isatty() and not is_shown())
    report: Report = progress if callable(progress) and job.processes.first else _say_nothing
    with ExitStack() as stack:
        if lines and job.processes.first:
            stack.enter_context(shown(Lines()))
        stack.enter_context(task("detection"))
        if run_dir is not None:
            return _in_folder(job, Path(run_dir), report, checkpoint_seconds)
        statistics, records = {}, {}
        observer = stack.enter_context(job.observer())
        for language in job.corpora:
            statistics[language], records[language] = job.run(language, observer, report, None)
        return Atlas(statistics, job.identity, job.settings, records)


def _say_nothing(progress: Progress) -> None:
    """Where nobody asked for the progress."""


def _several(slots: Iterable[str] | None) -> tuple[str, ...] | None:
    """Names of slots; one may stand alone."""
    return None if slots is None else (slots,) if isinstance(slots, str) else tuple(slots)


def plan(model: nn.Module | Anatomy, tokenizer: Any, corpora: Mapping[str, Any], **settings: Any) -> Plan:
    """What `detect` would do with these arguments, without reading a document, scoring or writing anything.

    It takes the settings of `detect` that decide the work, those of `DetectOptions`, with the same defaults.
    """
    if "slots" in settings:
        settings["slots"] = _several(settings["slots"])
    job = _prepare(model, tokenizer, corpora, DetectOptions.of(settings))
    one = Statistics.empty(job.layout)
    size = sum(value.numel() * value.element_size() for value in one.tensors("x").values())
    units = {slot: sum(widths) for slot, widths in job.layout.widths.items()}
    rows = max(1, job.token_budget // job.options.max_tokens)
    return Plan(
        model=job.identity,
        family=job.anatomy.family,
        layers=job.anatomy.n_layers,
        units=units,
        corpora={language: [part.name for part in parts] for language, parts in job.corpora.items()},
        documents=job.documents,
        max_tokens=job.options.max_tokens,
        token_budget=job.token_budget,
        device=str(job.device),
        kernel=job.kernel,
        statistics_bytes=size * len(job.corpora),
        batch_bytes=rows * sum(units.values()) * 4 * 4,
    )


def _in_folder(job: Job, folder: Path, report: Report, seconds: float) -> Atlas:
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


def _prepare(model: nn.Module | Anatomy, tokenizer: Any, corpora: Mapping[str, Any], options: DetectOptions) -> Job:
    """Everything that can be wrong is found here, before a folder is made or a document is read."""
    preset = PRESETS[options.preset]
    slots = resolve_slots(options.slots) if options.slots is not None else preset.slots
    if preset.measure == "released" and "o" in slots:
        raise ConfigError("the published code has no score for slot o. Leave it out, or choose another preset.")
    opened = _opened(corpora, options)
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, slots)
    _check_lengths(anatomy, tokenizer, options)
    widths = {slot: tuple(anatomy.width(slot, layer) for layer in range(anatomy.n_layers)) for slot in slots}
    weight = next(anatomy.model.parameters())
    usual_budget = 16384 if weight.device.type == "cuda" else 2048
    documents = sum(options.documents_of(language) or 1000 for language in opened)
    job = Job(
        anatomy=anatomy,
        tokenizer=tokenizer,
        corpora=opened,
        options=options,
        layout=Layout(widths, options.folds, options.top_shares, options.thresholds),
        slots=slots,
        token_budget=usual_budget if options.token_budget is None else options.token_budget,
        kernel=choose_kernel(options.kernel, _operations(anatomy, slots, documents, options.max_tokens)),
        identity=ModelIdentity.of(anatomy.model).as_json(),
        settings={
            "preset": options.preset,
            "measure": preset.measure,
            "per_token": preset.per_token,
            "count_special": preset.count_special,
            "max_tokens": options.max_tokens,
            "min_tokens": options.min_tokens,
            "slots": list(slots),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "family": anatomy.family,
        },
        processes=Processes.join(one_model=anatomy.mesh is not None),
    )
    for language in opened:
        job.read(language)  # reads nothing yet, but refuses settings out of range before a folder is made
    return job


def _opened(corpora: Mapping[str, Any], options: DetectOptions) -> dict[str, list[Corpus]]:
    """The corpora of each language, by its code."""
    if not corpora:
        raise ConfigError("no corpus given. Give one per language, for example --corpus fr=french.txt.")
    opened: dict[str, list[Corpus]] = {}
    for language, source in corpora.items():
        code = get_language(language).code
        if code in opened:
            raise ConfigError(f"language {code!r} was given twice. Give all its files in one list.")
        several = isinstance(source, list | tuple) and source and all(isinstance(it, Path | Corpus) for it in source)
        parts = source if several else [source]
        opened[code] = [open_corpus(part, field=options.field, seed=options.seed) for part in parts]
    return opened


def _check_lengths(anatomy: Anatomy, tokenizer: Any, options: DetectOptions) -> None:
    """Refuses documents that are longer than the model reads, and a tokenizer with more tokens than the model has."""
    longest = positions(anatomy.config)
    if longest is not None and options.max_tokens > longest:
        raise ConfigError(
            f"max_tokens is {options.max_tokens}, but the model has {longest} positions. Lower max_tokens to {longest} "
            "or less."
        )
    vocabulary = anatomy.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}. Load the tokenizer of this model."
        )


def _operations(anatomy: Anatomy, slots: Iterable[str], documents: int, tokens: int) -> int:
    """About how many exponentials the attention impacts of all documents need, and a tenth of what they sum."""
    layers = range(anatomy.n_layers)
    exponentials = sum(layer.attention.n_heads * layer.attention.head_dim for layer in anatomy.layers) * tokens**2 // 2
    summed = sum(anatomy.width(slot, layer) for slot in slots for layer in layers) * tokens
    return (exponentials * len({"q", "k"} & set(slots)) + summed // 10) * documents
