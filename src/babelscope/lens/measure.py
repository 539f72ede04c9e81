"""The language lens: every layer of every prompt decoded to the vocabulary, and the languages of what it says.

Axes: `B` prompts of a batch, `T` tokens, `N` chosen positions, `V` vocabulary, `L` decoder layers, `K` languages,
`P` prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from babelscope.corpora.batching import Batch, batches, padding_id, sample_documents
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.corpora.tokens import TokenizedDocument
from babelscope.errors import ConfigError
from babelscope.languages import get_language
from babelscope.lens.curve import ANY, LanguageCurve, TokenGrid
from babelscope.lens.decode import Reading, Unembedding, read_layer
from babelscope.lens.identify import identifier as make_identifier
from babelscope.lens.tokens import token_bytes, token_text
from babelscope.lens.tuned import TunedLens
from babelscope.lens.vocabulary import VocabularyProfile
from babelscope.models.anatomy import Anatomy
from babelscope.models.interfaces import evaluation_mode, positions
from babelscope.models.load import ModelIdentity

Prompts = str | Path | Iterable[str] | Corpus | Mapping[str, str | Path | Iterable[str] | Corpus]


def language_lens(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    prompts: Prompts,
    profile: VocabularyProfile,
    *,
    documents: int | None = None,
    max_tokens: int = 128,
    new_tokens: int = 0,
    final_norm: bool = True,
    tuned: TunedLens | None = None,
    identifier: str | None = None,
    top_k: int = 5,
    grids: int = 1,
    token_budget: int = 2048,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> LanguageCurve:
    """Which language each layer speaks.

    At each position, the hidden state of each layer goes through the final norm, the unembedding and, where the model
    has it, the final cap; the mass of a language is the sum over the vocabulary of p(token) * P(language | token).
    BOS and other special positions don't count. One pass; the logits of one chunk of positions exist at a time.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        tokenizer: of the model.
        prompts: texts, by language if it is known; anything that `open_corpus` takes.
        profile: for this tokenizer.
        documents: prompts per language, drawn at random; None for all.
        max_tokens: prompts are cut to this length.
        new_tokens: 0 reads the positions of the prompt. Above 0 the model first continues each prompt greedily by at
            most so many tokens, and the positions that choose those are read instead.
        final_norm: False leaves the final norm out for all layers but the last, as the paper's released code does.
        tuned: translates every layer but the last before it is decoded.
        identifier: None for the profile; `lingua` or `cld3` for the paper's way: the language of the likeliest token's
            string alone, what the identifier won't name being unknown.
        top_k: likeliest tokens kept in a grid.
        grids: prompts of each language whose likeliest tokens are kept for display.
        token_budget: rows x width of a batch.
        seed: of the draw of prompts, and of the shuffled-language control.
        progress: called after each batch with the number of prompts it held.

    Raises:
        ConfigError: a tokenizer that doesn't fit the model, an unknown language or identifier, a setting out of range.
        DataError: no usable prompt.
        NumericsError: a layer that decodes to NaN.
        ProvenanceError: a profile of another tokenizer, or a tuned lens of another model.
        UnsupportedModelError: a model whose layers can't be decoded.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020), for the decoding; paper, section 2.2, for the
    question. The paper names the language of the likeliest token's string with cld3; here the whole distribution
    counts, and tokens have the languages of the texts they occur in.
    """
    profile.check_tokenizer(tokenizer)
    for name, value in (("top_k", top_k), ("grids", grids), ("new_tokens", new_tokens)):
        if value < (name == "top_k"):
            raise ConfigError(f"{name} must be at least {int(name == 'top_k')}, found {value}. Raise it.")
    opened = _opened(prompts)
    unembedding = Unembedding(model, final_norm=final_norm, tuned=tuned)
    longest = positions(unembedding.model.config)
    if longest is not None and max_tokens + new_tokens > longest:
        raise ConfigError(
            f"max_tokens + new_tokens is {max_tokens + new_tokens}, but the model has {longest} positions. Lower them."
        )
    if len(profile.counts) > unembedding.vocabulary:
        raise ConfigError(
            f"the tokenizer has {len(profile.counts)} tokens, the model only {unembedding.vocabulary}. Load the "
            "tokenizer of this model."
        )
    reader = _Reader(unembedding, profile, tokenizer, identifier, top_k, grids, seed)
    rows: list[Tensor] = []
    grids_kept: list[TokenGrid] = []
    prompt_languages: list[str] = []
    for language, corpus in opened.items():
        sample, _ = sample_documents(
            corpus, tokenizer, documents=documents, max_tokens=max_tokens, min_tokens=1, seed=seed
        )
        found: dict[int, Tensor] = {}
        shown: dict[int, TokenGrid] = {}
        for batch in batches(sample, token_budget=token_budget, pad_id=padding_id(tokenizer)):
            if new_tokens:
                batch = _continued(unembedding.model, tokenizer, batch, new_tokens)
            found |= zip(batch.position.tolist(), reader.read(batch, language, shown), strict=True)
            if progress is not None:
                progress(len(batch))
        rows += [found[position] for position in sorted(found)]
        grids_kept += [shown[position] for position in sorted(shown)]
        prompt_languages += [language] * len(found)
    settings = {
        "final_norm": final_norm,
        "tuned": tuned and dict(tuned.about),
        "identifier": identifier,
        "max_tokens": max_tokens,
        "new_tokens": new_tokens,
        "documents": documents,
        "seed": seed,
    }
    about = {
        "model": ModelIdentity.of(unembedding.model).as_json(),
        "prompts": {language: corpus.name for language, corpus in opened.items()},
        "profile": {"tokenizer": profile.tokenizer, "corpora": dict(profile.corpora)},
        "settings": settings,
    }
    masses, entropy, agreement = torch.stack(rows).split([reader.columns, 1, 1], -1)
    columns = len(profile.languages) + 1
    return LanguageCurve(
        profile.languages,
        tuple(prompt_languages),
        masses[..., :columns].contiguous(),
        entropy[..., 0].contiguous(),
        agreement[..., 0].contiguous(),
        masses[..., columns:].contiguous() if identifier is None else None,
        tuple(grids_kept),
        about,
    )


class _Reader:
    """Reads batches with one profile or identifier."""

    def __init__(
        self,
        unembedding: Unembedding,
        profile: VocabularyProfile,
        tokenizer: Any,
        identifier: str | None,
        top_k: int,
        grids: int,
        seed: int,
    ) -> None:
        self.unembedding, self.languages = unembedding, profile.languages
        self.top_k, self.grids = top_k, grids
        beyond = unembedding.vocabulary - len(profile.posterior)  # a padded vocabulary: those speak no language
        nothing = nn.functional.one_hot(torch.full((beyond,), len(self.languages)), len(self.languages) + 1)
        self.posterior = torch.cat([profile.posterior, nothing.float()])
        special = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in tokenizer.all_special_ids}
        texts = [special.get(token, token_text(each)) for token, each in enumerate(token_bytes(tokenizer))]
        self.texts = texts + [""] * beyond
        self.identify = None if identifier is None else make_identifier(identifier, self.languages)
        if self.identify is None:
            shuffled = self.posterior.clone()
            spoken = (profile.script > 0).nonzero()[:, 0]
            draw = torch.randperm(len(spoken), generator=torch.Generator().manual_seed(seed))
            shuffled[spoken] = self.posterior[spoken[draw]]
            self.table = torch.cat([self.posterior, shuffled], 1)
        else:
            self.table = self.posterior[:, :0]  # entropy and the likeliest tokens are all that is needed
        self.table = self.table.to(unembedding.device)
        self.columns = self.table.shape[1] or len(self.languages) + 1

    def read(self, batch: Batch, language: str, grids: dict[int, TokenGrid]) -> Tensor:
        """[B, L + 1, C + 2] float32, means over each row's counted positions: masses, bits of entropy, agreement.

        Adds the grids of the rows to keep, by position in the sample.
        """
        row_N = batch.counted.nonzero()[:, 0]
        kept_B = batch.position < self.grids
        shown_N = kept_B[row_N]
        readings: list[Reading] = []

        def visit(layer: int, hidden_NM: Tensor) -> None:
            readings.append(read_layer(self.unembedding, layer, hidden_NM, self.table, shown_N, self.top_k))

        self.unembedding.run(batch.input_ids, batch.attention_mask, batch.counted, visit)
        last = readings[-1].top
        values = [
            torch.cat([self._mass(each), each.entropy[:, None], (each.top == last)[:, None]], 1) for each in readings
        ]
        values_NLC = torch.stack(values, 1).double()
        for row in kept_B.nonzero()[:, 0].tolist():
            at = row_N[shown_N] == row
            likeliest = [(reading.shown[at].tolist(), reading.chances[at].tolist()) for reading in readings]
            ids = batch.input_ids[row][batch.counted[row]].tolist()
            grids[int(batch.position[row])] = self._grid(language, ids, likeliest)
        sums = torch.zeros(len(batch), *values_NLC.shape[1:], dtype=torch.float64).index_add_(0, row_N, values_NLC)
        return (sums / batch.counted.sum(1)[:, None, None]).float()

    def _mass(self, reading: Reading) -> Tensor:
        """[N, C]; of an identifier, all of a position's mass is on what it calls the likeliest token."""
        if self.identify is None:
            return reading.mass
        columns = torch.tensor([self._column(token) for token in reading.top.tolist()])
        return nn.functional.one_hot(columns, len(self.languages) + 1)

    def _column(self, token: int) -> int:
        """Which language a token speaks, if one is more likely than not; else the last."""
        if self.identify is not None:
            found = self.identify(self.texts[token])
            return self.languages.index(found) if found else len(self.languages)
        best = self.posterior[token].max(0)
        return int(best.indices) if float(best.values) > 0.5 else len(self.languages)

    def _grid(
        self, language: str, ids: list[int], likeliest: list[tuple[list[list[int]], list[list[float]]]]
    ) -> TokenGrid:
        codes = (*self.languages, "")
        return TokenGrid(
            language,
            [self.texts[token] for token in ids],
            [[[self.texts[token] for token in place] for place in tokens] for tokens, _ in likeliest],
            [chances for _, chances in likeliest],
            [[codes[self._column(place[0])] for place in tokens] for tokens, _ in likeliest],
        )


