"""Keys of a study: a digest of everything that decides the numbers of a stage on a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from babelscope.artifacts import digest
from babelscope.corpora.sources import open_corpus
from babelscope.errors import DataError
from babelscope.models.gguf import gguf_file
from babelscope.models.named import model_folder
from babelscope.report.results import VERSION
from babelscope.stages.contract import STAGES
from babelscope.stages.study import Model, Study
from babelscope.textfiles import MIB

Identities = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Stage -> kind of texts -> language -> what tells the texts from changed ones."""


def stage_keys(study: Study, spec: Model, texts: Identities) -> dict[str, str]:
    """The key of each stage: its settings, the model, its texts and the keys of the stages that it reads.

    Args:
        study: the study that is asked for.
        spec: one of its models.
        texts: from `text_identities`; a stage that is not in it is not wanted and gets no key.
    """
    said, keys = study.as_json(), dict[str, str]()
    model = {"identity": model_identity(spec), "dtype": spec.dtype}
    for stage in (stage for stage in STAGES if stage.name in texts):
        settings: dict[str, Any] = {}
        for name in (stage.name, *stage.decides):
            outer, _, inner = name.partition(".")
            settings[name] = said[outer][inner] if inner else said[outer]
        if "data" in stage.decides:
            settings["files"] = _listing(study.data)
        needed = stage().required(study)
        content = {
            "stage": stage.name,
            "model": model,
            "settings": settings,
            "inputs": [keys[name] for name in needed if name in keys],
            "version": VERSION,
            "texts": texts[stage.name],
        }
        given = {name: _files_identity(study, name) for name in study.given} if needed else {}
        keys[stage.name] = digest(content | ({"given": given} if given else {}))
    return keys


def text_identities(study: Study, stages: list[str]) -> dict[str, dict[str, dict[str, str]]]:
    """What tells the texts of each stage from changed ones. Opening them refuses what is missing."""
    known: dict[str, str] = {}

    def identity(source: str) -> str:
        if source not in known:
            known[source] = open_corpus(source, study.field, study.seed).identity()
        return known[source]

    return {
        stage: {
            kind: {code: identity(source) for code, source in sources.items()}
            for kind, sources in study.texts(stage).items()
        }
        for stage in stages
    }


def model_identity(spec: Model) -> str:
    """What tells a model from another without loading it: its files' sizes and ends; for a Hub name, the revision."""
    folder = model_folder(spec.name)
    file = gguf_file(folder)
    if file is not None:
        return _ends([file])
    if not folder.is_dir():
        return f"{spec.name}@{spec.revision or 'main'}"
    return _ends(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".model"))


def _files_identity(study: Study, stage: str) -> str:
    """What tells files that stand for a stage's result from changed ones."""
    from babelscope.detection.atlas import FILE
    from babelscope.neurons.files import files_by_language

    if stage == "select":
        return _ends(files_by_language(study.given[stage]).values())
    path = Path(study.given[stage]).expanduser()
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"wanted an atlas, found nothing at {file}. Give the run folder of babelscope detect.")
    return _ends([file])


def _ends(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        total.update(f"{path.name} {size}".encode())
        with path.open("rb") as stream:
            total.update(stream.read(MIB))
            stream.seek(max(0, size - MIB))
            total.update(stream.read(MIB))
    return total.hexdigest()[:32]


def _listing(data: str | None) -> list[tuple[str, int]] | None:
    if data is None:
        return None
    folder = Path(data).expanduser()
    return sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file())
