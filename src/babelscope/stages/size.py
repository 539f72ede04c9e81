"""The size of a model, as far as it is known without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from babelscope.artifacts import read_json
from babelscope.models.named import model_folder

if TYPE_CHECKING:
    from babelscope.stages.study import Model

SIZES: Mapping[str, tuple[float, int]] = {
    "lmsys/vicuna-7b-v1.5": (6.74e9, 32), "lmsys/vicuna-13b-v1.5": (13.0e9, 40),
    "mistralai/Mistral-7B-Instruct-v0.2": (7.24e9, 32), "mistralai/Mistral-7B-v0.1": (7.24e9, 32),
    "bigscience/bloomz-7b1": (7.07e9, 30), "hfl/chinese-llama-2-7b": (6.93e9, 32),
}  # fmt: skip
"""Parameters and layers of the paper's models by their names on the Hub, so that a dry run needs no network."""


@dataclass(frozen=True)
class Size:
    """Of a model, as far as it is known without loading it."""

    parameters: float | None
    layers: int | None
    bytes: float | None
    """Of its weights, in the asked dtype."""

    @classmethod
    def of(cls, model: Model) -> Size:
        """From a folder's files, or for a Hub name from the table of the paper's models. No network.

        Raises:
            DataError: the folder's config.json is no JSON.
        """
        width = {"float32": 4, "float64": 8}.get(model.dtype, 2)
        if model.name in SIZES:
            parameters, layers = SIZES[model.name]
            return cls(parameters, layers, parameters * width)
        folder = model_folder(model.name)
        if not (folder / "config.json").is_file():
            return cls(None, None, None)
        config = read_json(folder / "config.json")
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        kept = 4 if str(config.get("dtype", config.get("torch_dtype"))) == "float32" else 2
        depth = config.get("num_hidden_layers", config.get("n_layer"))
        used = kept if model.dtype == "auto" else width
        return cls(stored / kept, depth if isinstance(depth, int) else None, stored / kept * used)
