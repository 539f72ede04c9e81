"""Neuron files on disk: a file, several, a folder of them, or the run folder that holds such a folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path

from torch import nn

from babelscope.errors import ConfigError, DataError
from babelscope.languages import get_language
from babelscope.models.anatomy import Anatomy
from babelscope.models.load import ModelIdentity
from babelscope.neurons.neuronset import NeuronSet

FOLDER = "neurons"
"""The folder in a run folder where `babelscope select` writes neuron files unless told otherwise."""
ATLAS = "atlas.safetensors"
"""The file of an atlas, which may lie beside neuron files."""


def neuron_files(paths: Iterable[str | Path]) -> list[Path]:
    """Every neuron file that some paths name.

    Args:
        paths: neuron files, folders of them, or run folders with a folder `neurons`.

    Raises:
        DataError: a path where nothing is, or a folder without a neuron file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
            continue
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        there = [file for file in sorted(folder.glob("*.safetensors")) if file.name != ATLAS]
        if not there:
            beside = path.parent / FOLDER if (path.parent / FOLDER).is_dir() else path.parent
            near = ", ".join(str(file) for file in sorted(beside.glob("*.safetensors"))[:8] if file.name != ATLAS)
            found = "a folder without any" if path.is_dir() else "nothing"
            raise DataError(
                f"wanted a neuron file or a folder of them, found {found} at {path}. "
                + (f"There are {near}." if near and not path.is_dir() else "babelscope select writes them.")
            )
        files += there
    return files


def files_by_language(paths: Iterable[str | Path]) -> dict[str, Path]:
    """Language -> its neuron file; each file is named after its language (`fr.safetensors`).

    Raises:
        ConfigError: a file that is not named after a language, two of one, or none at all.
        DataError: as `neuron_files`.
    """
    by_language: dict[str, Path] = {}
    for file in neuron_files(paths):
        code = get_language(file.stem).code
        if code in by_language:
            raise ConfigError(f"two neuron files of {code}, the second is {file}. Give one for each language.")
        by_language[code] = file
    if not by_language:
        raise ConfigError("found no neuron file. Give what babelscope select wrote: its folder, or fr.safetensors, ...")
    return by_language


def load_sets(paths: Iterable[str | Path]) -> dict[str, NeuronSet]:
    """Language -> its set; errors as `files_by_language`, and DataError for a file that can't be read."""
    return {code: NeuronSet.load(file) for code, file in files_by_language(paths).items()}


def adopted(neurons: NeuronSet, model: nn.Module | Anatomy) -> NeuronSet:
    """The same units and scores as a set of another model of the same shape.

    Raises:
        ProvenanceError: a model of another shape.
    """
    neurons.check(model, force=True)
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, tuple(neurons.widths), check=False)
    provenance = {**neurons.provenance, "model": ModelIdentity.of(anatomy.model).as_json()}
    return replace(neurons, provenance=provenance)


def load_union(paths: Iterable[str | Path]) -> NeuronSet:
    """One set: all neurons of all files; errors as `neuron_files`.

    Raises:
        ProvenanceError: files of two models.
    """
    return reduce(or_, [NeuronSet.load(file) for file in neuron_files(paths)])
