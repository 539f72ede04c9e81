"""From the hidden state of every layer to the vocabulary: final norm once, unembedding, scale and cap.

Axes: `B` prompts of a batch, `T` tokens, `N` chosen positions, `M` model width, `V` vocabulary, `L` decoder layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from babelscope.errors import ConfigError, NumericsError, UnsupportedModelError
from babelscope.models.anatomy import Anatomy
from babelscope.models.interfaces import evaluation_mode

if TYPE_CHECKING:
    from babelscope.lens.tuned import TunedLens

CHUNK = 128
"""Positions whose logits are held at once. With few, the product with the unembedding waits for memory."""
_FEW = 2**18
"""Logits read at once on a CPU, of at least 8 positions: an array of their size stays in its cache. It is made once for
a layer, for the allocator would give it back to the system and fetch it anew for every part."""
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_PROBE = 8
"""Tokens of the pass that checks the decoding."""


class Unembedding:
    """What a model does with the output of its last layer, for the hidden state of any layer.

    Layer 0 is what enters the first block (embeddings), layer i the output of the i-th block, before the final norm.
    Building it decodes the last layer of a short pass and compares with the model's own output, so an
    unembedding that exists is the model's.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        final_norm: False leaves the norm out for all layers but the last, as the paper's released code does.
        tuned: translates the states of every layer but the last before they are decoded.

    Raises:
        ConfigError: a tuned lens without the final norm, with which it was trained.
        ProvenanceError: a tuned lens of another model.
        UnsupportedModelError: no causal decoder, or one that does something else after its last layer.
    """

    def __init__(
        self,
        model: nn.Module | Anatomy,
        *,
        final_norm: bool = True,
        tuned: TunedLens | None = None,
    ) -> None:
        self.final_norm, self.tuned = final_norm, tuned
        if tuned is not None and not final_norm:
            raise ConfigError("a tuned lens was trained with the final norm. Leave out one of the two.")
        anatomy = model if isinstance(model, Anatomy) else Anatomy(model, slots=("o",), check=False)
        self.model: Any = anatomy.model
        if tuned is not None:
            tuned.check_model(self.model)
        self.layers = [layer.module for layer in anatomy.layers]
        head: nn.Module | None = getattr(self.model, "get_output_embeddings", lambda: None)()
        if head is None:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no output head over the vocabulary, so its layers can't be decoded. "
                "Load it with AutoModelForCausalLM."
            )
        self.head: nn.Module = head
        stack = next(
            each for each in self.model.modules() if any(_starts(child, self.layers[0]) for child in each.children())
        )
        self.norm = next((norm for name in _FINAL_NORMS if (norm := getattr(stack, name, None)) is not None), None)
        self.projection = getattr(stack, "project_out", None)
        text = anatomy.config.get_text_config()
        scale = getattr(text, "logit_scale", None)
        divisor = getattr(text, "logits_scaling", None)
        self.scale = float(scale or 1.0) / float(divisor or 1.0)
        self.cap: float | None = getattr(text, "final_logit_softcapping", None)
        self._check()

    @property
    def vocabulary(self) -> int:
        """Entries of the output, padding of the vocabulary included."""
        return int(self.head.weight.shape[0])  # type: ignore[index]

    @property
    def device(self) -> torch.device:
        """Where the model takes its input."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device if device.type != "meta" else torch.device("cpu")

    def logits(self, layer: int, hidden_NM: Tensor) -> Tensor:
        """[N, V] in float32 (float64 for a float64 model), from the states of a layer."""
        last = layer == len(self.layers)
        if self.tuned is not None and not last:
            hidden_NM = self.tuned(layer, hidden_NM)
        if self.norm is not None and (self.final_norm or last):
            hidden_NM = self.norm(hidden_NM)
        if self.projection is not None:
            hidden_NM = self.projection(hidden_NM)
        found: Tensor = self.head(hidden_NM)
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        if self.scale != 1:
            found = found * self.scale
        return found if self.cap is None else torch.tanh(found / self.cap) * self.cap

    def chunks(self, layer: int, hidden_NM: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """`logits` of some positions at a time, so that all of them never exist together."""
        for start in range(0, len(hidden_NM), CHUNK):
            part = slice(start, min(start + CHUNK, len(hidden_NM)))
            yield part, self.logits(layer, hidden_NM[part])

    def run(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor,
        chosen_BT: Tensor,
        visit: Callable[[int, Tensor], None],
        *,
        logits: bool = False,
    ) -> Tensor | None:
        """Runs the model on one batch, padded on the right, and shows the states of every layer as they are made.

        Args:
            ids_BT: int64.
            mask_BT: int64, 0 at padding.
            chosen_BT: the positions to show.
            visit: called with each layer's number and its states [N, M] at the chosen positions, row by row.
            logits: also run the model's own output head and return its logits [B, T, V].

        Raises:
            UnsupportedModelError: not every layer was seen, because the model replaces modules by custom kernels.
        """
        chosen_BT, seen = chosen_BT.bool(), 0

        def show(layer: int, hidden_BTM: Tensor) -> None:
            nonlocal seen
            seen += 1
            visit(layer, hidden_BTM[chosen_BT.to(hidden_BTM.device)])

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            show(0, args[0] if args else kwargs["hidden_states"])

        def after(layer: int, module: nn.Module, args: Any, output: Any) -> None:
            show(layer, output[0] if isinstance(output, tuple) else output)

        with ExitStack() as stack, torch.no_grad():
            evaluation_mode(self.model, stack)
            stack.callback(self.layers[0].register_forward_pre_hook(before, with_kwargs=True).remove)
            for number, module in enumerate(self.layers, 1):
                stack.callback(module.register_forward_hook(partial(after, number)).remove)
            runner = self.model if logits else self.model.base_model
            output = runner(input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device), use_cache=False)
        if seen != len(self.layers) + 1:
            raise UnsupportedModelError(
                f"{seen} of {len(self.layers) + 1} hidden states were seen: the model skips hooks. "
                "Load it without custom kernels."
            )
        return output.logits if logits else None

    def _check(self) -> None:
        ids = (torch.arange(1, _PROBE + 1) % self.vocabulary)[None].to(self.device)
        outputs: list[Tensor] = []
        expected = self.run(ids, ids > -1, ids > -1, lambda _, hidden_NM: outputs.append(hidden_NM), logits=True)
        assert expected is not None
        self.width = outputs[-1].shape[1]
        with torch.no_grad():
            found = self.logits(len(self.layers), outputs[-1])
        difference = (found.softmax(1) - expected[0].to(found.dtype).softmax(1)).abs().max()
        exact = expected.dtype in (torch.float32, torch.float64)
        if not difference <= (1e-5 if exact else 2e-2):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: the last layer decodes to probabilities that differ from the model's by "
                f"up to {float(difference):.2g}. Its last steps (norm, scale, cap) are not known; see CONTRIBUTING.md."
            )


