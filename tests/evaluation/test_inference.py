"""Intervals cover, p-values are uniform under the null, corrections hold: by simulation, and against brute force."""

import itertools
import math

import numpy as np
import pytest

from babelscope.errors import DataError
from babelscope.evaluation.inference import (
    against_random,
    bootstrap_mean,
    holm,
    mcnemar,
    overlap_p,
    paired_p,
    paired_permutation,
    pooled_random,
    wilson,
)


def covered(share, level, runs):
    """Whether a share of `runs` is what coverage at `level` gives, within four standard errors."""
    return abs(share - level) < 4 * math.sqrt(level * (1 - level) / runs)


@pytest.mark.parametrize("n", [8, 30, 120])
def test_bootstrap_intervals_cover_at_their_rate(n):
    generator, runs = np.random.default_rng(n), 800
    found = [bootstrap_mean(generator.normal(1.0, 2.0, n), resamples=800, seed=run) for run in range(runs)]
    share = np.mean([each.low <= 1.0 <= each.high for each in found])
    assert covered(share, 0.95, runs), share


def test_bootstrap_intervals_of_other_levels_and_of_one_item():
    scores = np.random.default_rng(0).normal(size=50)
    narrow, wide = bootstrap_mean(scores, level=0.5), bootstrap_mean(scores, level=0.99)
    assert wide.low < narrow.low < narrow.value == scores.mean() < narrow.high < wide.high
    assert bootstrap_mean([3.0]) == bootstrap_mean([3.0])
    assert (bootstrap_mean([3.0]).low, bootstrap_mean([3.0]).high) == (-math.inf, math.inf)
    assert bootstrap_mean(scores, seed=1) == bootstrap_mean(scores, seed=1) != bootstrap_mean(scores, seed=2)


@pytest.mark.parametrize(("share", "n"), [(0.5, 40), (0.1, 60), (0.97, 200)])
def test_wilson_intervals_cover_at_their_rate(share, n):
    generator, runs = np.random.default_rng(n), 4000
    found = [wilson(int(right), n) for right in generator.binomial(n, share, runs)]
    assert np.mean([each.low <= share <= each.high for each in found]) == pytest.approx(0.95, abs=0.025)


def test_wilson_of_a_textbook_case():
    """Newcombe 1998, table I: 81 of 263 and 0 of 20."""
    assert (wilson(81, 263).low, wilson(81, 263).high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert (wilson(0, 20).low, wilson(0, 20).high) == pytest.approx((0.0, 0.1611), abs=5e-5)


def uniform(p_values):
    """Under the null, a valid test is at most as often below a level as the level says."""
    values = np.asarray(p_values)
    return all(
        (values <= level).mean() <= level + 4 * math.sqrt(level * (1 - level) / len(values))
        for level in (0.01, 0.05, 0.2, 0.5)
    )


def test_p_values_are_uniform_under_the_null():
    generator = np.random.default_rng(0)
    small, large, counts = [], [], []
    for run in range(600):
        before = generator.normal(size=(2, 12))
        small.append(paired_permutation(*before))
        more = generator.exponential(size=(2, 60))
        large.append(paired_permutation(*more, draws=400, seed=run))
        counts.append(mcnemar(*(generator.random((2, 80)) < 0.6)))
    assert uniform(small) and uniform(large) and uniform(counts)  # noqa: PT018
    assert np.mean(np.asarray(small) <= 0.5) == pytest.approx(0.5, abs=0.09)  # valid, and not by being always 1
    assert np.mean(np.asarray(large) <= 0.5) == pytest.approx(0.5, abs=0.09)
    assert np.mean(np.asarray(counts) <= 0.5) > 0.3


def test_a_permutation_counts_every_change_of_signs():
    generator = np.random.default_rng(1)
    before, after = generator.normal(size=7), generator.normal(0.8, 1, size=7)
    difference = after - before
    as_large = [
        abs(sum(s * d for s, d in zip(signs, difference, strict=True))) >= abs(difference.sum()) - 1e-12
        for signs in itertools.product((1, -1), repeat=7)
    ]
    assert paired_permutation(before, after) == pytest.approx(np.mean(as_large))
    many_before, many_after = np.tile(before, 4), np.tile(after, 4)
    assert 1 / 10_001 <= paired_permutation(many_before, many_after) < 0.2


def test_mcnemar_of_a_hand_worked_case():
    before, after = [1] * 9 + [0] * 1 + [1] * 20, [0] * 9 + [1] * 1 + [1] * 20
    assert mcnemar(before, after) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar([1, 0, 1], [1, 0, 1]) == paired_permutation([1, 0, 1], [1, 0, 1]) == 1.0


def test_an_effect_among_random_ones():
    found = against_random(5.0, [1.0, 2.0, 3.0])
    assert found.p == 0.25
    assert found.standardised == pytest.approx(3.0)
    assert against_random(2.0, [1.0, 2.0, 3.0]).p == 0.75
    generator = np.random.default_rng(0)
    assert uniform([against_random(draw[0], draw[1:]).p for draw in generator.normal(size=(2000, 21))])


def test_holm_by_hand_and_the_family_wise_error():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    generator, runs = np.random.default_rng(0), 3000
    false = np.mean([min(holm(generator.random(10))) <= 0.05 for _ in range(runs)])
    assert covered(1 - false, 0.95, runs), false


def test_overlap_of_random_sets_is_as_rare_as_it_says():
    first, second, widths = [4, 6], [5, 3], [12, 10]
    generator, runs, shared = np.random.default_rng(0), 20_000, []
    for _ in range(runs):
        shared.append(
            sum(
                len(set(generator.permutation(width)[:a]) & set(generator.permutation(width)[:b]))
                for a, b, width in zip(first, second, widths, strict=True)
            )
        )
    for least in range(8):
        assert overlap_p(least, first, second, widths) == pytest.approx(np.mean(np.asarray(shared) >= least), abs=0.015)
    assert overlap_p(0, first, second, widths) == pytest.approx(1.0)
    assert overlap_p(9, first, second, widths) == 0.0
    assert overlap_p(2, [3], [3], [4]) == pytest.approx(1.0)  # two of four are shared by necessity


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: bootstrap_mean([]), "one per item"),
        (lambda: bootstrap_mean([1.0, math.nan]), "1 of 2 scores are not finite"),
        (lambda: wilson(3, 2), "found 3 of 2"),
        (lambda: mcnemar([1, 0], [1]), "the same items in both conditions, found 2 and 1"),
        (lambda: paired_permutation([1, 0], [1]), "found 2 and 1"),
        (lambda: against_random(1.0, [2.0]), "at least two random sets"),
        (lambda: holm([0.5, 1.5]), "between 0 and 1"),
        (lambda: overlap_p(1, [3], [3], [2]), "3 units in a matrix of 2"),
        (lambda: overlap_p(1, [3], [3, 1], [2]), "found 1, 2 and 1"),
    ],
)
def test_bad_input_is_named(call, told):
    with pytest.raises(DataError, match=told):
        call()


