"""The one store of computed cells: each is kept under its key as it comes, so that a kill takes back nothing whole.

A cell is a JSON object. A store is a file with a line for each: a line is there whole or, after a kill, not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


class CellStore:
    """JSON objects by key, in memory and, as they come, in a file.

    Args:
        path: the file; its folder is made when the first cell is kept. None: nothing is kept on disk.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:  # a kill may have left half a line, and half a letter
                content = json.loads(line)
                self._known[content.pop("key")] = content
            path.write_text(_as_lines(self._known), encoding="utf-8")

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, contents: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps cells, all or none."""
        kept = {key: dict(content) for key, content in contents.items()}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(_as_lines(kept))
        self._known.update(kept)

    def get(self, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The cell of a key: the kept one, or the one that `compute` makes, which is kept."""
        if key not in self:
            self.add({key: compute()})
        return self[key]


def _as_lines(contents: Mapping[str, Mapping[str, Any]]) -> str:
    return "".join(json.dumps({"key": key, **content}, ensure_ascii=False) + "\n" for key, content in contents.items())
