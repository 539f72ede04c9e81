"""From the hidden state of every layer to the vocabulary: final norm once, unembedding, scale and cap.

Axes: `B` prompts of a batch, `T` tokens, `N` chosen positions, `M` model width, `V` vocabulary, `L` decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from babelscope.errors import NumericsError, UnsupportedModelError
from babelscope.models.anatomy import Anatomy
from babelscope.models.interfaces import evaluation_mode

CHUNK_BYTES = 2**26
"""Size of the logits held at once: 110 positions of a vocabulary of 152 thousand."""
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_PROBE = 8
"""Tokens of the pass that checks the decoding."""


class Unembedding:
    """What a model does with the output of its last layer, for the hidden state of any layer.

    Building it decodes the last layer of a short pass and compares with the model's own output, so an unembedding
    that exists is the model's.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.

    Raises:
        UnsupportedModelError: no causal decoder, or one that does something else after its last layer.
    """

    def __init__(self, model: nn.Module | Anatomy) -> None:
        anatomy = model if isinstance(model, Anatomy) else Anatomy(model, slots=("o",), check=False)
        self.model: Any = anatomy.model
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

    def logits(self, hidden_NM: Tensor, final_norm: bool = True) -> Tensor:
        """[N, V] in float32 (float64 for a float64 model).

        Args:
            hidden_NM: outputs of any layer, before the final norm.
            final_norm: False leaves the norm out, as the paper's released code does for inner layers.
        """
        if final_norm and self.norm is not None:
            hidden_NM = self.norm(hidden_NM)
        if self.projection is not None:
            hidden_NM = self.projection(hidden_NM)
        found: Tensor = self.head(hidden_NM)
        found = found.to(torch.promote_types(found.dtype, torch.float32)) * self.scale
        return found if self.cap is None else torch.tanh(found / self.cap) * self.cap

    def chunks(self, hidden_NM: Tensor, final_norm: bool = True) -> Iterator[tuple[slice, Tensor]]:
        """`logits` of some positions at a time, so that all of them never exist together."""
        step = max(1, CHUNK_BYTES // (4 * self.vocabulary))
        for start in range(0, len(hidden_NM), step):
            part = slice(start, min(start + step, len(hidden_NM)))
            yield part, self.logits(hidden_NM[part], final_norm)

    def _check(self) -> None:
        ids = (torch.arange(1, _PROBE + 1) % self.vocabulary)[None].to(self.device)
        outputs: list[Tensor] = []

        def keep(layer: int, hidden_NM: Tensor) -> None:
            if layer == len(self.layers):
                outputs.append(hidden_NM)

        with LayerStates(self, keep) as states, torch.no_grad():
            expected = states.run(ids, torch.ones_like(ids), torch.ones_like(ids), logits=True)
            assert expected is not None
            found = self.logits(outputs[0])
        wide = found.dtype
        difference = (found.softmax(1) - expected[0].to(wide).softmax(1)).abs().max()
        exact = expected.dtype in (torch.float32, torch.float64)
        if not difference <= (1e-5 if exact else 2e-2):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: the last layer decodes to probabilities that differ from the model's by "
                f"up to {float(difference):.2g}. Its last steps (norm, scale, cap) are not known; see CONTRIBUTING.md."
            )


def _starts(module: nn.Module, layer: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0 and module[0] is layer


class LayerStates:
    """Shows the hidden states of every layer as a forward pass makes them, for as long as the context is open.

    Args:
        unembedding: of the model.
        visit: called with (layer, states [N, M] at the chosen positions, row by row); layer 0 is what enters the first
            layer (embeddings), layer i the output of the i-th, before the final norm.
    """

    def __init__(self, unembedding: Unembedding, visit: Callable[[int, Tensor], None]) -> None:
        self._unembedding = unembedding
        self._visit = visit
        self._chosen = torch.empty(0)
        self._seen = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            evaluation_mode(self._unembedding.model, stack)
            layers = self._unembedding.layers
            stack.callback(layers[0].register_forward_pre_hook(self._before, with_kwargs=True).remove)
            for number, layer in enumerate(layers, 1):
                stack.callback(layer.register_forward_hook(self._after(number)).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, ids_BT: Tensor, mask_BT: Tensor, chosen_BT: Tensor, *, logits: bool = False) -> Tensor | None:
        """Runs the model on one batch, padded on the right.

        Args:
            ids_BT: int64.
            mask_BT: int64, 0 at padding.
            chosen_BT: the positions to show.
            logits: also run the model's own output head and return its logits [B, T, V].

        Raises:
            UnsupportedModelError: not every layer was seen, because the model replaces modules by custom kernels.
        """
        model, device = self._unembedding.model, self._unembedding.device
        self._chosen, self._seen = chosen_BT.bool(), 0
        runner = model if logits else model.base_model
        with torch.no_grad():
            output = runner(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False)
        if self._seen != len(self._unembedding.layers) + 1:
            raise UnsupportedModelError(
                f"{self._seen} of {len(self._unembedding.layers) + 1} hidden states were seen: the model skips hooks. "
                "Load it without custom kernels."
            )
        return output.logits if logits else None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._show(0, args[0] if args else kwargs["hidden_states"])

    def _after(self, number: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._show(number, output[0] if isinstance(output, tuple) else output)

        return hook

    def _show(self, layer: int, hidden_BTM: Tensor) -> None:
        self._seen += 1
        self._visit(layer, hidden_BTM[self._chosen.to(hidden_BTM.device)])


@dataclass(frozen=True)
class Reading:
    """What one layer says at N positions."""

    mass: Tensor
    """[N, C] for a table [V, C]: sum over the vocabulary of probability times table."""
    entropy: Tensor
    """[N] bits."""
    top: Tensor
    """[N] int64, the likeliest token."""

    def to(self, device: str) -> Reading:
        """The reading on another device."""
        return Reading(self.mass.to(device), self.entropy.to(device), self.top.to(device))


def read_layer(
    unembedding: Unembedding, layer: int, hidden_NM: Tensor, table_VC: Tensor, *, final_norm: bool = True
) -> Reading:
    """Decodes one layer, a chunk of positions at a time.

    Raises:
        NumericsError: logits that are NaN or infinite; names the layer.
    """
    mass, entropy, top = [], [], []
    for _, logits_NV in unembedding.chunks(hidden_NM, final_norm):
        best = logits_NV.max(1)
        shifted = logits_NV.sub_(best.values[:, None])
        weight = shifted.exp()
        total = weight.sum(1)
        if not bool(torch.isfinite(total).all()):
            where = f"the output of layer {layer - 1}" if layer else "the embeddings"
            raise NumericsError(f"{where} decodes to NaN or infinite logits. Load the model in bfloat16 or float32.")
        mass.append(weight @ table_VC.to(weight) / total[:, None])
        entropy.append((total.log() - torch.linalg.vecdot(weight, shifted) / total) / torch.log(total.new_tensor(2.0)))
        top.append(best.indices)
    return Reading(torch.cat(mass), torch.cat(entropy), torch.cat(top))


def top_tokens(
    unembedding: Unembedding, hidden_NM: Tensor, count: int, *, final_norm: bool = True
) -> tuple[Tensor, Tensor]:
    """The likeliest tokens: ids int64 [N, count], best first, and their probabilities [N, count]."""
    ids, chances = [], []
    for _, logits_NV in unembedding.chunks(hidden_NM, final_norm):
        best = logits_NV.softmax(1).topk(min(count, logits_NV.shape[1]), dim=1)
        ids.append(best.indices)
        chances.append(best.values)
    return torch.cat(ids), torch.cat(chances)
