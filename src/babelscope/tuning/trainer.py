"""The transformers Trainer, evaluated in bits per byte and stopped before a step that would ruin the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from babelscope.errors import ConfigError, NumericsError
from babelscope.progress import Task
from babelscope.tuning.launch import launched_with

if TYPE_CHECKING:
    from babelscope.tuning.train import Recipe

logger = logging.getLogger(__name__)


class BitsPerByteTrainer(Trainer):
    """Evaluates by calling `measure`, and keeps the best state by the target's bits per byte.

    Args:
        measure: bits per byte by language of the model as it is now. Every process measures everything: the texts are
            few, and all get the same numbers without talking.
        target: the language to go by.
        order: of the blocks of `train_dataset`.
        **options: of the Trainer.

    Raises:
        ConfigError: FSDP was asked for where accelerate doesn't shard.
    """

    def __init__(self, measure: Callable[[], dict[str, float]], target: str, order: Shuffled, **options: Any) -> None:
        super().__init__(eval_dataset={}, **options)
        if launched_with("FSDP") and not self.is_fsdp_enabled:
            raise ConfigError(
                "FSDP was asked for, but accelerate shards a model over GPUs and other accelerators only, and found "
                "none. Launch without it: every process then has the whole model (DDP)."
            )
        self.measure, self.target, self.order = measure, target, order
        self.remove_callback(PrinterCallback)  # it prints to standard output, which belongs to the caller
        self.add_callback(FiniteGradients())

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The blocks in an order of seed and epoch alone, so that the batches of several processes are those of one.

        Accelerate would fill up their last batch with blocks of the first; it finds blocks there that don't count.
        """
        blocks: Any = self.train_dataset
        processes = self.args.world_size
        self.order.missing = 0
        self.order.missing = -len(self.order) % (self.args.train_batch_size * processes) if processes > 1 else 0
        uncounted = {**blocks[0], "labels": torch.full_like(blocks[0]["labels"], -100)}
        loader = DataLoader(
            blocks + [uncounted] * self.order.missing,
            batch_size=self.args.train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's, from `measure`."""
        found = self.measure()
        metrics = {"eval_bits_per_byte": found[self.target]}
        metrics |= {f"eval_bits_per_byte_{name}": value for name, value in found.items()}
        self.log(metrics)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        logger.info("step %d of %d: %s bits per byte", self.state.global_step, self.state.max_steps, shown)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Writes the adapter, or the whole model if that is trained; to be called by every process.

        Of a sharded model the trained tensors alone are gathered, whole, by the first process.
        """
        model: Any = self.model
        state = None
        if self.is_fsdp_enabled:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
            state = get_model_state_dict(model, options=options)
        if self.is_world_process_zero():
            model.save_pretrained(output_dir, state_dict=state)

    @property
    def before(self) -> dict[str, float]:
        """Bits per byte by language before the first step."""
        return self._evaluations()[0]["bits_per_byte"]  # type: ignore[no-any-return]

    @property
    def best_step(self) -> int:
        """The step after which the target's held-out texts were predicted best."""
        assert self.state.best_global_step is not None, "an evaluation comes before the end"
        return self.state.best_global_step

    def history(self) -> dict[str, list[dict[str, Any]]]:
        """As `TuneResult.history`."""
        names = {"loss": "loss", "learning_rate": "learning_rate", "gradient_norm": "grad_norm"}
        steps = [
            {"step": entry["step"], "epoch": entry["epoch"], **{name: entry[theirs] for name, theirs in names.items()}}
            for entry in self.state.log_history
            if "loss" in entry
        ]
        return {"steps": steps, "evaluations": self._evaluations()[1:]}

    def _evaluations(self) -> list[dict[str, Any]]:
        prefix = "eval_bits_per_byte_"
        return [
            {
                "step": entry["step"],
                "epoch": entry["epoch"],
                "bits_per_byte": {
                    name.removeprefix(prefix): each for name, each in entry.items() if name.startswith(prefix)
                },
            }
            for entry in self.state.log_history
            if "eval_bits_per_byte" in entry
        ]


class Shuffled(Sampler[int]):
    """In each epoch all blocks of the target and the next ones to keep others by, in random order.

    Args:
        own: how many of the target there are; they come first.
        kept: of the next ones, in each epoch.
        available: of these there are so many; after the last comes the first again.
        seed: of the order.

    Attributes:
        missing: how many come after all these, in order.
    """

    def __init__(self, own: int, kept: int, available: int, seed: int) -> None:
        self.own, self.kept, self.available, self.seed = own, kept, available, seed
        self.missing = self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        turn = range(self.epoch * self.kept, (self.epoch + 1) * self.kept)
        blocks = [*range(self.own), *(self.own + at % self.available for at in turn)]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from (blocks[at] for at in torch.randperm(len(blocks), generator=generator).tolist())
        end = self.own + self.available
        yield from range(end, end + self.missing)

    def __len__(self) -> int:
        return self.own + self.kept + self.missing


class Steps(TrainerCallback):
    """Tells the progress of a training, step by step; its numbers go into the history, evaluations into the log."""

    def __init__(self, training: Task) -> None:
        self.training = training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learns how many steps there are."""
        self.training.total = state.max_steps
        self.training.reach(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts a step."""
        self.training.reach(state.global_step)


class FiniteGradients(TrainerCallback):
    """Stops before a step whose gradients are NaN or infinite, so that the weights are still those before it."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when gradients are complete, before the weights move."""
        gradients = [each.grad for each in kwargs["model"].parameters() if each.grad is not None]
        # Under FSDP a process sees only its shards, and all must stop together.
        here = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
        if not gather(get_total_norm(here)).isfinite().all():
            raise NumericsError(
                f"step {state.global_step + 1}: the loss or its gradient is not finite. Lower the learning rate "
                f"({args.learning_rate:g}), or look for broken documents."
            )


def arguments(plan: Recipe, blocks: int, folder: Path, *, whole: bool, fresh: bool) -> TrainingArguments:
    """The Trainer's settings for a recipe.

    Args:
        plan: the recipe.
        blocks: to train on in an epoch.
        folder: of the checkpoints.
        whole: all weights are trained.
        fresh: starts at the first step, before which it is evaluated.

    Raises:
        ConfigError: the batch can't be divided among the processes.
    """
    processes = PartialState().num_processes
    if plan.batch_size % processes:
        raise ConfigError(
            f"a batch of {plan.batch_size} can't be divided among {processes} processes. Choose a multiple of it."
        )
    steps = math.ceil(math.ceil(blocks / plan.batch_size) * plan.epochs)
    every = max(1, steps // plan.evaluations)
    rate = plan.learning_rate if plan.learning_rate is not None else 1e-4 if whole else 1e-3
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=not torch.accelerator.is_available(),  # without it, two processes on the CPU don't find each other
        max_steps=steps,
        per_device_train_batch_size=plan.batch_size // processes,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup,
        weight_decay=0.0,  # a delta that decays goes back to the base, which nobody asked for
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=fresh,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="bits_per_byte",
        greater_is_better=False,
        remove_unused_columns=False,
        ddp_find_unused_parameters=whole,  # all of an adapter takes part in every step
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=plan.seed,
    )
