"""What the paper prints for parts switched off, in percent, to set measured scores beside it.

Source: Zhao et al., "How do Large Language Models Handle Multilingualism?", arXiv 2402.18815 v3, tables 1 to 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """Scores in percent."""

    english: float | None
    """With a language's neurons off, averaged over the languages; None where the paper has no number."""
    others: float
    """Mean over the other languages, each with its own neurons off; or of one of them."""


MODELS: Mapping[str, str] = {"vicuna-7b-v1.5": "vicuna", "mistral-7b-instruct-v0.2": "mistral"}
"""End of a model's name in lower case -> its name here."""
INTACT = "intact"

ABLATED: Mapping[str, Mapping[str, Mapping[str, Printed]]] = {
    "vicuna": {
        "xquad": {
            INTACT: Printed(57.5, 53.9), "understand": Printed(56.5, 46.0), "solve": Printed(40.9, 38.6),
            "generate": Printed(57.9, 52.8),
        },
        "mgsm": {
            INTACT: Printed(20.4, 13.1), "all-but-solve-attention": Printed(19.0, 7.8),
            "understand-generate": Printed(18.1, 8.3), "solve": Printed(7.2, 3.4),
        },
        "xcsqa": {
            INTACT: Printed(57.8, 39.5), "solve-ffn": Printed(57.5, 37.5), "solve-attention": Printed(33.7, 30.3),
        },
        "xlsum": {INTACT: Printed(13.1, 26.6), "generate": Printed(13.1, 25.7), "all": Printed(None, 0.37)},
    },
    "mistral": {
        "xquad": {
            INTACT: Printed(57.1, 55.6), "understand": Printed(56.2, 48.3), "solve": Printed(53.2, 47.0),
            "generate": Printed(56.4, 54.6),
        },
        "mgsm": {
            INTACT: Printed(46.0, 26.3), "all-but-solve-attention": Printed(46.2, 18.3),
            "understand-generate": Printed(44.0, 18.1), "solve": Printed(38.2, 18.4),
        },
        "xcsqa": {
            INTACT: Printed(61.7, 37.5), "solve-ffn": Printed(61.2, 35.1), "solve-attention": Printed(51.2, 28.9),
        },
        "xlsum": {INTACT: Printed(13.5, 25.8), "generate": Printed(13.8, 24.3), "all": Printed(None, 0.21)},
    },
}  # fmt: skip
"""Model -> task -> part switched off -> scores (tables 1 to 5)."""
RANDOM: Mapping[str, Mapping[str, Mapping[str, Printed]]] = {
    "vicuna": {
        "xquad": {"understand": Printed(57.8, 53.9)}, "mgsm": {"all": Printed(19.6, 12.5)},
        "xcsqa": {"all": Printed(57.7, 39.6)}, "xlsum": {"all": Printed(None, 26.7)},
    },
    "mistral": {
        "xquad": {"understand": Printed(58.1, 55.5)}, "mgsm": {"all": Printed(45.2, 26.8)},
        "xcsqa": {"all": Printed(61.8, 37.4)}, "xlsum": {"all": Printed(None, 25.7)},
    },
}  # fmt: skip
"""The same for random neurons, as many as the part has: one draw."""


BY_LANGUAGE: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]] = {
    "vicuna": {
        "xlsum": {
            INTACT: {"fr": 14.2, "zh": 61.1, "es": 10.4, "ru": 20.8},
            "all": {"fr": 0.83, "zh": 0.0, "es": 0.24, "ru": 0.42},
            "random: all": {"fr": 14.1, "zh": 61.6, "es": 10.4, "ru": 20.8},
        },
    },
    "mistral": {
        "xlsum": {
            INTACT: {"fr": 15.2, "zh": 56.4, "es": 10.6, "ru": 21.0},
            "all": {"fr": 0.21, "zh": 0.39, "es": 0.15, "ru": 0.07},
            "random: all": {"fr": 15.4, "zh": 55.9, "es": 10.2, "ru": 21.2},
        },
    },
}
"""Model -> task -> part, or random neurons -> language -> score (table 1)."""


def benchmark(task: str) -> str:
    """The benchmark behind a task's name: `xquad_paper` is `xquad`."""
    return task.partition("_")[0]


def printed(model: str, task: str, part: str, *, random: bool = False, language: str = "") -> Printed | None:
    """What the paper prints, if it does.

    Args:
        model: a name on the Hub or a folder.
        task: of ours; variants such as `xquad_paper` stand beside the same numbers.
        part: of `PARTS`, or `INTACT`.
        random: the random neurons of the part's size.
        language: of the items; empty: the mean over the paper's languages.
    """
    name = next((short for end, short in MODELS.items() if model.rstrip("/").lower().endswith(end)), "")
    if language:
        rows = BY_LANGUAGE.get(name, {}).get(benchmark(task), {})
        score = rows.get(f"random: {part}" if random else part, {}).get(language)
        return None if score is None else Printed(None, score)
    return (RANDOM if random else ABLATED).get(name, {}).get(benchmark(task), {}).get(part)
