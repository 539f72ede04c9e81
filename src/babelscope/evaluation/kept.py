"""What was computed is kept as lines of JSON: a line is there whole or, after a kill, not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Kept:
    """JSON objects by key, in memory and, as they come, in a file with a line for each."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:  # a kill may have left half a line, and half a letter
                content = json.loads(line)
                self._known[content.pop("key")] = content
            path.write_text(_as_lines(self._known), encoding="utf-8")

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, contents: Mapping[str, dict[str, Any]]) -> None:
        """Keeps them, all or none."""
        self._known.update(contents)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(_as_lines(contents))


def _as_lines(contents: Mapping[str, dict[str, Any]]) -> str:
    return "".join(json.dumps({"key": key, **content}, ensure_ascii=False) + "\n" for key, content in contents.items())
