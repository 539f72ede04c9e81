"""Texts to tokens, cut to a length; only as much of a text is tokenised as its first tokens need."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

_MARGIN = 64
"""Tokens beyond the wanted ones that a part of a text must have: its end can change only the tokens near it."""
_CHARACTERS = 16
"""Characters that are tried first for each wanted token."""


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedDocument:
    """The tokens of one document, cut to `max_tokens`."""

    index: int
    """Its place in the corpus."""
    position: int
    """Its place among the sampled documents of the whole corpus: the same in every shard."""
    ids: "NDArray[np.int32]"
    """[T] int32, with the special tokens that the tokenizer adds by default."""
    special: "NDArray[np.bool_]"
    """[T] bool, True at BOS, EOS and the like, whether the tokenizer added them or the text spells them out."""
    n_bytes: int
    """UTF-8 bytes of the characters that the tokens cover; of the whole text if the tokenizer knows no offsets."""
    cut: bool
    """Whether the text had more than `max_tokens` tokens."""


def tokens_before(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before a text by default, such as BOS; often none.

    This is the one rule of what is put before a text or a prompt: what the tokenizer puts there, no more and no fewer.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True)
    special = [*encoded["special_tokens_mask"], 0]
    return list(encoded["input_ids"][: special.index(0)])


def beginning(tokenizer: Any, text: str, max_tokens: int) -> str:
    """The text, or so much of it that its first `max_tokens` tokens are those of the whole text.

    A text of 3 MB takes 15 s and 0.9 GB to tokenise, for the 256 tokens that are wanted.
    """
    length = _CHARACTERS * (max_tokens + _MARGIN)
    if getattr(tokenizer, "truncation_side", "right") != "right":
        return text
    while 2 * length < len(text):
        part = text[:length]
        if len(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) >= max_tokens + _MARGIN:
            return part
        length *= 4
    return text


def document_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", max_tokens: int
) -> Callable[[int, str], TokenizedDocument]:
    """A function of (index, text) that tokenises one text and cuts it."""
    import numpy as np

    # An unknown word is text that the model sees; but byte-level tokenizers reuse BOS or EOS as the unused <unk>.
    roles = {getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "pad", "cls", "sep", "mask")}
    special_ids = [token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id or token in roles]

    def tokenize(index: int, text: str) -> TokenizedDocument:
        start = beginning(tokenizer, text, max_tokens)
        encoded = tokenizer(
            start,
            truncation=True,
            max_length=max_tokens,
            return_special_tokens_mask=True,
            return_offsets_mapping=tokenizer.is_fast,
            return_attention_mask=False,
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        special = np.asarray(encoded["special_tokens_mask"], dtype=bool) | np.isin(ids, special_ids)
        if tokenizer.is_fast:
            cut = len(start) < len(text) or bool(encoded.encodings[0].overflowing)
        else:  # a full document may have been exactly that long
            cut = len(ids) >= max_tokens and len(tokenizer(start, verbose=False)["input_ids"]) > max_tokens
        n_bytes = len(text.encode())
        if cut and tokenizer.is_fast:
            spans = [span for span in encoded["offset_mapping"] if span[1] > span[0]]
            n_bytes = len(text[spans[0][0] : spans[-1][1]].encode("utf-8")) if spans else 0
        return TokenizedDocument(index, -1, ids, special, n_bytes, cut)

    return tokenize
