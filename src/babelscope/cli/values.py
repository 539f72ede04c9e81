"""What may stand behind a flag; argparse says the message of a refusal beside the flag's name."""

from __future__ import annotations

import argparse


def corpus(text: str) -> tuple[str, str]:
    """A language and its source."""
    language, _, source = text.partition("=")
    if not (language and source):
        raise argparse.ArgumentTypeError(f"wanted LANGUAGE=SOURCE, such as fr=french.txt, found {text!r}")
    return language, source


def stages(text: str) -> tuple[int, int]:
    """How many layers come first and last."""
    first, _, last = text.partition(",")
    if not (first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError(f"wanted N,N, such as 8,2 (the first 8 layers and the last 2), found {text!r}")
    return int(first), int(last)


def shard(text: str) -> tuple[int, int]:
    """Which share of the documents."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"wanted I/N, such as 0/4 for the first of four, found {text!r}")
    return int(index), int(count)


def names(text: str) -> tuple[str, ...]:
    """Several, with commas between."""
    return tuple(name for name in text.split(",") if name)


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a whole number, found {text!r}") from None


def real(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a number, such as 0.5, found {text!r}") from None


def count(text: str) -> int:
    """How many."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1, found {text!r}")
    return int(text)


def number(text: str) -> int | float:
    """A share, or how many."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a share, such as 0.01, or a whole number, found {text!r}") from None


def numbers(text: str) -> tuple[float, ...]:
    """Several, with commas between."""
    try:
        return tuple(float(each) for each in text.split(",") if each)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted numbers, such as 0.01,0.1, found {text!r}") from None


def layers(text: str) -> tuple[int, ...]:
    """Several, with commas between."""
    try:
        return tuple(int(each) for each in text.split(",") if each)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted numbers of layers, such as 3,4, found {text!r}") from None
