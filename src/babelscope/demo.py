"""The argument of the paper on Tinybabel, in minutes and offline: the study `tinybabel-quick`, with a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from babelscope.artifacts import read_json, write_json
from babelscope.editing.continuation import continued
from babelscope.editing.edits import ablate
from babelscope.neurons.neuronset import NeuronSet
from babelscope.stages.job import FOUND, Loader
from babelscope.stages.study import Study
from babelscope.study.config import load_study
from babelscope.study.plan import run_study
from babelscope.tinybabel import NAME
from babelscope.tinybabel.tasks import items

STUDY = "tinybabel-quick"
RULES = {"contrast (default)": "selected", "minimum (the paper's)": "minimum"}
"""Heading -> the kind of sets in the stage `damage` that it stands for."""


def demo(
    out: Path,
    *,
    documents: int | None = None,
    texts: int | None = None,
    draws: int | None = None,
    stages: Sequence[str] | None = None,
    shown: bool = True,
) -> dict[str, Any]:
    """Runs the quick study of Tinybabel's ten languages and sums up what switching their neurons off does.

    Args:
        out: run folder; the same command again resumes it.
        documents: per language, to detect on; None: as in the study, and so are the next three.
        texts: held-out texts per language, to measure the damage on.
        draws: random sets per language, of the same counts per layer and slot.
        stages: of the study; `damage` must be among them.
        shown: a progress view on standard error.

    Returns:
        What `babelscope demo --json` prints: the damage by rule, per language the change in bits per byte of its own
        texts and of the others' (mean), an answer with and without the language's neurons, and in `study` what
        `run_study` returns. Also in `out/demo.json`.
    """
    study = _changed(load_study(STUDY), documents, texts, draws, stages)
    ran = run_study(study, STUDY, out, shown=shown)
    sets = {code: NeuronSet.load(out / NAME / "select" / f"{code}.safetensors") for code in study.languages}
    model, tokenizer = Loader(study.models[0]).loaded
    content = {
        "folder": str(out),
        "units": next(iter(sets.values())).universe,
        "budget": study.select.budget,
        "damage": _damage(study, read_json(out / NAME / "damage" / FOUND)["change"]),
        "answers": [_answers(model, tokenizer, code, sets[code]) for code in ("fr", "zh")],
        "study": ran,
    }
    write_json(out / "demo.json", content)
    return content


def _changed(
    study: Study, documents: int | None, texts: int | None, draws: int | None, stages: Sequence[str] | None
) -> Study:
    changes: dict[str, Any] = {} if stages is None else {"stages": tuple(stages)}
    if documents is not None:
        changes["detect"] = study.detect.changed(documents=documents)
    damage = {name: value for name, value in (("texts", texts), ("controls", draws)) if value is not None}
    return study.changed(**changes, damage=study.damage.changed(**damage))


def _damage(study: Study, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    random = [found[f"random {number + 1}"] for number in range(study.damage.controls)]
    rows = []
    for at, code in enumerate(study.languages):
        row: dict[str, Any] = {"language": code}
        for rule, cell in RULES.items():
            values = found[cell][at]
            row[rule] = {"own": values[at], "others": (sum(values) - values[at]) / (len(values) - 1)}
        row["random"] = {"own": sum(change[at][at] for change in random) / len(random)}
        rows.append(row)
    return rows


def _answers(model: Any, tokenizer: Any, code: str, neurons: NeuronSet) -> dict[str, str]:
    """A training question in a language, answered by the intact model and without the language's neurons."""
    item = next(items("knowledge", code, "train", start=3))

    def answer() -> str:
        return continued(model, tokenizer, [item.prompt], 12)[0].strip()

    intact = answer()
    with ablate(model, neurons):
        without = answer()
    return {"language": code, "question": item.fields["question"]["stem"], "intact": intact, "without": without}
