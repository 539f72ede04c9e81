"""P(language | token) for every token of a vocabulary, counted in a text of each language.

Axes: `V` tokens of the vocabulary, `K` languages, `S` scripts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from babelscope.artifacts import digest, read_tensors, write_tensors
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.languages import get_language
from babelscope.lens.tokens import token_bytes, token_script, tokenizer_fingerprint, vocabulary_size

KIND = "vocabulary profile"
SMOOTHING = 0.1
"""Occurrences added to every token in every language: a probability of 1e-7 in a text of a million tokens."""
_WRITES = 0.01
"""Share of a language's tokens with letters that a script needs to be one that the language is written in."""
_CERTAIN = 0.99
"""P(language | script) from which on an unseen token of the script is one of the language."""
_CHUNK = 512
"""Documents tokenised together."""


@dataclass(frozen=True, eq=False)
class VocabularyProfile:
    """Which language each token of a tokenizer speaks, and how sure that is.

    Built by `VocabularyProfile.build`; everything else follows from the counts.
    """

    languages: tuple[str, ...]
    """Codes, in the order of the columns."""
    counts: Tensor
    """[V, K] int64, occurrences of each token in the text of each language."""
    script: Tensor
    """[V] int64, index into `scripts`."""
    scripts: tuple[str, ...]
    """Names of scripts; the first, empty, is that of tokens that are no language (see `token_script`)."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    corpora: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By language: name, identity, documents and tokens of the text."""
    smoothing: float = SMOOTHING
    """Occurrences added to every token in every language."""

    @classmethod
    def build(
        cls,
        tokenizer: Any,
        corpora: Mapping[str, str | Path | Iterable[str] | Corpus],
        *,
        documents: int | None = None,
        smoothing: float = SMOOTHING,
        cache: str | Path | None = None,
    ) -> VocabularyProfile:
        """Counts the tokens of every language in one streaming pass; holds 512 documents at a time.

        Args:
            tokenizer: a Hugging Face tokenizer.
            corpora: by language, anything that `open_corpus` takes.
            documents: read at most so many of each language, from the start; None for all (not for endless streams).
            smoothing: occurrences added to every token in every language. More of it leaves more unknown.
            cache: a folder that keeps profiles by tokenizer, corpora and settings. Sources that can't be recognised
                (one-shot iterators, standard input) are counted anew each time.

        Raises:
            ConfigError: fewer than two languages, an unknown or repeated one, or a setting out of range.
            DataError: a text that is missing, empty or without a token; the message names it.
        """
        if not (smoothing > 0 and math.isfinite(smoothing)):
            raise ConfigError(f"smoothing must be above 0, found {smoothing}. Leave it out for {SMOOTHING}.")
        if documents is not None and documents < 1:
            raise ConfigError(f"documents must be at least 1, found {documents}. Leave it out to read all.")
        opened = {get_language(language).code: open_corpus(source) for language, source in corpora.items()}
        if len(opened) < max(2, len(corpora)):
            raise ConfigError(
                f"wanted texts of two or more different languages, found {', '.join(corpora) or 'none'}. "
                "A token can only speak one language rather than another: add a corpus of another language."
            )
        fingerprint = tokenizer_fingerprint(tokenizer)
        identities = {language: corpus.identity() for language, corpus in opened.items()}
        known = cache is not None and "unknown" not in identities.values()
        path = None
        if known:
            name = digest([fingerprint, list(identities.items()), documents, smoothing])
            path = Path(cache) / f"profile-{name}.safetensors"  # type: ignore[arg-type]
            if path.is_file():
                return cls.load(path)
        spelled = [token_script(each) for each in token_bytes(tokenizer)]
        scripts = ("", *sorted(set(spelled) - {""}))
        columns, records = [], {}
        for language, corpus in opened.items():
            column, read = _count(tokenizer, corpus, len(spelled), documents)
            columns.append(column)
            total = int(column.sum())
            records[language] = {
                "name": corpus.name,
                "identity": identities[language],
                "documents": read,
                "tokens": total,
            }
        profile = cls(
            tuple(opened),
            torch.stack(columns, 1),
            torch.tensor([scripts.index(each) for each in spelled]),
            scripts,
            fingerprint,
            records,
            smoothing,
        )
        if path is not None:
            profile.save(path)
        return profile

    @cached_property
    def likelihood(self) -> Tensor:
        """[V, K] float64, P(token | language), smoothed by `smoothing` occurrences."""
        counts = self.counts.double()
        return (counts + self.smoothing) / (counts.sum(0) + self.smoothing * len(counts))

    @cached_property
    def posterior(self) -> Tensor:
        """[V, K + 1] float32, P(language | token) under equal priors; the last column is shared or not language.

        That column holds all of a token that is no language, what smoothing alone says (the token was not seen often
        enough), and what comes from texts of languages that aren't written in the token's script (a Chinese word
        quoted in French). An unseen token of a script that only one of the languages is written in, such as Thai, is
        of that language. Rows sum to 1.
        """
        counts, totals = self.counts.double(), self.counts.sum(0).double()
        writes, owner = self._scripts_of_languages()
        norm = totals + self.smoothing * len(counts)
        evidence = counts / norm
        guess = (self.smoothing / norm).expand_as(evidence)
        total = evidence.sum(1) + guess.sum(1)
        own = (evidence * writes[self.script]) / total[:, None]
        rest = 1 - own.sum(1)
        owned = owner[self.script]
        own[owned >= 0, owned[owned >= 0]] += rest[owned >= 0]
        rest = torch.where(owned >= 0, 0.0, rest)
        found = torch.cat([own, rest[:, None]], 1)
        found[self.script == 0] = 0
        found[self.script == 0, -1] = 1
        return found.float()

    def _scripts_of_languages(self) -> tuple[Tensor, Tensor]:
        """Whether a language is written in a script, [S, K]; and a script's only language, [S], -1 if it has none."""
        in_script = torch.zeros(len(self.scripts), len(self.languages), dtype=torch.float64)
        in_script.index_add_(0, self.script, self.counts.double())
        in_script[0] = 0
        share = in_script / in_script.sum(0).clamp_min(1)
        writes = share >= _WRITES
        certainty = share / share.sum(1, keepdim=True).clamp_min(1e-300)
        best = certainty.max(1)
        sure = (best.values >= _CERTAIN) & writes.any(1)
        return writes, torch.where(sure, best.indices, -1)

    def among_languages(self) -> Tensor:
        """[V, K] float32, P(language | token, it is one of the languages): what is unknown is shared out evenly."""
        return self.posterior[:, :-1] + self.posterior[:, -1:] / len(self.languages)

    def identify(self, ids: Iterable[int]) -> str:
        """The language of a text from its tokens: that of the largest sum of log P(token | language).

        Raises:
            DataError: no token.
        """
        tokens = torch.as_tensor(list(ids), dtype=torch.int64)
        if not len(tokens):
            raise DataError("a text without a token has no language. Leave it out.")
        return self.languages[int(self._log_likelihood[tokens].sum(0).argmax())]

    @cached_property
    def _log_likelihood(self) -> Tensor:
        return self.likelihood.log()

    def evaluate(
        self, tokenizer: Any, texts: Mapping[str, Iterable[str]], *, window: int = 8, bins: int = 15
    ) -> ProfileEvaluation:
        """Accuracy and calibration on held-out text: by token, by window of tokens, by text.

        Every language weighs the same. Tokens count if they are language (have letters, ...; see `token_script`).

        Args:
            tokenizer: that of the profile.
            texts: by language.
            window: tokens of a window.
            bins: of the calibration error, of equal width.

        Raises:
            ConfigError: a language that the profile lacks.
            DataError: no text of a language.
            ProvenanceError: another tokenizer.
        """
        self.check_tokenizer(tokenizer)
        chances = self.among_languages()
        sentence, windowed, token, confidence, right = {}, {}, {}, [], []
        for given, lines in texts.items():
            language = self._column(given)
            rows = (tokenizer(line, add_special_tokens=False, verbose=False)["input_ids"] for line in lines)
            ids = [torch.tensor(row) for row in rows if row]
            if not ids:
                raise DataError(f"no text of {given} to evaluate on. Give at least one line.")
            name = self.languages[language]
            sentence[name] = self._accuracy(ids, language)
            windowed[name] = self._accuracy([part for each in ids for part in each.split(window)], language)
            spoken = torch.cat(ids)
            found = chances[spoken[self.script[spoken] > 0]].max(1)
            confidence.append(found.values)
            right.append((found.indices == language).float())
            token[name] = float(right[-1].mean())
        return ProfileEvaluation(sentence, windowed, window, token, calibration_error(confidence, right, bins))

    def _accuracy(self, parts: list[Tensor], language: int) -> float:
        totals = torch.stack([self._log_likelihood[part].sum(0) for part in parts])
        return float((totals.argmax(1) == language).double().mean())

    def _column(self, language: str) -> int:
        code = get_language(language).code
        if code not in self.languages:
            raise ConfigError(
                f"the profile has the languages {', '.join(self.languages)}, not {code!r}. Build it with a corpus of "
                f"{code} too."
            )
        return self.languages.index(code)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises ProvenanceError if the profile is that of another tokenizer."""
        if self.tokenizer != tokenizer_fingerprint(tokenizer):
            raise ProvenanceError(
                f"the profile counts the tokens of another tokenizer ({len(self.counts)} tokens, here "
                f"{vocabulary_size(tokenizer)}). Build one for this tokenizer with VocabularyProfile.build."
            )

    def save(self, path: str | Path) -> None:
        """Writes the profile to a safetensors file: counts, scripts, and a header with where they come from."""
        header = {
            "languages": self.languages,
            "scripts": self.scripts,
            "tokenizer": self.tokenizer,
            "corpora": self.corpora,
            "smoothing": self.smoothing,
        }
        write_tensors(Path(path), KIND, {"counts": self.counts, "script": self.script}, header)

    @classmethod
    def load(cls, path: str | Path) -> VocabularyProfile:
        """Reads what `save` wrote; DataError as in `babelscope.artifacts.read_header`."""
        tensors, header = read_tensors(Path(path), KIND)
        return cls(
            tuple(header["languages"]),
            tensors["counts"],
            tensors["script"],
            tuple(header["scripts"]),
            header["tokenizer"],
            header["corpora"],
            header["smoothing"],
        )


@dataclass(frozen=True)
class ProfileEvaluation:
    """How right a profile is on held-out text, by language."""

    text_accuracy: dict[str, float]
    """Share of whole texts whose language is found."""
    window_accuracy: dict[str, float]
    """Share of windows of `window` tokens."""
    window: int
    token_accuracy: dict[str, float]
    """Share of single tokens whose likeliest language is that of the text; many tokens are words of several."""
    calibration_error: float
    """Expected calibration error of single tokens: mean |confidence - accuracy| over bins, by share of tokens."""


def _count(tokenizer: Any, corpus: Corpus, vocabulary: int, documents: int | None) -> tuple[Tensor, int]:
    """Occurrences of each token [V] int64, and how many documents were read."""
    counts, read = torch.zeros(vocabulary, dtype=torch.int64), 0
    texts = (document.text for document in itertools.islice(corpus, documents))
    while chunk := list(itertools.islice(texts, _CHUNK)):
        read += len(chunk)
        rows = tokenizer(chunk, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        ids = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int64)
        counts += torch.bincount(ids, minlength=vocabulary)
    if not counts.any():
        raise DataError(f"no text in {corpus.name}: {read} documents, all empty. Give a text of the language.")
    return counts, read


def calibration_error(confidence: list[Tensor], right: list[Tensor], bins: int = 15) -> float:
    """Expected calibration error; each entry of the lists, a language, weighs the same."""
    weight = torch.cat([torch.full_like(each, 1 / len(each) / len(right), dtype=torch.float64) for each in right])
    sure, correct = torch.cat(confidence).double(), torch.cat(right).double()
    place = (sure * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, weight * (sure - correct))
    return float(gaps.abs().sum())
