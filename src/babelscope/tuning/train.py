"""The recipe: a few hundred documents of one language, packed, through the transformers Trainer."""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from babelscope.artifacts import digest, read_json, update_run, write_json
from babelscope.corpora.batching import padding_id, sample_documents
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.errors import ConfigError, DataError, MissingDependencyError, NumericsError
from babelscope.evaluation.likelihood import likelihood
from babelscope.models.load import ModelIdentity
from babelscope.neurons.neuronset import NeuronSet
from babelscope.progress import task
from babelscope.tuning.launch import shared_folder

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.getLogger(__name__)

ADAPTER, MODEL, MERGED, HISTORY, CHECKPOINTS = "adapter", "model", "merged", "history.json", "checkpoints"
"""Names in a run folder: what was trained (an adapter, or a whole model), the loss curve, and what resuming needs."""

HALVINGS = 6
"""Of the interval in which the share of the changes is looked for: it is found to a 64th."""

_UNCUT = 2**31 - 1
"""A length that no document has: whole documents are packed."""


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults suit chosen neurons and a few hundred documents."""

    documents: int | None = 400
    """Of the corpus, drawn at random; None for all."""
    max_tokens: int = 256
    """Length of a block; documents are laid end to end and cut into blocks."""
    batch_size: int = 8
    """Blocks per step, over all processes."""
    epochs: float = 3.0
    learning_rate: float | None = None
    """At the top of the curve; None: 1e-3 for neurons and adapters, 1e-4 for a whole model."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises; then it falls along a cosine."""
    evaluations: int = 10
    """Over the whole training, evenly."""
    patience: int = 3
    """Evaluations without a better result on the target's held-out texts, after which training stops."""
    held_out_documents: int = 40
    """Held-out texts per language, the first ones of each source."""
    keep_share: float = 1.0
    """Blocks of the languages to keep, of each as many, for one of the target; other ones in each epoch."""
    others_at_most: float | None = None
    """Percent by which the bits per byte of any other language's held-out texts may get worse: where they did more, all
    changes are scaled down together, until they do not. None: no limit."""
    seed: int = 0
    """Of the draw of documents and of the order of blocks."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        least = {"max_tokens": 2, "batch_size": 1, "evaluations": 1, "patience": 1, "held_out_documents": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"wanted {name} of {low} or more, found {getattr(self, name)}. Raise it.")
        rate = 1.0 if self.learning_rate is None else self.learning_rate
        if self.others_at_most is not None and not self.others_at_most > 0:
            raise ConfigError(f"wanted others_at_most above 0 percent, found {self.others_at_most}. Raise it.")
        if not (min(self.epochs, self.keep_share, rate) > 0 and 0 <= self.warmup < 1):
            raise ConfigError(
                "wanted epochs, keep_share and learning_rate above 0 and warmup from 0 to below 1, found "
                f"{self.epochs}, {self.keep_share}, {self.learning_rate} and {self.warmup}. Correct them."
            )

    def kept(self, blocks: int) -> int:
        """Blocks of the languages to keep, in each epoch, for so many of the target."""
        return max(1, round(blocks * self.keep_share))


@dataclass(frozen=True)
class TuneResult:
    """A tuned model, and how it came about. The model is the best one seen, by the target's held-out texts."""

    model: Any = field(repr=False)
    """With the adapter attached (a `peft.PeftModel`); the model itself when all its weights were trained. Under FSDP
    spread over the processes."""
    language: str
    """The target."""
    before: Mapping[str, float]
    """Bits per byte of held-out texts, by language."""
    after: Mapping[str, float]
    history: Mapping[str, list[dict[str, Any]]] = field(repr=False)
    """`steps`: step, epoch, loss (nats per token), learning_rate, gradient_norm. `evaluations`: step, bits_per_byte."""
    best_step: int
    """The step that `model` and `after` are of."""
    share: float
    """Of the changes up to that step that `model` has: below 1 where `others_at_most` asked for less."""
    parameters: int
    """Numbers that were trained."""

    def merge(self) -> Any:
        """The plain model with the changes in its weights; nothing of the adapter is left, also in `self.model`.

        Raises:
            UnsupportedModelError: the weights are quantised, or spread over processes (FSDP).
        """
        return self.model.merge_and_unload() if hasattr(self.model, "merge_and_unload") else self.model


