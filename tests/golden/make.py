"""Golden files: numbers, choices and texts of Babelscope, made once and compared with what is computed now.

    python tests/golden/make.py                       make all golden files anew
    python tests/golden/make.py atlas grid            only these
    python tests/golden/make.py --study RUN           make quick.json of a finished run of the study tinybabel-quick
    python tests/golden/make.py --compare-study RUN   compare such a run with quick.json

A golden file is made anew only where a number was to change, and the change is explained in the commit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import babelscope as bs
from babelscope import Atlas, NeuronSet, cli
from babelscope.corpora.sources import open_corpus
from babelscope.report.reader import read_result
from builders import byte_llama, byte_tokenizer, letters, make_texts
from fixtures_text import LETTERS
from golden.compare import Rounding, differences
from tiny import tiny_model
from tuning.cases import neurons_of

FOLDER = Path(__file__).resolve().parent

STATISTICS = Rounding(1e-5, 1e-9)
"""Of statistics over documents: sums of float32 products, which another instruction set adds in another order."""
SCORES = Rounding(1e-4, 1e-6)
"""Of scores and measurements made from them: differences of such statistics lose one more digit."""
TRAINED = Rounding(1e-3, 1e-4)
"""Of a short training: its steps hand the rounding on."""


def rounded(value: float) -> float:
    """Nine significant digits: more than float32 has."""
    return float(f"{value:.9g}")


# Atlases


@cache
def atlases() -> dict[str, Atlas]:
    """Two tiny models measured in three ways, and the embedded model."""
    texts = {code: make_texts(code, 10, 12, 40) for code in LETTERS}
    options: dict[str, Any] = {"documents": None, "max_tokens": 32, "kernel": "eager", "token_budget": 128}
    llama, gemma2 = tiny_model("llama"), tiny_model("gemma2")
    model, tokenizer = bs.load_model("tinybabel", dtype="float32")
    corpora = {code: f"tinybabel:{code}" for code in ("en", "fr", "zh")}
    return {
        "llama": bs.detect(llama, letters(), texts, thresholds=[0.5, 1.0], **options),
        "llama-released": bs.detect(llama, letters(), texts, preset="released", **options),
        "gemma2-paper": bs.detect(gemma2, letters(), texts, preset="paper", **options),
        "tinybabel": bs.detect(model, tokenizer, corpora, documents=8, max_tokens=64, kernel="eager", folds=2),
    }


def atlas_content(atlas: Atlas) -> dict[str, Any]:
    """Everything of an atlas, its tensors as sums over the units of each layer."""
    return {
        "settings": dict(atlas.settings),
        "corpora": {code: [portable(record) for record in records] for code, records in atlas.corpora.items()},
        "layout": {slot: list(widths) for slot, widths in atlas.layout.widths.items()},
        "statistics": {code: _statistics(atlas, code) for code in atlas.languages},
    }


def _statistics(atlas: Atlas, code: str) -> dict[str, Any]:
    statistics = atlas.of(code)
    content: dict[str, Any] = {
        "documents": statistics.documents.tolist(),
        "tokens": statistics.tokens.tolist(),
    }
    for slot, fields in statistics.slots.items():
        content[slot] = {
            name: [_sums(layer) for layer in atlas.layout.split(slot, values)]
            for name, values in fields.items()
            if values.numel()
        }
    return content


def _sums(values: Tensor) -> list[Any]:
    """The sum over a layer's units, and a sum with weights that differ from unit to unit, of each fold and count.

    Counts stay whole numbers. The weights tell units apart: a permutation or a shift changes the second sum.
    """
    flat = values.flatten(0, -2)
    weights = torch.arange(1, flat.shape[1] + 1)
    if flat.is_floating_point():
        flat = flat.double()
        return [[rounded(row.sum().item()), rounded((row * weights).mean().item())] for row in flat]
    return [[int(row.sum()), int((row.long() * weights).sum())] for row in flat]


def make_atlas() -> dict[str, Any]:
    return {name: atlas_content(atlas) for name, atlas in atlases().items()}


# Selected sets

SELECTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "contrast": {},
        "contrast-budget": {"rule": "contrast", "budget": 0.07},
        "contrast-per-slot": {"rule": "contrast", "budget": 20, "per_slot": True},
        "contrast-mean": {"rule": "contrast", "budget": 15, "rest_statistic": "mean"},
        "contrast-minimum": {"rule": "contrast", "budget": 15, "target_statistic": "minimum", "slots": ["ffn", "v"]},
        "contrast-activation": {"rule": "contrast", "budget": 11, "statistic": "activation"},
        "minimum-budget": {"rule": "minimum", "budget": 0.08},
        "minimum-eps": {"rule": "minimum", "eps": 0.5},
        "minimum-eps-support": {"rule": "minimum", "eps": 1.0, "min_support": 0.7},
        "minimum-top-k": {"rule": "minimum", "top_k": 0.25},
        "minimum-top-k-support": {"rule": "minimum", "top_k": 0.1, "min_support": 0.5},
        "minimum-together": {"rule": "minimum", "budget": 17, "per_slot": False},
        "exclude-shared": {"rule": "minimum", "budget": 0.2, "exclude": "shared"},
        "exclude-others": {"rule": "minimum", "budget": 0.2, "exclude": "others"},
        "exclude-language": {"rule": "minimum", "budget": 0.2, "exclude": "zh"},
        "lape": {"rule": "lape"},
        "lape-budget": {"rule": "lape", "budget": 0.2},
        "lape-slots": {"rule": "lape", "budget": 0.1, "slots": ["q", "ffn"]},
    },
    "llama-released": {
        "released": {},
        "released-top-k": {"rule": "released", "top_k": 0.25},
        "released-support": {"rule": "released", "top_k": 0.1, "min_support": 0.6},
        "released-budget": {"rule": "released", "budget": 9},
    },
    "gemma2-paper": {
        "minimum": {},
        "minimum-eps": {"rule": "minimum", "eps": 1.0},
        "contrast": {"rule": "contrast", "budget": 0.05},
    },
    "tinybabel": {
        "contrast": {"budget": 0.002},
        "minimum": {"rule": "minimum", "budget": 0.002},
        "released": {"rule": "released", "top_k": 0.01},
        "lape": {"rule": "lape", "budget": 0.004},
    },
}
"""Atlas -> name -> arguments of `select`: every rule with every setting it takes."""


def make_sets() -> dict[str, Any]:
    made = atlases()
    return {
        name: {
            label: {
                code: set_content(made[name].select(code, **options))
                for code in made[name].languages
                if options.get("exclude") != code
            }
            for label, options in selections.items()
        }
        for name, selections in SELECTIONS.items()
    }


def set_content(neurons: NeuronSet) -> dict[str, Any]:
    """The units by slot and layer, how they were selected, and the scores as a sum with weights."""
    scores = {
        slot: [[rounded(float(score)) for score in layer[:3]] for layer in layers]
        for slot, layers in (neurons.scores or {}).items()
    }
    return {
        "selection": neurons.provenance["selection"],
        "units": {slot: [layer.tolist() for layer in layers] for slot, layers in neurons.indices.items()},
        "first scores": scores,
    }


# A grid, a training


def make_grid() -> dict[str, Any]:
    """The command `grid` on sets of the embedded model: its table, its claims."""
    atlas = atlases()["tinybabel"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for code in ("fr", "zh"):
            atlas.select(code, budget=0.01).save(place / f"{code}.safetensors")
        for code in ("en", "fr", "zh"):
            held_out = [document.text for document in islice(open_corpus(f"tinybabel:{code}:test"), 3)]
            (place / f"{code}.txt").write_text("\n".join(" ".join(text.split()) for text in held_out), encoding="utf-8")
        command(
            "grid",
            "tinybabel",
            "--neurons",
            place / "fr.safetensors",
            place / "zh.safetensors",
            "--tasks",
            "tinybabel_knowledge,tinybabel_understanding",
            "--limit",
            4,
            "--parts",
            "all,solve-ffn",
            "--held-out",
            place / "{}.txt",
            "--texts",
            3,
            "--text-controls",
            2,
            "--controls",
            2,
            "--batch-size",
            64,
            "--split",
            "2,1",
            "--dtype",
            "float32",
            "--out",
            place / "run",
        )
        result = read_result(place / "run" / "tinybabel" / "grid" / "result.json")
        named = {table.name: table for table in result.tables}["grid"]
        rows = [dict(zip(named.columns, row, strict=True)) for row in named.rows]
        table = [{name: "nan" if cell is None else cell for name, cell in row.items()} for row in rows]
        table.sort(key=lambda row: [row[name] for name in ("off", "part", "task", "language", "metric")])
        return {
            "table": portable(table),
            "findings": portable([vars(each) for each in result.findings]),
        }


def make_tuning() -> dict[str, Any]:
    """A short training of chosen neurons, with another language kept and its loss limited."""
    model = byte_llama()
    held_out = {code: make_texts(code, 4, 20, 60) for code in ("sw", "fr")}
    result = bs.tune(
        model,
        byte_tokenizer(),
        neurons_of(model),
        make_texts("sw", 40),
        language="sw",
        held_out=held_out,
        keep={"fr": make_texts("fr", 20)},
        keep_share=0.25,
        documents=30,
        max_tokens=24,
        batch_size=4,
        epochs=2,
        learning_rate=1e-2,
        evaluations=4,
    )
    return {
        "before": dict(result.before),
        "after": dict(result.after),
        "history": portable(dict(result.history)),
        "best_step": result.best_step,
        "share": result.share,
        "parameters": result.parameters,
    }


# A study of all stages

STUDY = """\
extends: tinybabel-quick
name: golden
languages: [en, fr, zh, sw]
stages: [detect, select, lens, search, damage, grid, evaluation, steering, tuning]
detect: {documents: 12, max_tokens: 96, kernel: eager}
select: {compare: [minimum, released, lape]}
lens: {documents: 3, profile_documents: 60, max_tokens: 24}
search: {texts: 3, max_tokens: 64}
damage: {texts: 4, max_tokens: 64, controls: 2}
grid:
  tasks: {tinybabel_understanding: [all], tinybabel_knowledge: [all, solve-ffn]}
  languages: [fr]
  limit: 6
  controls: 2
