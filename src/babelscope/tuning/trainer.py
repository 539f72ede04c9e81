"""The transformers Trainer, evaluated in bits per byte and stopped before a step that would ruin the weights."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from babelscope.errors import ConfigError, NumericsError

if TYPE_CHECKING:
    from babelscope.tuning.train import Recipe

logger = logging.getLogger(__name__)


class BitsPerByteTrainer(Trainer):
    """Evaluates by calling `measure`, and keeps the best state by the target's bits per byte.

    Args:
        measure: bits per byte by language of the model as it is now. Every process measures everything: the texts are
            few, and all get the same numbers without talking.
        target: the language to go by.
        **options: of the Trainer.
    """

    def __init__(self, measure: Callable[[], dict[str, float]], target: str, **options: Any) -> None:
        super().__init__(eval_dataset={}, **options)
        self.measure, self.target = measure, target
        self.remove_callback(PrinterCallback)  # it prints to standard output, which belongs to the caller
        self.add_callback(FiniteGradients())
        if sys.stderr.isatty():
            self.add_callback(Bar())

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

    @property
    def best_step(self) -> int:
        """The step after which the target's held-out texts were predicted best."""
        assert self.state.best_global_step is not None, "an evaluation comes before the end"
        return self.state.best_global_step

    def history(self) -> dict[str, list[dict[str, Any]]]:
        """As `TuneResult.history`."""
        steps, evaluations = [], []
        for entry in self.state.log_history:
            common = {"step": entry["step"], "epoch": entry["epoch"]}
            if "loss" in entry:
                names = {"loss": "loss", "learning_rate": "learning_rate", "gradient_norm": "grad_norm"}
                steps.append({**common, **{name: entry[theirs] for name, theirs in names.items()}})
            elif "eval_bits_per_byte" in entry:
                prefix = "eval_bits_per_byte_"
                bits = {name.removeprefix(prefix): each for name, each in entry.items() if name.startswith(prefix)}
                evaluations.append({**common, "bits_per_byte": bits})
        return {"steps": steps, "evaluations": evaluations}


class Bar(ProgressCallback):
    """The Trainer's progress bar, without the numbers that it prints to standard output."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Numbers go into the history, evaluations into the log."""


class FiniteGradients(TrainerCallback):
    """Stops before a step whose gradients are NaN or infinite, so that the weights are still those before it."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when gradients are complete, before the weights move."""
        gradients = [each.grad for each in kwargs["model"].parameters() if each.grad is not None]
        if not torch.stack([each.isfinite().all() for each in gradients]).all():
            raise NumericsError(
                f"step {state.global_step + 1}: the loss or its gradient is not finite. Lower the learning rate "
                f"({args.learning_rate:g}), or look for broken documents."
            )


def arguments(plan: Recipe, blocks: int, folder: Path, *, whole: bool) -> TrainingArguments:
    """The Trainer's settings for a recipe.

    Args:
        plan: the recipe.
        blocks: to train on.
        folder: of the checkpoints.
        whole: all weights are trained.

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
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="bits_per_byte",
        greater_is_better=False,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=plan.seed,
    )
