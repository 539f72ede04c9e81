"""lm-evaluation-harness on an edited model: its tasks and ours, in Python, and in the harness's own command.

In the harness a model type `babelscope` takes what `hf` takes, and `neurons`, `op`, `factor`, `value` and `reference`;
`pretrained` may be `tinybabel`. The harness has no plug-ins, so its command learns of the type when it is started as

    python -m babelscope.evaluation.harness run --model babelscope --model_args pretrained=...,neurons=fr.safetensors

or when a task file of ours, which `write_task_files` writes, is among its tasks.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.artifacts import digest
from babelscope.cells import CellStore
from babelscope.editing.edits import ablate
from babelscope.errors import ConfigError, MissingDependencyError, NumericsError
from babelscope.evaluation.tasks.benchmarks import Asked, asked_by_name
from babelscope.models.load import load_model
from babelscope.neurons.neuronset import NeuronSet
from babelscope.progress import task

try:
    from lm_eval.api.registry import model_registry
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise MissingDependencyError(
        f'evaluation runs on lm-evaluation-harness, which can\'t be imported ({error}): pip install "babelscope[eval]"'
    ) from error

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas
    from babelscope.neurons.statistics import Statistics

logger = logging.getLogger(__name__)

BLOCK = 4
"""Batches that are answered and kept together. What a resumed run has to do again is made of the same batches as
before, for the rounding of a half-precision model depends on its neighbours in the batch."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one request."""

    value: Any
    """Generated text; or log-likelihood in nats, and whether the choice is the greedy continuation."""
    cut: int = 0
    """Tokens at the prompt's beginning that the model did not see, for want of context."""
    endless: bool = False
    """A generation that was still going on at its limit."""


class Answers:
    """Answers by request, in memory and, as they come, in a file of JSON lines."""

    def __init__(self, path: Path | None = None) -> None:
        self._kept = CellStore(path)

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __getitem__(self, key: str) -> Answer:
        return Answer(**self._kept[key])

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, answers: dict[str, Answer]) -> None:
        """Keeps answers, all of them or none."""
        self._kept.add({key: asdict(answer) for key, answer in answers.items()})


