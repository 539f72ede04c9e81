"""Comparison of what is computed now with a golden file: numbers within a rounding, everything else exactly.

Exact: the keys and their order of insertion, lengths of lists, whole numbers, true and false, null, and text.
Within a rounding: numbers with a fraction, and such numbers inside a text (by one in the last printed digit).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

NUMBER = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True)
class Rounding:
    """How far a number may be from the golden one: `absolute + relative * |golden|`."""

    relative: float
    absolute: float

    def allows(self, golden: float, now: float) -> bool:
        return abs(golden - now) <= self.absolute + self.relative * abs(golden)


def differences(golden: Any, now: Any, rounding: Rounding, where: str = "") -> Iterator[str]:
    """Yields a line for every difference: where it is, the golden value and the value of now."""
    if isinstance(golden, dict) and isinstance(now, dict):
        if list(golden) != list(now):
            yield f"{where or 'top'}: keys {list(golden)} became {list(now)}"
        for key in golden.keys() & now.keys():
            yield from differences(golden[key], now[key], rounding, f"{where}.{key}" if where else str(key))
    elif isinstance(golden, list) and isinstance(now, list):
        if len(golden) != len(now):
            yield f"{where}: {len(golden)} items became {len(now)}: {_short(golden)} became {_short(now)}"
        else:
            for index, (one, other) in enumerate(zip(golden, now, strict=True)):
                yield from differences(one, other, rounding, f"{where}[{index}]")
    elif not _equal(golden, now, rounding):
        yield f"{where}: {_short(golden)} became {_short(now)}"


def _equal(golden: Any, now: Any, rounding: Rounding) -> bool:
    if type(golden) is not type(now):
        return False
    if isinstance(golden, float):
        return rounding.allows(golden, now)
    if isinstance(golden, str):
        return golden == now or _equal_text(golden, now)
    return bool(golden == now)


def _equal_text(golden: str, now: str) -> bool:
    """Whether two texts differ at most by one in the last printed digit of their numbers with a fraction."""
    if NUMBER.sub("#", golden) != NUMBER.sub("#", now):
        return False
    pairs = zip_longest(NUMBER.findall(golden), NUMBER.findall(now))
    return all(abs(float(one) - float(other)) < 1.5 * 10.0 ** -len(one.partition(".")[2]) for one, other in pairs)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 160 else shown[:160] + "..."
