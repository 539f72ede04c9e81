"""The embedded model: the harness's command, `babelscope evaluate` and an exported checkpoint give the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import babelscope as bs
from babelscope import Anatomy, NeuronSet, cli, export
from babelscope.evaluation.evaluate import evaluate
from babelscope.evaluation.harness import write_task_files
from babelscope.evaluation.tasks.benchmarks import find
from evaluation.commands import harness_command

TASKS = ("tinybabel_knowledge", "tinybabel_understanding")
NAMES = tuple(f"babelscope_{task}_fr" for task in TASKS)
LIMIT = 4


def answers(lines: list[Any]) -> list[list[Any]]:
    """Of each item the text or the log-likelihoods, as numbers: the harness writes them as text."""
    return [
        [float(choice[0][0]) for choice in item] if isinstance(item[0][0], list) else [said for (said,) in item]
        for item in lines
    ]


def test_three_ways_to_switch_neurons_off_give_the_same(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    model, tokenizer = bs.load_model("tinybabel", dtype="float32")
    units = {layer: range(layer % 2, 640, 2) for layer in range(8)}
    neurons = NeuronSet.from_indices(Anatomy(model, check=False), {"ffn": units, "v": {3: range(0, 64, 4)}})
    file, run = tmp_path / "fr.safetensors", tmp_path / "run"
    neurons.save(file)

    words = f"evaluate tinybabel --dtype float32 --tasks {','.join(TASKS)} --languages fr --neurons {file}"
    assert cli.main([*f"{words} --limit {LIMIT} --batch-size 2 --out {run} --json".split()]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    saved = {name: (run / f"samples_{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in NAMES}
    ours = {name: answers([json.loads(line)["resps"] for line in lines]) for name, lines in saved.items()}

    tasks = ",".join(map(str, write_task_files(find(TASKS, ["fr"], None), tmp_path / "tasks")))
    export(model, tokenizer, neurons, tmp_path / "exported")
    edited = f"pretrained=tinybabel,neurons={file},op=zero,dtype=float32"
    plain = f"pretrained={tmp_path / 'exported'},dtype=float32"
    for kind, asked in (("babelscope", edited), ("hf", plain)):
        theirs = harness_command(
            monkeypatch, tmp_path / kind, NAMES, "--model", kind, "--model_args", asked, "--tasks", tasks, limit=LIMIT
        )
        for name in NAMES:
            found = answers(theirs["samples"][name])
            assert len(found) == LIMIT
            if name == NAMES[0]:
                for one, other in zip(found, ours[name], strict=True):
                    assert one == pytest.approx(other, rel=1e-5)
            else:
                assert found == ours[name]
            for score in scores:
                if name == f"babelscope_{score['task']}_fr":
                    assert theirs["results"][name][f"{score['metric']},none"] == pytest.approx(score["value"])

    intact = evaluate(model, tokenizer, TASKS, ["fr"], limit=LIMIT, batch_size=2).results["samples"]
    for name in NAMES:
        assert answers([sample["resps"] for sample in intact[name]]) != ours[name], "the edit can be seen"
