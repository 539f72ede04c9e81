"""Running a study: its stages as a small graph over a run folder, each under a key of everything that decides it.

    RUN/run.json                      the study as it was asked, machine, versions, models, status, wall time
    RUN/study.log
    RUN/MODEL/STAGE/result.json       what the stage found, written last
    RUN/MODEL/STAGE/key.json          what it was made from, and how long what took
    RUN/MODEL/STAGE/...               atlas, neuron files, cells
    RUN/MODEL/.earlier/STAGE-KEY/     what was made from other settings, taken back if they return

A stage whose key is the same and whose result is there is not run again.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from babelscope import progress
from babelscope.artifacts import environment, finite, read_json, run_folder, update_run, write_json
from babelscope.corpora.sources import open_corpus
from babelscope.errors import ConfigError, MissingDependencyError
from babelscope.report.reader import read_result
from babelscope.report.results import KIND, VERSION, slug
from babelscope.stages.contract import STAGES, Cost
from babelscope.stages.job import Job, Loader, portable
from babelscope.stages.size import Size
from babelscope.stages.study import Model, Study
from babelscope.study.estimate import estimates, work
from babelscope.study.keys import model_identity, stage_keys, text_identities
from babelscope.study.log import logged
from babelscope.study.pace import Pace

logger = logging.getLogger(__name__)

RESULT, KEY, LOG, EARLIER = "result.json", "key.json", "study.log", ".earlier"


def run_study(
    study: Study,
    source: str,
    out: Path,
    *,
    only: str | None = None,
    start: str | None = None,
    shown: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Runs what a study asks for and is not there yet, and writes the report.

    Args:
        study: from `load_study`.
        source: the file or preset that it came from, for the command beside every result.
        out: the run folder; the same call again goes on where it stopped.
        only: this stage, and before it what it reads if that is missing.
        start: this stage and all later ones anew, whatever is there.
        shown: a progress view on standard error.
        command: the command that stands beside every result; None: `babelscope study SOURCE --only STAGE ...`.

    Returns:
        `out`, `report` (path, or None without the packages it needs), and for each model its results: `stages`
        (name, seconds, whether it was there before) and `findings`.

    Raises:
        ConfigError: a stage that the study does not have; settings that contradict.
        DataError: a model, a corpus or a task's file that is not there; before any work.
        RunFolderError: the folder is in use, or holds another study.
    """
    wanted = _chosen(study, only, start)
    texts = text_identities(study, wanted)
    _check_tasks(study, wanted)
    names = folder_names(study.models)
    keys = {name: stage_keys(study, spec, texts) for name, spec in names.items()}
    models = {name: {**spec.as_json(), "identity": model_identity(spec)} for name, spec in names.items()}
    about = {"name": study.name, "machine": machine()}
    with run_folder(out, {"command": "study", "study": study.name}, about), logged(out / LOG):
        update_run(
            out, status="running", study=portable(study.as_json()), source=portable(source), models=portable(models),
            stages=[stage for stage in STAGES.names() if stage in study.stages],
            seeds={"study": study.seed, "tuning": list(study.tuning.seeds)},
            environment=environment(), **about,
        )  # fmt: skip
        measured = {name: _measured(out / name) for name in names}  # before what was made from other settings goes
        todo = []
        for name, stage in ((name, stage) for name in names for stage in wanted):
            anew = start is not None and STAGES.names().index(stage) >= STAGES.names().index(start)
            if _place(out / name, stage, keys[name][stage], anew):
                todo.append((name, stage))
        logger.info("%s: %d of %d stages to run", study.name, len(todo), len(names) * len(wanted))
        pace = Pace(
            [
                max(1.0, estimate.seconds or 1.0)
                for name, stage in todo
                for estimate in estimates(study, names[name], [stage], measured[name])
            ]
        )
        loader = None
        with progress.shown_if(shown), progress.task(study.name, len(todo), "stages") as whole:
            for name, stage in todo:
                if loader is None or loader.spec != names[name]:
                    loader = Loader(names[name])
                pace.begin()
                label = f"{name} {stage}" if len(names) > 1 else stage
                with progress.task(label, 1, "cells") as task:
                    whole.estimate = lambda task=task: pace.left(min(1.0, task.done / (task.total or 1)))
                    typed = command or _command(study, source, stage)
                    _run(study, typed, out / name / stage, stage, loader, task)
                pace.end()
                whole.advance()
        wall = {
            name: {stage: _told(out / name / stage)["seconds"] for stage in study.stages if _there(out / name / stage)}
            for name in names
        }
        complete = all(len(found) == len(study.stages) for found in wall.values())
        update_run(out, status="finished" if complete else "unfinished", wall_seconds=wall)
    return {
        "out": str(out),
        "report": _report(out),
        "models": {name: _summary(out / name, study, todo, name) for name in names},
    }