def test_sets_pooled_over_groups_by_brute_force():
    generator = np.random.default_rng(0)
    effects, random = generator.normal(1, 1, 3), generator.normal(size=(3, 2))
    groups = [[effects[place], *random[place]] for place in range(3)]
    as_large = [sum(chosen) >= effects.sum() - 1e-9 for chosen in itertools.product(*groups)]
    assert pooled_random(effects, list(random)) == pytest.approx(np.mean(as_large))
    assert pooled_random([9.0] * 5, [[0.0] * 5] * 5) == pytest.approx(6.0**-5), "fewer random sets than one alone needs"
    drawn = pooled_random(effects, list(random), draws=26)
    assert drawn == pytest.approx(np.mean(as_large), abs=0.3)
    many = pooled_random([0.5] * 8, [[0.0, 1.0, 2.0, 0.3]] * 8, draws=5000)
    assert many == pooled_random([0.5] * 8, [[0.0, 1.0, 2.0, 0.3]] * 8, draws=5000)
    with pytest.raises(DataError, match=r"beside each of 2 sets, found \[2, 1\]"):
        pooled_random([1.0, 2.0], [[1.0, 2.0], [1.0]])


def test_pooled_p_values_are_uniform_under_the_null():
    generator = np.random.default_rng(1)
    spread = np.array([[1.0], [5.0], [0.2]])  # groups of different scales
    found = []
    for draw in generator.normal(size=(1500, 3, 5)) * spread:
        found.append(pooled_random(draw[:, 0], list(draw[:, 1:])))
    assert uniform(found)
    assert np.mean(np.asarray(found) <= 0.5) == pytest.approx(0.5, abs=0.06)


def test_a_paired_p_value_takes_the_test_that_fits():
    generator = np.random.default_rng(2)
    right, after = generator.random((2, 90)) < 0.5
    assert paired_p(right, after) == mcnemar(right, after)
    before = generator.normal(size=20)
    assert paired_p(before, before[::-1]) == paired_permutation(before, before[::-1])
    assert paired_p(before, before + generator.normal(3, 0.1, 20)) == pytest.approx(2**-19, abs=6e-6), "finer than 1e-4"
    values = generator.exponential(size=(1200, 2, 18))
    assert uniform([paired_p(*pair) for pair in values])


def test_paired_intervals_of_correlated_conditions_cover_at_their_rate():
    generator, runs = np.random.default_rng(3), 800
    covering = 0
    for run in range(runs):
        item = generator.normal(0, 3, 40)  # hard and easy items: far more spread than the change
        change = bootstrap_mean(item + generator.normal(0.5, 0.4, 40) - item, resamples=800, seed=run)
        covering += change.low <= 0.5 <= change.high
    assert covered(covering / runs, 0.95, runs), covering / runs
