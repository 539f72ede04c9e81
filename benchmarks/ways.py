"""Every unit's impact, found in several ways, in one run: time per document beside a plain forward pass.

    python benchmarks/ways.py                    the shape of Qwen2.5-0.5B cut to 4 layers, CPU or GPU
    python benchmarks/ways.py --layers 24

plain: the decoder's forward pass on the batch. detection: what `babelscope detect` does with that batch, all slots; and
with the published scores (`--preset released`), and for FFN units alone, with impacts and the counts that LAPE needs.
LAPE alone: hooks that count the positive activations of FFN units, as its authors do. published: the algorithm of the
paper's code written plainly, a document at a time: the attention probabilities without each channel, of all heads side
by side, [heads, channels, tokens, tokens]; the largest units of each layer drawn out on the host. one by one: zero a
unit, run the model again up to the end of its sub-layer, take the norm of what has changed there; timed for some units,
drawn from all, and multiplied.

All ways alternate within each repeat; ratios are medians over repeats. What two ways both find is compared first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import babelscope as bs
from babelscope.models.anatomy import Anatomy
from babelscope.models.observe import Measure, Observation
from detect import SLOTS, _batch, _described, _detector, _machine, _model, _plain, _seconds

SHARE = 0.01
"""Of a layer's units: the largest, which the published way lists for each document."""


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens per document")
    parser.add_argument("--units", type=int, default=20, help="to zero one by one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = {"machine": _machine(), "settings": {**vars(options), "json": None}, **_times(options)}
    _print(record, options)
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _times(options: argparse.Namespace) -> dict[str, Any]:
    model = _model(options)
    ids, mask = (each.to(model.device) for each in _batch(options.batch, options.length))
    every = SLOTS["all slots"]
    exact, ffn = detection(model, every), detection(model, ("ffn",))
    copied = detection(model, tuple(slot for slot in every if slot != "o"), "released")
    published, lape, single = Published(model), Lape(model), OneByOne(model, ids, mask, options.units)
    calls: dict[str, Callable[[], Any]] = {
        "plain": lambda: _plain(model, ids, mask),
        "detection, all slots": lambda: exact(ids, mask),
        "detection, published scores": lambda: copied(ids, mask),
        "detection, FFN alone": lambda: ffn(ids, mask),
        "LAPE alone": lambda: lape.run(ids, mask),
        "published": lambda: [published.run(ids[row : row + 1]) for row in range(len(ids))],
        "one by one": single.run,
    }
    found = {name: call() for name, call in calls.items()}
    difference = {
        "one by one": single.difference(found["detection, all slots"]),
        "published": published.difference(found["detection, published scores"]),
        "LAPE alone": lape.difference(found["detection, FFN alone"]),
    }
    assert max(difference.values()) < 2e-2, f"the ways don't find the same: {difference}"
    rounds = []
    for _ in range(options.repeats):
        seconds = {name: _seconds(call) for name, call in calls.items()}
        seconds["one by one"] *= single.total / options.units
        rounds.append(seconds)
    return {
        "seconds per document": {
            name: statistics.median(each[name] for each in rounds) / options.batch for name in calls
        },
        "over plain": {name: statistics.median(each[name] / each["plain"] for each in rounds) for name in calls},
        "largest relative difference": difference,
        "units": single.total,
    }


def detection(
    model: Any, slots: tuple[str, ...], measure: Measure = "exact"
) -> Callable[[Tensor, Tensor], Observation]:
    """What `detect` does with a batch."""
    observer, step = _detector(model, slots, measure)

    def run(ids: Tensor, mask: Tensor) -> Observation:
        with observer:
            return step(ids, mask)  # type: ignore[no-any-return]

    return run


class Lape:
    """Counts of positive activations, by a hook on each activation function."""

    def __init__(self, model: Any) -> None:
        self.model, self.counts = model, [torch.zeros(0)] * len(model.model.layers)

    def run(self, ids: Tensor, mask: Tensor) -> None:
        """One batch."""

        def hook(place: int) -> Callable[..., None]:
            def count(module: Any, args: Any, output: Tensor) -> None:
                self.counts[place] = (output > 0).sum(1)

            return count

        handles = [layer.mlp.act_fn.register_forward_hook(hook(at)) for at, layer in enumerate(self.model.model.layers)]
        _plain(self.model, ids, mask)
        for handle in handles:
            handle.remove()

    def difference(self, ours: Observation) -> float:
        """Of the counts."""
        pairs = zip(self.counts, ours.activation["ffn"], strict=True)
        return max(float((theirs - each.positive).abs().max()) for theirs, each in pairs)


class Published:
    """The paper's published algorithm, a document at a time."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.found: list[dict[str, Tensor]] = []
        self.largest: list[dict[str, list[int]]] = []

    def run(self, ids: Tensor) -> None:
        """One document."""
        from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

        config, scores = self.config, []
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        seen: list[dict[str, Tensor]] = [{} for _ in self.model.model.layers]
        handles = []
        for place, layer in enumerate(self.model.model.layers):
            named = {"q": layer.self_attn.q_proj, "k": layer.self_attn.k_proj, "up": layer.mlp.up_proj}
            for name, module in named.items():
                handles.append(module.register_forward_hook(_keeper(seen[place], name)))
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(_keeper(seen[place], "v")))
        _plain(self.model, ids, torch.ones_like(ids))
        for handle in handles:
            handle.remove()
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        cos, sin = self.model.model.rotary_emb(seen[0]["q"], positions)
        hidden = torch.ones(ids.shape[1], ids.shape[1], device=ids.device).triu(1).bool()
        for each in seen:
            q, k = (
                each[name].unflatten(-1, (count, -1)).transpose(1, 2) for name, count in (("q", heads), ("k", groups))
            )
            q, k = (one[0].float() for one in apply_rotary_pos_emb(q, k, cos, sin))
            k = k.repeat_interleave(heads // groups, 0)
            s_HTT = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
            parts_HDTT = torch.einsum("hid,hjd->hdij", q, k)
            moved_HDTT = (s_HTT[:, None] - parts_HDTT).softmax(-1) - s_HTT.softmax(-1)[:, None]
            attention_HD = moved_HDTT.square().sum((2, 3))
            scores.append(
                {
                    "q": attention_HD.flatten(),
                    "k": attention_HD.unflatten(0, (groups, -1)).amax(1).flatten(),
                    "v": each["v"][0]
                    .float()
                    .abs()
                    .sum(0)
                    .unflatten(0, (groups, heads // groups, -1))
                    .amax(1)
                    .flatten(),
                    "ffn": each["up"][0].float().abs().sum(0),
                }
            )
        self.found = [{name: value.cpu() for name, value in each.items()} for each in scores]
        self.largest = [
            {
                name: sorted(range(len(value)), key=value.tolist().__getitem__)[-max(1, int(len(value) * SHARE)) :]
                for name, value in each.items()
            }
            for each in self.found
        ]

    def difference(self, ours: Observation) -> float:
        """Of the last document's scores."""
        return max(
            _difference(ours.impact[slot][place][-1].cpu(), value)
            for place, each in enumerate(self.found)
            for slot, value in each.items()
        )


class OneByOne:
    """Zeroes units drawn from all, each by itself, and runs the model again up to the end of the unit's sub-layer."""

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, units: int) -> None:
        self.model, self.batch, self.anatomy = model, (ids, mask), Anatomy(model, SLOTS["all slots"])
        places = [
            (slot, layer, unit)
            for slot in self.anatomy.slots
            for layer in range(self.anatomy.n_layers)
            for unit in range(self.anatomy.width(slot, layer))
        ]
        self.total = len(places)
        self.drawn = [
            places[at] for at in torch.randperm(self.total, generator=torch.Generator().manual_seed(0))[:units]
        ]
        self.before = {(slot, layer): self._output(slot, layer) for slot, layer, _ in self.drawn}
        self.found: list[float] = []

    def run(self) -> None:
        """All that were drawn."""
        self.found = []
        for slot, layer, unit in self.drawn:
            with bs.ablate(self.model, bs.NeuronSet.from_indices(self.anatomy, {slot: {layer: [unit]}})):
                self.found.append(float((self._output(slot, layer) - self.before[slot, layer])[-1].norm()))

    def _output(self, slot: str, layer: int) -> Tensor:
        """Of the sub-layer; what comes after it does not run."""
        block = self.model.model.layers[layer]
        output: list[Tensor] = []

        def stop(module: Any, args: Any, found: Any) -> None:
            output.append(found[0] if isinstance(found, tuple) else found)
            raise Reached

        handle = (block.mlp if slot == "ffn" else block.self_attn).register_forward_hook(stop)
        try:
            _plain(self.model, *self.batch)
        except Reached:
            return output[0].float()
        finally:
            handle.remove()
        raise AssertionError("the sub-layer did not run")

    def difference(self, ours: Observation) -> float:
        """Of the last document's impacts where they are on the sub-layer's output, that is not of q and k."""
        return max(
            abs(float(ours.impact[slot][layer][-1, unit]) / found - 1)
            for (slot, layer, unit), found in zip(self.drawn, self.found, strict=True)
            if slot not in ("q", "k")
        )


class Reached(Exception):
    """The end of what is to be run."""


def _keeper(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    """A hook that keeps a module's output, or, before it runs, its input."""

    def keep(module: Any, args: Any, output: Any = None) -> None:
        kept[name] = args[0] if output is None else output

    return keep


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest, of units above the median."""
    above = other > other.median()
    return float((one[above] / other[above] - 1).abs().max())


def _print(record: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"Qwen2.5-0.5B shape, {options.layers} layers, {options.dtype}, {options.batch} documents of {options.length} "
        f"tokens; {_described(record['machine'])}"
    )
    print(f"\n{'':<30}{'s per document':>16}{'to plain':>12}{'to detection':>14}")
    ratios = record["over plain"]
    for name, seconds in record["seconds per document"].items():
        ratio = ratios[name]
        print(f"{name:<30}{seconds:>16.3f}{ratio:>12,.2f}{ratio / ratios['detection, all slots']:>14,.2f}")
    print(f"\none by one: {options.units} of {record['units']:,} units were timed, the time is for all")


if __name__ == "__main__":
    main()
