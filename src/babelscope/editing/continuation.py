"""Greedy continuations, to look at what an edit does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from babelscope.corpora.batching import padding_id


def continued(model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Continues prompts greedily, in one batch padded on the left.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model; several prompts need its padding token.
        prompts: as they are; no chat template is put around them.
        new_tokens: at most, of each continuation.

    Returns:
        The continuations, without the prompts and without special tokens.
    """
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        batch = tokenizer(list(prompts), return_tensors="pt", padding=len(prompts) > 1).to(model.device)
    finally:
        tokenizer.padding_side = side
    batch.pop("token_type_ids", None)
    found = model.generate(
        **batch, max_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=padding_id(tokenizer)
    )
    return list(tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))