evaluation: {tasks: [tinybabel_knowledge], languages: [en, fr], limit: 6}
steering: {to: [fr], prompts: 4, new_tokens: 8, factors: [4]}
tuning: {languages: [sw], documents: [20], max_tokens: 64, texts: 4}
"""
"""The study tinybabel-quick with every stage, of a size for the tests."""


def make_study() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "study.yaml").write_text(STUDY, encoding="utf-8")
        command("study", place / "study.yaml", "--out", place / "run")
        return study_content(place / "run", place)


def study_content(run: Path, folder: Path | None = None) -> dict[str, Any]:
    """Every result of a study, without what a run does not decide: seconds and paths.

    Records of a figure become columns, which is shorter. Of the tokens of the lens every 13th is kept: they are many.
    """
    content = {}
    for path in sorted(run.glob("*/*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        del result["seconds"]
        for figure in result["figures"]:
            if figure["kind"] == "tokens":
                figure["records"] = figure["records"][::13]
            names = dict.fromkeys(name for record in figure["records"] for name in record)
            figure["records"] = {name: [record.get(name) for record in figure["records"]] for name in names}
        content["/".join(path.parts[-3:-1])] = portable(result, folder or run)
    return content


# Files


def command(*words: object) -> Any:
    """Runs a command and returns what it prints as JSON."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()) as told:
        code = cli.main([*map(str, words), "--json"])
    if code:
        raise RuntimeError(f"babelscope {' '.join(map(str, words))} ended with {code}: {told.getvalue()}")
    return json.loads(printed.getvalue())


