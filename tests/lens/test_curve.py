"""Curves: means, intervals, the tidy table, files; pivots that were put there, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from babelscope.errors import ConfigError, DataError
from babelscope.lens.curve import UNKNOWN, LanguageCurve, TokenGrid, bootstrap_interval

LANGUAGES = ("fr", "en", "sw")


def curve(masses, prompt_languages, control=0.0, grids=()):
    """A curve from masses [P, L + 1, K]; the unknown is what is left of 1."""
    masses = torch.tensor(np.asarray(masses), dtype=torch.float32)
    masses = torch.cat([masses, 1 - masses.sum(-1, keepdim=True)], -1)
    prompts, rows = masses.shape[:2]
    return LanguageCurve(
        LANGUAGES,
        tuple(prompt_languages),
        masses,
        torch.ones(prompts, rows),
        torch.full((prompts, rows), 0.5),
        torch.full_like(masses, control),
        grids,
        {"model": {"name": "m"}},
    )


def noisy(rows, prompts=40, noise=0.02, seed=0):
    draw = np.random.default_rng(seed)
    return np.clip(np.asarray(rows)[None] + draw.normal(0, noise, (prompts, len(rows), 3)), 0.001, 0.33 * 3)


# fr leads, en leads in the rows 2 and 3, fr returns
PIVOT = [[0.5, 0.1, 0.1], [0.4, 0.1, 0.1], [0.1, 0.4, 0.1], [0.2, 0.5, 0.1], [0.6, 0.1, 0.1]]
FLAT = [[0.5, 0.1, 0.1]] * 5


def test_means_and_table():
    made = curve([[[0.5, 0.1, 0.1]] * 2, [[0.3, 0.3, 0.1]] * 2, [[0.1, 0.1, 0.7]] * 2], ["fr", "fr", "sw"])
    assert made.n_layers == 1
    torch.testing.assert_close(made.mass[0], torch.tensor([0.3, 1 / 6, 0.3, 7 / 30]))
    torch.testing.assert_close(made.of("French")[1], torch.tensor([0.4, 0.2, 0.1, 0.3]))
    rows = made.rows(resamples=50)
    assert len(rows) == 2 * 2 * 4
    assert list(rows[0]) == ["layer", "prompt_language", "decoded_language", "mass", "low", "high"]
    assert [row["decoded_language"] for row in rows[:4]] == ["fr", "en", "sw", UNKNOWN]
    first = rows[0]
    assert first["mass"] == pytest.approx(0.4)
    assert first["low"] == pytest.approx(0.3)
    assert first["high"] == pytest.approx(0.5)
    frame = made.to_frame(resamples=50)
    assert list(frame.columns) == list(first)
    assert frame.to_dict("records") == rows


def test_interval_covers_the_truth_as_often_as_it_says():
    covered, draws = 0, 300
    for seed in range(draws):
        made = curve(noisy([[0.4, 0.2, 0.1]], prompts=30, seed=seed), ["fr"] * 30)
        low, high = made.interval("fr", resamples=200, seed=seed)
        covered += bool(low[0, 0] <= 0.4 <= high[0, 0])
    assert 0.89 < covered / draws < 0.98


def test_a_pivot_that_is_there_is_found_with_its_blocks():
    (found,) = curve(noisy(PIVOT), ["fr"] * 40).stages(resamples=200)
    assert (found.prompt_language, found.pivot, found.start, found.stop) == ("fr", "en", 1, 3)
    assert found.start_interval == (1, 1)
    assert found.stop_interval == (3, 3)
    assert found.support == 1
    assert found.mass == pytest.approx(0.5, abs=0.02)
    assert "en leads in blocks 1..2" in str(found)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (FLAT, "nobody else leads"),
        ([*PIVOT[:4], [0.1, 0.6, 0.1]], "the prompt's language does not return"),
        ([[0.1, 0.5, 0.1], *FLAT[1:]], "only the embeddings"),
        ([[0.5, 0.1, 0.1], [0.30, 0.33, 0.1], [0.6, 0.1, 0.1]], "ahead by less than the margin"),
    ],
)
def test_no_pivot_where_there_is_none(rows, why):
    (found,) = curve(noisy(rows, noise=0.005), ["fr"] * 40).stages(resamples=200)
    assert found.pivot is None, why
    assert "no pivot" in str(found)


def test_a_language_that_is_only_frequent_in_the_vocabulary_is_no_pivot():
    (found,) = curve(noisy(PIVOT), ["fr"] * 40, control=0.5).stages(resamples=200)
    assert found.pivot is None, "shuffled among the tokens, en has as much mass"


def test_a_pivot_that_few_prompts_make_is_not_sure():
    masses = np.concatenate([noisy(PIVOT, 3), noisy(FLAT, 2)])
    (found,) = curve(masses, ["fr"] * 5).stages(resamples=500, margin=0.0)
    assert found.pivot is None
    assert (found.candidate, found.support < 0.95) == ("en", True)
    assert "nearest: en" in str(found)


def test_boundaries_that_differ_between_prompts_have_an_interval():
    later = [PIVOT[0], PIVOT[0], PIVOT[1], PIVOT[3], PIVOT[4]]
    masses = np.concatenate([noisy(PIVOT, 5), noisy(later, 5)])
    (found,) = curve(masses, ["fr"] * 10).stages(resamples=500)
    assert found.pivot == "en"
    assert found.start_interval == (1, 2)


def test_a_named_pivot_and_languages_without_prompts():
    made = curve(noisy(PIVOT), ["fr"] * 20 + ["any"] * 20)
    (found,) = made.stages(pivot="sw", resamples=50)
    assert (found.prompt_language, found.pivot) == ("fr", None)
    with pytest.raises(ConfigError, match="pivot among fr, en, sw, found 'de'"):
        made.stages(pivot="de")
    with pytest.raises(ConfigError, match="no prompt of language 'sw'; there are fr, any"):
        made.of("sw")
    assert made.of("any").shape == (5, 4)


def test_saved_and_loaded(tmp_path):
    grid = TokenGrid("fr", ["a"], [[["b"]]], [[[0.5]]], [["en"]])
    made = curve(noisy(PIVOT), ["fr"] * 40, grids=(grid,))
    made.save(tmp_path / "curve.safetensors")
    loaded = LanguageCurve.load(tmp_path / "curve.safetensors")
    assert torch.equal(loaded.masses, made.masses)
    assert torch.equal(loaded.control, made.control)
    assert (loaded.languages, loaded.prompt_languages, loaded.grids) == (LANGUAGES, made.prompt_languages, (grid,))
    assert loaded.about == made.about
    with pytest.raises(DataError, match="no file"):
        LanguageCurve.load(tmp_path / "none")


def test_unknown_kind_of_chart():
    with pytest.raises(ConfigError, match="area, heat"):
        curve(noisy(PIVOT), ["fr"] * 40).plot("pie")


def test_the_interval_of_a_single_number_per_prompt():
    values = torch.randn(30, generator=torch.Generator().manual_seed(0))
    alone, among = bootstrap_interval(values, 200, 0), bootstrap_interval(values[:, None], 200, 0)
    assert [float(each) for each in alone] == [float(each[0]) for each in among]
