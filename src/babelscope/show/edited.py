"""A look at what an edit does: the same prompts continued by the intact model and by the edited one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from babelscope.editing.continuation import continued
from babelscope.show.terminal import Screen

_NEW_LINE = " ⏎ "
"""Stands for a line break, so that a text stays in its column."""


def before_and_after(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    edited: AbstractContextManager[Any],
    max_new_tokens: int,
) -> list[dict[str, str]]:
    """Continues each prompt greedily, without the edit and with it.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model.
        prompts: as they are; no chat template is put around them.
        edited: a context in which the model is edited.
        max_new_tokens: of each continuation.

    Returns:
        For each prompt `prompt`, `before` and `after`, without the prompt itself and without special tokens.
    """

    def each_continued() -> list[str]:
        return [continued(model, tokenizer, [prompt], max_new_tokens)[0] for prompt in prompts]

    before = each_continued()
    with edited:
        after = each_continued()
    names = ("prompt", "before", "after")
    return [dict(zip(names, each, strict=True)) for each in zip(prompts, before, after, strict=True)]


def draw_before_and_after(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """Prompt by prompt, the two continuations side by side."""
    lines = screen.heading(content["edit"], f"{content['model']}, greedy")
    for each in content["continuations"]:
        shown = [each[name].strip().replace("\n", _NEW_LINE) or "(nothing)" for name in ("before", "after")]
        lines += ["", *screen.heading(each["prompt"].replace("\n", _NEW_LINE))]
        lines += screen.table(("before", "after"), [shown], left=2)
        lines += ["  (no difference)"] if each["before"] == each["after"] else []
    return lines


def draw_exported(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """What was written, and how near it is to the model edited in memory."""
    return [
        *screen.heading(f"Exported to {content['folder']}"),
        *screen.fields(
            [
                ("operation", content["operation"]),
                ("neurons", f"{content['neurons']:,}"),
                ("turned on", ", ".join(content["switched"])),
                ("logits", f"differ from the edited model by at most {content['difference']:.3g}, where the edit"
                 f" changes them by up to {content['change']:.3g}"),
                ("fingerprint", content["fingerprint"]),
            ]
        ),
    ]  # fmt: skip