def _starts(module: nn.Module, layer: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0 and module[0] is layer


@dataclass(frozen=True)
class Reading:
    """What one layer says at N positions, on the CPU."""

    mass: Tensor
    """[N, C] for a table [V, C]: sum over the vocabulary of probability times table."""
    entropy: Tensor
    """[N] bits."""
    top: Tensor
    """[N] int64, the likeliest token."""
    shown: Tensor
    """[S, k] int64, the likeliest tokens of the positions to show, best first."""
    chances: Tensor
    """[S, k] their probabilities."""


@torch.no_grad()
def read_layer(
    unembedding: Unembedding, layer: int, hidden_NM: Tensor, table_VC: Tensor, shown_N: Tensor, top_k: int = 1
) -> Reading:
    """Decodes one layer, a chunk of positions at a time.

    Args:
        unembedding: of the model.
        layer: whose states they are.
        hidden_NM: the states.
        table_VC: a column for each sum over the vocabulary.
        shown_N: bool, the positions whose `top_k` likeliest tokens are wanted.
        top_k: at most the vocabulary.

    Raises:
        NumericsError: logits that are NaN or infinite; names the layer.
    """
    few = max(8, _FEW // unembedding.vocabulary) if hidden_NM.device.type == "cpu" else CHUNK
    read, likeliest, room_NV = [], [], hidden_NM.new_empty(0)
    for part, logits_NV in unembedding.chunks(layer, hidden_NM):
        if not len(room_NV):
            room_NV = logits_NV.new_empty(min(few, len(logits_NV)), logits_NV.shape[1])
        read += [_read(few_NV, table_VC.to(few_NV), room_NV[: len(few_NV)]) for few_NV in logits_NV.split(few)]
        best = logits_NV[shown_N[part].to(logits_NV.device)].softmax(1).topk(min(top_k, logits_NV.shape[1]), dim=1)
        likeliest.append((best.indices, best.values))
    columns = (*zip(*read, strict=True), *zip(*likeliest, strict=True))
    reading = Reading(*(torch.cat(each).cpu() for each in columns))
    if not bool(torch.isfinite(reading.entropy).all()):
        where = f"the output of layer {layer - 1}" if layer else "the embeddings"
        raise NumericsError(f"{where} decodes to NaN or infinite logits. Load the model in bfloat16 or float32.")
    return reading


def _read(logits_NV: Tensor, table_VC: Tensor, room_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mass, entropy and likeliest token of each position, as in `Reading`; `room_NV` is written to."""
    best, chances_NV = logits_NV.max(1), torch.softmax(logits_NV, 1, out=room_NV)
    # -sum p log p with log p = logit - (best logit - log of its p): no logarithms of the whole vocabulary.
    normaliser = best.values - chances_NV.gather(1, best.indices[:, None])[:, 0].log()
    mass = chances_NV @ table_VC
    entropy = (normaliser - chances_NV.mul_(logits_NV).sum(1)) / math.log(2)
    return mass, entropy, best.indices