def dry_run(study: Study, only: str | None = None, start: str | None = None, out: Path | None = None) -> dict[str, Any]:
    """What `run_study` would do, from the study and the models' sizes alone: no model is loaded, nothing is fetched.

    Args:
        study: as in `run_study`, and so are the next two.
        only: a stage, and what it reads.
        start: a stage, and all later ones.
        out: the run folder, if there is one already: what its stages took makes the estimates better.

    Raises:
        ConfigError, DataError: texts on this machine that are not there.
    """
    wanted = _chosen(study, only, start)
    sources = (source for stage in wanted for kind in study.texts(stage).values() for source in kind.values())
    for source in dict.fromkeys(sources):
        if not source.startswith("hub:"):
            open_corpus(source)
    models = {}
    for name, spec in folder_names(study.models).items():
        size = Size.of(spec)
        measured = {} if out is None else _measured(out / name)
        rows = [each.as_json() for each in estimates(study, spec, wanted, measured)]
        several = 1 + 3 * ("tuning" in wanted and "full" in study.tuning.arms)
        models[name] = {
            "model": spec.name, "dtype": spec.dtype, "parameters": size.parameters, "layers": size.layers,
            "stages": rows, "measured": sorted(set(measured) & set(wanted), key=wanted.index),
            **{each: None if size.parameters is None else sum(row[each] for row in rows)
               for each in ("seconds", "low", "high")},
            "memory_bytes": None if size.bytes is None else size.bytes * several * 1.2 + 0.7e9,
        }  # fmt: skip
    return {"dry_run": True, "name": study.name, "languages": list(study.languages), "models": models}


def machine() -> dict[str, Any]:
    """What the study runs on."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    return {"cpu": platform.machine(), "cores": os.cpu_count(), "memory_bytes": memory, "gpus": gpus}


def folder_names(models: Sequence[Model]) -> dict[str, Model]:
    """A folder for each model, named after it; models of one name are numbered."""
    found: dict[str, Model] = {}
    for spec in models:
        folder = Path(spec.name).expanduser()
        name = stem = slug(folder.resolve().name if folder.is_dir() else spec.name)
        for number in range(2, len(models) + 2):
            if name not in found and name not in STAGES:
                break
            name = f"{stem}-{number}"
        found[name] = spec
    return found


def _chosen(study: Study, only: str | None, start: str | None) -> list[str]:
    for stage in (only, start):
        if stage is not None and stage not in study.stages:
            raise ConfigError(f"wanted a stage of this study, {', '.join(study.stages)}, found {stage!r}. Correct it.")
    wanted = set(study.stages)
    if only is not None:
        wanted, fresh = {only}, [only]
        while fresh:
            fresh = [each for stage in fresh for each in study.needs(stage)]
            wanted |= set(fresh)
    return [stage for stage in STAGES.names() if stage in wanted]


def _check_tasks(study: Study, wanted: Sequence[str]) -> None:
    """Refuses a task without items in any language that is asked, and a data folder that isn't there."""
    from babelscope.evaluation.tasks.benchmarks import find

    named = {stage: STAGES[stage]().tasks(study.sections[stage]) for stage in wanted}
    for each in (task for tasks in named.values() for task in tasks):
        there = {asked.language for asked in find([each], None, study.data)}
        if study.english not in there or len(there & set(study.languages)) < 2:
            raise ConfigError(
                f"wanted items of {each} in {study.english} and in another of {', '.join(study.languages)}, found "
                f"{', '.join(sorted(there))}. Drop the task, or give its files with data: FOLDER."
            )
        lacking = [code for code in study.tuning.languages if code not in there]
        if "tuning" in wanted and each in study.tuning.tasks and lacking:
            raise ConfigError(
                f"tuning.tasks: wanted items of {each} in every tuned language, found none in {', '.join(lacking)}. "
                "Drop the task, or tune those languages in a study of their own."
            )


