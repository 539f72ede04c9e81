"""The store of cells: nothing is computed twice, and a kill takes back at most the cell that was being written."""

from __future__ import annotations

import pytest

from babelscope.cells import CellStore


def test_a_cell_is_computed_once_and_found_again(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"value": len(calls), "text": "é"}

    path = tmp_path / "deep" / "cells.jsonl"
    for _ in range(2):
        store = CellStore(path)
        assert store.get("a", compute) == {"value": 1, "text": "é"}
        assert ("a" in store, "b" in store, list(store), len(store)) == (True, False, ["a"], 1)
    assert len(calls) == 1


@pytest.mark.parametrize("cut", range(1, 30))
def test_half_a_line_is_forgotten_wherever_the_kill_cut_it(tmp_path, cut):
    path = tmp_path / "cells.jsonl"
    CellStore(path).add({"a": {"text": "ü"}})
    whole = path.read_bytes()
    CellStore(path).add({"b": {"text": "ü"}})
    path.write_bytes(path.read_bytes()[:-cut] if cut < len(whole) else whole)
    store = CellStore(path)
    assert list(store) == ["a"]
    store.add({"b": {"text": "again"}})
    assert CellStore(path)["b"] == {"text": "again"}


def test_without_a_file_cells_are_kept_in_memory():
    store = CellStore()
    assert store.get("a", lambda: {"value": 1}) == store["a"]
