"""The slots: the kinds of units that a layer can have, and the names under which others list them."""

from __future__ import annotations

from collections.abc import Iterable

from babelscope.errors import ConfigError

SLOTS: tuple[str, ...] = ("q", "k", "v", "o", "ffn")
ALIASES: dict[str, str] = {"up": "ffn", "gate": "ffn", "down": "ffn"}
"""Names under which others list the same unit: switching off any of the three has the same effect."""


def resolve_slots(slots: Iterable[str] | None) -> tuple[str, ...]:
    """Slot names in canonical order, aliases resolved; None means all. Raises ConfigError on an unknown name."""
    if slots is None:
        return SLOTS
    wanted = {ALIASES.get(slot, slot) for slot in ((slots,) if isinstance(slots, str) else slots)}
    unknown = sorted(wanted - set(SLOTS))
    if unknown or not wanted:
        raise ConfigError(
            f"wanted slots among {', '.join(SLOTS)} (up, gate and down mean ffn), found {unknown or 'none'}. "
            "Correct the slot names."
        )
    return tuple(slot for slot in SLOTS if slot in wanted)