def tune(
    model: nn.Module,
    tokenizer: Any,
    neurons: NeuronSet | PeftConfig | None,
    corpus: str | os.PathLike[str] | Iterable[str] | Corpus,
    *,
    language: str | None = None,
    held_out: Mapping[str, Any] | None = None,
    keep: Mapping[str, Any] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    force: bool = False,
    **recipe: Any,
) -> TuneResult:
    """Trains chosen neurons on documents of one language.

    Args:
        model: a causal language model of transformers; changed in place (`result.model` is it, with the adapter).
        tokenizer: of the model.
        neurons: what to train: a set of neurons; for comparison any configuration of PEFT, or None for all weights.
        corpus: what `open_corpus` takes: texts, a path, `hub:...`.
        language: of the corpus; None: the one that the set was detected for.
        held_out: language -> texts to measure bits per byte on, never trained on. Without texts of the target, the
            last tenth of its documents is held out.
        keep: language -> texts of other languages, which are not to get worse. Blocks of them are mixed in and
            trained on like those of the target (replay; docs/decisions/0021).
        run_dir: a folder for checkpoints, the adapter and the loss curve; the same call resumes it. Checkpoints hold
            torch files (optimiser, schedule, random states), which the Trainer reads with weights_only=True.
        force: accept a set of another model with the same shapes.
        **recipe: fields of `Recipe`.

    Returns:
        The best model by the target's held-out texts, and the history.

    Under `accelerate launch` or `torchrun` the processes share each batch; they need one run folder. With `--use_fsdp
    --fsdp_version 2` the model, which should come on the CPU, is sharded over the GPUs; the adapter's file is whole,
    and the same call in one process, which finds the run finished, puts it on a whole model, to be merged.

    Raises:
        ConfigError: settings out of range, a set without neurons, several processes without a run folder, or a launch
            under which nothing can be trained: FSDP version 1 or without GPUs, DeepSpeed, Megatron-LM.
        DataError: no usable document, or too few to hold any out.
        ProvenanceError: the set belongs to another model.
        NumericsError: the loss is not finite; says at which step, and the state before it is in the run folder.
        MissingDependencyError: peft or accelerate is missing.
    """
    unknown = sorted(set(recipe) - set(Recipe.__dataclass_fields__))
    if unknown:
        raise ConfigError(f"unknown settings {unknown}; wanted some of {', '.join(Recipe.__dataclass_fields__)}.")
    plan = Recipe(**recipe)
    _need_packages()
    target = language or (str(neurons.provenance.get("language") or "") if isinstance(neurons, NeuronSet) else "")
    target = target or "target"
    source = open_corpus(corpus)
    sources = {name: open_corpus(each) for name, each in (held_out or {}).items()}
    others = {name: open_corpus(each) for name, each in (keep or {}).items()}
    if target in others:
        raise ConfigError(f"{target} is to be trained, so it can't be kept as it is. Leave it out of keep.")
    if plan.others_at_most is not None and not set(sources) - {target}:
        raise ConfigError("others_at_most goes by held-out texts of other languages, found none. Give them (held_out).")
    asked = {
        "command": "tune",
        "model": ModelIdentity.of(model).fingerprint,
        "tokenizer": digest(tokenizer.get_vocab()),
        "trained": _trained(neurons),
        "language": target,
        "corpus": source.identity(),
        "held_out": {name: each.identity() for name, each in sources.items()},
        "keep": {name: each.identity() for name, each in others.items()},
        "recipe": {name: getattr(plan, name) for name in Recipe.__dataclass_fields__},
    }
    texts, tests = training_texts(source, sources, target, tokenizer, plan)
    with shared_folder(run_dir, asked, {"corpus_asked": source.name}) as folder:
        if run_dir is not None and (folder / HISTORY).exists():
            logger.info("%s is finished already; nothing to do", folder)
            return _finished(folder, model, target)
        blocks = pack(tokenizer, texts, plan.max_tokens)
        kept = _kept(others, tests, tokenizer, plan, len(blocks)) if others else []
        return _train(model, tokenizer, neurons, blocks, kept, tests, target, plan, folder, run_dir is not None, force)


