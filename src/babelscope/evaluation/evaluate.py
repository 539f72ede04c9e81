"""Scores of a model on tasks, as it is or with neurons switched off, with intervals; resumable, one run folder each."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.artifacts import digest, environment, run_folder, update_run, write_json
from babelscope.editing.edits import has_open_edits, intact_fingerprint
from babelscope.errors import ConfigError
from babelscope.evaluation.harness import Answers, EditedLM, as_task, quiet_harness
from babelscope.evaluation.inference import Interval, bootstrap_mean, wilson
from babelscope.evaluation.means import means_digest, read_means
from babelscope.evaluation.official import SUMMARY_METRICS
from babelscope.evaluation.tasks.benchmarks import PREFIX, TABLE, VERSION, find
from babelscope.models.load import ModelIdentity
from babelscope.neurons.neuronset import NeuronSet

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas
    from babelscope.neurons.statistics import Statistics

logger = logging.getLogger(__name__)

RESULTS = "results.json"
ANSWERS = "answers.jsonl"
GRADED = ("f1", "rouge_l", "chrf", "squad_f1", "mlqa_f1", "cmrc_f1", *SUMMARY_METRICS)
"""Metrics with values between right and wrong, also where all items happen to be one or the other."""
FEWSHOT_SEED = 1234
"""The harness's own default."""


@dataclass(frozen=True)
class Score:
    """A metric of a task in a language."""

    task: str
    """As it was asked for: `mgsm`."""
    language: str
    """Empty for the harness's own tasks."""
    metric: str
    interval: Interval
    """The mean over items, between two 95 % bounds: Wilson's for shares, else by bootstrap. NaN bounds where the
    harness gives no score per item."""
    items: tuple[float, ...] = field(repr=False)
    """[n] by item, in the order of the task's files: what paired tests need."""
    cut: int
    """Items whose prompt was longer than the model's context: its beginning was left out."""
    endless: int
    """Items whose answer was still going on at the limit."""

    def as_json(self) -> dict[str, Any]:
        """Without the items; bounds that are not finite are null."""
        low, high = (bound if math.isfinite(bound) else None for bound in (self.interval.low, self.interval.high))
        return {
            "task": self.task, "language": self.language, "metric": self.metric, "value": self.interval.value,
            "low": low, "high": high, "items": len(self.items), "cut": self.cut, "endless": self.endless,
        }  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    scores: tuple[Score, ...]
    results: Mapping[str, Any] = field(repr=False)
    """As lm-evaluation-harness gives them, samples included."""

    def score(self, task: str, language: str, metric: str) -> Score:
        """One of the scores.

        Raises:
            ConfigError: it was not measured.
        """
        for score in self.scores:
            if (score.task, score.language, score.metric) == (task, language, metric):
                return score
        measured = ", ".join(f"{each.task}/{each.language}/{each.metric}" for each in self.scores)
        raise ConfigError(f"no score {task}/{language}/{metric}; measured were {measured}.")

    def __str__(self) -> str:
        width = max([4, *(len(score.task) for score in self.scores)])
        lines = [f"{'task':<{width}}  lang  {'metric':<12}  score  95 % interval    items"]
        lines += [
            f"{score.task:<{width}}  {score.language:<4}  {score.metric:<12}  {score.interval.value:.3f}"
            f"  {score.interval.low:.3f} to {score.interval.high:.3f}  {len(score.items):>5}"
            for score in self.scores
        ]
        return "\n".join(lines)