def _place(folder: Path, stage: str, key: str, anew: bool) -> bool:
    """Makes the stage's folder that of the key: what was made from other settings steps aside, or comes back.

    Returns:
        Whether there is something to run.
    """
    here, aside = folder / stage, folder / EARLIER / f"{stage}-{key}"
    if here.is_dir() and (not (here / KEY).is_file() or ((theirs := read_json(here / KEY)["key"]) == key and anew)):
        shutil.rmtree(here)
    elif here.is_dir() and theirs != key:
        (folder / EARLIER).mkdir(exist_ok=True)
        here.replace(folder / EARLIER / f"{stage}-{theirs}")
        logger.info("%s: other settings than before; what was made with those is kept in %s", stage, EARLIER)
    if not here.is_dir() and aside.is_dir() and not anew:
        aside.replace(here)
    if not here.is_dir():
        write_json(here / KEY, {"key": key})
    return not _there(here)


def _there(folder: Path) -> bool:
    return (folder / RESULT).is_file()


def _told(folder: Path) -> dict[str, Any]:
    return read_json(folder / RESULT)


def _command(study: Study, source: str, stage: str) -> str:
    return f"babelscope study {shlex.quote(portable(source))} --only {stage} --out runs/{slug(study.name)}"


def _run(study: Study, command: str, folder: Path, stage: str, loader: Loader, task: progress.Task) -> None:
    """Runs a stage and writes its result, last."""
    logger.info("%s: %s begins", folder.parent.name, stage)
    begun = [path.name for path in folder.iterdir()] != [KEY]
    started = time.monotonic()
    job = Job(study, loader, stage, folder, task)
    kind = STAGES[stage]
    section = kind().run(job, study.sections[stage])
    seconds = round(time.monotonic() - started, 1)
    content = {
        "kind": KIND, "version": VERSION, "stage": stage, "model": portable(loader.spec.name), "title": kind.title,
        "seconds": seconds, "how": section.how,
        "command": command,
        "findings": [asdict(each) for each in section.findings],
        "tables": [asdict(each) for each in section.tables], "figures": [asdict(each) for each in section.figures],
    }  # fmt: skip
    if not begun:  # else the time is that of a part
        took = {"seconds": seconds, "work": asdict(work(study, stage))}
        write_json(folder / KEY, {**read_json(folder / KEY), **took})
    write_json(folder / RESULT, finite(content))
    logger.info("%s: %s done in %.0f s", folder.parent.name, stage, seconds)


def _measured(folder: Path) -> dict[str, tuple[Cost, float]]:
    """By stage, what it had to do when it ran in a model's folder, and the seconds that this took."""
    told = {stage: read_json(folder / stage / KEY) for stage in STAGES.names() if (folder / stage / KEY).is_file()}
    return {stage: (Cost(**each["work"]), each["seconds"]) for stage, each in told.items() if "work" in each}


def _report(out: Path) -> str | None:
    from babelscope.report.page import write_report

    try:
        return str(write_report(out))
    except MissingDependencyError as error:
        logger.warning("the study is finished, but there is no report: %s", error)
        return None


def _summary(folder: Path, study: Study, ran: list[tuple[str, str]], name: str) -> dict[str, Any]:
    """What a person sees at the end: the stages, and the claims with what came of them."""
    results = [
        read_result(folder / stage / RESULT)
        for stage in STAGES.names()
        if _there(folder / stage) and stage in study.stages
    ]
    return {
        "stages": [
            {"stage": each.stage, "seconds": each.seconds, "before": (name, each.stage) not in ran} for each in results
        ],
        "findings": [{"stage": each.stage, **asdict(finding)} for each in results for finding in each.findings],
    }
