"""What a training would do, and about how long it would take here: counted and timed before anything is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from babelscope.corpora.sources import Corpus
from babelscope.models.anatomy import Anatomy
from babelscope.neurons.neuronset import NeuronSet
from babelscope.tuning.adapter import Columns, locate
from babelscope.tuning.train import Recipe, pack, training_texts


def trained_parameters(model: nn.Module, neurons: NeuronSet) -> int:
    """How many numbers a training of a set changes: its rows and columns."""
    modules = locate(Anatomy(model, tuple(neurons.widths), check=False), neurons)
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in modules}
    return sum(
        len(index) * int(weights[name].shape[0 if kind is Columns else 1]) for name, (kind, index) in modules.items()
    )


def plan_training(
    model: Any,
    tokenizer: Any,
    neurons: NeuronSet,
    corpus: Corpus,
    *,
    language: str,
    held_out: Mapping[str, Corpus] | None = None,
    **recipe: Any,
) -> dict[str, Any]:
    """What `tune` would do with the same arguments; nothing is trained and nothing is written.

    Returns:
        `documents` to train on, `blocks` of them, `steps` without early stopping, `evaluations`, `held_out` (texts by
        language), `parameters`, and `seconds`: of these steps, from one pass forward and backward that is timed here,
        and of the evaluations.
    """
    plan = Recipe(**recipe)
    texts, tests = training_texts(corpus, held_out or {}, language, tokenizer, plan)
    blocks = len(pack(tokenizer, texts, plan.max_tokens))
    steps = math.ceil(math.ceil(blocks / plan.batch_size) * plan.epochs)
    size = (min(plan.batch_size, blocks), plan.max_tokens)
    ids = torch.randint(0, model.config.get_text_config().vocab_size, size, device=model.device)
    with torch.enable_grad():
        for _ in range(2):  # the first one warms up
            started = time.monotonic()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            step = time.monotonic() - started
    model.zero_grad(set_to_none=True)
    measured = sum(map(len, tests.values())) * (plan.evaluations + 2) / plan.batch_size
    return {
        "language": language,
        "documents": len(texts),
        "blocks": blocks,
        "steps": steps,
        "evaluations": plan.evaluations,
        "held_out": {code: len(several) for code, several in tests.items()},
        "parameters": trained_parameters(model, neurons),
        "seconds": round(step * (steps + measured / 3), 1),
    }
