"""Models that go by a short name: Tinybabel's, and those of other packages (docs/extend/source.md)."""

from __future__ import annotations

from pathlib import Path

from babelscope.compression import path_of
from babelscope.errors import DataError
from babelscope.plugins import Registry

MODELS: Registry[Path] = Registry("model", "babelscope.models", {"tinybabel": "babelscope.tinybabel:MODEL"})
"""Name -> the folder that `save_pretrained` wrote."""


def model_folder(name: str | Path) -> Path:
    """The folder that a name means; for a name on the Hub, a path where there is none.

    A folder comes before a registered model of the same name.

    Raises:
        DataError: no path at all, or the folder of a registered model is missing.
    """
    folder = path_of(str(name))
    if folder.is_dir() or str(name) not in MODELS:
        return folder
    registered = Path(MODELS[str(name)])
    if not registered.is_dir():
        raise DataError(
            f"wanted the folder of the model {str(name)!r}, found nothing at {registered}. Install the package that "
            "brings it anew."
        )
    return registered
