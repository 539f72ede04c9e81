"""What a study needs, at tiny scale: random-weight models of the paper's architectures, texts, benchmarks' files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

import tiny
from babelscope.study.config import load_study
from builders import byte_llama, byte_tokenizer

LONG = {"vocab_size": 272, "max_position_embeddings": 1024}
WORDS = {
    "en": "the cat sat on a mat and ran",
    "fr": "le chat dort sur un tapis et court",
    "zh": "猫 坐 在 垫子 上 跑 了",
}


TINY = (
    "split: {understand: 1, generate: 1}\nsearch: {understand: [0, 1], generate: [0, 1], texts: 2, max_tokens: 32}\n"
    "steering: {to: [fr], prompts: 3, new_tokens: 2, budget: 0.1}\n"
    "evaluation: {tasks: [xcsqa_paper], languages: [fr, zh], limit: 2}\n"
)
PAIR = "stages: [detect, select]\n"
STAGES = "stages: [detect, select, lens, search, damage, grid, evaluation, steering]\n"
GRID = "grid: {tasks: {xcsqa_paper: [all, understand]}, languages: [fr], limit: 2, controls: 2}\n"


def save_model(folder: Path, family: str) -> Path:
    """A model folder with a token per byte and room for a prompt."""
    if family == "mistral":
        sizes = {**tiny._GROUPED, **LONG}
        config = MistralConfig(**sizes, rope_parameters=dict(tiny._ROPE), sliding_window=64)
        model = tiny._build(MistralForCausalLM, config)
    elif family == "bloom":
        config = BloomConfig(**{**tiny._TOKENS, "vocab_size": 272}, hidden_size=32, n_layer=2, n_head=4)
        model = tiny._build(BloomForCausalLM, config)
    else:
        model = byte_llama(max_position_embeddings=1024)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_corpora(folder: Path, documents: int = 10) -> str:
    """A file per language and kind; returns the pattern `FOLDER/KIND-{}.txt` with KIND still to be filled in."""
    folder.mkdir(parents=True)
    for code, words in WORDS.items():
        for kind in ("detect", "held", "valid"):
            draw = random.Random(f"{code} {kind}")
            lines = [" ".join(draw.choices(words.split(), k=draw.randint(5, 9))) for _ in range(documents)]
            (folder / f"{kind}-{code}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / "KIND-{}.txt")


def write_benchmarks(folder: Path, items: int = 3) -> Path:
    """MGSM, XQuAD, X-CSQA and XL-Sum in their original layouts, a few made-up items each, in three languages."""
    for code, words in WORDS.items():
        draw = random.Random(code)
        texts = [" ".join(draw.choices(words.split(), k=6)) for _ in range(items)]
        options = [{"label": label, "text": word} for label, word in zip("ABCDE", words.split(), strict=False)]
        xlsum = {"en": "english", "fr": "french", "zh": "chinese_simplified"}[code]
        files = {
            f"mgsm/mgsm_{code}.tsv": "".join(f"{text}?\t{number}\n" for number, text in enumerate(texts)),
            f"xquad/xquad.{code}.json": json.dumps(
                {
                    "version": "1.1",
                    "data": [
                        {
                            "title": "t",
                            "paragraphs": [
                                {
                                    "context": text,
                                    "qas": [
                                        {
                                            "id": f"{code}{at}",
                                            "question": "?",
                                            "answers": [{"text": text.split()[0], "answer_start": 0}],
                                        }
                                    ],
                                }
                                for at, text in enumerate(texts)
                            ],
                        }
                    ],
                }
            ),
            f"xcsqa/{code}/dev.jsonl": "".join(
                json.dumps(
                    {
                        "id": f"{code}{at}",
                        "lang": code,
                        "question": {"stem": text, "choices": options},
                        "answerKey": "B",
                    }
                )
                + "\n"
                for at, text in enumerate(texts)
            ),
            f"xlsum/{xlsum}_test.jsonl": "".join(
                json.dumps({"id": f"{code}{at}", "url": "", "title": "t", "summary": text[:9], "text": text}) + "\n"
                for at, text in enumerate(texts)
            ),
        }
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    return folder


def write_study(path: Path, base: str, model: Path, corpora: str, data: Path | None = None, more: str = "") -> Path:
    """A study that extends a preset with a model, texts and limits of its own."""
    path.write_text(
        f"extends: {base}\n"
        f"models: [{{name: {model}, dtype: float32}}]\n"
        "languages: [en, fr, zh]\n"
        "corpora:\n"
        f"  detect: {json.dumps(corpora.replace('KIND', 'detect'))}\n"
        f"  held_out: {json.dumps(corpora.replace('KIND', 'held'))}\n"
        f"  validation: {json.dumps(corpora.replace('KIND', 'valid'))}\n"
        + (f"data: {data}\n" if data else "")
        + "detect: {documents: 6, max_tokens: 32, min_tokens: 4, kernel: eager}\n"
        + "select: {budget: 0.05}\n"
        + "lens: {documents: 2, profile_documents: 5, max_tokens: 16}\n"
        + "damage: {texts: 3, max_tokens: 32, controls: 2}\n"
        + more,
        encoding="utf-8",
    )
    return path


def study_of(world: Any, path: Path, base: str, family: str, more: str) -> Any:
    models, corpora, data, _ = world
    return load_study(write_study(path, base, models[family], corpora, data, TINY + more))
