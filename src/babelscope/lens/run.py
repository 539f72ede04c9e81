"""A lens run: a folder with the profile, the curve, its table, charts and page."""

from __future__ import annotations

import csv
import importlib.util
import logging
import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from babelscope.artifacts import run_folder, update_run
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.errors import ConfigError
from babelscope.languages import get_language
from babelscope.lens.curve import LanguageCurve
from babelscope.lens.measure import language_lens
from babelscope.lens.tokens import tokenizer_fingerprint
from babelscope.lens.vocabulary import VocabularyProfile
from babelscope.models.load import ModelIdentity

logger = logging.getLogger(__name__)

CURVE, TABLE, PAGE = "lens.safetensors", "lens.csv", "lens.html"
CHARTS = {"area": "area.svg", "heat": "heat.svg"}
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
    profile_documents: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> LanguageCurve:
    """Builds the profile, runs the lens and writes everything to a folder; a finished folder is read instead.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        corpora: for the profile.
        prompts: by language.
        out: the run folder.
        profile_documents: read at most so many of each corpus.
        progress: a bar on standard error; None: on a terminal.
        **options: of `language_lens`.

    Raises:
        RunFolderError: the folder is in use, or was made with other settings.
    """
    asked = {
        "command": "lens",
        "model": ModelIdentity.of(model).fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "corpora": {language: corpus.identity() for language, corpus in corpora.items()},
        "prompts": {language: corpus.identity() for language, corpus in prompts.items()},
        "profile_documents": profile_documents,
        **options,
    }
    about = {"model": ModelIdentity.of(model).as_json(), "corpora": {code: each.name for code, each in corpora.items()}}
    with run_folder(out, asked, about):
        if (out / CURVE).is_file():
            return LanguageCurve.load(out / CURVE)
        started = time.monotonic()
        profile = VocabularyProfile.build(tokenizer, corpora, documents=profile_documents, cache=out)
        logger.info("profile of %d languages: %.0f s", len(profile.languages), time.monotonic() - started)
        with _Bar(progress) as bar:
            curve = language_lens(model, tokenizer, prompts, profile, progress=bar, **options)
        _write_table(curve, out / TABLE)
        if importlib.util.find_spec("altair") and importlib.util.find_spec("vl_convert"):
            from babelscope.lens.charts import save_chart
            from babelscope.lens.page import write_page

            for kind, name in CHARTS.items():
                save_chart(curve.plot("area" if kind == "area" else "heat"), out / name)
            write_page(curve, out / PAGE)
        else:
            logger.warning('no charts and no page were written; they need: pip install "babelscope[report]"')
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


def _write_table(curve: LanguageCurve, path: Path) -> None:
    rows = curve.rows()
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


class _Bar:
    """Prompts read, on standard error, through tqdm (which transformers brings along)."""

    def __init__(self, shown: bool | None) -> None:
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._bar: Any = None
        self._count = 0

    def __enter__(self) -> _Bar:
        if self._shown:
            from tqdm import tqdm

            self._bar = tqdm(unit="prompt", desc="lens")
        return self

    def __call__(self, prompts: int) -> None:
        self._count += prompts
        if self._bar is not None:
            self._bar.update(prompts)
        else:
            logger.info("%d prompts", self._count)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
