"""A study file: read, checked before anything runs, and written as a template to start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from babelscope.compression import path_of
from babelscope.errors import ConfigError, did_you_mean
from babelscope.models.gguf import SUFFIX
from babelscope.options import Options, Refused, defaults_of, fields_of, help_of, written
from babelscope.stages.asking import check_task
from babelscope.stages.contract import STAGES
from babelscope.stages.size import Size
from babelscope.stages.study import KINDS, SEARCHED, Common, Corpora, Split, Study
from babelscope.study.yaml_file import YamlFile, read_yaml
from babelscope.textfiles import read_text

__all__ = ["SEARCHED", "Split", "Study", "load_study", "presets", "template", "write_template"]

ENGLISH_WITHOUT_SET = {"grid", "search"}
"""Stages that read English texts or items, and need no set of English."""
PRESETS = Path(__file__).parent / "presets"


def presets() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_study(source: str | Path) -> Study:
    """Reads and checks a study.

    Args:
        source: a file, or the name of a preset. A file may say `extends: PRESET` and only what differs.

    Raises:
        ConfigError: no such file or preset, or something in it that can't be; names the line, the key, what was
            wanted, what was found and what to do.
    """
    file = _read(str(source), ())
    try:
        study = study_of(file.content, text=True)
        for problem in contradictions(study):
            raise problem
    except Refused as error:
        key = "languages" if error.key == "english" and "english" not in file.lines else error.key
        if key != error.key:
            file.lines[error.key] = file.lines[key]
        file.refuse(error.key, error.wanted, error.found, error.remedy)
    return study


def study_of(content: dict[str, Any], *, text: bool = False) -> Study:
    """A study from plain data: the settings of all stages, and a section for each stage that has other than defaults.

    Args:
        content: as a study file holds it.
        text: numbers and the like may be given as text.

    Raises:
        Refused: an unknown key, or a value that can't be.
    """
    sections = {stage.name: stage.options for stage in STAGES}
    for name in content:
        if name not in sections and name not in fields_of(Common):
            raise Refused(name, "a key of a study", repr(name), did_you_mean(name, [*fields_of(Common), *sections]))
    common = Common.of({name: value for name, value in content.items() if name not in sections}, text=text)
    filled = {name: content.get(name) or {} for name in sections}
    for name, value in filled.items():
        if not isinstance(value, dict):
            found = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
            remedy = "Write it as keys and values, indented by two spaces."
            raise Refused(name, "keys and values", found, remedy)
    return Study(common, {name: options.of(filled[name], name, text=text) for name, options in sections.items()})


def contradictions(study: Study) -> Iterator[Refused]:
    """Settings that contradict each other, though every value is right by itself; the first is told."""
    codes = ", ".join(study.languages)
    for model in study.models:
        Size.of(model)  # refuses a folder whose files can't be read
        path = path_of(model.name)
        if model.name.startswith(("/", "~", ".")) and not (path.is_dir() or (path.suffix == SUFFIX and path.is_file())):
            remedy = "Correct the path, or give a Hub name."
            yield Refused("models", "a model's folder", f"no folder {model.name}", remedy)
    if study.english not in study.languages:
        remedy = "Add it to languages, or name another."
        yield Refused("english", f"one of the languages ({codes})", repr(study.english), remedy)
    for stage in study.stages:
        missing = [name for name in study.needs(stage) if name not in study.stages]
        if missing:
            remedy = f"Add {missing[0]} to stages, or drop {stage}."
            if missing == ["search"]:
                remedy = "Add search to stages, or give split: {understand: N, generate: N}."
            yield Refused("stages", f"{missing[0]}, which {stage} reads", ", ".join(study.stages), remedy)
    yield from _given(study)
    yield from _texts(study, codes)
    for stage in STAGES:
        options = study.sections[stage.name]
        for task in stage().tasks(options):
            by_key = isinstance(getattr(options, "tasks", None), dict)
            yield from check_task(f"{stage.name}.tasks{f'.{task}' if by_key else ''}", task)
        if stage.name in study.stages:
            yield from stage().check(options, study)


def _given(study: Study) -> Iterator[Refused]:
    """Results that are given as files and asked for as well; an atlas that stages need and that nobody gives."""
    for stage, key in (("detect", "atlas"), ("select", "neurons")):
        if stage in study.given and stage in study.stages:
            yield Refused("stages", f"no {stage} beside {key}", stage, f"Drop one of them: {key} stands for {stage}.")
    if "select" in study.given:
        from babelscope.neurons.files import files_by_language

        there = files_by_language(study.given["select"])
        spared = {study.english} if set(study.stages) <= ENGLISH_WITHOUT_SET else set()
        lacking = [code for code in study.languages if code not in there and code not in spared]
        if lacking:
            remedy = "Select them, or leave these languages out."
            yield Refused(
                "neurons", f"a neuron file of each language ({', '.join(lacking)} too)", ", ".join(there), remedy
            )
        if study.select.compare and "detect" not in {*study.stages, *study.given}:
            remedy = "Give atlas: RUN, or drop it."
            yield Refused("select.compare", "an atlas to select by other rules from", "none", remedy)


def _texts(study: Study, codes: str) -> Iterator[Refused]:
    """Sources that are missing, or that are measured on although they chose something."""
    for kind in ("detect", "held_out"):
        readers = [stage for stage in STAGES.names() if stage in study.stages and kind in study.texts(stage)]
        if readers and getattr(study.corpora, kind) is None:
            wanted = f"the key {kind} ({help_of(Corpora)[kind]}), which {readers[0]} reads"
            yield Refused("corpora", wanted, "none", f"Add a line {kind}: ...")
    for kind in KINDS:
        source = getattr(study.corpora, kind)
        if isinstance(source, str) and "{}" not in source:
            wanted = "{} where the language's code goes"
            yield Refused(f"corpora.{kind}", wanted, repr(source), "Or give a source per language.")
        lacking = [code for code in study.languages if isinstance(source, dict) and code not in source]
        if lacking:
            yield Refused(
                f"corpora.{kind}", f"a source for each of {codes}", f"none for {', '.join(lacking)}", "Add it."
            )
    for kind, other, remedy in (
        ("held_out", "detect", "Measure on texts not detected on."),
        ("validation", "detect", "Measure on texts not detected on."),
        ("validation", "held_out", "Choose on other texts than those that are reported."),
    ):
        same = set(study.corpus(other).values()) & set(study.corpus(kind).values())
        if getattr(study.corpora, kind) and getattr(study.corpora, other) and same:
            yield Refused(f"corpora.{kind}", f"other texts than corpora.{other}", min(same), remedy)


def _read(source: str, above: tuple[str, ...]) -> YamlFile:
    if source in above:
        raise ConfigError(f"{above[-1]}: wanted a study that ends somewhere, found itself. Drop extends.")
    path = PRESETS / f"{source}.yaml" if source in presets() else path_of(source)
    if not path.is_file():
        raise ConfigError(
            f"wanted a study file or the name of a preset, found {source!r}. {did_you_mean(source, presets())} "
            "babelscope study --init writes a file to start from."
        )
    file = read_yaml(read_text(path), source if source in presets() else str(path))
    if "extends" not in file.content:
        return file
    parent = file.content.pop("extends")
    if parent not in presets() and not (isinstance(parent, str) and path_of(parent).is_file()):
        remedy = did_you_mean(str(parent), presets())
        file.refuse("extends", "the name of a preset or a file", repr(parent), remedy)
    return file.over(_read(parent, (*above, source)))


START = """\
# A study of babelscope. Run it:        babelscope study THIS-FILE --out runs/my-study
# See what it would do:                 babelscope study THIS-FILE --dry-run
# What is commented out has the value that stands there; `extends: PRESET` takes everything else from a preset.
"""
GIVEN = {
    "models": "[tinybabel]", "languages": "[en, fr, zh, sw]", "name": "my-study",
    "stages": "[detect, select, lens, damage]",
}  # fmt: skip
SOURCES = {"detect": "tinybabel:{}", "held_out": "tinybabel:{}:test", "validation": "tinybabel:{}:validation"}


def write_template(path: Path) -> Path:
    """Writes `template()` to a new file; ConfigError if it is there already."""
    if path.exists():
        raise ConfigError(f"wanted a new file to write a study to, found that {path} is there. Name another one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template(), encoding="utf-8")
    return path


def template() -> str:
    """A commented study file: what has to be said is said for Tinybabel, everything else is there with its default."""
    lines = [START]
    for name, default in defaults_of(Common).items():
        about = help_of(Common)[name]
        if name == "corpora":
            lines.append("corpora:  # files, folders, globs, hub:NAME:CONFIG:FIELD; {} is the language's code")
            lines += [f'  {kind}: "{source}"  # {help_of(Corpora)[kind]}' for kind, source in SOURCES.items()]
        elif name in GIVEN:
            lines.append(f"{name}: {GIVEN[name]}  # {about}")
        else:
            lines.append(f"# {name}: {written(default)}  # {about}")
    for stage in STAGES:
        lines += ["", f"# {stage.name}:  # {str(stage.options.__doc__).splitlines()[0]}", *_section(stage.options)]
    return "\n".join(lines) + "\n"


def _section(options: type[Options]) -> Iterator[str]:
    about = help_of(options)
    for name, default in defaults_of(options).items():
        assert default is not dataclasses.MISSING
        yield f"#   {name}: {written(default)}  # {about[name]}"
