"""The argument of the paper on Tinybabel, in minutes and offline: detect, select, switch off, with controls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from babelscope.artifacts import write_json
from babelscope.detection.atlas import Atlas
from babelscope.detection.detect import detect
from babelscope.editing.controls import controls
from babelscope.editing.edits import ablate
from babelscope.evaluation.likelihood import DamageMatrix, damage_matrix
from babelscope.models.load import load_model
from babelscope.tinybabel import NAME
from babelscope.tinybabel.grammar import LANGUAGES
from babelscope.tinybabel.tasks import items
from babelscope.tinybabel.texts import document

BUDGET = 0.01
"""Share of all units in a set."""
RULES: dict[str, dict[str, Any]] = {"contrast (default)": {}, "minimum (the paper's)": {"rule": "minimum"}}


def demo(
    out: Path, *, documents: int = 150, texts: int = 15, draws: int = 3, report: Callable[[str], None]
) -> dict[str, Any]:
    """Runs detection, selection and a short ablation on Tinybabel's ten languages.

    Args:
        out: run folder; the same command again resumes it.
        documents: per language, to detect on.
        texts: held-out texts per language, to measure the damage on.
        draws: random sets per language, of the same counts per layer and slot.
        report: called with what is being done.

    Returns:
        What `babelscope demo --json` prints: the damage by rule, per language the change in bits per byte of its own
        texts and of the others' (mean), and an answer with and without the language's neurons. Also in
        `out/demo.json`; the matrices are in `out/damage.json`.
    """
    model, tokenizer = load_model(NAME, dtype="float32")
    report(f"1/3 detect: every neuron scored on {documents} documents in each of {len(LANGUAGES)} languages")
    corpora = {code: f"{NAME}:{code}" for code in LANGUAGES}
    atlas = detect(model, tokenizer, corpora, documents=documents, run_dir=out / "detection")
    report(f"2/3 select: {BUDGET:.0%} of all neurons for each language")
    sets = {
        rule: {code: atlas.select(code, budget=BUDGET, **options) for code in LANGUAGES}
        for rule, options in RULES.items()
    }
    default = sets["contrast (default)"]
    for code, neurons in default.items():
        neurons.save(out / "neurons" / f"{code}.safetensors")
    for seed in range(draws):
        sets[f"random {seed}"] = {code: controls(neurons, draws, seed=0)[seed] for code, neurons in default.items()}
    report(f"3/3 switch off: {len(sets)} kinds of sets, on {texts} held-out texts in each language")
    held = {code: [document(code, "test", index) for index in range(texts)] for code in LANGUAGES}
    damage = {}
    for name, mine in sets.items():
        damage[name] = damage_matrix(model, tokenizer, mine, held)
        report(f"    {name}")
    content = _content(out, atlas, damage, draws)
    content["answers"] = [_answers(model, tokenizer, code, default[code]) for code in ("fr", "zh")]
    write_json(out / "damage.json", {name: _plain(matrix) for name, matrix in damage.items()})
    write_json(out / "demo.json", content)
    return content


def _content(out: Path, atlas: Atlas, damage: dict[str, DamageMatrix], draws: int) -> dict[str, Any]:
    def own_and_others(matrix: DamageMatrix, code: str) -> tuple[float, float]:
        row = matrix.row(code)
        own = row.pop(code)
        return own, sum(row.values()) / len(row)

    rows = []
    for code in LANGUAGES:
        row: dict[str, Any] = {"language": code}
        for rule in RULES:
            row[rule] = dict(zip(("own", "others"), own_and_others(damage[rule], code), strict=True))
        random = [own_and_others(damage[f"random {seed}"], code)[0] for seed in range(draws)]
        row["random"] = {"own": sum(random) / draws}
        rows.append(row)
    return {
        "folder": str(out),
        "units": sum(sum(widths) for widths in atlas.layout.widths.values()),
        "budget": BUDGET,
        "damage": rows,
    }


def _answers(model: Any, tokenizer: Any, code: str, neurons: Any) -> dict[str, str]:
    """A training question in a language, answered by the intact model and without the language's neurons."""
    item = next(items("knowledge", code, "train", start=3))

    def answer() -> str:
        batch = tokenizer(item.prompt, return_tensors="pt")
        told = model.generate(**batch, max_new_tokens=12, do_sample=False)[0, batch["input_ids"].shape[1] :]
        return str(tokenizer.decode(told, skip_special_tokens=True)).strip()

    intact = answer()
    with ablate(model, neurons):
        without = answer()
    return {"language": code, "question": item.fields["question"]["stem"], "intact": intact, "without": without}


def _plain(matrix: DamageMatrix) -> dict[str, Any]:
    return {
        "rows": list(matrix.rows),
        "columns": list(matrix.columns),
        "intact": matrix.base.tolist(),
        "change": matrix.change.tolist(),
        "low": matrix.low.tolist(),
        "high": matrix.high.tolist(),
    }
