"""Text for a terminal: safe, wrapped, aligned, and with bars made of characters."""

from __future__ import annotations

import math
import os
import shutil
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from babelscope.errors import ConfigError
from babelscope.languages import get_language
from babelscope.progress import clean

_BARS = "▁▂▃▄▅▆▇█"


def label(code: object) -> str:
    """A language's code and name."""
    try:
        return f"{clean(code)} {get_language(str(code)).name}"
    except ConfigError:
        return clean(code)


def human_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count, units = count / 1024, units[1:]
    return f"{count:.0f} {units[0]}" if units[0] == "bytes" or count >= 100 else f"{count:.1f} {units[0]}"


def cells(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; wide characters count for two."""
    room = max(1, width // 2 if any(cells(each) == 2 for each in text) else width)
    return textwrap.wrap(text, room, break_on_hyphens=False) or [""]


@dataclass(frozen=True)
class Screen:
    """Where text is printed."""

    width: int = 80
    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> Screen:
        """The width of the terminal, and colours if `stream` is one and NO_COLOR isn't set."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(max(40, shutil.get_terminal_size().columns), stream.isatty() and not plain)

    def paint(self, text: str, code: str) -> str:
        """The text in a style: `1` bold, `2` dim, `36` cyan."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def heading(self, text: str, remark: str = "") -> list[str]:
        """A line in bold, and a remark under or beside it."""
        lines = wrapped(clean(text), self.width)
        remarks = wrapped(clean(remark), self.width - 2) if remark else []
        if remarks and len(lines) == len(remarks) == 1 and cells(lines[0]) + 2 + cells(remarks[0]) <= self.width:
            return [self.paint(lines[0], "1") + "  " + self.paint(remarks[0], "2")]
        return [self.paint(line, "1") for line in lines] + ["  " + self.paint(line, "2") for line in remarks]

    def fields(self, pairs: Iterable[tuple[str, object]]) -> list[str]:
        """Names and values in two columns, the values wrapped; without those that are empty."""
        shown = [(clean(name), clean(value)) for name, value in pairs if value not in (None, "")]
        wide = max((len(name) for name, _ in shown), default=0) + 2
        lines = []
        for name, value in shown:
            for number, line in enumerate(wrapped(value, max(16, self.width - wide - 2))):
                lines.append("  " + (name if number == 0 else "").ljust(wide) + line)
        return lines

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> list[str]:
        """Columns under headings: the first `left` to the left, the others, numbers mostly, to the right.

        Where that is too wide, headings are wrapped, and then the longest of the columns to the left.
        """
        heads, body = [clean(cell) for cell in head], [[clean(cell) for cell in row] for row in rows]
        least = [max(map(cells, (*heads[place].split(), *(row[place] for row in body)))) for place in range(len(head))]
        widths = [max(width, cells(each)) for width, each in zip(least, heads, strict=True)]
        while sum(widths) + 2 * len(widths) > self.width:
            loose = [place for place in range(len(head)) if widths[place] > (12 if place < left else least[place])]
            if not loose:
                break
            widths[max(loose, key=lambda place: (place >= left, widths[place]))] -= 1
        lines = []
        for number, row in enumerate([heads, *body]):
            columns = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
            height = max(map(len, columns))
            for at in range(height):
                line = ""
                for place, (column, width) in enumerate(zip(columns, widths, strict=True)):
                    from_top = at - (height - len(column)) if number == 0 else at  # headings stand on their columns
                    cell = column[from_top] if 0 <= from_top < len(column) else ""
                    gap = " " * max(0, width - cells(cell))
                    line += "  " + (cell + gap if place < left else gap + cell)
                lines.append(self.paint(line.rstrip(), "2") if number == 0 else line.rstrip())
        return lines

    def strips(self, rows: Mapping[str, Sequence[float]], beside: Mapping[str, str]) -> list[str]:
        """A row of bars for each entry, one per layer (or for several), each row to its own scale; an axis above."""
        names = max(map(len, rows), default=0) + 4
        room = max(8, self.width - names - 3 - max(map(len, beside.values()), default=0))
        layers = max(map(len, rows.values()), default=0)
        together = math.ceil(layers / room) if layers else 1
        wide = max(1, min(3, room // max(1, layers)))
        apart = len(str(layers)) + 1
        step = next((each for each in (1, 2, 5, 10, 20, 50, 100) if each * wide / together >= apart), layers or 1)
        axis = ""
        for layer in range(0, layers, step):
            axis = axis.ljust(layer * wide // together) + str(layer)
        lines = [self.paint(" " * names + axis, "2")]
        for name, values in rows.items():
            bins = [values[start : start + together] for start in range(0, len(values), together)]
            means = [sum(part) / len(part) for part in bins]
            top = max(means, default=0.0)
            bars = "".join(("·" if mean <= 0 else _BARS[min(7, int(mean / top * 8))]) * wide for mean in means)
            lines.append(
                ("  " + clean(name)).ljust(names) + self.paint(bars, "36") + f"   {beside.get(name, '')}".rstrip()
            )
        if together > 1:
            lines.append(self.paint(" " * names + f"a column is {together} layers", "2"))
        return lines
