"""The log file of a study."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("babelscope.study")


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Every library's warnings and this one's messages, with the time, in a file that grows; off the terminal."""
    root, library = logging.getLogger(), logging.getLogger("babelscope")
    handler, level = logging.FileHandler(path, encoding="utf-8"), library.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    shown = {each: each.level for each in library.handlers}
    for each in shown:
        each.setLevel(max(each.level, logging.WARNING))
    library.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    except BaseException as error:
        logger.error("stopped: %s: %s", type(error).__name__, error)
        raise
    finally:
        logging.captureWarnings(False)
        library.setLevel(level)
        for each, before in shown.items():
            each.setLevel(before)
        root.removeHandler(handler)
        handler.close()
