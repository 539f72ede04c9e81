"""What is asked: the settings that all stages of a study share, and the section of each stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from babelscope.options import Choice, Language, NonNegative, Options, Refused
from babelscope.stages.contract import STAGES

SEARCHED: Literal["searched"] = "searched"
USUAL: Literal["usual"] = "usual"
KINDS = ("detect", "held_out", "validation")
"""The kinds of texts that a study has."""


class Model(Options):
    """A model of the study."""

    name: str
    """a folder, a Hub name, or tinybabel"""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """of the loaded weights"""
    device: str | None = None
    """where the whole model goes, such as cpu or cuda:1; null: the first GPU, else the CPU"""
    device_map: str | None = None
    """auto shares the model out over all GPUs; needs accelerate"""
    revision: str | None = None
    """on the Hub"""
    trust_remote_code: bool = False
    """run code that the model brings along"""
    strip_prefix: str | None = None
    """taken off the names of the checkpoint's tensors, such as _orig_mod."""
    adapter: bool = False
    """apply the adapter of PEFT that lies in the model's folder"""


Sources = str | dict[Language, str]
"""One source of texts with {} for the language's code, or one per language."""


class Corpora(Options):
    """Texts: one source with {} for the language's code, or one per language."""

    detect: Sources | None = None
    """to find neurons on and to build the lens's profile from"""
    held_out: Sources | None = None
    """other texts, to measure on"""
    validation: Sources | None = None
    """others again, for search and tuning"""

    def of_kind(self, kind: str, languages: tuple[str, ...]) -> dict[str, str]:
        """Sources by language."""
        return by_language(getattr(self, kind) or self.held_out or {}, languages)


def by_language(source: str | Mapping[str, str], languages: Iterable[str]) -> dict[str, str]:
    """Language -> its source, of those that have one; `{}` in a text stands for the language's code."""
    if isinstance(source, str):
        return {code: source.replace("{}", code) for code in languages}
    return {code: source[code] for code in languages if code in source}


class Split(Options):
    """Layers of the first and of the last stage."""

    understand: NonNegative
    """first layers"""
    generate: NonNegative
    """last layers"""


class Common(Options):
    """The settings that all stages share."""

    models: tuple[str | Model, ...]
    """what is looked at; several are compared"""
    languages: tuple[Language, ...]
    """codes of the languages"""
    corpora: Corpora = dataclasses.field(default_factory=Corpora)
    """texts by language"""
    stages: tuple[Annotated[str, Choice(STAGES.names)], ...] = dataclasses.field(default_factory=STAGES.names)
    """what is done"""
    name: str = "study"
    """of the study"""
    english: Language = "en"
    """the language that is compared with, and that edits should spare"""
    seed: NonNegative = 0
    """decides every draw"""
    field: str = "text"
    """field of jsonl and parquet files that holds the text"""
    data: str | None = None
    """folder with the benchmarks' files; null: the Hub"""
    atlas: str | None = None
    """a run of babelscope detect, or its atlas, in place of the stage detect"""
    neurons: tuple[str, ...] | None = None
    """neuron files, or folders of them, in place of the stage select"""
    split: Literal["searched", "usual"] | Split = SEARCHED
    """searched, usual (a quarter of the layers and a sixteenth), or understand: N and generate: N"""
    force: bool = False
    """accept given neurons that were found in another model of the same shape"""

    def check(self) -> None:
        """Two languages at least, and a model."""
        for name, least in (("models", 1), ("languages", 2), ("stages", 1)):
            if len(getattr(self, name)) < least:
                raise Refused(name, f"a list of {least} or more", str(len(getattr(self, name))), "Add more.")


@dataclass(frozen=True)
class Study:
    """A whole study. The settings of a stage are an attribute of its name: `study.detect.documents`."""

    common: Common
    sections: Mapping[str, Options]
    """Stage -> its settings."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.sections[name] if name in self.sections else getattr(self.common, name)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models; a name alone stands for a model with the usual settings."""
        return tuple(model if isinstance(model, Model) else Model(name=model) for model in self.common.models)

    def corpus(self, kind: str) -> dict[str, str]:
        """Sources by language."""
        return self.common.corpora.of_kind(kind, self.common.languages)

    @property
    def given(self) -> dict[str, Any]:
        """Stage -> the files that stand for its result."""
        files = {"detect": self.common.atlas, "select": self.common.neurons}
        return {stage: path for stage, path in files.items() if path is not None}

    def needs(self, stage: str) -> tuple[str, ...]:
        """The stages that a stage reads, but those whose results are given as files."""
        return tuple(name for name in STAGES[stage]().required(self) if name not in self.given)

    def texts(self, stage: str) -> dict[str, dict[str, str]]:
        """Kind -> language -> source of the texts that a stage reads."""
        return STAGES[stage]().sources(self.sections[stage], self)

    def changed(self, **changes: Any) -> Study:
        """The same study with other settings: of all stages by their name, or whole sections by the stage's name."""
        common = {name: value for name, value in changes.items() if name not in self.sections}
        sections = {name: changes.get(name, options) for name, options in self.sections.items()}
        return Study(self.common.changed(**common), sections)

    def as_json(self) -> dict[str, Any]:
        """Everything that the study says, defaults included."""
        models = [model.as_json() for model in self.models]
        sections = {name: options.as_json() for name, options in self.sections.items()}
        return {**self.common.as_json(), "models": models, **sections}
