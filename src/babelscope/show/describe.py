"""Any artefact as plain data that JSON can hold."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.artifacts import read_header, read_json
from babelscope.errors import BabelscopeError, DataError, ProvenanceError, UnsupportedModelError
from babelscope.models.families import MODEL_TYPES
from babelscope.progress import clean

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas
    from babelscope.neurons.neuronset import NeuronSet

_ATLAS_FILE = "atlas.safetensors"
SKIPPED = {
    "empty": "empty",
    "too_short": "too short",
    "not_sampled": "not sampled",
    "other_shards": "other shards",
    "cut": "used, but cut",
}
"""Fields of a corpus record -> headings."""


def describe(path: str | Path, top: int = 10) -> dict[str, Any]:
    """Reads any artefact into plain data that JSON can hold.

    Args:
        path: a neuron file, a folder of them, an atlas, a run folder of any command or its run.json, or a model folder.
        top: how many of the best neurons of a neuron file to list.

    Raises:
        DataError: nothing of the kind is there, or it is damaged.
    """
    path = Path(path).expanduser()
    with damage_explained(path):
        return _describe(path, top)


@contextmanager
def damage_explained(path: object) -> Iterator[None]:
    """A header that lacks what Babelscope writes, or holds something else there, is a damaged file: DataError."""
    try:
        yield
    except BabelscopeError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: the header is damaged ({error!r}). Make it again.") from error


def _describe(path: Path, top: int) -> dict[str, Any]:
    if path.name in ("run.json", "config.json") and path.is_file():
        path = path.parent
    if path.is_dir():
        return _describe_folder(path)
    if not path.exists():
        raise DataError(f"no file or folder {path}. Check the path.")
    if path.suffix != ".safetensors":
        raise DataError(
            f"{path} is nothing that Babelscope makes. Wanted a run folder, an atlas or neuron file (.safetensors), a "
            "folder of neuron files, or a model folder."
        )
    kind = read_header(path)["kind"]
    if kind == "neurons":
        from babelscope.neurons.neuronset import NeuronSet

        return {"artefact": "neurons", "file": str(path), **neurons_content(NeuronSet.load(path), top)}
    if kind == "atlas":
        from babelscope.detection.atlas import Atlas

        return {"artefact": "atlas", "file": str(path), **atlas_content(Atlas.load(path), impacts=True)}
    raise DataError(f"{path} is a {clean(kind)} that a run keeps for itself. Give the run folder instead.")


def run_state(folder: Path) -> dict[str, Any] | None:
    """How far a run folder is: `finished`, or `unfinished` with a state per language; None if it is no run folder."""
    if (folder / _ATLAS_FILE).is_file():
        return {"state": "finished"}
    if not (folder / "run.json").is_file():
        return None
    with damage_explained(folder / "run.json"):
        return _unfinished(folder)


def _unfinished(folder: Path) -> dict[str, Any]:
    record = read_json(folder / "run.json")
    parts = folder / "languages"
    states = {}
    for language in (record.get("asked") or {}).get("corpora") or {}:
        kept = [parts / f"{language}{suffix}.safetensors" for suffix in ("", ".partial")]
        states[language] = "finished" if kept[0].exists() else "begun" if kept[1].exists() else "to do"
    written = [item.stat().st_mtime for item in (folder / "run.json", *parts.glob("*.safetensors"))]
    last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(max(written)))
    return {"state": "unfinished", "languages": states, "last_written": last, "record": record}


def made_by(folder: Path) -> str | None:
    """The command whose run folder this is, or None."""
    if not (folder / "run.json").is_file():
        return None
    with damage_explained(folder / "run.json"):
        record = read_json(folder / "run.json")
        command = (record.get("asked") or {}).get("command") or record.get("command")
    return None if command is None else str(command)


def _other_run(path: Path) -> dict[str, Any] | None:
    """A run of another command than `detect`: how far it is; of a study also what it found. None if it is none."""
    command = made_by(path)
    if command in (None, "detect"):
        return None
    content: dict[str, Any] = {
        "folder": str(path), "command": command, "state": read_json(path / "run.json").get("status", "unfinished"),
        "files": sorted(item.name for item in path.iterdir() if not item.name.startswith(".")),
    }  # fmt: skip
    if command != "study":
        return {"artefact": "other run", **content}
    from babelscope.report.reader import read_run

    run, report = read_run(path), path / "report.html"
    models = {
        name: {
            "stages": [{"stage": stage, "seconds": made.seconds, "before": False} for stage, made in stages.items()],
            "findings": [{"stage": stage, **asdict(each)} for stage, made in stages.items() for each in made.findings],
        }
        for name, stages in run.results.items()
    }
    missing = [f"{model} {stage}" for model, stage in run.missing]
    about = {"models": models, "missing": missing, "report": str(report) if report.exists() else None}
    return {"artefact": "study", **content, **about}


def _describe_folder(path: Path) -> dict[str, Any]:
    other = _other_run(path)
    if other is not None:
        return other
    state = run_state(path)
    if state is not None and state["state"] == "unfinished":
        return {"artefact": "run", "folder": str(path), **state}
    if state is not None:
        from babelscope.detection.atlas import Atlas

        atlas, found = Atlas.load(path), _neuron_files(path / "neurons")
        order = [*atlas.languages, *found]
        beside = {name: found[name] for name in sorted(found, key=order.index)}
        content: dict[str, Any] = {
            "artefact": "run",
            "folder": str(path),
            "state": "finished",
            "file": str(path / _ATLAS_FILE),
        }
        content |= atlas_content(atlas, impacts=True)
        return content | ({"sets": {"folder": str(path / "neurons"), **sets_content(beside)}} if beside else {})
    if (path / "config.json").is_file():
        return {"artefact": "model", "folder": str(path), **_model_content(path)}
    sets = _neuron_files(path)
    if sets:
        return {"artefact": "neuron files", "sets": {"folder": str(path), **sets_content(sets)}}
    names = sorted(item.name for item in path.iterdir())
    listing = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing at all"
    raise DataError(
        f"{path} is neither a run folder (run.json, {_ATLAS_FILE}) nor a model folder (config.json), and holds no "
        f"neuron files; found {listing}. Check the path."
    )


def _neuron_files(folder: Path) -> dict[str, NeuronSet]:
    """Sets by the stems of their files."""
    from babelscope.neurons.neuronset import NeuronSet

    files = [file for file in sorted(folder.glob("*.safetensors")) if read_header(file)["kind"] == "neurons"]
    return {file.stem: NeuronSet.load(file) for file in files}


def neurons_content(neurons: NeuronSet, top: int = 0) -> dict[str, Any]:
    """A set: sizes, provenance, and its `top` neurons by score."""
    counts = neurons.counts()
    ranked = sorted(
        (
            (slot, layer, unit, score)
            for slot, layers in (neurons.scores.items() if top else ())
            for layer, scores in enumerate(layers)
            for unit, score in zip(neurons.indices[slot][layer].tolist(), scores.tolist(), strict=True)
        ),
        key=lambda each: (math.isnan(each[3]), -each[3]),
    )
    return {
        "language": neurons.provenance.get("language"),
        "neurons": len(neurons),
        "units": neurons.universe,
        "share": len(neurons) / max(1, neurons.universe),
        "by_slot": {
            slot: {"neurons": sum(layers), "units": sum(neurons.widths[slot]), "by_layer": layers}
            for slot, layers in counts.items()
        },
        "top": [dict(zip(("slot", "layer", "unit", "score"), each, strict=True)) for each in ranked[: max(0, top)]],
        "provenance": dict(neurons.provenance),
    }


def sets_content(sets: Mapping[str, NeuronSet]) -> dict[str, Any]:
    """Several sets: their sizes, and by how much they overlap.

    `overlap[x][y]` is |N_x & N_y| / |N_y|; `chance[x][y]` is its expectation for random sets that have the same numbers
    of neurons per layer and slot. Both are left out, with a `note`, for sets of different models.
    """
    content: dict[str, Any] = {"files": {name: neurons_content(each) for name, each in sets.items()}}
    overlap: dict[str, dict[str, float]] = {x: {} for x in sets}
    chance: dict[str, dict[str, float]] = {x: {} for x in sets}
    try:
        for (x, mine), (y, theirs) in itertools.combinations(sets.items(), 2):
            both, expected = len(mine & theirs), mine.expected_overlap(theirs)
            for row, column, size in ((x, y, len(theirs)), (y, x, len(mine))):
                if size:
                    overlap[row][column], chance[row][column] = both / size, expected / size
    except ProvenanceError as error:
        return content | {"note": f"no overlaps: {error}"}
    return content | {"overlap": overlap, "chance": chance}


def atlas_content(atlas: Atlas, *, impacts: bool = False) -> dict[str, Any]:
    """An atlas: model, settings, what was read of each language, units; with `impacts`, their means by layer."""
    languages = {}
    for language, statistics in atlas.statistics.items():
        records = atlas.corpora.get(language, [])
        skipped = {
            name: sum((record.get("skipped") or {}).get(name, 0) for record in records) for name in ("seen", *SKIPPED)
        }
        languages[language] = {
            "documents": int(statistics.documents.sum()),
            "tokens": int(statistics.tokens.sum()),
            "skipped": skipped,
            "batches_halved": sum(record.get("batches_halved", 0) for record in records),
            "corpora": [str(record.get("name", "?")) for record in records],
        }
    content: dict[str, Any] = {
        "model": dict(atlas.model),
        "settings": dict(atlas.settings),
        "languages": languages,
        "units": {slot: list(layers) for slot, layers in atlas.layout.widths.items()},
    }
    if impacts:
        content["mean_impact"] = {
            language: {
                slot: [float(layer.mean()) for layer in atlas.layout.split(slot, statistics.mean(slot))]
                for slot in atlas.slots
            }
            for language, statistics in atlas.statistics.items()
        }
    return content


def _model_content(folder: Path) -> dict[str, Any]:
    """A model folder, from its configuration alone: the model is built on the meta device, without weights."""
    config = read_json(folder / "config.json")
    model_type = str(config.get("model_type", ""))
    row = MODEL_TYPES.get(model_type)
    content: dict[str, Any] = {"model_type": model_type, "family": row.name if row else None}
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from babelscope.models.anatomy import Anatomy

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
            )
        anatomy = Anatomy(model, check=False)
    except UnsupportedModelError as error:
        return content | {"supported": False, "reason": str(error)}
    except (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError) as error:
        # Whatever transformers makes of a configuration that it doesn't know or that is damaged.
        return content | {"supported": None, "reason": str(error).strip()}
    ffn = anatomy.layers[-1].ffn
    return content | {
        "supported": True,
        "family": anatomy.family,
        "layers": anatomy.n_layers,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "units": anatomy.widths(),
        "experts": ffn.n_experts if ffn.n_experts > 1 else None,
        "unscored": sorted({name for layer in range(anatomy.n_layers) for name in anatomy.unscored(layer)}),
    }
