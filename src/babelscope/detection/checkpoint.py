"""Checkpoints of a detection: the language at work and the finished ones, so that a kill loses little."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from babelscope.artifacts import read_tensors, write_tensors
from babelscope.detection.processes import Processes
from babelscope.neurons.statistics import Layout, Statistics


class Checkpoint:
    """Progress of the language at work (one file per process), and finished languages, in a run folder.

    Args:
        folder: of the run.
        seconds: between two checkpoints of the language at work.
        layout: of the statistics.
        processes: at work on the same run. Another number of them can go on with finished languages, not with the
            language at work, whose documents they would share out differently.
    """

    def __init__(self, folder: Path, seconds: float, layout: Layout, processes: Processes) -> None:
        self.folder = folder / "languages"
        self.seconds = seconds
        self.layout = layout
        self.processes = processes
        self._last = time.monotonic()

    def _partial(self, language: str) -> Path:
        number, count = self.processes.part
        part = "" if count == 1 else f".{number}of{count}"
        return self.folder / f"{language}{part}.partial.safetensors"

    def load(self, language: str, empty: Statistics) -> tuple[Statistics, int, int]:
        """Statistics so far, batches done, batches halved."""
        path = self._partial(language)
        if not path.exists():
            return empty, 0, 0
        tensors, header = read_tensors(path, "checkpoint")
        return Statistics.from_tensors(self.layout, tensors, language, path), header["batches"], header["halved"]

    def save(self, language: str, statistics: Statistics, batches_done: int, halved: int) -> None:
        """Writes a checkpoint when one is due."""
        if not self.processes.writes or time.monotonic() - self._last < self.seconds:
            return
        header = {"batches": batches_done, "halved": halved}
        write_tensors(self._partial(language), "checkpoint", statistics.tensors(language), header)
        self._last = time.monotonic()

    def finished(self, language: str) -> tuple[Statistics, list[dict[str, Any]]] | None:
        """A finished language, or None."""
        path = self.folder / f"{language}.safetensors"
        if not path.exists():
            return None
        tensors, header = read_tensors(path, "checkpoint")
        return Statistics.from_tensors(self.layout, tensors, language, path), header["records"]

    def finish(self, language: str, statistics: Statistics, records: list[dict[str, Any]]) -> None:
        """Keeps a finished language and drops its checkpoints; for the first process only."""
        path = self.folder / f"{language}.safetensors"
        write_tensors(path, "checkpoint", statistics.tensors(language), {"records": records})
        for partial in self.folder.glob(f"{language}.*partial.safetensors"):
            partial.unlink()

    def clear(self) -> None:
        """Removes what the finished atlas makes superfluous."""
        for pattern in ("*.safetensors", ".*.tmp"):  # a killed process may have left a file half written
            for path in self.folder.glob(pattern):
                path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
