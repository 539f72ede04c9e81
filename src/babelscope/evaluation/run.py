"""The whole grid as one run: from neuron files to tables, and what came of the paper's claims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from babelscope.artifacts import write_json
from babelscope.corpora.sources import open_corpus
from babelscope.detection.atlas import Atlas
from babelscope.editing.stages import Stages
from babelscope.errors import ConfigError, DataError
from babelscope.evaluation.claims import CRITERIA, claims
from babelscope.evaluation.grid import TABLE, Grid, rows
from babelscope.evaluation.parts import CLAIMED, PARTS, standard_parts
from babelscope.evaluation.tables import (
    by_language,
    summarise,
    to_latex,
    to_latex_by_language,
    write_csv,
    write_parquet,
)
from babelscope.languages import get_language
from babelscope.neurons.neuronset import NeuronSet

CLAIMS = "claims.json"
TEXTS = 15
"""Held-out texts per language."""
QUICK: Mapping[str, Any] = {"limit": 10, "draws": 2, "text_draws": 5, "parts": CLAIMED}
"""What `--quick` takes, with the first three languages: a look, in which most claims stay undecided."""


def load_sets(paths: Iterable[Path]) -> dict[str, NeuronSet]:
    """Sets by language, from neuron files named after it (`fr.safetensors`) or folders of them.

    Raises:
        ConfigError: a file that isn't named after a language, two of one, or none at all.
        DataError: a file that can't be read.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found: dict[str, NeuronSet] = {}
    for file in files:
        if not file.exists():
            raise DataError(f"{file} is not there. Give the folder that babelscope select wrote, or files of it.")
        code = get_language(file.stem).code
        if code in found:
            raise ConfigError(f"two neuron files of {code}, the second is {file}. Give one for each language.")
        found[code] = NeuronSet.load(file)
    if not found:
        raise ConfigError("found no neuron file. Give what babelscope select wrote: its folder, or fr.safetensors, ...")
    return found


def run_grid(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, NeuronSet],
    tasks: Sequence[str],
    out: Path,
    *,
    name: str,
    languages: Sequence[str] | None = None,
    english: str = "en",
    stages: Stages | None = None,
    texts: str | None = None,
    quick: bool = False,
    dry_run: bool = False,
    parts: Sequence[str] | None = None,
    ops: Sequence[str] = ("zero",),
    reference: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measures the grid, writes its tables and the verdicts on the paper's claims.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        sets: language -> its neurons.
        tasks: as of `evaluate`.
        out: the run folder; the same call again goes on where it stopped.
        name: of the model, in the tables; the paper's numbers stand beside those of its own two.
        languages: whose neurons are switched off; None: all that there are sets of, but English.
        english: the language that should be spared.
        stages: the split of the layers; None: as the paper's.
        texts: a corpus of held-out texts with {} for the language, such as `tinybabel:{}:test`; None: none.
        quick: a look: three languages, ten items, few controls.
        dry_run: only count the cells.
        parts: of `PARTS` and `EQUAL`; None: all of `PARTS` that can be made.
        ops: as of `Grid`; the claims are judged by the first.
        reference: for `mean`: an atlas, by its file or the run folder of `detect`.
        **options: as of `Grid`.

    Returns:
        What `babelscope grid --json` prints.

    Raises: as `Grid` and `Grid.run`; ConfigError for a language without a set.
    """
    wanted = [get_language(each).code for each in languages or ()] or [code for code in sets if code != english]
    lacking = [code for code in wanted if code not in sets]
    if lacking or not wanted:
        raise ConfigError(
            f"no neurons of {', '.join(lacking) or f'a language other than {english}'}; there are some of "
            f"{', '.join(sets)}. Select them, or leave the language out."
        )
    if quick:
        wanted, parts = wanted[:3], QUICK["parts"]
        options = {**options, **{key: value for key, value in QUICK.items() if key != "parts"}}
    if stages is None:
        stages = Stages.usual(model.config.num_hidden_layers)
    held = None if texts is None else _held_out(texts, (*wanted, english))
    made = standard_parts(stages, sets, english, parts or PARTS)
    grid = Grid(
        model, tokenizer, {code: sets[code] for code in wanted}, tasks, out, parts=made, texts=held, english=english,
        ops=ops, reference=None if reference is None else Atlas.load(reference), **options,
    )  # fmt: skip
    content: dict[str, Any] = {
        "model": name, "languages": wanted, "stages": asdict(stages), "parts": list(made), "ops": list(ops),
        "cells": len(grid.cells()), "english_controls": grid.english_controls(), "out": str(out),
    }  # fmt: skip
    if dry_run:
        return {**content, "dry_run": True}
    effects = grid.run()
    table, summary = rows(effects, english), summarise(effects, name, english)
    each_language = by_language(effects, name, english)
    judgements = [each.as_json() for each in claims(effects, english, ops[0])]
    write_csv(out / TABLE, table)
    write_parquet(out / "grid.parquet", table)
    for stem, several in (("summary", summary), ("languages", each_language)):
        write_csv(out / f"{stem}.csv", several)
        write_parquet(out / f"{stem}.parquet", several)
    (out / "summary.tex").write_text(to_latex(summary, name), encoding="utf-8")
    (out / "languages.tex").write_text(to_latex_by_language(each_language, name), encoding="utf-8")
    told = {**content, "criteria": dict(CRITERIA), "claims": judgements}
    write_json(out / CLAIMS, told)
    beside = [asdict(row) for row in each_language if not math.isnan(row.printed_others)]
    return {**told, "summary": [asdict(row) for row in summary], "languages": beside}


def _held_out(source: str, languages: Sequence[str]) -> dict[str, list[str]]:
    if "{}" not in source:
        raise ConfigError(f"wanted texts with {{}} for the language, such as texts/{{}}.txt, found {source!r}.")
    return {
        code: list(islice((each.text for each in open_corpus(source.replace("{}", code)) if each.text.strip()), TEXTS))
        for code in dict.fromkeys(languages)
    }
