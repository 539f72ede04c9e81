"""Several processes on one training: what they were launched with, and the folder that they share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from babelscope.artifacts import run_folder
from babelscope.errors import ConfigError


def launched_with(name: str) -> bool:
    """Whether accelerate's launcher asked for it: FSDP, DEEPSPEED or MEGATRON_LM."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"


@contextmanager
def shared_folder(run_dir: Any, asked: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Path]:
    """The run folder, locked by the first of several processes; or a temporary one."""
    from accelerate import PartialState

    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if launched_with(name):
            raise ConfigError(
                f"tune was launched with {name}, whose pieces of a model it can't save or measure. Launch with FSDP "
                "version 2 (accelerate launch --use_fsdp --fsdp_version 2), or without either if the model fits a GPU."
            )
    if launched_with("FSDP"):
        if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
            raise ConfigError(f"tune wants FSDP version 2, found version {version}. Launch with --fsdp_version 2.")
        # The other kind, in shards, is read with pickle.
        os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    state = PartialState(cpu=not torch.accelerator.is_available())
    with ExitStack() as stack:
        if run_dir is None:
            if state.num_processes > 1:
                raise ConfigError("several processes need one run folder to meet in. Give run_dir (--out).")
            yield Path(stack.enter_context(tempfile.TemporaryDirectory()))
            return
        folder = Path(run_dir).expanduser().resolve()
        if state.is_main_process:
            stack.enter_context(run_folder(folder, asked, about))
        state.wait_for_everyone()
        yield folder
