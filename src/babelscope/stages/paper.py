"""The paper's printed results of enhancement, to set measured numbers beside them.

Ablations are in `babelscope.evaluation.printed`. Source: Zhao et al., "How do Large Language Models Handle
Multilingualism?", arXiv 2402.18815 v3, table 6 and figure 4.
"""

from __future__ import annotations

from collections.abc import Mapping

from babelscope.evaluation.printed import benchmark

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