def pack(tokenizer: Any, texts: Iterable[str], max_tokens: int) -> list[dict[str, Tensor]]:
    """Documents laid end to end, each closed by EOS if the tokenizer has one, and cut into blocks.

    Returns:
        Blocks of `input_ids`, `attention_mask` and `labels`, each int64 [max_tokens]. The last is padded; nothing is
        dropped.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    for text in texts:
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        stream += ids if ids[-1:] == end else ids + end
    blocks = []
    for start in range(0, len(stream), max_tokens):
        part = torch.tensor(stream[start : start + max_tokens])
        block = {"input_ids": padding_id(tokenizer), "attention_mask": 0, "labels": -100}
        padded = {name: torch.full((max_tokens,), value) for name, value in block.items()}
        for name, value in {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part}.items():
            padded[name][: len(part)] = value
        blocks.append(padded)
    return blocks


def training_texts(
    source: Corpus, sources: Mapping[str, Corpus], target: str, tokenizer: Any, plan: Recipe
) -> tuple[list[str], dict[str, list[str]]]:
    """The documents to train on, and the held-out texts by language, the target first."""
    tests = {
        name: list(itertools.islice((each.text for each in corpus if each.text.strip()), plan.held_out_documents))
        for name, corpus in sources.items()
    }
    texts = _drawn(source, tokenizer, plan, tests.get(target, ()))
    if target not in tests:
        count = min(plan.held_out_documents, max(1, len(texts) // 10))
        texts, tests[target] = texts[:-count], texts[-count:]
        logger.info("%s: the last %d documents are held out", target, count)
    if not texts or not tests[target]:
        raise DataError(
            f"{target}: {len(texts)} document(s) to train on and {len(tests[target])} to hold out are too few. "
            "Give more documents, or held-out texts of their own."
        )
    return texts, {target: tests.pop(target), **tests}


def _drawn(source: Corpus, tokenizer: Any, plan: Recipe, held_out: Iterable[str]) -> list[str]:
    """The documents of a language that are read, in the order of their source, without those held out."""
    if not source.rewindable:
        first = (document.text for document in source if document.text.strip())
        source = open_corpus(list(itertools.islice(first, plan.documents)))
    sample, _ = sample_documents(
        source, tokenizer, documents=plan.documents, max_tokens=_UNCUT, min_tokens=1, seed=plan.seed
    )
    indices, kept = {document.index for document in sample}, set(held_out)
    texts = [document.text for document in source if document.index in indices]
    clean = [text for text in texts if text not in kept]
    if len(clean) < len(texts):
        logger.warning("%d of %d documents are held out, so not trained on", len(texts) - len(clean), len(texts))
    return clean


def _kept(
    sources: Mapping[str, Corpus], tests: Mapping[str, list[str]], tokenizer: Any, plan: Recipe, count: int
) -> list[dict[str, Tensor]]:
    """Blocks of the languages to keep, in turn, for `count` of the target in all epochs; fewer if there are no more."""
    wanted = math.ceil(plan.kept(count) * plan.epochs / len(sources))
    each = {}
    for name, source in sources.items():
        texts, tokens = [], 0
        for text in (document.text for document in source):
            if text.strip() and text not in tests.get(name, ()):
                texts.append(text)
                tokens += len(tokenizer(text, verbose=False)["input_ids"])
            if tokens >= wanted * plan.max_tokens:
                break
        each[name] = pack(tokenizer, texts, plan.max_tokens)[:wanted]
        if not each[name]:
            raise DataError(f"{name}: found no text to keep it by. Give some, or leave it out of keep.")
        if len(each[name]) < wanted:
            logger.info("%s: %d blocks to keep it by, where %d would do; used again", name, len(each[name]), wanted)
    turns = itertools.zip_longest(*each.values())
    return [block for turn in turns for block in turn if block is not None]


def _train(
    model: nn.Module,
    tokenizer: Any,
    neurons: NeuronSet | PeftConfig | None,
    blocks: list[dict[str, Tensor]],
    kept: list[dict[str, Tensor]],
    tests: Mapping[str, list[str]],
    target: str,
    plan: Recipe,
    folder: Path,
    keep: bool,
    force: bool,
) -> TuneResult:
    from transformers import EarlyStoppingCallback, set_seed

    from babelscope.tuning.trainer import BitsPerByteTrainer, Shuffled, Steps, arguments

    def measure() -> dict[str, float]:
        return {
            name: likelihood(trained, tokenizer, each, max_tokens=plan.max_tokens).bits_per_byte
            for name, each in tests.items()
        }

    set_seed(plan.seed)
    trained: Any = _with_adapter(model, neurons, force)
    whole = trained is model
    limit = plan.others_at_most
    start = {} if limit is None else {name: each.detach().clone() for name, each in _free(trained)}
    order = Shuffled(len(blocks), plan.kept(len(blocks)) if kept else 0, len(kept), plan.seed)
    checkpoint = _last_checkpoint(folder / CHECKPOINTS)
    trainer = BitsPerByteTrainer(
        measure,
        target,
        order,
        model=trained,
        args=arguments(plan, len(order), folder / CHECKPOINTS, whole=whole, fresh=checkpoint is None),
        train_dataset=blocks + kept,
        callbacks=[EarlyStoppingCallback(plan.patience)],
    )
    parameters = sum(each.numel() for _, each in _free(trained))
    place = folder / (MODEL if whole else ADAPTER)
    try:
        with task("training", unit="steps") as training:
            trainer.add_callback(Steps(training))
            trainer.train(resume_from_checkpoint=checkpoint)
    except NumericsError as error:
        if not keep:
            if not whole:
                trained.unload()
            raise NumericsError(f"{error} Nothing was kept: give a run folder to keep the state before it.") from None
        trainer.save_model(place)
        raise NumericsError(f"{error} The state before it is in {folder}.") from None
    before, after, share = trainer.before, measure(), 1.0
    if limit is not None:
        share, after = _restrain(trained, start, measure, before, after, target, limit)
    trainer.accelerator.wait_for_everyone()  # before the first process clears the checkpoints away
    logger.info("after: %s", _line(after))
    if after[target] >= before[target]:
        logger.warning("%s got no better: %.4f -> %.4f bits per byte", target, before[target], after[target])
    trained.eval()
    result = TuneResult(trained, target, before, after, trainer.history(), trainer.best_step, share, parameters)
    if keep:
        trainer.save_model(place)
    if keep and trainer.is_world_process_zero():
        names = ("language", "before", "after", "best_step", "share", "parameters", "history")
        write_json(folder / HISTORY, {name: getattr(result, name) for name in names})
        update_run(folder, status="done", before=before, after=after, best_step=result.best_step)
        shutil.rmtree(folder / CHECKPOINTS)
    return result


def _restrain(
    trained: nn.Module,
    start: Mapping[str, Tensor],
    measure: Callable[[], dict[str, float]],
    before: Mapping[str, float],
    after: dict[str, float],
    target: str,
    percent: float,
) -> tuple[float, dict[str, float]]:
    """Scales down what was trained until no other language lost more; the share that is left, and how it then is."""

    def lost(found: Mapping[str, float]) -> float:
        return max(100 * (found[name] / before[name] - 1) for name in before if name != target)

    def go(share: float) -> None:
        with torch.no_grad():
            for name, each in _free(trained):
                each.copy_(_placed_as(each, start[name]).lerp(end[name], share))

    if lost(after) <= percent:
        return 1.0, after
    logger.info("another language lost %.2f %%, wanted %g at most: scaling down", lost(after), percent)
    end = {name: each.detach().clone() for name, each in _free(trained)}
    share, after = 0.0, dict(before)
    for halving in range(1, HALVINGS + 1):
        step = share + 0.5**halving
        go(step)
        if lost(found := measure()) <= percent:
            share, after = step, found
    go(share)
    if share == 0:
        logger.warning("any part of the changes costs another language more than %g %%, so none is left", percent)
    else:
        logger.info("%.0f %% of the changes are left, which cost others %.2f %% at most", 100 * share, lost(after))
    return share, after


def _free(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained."""
    return ((name, each) for name, each in model.named_parameters() if each.requires_grad)


