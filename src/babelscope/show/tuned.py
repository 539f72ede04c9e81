"""What `babelscope tune` did, for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from babelscope.progress import clean, duration
from babelscope.show.terminal import Screen, label


def draw_tuned(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """Bits per byte before and after by language, what was kept where, and what to type next."""
    best = f"best at step {content['best_step']} of {content['steps']}"
    if content["share"] < 1:
        best += f"; {content['share']:.0%} of its changes, for the sake of the others"
    lines = screen.heading(
        f"Tuned {content['neurons']} neurons on {label(content['language'])}",
        f"{content['parameters']:,} parameters; {best}",
    )
    rows = [
        [label(name), f"{before:.4f}", f"{content['after'][name]:.4f}", f"{content['after'][name] - before:+.4f}"]
        for name, before in content["before"].items()
    ]
    lines += ["", *screen.table(("bits per byte of held-out texts", "before", "after", "change"), rows)]
    lines += ["", *screen.fields([("adapter", content["adapter"]), ("loss curve", content["history"])])]
    merged = content.get("merged")
    if merged:
        lines += screen.fields([("merged", merged["folder"])])
        verdict = "every other value is bit-identical" if merged["exact"] else "VALUES OUTSIDE THE NEURONS HAVE CHANGED"
        lines.append(f"  {len(merged['changed'])} tensors changed, {merged['untouched']} untouched; {verdict}")
        lines += ["", f"next:  babelscope show {clean(shlex.quote(merged['folder']))}"]
    return lines


def draw_training_plan(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """What a training would do."""
    lines = screen.heading(f"A training on {label(content['language'])}", "planned; nothing was written")
    held_out = ", ".join(f"{label(code)} {count}" for code, count in content["held_out"].items())
    return lines + screen.fields(
        [
            ("documents", f"{content['documents']:,} in {content['blocks']:,} blocks"),
            ("steps", f"{content['steps']:,}, if it does not stop early"),
            ("parameters", f"{content['parameters']:,}"),
            ("held out", f"{held_out}; measured {content['evaluations']} times on the way"),
            ("time", f"about {duration(content['seconds'])}, from one step here"),
        ]
    )
