"""The language lens: every layer of every prompt decoded to the vocabulary, and the languages of what it says.

Axes: `B` prompts of a batch, `T` tokens, `N` chosen positions, `V` vocabulary, `L` decoder layers, `K` languages,
`P` prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.corpora.batching import Batch, batches, padding_id, sample_documents
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.errors import ConfigError
from babelscope.languages import get_language
from babelscope.lens.curve import ANY, LanguageCurve, TokenGrid
from babelscope.lens.decode import LayerStates, Reading, Unembedding, read_layer, top_tokens
from babelscope.lens.identify import identifier as make_identifier
from babelscope.lens.tokens import token_bytes, token_text
from babelscope.lens.vocabulary import VocabularyProfile
from babelscope.models.anatomy import Anatomy
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
        ProvenanceError: a profile of another tokenizer.
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
    unembedding = Unembedding(model)
    longest = getattr(unembedding.model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and max_tokens + new_tokens > longest:
        raise ConfigError(
            f"max_tokens + new_tokens is {max_tokens + new_tokens}, but the model has {longest} positions. Lower them."
        )
    if len(profile.counts) > unembedding.vocabulary:
        raise ConfigError(
            f"the tokenizer has {len(profile.counts)} tokens, the model only {unembedding.vocabulary}. Load the "
            "tokenizer of this model."
        )
    texts = [token_text(each) for each in token_bytes(tokenizer)]
    reader = _Reader(unembedding, profile, _names(tokenizer, texts), final_norm, identifier, top_k, seed)
    rows: list[_Prompt] = []
    prompt_languages: list[str] = []
    for language, corpus in opened.items():
        sample, _ = sample_documents(
            corpus, tokenizer, documents=documents, max_tokens=max_tokens, min_tokens=1, seed=seed
        )
        found: dict[int, _Prompt] = {}
        for batch in batches(sample, token_budget=token_budget, pad_id=padding_id(tokenizer)):
            chosen = batch.counted
            if new_tokens:
                batch, chosen = _continued(unembedding.model, tokenizer, batch, new_tokens)
            kept = batch.position < grids
            found |= zip(batch.position.tolist(), reader.read(batch, chosen, kept, language), strict=True)
            if progress is not None:
                progress(len(batch))
        rows += [found[position] for position in sorted(found)]
        prompt_languages += [language] * len(found)
    settings = {
        "final_norm": final_norm, "identifier": identifier, "max_tokens": max_tokens, "new_tokens": new_tokens,
        "documents": documents, "seed": seed,
    }  # fmt: skip
    about = {
        "model": ModelIdentity.of(unembedding.model).as_json(),
        "prompts": {language: corpus.name for language, corpus in opened.items()},
        "profile": {"tokenizer": profile.tokenizer, "corpora": dict(profile.corpora)},
        "settings": settings,
    }
    masses = torch.stack([row.mass for row in rows])
    columns = len(profile.languages) + 1
    return LanguageCurve(
        profile.languages,
        tuple(prompt_languages),
        masses[..., :columns].contiguous(),
        torch.stack([row.entropy for row in rows]),
        torch.stack([row.agreement for row in rows]),
        masses[..., columns:].contiguous() if identifier is None else None,
        tuple(row.grid for row in rows if row.grid is not None),
        about,
    )


@dataclass
class _Prompt:
    mass: Tensor
    """[L + 1, C]"""
    entropy: Tensor
    """[L + 1]"""
    agreement: Tensor
    """[L + 1]"""
    grid: TokenGrid | None = None


class _Reader:
    """Reads batches with one profile or identifier."""

    def __init__(
        self,
        unembedding: Unembedding,
        profile: VocabularyProfile,
        texts: list[str],
        final_norm: bool,
        identifier: str | None,
        top_k: int,
        seed: int,
    ) -> None:
        self.unembedding, self.languages, self.texts = unembedding, profile.languages, texts
        self.final_norm, self.top_k = final_norm, top_k
        beyond = unembedding.vocabulary - len(profile.posterior)  # a padded vocabulary: those speak no language
        nothing = torch.zeros(beyond, len(self.languages) + 1)
        nothing[:, -1] = 1
        self.posterior = torch.cat([profile.posterior, nothing])
        self.identify = None if identifier is None else make_identifier(identifier, self.languages)
        if self.identify is None:
            shuffled = self.posterior.clone()
            spoken = (profile.script > 0).nonzero()[:, 0]
            draw = torch.randperm(len(spoken), generator=torch.Generator().manual_seed(seed))
            shuffled[spoken] = self.posterior[spoken[draw]]
            self.table = torch.cat([self.posterior, shuffled], 1)
        else:
            self.table = self.posterior[:, -1:]  # entropy and the likeliest tokens are all that is needed
        self.table = self.table.to(unembedding.device)

    def read(self, batch: Batch, chosen_BT: Tensor, kept_B: Tensor, language: str) -> list[_Prompt]:
        """A `_Prompt` for each row of a batch."""
        row_N = chosen_BT.nonzero()[:, 0]
        shown_N = kept_B[row_N]
        readings: list[Reading] = []
        tops: list[tuple[Tensor, Tensor]] = []
        last = len(self.unembedding.layers)

        def visit(layer: int, hidden_NM: Tensor) -> None:
            norm = self.final_norm or layer == last
            readings.append(read_layer(self.unembedding, layer, hidden_NM, self.table, final_norm=norm).to("cpu"))
            if bool(shown_N.any()):
                shown = hidden_NM[shown_N.to(hidden_NM.device)]
                ids, chances = top_tokens(self.unembedding, shown, self.top_k, final_norm=norm)
                tops.append((ids.cpu(), chances.cpu()))

        with LayerStates(self.unembedding, visit) as states:
            states.run(batch.input_ids, batch.attention_mask, chosen_BT)
        top_LN = torch.stack([reading.top for reading in readings])
        mass_LNC = torch.stack([self._mass(reading) for reading in readings])
        entropy_LN = torch.stack([reading.entropy for reading in readings])
        agree_LN = (top_LN == top_LN[-1]).double()
        prompts = []
        for row in range(len(batch)):
            own = row_N == row
            mass, entropy, agreement = (
                each[:, own].double().mean(1).float() for each in (mass_LNC, entropy_LN, agree_LN)
            )
            prompt = _Prompt(mass, entropy, agreement)
            if bool(kept_B[row]):
                at = row_N[shown_N] == row
                ids = batch.input_ids[row][chosen_BT[row]]
                prompt.grid = self._grid(language, ids, [(top[at], chance[at]) for top, chance in tops])
            prompts.append(prompt)
        return prompts

    def _mass(self, reading: Reading) -> Tensor:
        if self.identify is None:
            return reading.mass
        columns = [self._identified(token) for token in reading.top.tolist()]
        return nn.functional.one_hot(torch.tensor(columns), len(self.languages) + 1).double()

    def _identified(self, token: int) -> int:
        assert self.identify is not None
        found = self.identify(self.texts[token]) if token < len(self.texts) else ""
        return self.languages.index(found) if found else len(self.languages)

    def _grid(self, language: str, ids_T: Tensor, tops: list[tuple[Tensor, Tensor]]) -> TokenGrid:
        def text(token: int) -> str:
            return self.texts[token] if token < len(self.texts) else ""

        def spoken(token: int) -> str:
            if self.identify is not None:
                column = self._identified(token)
            else:
                best = self.posterior[token].max(0)
                column = int(best.indices) if float(best.values) > 0.5 else len(self.languages)
            return (*self.languages, "")[column]

        return TokenGrid(
            language,
            [text(token) for token in ids_T.tolist()],
            [[[text(token) for token in place] for place in ids.tolist()] for ids, _ in tops],
            [chances.double().tolist() for _, chances in tops],
            [[spoken(place[0]) for place in ids.tolist()] for ids, _ in tops],
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


def _names(tokenizer: Any, texts: list[str]) -> list[str]:
    """Texts of the tokens, with the names of special ones, which have no text."""
    special = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in tokenizer.all_special_ids}
    return [special.get(token, text) for token, text in enumerate(texts)]


def _continued(model: Any, tokenizer: Any, batch: Batch, new_tokens: int) -> tuple[Batch, Tensor]:
    """The batch with the model's greedy continuations, and the positions [B, T] that chose them."""
    device, pad = model.get_input_embeddings().weight.device, padding_id(tokenizer)
    lengths = batch.attention_mask.sum(1).tolist()
    width = max(lengths)
    ids_BT, mask_BT = torch.full((len(batch), width), pad), torch.zeros(len(batch), width, dtype=torch.int64)
    for row, length in enumerate(lengths):  # generation continues at the right end
        ids_BT[row, width - length :] = batch.input_ids[row, :length]
        mask_BT[row, width - length :] = 1
    with torch.no_grad():
        made = model.generate(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
        ).cpu()
    stops = _stop_ids(model)
    documents = []
    for row, length in enumerate(lengths):
        fresh = list(_until(made[row, width:].tolist(), stops))
        documents.append((torch.cat([batch.input_ids[row, :length], torch.tensor(fresh)]), length, len(fresh)))
    longest = max(len(ids) for ids, _, _ in documents)
    ids_BT = torch.full((len(batch), longest), pad)
    mask_BT = torch.zeros(len(batch), longest, dtype=torch.int64)
    chosen_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, (ids, length, count) in enumerate(documents):
        ids_BT[row, : len(ids)], mask_BT[row, : len(ids)] = ids, 1
        chosen_BT[row, length - 1 : length - 1 + count] = True
    continued = Batch(ids_BT, mask_BT, chosen_BT, batch.document_index, batch.position, batch.n_bytes)
    return continued, chosen_BT


def _stop_ids(model: Any) -> set[int]:
    stop = model.generation_config.eos_token_id
    return set() if stop is None else set(stop) if isinstance(stop, list) else {int(stop)}


def _until(tokens: Iterable[int], stops: set[int]) -> Iterator[int]:
    """Tokens up to and with the first stop: what comes after it is padding."""
    for token in tokens:
        yield token
        if token in stops:
            return
