"""What a command says beside its answer, on standard error, and the answer as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from babelscope.artifacts import finite
from babelscope.progress import clean

_LONG = ("detect", "tune")
"""Where no progress bar is drawn, as in a file, these tell in lines how they go on."""


def say(text: str) -> None:
    """A line for the user."""
    print("babelscope: " + clean(text, keep="\n"), file=sys.stderr)


class _Stderr(logging.Handler):
    """Standard error as it is now: above the bars while there are some."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _LogLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "warning: " if record.levelno >= logging.WARNING else ""
        return f"babelscope: {level}{clean(record.getMessage(), keep=chr(10))}"


@contextmanager
def log_on_stderr(command: str) -> Iterator[None]:
    """Shows the library's warnings, and how a long command goes on."""
    logger = logging.getLogger("babelscope")
    handler, level = _Stderr(), logger.level
    handler.setFormatter(_LogLine())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if command in _LONG and not sys.stderr.isatty() else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def quieten_transformers() -> None:
    """Keeps its notes and its bar for loading weights off the terminal; downloads, which take long, keep theirs."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if sys.stderr.isatty() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        enable_progress_bars()


def as_json(content: Mapping[str, Any]) -> str:
    """For --json: NaN and infinity, which JSON lacks, become null."""
    return json.dumps(finite(content), indent=2)
