"""What the tokens of a vocabulary are made of: bytes, text, script; and what tells one tokenizer from another."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

from babelscope.artifacts import digest

_MARKUP = re.compile(r"[<>{}\[\]\\/|_=+&;@#$%^*~`]|https?|www")
"""Letters beside one of these are code or mark-up, such as `<br`, `_id` and `&nbsp;`."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece spells a token that is a single byte."""


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest token id: ids may have gaps, so that `len(tokenizer)` can be too small."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of the vocabulary: every token with its id, and which are special."""
    return digest([sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids)])


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each token stands for, by id; empty for special tokens and for ids that have no token.

    Understood: byte-level tokenizers (GPT-2, Llama 3, Qwen, BLOOM) and SentencePiece ones with or without byte tokens
    (Llama 2, Mistral, Gemma); tokens of others are their own text.
    """
    special = set(tokenizer.all_special_ids)
    spelled = [b""] * vocabulary_size(tokenizer)
    byte_of = _byte_alphabet() if _is_byte_level(tokenizer) else None
    for token, place in tokenizer.get_vocab().items():
        if place in special:
            continue
        if byte_of is not None and all(each in byte_of for each in token):
            spelled[place] = bytes(byte_of[each] for each in token)
        elif byte_of is None and (single := _BYTE.fullmatch(token)):
            spelled[place] = bytes([int(single[1], 16)])
        else:
            spelled[place] = token.replace("▁", " ").encode("utf-8", "replace")
    return spelled


def token_text(spelled: bytes) -> str:
    """What a token looks like; bytes that are part of a character become U+FFFD."""
    return spelled.decode("utf-8", "replace")


def token_script(spelled: bytes) -> str:
    """The script of a token of some language, such as `LATIN`, `THAI` or `CJK`; empty for what is no language.

    No language are digits, punctuation, white space, mark-up, fragments of characters, and special tokens. A token of
    several scripts has that of most of its characters.
    """
    text = token_text(spelled)
    letters = [each for each in text if unicodedata.category(each)[0] in "LM"]
    if not letters or _MARKUP.search(text):
        return ""
    scripts = [_script(each) for each in letters]
    return max(dict.fromkeys(scripts), key=scripts.count)


@functools.lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    """The first word of the character's name in Unicode: the standard library knows no scripts."""
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0]


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}"
    return hasattr(tokenizer, "byte_decoder")


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level tokenizers spell each byte: itself if it is printable, else one above 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
