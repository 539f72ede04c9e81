"""Latent language of parallel words: is the next word on its way in the prompt's language, or in another?

Source: Wendler et al., "Do Llamas Work in English? On the Latent Language of Multilingual Transformers" (ACL 2024),
section 3.2.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from babelscope.corpora.batching import Batch, batches, padding_id
from babelscope.corpora.tokens import TokenizedDocument
from babelscope.errors import ConfigError, DataError
from babelscope.languages import get_language
from babelscope.lens.curve import bootstrap_interval
from babelscope.lens.decode import Unembedding
from babelscope.lens.tokens import token_bytes
from babelscope.lens.tuned import TunedLens
from babelscope.models.anatomy import Anatomy

SHOTS = 4


@dataclass(frozen=True, eq=False)
class LatentLanguage:
    """How likely each layer finds the next word in each language."""

    languages: tuple[str, ...]
    probability: Tensor
    """[P, L + 1, K] float32, of any beginning of the word as the next token; prompts, layers (0 = embeddings),
    languages."""
    shared: Tensor
    """[P] bool: a token begins the word in two of the languages, so that the prompt can't tell them apart."""

    @property
    def telling(self) -> Tensor:
        """[Q, L + 1, K] float32, of the prompts that can tell the languages apart; DataError if there is none."""
        if bool(self.shared.all()):
            raise DataError("in every prompt some token begins the word in two languages. Choose other words.")
        return self.probability[~self.shared]

    def mean(self) -> Tensor:
        """[L + 1, K] float32, over the prompts that can tell the languages apart; DataError if there is none."""
        return self.telling.mean(0)

    def interval(self, *, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """95 % bootstrap interval of `mean` over prompts: low and high, each [L + 1, K] float32."""
        return bootstrap_interval(self.telling, resamples, seed)


def latent_language(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    prompts: Sequence[str],
    words: Mapping[str, Sequence[str]],
    *,
    final_norm: bool = True,
    tuned: TunedLens | None = None,
    token_budget: int = 2048,
) -> LatentLanguage:
    """Probability, layer by layer, that the next token begins the right word in each language.

    A prompt asks for a word, such as `"fleur" - "` after a few pairs of French and Chinese words (see `translations`),
    and `words` holds it in the languages to compare: the one asked for, English, ... Every token that is a beginning of
    the word counts, with or without a space before it; beginnings are compared as bytes, so that parts of a Chinese
    character count too.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        tokenizer: of the model.
        prompts: texts, not padded.
        words: language -> the word for each prompt.
        final_norm: as in `language_lens`.
        tuned: as in `language_lens`.
        token_budget: rows x width of a batch.

    Raises:
        ConfigError: lists of different lengths.
        DataError: no prompt, an empty one, or a word that no token begins.
        ProvenanceError: a tuned lens of another model.
    """
    if not prompts or any(len(each) != len(prompts) for each in words.values()):
        raise ConfigError(
            f"wanted a word of each language for each of {len(prompts)} prompts, found "
            f"{', '.join(f'{len(each)} of {language}' for language, each in words.items()) or 'none'}."
        )
    unembedding = Unembedding(model, final_norm=final_norm, tuned=tuned)
    codes = tuple(get_language(language).code for language in words)
    spelled: dict[bytes, list[int]] = {}
    for token, each in enumerate(token_bytes(tokenizer)):
        spelled.setdefault(each.removeprefix(b" "), []).append(token)
    begins = [[_beginnings(spelled, word) for word in row] for row in zip(*words.values(), strict=True)]
    documents = []
    for number, prompt in enumerate(prompts):
        ids = np.asarray(tokenizer(prompt, verbose=False)["input_ids"], np.int32)
        if not len(ids):
            raise DataError("a prompt without a token. Leave out empty prompts.")
        documents.append(TokenizedDocument(number, number, ids, np.arange(len(ids)) < len(ids) - 1, 0, False))
    found = torch.zeros(len(prompts), len(unembedding.layers) + 1, len(codes))

    def read(batch: Batch) -> None:
        def visit(layer: int, hidden_NM: Tensor) -> None:
            for part, logits_NV in unembedding.chunks(layer, hidden_NM):
                for prompt, chances in zip(batch.position[part].tolist(), logits_NV.softmax(1), strict=True):
                    found[prompt, layer] = torch.stack([chances[sorted(tokens)].sum() for tokens in begins[prompt]])

        unembedding.run(batch.input_ids, batch.attention_mask, batch.counted, visit)

    for batch in batches(documents, token_budget=token_budget, pad_id=padding_id(tokenizer)):
        read(batch)
    shared = torch.tensor([sum(map(len, tokens)) > len(set().union(*tokens)) for tokens in begins])
    return LatentLanguage(codes, found, shared)


def translations(source: Sequence[str], target: Sequence[str], *, shots: int = SHOTS, seed: int = 0) -> list[str]:
    r"""Prompts that ask for the target word of each source word: pairs `"fleur" - "花"`, a line each, then `"mer" - "`.

    Names of the languages, which would have to be in some language, are left out; Wendler et al. have them.

    Args:
        source: words.
        target: the same in another language.
        shots: pairs before the question, drawn at random from the other words.
        seed: of the draw.

    Raises:
        ConfigError: lists of different lengths, or not more words than shots.
    """
    if len(source) != len(target) or len(source) <= shots:
        raise ConfigError(
            f"wanted two parallel lists of more than {shots} words, found {len(source)} and {len(target)}. Give the "
            "same words, in the same order, in every language."
        )
    draw, prompts = random.Random(seed), []
    for number, word in enumerate(source):
        others = draw.sample([place for place in range(len(source)) if place != number], shots)
        prompts.append("".join(f'"{source[at]}" - "{target[at]}"\n' for at in others) + f'"{word}" - "')
    return prompts


def latent_table(
    model: nn.Module,
    tokenizer: Any,
    words: Mapping[str, Sequence[str]],
    *,
    shots: int = SHOTS,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Translates words from their first language into each other one; how likely is the word in which language?

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        words: language -> words, in the same order in each. English is compared if it is among them.
        shots: pairs shown before the question.
        seed: of their draw.
        **options: of `latent_language`.

    Returns:
        A row per target language, layer and language (the target, English, the source): `source`, `target`, `layer`,
        `language`, `probability`, `low` and `high` (95 % bootstrap over prompts), `prompts` (that can tell the
        languages apart; no rows of a target without any).
    """
    source, *others = (get_language(language).code for language in words)
    lists = dict(zip((source, *others), words.values(), strict=True))
    rows = []
    for target in others:
        compared = {code: lists[code] for code in (target, "en", source) if code in lists}
        prompts = translations(lists[source], lists[target], shots=shots, seed=seed)
        latent = latent_language(model, tokenizer, prompts, compared, **options)
        if bool(latent.shared.all()):
            continue
        low, high = latent.interval(seed=seed)
        for layer, values in enumerate(torch.stack([latent.mean(), low, high], -1).tolist()):
            rows += [
                {
                    "source": source,
                    "target": target,
                    "layer": layer,
                    "language": code,
                    "probability": value[0],
                    "low": value[1],
                    "high": value[2],
                    "prompts": len(latent.telling),
                }
                for code, value in zip(latent.languages, values, strict=True)
            ]
    return rows


def _beginnings(spelled: Mapping[bytes, list[int]], word: str) -> set[int]:
    """Tokens that begin the word, from those of each spelling."""
    whole = word.strip().encode()
    found = {token for end in range(1, len(whole) + 1) for token in spelled.get(whole[:end], ())}
    if not found:
        raise DataError(f"no token of this tokenizer begins the word {word!r}. Leave it out.")
    return found