def _opened(prompts: Prompts) -> dict[str, Corpus]:
    if not isinstance(prompts, Mapping):
        return {ANY: open_corpus(prompts)}
    if not prompts:
        raise ConfigError("wanted prompts of at least one language, found none. Give {'fr': texts}.")
    return {
        language if language == ANY else get_language(language).code: open_corpus(texts)
        for language, texts in prompts.items()
    }


def _continued(model: Any, tokenizer: Any, batch: Batch, new_tokens: int) -> Batch:
    """The batch with the model's greedy continuations; counted are the positions that chose them."""
    device, pad = model.get_input_embeddings().weight.device, padding_id(tokenizer)
    lengths = batch.attention_mask.sum(1).tolist()
    width = batch.input_ids.shape[1]
    ids_BT, mask_BT = (  # padded on the left: generation continues at the right end
        torch.stack([row.roll(width - length) for row, length in zip(each, lengths, strict=True)])
        for each in (batch.input_ids, batch.attention_mask)
    )
    with ExitStack() as stack, torch.no_grad():
        evaluation_mode(model, stack)
        made = model.generate(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
        ).cpu()
    stop = model.generation_config.eos_token_id
    documents = []
    for row, length in enumerate(lengths):
        fresh = made[row, width:].numpy()
        ends = np.flatnonzero(np.isin(fresh, [] if stop is None else stop))  # what comes after the first is padding
        ids = np.concatenate([batch.input_ids[row, :length], fresh[: ends[0] + 1] if len(ends) else fresh])
        place = np.arange(len(ids))
        passed_over = (place < length - 1) | (place == len(ids) - 1)
        position = int(batch.position[row])
        documents.append(TokenizedDocument(position, position, ids.astype(np.int32), passed_over, 0, False))
    (continued,) = batches(documents, token_budget=len(batch) * max(len(each.ids) for each in documents), pad_id=pad)
    return continued
