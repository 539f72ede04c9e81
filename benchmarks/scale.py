"""The plan on paper of docs/scale.md: what 100 languages cost on large models. Pure arithmetic, nothing is run.

    python benchmarks/scale.py                     prints the tables as they stand in docs/scale.md

Every assumption is a number below, with its source: replace one and read the tables again.
"""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES, DOCUMENTS, TOKENS = 100, 180_000, 256
"""180k documents per language: the paper's English corpus. 256 tokens: the default of `detect`."""

BYTES_PER_TOKEN = 4.5
"""Of text."""

PEAK_FLOPS, BANDWIDTH = 989e12, 3.35e12
"""Dense bfloat16 and memory of an H100 SXM, from its data sheet."""

CARD_BYTES = 80e9

FORWARD_SHARE = 0.45
"""Of the peak that a plain prefill reaches; 0.4 to 0.5 is usual. Mixtures run expert by expert here: a third of it."""

LANES, CLOCK = 132 * 128, 1.755e9
"""Float32 lanes and their clock."""

SWEEP_INSTRUCTIONS = 22
"""Float32 instructions per exponential, counted in what the assembler makes of the kernel for an H100 (not timed): what
a tile of twice the rows per thread adds. The special-function units, with an eighth as many lanes and one instruction
each, would allow nearly three times the rate: they are not the limit."""

STATISTICS_BYTES, FOLDS = 64, 4
"""Per unit and fold: minimum 4, maximum 4, sum 8, squares 8, hits at four shares 16, activations 24."""

TOKENIZER_RATE = 2_000
"""Documents per second of one process, in a thread beside the card's work. Each copy of the model has its share."""

NETWORK = 12.5e9
"""Bytes per second between machines (100 Gb/s)."""

PRICE = 2.5
"""US dollars per card and hour."""


@dataclass(frozen=True)
class Model:
    """What decides the work."""

    name: str
    parameters: float
    active: float
    """Parameters that one token meets."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_units: int
    """Of all layers and experts."""
    ffn_active: int
    """That one token meets, of all layers."""
    experts: bool = False


MODELS = (
    Model("8B dense", 8.0e9, 8.0e9, 32, 32, 8, 128, 32 * 14336, 32 * 14336),
    Model("70B dense", 70.6e9, 70.6e9, 80, 64, 8, 128, 80 * 28672, 80 * 28672),
    Model(
        "400B MoE (17B active)",
        400e9,
        17e9,
        48,
        40,
        8,
        128,
        24 * 16384 + 24 * 129 * 8192,
        24 * 16384 + 24 * 2 * 8192,
        True,
    ),
)


@dataclass(frozen=True)
class Work:
    """Of one model: seconds of one card, for the whole job unless said otherwise."""

    forward: float
    attention: float
    """Impacts of q and k."""
    rest: float
    """Impacts of v, o and FFN: their inputs are read from memory once more, and in float32 once over."""
    units: int
    cards: int
    """That the weights and a batch fill."""

    @property
    def total(self) -> float:
        return self.forward + self.attention + self.rest

    @property
    def statistics(self) -> float:
        """Bytes per language."""
        return self.units * STATISTICS_BYTES * FOLDS


def work(model: Model, tokens: int = TOKENS) -> Work:
    documents = LANGUAGES * DOCUMENTS
    width = model.heads * model.head_dim
    flops = 2 * model.active * tokens + 2 * tokens**2 * width * model.layers
    share = FORWARD_SHARE / (3 if model.experts else 1)
    exponentials = 2 * model.layers * width * tokens**2 / 2
    touched = tokens * (2 * width * model.layers + model.ffn_active)
    slots = 2 * width + 2 * model.kv_heads * model.head_dim
    return Work(
        forward=documents * flops / (PEAK_FLOPS * share),
        attention=documents * exponentials * SWEEP_INSTRUCTIONS / (LANES * CLOCK),
        rest=documents * touched * (2 + 4 + 4) / BANDWIDTH,
        units=slots * model.layers + model.ffn_units,
        cards=next(count for count in (1, 2, 4, 8, 16) if model.parameters * 2 < 0.9 * CARD_BYTES * count),
    )


def tables() -> str:
    """Three tables in Markdown."""
    lines = [
        "| model | units | weights | cards per copy | statistics per language | atlas of all |",
        "|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        found = work(model)
        lines.append(
            f"| {model.name} | {found.units / 1e6:.1f} M | {model.parameters * 2 / 1e9:.0f} GB | {found.cards} | "
            f"{found.statistics / 1e9:.2f} GB | {found.statistics * LANGUAGES / 1e9:.0f} GB |"
        )
    lines += [
        "",
        "| model | tokens | forward | q and k | v, o, ffn | detection over forward |",
        "|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for tokens in (256, 512, 2048):
            found = work(model, tokens)
            hours = (f"{part / 3600:,.0f} h" for part in (found.forward, found.attention, found.rest))
            lines.append(f"| {model.name} | {tokens} | {' | '.join(hours)} | {found.total / found.forward:.2f} |")
    lines += [
        "",
        "| model | cards | all cards busy | one card of a copy busy | cost | tokenising | network |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        found = work(model)
        for cards in (8, 512):
            if found.cards > cards:
                lines.append(f"| {model.name} | {cards} | does not fit | | | | |")
                continue
            busy = found.total / cards / 3600
            # A machine of eight (or what a copy fills) takes languages of its own, in turn.
            shared = max(8, found.cards)
            texts = LANGUAGES * DOCUMENTS / TOKENIZER_RATE / (cards / found.cards) / 3600
            moved = 2 * found.statistics * LANGUAGES / (cards / shared) / NETWORK / 3600
            lines.append(
                f"| {model.name} | {cards} | {busy:,.1f} h | {busy * found.cards:,.1f} h | "
                f"${found.total / 3600 * PRICE:,.0f} | {texts:,.2f} h | {moved:.3f} h |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    text = LANGUAGES * DOCUMENTS * TOKENS * BYTES_PER_TOKEN
    print(f"{LANGUAGES} languages x {DOCUMENTS:,} documents x {TOKENS} tokens: {text / 1e9:.0f} GB of text\n")
    print(tables())
