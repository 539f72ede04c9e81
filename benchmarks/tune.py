"""One training step of chosen neurons beside LoRA and full tuning: time and peak memory, as ratios in one run.

    python benchmarks/tune.py                    the shape of Qwen2.5-0.5B, random weights, CPU or GPU; minutes
    python benchmarks/tune.py --batch 8 --length 512 --repeats 10      for a GPU

Neurons: 1 % of the units of every slot, at random. LoRA: rank 16 on the same seven matrices of every layer. Full: all
weights. A step is forward with loss, backward and AdamW. The three alternate within each repeat, and each ratio is the
median over repeats of the ratio within a repeat, so that drift of the machine cancels. Memory: peak resident set (host)
or peak allocation (GPU) of a process that takes only such steps, and beside it the bytes of what is trained, its
gradients and its optimiser state, counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from detect import _batch, _described, _forget_peak, _machine, _model, _reached, _seconds

ARMS = ("neurons", "LoRA", "full")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]


def main() -> None:
    """Runs the benchmark and prints a table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128, help="tokens per document")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.01, help="of the units of every slot")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(_peak(options)))
        return
    memory = {arm: _in_a_process(options, arm) for arm in ARMS}  # before the times: three models would be in the way
    record = {"machine": _machine(), "memory": memory, "time": _times(options)}
    _print(record, options)
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _arm(arm: str, options: argparse.Namespace) -> tuple[list[torch.nn.Parameter], Any, Callable[[], None]]:
    """What is trained, the optimiser, and a step."""
    model = _model(options).train()
    if arm == "neurons":
        from babelscope.models.anatomy import Anatomy
        from babelscope.neurons.neuronset import NeuronSet
        from babelscope.tuning.adapter import attach

        generator = torch.Generator().manual_seed(0)
        widths = Anatomy(model, check=False).widths()
        masks = {
            slot: [torch.rand(width, generator=generator) < options.share for width in layers]
            for slot, layers in widths.items()
        }
        attach(model, NeuronSet.from_masks(masks), force=True)
    elif arm == "LoRA":
        from peft import LoraConfig, get_peft_model

        get_peft_model(model, LoraConfig(r=options.rank, target_modules=LINEAR, task_type="CAUSAL_LM"))
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    ids, mask = (each.to(next(model.parameters()).device) for each in _batch(options.batch, options.length))

    def step() -> None:
        model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return parameters, optimiser, step


def _times(options: argparse.Namespace) -> dict[str, Any]:
    steps = {arm: _arm(arm, options)[2] for arm in ARMS}
    for step in steps.values():
        step()
    rounds = [{arm: _seconds(step) for arm, step in steps.items()} for _ in range(options.repeats)]
    return {
        "seconds": {arm: statistics.median(each[arm] for each in rounds) for arm in ARMS},
        "over LoRA": {arm: statistics.median(each[arm] / each["LoRA"] for each in rounds) for arm in ARMS},
    }


def _in_a_process(options: argparse.Namespace, arm: str) -> dict[str, int]:
    names = ("layers", "batch", "length", "share", "rank", "dtype")
    words = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    command = [sys.executable, __file__, "--memory-of", arm, *words]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, int] = json.loads(output.strip().splitlines()[-1])
    return found


def _peak(options: argparse.Namespace) -> dict[str, int]:
    parameters, optimiser, step = _arm(options.memory_of, options)
    _forget_peak()
    step()
    step()
    peak = _reached()
    state = [each for held in optimiser.state.values() for each in held.values()]
    trained = sum(each.numel() * each.element_size() for each in parameters)
    return {
        "peak": peak,
        "parameters": sum(each.numel() for each in parameters),
        "trained bytes": 2 * trained + sum(each.numel() * each.element_size() for each in state),
    }


def _print(record: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"Qwen2.5-0.5B shape, {options.layers} layers, {options.dtype}, batch {options.batch} x {options.length} "
        f"tokens; {_described(record['machine'])}"
    )
    print(f"\n{'':<10}{'parameters':>14}{'trained, gradients, AdamW':>28}{'peak':>12}{'step':>10}{'to LoRA':>9}")
    for arm in ARMS:
        memory, time = record["memory"][arm], record["time"]
        print(
            f"{arm:<10}{memory['parameters']:>14,}{memory['trained bytes'] / 2**20:>25.1f}MiB"
            f"{memory['peak'] / 2**30:>9.2f}GiB{time['seconds'][arm]:>9.2f}s{time['over LoRA'][arm]:>9.2f}"
        )


if __name__ == "__main__":
    main()
