"""The table of supported models, from the same data that finds their neurons."""

from __future__ import annotations

from typing import Any

from babelscope.models.families import FAMILIES
from babelscope.show.terminal import Screen, wrapped

SLOTS = ("q", "k", "v", "o", "ffn")
"""As `babelscope.models.slots.SLOTS`, which can't be had without torch; a test compares."""


def support() -> list[dict[str, Any]]:
    """The supported families, a row each."""
    return [
        {
            "family": row.name,
            "models": row.examples,
            "model_types": list(row.model_types),
            "slots": list(SLOTS),
            "notes": row.note,
        }
        for row in FAMILIES
    ]


def support_markdown() -> str:
    """The support table in Markdown: what README.md holds between its markers."""
    lines = ["| family | models | model types | slots | notes |", "|---|---|---|---|---|"]
    for row in support():
        types = ", ".join(f"`{name}`" for name in row["model_types"])
        lines.append(f"| {row['family']} | {row['models']} | {types} | {', '.join(row['slots'])} | {row['notes']} |")
    return "\n".join(lines)


def draw_support(screen: Screen) -> list[str]:
    """The support table for a terminal."""
    rows = [(row["family"], row["models"], " ".join(row["model_types"]), row["notes"]) for row in support()]
    lines = screen.table(("family", "models", "model type", "notes"), rows, left=4)
    remark = (
        f"Every family has the slots {' '.join(SLOTS)}. Other architectures are recognised if their modules have names "
        "that occur here; every model is checked numerically before it is used. For a model on disk: "
        "babelscope show FOLDER"
    )
    return [*lines, "", *wrapped(remark, screen.width)]
