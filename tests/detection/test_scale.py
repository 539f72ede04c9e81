"""The plan on paper in docs/scale.md is what benchmarks/scale.py says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_in_the_docs_are_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    assert spec is not None
    assert spec.loader is not None
    scale = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scale", scale)  # dataclasses look their module up
    spec.loader.exec_module(scale)
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for table in scale.tables().split("\n\n"):
        assert table in text, "run benchmarks/scale.py again and copy its tables"

    dense, mixture = (scale.work(model) for model in scale.MODELS[1:])
    assert dense.units == 80 * (2 * 64 * 128 + 2 * 8 * 128 + 28672)
    assert dense.cards == 2
    assert mixture.statistics > 5 * dense.statistics
    quadratic = scale.work(scale.MODELS[0], 512).attention / scale.work(scale.MODELS[0], 256).attention
    assert quadratic == pytest.approx(4)
