"""What is kept on disk: safetensors with a JSON header, JSON, and run folders. Never pickle; every write is atomic."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.errors import DataError, RunFolderError
from babelscope.textfiles import parse_json, read_text

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
"""Version of every file format below; a file of another version is refused."""

_HEADER = "babelscope"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def finite(content: Any) -> Any:
    """What JSON can hold: NaN and infinity become null, tuples lists."""
    if isinstance(content, Mapping):
        return {str(name): finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; DataError says what is wrong with the file."""
    if not path.exists():
        raise DataError(f"no file {path}. Check the path.")
    try:
        content = parse_json(read_text(path), str(path))
    except DataError as error:
        raise DataError(f"{error} Delete it and make it again.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: wanted a JSON object, found a {type(content).__name__}. Make the file again.")
    return content


CHECKSUM = "checksum"
"""The field of a header that tells a file from a damaged one."""


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a header to one safetensors file, atomically.

    Args:
        path: the file.
        kind: what the file is (`atlas`, `neurons`, ...); checked on reading.
        tensors: by name.
        header: anything JSON can hold.
    """
    from safetensors.torch import save_file

    content = json.loads(json.dumps({"schema": SCHEMA, "kind": kind, **header}))  # as it will be read
    text = json.dumps({**content, CHECKSUM: _checksum(tensors, content)}, ensure_ascii=False)
    with _replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata={_HEADER: text})


def read_header(path: Path) -> dict[str, Any]:
    """The header of a Babelscope safetensors file, without its tensors.

    Raises:
        DataError: the file is missing, truncated, not safetensors, or not written by Babelscope.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"no file {path}. Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is not a whole safetensors file ({error}). It was cut short or is of another format; "
            "copy it again or make it again."
        ) from None
    try:
        header = json.loads(metadata[_HEADER])
        schema, kind = header["schema"], header["kind"]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise DataError(
            f"{path} is a safetensors file, but not one of Babelscope's (no header {_HEADER!r}). "
            "Give a file written by babelscope detect or babelscope select."
        ) from None
    if schema != SCHEMA:
        raise DataError(
            f"{path} has schema {schema}, this version of Babelscope reads schema {SCHEMA}. Read it with the version "
            f"that wrote it ({header.get('version', 'unknown')}), or make the {kind} again."
        )
    return dict(header)


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file of the given kind; DataError as in `read_header`, or when the kind differs."""
    from safetensors.torch import load_file

    header = read_header(path)
    if header["kind"] != kind:
        raise DataError(f"{path}: wanted a file of kind {kind!r}, found {header['kind']!r}. Give the other file.")
    tensors, checksum = load_file(path), header.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(tensors, header):  # files of earlier versions have none
        raise DataError(f"{path}: the file has changed since it was written: its checksum is wrong. Make it again.")
    return tensors, header


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """A hash of everything that a file holds."""
    import torch

    total = hashlib.blake2b(json.dumps(header, sort_keys=True, ensure_ascii=False).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def digest(content: Any) -> str:
    """A short hash of anything JSON can hold."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def environment() -> dict[str, str]:
    """Versions and machine, for provenance."""
    import torch
    import transformers

    import babelscope

    return {
        "babelscope": babelscope.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }


@contextlib.contextmanager
def run_folder(path: Path, asked: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Path]:
    """Opens a run folder for writing: one process at a time, and only for the settings it was made with.

    Args:
        path: the folder; made if missing.
        asked: the settings that decide the numbers. Stored in run.json, compared when the folder holds work already.
        about: what a reader of run.json wants to know besides: names of the model and the corpora.

    Raises:
        RunFolderError: another process is writing it, or it was made with other settings (says which differ).
    """
    from filelock import FileLock, Timeout

    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunFolderError(f"{path} is a file, or lies under one. Give a folder with --out.") from None
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"another process is writing {path}. Wait for it to end, or give another folder with --out."
        ) from None
    try:
        record = path / "run.json"
        if all(_is_our_own(item) for item in path.iterdir()):
            # Nothing was done yet (a new folder, or a corpus turned out empty): the corrected command may use it.
            started = {"schema": SCHEMA, "status": "running", "asked": asked, **about, "environment": environment()}
            write_json(record, started)
        elif record.exists():
            _compare(path, read_json(record).get("asked", {}), json.loads(json.dumps(asked)))
        else:
            raise RunFolderError(
                f"{path} is not empty and not a run folder (no run.json). Give a new folder with --out."
            )
        yield path
    finally:
        lock.release()


def _is_our_own(item: Path) -> bool:
    """The lock, the record, and what a killed process left of a record half written."""
    return item.name in (".lock", "run.json") or (item.name.startswith(".run.json.") and item.suffix == ".tmp")


def update_run(path: Path, **fields: Any) -> None:
    """Adds or replaces fields of a run folder's run.json."""
    write_json(path / "run.json", {**read_json(path / "run.json"), **fields})


def _compare(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    different = _differences(before, now)
    if different:
        raise RunFolderError(
            f"{path} was made with other settings ({'; '.join(different)}). Repeat those settings to resume it, or "
            "give another folder with --out."
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> list[str]:
    """What differs, by dotted name."""
    found = []
    for name in sorted({*before, *now}):
        then, here = before.get(name), now.get(name)
        if isinstance(then, dict) and isinstance(here, dict):
            found += _differences(then, here, f"{within}{name}.")
        elif then != here:
            found.append(f"{within}{name}: then {then!r}, now {here!r}")
    return found


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
