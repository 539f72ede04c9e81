"""What several test files build beside `fixtures_text`: a byte-level tokenizer with its model, and texts in memory."""

from __future__ import annotations

import functools
import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import tiny
from fixtures_text import LETTERS, character_tokenizer

BOS = 1

letters = functools.cache(character_tokenizer)
"""The tokenizer of `fixtures_text`, built once: a token per character, BOS first."""


@functools.cache
def byte_tokenizer(bos: bool = True) -> PreTrainedTokenizerBase:
    """A token per byte, after one BOS or without any: 259 tokens, for `byte_llama`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "eos_token": "</s>"}
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
        names["bos_token"] = "<s>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_llama(dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """The tiny llama with a vocabulary for `byte_tokenizer`."""
    return tiny._llama(**{"vocab_size": 272, **changes}).to(dtype)


def make_texts(language: str, count: int, shortest: int = 10, longest: int = 40) -> list[str]:
    """Random strings of the letters of a made-up language of `fixtures_text`."""
    draw = random.Random(f"{language} {count}")
    return ["".join(draw.choices(LETTERS[language], k=draw.randint(shortest, longest))) for _ in range(count)]
