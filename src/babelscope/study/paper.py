"""The paper's models and what its enhancement prints, to set measured numbers beside them.

Ablations are in `babelscope.evaluation.printed`. Source: Zhao et al., "How do Large Language Models Handle
Multilingualism?", arXiv 2402.18815 v3, table 6 and figure 4.
"""

from __future__ import annotations

from collections.abc import Mapping

from babelscope.evaluation.printed import benchmark

SIZES: Mapping[str, tuple[float, int]] = {
    "lmsys/vicuna-7b-v1.5": (6.74e9, 32), "lmsys/vicuna-13b-v1.5": (13.0e9, 40),
    "mistralai/Mistral-7B-Instruct-v0.2": (7.24e9, 32), "mistralai/Mistral-7B-v0.1": (7.24e9, 32),
    "bigscience/bloomz-7b1": (7.07e9, 30), "hfl/chinese-llama-2-7b": (6.93e9, 32),
}  # fmt: skip
"""Parameters and layers of the paper's models by their names on the Hub, so that a dry run needs no network."""

ENHANCEMENT: Mapping[str, Mapping[int, float]] = {
    "mgsm": {0: 36.1, 100: 37.2, 200: 38.4, 400: 39.5, 800: 33.5},
    "xquad": {0: 49.3, 100: 50.7, 200: 52.1, 400: 53.7, 800: 52.8},
    "xcsqa": {0: 37.0, 100: 37.4, 200: 38.6, 400: 41.3, 800: 39.2},
    "xlsum": {0: 14.9, 100: 15.7, 200: 16.8, 400: 17.2, 800: 14.5},
}
"""Mistral-7b-v0.1: task -> documents trained on -> score, mean over De, Fr, Zh, Es and Ru (figure 4, table 6)."""


def printed_enhancement(model: str, task: str, documents: int) -> float | None:
    """What the paper prints for a model (a Hub name or a folder) trained on so many documents, if it does."""
    enhanced = model.rstrip("/").lower().endswith("mistral-7b-v0.1")
    return ENHANCEMENT.get(benchmark(task), {}).get(documents) if enhanced else None
