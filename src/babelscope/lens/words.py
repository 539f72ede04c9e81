"""Latent language of parallel words: is the next word on its way in the prompt's language, or in another?

Source: Wendler et al., "Do Llamas Work in English? On the Latent Language of Multilingual Transformers" (ACL 2024),
section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.corpora.batching import padding_id
from babelscope.errors import ConfigError, DataError
from babelscope.languages import get_language
from babelscope.lens.decode import LayerStates, Unembedding
from babelscope.lens.tokens import token_bytes
from babelscope.models.anatomy import Anatomy


@dataclass(frozen=True, eq=False)
class LatentLanguage:
    """How likely each layer finds the next word in each language."""

    languages: tuple[str, ...]
    probability: Tensor
    """[prompts, layers + 1, languages] float32, of any beginning of the word as the next token; 0 = embeddings."""
    shared: Tensor
    """[prompts] bool: a token begins the word in two of the languages, so that the prompt can't tell them apart."""

    def mean(self) -> Tensor:
        """[layers + 1, languages] float32, over the prompts that can tell the languages apart.

        Raises:
            DataError: there is none.
        """
        if bool(self.shared.all()):
            raise DataError("in every prompt some token begins the word in two languages. Choose other words.")
        return self.probability[~self.shared].mean(0)


def latent_language(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    prompts: Sequence[str],
    words: Mapping[str, Sequence[str]],
    *,
    final_norm: bool = True,
    token_budget: int = 2048,
) -> LatentLanguage:
    """Probability, layer by layer, that the next token begins the right word in each language.

    A prompt asks for a word, such as `Français: "fleur" - 中文: "`, and `words` holds it in the languages to compare:
    the one asked for, English, ... Every token that is a beginning of the word counts, with or without a space before
    it; beginnings are compared as bytes, so that parts of a Chinese character count too.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        tokenizer: of the model.
        prompts: texts, not padded.
        words: language -> the word for each prompt.
        final_norm: as in `language_lens`.
        token_budget: rows x width of a batch.

    Raises:
        ConfigError: lists of different lengths.
        DataError: no prompt, an empty one, or a word that no token begins.
    """
    if not prompts or any(len(each) != len(prompts) for each in words.values()):
        raise ConfigError(
            f"wanted a word of each language for each of {len(prompts)} prompts, found "
            f"{', '.join(f'{len(each)} of {language}' for language, each in words.items()) or 'none'}."
        )
    unembedding = Unembedding(model)
    codes = tuple(get_language(language).code for language in words)
    spelled = token_bytes(tokenizer)
    begins = [[_beginnings(spelled, each[number]) for each in words.values()] for number in range(len(prompts))]
    for number, tokens in enumerate(begins):
        if not all(tokens):
            word = list(words.values())[[not each for each in tokens].index(True)][number]
            raise DataError(f"no token of this tokenizer begins the word {word!r}. Leave it out.")
    rows = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in prompts]
    if not all(rows):
        raise DataError("a prompt without a token. Leave out empty prompts.")
    found = torch.zeros(len(prompts), len(unembedding.layers) + 1, len(codes))
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    start = 0
    while start < len(order):
        chosen = order[start : start + max(1, token_budget // len(rows[order[start]]))]
        start += len(chosen)
        _read(
            unembedding, [rows[number] for number in chosen], padding_id(tokenizer), chosen, begins, found, final_norm
        )
    shared = torch.tensor([sum(map(len, tokens)) > len(set().union(*tokens)) for tokens in begins])
    return LatentLanguage(codes, found, shared)


def _read(
    unembedding: Unembedding,
    rows: list[list[int]],
    pad: int,
    prompts: list[int],
    begins: list[list[set[int]]],
    found: Tensor,
    final_norm: bool,
) -> None:
    """Fills in the probabilities of one batch of prompts."""
    width = len(rows[0])
    ids_BT = torch.full((len(rows), width), pad)
    mask_BT, last_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
    for place, row in enumerate(rows):
        ids_BT[place, : len(row)], mask_BT[place, : len(row)] = torch.tensor(row), 1
        last_BT[place, len(row) - 1] = 1

    def visit(layer: int, hidden_NM: Tensor) -> None:
        norm = final_norm or layer == len(unembedding.layers)
        for part, logits_NV in unembedding.chunks(hidden_NM, norm):
            for prompt, chances in zip(prompts[part], logits_NV.softmax(1), strict=True):
                for column, tokens in enumerate(begins[prompt]):
                    found[prompt, layer, column] = float(chances[sorted(tokens)].sum())

    with LayerStates(unembedding, visit) as states:
        states.run(ids_BT, mask_BT, last_BT)


def _beginnings(spelled: list[bytes], word: str) -> set[int]:
    """Tokens whose bytes, a space before them aside, begin the word."""
    whole = word.strip().encode()
    starts = {whole[:end] for end in range(1, len(whole) + 1)}
    return {token for token, each in enumerate(spelled) if each.removeprefix(b" ") in starts}