def _placed_as(like: Tensor, whole: Tensor) -> Tensor:
    """A tensor on the device, or in the pieces, that training left another one in."""
    if isinstance(like, DTensor):
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
    return whole.to(like.device)


def _with_adapter(model: nn.Module, neurons: NeuronSet | PeftConfig | None, force: bool) -> Any:
    """The model as it will be trained: with an adapter, or with all its weights free."""
    if neurons is None:
        return model.requires_grad_(True)
    from peft import get_peft_model

    from babelscope.tuning.peft_method import NeuronAdapterConfig

    if isinstance(neurons, NeuronSet):
        neurons = NeuronAdapterConfig.from_neurons(neurons, force=force)
    return get_peft_model(model, neurons)


def _trained(neurons: NeuronSet | PeftConfig | None) -> Any:
    """What is trained, for run.json."""
    if neurons is None:
        return "all weights"
    if isinstance(neurons, NeuronSet):
        return {"neurons": len(neurons), "digest": digest(sorted(neurons))}
    return {"peft": str(neurons.peft_type), "digest": digest({k: str(v) for k, v in sorted(neurons.to_dict().items())})}


def _finished(folder: Path, model: nn.Module, target: str) -> TuneResult:
    """The result of a run that was finished before."""
    record = read_json(folder / HISTORY)
    trained: Any
    if (folder / MODEL).exists():
        trained = type(model).from_pretrained(folder / MODEL, dtype=next(model.parameters()).dtype).eval()  # type: ignore[attr-defined]
    else:
        from peft import PeftModel

        import babelscope.tuning.peft_method  # noqa: F401 (registers the method)

        trained = PeftModel.from_pretrained(model, folder / ADAPTER)
    names = ("before", "after", "history", "best_step", "share", "parameters")
    return TuneResult(trained, target, **{name: record[name] for name in names})


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; the Trainer writes trainer_state.json last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _line(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items()) + " bits per byte"


def _need_packages() -> None:
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'tuning needs a package that can\'t be imported ({error}). Install it:\npip install "babelscope[tune]"'
        ) from error