class EditedLM(HFLM):  # type: ignore[misc]
    """The harness's Hugging Face model under an edit: on while it answers, off and restored in between.

    Args:
        pretrained: a model of transformers; or a folder, a name on the Hub, or `tinybabel`.
        tokenizer: of the model; None: the one beside it.
        neurons: a set, or its file; None: the model as it is.
        op: as of `ablate`.
        factor: as of `ablate`.
        value: as of `ablate`.
        reference: as of `ablate` for `mean`; or the place of an atlas: its file or the run folder of `detect`.
        force: as of `ablate`.
        answers: where answers are kept, and those there are already.
        dtype: as of `load_model`, for a model that is loaded here.
        device: for a model that is loaded here; None: the first GPU, else the CPU.
        revision: as of `load_model`.
        trust_remote_code: as of `load_model`.
        **options: anything else that the harness's `hf` takes.

    Raises:
        ConfigError: a context without room for an answer.
        NumericsError: a log-likelihood that is NaN.
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        *,
        neurons: NeuronSet | str | Path | None = None,
        op: str = "zero",
        factor: float | None = None,
        value: float | None = None,
        reference: Atlas | Statistics | str | Path | None = None,
        force: bool = False,
        answers: Answers | None = None,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        if isinstance(pretrained, str):
            pretrained, beside = load_model(
                pretrained, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
            )
            tokenizer = beside if tokenizer is None else tokenizer
            pretrained.to(_device(device))
        # The harness gives it a pad token, which a caller's own tokenizer may lack on purpose.
        super().__init__(pretrained=pretrained, tokenizer=copy.deepcopy(tokenizer), **options)
        self._neurons = NeuronSet.load(neurons) if isinstance(neurons, str | Path) else neurons
        if isinstance(reference, str | Path):
            from babelscope.detection.atlas import Atlas

            reference = Atlas.load(reference)
        self._edit: dict[str, Any] = {
            "op": op, "factor": factor, "value": value, "reference": reference, "force": force,
        }  # fmt: skip
        self.answers = Answers() if answers is None else answers
        self._flags: deque[bool] = deque()
        """Of the rows generated last: still going on at the limit."""
        self._fresh: dict[str, Answer] = {}
        self.set_cache_hook(self)
        self.cut: Counter[str] = Counter()
        """Requests by task whose prompt did not fit."""
        self.endless: Counter[str] = Counter()
        """Generations by task that were still going on at their limit."""

    def edited(self) -> AbstractContextManager[Any]:
        """The model with the edit on."""
        return ablate(self.model, self._neurons, **self._edit) if self._neurons else nullcontext()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihood of continuations, in nats, and whether they are greedy."""
        return self._answered("loglikelihood", super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihood of whole texts, in nats."""
        return self._answered("loglikelihood_rolling", super().loglikelihood_rolling, requests)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """Generated text, up to a stop."""
        for request in requests:
            if request.args[1].get("max_gen_toks", self.max_gen_toks) >= self.max_length:
                raise ConfigError(
                    f"{request.task_name} generates up to {request.args[1].get('max_gen_toks', self.max_gen_toks)} "
                    f"tokens, and the model's context has {self.max_length}: no room for a prompt. Take a model with "
                    "a longer context, or another task."
                )
        return self._answered("generate_until", super().generate_until, requests)

    def add_partial(self, kind: str, args: Sequence[Any], answer: Any) -> None:
        """Called by the harness with each answer, as its cache is."""
        endless = self._flags.popleft() if kind == "generate_until" else False
        if kind != "generate_until" and math.isnan(answer[0] if kind == "loglikelihood" else answer):
            edit = f" under {self._edit['op']} of {self._neurons!r}" if self._neurons else ""
            raise NumericsError(
                f"the model's log-likelihood of {args[-1][-40:]!r} is NaN{edit}: no score is defined. Half precision "
                "overflows; load the model with dtype=float32, or take a smaller factor or value."
            )
        self._fresh[_key(kind, args)] = Answer(answer, self._cut(kind, args), endless)

    def _answered(self, kind: str, run: Callable[..., Any], requests: Sequence[Any]) -> list[Any]:
        keys = [_key(kind, request.args) for request in requests]
        # Sorted by length in the same way each time, so that a block is the same block in a resumed run.
        order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].args[0]), keys[index]))
        size = BLOCK * self.batch_size if isinstance(self.batch_size, int) else len(order)
        blocks = [order[start : start + size] for start in range(0, len(order), size)]
        todo = [block for block in blocks if any(keys[index] not in self.answers for index in block)]
        with self.edited() if todo else nullcontext(), task("answers", len(requests), "prompts") as asked:
            asked.reach(len(requests) - sum(map(len, todo)))
            for block in todo:
                self._fresh = {}
                run([requests[index] for index in block], disable_tqdm=True)
                self.answers.add(self._fresh)
                asked.advance(len(block))
        found = [self.answers[key] for key in keys]
        for request, answer in zip(requests, found, strict=True):
            self.cut[request.task_name] += answer.cut > 0
            self.endless[request.task_name] += answer.endless
        if kind == "loglikelihood":
            return [tuple(answer.value) for answer in found]
        return [answer.value for answer in found]

    def _cut(self, kind: str, args: Sequence[Any]) -> int:
        if kind == "loglikelihood_rolling":  # read in windows
            return 0
        length = len(self.tok_encode(args[0]))
        if kind == "loglikelihood":
            whole = len(self.tok_encode(args[0] + args[1]))
            return int(max(0, whole - self.max_length - 1))  # the last token is only predicted
        return int(max(0, length + args[1].get("max_gen_toks", self.max_gen_toks) - self.max_length))

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        rows = super()._model_generate(context, max_length, stop, **options)
        full = rows.shape[1] >= max_length
        said = [self.tok_decode(row, skip_special_tokens=False) for row in rows[:, context.shape[1] :]]
        self._flags = deque(full and not any(mark in text for mark in stop) for text in said)
        return rows


# By name, not by class: this module may be there twice, as itself and as `__main__`.
model_registry.register("babelscope", target="babelscope.evaluation.harness:EditedLM")


def _key(kind: str, args: Sequence[Any]) -> str:
    return digest([kind, *args])


def _device(wanted: str | None) -> str:
    """The harness's command asks for `cuda:0` where nobody said anything else, and makes do with the CPU."""
    import torch

    if torch.cuda.is_available():
        return wanted or "cuda"
    return wanted if wanted and not wanted.startswith("cuda") else "cpu"


class BenchmarkTask(ConfigurableTask):  # type: ignore[misc]
    """A task of ours, by its name in the harness: what our task files name as their class.

    Args:
        config: with `task`, such as `babelscope_mgsm_fr`, and under `metadata` the `data` folder, if there is one.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        metadata = config.get("metadata") or {}
        made = asked_by_name(config["task"], metadata.get("data")).config()
        super().__init__(config={**made, "metadata": {**metadata, **made["metadata"]}})


def as_task(asked: Asked) -> Any:
    """The harness's task."""
    with quiet_harness():
        return ConfigurableTask(config=asked.config())


def write_task_files(asked: Sequence[Asked], folder: Path) -> list[Path]:
    """Writes task files for the harness's own command.

    Give one by its path (`--tasks FOLDER/babelscope_mgsm_fr.yaml`), which makes the model type `babelscope` known too,
    or all of them by name (`--include_path FOLDER --tasks babelscope_mgsm_fr`).

    Args:
        asked: the tasks.
        folder: for the files; made if missing.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for each in asked:
        data = {} if each.data is None else {"data": str(each.data.absolute())}
        written.append(folder / f"{each.name}.yaml")
        written[-1].write_text(
            f"task: {each.name}\nclass: !function {__name__}.{BenchmarkTask.__name__}\nmetadata: {json.dumps(data)}\n",
            encoding="utf-8",
        )
    return written


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keeps the harness's notes and its bar for prompts off the terminal; what matters is counted and told by us."""
    from lm_eval.api import task as module

    noisy, bar = logging.getLogger("lm_eval"), module.tqdm
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    module.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        noisy.setLevel(level)
        module.tqdm = bar


def main() -> None:
    """The harness's command, with the model type `babelscope`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
