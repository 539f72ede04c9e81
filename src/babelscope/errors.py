"""One tree of errors. Every message says what was wanted, what was found and what to do."""


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
