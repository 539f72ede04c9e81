"""A lens run: a folder with the profile, the curve, its table, charts and page."""

from __future__ import annotations

import csv
import itertools
import logging
import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from babelscope.artifacts import run_folder, update_run, write_json
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.errors import ConfigError, MissingDependencyError
from babelscope.languages import get_language
from babelscope.lens.curve import LanguageCurve
from babelscope.lens.measure import language_lens
from babelscope.lens.page import write_page
from babelscope.lens.tokens import tokenizer_fingerprint
from babelscope.lens.tuned import TunedLens, closeness_rows
from babelscope.lens.vocabulary import VocabularyProfile
from babelscope.lens.words import latent_table
from babelscope.models.load import ModelIdentity
from babelscope.progress import task
from babelscope.report.files import save_chart

logger = logging.getLogger(__name__)

CURVE, TABLE, PAGE, WORDS = "lens.safetensors", "lens.csv", "lens.html", "words.json"
TUNED, CLOSENESS = "tuned.safetensors", "tuned.csv"
CHARTS: tuple[Literal["area", "heat"], ...] = ("area", "heat")
FROM_CORPUS = "corpus"
"""As prompts: documents of the corpora themselves."""


def open_prompts(
    specs: Iterable[str], corpora: Mapping[str, Corpus], field: str = "text", seed: int = 0
) -> dict[str, Corpus]:
    """Prompts by language.

    Args:
        specs: each one of `corpus` (documents of the corpora themselves), LANGUAGE=SOURCE with a source that
            `open_corpus` takes, or a `.jsonl` or `.parquet` file that names the language of each prompt in `language`.
        corpora: by language.
        field: that holds the text.
        seed: of the shuffling of a Hub stream.

    Raises:
        ConfigError: a language given twice, or one that is unknown.
        DataError: a file that is missing or empty, or that lacks a field.
    """
    found: dict[str, Corpus] = {}
    for spec in specs:
        language, given, source = spec.partition("=")
        opened: Mapping[str, Any]
        if spec == FROM_CORPUS:
            opened = corpora
        elif given:
            opened = {get_language(language).code: open_corpus(source, field, seed)}
        else:
            opened = _by_language(spec, field)
        for code, corpus in opened.items():
            if code in found:
                raise ConfigError(f"prompts in {code} are given twice. Put them into one file.")
            found[code] = open_corpus(corpus)
    return found


def _by_language(path: str, field: str) -> dict[str, list[str]]:
    if path.endswith(".txt"):
        raise ConfigError(f"{path} doesn't say which language its prompts are in. Give it as LANGUAGE={path}.")
    found: dict[str, list[str]] = {}
    for code, text in zip(open_corpus(path, "language"), open_corpus(path, field), strict=True):
        found.setdefault(get_language(code.text).code, []).append(text.text)
    return found


def run_lens(
    model: nn.Module,
    tokenizer: Any,
    corpora: Mapping[str, Corpus],
    prompts: Mapping[str, Corpus],
    out: Path,
    *,
    words: Mapping[str, Corpus] | None = None,
    profile_documents: int | None = None,
    tuned_documents: int | None = None,
    **options: Any,
) -> LanguageCurve:
    """Builds the profile, runs the lens and writes everything to a folder; a finished folder is read instead.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        corpora: for the profile.
        prompts: by language.
        out: the run folder.
        words: parallel lists, a word per document, for `latent_table`; the first language is translated from.
        profile_documents: read at most so many of each corpus.
        tuned_documents: train a tuned lens on the first so many of each corpus and read the layers through it; the
            folder and the page then say how near it and the plain lens come to the last layer on documents held out.
        **options: of `language_lens`.

    Raises:
        RunFolderError: the folder is in use, or was made with other settings.
        The errors of `VocabularyProfile.build`, `TunedLens.train`, `language_lens` and `latent_language`.
    """
    words = words or {}
    asked = {
        "command": "lens",
        "model": ModelIdentity.of(model).fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "corpora": {language: corpus.identity() for language, corpus in corpora.items()},
        "prompts": {language: corpus.identity() for language, corpus in prompts.items()},
        "words": {language: corpus.identity() for language, corpus in words.items()},
        "profile_documents": profile_documents,
        "tuned_documents": tuned_documents,
        **options,
    }
    about = {"model": ModelIdentity.of(model).as_json(), "corpora": {code: each.name for code, each in corpora.items()}}
    with run_folder(out, asked, about):
        if (out / CURVE).is_file():
            return LanguageCurve.load(out / CURVE)
        started = time.monotonic()
        with task("vocabulary profile"):
            profile = VocabularyProfile.build(tokenizer, corpora, documents=profile_documents, cache=out)
        logger.info("profile of %d languages: %.0f s", len(profile.languages), time.monotonic() - started)
        tuned = None
        if tuned_documents is not None:
            texts = [text.text for each in corpora.values() for text in itertools.islice(each, tuned_documents)]
            with task("training the tuned lens"):
                tuned = TunedLens.train(model, tokenizer, texts)
            tuned.save(out / TUNED)
            _write_table(closeness_rows(tuned.about), out / CLOSENESS)
            logger.info("tuned lens of %d texts: %.0f s", len(texts), time.monotonic() - started)
        with task("lens", unit="prompts") as read:
            curve = language_lens(model, tokenizer, prompts, profile, tuned=tuned, progress=read.advance, **options)
        logger.info("%d prompts: %.0f s", len(curve.masses), time.monotonic() - started)
        if words:
            lists = {language: [text.text for text in corpus] for language, corpus in words.items()}
            shared = {name: options[name] for name in ("final_norm", "seed") if name in options}
            write_json(out / WORDS, {"rows": latent_table(model, tokenizer, lists, tuned=tuned, **shared)})
        _write_table(curve.rows(), out / TABLE)
        try:
            for kind in CHARTS:
                save_chart(curve.plot(kind), out / f"{kind}.svg")
            write_page(curve, out / PAGE)
        except MissingDependencyError as error:
            logger.warning("no charts and no page were written: %s", error)
        curve.save(out / CURVE)
        seconds = round(time.monotonic() - started, 1)
        update_run(out, status="finished", seconds=seconds, peak_memory=peak_memory(), prompts_read=len(curve.masses))
        return curve


def peak_memory() -> dict[str, int]:
    """Most bytes that this process has held: resident on the host, and allocated on GPUs if there are any."""
    scale = 1 if sys.platform == "darwin" else 1024
    found = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
    if torch.cuda.is_available():
        found["gpu"] = sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
    return found


def _write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
