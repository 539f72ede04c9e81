"""What training changed, tensor by tensor, and that everything else is bit-identical to the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from babelscope.artifacts import write_json
from babelscope.errors import ProvenanceError
from babelscope.models.anatomy import Anatomy
from babelscope.neurons.neuronset import NeuronSet


@dataclass(frozen=True)
class TensorChange:
    """How much of one tensor changed; bits are compared, so 0.0 and -0.0 differ."""

    name: str
    shape: tuple[int, ...]
    rows: int
    """Of the first axis, with a changed value."""
    columns: int
    """Of the last axis, with a changed value (1-D tensors: as rows)."""
    values: int
    outside: int
    """Changed values that don't belong to the neurons."""


@dataclass(frozen=True)
class Proof:
    """All tensors of a model, compared with the base."""

    tensors: tuple[TensorChange, ...]

    @property
    def exact(self) -> bool:
        """Whether every value that doesn't belong to the neurons is bit-identical to the base."""
        return not any(each.outside for each in self.tensors)

    def as_json(self) -> dict[str, Any]:
        """The changed tensors one by one, and how many are untouched."""
        changed = [asdict(each) for each in self.tensors if each.values]
        return {"exact": self.exact, "untouched": len(self.tensors) - len(changed), "changed": changed}

    def __str__(self) -> str:
        changed = [each for each in self.tensors if each.values]
        wide = max((len(each.name) for each in changed), default=4) + 2
        lines = [f"{'tensor':<{wide}}{'shape':>16}{'rows':>8}{'columns':>9}{'values':>12}{'outside':>9}"]
        for each in changed:
            shape = " x ".join(map(str, each.shape))
            lines.append(
                f"{each.name:<{wide}}{shape:>16}{each.rows:>8}{each.columns:>9}{each.values:>12}{each.outside:>9}"
            )
        verdict = "every other value is bit-identical" if self.exact else "values outside the neurons HAVE CHANGED"
        return "\n".join([*lines, f"{len(self.tensors) - len(changed)} tensors untouched; {verdict}"])


def changes(base: nn.Module | Mapping[str, Tensor], tuned: nn.Module, neurons: NeuronSet) -> Proof:
    """Compares a tuned, merged model with its base.

    Args:
        base: the model before, or its tensors by name (one at a time, if the mapping reads them from a file).
        tuned: the model after, without an adapter.
        neurons: the set that was trained.

    Raises:
        ProvenanceError: the two have other tensors or shapes; merge the adapter first.
    """
    before: Mapping[str, Tensor] = base.state_dict() if isinstance(base, nn.Module) else base
    after: dict[str, Tensor] = tuned.state_dict(keep_vars=True)
    if set(before) != set(after):
        raise ProvenanceError(
            f"the base and the tuned model have other tensors ({sorted(set(before) ^ set(after))[:4]}). "
            "Merge the adapter first, and compare with the model that it was trained on."
        )
    allowed = _indices(tuned, neurons)
    return Proof(tuple(_compare(name, before[name], each, allowed.get(id(each), [])) for name, each in after.items()))


def _indices(model: nn.Module, neurons: NeuronSet) -> dict[int, list[tuple[Any, ...]]]:
    """What of each parameter belongs to the neurons, by the parameter's id."""
    anatomy = Anatomy(model, tuple(neurons.widths), check=False)
    found: dict[int, list[tuple[Any, ...]]] = {}
    for slot, layers in neurons.indices.items():
        for layer, units in enumerate(layers):
            for parameter, index in anatomy.weights(slot, layer, units) if len(units) else ():
                found.setdefault(id(parameter), []).append(index)
    return found


def _compare(name: str, before: Tensor, after: Tensor, allowed: list[tuple[Any, ...]]) -> TensorChange:
    if before.shape != after.shape or before.dtype != after.dtype:
        raise ProvenanceError(
            f"{name}: the base has {tuple(before.shape)} of {before.dtype}, the tuned model {tuple(after.shape)} of "
            f"{after.dtype}. Load both in the same dtype, and compare with the model that was trained."
        )
    first, second = (each.detach().cpu().contiguous() for each in (before, after))
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    # [size of the first axis, everything between, size of the last]; scalars count as one row.
    shape = (first.shape[0] if first.ndim else 1, -1, first.shape[-1] if first.ndim > 1 else 1)
    changed = first.view(bits) != second.view(bits)
    by_axis = changed.reshape(shape) if changed.numel() else changed.new_zeros(1, 1, 1)
    inside = torch.zeros_like(changed)
    for index in allowed:
        inside[index] = True
    rows, columns = int(by_axis.any(dim=(1, 2)).sum()), int(by_axis.any(dim=(0, 1)).sum())
    return TensorChange(name, tuple(first.shape), rows, columns, int(changed.sum()), int((changed & ~inside).sum()))


def write_merged(tuned: Any, tokenizer: Any, base: nn.Module, neurons: NeuronSet, folder: Path) -> dict[str, Any]:
    """Writes a merged model as a normal checkpoint, with `changes.json` beside it.

    Returns:
        The content of changes.json, and the folder.
    """
    proof = changes(base, tuned, neurons)
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "changes.json", proof.as_json())
    return {"folder": str(folder), **proof.as_json()}