class Exam:
    """Tasks that are loaded once and put to a model again and again, under one edit after the other.

    Args: as of `evaluate`.

    Raises: as `evaluate`, for what can be seen before the model answers.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tasks: Sequence[str],
        languages: Sequence[str] | None = None,
        limit: int | None = None,
        *,
        data: str | Path | None = None,
        batch_size: int = 8,
        chat_template: bool = False,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"wanted a limit of at least one item, found {limit}.")
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise ConfigError("the tokenizer has no chat template. Leave chat_template out: a base model gets none.")
        ours = [name for name in tasks if name == "tinybabel" or name in TABLE]
        self.theirs = _harness_tasks([name for name in tasks if name not in ours])
        self.asked = find(ours, languages, data)
        if not self.asked and not self.theirs:
            raise ConfigError(f"wanted tasks, found none. There are {', '.join(TABLE)}, and tinybabel for its four.")
        self.model, self.tokenizer = model, tokenizer
        self._limit, self._batch_size, self._chat_template = limit, batch_size, chat_template
        self.settings = {
            "tasks": [*(each.name for each in self.asked), *self.theirs],
            "task_version": VERSION,
            "limit": limit,
            "data": None if data is None else str(Path(data).absolute()),
            "model": intact_fingerprint(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "chat_template": chat_template,
        }
        """What decides the numbers, but for the edit."""

    @cached_property
    def _tasks(self) -> dict[str, Any]:
        """The harness's tasks by their names there."""
        from lm_eval.tasks import TaskManager

        with quiet_harness():
            manager = TaskManager(include_defaults=bool(self.theirs))
            loaded: dict[str, Any] = manager.load([*map(as_task, self.asked), *self.theirs])
        for task in loaded["tasks"].values():  # as the harness's own command does
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        return loaded

    def take(
        self,
        neurons: NeuronSet | None = None,
        *,
        languages: Sequence[str] | None = None,
        answers: Answers | None = None,
        **edit: Any,
    ) -> Evaluation:
        """The model's scores with neurons switched off or changed, if there are some.

        Args:
            neurons: what is edited while the model answers.
            languages: codes, to ask in some of the languages only; None: all.
            answers: kept already; new ones are added.
            **edit: op, factor, value, reference and force, as of `evaluate`.
        """
        from lm_eval import evaluate as run_harness

        loaded = self._tasks
        if languages is not None:
            chosen = {each.name for each in self.asked if each.language in languages}
            loaded = {**loaded, "tasks": {name: task for name, task in loaded["tasks"].items() if name in chosen}}
        with quiet_harness():
            lm = EditedLM(
                self.model, self.tokenizer, neurons=neurons, batch_size=self._batch_size, answers=answers,
                **edit,
            )  # fmt: skip
            results: dict[str, Any] = run_harness(
                lm, loaded, limit=self._limit, bootstrap_iters=0, apply_chat_template=self._chat_template,
                fewshot_as_multiturn=self._chat_template,
            )  # fmt: skip
        results["config"] = {
            "model": "babelscope", "batch_size": self._batch_size, "limit": self._limit, **environment(),
        }  # fmt: skip
        results["babelscope"] = {"cut": dict(lm.cut), "endless": dict(lm.endless)}
        return Evaluation(tuple(_scores(results, {each.name: each.language for each in self.asked})), results)


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    languages: Sequence[str] | None = None,
    neurons: NeuronSet | None = None,
    limit: int | None = None,
    *,
    op: str = "zero",
    factor: float | None = None,
    value: float | None = None,
    reference: Atlas | Statistics | None = None,
    force: bool = False,
    data: str | Path | None = None,
    run_dir: str | Path | None = None,
    batch_size: int = 8,
    chat_template: bool = False,
) -> Evaluation:
    """Measures what a model can do, with neurons switched off or changed if you give some.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        tasks: of `TABLE`, `tinybabel` for its four, or any task of lm-evaluation-harness by its own name.
        languages: codes or English names; None: all that a task has items in.
        neurons: what is edited while the model answers; None: nothing.
        limit: the first so many items of each task and language; None: all.
        op: what is done to them: `zero`, `scale`, `clamp` or `mean`, as of `ablate`.
        factor: as of `ablate`.
        value: as of `ablate`.
        reference: as of `ablate`, for `mean`.
        force: accept neurons, or a reference, of another model of the same shape.
        data: a folder with the benchmarks' files (mgsm/, xquad/, xcsqa/, xlsum/); None: the Hub or its cache.
        run_dir: where answers are kept as they come, and results.json and samples_TASK.jsonl in the end, in the
            harness's format. The same call again goes on where it stopped, and gives the same numbers.
        batch_size: prompts at once.
        chat_template: put prompts into the tokenizer's chat template. A base model has none.

    Raises:
        ConfigError: a task or a language that there isn't (the message lists what there is), a limit below 1, a model
            whose context has no room for an answer; as `ablate`.
        DataError: a dataset or a file that can't be read.
        ProvenanceError: neurons, or a reference, of another model.
        NumericsError: a log-likelihood that is NaN.
        RunFolderError: a run folder of other settings, or in use.
        MissingDependencyError: lm-evaluation-harness is not installed.
    """
    exam = Exam(
        model, tokenizer, tasks, languages, limit, data=data, batch_size=batch_size, chat_template=chat_template
    )  # fmt: skip
    edit: dict[str, Any] = {"op": op, "factor": factor, "value": value}
    settings = {**exam.settings, "neurons": neurons_digest(neurons), "edit": edit if neurons else None}
    if neurons and op == "mean":
        settings["means"] = means_digest(read_means(model, reference, [neurons], force=force), neurons)
    with ExitStack() as stack:
        folder = None
        if run_dir is not None:
            if has_open_edits(model):
                raise ConfigError(
                    "an ablate context is open, which the run folder could not tell. Close it and give neurons=."
                )
            about = {"command": "evaluate", "name": ModelIdentity.of(model).name, "provenance": _provenance(neurons)}
            folder = stack.enter_context(run_folder(Path(run_dir), settings, about))
        answers = Answers(None if folder is None else folder / ANSWERS)
        found = exam.take(neurons, answers=answers, reference=reference, force=force, **edit)
        found.results["babelscope"].update(settings)
        tell(found)
        if folder is not None:
            _write(folder, found)
            update_run(folder, status="finished")
    return found


