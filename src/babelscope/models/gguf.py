"""Models in a GGUF file, which transformers reads and dequantises."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from babelscope.errors import DataError, MissingDependencyError

SUFFIX = ".gguf"
QUANTIZATION = "gguf_quantization"
"""Key of config.json under which a model, and a checkpoint that was converted from it, says its quantization type."""


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means, or None where the path means something else.

    Args:
        path: a file, or a folder; a folder that has a config.json is an ordinary checkpoint.

    Raises:
        DataError: a folder with several GGUF files and no config.json.
    """
    if path.is_file():
        return path if path.suffix.lower() == SUFFIX else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX and file.is_file())
    if len(files) > 1:
        raise DataError(
            f"wanted one GGUF file, found {len(files)} in {path}: {', '.join(file.name for file in files)}. Give the "
            "path of one of them."
        )
    return files[0] if files else None


def quantization_type(file: Path) -> str:
    """The quantization type of a GGUF file, such as Q4_K_M or F16.

    Args:
        file: the file.

    Returns:
        The type that the file states; where it states none, the types of its tensors, joined by plus signs.

    Raises:
        MissingDependencyError: gguf or accelerate is not installed.
        DataError: not a GGUF file, a cut one, or one whose architecture transformers cannot read.
    """
    try:
        import accelerate  # noqa: F401
        from gguf import GGUFReader, LlamaFileType
    except ImportError as error:
        raise MissingDependencyError(f'{file} is a GGUF file: pip install "babelscope[gguf]" reads it') from error
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader: Any = GGUFReader(file)
        architecture = reader.get_field("general.architecture")
        name = str(architecture.contents()) if architecture is not None else "nothing"
        stated = reader.get_field("general.file_type")
        number = None if stated is None else int(stated.contents())
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise DataError(
            f"wanted a GGUF file, found one that cannot be read at {file}: {error}. Fetch it again."
        ) from error
    if name.replace("-", "_") not in GGUF_SUPPORTED_ARCHITECTURES and name not in _OTHER_SPELLINGS:
        raise DataError(
            f"{file} holds a model of the architecture {name}, which transformers cannot read from GGUF; it reads "
            f"{', '.join(sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - _NO_MODELS))}. Give the original checkpoint."
        )
    if number is not None and number in set(LlamaFileType):
        return LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return "+".join(sorted({tensor.tensor_type.name for tensor in reader.tensors}))


_OTHER_SPELLINGS = frozenset({"qwen2moe", "qwen3moe"})
"""Architectures that GGUF spells in another way than transformers."""
_NO_MODELS = frozenset({"general", "tokenizer"})
"""Keys of transformers' table that are no architectures."""
