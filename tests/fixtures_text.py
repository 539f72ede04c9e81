"""A tiny model with its tokenizer in a folder, and a little text in three made-up languages."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tiny import VOCABULARY, tiny_model

LETTERS = {"fr": "aeioulmnr", "zh": "xqjzhgnui", "sw": "kwabmtpai"}
"""Letters that a made-up text of the language has."""


def character_tokenizer() -> PreTrainedTokenizerBase:
    """A token per character after one BOS, within the 64 tokens of the tiny models; others are `<unk>`."""
    characters = "▁abcdefghijklmnopqrstuvwxyz.,'0123456789"
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *characters])}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_tiny_model(folder: Path, name: str = "llama") -> Path:
    """The tiny model of that name, saved with `character_tokenizer`."""
    tiny_model(name).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def write_texts(folder: Path, documents: int = 12) -> dict[str, Path]:
    """A text file per language, with a document per line, one of them empty and one very short."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for language, letters in LETTERS.items():
        draw = random.Random(language)
        lines = [
            " ".join("".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(draw.randint(4, 9)))
            for _ in range(documents)
        ]
        paths[language] = folder / f"{language}.txt"
        paths[language].write_text("\n".join([*lines, "", "a"]) + "\n", encoding="utf-8")
    return paths