def portable(value: Any, folder: Path | None = None) -> Any:
    """The same as JSON, with rounded numbers and `FOLDER` for the folder."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, str):
        return value if folder is None else value.replace(str(folder), "FOLDER")
    if isinstance(value, Mapping):
        return {str(key): portable(each, folder) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [portable(each, folder) for each in value]
    return value


GOLDEN: dict[str, tuple[Callable[[], dict[str, Any]], Rounding]] = {
    "atlas": (make_atlas, STATISTICS),
    "sets": (make_sets, SCORES),
    "grid": (make_grid, SCORES),
    "tuning": (make_tuning, TRAINED),
    "study": (make_study, TRAINED),
}
"""Name of a golden file -> what makes it, and the rounding of its numbers."""


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, content: Any) -> None:
    """A line for each part down to the third level, so that a difference can be read."""
    (FOLDER / f"{name}.json").write_text(_lines(content, 3) + "\n", encoding="utf-8")


def _lines(content: Any, depth: int, indent: str = "") -> str:
    if depth == 0 or not isinstance(content, dict) or not content:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    inner = indent + " "
    parts = [f"{inner}{json.dumps(key)}: {_lines(value, depth - 1, inner)}" for key, value in content.items()]
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}"


def compared(name: str, now: Any, rounding: Rounding) -> list[str]:
    """A line for every difference of a golden file from what is computed now."""
    return list(differences(read(name), json.loads(json.dumps(now)), rounding))


def main(words: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GOLDEN)} (all)")
    parser.add_argument("--compare", action="store_true", help="compare instead of making")
    parser.add_argument("--study", type=Path, metavar="RUN", help="make quick.json of a run of tinybabel-quick")
    parser.add_argument("--compare-study", type=Path, metavar="RUN", help="compare such a run with quick.json")
    args = parser.parse_args(None if words is None else list(words))
    if args.study:
        write("quick", study_content(args.study))
        return 0
    if args.compare_study:
        found = {"quick": compared("quick", study_content(args.compare_study), TRAINED)}
    else:
        found = {}
        for name in args.names or GOLDEN:
            make, rounding = GOLDEN[name]
            if args.compare:
                found[name] = compared(name, make(), rounding)
            else:
                write(name, make())
    for name, lines in found.items():
        print(f"{name}: {len(lines)} differences", *lines, sep="\n  ")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
