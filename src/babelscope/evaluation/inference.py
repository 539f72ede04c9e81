"""What a difference between two measurements is worth: intervals, paired tests, corrections.

Items (questions, texts) are the unit everywhere: both conditions are measured on the same ones, and they are what is
drawn again. The tests are exact or by permutation, so that none of them leans on a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from babelscope.errors import DataError, MissingDependencyError

EXACT = 16
"""Pairs up to which all sign changes are counted instead of drawn."""


@dataclass(frozen=True)
class Interval:
    """An estimate between two bounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AgainstRandom:
    """An effect beside those of random sets."""

    p: float
    """Share of sets, the tested one among them, with an effect at least as large: (1 + k) / (1 + n). With n random sets
    it can't be smaller than 1 / (1 + n)."""
    standardised: float
    """(effect - mean of the random effects) / their standard deviation; infinite where they don't differ."""


def bootstrap_mean(scores: ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of items with its percentile bootstrap interval (Efron 1979), widened for few items.

    Args:
        scores: [n] per item; differences of pairs make it a paired bootstrap.
        resamples: draws of n items with replacement.
        level: of the interval.
        seed: of the draws.

    The percentiles of n items are too narrow by a factor of about sqrt((n - 1) / n) and by the difference between
    Student's and the normal quantiles; they are taken at a level that makes up for both (Hesterberg 2015, section 5.3).

    Raises:
        DataError: no item, or a score that is not finite.
    """
    values = _finite(scores)
    if len(values) == 1:
        return Interval(float(values[0]), -math.inf, math.inf)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[generator.integers(0, len(values), size=(part, len(values)))].mean(1)
            for part in _parts(resamples, len(values))
        ]
    )
    stats, n = _distributions(), len(values)
    tail = float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(0.5 - level / 2, n - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def wilson(right: int, asked: int, level: float = 0.95) -> Interval:
    """A share of right answers with Wilson's score interval (1927), good also near 0 and 1.

    Raises:
        DataError: no question, or more right answers than questions.
    """
    if not 0 <= right <= asked or asked == 0:
        raise DataError(f"wanted 0 <= right <= asked and asked > 0, found {right} of {asked}")
    bounds = _distributions().binomtest(right, asked).proportion_ci(level, method="wilson")
    return Interval(right / asked, float(bounds.low), float(bounds.high))


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Two-sided exact p-value that as many answers turned wrong as turned right (McNemar's test, binomial).

    Args:
        before: [n] right or wrong, in one condition.
        after: [n] the same items in the other.

    Raises:
        DataError: not the same items.
    """
    one, other = _finite(before).astype(bool), _finite(after).astype(bool)
    _same_items(one, other)
    lost, won = int((one & ~other).sum()), int((~one & other).sum())
    return float(_distributions().binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def paired_permutation(before: ArrayLike, after: ArrayLike, *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value that the mean difference of pairs is 0, by changing their signs (Fisher 1935).

    All changes are counted up to `EXACT` pairs that differ; beyond, `draws` of them, the observed one among them, so
    that the p-value is valid and never 0.

    Args:
        before: [n] scores in one condition.
        after: [n] the same items in the other.
        draws: sign changes drawn.
        seed: of the draws.

    Raises:
        DataError: not the same items.
    """
    one, other = _finite(before), _finite(after)
    _same_items(one, other)
    difference = (other - one)[other != one]
    n = len(difference)
    if n == 0:
        return 1.0
    observed = abs(difference.sum()) * (1 - 1e-12)
    if n <= EXACT:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * bits) @ difference) >= observed).mean())
    generator = np.random.default_rng(seed)
    as_large = sum(
        int((np.abs(generator.choice([-1.0, 1.0], size=(part, n)) @ difference) >= observed).sum())
        for part in _parts(draws, n)
    )
    return (1 + as_large) / (1 + draws)


def paired_p(before: ArrayLike, after: ArrayLike) -> float:
    """Two-sided p-value of a paired difference: McNemar's test for right and wrong, else by permutation.

    A p-value near the smallest that the drawn sign changes allow is drawn again, twenty times as finely; it stays
    valid, for only p-values that are small already are replaced.

    Args:
        before: [n] scores in one condition.
        after: [n] the same items in the other.

    Raises:
        DataError: not the same items.
    """
    one, other = _finite(before), _finite(after)
    if np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all():
        return mcnemar(one, other)
    p = paired_permutation(one, other)
    return p if p > 0.002 else paired_permutation(one, other, draws=200_000, seed=1)


def against_random(effect: float, random: ArrayLike) -> AgainstRandom:
    """An effect against those of random sets: rank p-value (one-sided: at least as large) and standardised effect.

    Args:
        effect: of the tested set; larger is more.
        random: [n] effects of random sets of the same size.

    Raises:
        DataError: fewer than two random sets.
    """
    values = _finite(random)
    if len(values) < 2:
        raise DataError(f"wanted at least two random sets to compare with, found {len(values)}. Draw more controls.")
    spread, away = float(values.std(ddof=1)), effect - float(values.mean())
    standardised = away / spread if spread > 0 else math.copysign(math.inf, away) if away else 0.0
    return AgainstRandom((1 + int((values >= effect).sum())) / (1 + len(values)), standardised)


def pooled_random(
    effects: Sequence[float], random: Sequence[ArrayLike], *, draws: int = 20_000, seed: int = 0
) -> float:
    """One-sided p-value that several sets, each beside random ones of its own, have a mean effect like random sets.

    In each group the tested set and its random ones change places at random, so that a few random sets in each of
    several groups (languages) tell more than they could alone: five groups of five go down to 1 / 6^5.

    Args:
        effects: [L] of the tested sets, one per group; larger is more.
        random: [L] effects of the random sets of each group, two or more.
        draws: of places; all of them are counted where there are no more than that.
        seed: of the draws.

    Raises:
        DataError: fewer than two random sets in a group, or another number of groups.
    """
    values = [_finite(each) for each in random]
    tested = _finite(effects)
    if len(values) != len(tested) or min(map(len, values)) < 2:
        raise DataError(
            f"wanted at least two random sets beside each of {len(tested)} sets, found {[len(each) for each in values]}"
        )
    groups = [np.concatenate([tested[place : place + 1], each]) for place, each in enumerate(values)]
    observed = tested.sum() - 1e-12 * max(1.0, float(np.abs(tested).sum()))
    if math.prod(map(len, groups)) <= draws:
        sums = np.zeros(1)
        for group in groups:
            sums = (sums[:, None] + group).ravel()
        return float((sums >= observed).mean())
    generator = np.random.default_rng(seed)
    sums = sum((generator.choice(group, draws) for group in groups), np.zeros(draws))
    return (1 + int((sums >= observed).sum())) / (1 + draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that the chance of any false one keeps the level (Holm 1979).

    Raises:
        DataError: a value outside 0 to 1.
    """
    values = _finite(p_values) if len(p_values) else np.zeros(0)
    if ((values < 0) | (values > 1)).any():
        raise DataError(f"p-values lie between 0 and 1, found {values.tolist()}")
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(value) for value in corrected]


def overlap_p(shared: int, first: Sequence[int], second: Sequence[int], widths: Sequence[int]) -> float:
    """Chance that random sets with the same counts share at least as many units.

    Args:
        shared: units in both sets.
        first: [m] units of one set in each matrix (layer and slot).
        second: [m] units of the other.
        widths: [m] units that the matrix has.

    The number shared in one matrix is hypergeometric; over matrices the distributions are convolved, so it is exact.

    Raises:
        DataError: lists of different lengths, or a count beyond its width.
    """
    if not len(first) == len(second) == len(widths):
        raise DataError(f"wanted counts for the same matrices, found {len(first)}, {len(second)} and {len(widths)}")
    total = np.ones(1)
    for a, b, width in zip(first, second, widths, strict=True):
        if not 0 <= max(a, b) <= width:
            raise DataError(f"{max(a, b)} units in a matrix of {width}")
        if a and b:
            chances = _distributions().hypergeom.pmf(np.arange(min(a, b) + 1), width, a, b)
            total = np.convolve(total, chances)
    return float(min(1.0, total[shared:].sum())) if shared < len(total) else 0.0


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) == 0:
        raise DataError(f"wanted a list of scores, one per item, found an array of shape {found.shape}")
    if not np.isfinite(found).all():
        raise DataError(
            f"{int((~np.isfinite(found)).sum())} of {len(found)} scores are not finite; leave no item unscored"
        )
    return found


def _same_items(one: NDArray[np.generic], other: NDArray[np.generic]) -> None:
    if len(one) != len(other):
        raise DataError(f"a paired test needs the same items in both conditions, found {len(one)} and {len(other)}")


def _parts(count: int, width: int) -> list[int]:
    """Draws in parts of at most some 30 MB."""
    size = max(1, 4_000_000 // width)
    return [min(size, count - start) for start in range(0, count, size)]


def _distributions() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingDependencyError('intervals and tests need scipy: pip install "babelscope[eval]"') from error
    return stats
