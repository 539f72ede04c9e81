"""A made-up study run with every kind of figure: ten languages, three scripts that fonts forget, two models."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "de", "fr", "zh", "es", "ru", "vi", "th", "ar", "sw")
WORDS = {
    "en": "the house", "de": "Geschwindigkeitsbegrenzung", "fr": "déjà vu", "zh": "一月 房子", "es": "mañana",
    "ru": "дом стоит", "vi": "ngôi nhà", "th": "บ้าน อยู่", "ar": "البيت كبير", "sw": "nyumba",
}  # fmt: skip
MODELS = {"tiny": ("tinybabel", 8), "big": ("example-org/a-model-with-a-remarkably-long-name-7b-chat-v0.3", 32)}
UNKNOWN = "shared or not language"


def write_run(folder: Path, models: tuple[str, ...] = ("tiny",), seed: int = 0) -> Path:
    """Writes a finished run; another seed gives other numbers."""
    rng = random.Random(seed)
    for name in models:
        model, depth = MODELS[name]
        for stage in results(rng, model, depth):
            path = folder / name / stage["stage"] / "result.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(stage, ensure_ascii=False), encoding="utf-8")
    about = {
        "schema": 1,
        "status": "finished",
        "asked": {"study": "tinybabel-quick", "languages": list(LANGUAGES), "seeds": [seed], "budget": 0.01},
        "models": list(models),
        "stages": [stage["stage"] for stage in results(rng, *MODELS["tiny"])],
        "environment": {"babelscope": "0.1.0", "torch": "2.9.0", "platform": "Linux-6.1-x86_64", "threads": "2"},
    }
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def change(run: Path, stage: str, edit: Any, model: str = "tiny") -> Path:
    """Edits a result in place and returns its path."""
    path = run / model / stage / "result.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def results(rng: random.Random, model: str, depth: int) -> list[dict[str, Any]]:
    def interval(value: float, width: float) -> dict[str, float]:
        half = width * (0.5 + rng.random())
        return {"value": round(value, 4), "low": round(value - half, 4), "high": round(value + half, 4)}

    def about(stage: str, **parts: Any) -> dict[str, Any]:
        return {
            "kind": "babelscope result", "version": 1, "stage": stage, "model": model, "title": f"Stage {stage}",
            "seconds": round(60 * rng.random(), 1), "command": f"babelscope study study.yaml --only {stage}",
            "how": f"Every neuron of {model} was scored on 150 documents of each of ten languages, 256 tokens each; "
            "intervals are 95 % bootstrap intervals over documents, controls are random sets of the same size.",
            "findings": [], "tables": [], "figures": [], **parts,
        }  # fmt: skip

    def figure(name: str, kind: str, title: str, caption: str, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {"name": name, "kind": kind, "title": title, "caption": caption, "records": records}

    def finding(claim: str, verdict: str, text: str, effect: float | None, half: float | None) -> dict[str, Any]:
        around = {"low": None, "high": None}
        if effect is not None and half is not None:
            around = {"low": round(effect - half, 4), "high": round(effect + half, 4)}
        return {"claim": claim, "verdict": verdict, "text": text, "effect": effect, **around}

    def spread(language: str, layer: int) -> dict[str, float]:
        """Own language at both ends, English in the middle."""
        depth_share = layer / depth
        pivot = math.exp(-(((depth_share - 0.55) / 0.2) ** 2)) * 0.6
        own = (1 - pivot) * (0.35 + 0.5 * abs(2 * depth_share - 1))
        mass = {code: 0.01 + 0.02 * rng.random() for code in LANGUAGES}
        mass["en"] += pivot
        mass[language] += own
        mass[UNKNOWN] = 0.15
        total = sum(mass.values())
        return {code: share / total for code, share in mass.items()}

    def hurt(row: str, column: str) -> float:
        return 0.4 + 0.6 * rng.random() if row == column else rng.gauss(0.02, 0.03)

    layers = [
        {"model": model, "language": language, "layer": layer, "spoken": code, "mass": round(share, 5)}
        for language in LANGUAGES
        for layer in range(depth + 1)
        for code, share in spread(language, layer).items()
    ]
    counts = [
        {"language": language, "slot": slot, "layer": layer,
         "count": int((300 if slot == "ffn" else 40) * rng.random() * abs(2 * layer / depth - 1) ** 1.5)}
        for language in LANGUAGES for slot in ("q", "k", "v", "o", "ffn") for layer in range(depth)
    ]  # fmt: skip
    overlaps = [
        {"row": row, "column": column, "overlap": 1.0 if row == column else round(0.05 + 0.3 * rng.random(), 3),
         "expected": 0.013, "p": 0.0001 if rng.random() < 0.8 else 0.2}
        for row in LANGUAGES for column in LANGUAGES
    ]  # fmt: skip
    damage = [
        {"row": row, "column": column, **interval(hurt(row, column), 0.03)} for row in LANGUAGES for column in LANGUAGES
    ]
    damage[3] = {**damage[3], "value": None, "low": None, "high": None}
    controls = [
        {"group": group, "label": label, **interval(value, 0.06), "control": label.startswith("random")}
        for group in ("Understanding layers switched off", "Generating layers switched off: a heading of some length")
        for label, value in (
            ("neurons of the language, attention only", -0.31), ("neurons of the language, feed-forward only", -0.12),
            ("neurons of the language", -0.42), ("random neurons, matched by layer, slot and activity", 0.01),
        )
    ]  # fmt: skip
    tuning = [
        {"series": arm, "x": size, "y": round(1.6 - gain * math.log10(size), 4),
         "low": round(1.57 - gain * math.log10(size), 4), "high": round(1.63 - gain * math.log10(size), 4)}
        for arm, gain in (("the language's neurons", 0.03), ("random neurons", 0.025), ("all weights", 0.05))
        for size in (10, 50, 100, 200, 400, 800)
    ]  # fmt: skip
    scores = [
        {"group": task, "label": label, **interval(value + 0.1 * rng.random(), 0.05)}
        for task in ("reasoning (MGSM)", "understanding (XQuAD)", "knowledge (X-CSQA)", "generation (XLSum)")
        for label, value in (("intact", 0.6), ("without the language's neurons", 0.2), ("without random neurons", 0.55))
    ]
    by_language = [
        {"group": "change of the target language", "label": code, **interval(-0.1 * rng.random(), 0.02)}
        for code in LANGUAGES
    ]
    stages = [
        {"understand": first, "generate": last,
         "value": round(0.5 - 0.02 * (first - 5) ** 2 - 0.03 * (last - 2) ** 2, 3)}
        for first in range(1, 9) for last in range(1, 5)
    ]  # fmt: skip
    grid = [
        {"prompt": f"{code}: {WORDS[code]}", "layer": layer, "position": position,
         "token": (word if layer < 2 or layer > depth - 2 else "the") if position else f" {word}",
         "probability": round(rng.random(), 3), "language": "English" if 2 <= layer <= depth - 2 else name,
         "language_code": "en" if 2 <= layer <= depth - 2 else code}
        for code, name in (("ar", "Arabic"), ("th", "Thai"), ("zh", "Chinese"))
        for layer in range(depth + 1) for position, word in enumerate((WORDS[code].split() * 6)[:12])
    ]  # fmt: skip
    table = {
        "name": "damage", "title": "Change of bits per byte without a language's neurons",
        "columns": ["language", "own texts", "others' texts", "random set", "paper"],
        "rows": [[code, *(round(rng.random(), 4) for _ in range(3)), None] for code in LANGUAGES],
    }  # fmt: skip
    return [
        about("detect", figures=[
            figure("counts", "counts", "Neurons by layer and slot", "1 % of all neurons, chosen by contrast.", counts),
        ]),
        about("select", figures=[
            figure("overlap", "overlap", "Overlap of two languages' neurons", "Jaccard; in brackets chance.", overlaps),
        ], findings=[finding("Languages have neurons of their own.", "holds",
            "Two languages share 18 % of their neurons on average, where chance gives 1 %.", 0.18, 0.03)]),
        about("lens", figures=[
            figure("layers", "layers", "The language of each layer", "Mean over 100 prompts per language.", layers),
            figure("heat", "heat", "The language of each layer as a map", "The stronger, the more mass.", layers),
            figure("tokens", "tokens", "What single prompts become", "Likeliest token of layer and position.", grid),
        ], findings=[finding("Inner layers think in English.", "undecided",
            "English leads in the middle layers of 5 of 9 languages.", 0.04, 0.07)]),
        about("search", figures=[
            figure("search", "search", "Damage by stage split", "Higher is a clearer split.", stages)]),
        about("damage", figures=[
            figure("matrix", "matrix", "Damage matrix", "Rows are switched off, columns are read.", damage),
        ], tables=[table], findings=[finding("Switching a language's neurons off harms that language.", "holds",
            "Bits per byte of its own texts rise by 0.71, those of others by 0.02.", 0.69, 0.05)]),
        about("grid", figures=[
            figure("forest", "forest", "Accuracy lost by structure and stage", "Mean over languages.", controls)]),
        about("evaluation", figures=[
            figure("bars", "bars", "Scores by task", "Share of right answers on 200 items.", scores)]),
        about("steering", figures=[
            figure("languages", "bars", "Steered by language", "Change of the share of answers.", by_language)]),
        about("tuning", figures=[
            figure("curve", "curve", "Bits per byte by number of documents", "Three seeds per arm.", tuning),
        ], findings=[finding("A language's neurons are the best ones to train.", "does not hold",
            "Training them gains 0.005 bits per byte more than training random ones.", 0.005, 0.02)]),
    ]  # fmt: skip
