"""Shared by the tests of studies: models, texts, benchmarks, and one study that ran without a break."""

from __future__ import annotations

import pytest

from babelscope.study import plan
from babelscope.study.plan import run_study
from study_worlds import GRID, STAGES, save_model, study_of, write_benchmarks, write_corpora


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Models by family, texts, benchmarks."""
    folder = tmp_path_factory.mktemp("world")
    names = {"llama": "vicuna-7b-v1.5", "mistral": "Mistral-7B-Instruct-v0.2", "bloom": "bloomz-7b1"}
    models = {family: save_model(folder / name, family) for family, name in names.items()}
    return models, write_corpora(folder / "texts"), write_benchmarks(folder / "data"), folder


@pytest.fixture
def quick(monkeypatch):
    """Without the lens's charts and the report, which have tests of their own and take the longest."""
    monkeypatch.setattr(plan, "_report", lambda out: None)


@pytest.fixture(scope="session")
def unbroken(world, tmp_path_factory):
    """The study of the tests on running, and its results."""
    folder = tmp_path_factory.mktemp("unbroken")
    study = study_of(world, folder / "study.yaml", "tinybabel-quick", "llama", STAGES + GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_report", lambda out: None)
        run_study(study, "study.yaml", folder / "run", shown=False)
    return study, folder / "run"
