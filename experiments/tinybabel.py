"""The quality of Tinybabel's model: its scores on the four tasks, by language, on the test items.

python experiments/tinybabel.py [MODEL] [--items 200] [--split test] [--out FILE]

Reasoning: the number after `####`, exact, by number of steps. Understanding: exact match and F1. Knowledge: the
likeliest of five choices (chance: 20 %), facts told in every language and facts told in English only apart.
Generation: ROUGE-L. Greedy decoding; the items are the same in all languages. The last row has the largest distance
of a mean in its column from an end of its 95 % bootstrap interval over items.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import babelscope as bs
from babelscope.evaluation.inference import Interval, bootstrap_mean
from babelscope.evaluation.metrics import exact_match, rouge_l, stated_number, token_f1
from babelscope.tinybabel.grammar import LANGUAGES
from babelscope.tinybabel.tasks import Item, items

BATCH = 64


def main() -> int:
    """Measures and prints the table; writes the scores as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tinybabel")
    parser.add_argument("--items", type=int, default=200, help="items per task and language (default: %(default)s)")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--out", type=Path, help="JSON file for the scores")
    asked = parser.parse_args()
    model, tokenizer = bs.load_model(asked.model, dtype="float32")
    scores: dict[str, dict[str, Interval]] = {}
    for code in LANGUAGES:
        scores[code] = measure(model, tokenizer, code, asked.split, asked.items)
        if code == LANGUAGES[0]:
            print("| language | " + " | ".join(scores[code]) + " |\n|" + "---|" * (len(scores[code]) + 1))
        print(f"| {code} | " + " | ".join(f"{found.value:.2f}" for found in scores[code].values()) + " |", flush=True)
    widest = [
        max(max(found.value - found.low, found.high - found.value) for found in column)
        for column in zip(*(row.values() for row in scores.values()), strict=True)
    ]
    print("| ± | " + " | ".join(f"{width:.2f}" for width in widest) + " |")
    if asked.out:
        plain = {code: {name: asdict(found) for name, found in row.items()} for code, row in scores.items()}
        asked.out.write_text(json.dumps({"items": asked.items, "split": asked.split, "scores": plain}, indent=1) + "\n")
    return 0


def measure(model: Any, tokenizer: Any, code: str, split: str, count: int) -> dict[str, Interval]:
    """Scores of one language."""
    found: dict[str, list[float]] = defaultdict(list)
    reasoning = list(islice(items("reasoning", code, split), count))
    for item, answer in zip(reasoning, answers(model, tokenizer, reasoning, 96), strict=True):
        right = float(stated_number(answer) == item.fields["answer_number"])
        found[f"reasoning, {item.fields['steps']} step"].append(right)
    understanding = list(islice(items("understanding", code, split), count))
    for item, answer in zip(understanding, answers(model, tokenizer, understanding, 16), strict=True):
        found["understanding, EM"].append(exact_match(answer, [item.answer], code))
        found["understanding, F1"].append(token_f1(answer, [item.answer], code))
    knowledge = (
        list(items("knowledge", code, split))
        if split != "train"
        else list(islice(items("knowledge", code, split), count))
    )
    for item, label in zip(knowledge, choices(model, tokenizer, knowledge), strict=True):
        known = "" if item.fields["known_in"] == "all" else ", told in English only"
        found[f"knowledge{known}"].append(float(label == item.fields["answerKey"]))
    generation = list(islice(items("generation", code, split), count))
    for item, answer in zip(generation, answers(model, tokenizer, generation, 64), strict=True):
        found["generation, ROUGE-L"].append(rouge_l(answer, item.answer))
    return {name: bootstrap_mean(values) for name, values in found.items()}


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, asked: Sequence[Item], limit: int) -> list[str]:
    """Greedy continuations of the prompts, in the order of the items."""
    tokenizer.padding_side = "left"
    order = sorted(range(len(asked)), key=lambda index: len(asked[index].prompt))
    told = [""] * len(asked)
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        batch = tokenizer([asked[index].prompt for index in some], return_tensors="pt", padding=True)
        output = model.generate(**batch, max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(some, texts, strict=True):
            told[index] = text.strip()
    return told


@torch.inference_mode()
def choices(model: Any, tokenizer: Any, asked: Sequence[Item]) -> list[str]:
    """The label of the likeliest choice of each item."""
    tokenizer.padding_side = "right"
    labels = []
    for item in asked:
        options = item.fields["question"]["choices"]
        texts = [f"{item.prompt} {option['text']}{tokenizer.eos_token}" for option in options]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        shared = len(tokenizer(item.prompt)["input_ids"])
        logprobs = model(**batch).logits[:, shared - 1 : -1].log_softmax(-1)
        targets = batch["input_ids"][:, shared:, None]
        told = logprobs.gather(-1, targets)[..., 0] * batch["attention_mask"][:, shared:]
        labels.append(options[int(told.sum(-1).argmax())]["label"])
    return labels


if __name__ == "__main__":
    sys.exit(main())
