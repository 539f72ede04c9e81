"""The settings of detection: one source for the keywords of `detect`, the flags of the command and the study file.

This file can be imported without torch: the help of a command reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from babelscope.impacts.names import KernelName
from babelscope.options import Count, Language, Options, Refused, Rule, Several, Share

if TYPE_CHECKING:
    from babelscope.models.observe import Measure

PresetName = Literal["default", "paper", "released"]
Shard = Annotated[
    tuple[int, int],
    Rule("(i, n) with 0 <= i < n; the first of four is (0, 4)", lambda shard: 0 <= shard[0] < shard[1], "I/N"),
]


@dataclass(frozen=True)
class Preset:
    """How impacts are measured and, by default, selected."""

    measure: Measure
    per_token: bool
    """Norm divided by sqrt(counted tokens), so that long documents don't count more; False: the norm, as the paper."""
    count_special: bool
    """BOS and the like attract the same massive activations in every language; the paper counts them."""
    slots: tuple[str, ...]
    about: str


PRESETS: dict[str, Preset] = {
    "default": Preset(
        "exact", True, False, ("q", "k", "v", "o", "ffn"), "exact impact per token, special tokens left out; contrast"
    ),
    "paper": Preset(
        "exact", False, True, ("q", "k", "v", "ffn"), "exact impact as a raw norm over all tokens; minimum"
    ),
    "released": Preset(
        "released", False, True, ("q", "k", "v", "ffn"), "the published code's scores; top k per layer, intersected"
    ),
}


class DetectOptions(Options):
    """Which neurons each language needs."""

    documents: Count | dict[Language, Count] | None = 1000
    """Documents per language, or a number for each language. They are drawn at random from files and lists; of a stream
    the first ones are taken. Null: all."""
    max_tokens: Several = 256
    """Documents are cut to this length."""
    min_tokens: Count = 8
    """Shorter documents are skipped, and counted."""
    preset: PresetName = "default"
    """How impacts are measured."""
    slots: tuple[str, ...] | None = None
    """Only units of these slots, of q, k, v, o and ffn. Null: those of the preset."""
    folds: Count = 4
    """Parts that documents are dealt to, for stability and intervals."""
    top_shares: tuple[Share, ...] = (0.01, 0.05, 0.1, 0.25)
    """Shares of a layer's units whose hits are counted, so that the setting top_k of a rule may name them later."""
    thresholds: tuple[float, ...] = ()
    """Impacts whose exceedances are counted, so that a rule may take them as eps with min_support."""
    seed: int = 0
    """Seed of the draw of documents."""
    field: str = "text"
    """Field of JSON lines and parquet that holds the text."""
    shard: Shard = (0, 1)
    """Every n-th document of the sample, from the i-th. Atlases of all shards are merged."""
    token_budget: Count | None = None
    """Tokens of a batch, padding included. Null: by device."""
    kernel: KernelName = "auto"
    """Kernel that computes attention impacts: auto is Triton on a GPU, else compiled when the work repays it."""

    def documents_of(self, language: str) -> int | None:
        """The number of documents that is asked for in a language; None: all.

        Raises:
            Refused: `documents` has a number for other languages only.
        """
        if not isinstance(self.documents, dict):
            return self.documents
        if language not in self.documents:
            raise Refused("documents", "a number for each language", f"none for {language}", f"Add one for {language}.")
        return self.documents[language]
