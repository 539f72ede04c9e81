"""What is computed now is what the golden files say; and the comparison sees what it has to see."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from golden import interface
from golden.compare import Rounding, differences
from golden.make import GOLDEN, compared, read


@pytest.mark.parametrize("name", GOLDEN)
def test_the_numbers_are_the_golden_ones(name: str) -> None:
    make, rounding = GOLDEN[name]
    assert compared(name, make(), rounding) == []


def test_the_interface_is_the_golden_one() -> None:
    """A name, a flag or a key is a promise: whoever changes one makes interface.json anew, on purpose."""
    now = json.loads(json.dumps(interface.interface()))
    golden = json.loads(interface.FILE.read_text(encoding="utf-8"))
    assert list(differences(golden, now, Rounding(0, 0))) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda sets: sets["units"]["q"][0].append(3),
        lambda sets: sets["units"].pop("q"),
        lambda sets: sets["selection"].update(rule="other"),
        lambda sets: sets["first scores"]["ffn"][0].__setitem__(0, sets["first scores"]["ffn"][0][0] * 1.001),
    ],
)
def test_a_change_is_seen(change: Callable[[Any], Any]) -> None:
    golden = read("sets")["llama"]["contrast-budget"]["zh"]
    assert golden["first scores"]["ffn"][0], "there is a score to change"
    now = copy.deepcopy(golden)
    assert list(differences(golden, now, Rounding(1e-4, 1e-6))) == []
    change(now)
    assert list(differences(golden, now, Rounding(1e-4, 1e-6))) != []


def test_what_a_rounding_allows() -> None:
    def same(one: Any, other: Any) -> bool:
        return not list(differences(one, other, Rounding(1e-3, 1e-6)))

    assert same(1.0, 1.0009)
    assert not same(1.0, 1.0012)
    assert not same(1.0, 1), "a whole number is exact"
    assert not same(7, 8)
    assert not same(True, 1)
    assert same("harm 1.25 of 3", "harm 1.26 of 3")
    assert not same("harm 1.25 of 3", "harm 1.27 of 3")
    assert not same("harm 1.25 of 3", "harm 1.25 of 4")
    assert not same("harm 1.25 of fr", "harm 1.25 of zh")
    assert not same({"a": 1, "b": 2}, {"a": 1})
    assert not same([1, 2], [1])
