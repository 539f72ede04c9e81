"""The Triton kernel against a softmax written out in plain loops, channel by channel, in float64.

What it found comes from one run of `fused_cases.py`; see there.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from babelscope.errors import ConfigError, MissingDependencyError
from babelscope.impacts import kernels
from babelscope.impacts.kernels import choose_kernel
from babelscope.models.scoring import neuron_impacts
from impacts.fused_cases import CASES, MODELS, batch, case
from tiny import tiny_model

torch.set_num_threads(1)

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed: pip install triton (Linux)")
Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    path = tmp_path_factory.mktemp("fused") / "found.safetensors"
    script = Path(__file__).with_name("fused_cases.py")
    run = subprocess.run([sys.executable, script, path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return load_file(path)


def reference(name: str) -> Tensor:
    """[P, R, C] in float64, every channel's softmax written out (itself tested against loops in test_kernels.py)."""
    return case(name).to(torch.float64).impacts("reference")


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference_in_float64(name: str, found: Found) -> None:
    expected = reference(name)
    assert expected.min() > (1e-7 if "small" in name else 1e-3), "the case is vacuous"
    # The reference itself loses the digits of the smallest channels; there the eager sums in float64 do not.
    if "small" in name:
        expected = case(name).to(torch.float64).impacts("eager")
    torch.testing.assert_close(found[name], expected, rtol=3e-5, atol=0)


@needs_triton
def test_several_changes_share_a_sweep_and_do_not_mix(found: Found) -> None:
    second = replace(case("rank 1"), change=case("column gain", seed=1).change)
    torch.testing.assert_close(found["together 0"], reference("rank 1"), rtol=3e-5, atol=0)
    expected = second.to(torch.float64).impacts("reference")
    torch.testing.assert_close(found["together 1"], expected, rtol=3e-5, atol=0)
    assert torch.equal(found["together 1"], found["together 2"]), "the odd one out goes alone, to the same numbers"


@needs_triton
@pytest.mark.parametrize("name", MODELS)
def test_whole_models_with_padding_on_both_sides(name: str, found: Found) -> None:
    expected = neuron_impacts(tiny_model(name, torch.float64), *batch(), ("q", "k"), kernel="reference")
    for slot, layers in expected.items():
        for layer, values in enumerate(layers):
            above = values > values.median()
            error = ((found[f"{name} {slot} {layer}"] - values).abs() / values)[above].max()
            assert error < 1e-3, (slot, layer)


def test_choice_of_triton(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    installed: list[str] = ["triton"]
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level(logging.INFO):
        assert choose_kernel("auto", 1000) == "triton"
    assert "the triton kernel" in caplog.text
    assert choose_kernel("compiled", 1000) == "compiled"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose_kernel("auto", 1000) == "eager"
    with pytest.raises(ConfigError, match="found none"):
        choose_kernel("triton", 1000)
    installed.clear()
    with pytest.raises(MissingDependencyError, match="pip install triton"):
        choose_kernel("triton", 1000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_kernel("auto", 10**15) == "compiled"


@needs_triton
def test_what_triton_cannot_build_is_compiled_with_one_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from babelscope.impacts import fused

    calls: list[int] = []

    def broken(*args: object) -> list[Tensor]:
        calls.append(1)
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(kernels, "_failed", [])
    monkeypatch.setattr(kernels, "_compiled_sums", lambda: kernels._eager_sums)
    monkeypatch.setattr(fused, "fused_squares", broken)
    monkeypatch.setattr(fused, "runs_on", lambda values: False)
    assert torch.equal(case("rank 1").impacts("triton"), case("rank 1").impacts("eager")), "a layer kept on the CPU"
    monkeypatch.setattr(fused, "runs_on", lambda values: True)
    for _ in range(2):
        assert torch.equal(case("rank 1").impacts("triton"), case("rank 1").impacts("eager"))
    assert len(calls) == 1, "once broken, it is not tried again"
    assert caplog.text.count("could not build") == 1


@needs_triton
def test_running_out_of_memory_in_the_kernel_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from babelscope.impacts import fused

    def full(*args: object) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "_failed", [])
    monkeypatch.setattr(fused, "fused_squares", full)
    monkeypatch.setattr(fused, "runs_on", lambda values: True)
    with pytest.raises(torch.OutOfMemoryError):
        case("rank 1").impacts("triton")
