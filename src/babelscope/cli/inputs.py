"""What commands read: models, texts and neuron files, opened as the flags say, with wrong paths found early."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.cli.messages import quieten_transformers
from babelscope.errors import ConfigError, RunFolderError
from babelscope.languages import get_language
from babelscope.progress import task

if TYPE_CHECKING:
    from babelscope.neurons.neuronset import NeuronSet


def given(args: argparse.Namespace, names: str) -> dict[str, Any]:
    """The flags of these names, which the library calls the same."""
    return {name: getattr(args, name) for name in names.split()}


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that `load_and_place` takes."""
    return given(args, "dtype device device_map revision trust_remote_code strip_prefix adapter")


def load(args: argparse.Namespace, **options: Any) -> tuple[Any, Any]:
    """The model, on the GPU where there is one, and its tokenizer; `options` as of `load_model`, beside the flags."""
    quieten_transformers()
    from babelscope.models.load import load_and_place

    with task(f"loading {args.model}"):
        return load_and_place(args.model, **loading(args), **options)


def load_for_training(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model where --device or --device-map say; without them on the CPU, from where the Trainer takes it."""
    if args.device is not None:
        return load(args)
    from babelscope.models.load import load_model

    options = {name: value for name, value in loading(args).items() if name != "device"}
    with task(f"loading {args.model}"):
        return load_model(args.model, **options)


def refuse_file(folder: Path) -> None:
    """RunFolderError where a folder is to be written, but a file is."""
    if folder.is_file():
        raise RunFolderError(f"{folder} is a file. Give a folder with --out.")


def load_neurons(paths: Iterable[Path]) -> NeuronSet:
    """All neurons of some files, of folders of them, or of run folders."""
    from babelscope.neurons.files import load_union

    return load_union(paths)


def open_corpora(args: argparse.Namespace, named: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Sources by language, opened now, so that a wrong path shows before minutes of loading a model."""
    from babelscope.corpora.sources import open_corpus

    by_language: dict[str, list[str]] = {}
    for language, source in named:
        by_language.setdefault(get_language(language).code, []).append(source)
    if sum(sources.count("-") for sources in by_language.values()) > 1:
        raise ConfigError("standard input (-) can be read only once. Save the text to files and give their paths.")
    corpora: dict[str, Any] = {}
    for language, sources in by_language.items():
        opened = [open_corpus(source, field=args.field, seed=args.seed) for source in sources]
        if len(opened) > 1 and any(corpus.kind in ("hub", "stdin") for corpus in opened):
            raise ConfigError(f"{language}: standard input or a Hub dataset must be a language's only source. Save it.")
        corpora[language] = opened[0] if len(opened) == 1 else [Path(source) for source in sources]
    return corpora


def load_edit(args: argparse.Namespace) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The model, its tokenizer, the chosen part of the set, and what `ablate` and `export` take beside them."""
    from babelscope.corpora.sources import open_corpus
    from babelscope.detection.atlas import Atlas
    from babelscope.editing.recorded import record_activations
    from babelscope.editing.stages import Stages

    neurons = load_neurons(args.neurons)
    if args.stage or args.structure:
        stages = Stages.usual(neurons.n_layers) if args.stages is None else Stages(*args.stages)
        neurons = stages.of(neurons, args.stage, args.structure)
    options = given(args, "op factor value force")
    if args.reference is None or args.op not in ("median", "resample"):
        options["reference"] = None if args.reference is None else Atlas.load(args.reference)
        return *load(args), neurons, options
    corpus = open_corpus(args.reference)
    model, tokenizer = load(args)
    options["reference"] = record_activations(
        model, tokenizer, corpus, neurons, documents=args.documents, force=args.force
    )
    return model, tokenizer, neurons, options
