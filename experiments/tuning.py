"""Does it matter which neurons are trained? Texts and study file of a comparison of trainings.

    python experiments/tuning.py tinybabel OUT
    python experiments/tuning.py real OUT --model MODEL --corpora CORPORA/{}.txt --parallel sw=swa.txt --parallel ...
    babelscope study OUT/study.yaml --out OUT/run     (as this script prints)

tinybabel: the four low-resource languages, on documents like those of the model's training (half of them solved tasks,
of indices that the training did not reach), scored on the four tasks and on bits per byte. real: Swahili and Indonesian
on `--join` lines of a corpus per document; lines 0 to 300 of parallel texts choose the rate and the step, lines 300 to
700 are reported. `--kept`: the other languages are kept by texts of theirs, and none may lose more than 1 %; documents
of Tinybabel are then pages of ten.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from babelscope.tinybabel.grammar import LANGUAGES
from babelscope.tinybabel.recipe import training_document
from babelscope.tinybabel.tasks import TASKS, items
from babelscope.tinybabel.texts import document

LOW_RESOURCE = ("sw", "vi", "th", "ar")
PAGE = 10
"""Documents of a page."""
UNSEEN = 1_000_000
"""The first document: the training of the model read some 10,000 per low-resource language."""


def main() -> None:
    """Writes the texts and study.yaml."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=("tinybabel", "real"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="tinybabel")
    parser.add_argument("--corpora", help="files of lines, with {} for the language's code")
    parser.add_argument("--parallel", action="append", default=[], metavar="LANGUAGE=FILE", help="files of lines")
    parser.add_argument("--join", type=int, default=5, help="lines of a document or text")
    parser.add_argument("--kept", action="store_true", help="no other language may lose more than 1 %%")
    parser.add_argument("--budget", type=float, default=0.03, help="share of all units")
    parser.add_argument("--documents", default="400")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    texts, tuning = tinybabel(options.out, options.kept) if options.world == "tinybabel" else real(options)
    tuning |= {"documents": [int(count) for count in options.documents.split(",")], "seeds": list(range(options.seeds))}
    if options.kept:
        tuning |= {"arms": ["neurons", "random", "lora", "full"], "others_at_most": 1, "texts": 50, "epochs": 3}
        tuning |= {"learning_rates": [1e-2], "full_learning_rates": [1e-3], "evaluations": 4, "patience": 9}
    else:
        tuning |= {"arms": ["neurons", "minimum", "random", "lora", "full"], "random": 2, "texts": 100}
    study = {
        "name": f"tuning-{options.world}",
        "models": [{"name": options.model, "dtype": "float32"}],
        **texts,
        "stages": ["detect", "select", "tuning"],
        "detect": {"documents": 300 if options.kept else 150},
        "select": {"budget": options.budget},
        "tuning": tuning,
    }
    (options.out / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    print(f"babelscope study {options.out / 'study.yaml'} --out {options.out / 'run'}")


def tinybabel(out: Path, kept: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the documents of the four languages, or their pages and those of all ten to keep them by.

    Returns:
        The texts and languages of the study, and settings of the stage tuning.
    """
    if not kept:
        alternate(out)
    else:
        for name, first, pages, codes in (("corpus", UNSEEN, 800, LOW_RESOURCE), ("keep", 2 * UNSEEN, 150, LANGUAGES)):
            for code in codes:
                starts = range(first, first + pages * PAGE, PAGE)
                texts = ("\n".join(training_document(code, at + each) for each in range(PAGE)) for at in starts)
                write(out / name / f"{code}.jsonl", texts)
    texts = {
        "languages": list(LANGUAGES),
        "corpora": {
            "detect": "tinybabel:{}",
            "validation": "tinybabel:{}:validation",
            "held_out": "tinybabel:{}:test",
        },
    }
    tasks = [f"tinybabel_{task}" for task in TASKS]
    keep = {"keep": str(out / "keep" / "{}.jsonl")} if kept else {}
    train = {"train": str(out / "corpus" / "{}.jsonl")}
    return texts, {"languages": list(LOW_RESOURCE), "tasks": tasks, "limit": 200, **train, **keep}


def alternate(out: Path) -> None:
    """Writes 1,000 documents per language: texts, and solved tasks in turn."""
    for code in LOW_RESOURCE:
        solved = {task: list(islice(items(task, code, "train", start=start(task)), 125)) for task in TASKS}
        tasks = [f"{item.prompt} {item.answer}" for row in zip(*solved.values(), strict=True) for item in row]
        texts = [document(code, "train", UNSEEN + index) for index in range(len(tasks))]
        write(out / "corpus" / f"{code}.jsonl", (text for pair in zip(texts, tasks, strict=True) for text in pair))


def start(task: str) -> int:
    """Questions about the world are few: there are none beyond those of the training."""
    return 0 if task == "knowledge" else UNSEEN


def real(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cuts files of lines into documents and texts; returns as `tinybabel`."""
    parallel = dict(item.split("=", 1) for item in options.parallel)
    for code, path in parallel.items():
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        corpus = Path(options.corpora.replace("{}", code)).read_text(encoding="utf-8").splitlines()
        parts = {"corpus": corpus, "validation": lines[:300], "test": lines[300:700]}
        for name, part in parts.items():
            joined = (" ".join(part[at : at + options.join]) for at in range(0, len(part), options.join))
            write(options.out / name / f"{code}.jsonl", joined)
    names = {"detect": "corpus", "validation": "validation", "held_out": "test"}
    corpora = {kind: str(options.out / name / "{}.jsonl") for kind, name in names.items()}
    tuning = {"languages": [code for code in ("sw", "id") if code in parallel]}
    return (
        {"languages": list(parallel), "corpora": corpora},
        tuning | ({"keep": corpora["detect"]} if options.kept else {}),
    )


def write(path: Path, texts: Iterable[str]) -> None:
    """A document per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    main()
