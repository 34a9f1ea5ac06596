"""Intervals and tests, against simulation."""

import numpy as np
import pytest
from scipy import stats

from spatial_transformer.reporting.significance import (
    format_p,
    paired_p,
    prediction_interval,
    published_p,
)


def test_prediction_interval_covers_new_means():
    draws = np.random.default_rng(0).normal(3.0, 0.5, (2000, 7))
    hits = []
    for row in draws:
        low, high = prediction_interval(row[:5].tolist(), 2, level=0.9)
        hits.append(low <= row[5:].mean() <= high)
    assert np.mean(hits) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("spread", "samples", "decimals"),
    [
        pytest.param(0.08, 10_000, 1, id="mostly of the samples"),
        pytest.param(0.3, 1_000_000, 2, id="mostly of the seeds"),
        pytest.param(0.05, 1_000_000, 0, id="mostly of the rounding"),
    ],
)
def test_published_p_has_the_rate_of_its_level(spread, samples, decimals):
    """If both sides have the same error, about 5 % of the experiments have p < 0.05."""
    generator = np.random.default_rng(0)
    rates = generator.normal(1.5, spread, (500, 2, 3)).mean(2)
    seeds = generator.normal(0, spread, (500, 3))
    sampled = 100 * generator.binomial(samples, rates / 100) / samples
    ps = []
    for (our_mean, published), own in zip(sampled, seeds):
        values = our_mean + own - own.mean()
        ps.append(published_p(values.tolist(), round(published, decimals), samples, decimals))
    assert 0.005 < np.mean(np.array(ps) < 0.05) < 0.075


def test_published_p_of_a_large_difference_is_small():
    assert published_p([1.0, 1.1, 0.9], 2.0, 10_000, 1) < 1e-4


def test_published_p_of_equal_values_is_finite():
    assert published_p([1.0, 1.0], 1.0, 10_000, 1) == pytest.approx(1.0)


def simulate_runs(generator, rates, runs):
    """Return misclassified samples of runs whose overall error differs from seed to seed."""
    factors = generator.normal(1.0, 0.1, runs)
    wrong = (generator.random(len(rates)) < rates * factor for factor in factors)
    return [np.flatnonzero(run).tolist() for run in wrong]


@pytest.mark.parametrize("runs", [(3, 3), (3, 5)])
def test_paired_p_has_the_rate_of_its_level(runs):
    """Networks of the same error differ by their seeds, and each has its own hard samples."""
    generator = np.random.default_rng(1)
    ps = []
    for _ in range(400):
        sides = []
        common = generator.beta(0.05, 1.5, 2000)
        for n in runs:
            own = generator.beta(0.05, 1.5, 2000)
            sides.append(simulate_runs(generator, (common + own) / 2, n))
        ps.append(paired_p(*sides, 2000))
    assert 0.015 < np.mean(np.array(ps) < 0.05) < 0.065


def test_paired_p_finds_what_the_pairing_shows():
    generator = np.random.default_rng(0)
    rates = generator.beta(0.05, 1.5, 10_000)
    one, other = (simulate_runs(generator, factor * rates, 3) for factor in (1.0, 0.6))
    assert paired_p(one, other, 10_000) == pytest.approx(paired_p(other, one, 10_000))
    assert paired_p(one, other, 10_000) < 0.01


def test_paired_p_without_seeds_is_that_of_the_samples():
    one, other = [list(range(30))] * 3, [list(range(20, 40))] * 2  # 20 against 10 samples
    expected = 2 * stats.norm.sf(0.01 / np.sqrt((30 / 1000 - 0.01**2) / 1000))
    assert paired_p(one, other, 1000) == pytest.approx(expected)
    assert paired_p(one, one, 1000) == 1.0


def test_format_p():
    assert [format_p(p) for p in (0.0004, 0.0123, 0.5, 1.0)] == [
        "p < 0.001",
        "p = 0.012",
        "p = 0.5",
        "p = 1",
    ]
