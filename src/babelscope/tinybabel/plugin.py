"""Tinybabel's texts as a kind of corpus: tinybabel:LANGUAGE or tinybabel:LANGUAGE:SPLIT."""

from __future__ import annotations

from typing import cast

from babelscope.corpora.sources import Corpus
from babelscope.errors import ConfigError
from babelscope.tinybabel import NAME
from babelscope.tinybabel.texts import COUNTS, documents, fingerprint
from babelscope.tinybabel.world import Split


def open_texts(spec: str) -> Corpus:
    """Opens the texts that a spec such as `tinybabel:fr:test` means; the split is `train` where none is named.

    Raises:
        ConfigError: the spec has another form, or names no split.
        DataError: Tinybabel doesn't speak the language.
    """
    _, code, split, *more = [*spec.split(":"), "train"] if spec.count(":") == 1 else spec.split(":")
    if more or split not in COUNTS:
        raise ConfigError(
            f"wanted tinybabel:LANGUAGE or tinybabel:LANGUAGE:SPLIT with a SPLIT of {', '.join(COUNTS)}; found {spec!r}"
        )
    part = cast(Split, split)
    content = fingerprint(code, part)
    return Corpus(spec, NAME, True, True, lambda: documents(code, part), lambda: content)
