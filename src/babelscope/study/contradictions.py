"""What can't be in a study though every value in it can be: checked after reading, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from babelscope.errors import BabelscopeError

if TYPE_CHECKING:
    from babelscope.study.config import Study


def contradictions(study: Study) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """What single values don't show: the key, and what `Place.refuse` takes. The first is what a person is told."""
    codes = ", ".join(study.languages)
    for model in study.models:
        if model.name.startswith(("/", "~", ".")) and not Path(model.name).expanduser().is_dir():
            yield "models", ("a model's folder", f"no folder {model.name}", "Correct the path, or give a Hub name.")
    if study.english not in study.languages:
        yield (
            "english",
            (f"one of the languages ({codes})", repr(study.english), "Add it to languages, or name another."),
        )
    for stage in study.stages:
        missing = [each for each in study.needs(stage) if each not in study.stages]
        if missing:
            remedy = f"Add {missing[0]} to stages, or drop {stage}."
            if missing == ["search"]:
                remedy = "Add search to stages, or give split: {understand: N, generate: N}."
            yield "stages", (f"{missing[0]}, which {stage} reads", ", ".join(study.stages), remedy)
    for kind in ("detect", "held_out", "validation"):
        source = getattr(study.corpora, kind)
        if isinstance(source, str) and "{}" not in source:
            yield (
                f"corpora.{kind}",
                ("{} where the language's code goes", repr(source), "Or give a source per language."),
            )
        lacking = [code for code in study.languages if isinstance(source, dict) and code not in source]
        if lacking:
            yield f"corpora.{kind}", (f"a source for each of {codes}", f"none for {', '.join(lacking)}", "Add it.")
    for kind in ("held_out", "validation"):
        same = set(study.corpus("detect").values()) & set(study.corpus(kind).values())
        if getattr(study.corpora, kind) and same:
            yield f"corpora.{kind}", ("other texts than corpora.detect", min(same), "Measure on texts not detected on.")
    if study.corpora.validation is not None:
        same = set(study.corpus("validation").values()) & set(study.corpus("held_out").values())
        if same:
            remedy = "Choose on other texts than those that are reported."
            yield "corpora.validation", ("other texts than corpora.held_out", min(same), remedy)
    several = [kind for kind in ("detect", "held_out", "validation") if isinstance(getattr(study.corpora, kind), dict)]
    if "tuning" in study.stages and several:
        yield f"corpora.{several[0]}", ("one source with {} for tuning", "one per language", "Name the files alike.")
    if "tuning" in study.stages and study.corpora.validation is None:
        yield "corpora", ("the key validation for tuning", "none", "Add texts that are not in detect or held_out.")
    documents = study.detect.documents
    lacking = [code for code in study.languages if isinstance(documents, dict) and code not in documents]
    if lacking:
        yield "detect.documents", (f"a number for each of {codes}", f"none for {', '.join(lacking)}", "Add it.")
    if study.detect.min_tokens > study.detect.max_tokens:
        wanted = f"at most detect.max_tokens ({study.detect.max_tokens})"
        yield "detect.min_tokens", (wanted, str(study.detect.min_tokens), "Lower it, or raise max_tokens.")
    yield from _beyond_the_layers(study)
    named = {
        "grid.languages": study.grid.languages, "evaluation.languages": study.evaluation.languages,
        "steering.to": study.steering.to, "tuning.languages": study.tuning.languages,
        "search.language": (study.search.language,) if study.search.language else (),
    }  # fmt: skip
    for at, chosen in named.items():
        strange = [code for code in chosen or () if code not in study.languages]
        if strange and at.partition(".")[0] in study.stages:
            yield at, (f"some of the study's languages ({codes})", strange[0], "Add it to languages, or drop it here.")
    if study.english in study.steering.to:
        yield "steering.to", (f"languages other than {study.english}", study.english, "Drop it.")
    if study.search.language == study.english:
        yield "search.language", (f"a language other than {study.english}", study.english, "Name another.")
    for at, controls in (("damage.controls", study.damage.controls), ("grid.controls", study.grid.controls)):
        if controls == 1:
            yield at, ("0 or at least 2: one draw is no control", "1", "Write 5.")
    exclude = study.select.exclude
    if exclude not in (None, "shared", "others", *study.languages):
        yield "select.exclude", (f"shared, others or one of {codes}", repr(exclude), "Correct it.")
    content = {"grid": study.grid.tasks, "evaluation": study.evaluation.tasks, "steering": study.steering.to}
    content["tuning"] = study.tuning.languages
    for stage, value in content.items():
        if stage in study.stages and not value:
            inner = {"steering": "to", "tuning": "languages"}.get(stage, "tasks")
            yield "stages", (f"{stage}.{inner} for the stage {stage}", "none", f"Add it, or drop {stage} from stages.")
    tasks = {
        "grid.tasks": study.grid.tasks,
        "evaluation.tasks": study.evaluation.tasks,
        "tuning.tasks": study.tuning.tasks,
    }
    for at, names in tasks.items():
        for name in names:
            unknown = _unknown_task(name)
            if unknown:
                yield (f"{at}.{name}" if at == "grid.tasks" else at), ("a task with languages", repr(name), unknown)


def _beyond_the_layers(study: Study) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Splits that a model is too small for, where its size is known without loading it."""
    from babelscope.study.estimate import Size

    tried = {
        "split": [] if isinstance(study.split, str) else [(study.split.understand, study.split.generate)],
        "search": [(max(study.search.understand), max(study.search.generate))],
    }
    for model, (at, sizes) in product(study.models, tried.items()):
        layers = Size.of(model).layers
        for understand, generate in sizes if {"split": "grid"}.get(at, at) in study.stages else ():
            if layers is not None and understand + generate > layers:
                found = f"understand: {understand} and generate: {generate}"
                yield at, (f"stages within the {layers} layers of {model.name}", found, "Lower one of them.")


def _unknown_task(name: str) -> str | None:
    from babelscope.evaluation.tasks.benchmarks import benchmark_named

    try:
        benchmark_named(name)
    except BabelscopeError as error:
        return str(error)
    return None
