"""The harness's own command, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from babelscope.evaluation import harness


def harness_command(
    monkeypatch: pytest.MonkeyPatch, out: Path, names: Sequence[str], *words: object, limit: int = 3
) -> dict[str, Any]:
    """Results, and the answers of each of the tasks."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # half a minute of pip list
    monkeypatch.setattr("lm_eval.tasks._index.TaskIndex._iter_yaml_files", lambda _: [])  # its own thousands of tasks
    common = ("--limit", limit, "--batch_size", 2, "--output_path", out, "--log_samples", *words)
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *map(str, common)])
    harness.main()
    (results,) = out.rglob("results_*.json")
    found = {
        name: [json.loads(line)["resps"] for line in next(out.rglob(f"samples_{name}_*.jsonl")).open(encoding="utf-8")]
        for name in names
    }
    return {"results": json.loads(results.read_text(encoding="utf-8"))["results"], "samples": found}