def _harness_tasks(names: Sequence[str]) -> list[str]:
    """Names that the harness knows; the thousands of its task files are only looked at if there is one to find."""
    if not names:
        return []
    from lm_eval.tasks import TaskManager

    with quiet_harness():
        known = set(TaskManager().all_tasks)
    for name in names:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, [*TABLE, *known], n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ConfigError(
                f"unknown task {name!r}: {hint}ours are {', '.join(TABLE)}, and tinybabel for its four; those of the "
                "harness are listed by lm_eval ls tasks."
            )
    return list(names)


def _scores(results: Mapping[str, Any], languages: Mapping[str, str]) -> list[Score]:
    """One for each task, metric and filter that has a number."""
    found = []
    counted = results["babelscope"]
    for name, samples in results["samples"].items():
        language = languages.get(name, "")
        task = name.removeprefix(PREFIX).removesuffix(f"_{language}") if language else name
        for key, mean in results["results"][name].items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(mean, int | float):
                continue
            items = tuple(sample.get(metric) for sample in samples if sample["filter"] == filtered)
            numbers = all(isinstance(item, int | float) for item in items)
            shown = metric if filtered == "none" else key
            found.append(
                Score(
                    task, language, shown,
                    _interval(metric, items) if numbers else Interval(float(mean), math.nan, math.nan),
                    tuple(map(float, items)) if numbers else (),
                    counted["cut"].get(name, 0), counted["endless"].get(name, 0),
                )
            )  # fmt: skip
    return found


def _interval(metric: str, items: Sequence[Any]) -> Interval:
    if metric not in GRADED and set(items) <= {0, 1}:
        return wilson(int(sum(items)), len(items))
    return bootstrap_mean(items)


def tell(found: Evaluation) -> None:
    """What a reader of a score must know about its items."""
    told = set()
    for score in found.scores:
        place = (score.task, score.language)
        if place in told:
            continue
        told.add(place)
        if score.cut:
            logger.warning(
                "%s %s: %d of %d prompts were longer than the model's context; their beginning was left out",
                *place, score.cut, len(score.items),
            )  # fmt: skip
        if score.endless:
            logger.warning(
                "%s %s: %d of %d answers were still going on at the limit and were taken as far as they went",
                *place, score.endless, len(score.items),
            )  # fmt: skip


def _write(folder: Path, found: Evaluation) -> None:
    """results.json and samples_TASK.jsonl, as the harness writes them."""
    results = {name: content for name, content in found.results.items() if name != "samples"}
    results["scores"] = [score.as_json() for score in found.scores]
    write_json(folder / RESULTS, json.loads(_dumps(results)))
    for task, samples in found.results["samples"].items():
        lines = [_dumps(_sample(sample)) + "\n" for sample in samples]
        (folder / f"samples_{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {
        f"gen_args_{index}": {f"arg_{place}": part for place, part in enumerate(request)}
        for index, request in enumerate(sample["arguments"])
    }
    return {**sample, "arguments": arguments, "target": str(sample["target"])}


def _dumps(content: Any) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(content, default=handle_non_serializable, ensure_ascii=False)


def neurons_digest(neurons: NeuronSet | None) -> str | None:
    """A short hash of which units a set holds; None for no set."""
    if not neurons:
        return None
    return digest({slot: [units.tolist() for units in layers] for slot, layers in neurons.indices.items()})


def _provenance(neurons: NeuronSet | None) -> Any:
    return None if neurons is None else neurons.provenance
