"""One tree of errors. Every message says what was wanted, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BabelscopeError(Exception):
    """Base class of every error that Babelscope raises on purpose."""


class ConfigError(BabelscopeError, ValueError):
    """A setting that can't be honoured: an unknown name, a value out of range, settings that contradict."""


class DataError(BabelscopeError, ValueError):
    """Text or a file that can't be used: missing, empty, undecodable, truncated, or of another format."""


class UnsupportedModelError(BabelscopeError, ValueError):
    """A model whose neurons can't be located, or whose computed impacts differ from really zeroing them."""


class ProvenanceError(BabelscopeError, ValueError):
    """An artefact that was made for another model, corpus or setting than the one it is used with."""


class RunFolderError(BabelscopeError, RuntimeError):
    """A run folder that is in use by another process, or that was made with other settings."""


class MissingDependencyError(BabelscopeError, ImportError):
    """An optional package that this feature needs; the message holds the exact `pip install` line."""


class NumericsError(BabelscopeError, ArithmeticError):
    """A model that produced NaN or infinite values; the message names the layer and the slot."""


def did_you_mean(found: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The remedy for a misspelt name: the nearest there is; if none is near, `otherwise`, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(found, names, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    return f"There are {', '.join(names)}." if otherwise is None else otherwise
