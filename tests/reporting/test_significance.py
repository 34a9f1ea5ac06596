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


def test_published_p_has_the_rate_of_its_level():
    """If both sides have the same error, 5 % of the experiments have p < 0.05."""
    generator = np.random.default_rng(0)
    rates = generator.normal(1.5, 0.08, (500, 2, 3)).mean(2, keepdims=True)
    seeds = generator.normal(0, 0.08, (500, 3))
    sampled = generator.binomial(10_000, rates[..., 0] / 100) / 100
    ps = []
    for (our_mean, published), spread in zip(sampled, seeds):
        values = our_mean + spread - spread.mean()
        ps.append(published_p(values.tolist(), round(published, 1), 10_000, 1))
    assert np.mean(np.array(ps) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert published_p([1.0, 1.1, 0.9], 2.0, 10_000, 1) < 1e-4


def test_published_p_of_equal_values_is_finite():
    assert published_p([1.0, 1.0], 1.0, 10_000, 1) == pytest.approx(1.0)


@pytest.mark.parametrize(("only_one", "only_other"), [(5, 15), (0, 0), (30, 31), (0, 12)])
def test_single_runs_are_compared_by_mcnemar(only_one, only_other):
    both = range(1000, 1100)
    one = [*both, *range(only_one)]
    other = [*both, *range(500, 500 + only_other)]
    n = only_one + only_other
    expected = stats.binomtest(only_one, n).pvalue if n else 1.0
    assert paired_p([one], [other]) == pytest.approx(expected)


def test_several_runs_are_compared_by_the_share_of_errors():
    one = [[1, 2, 3], [1, 2], [1]]  # sample 3 in a third of the runs
    other = [[3, 4], [3]]  # in all of them
    assert paired_p(one, other) == pytest.approx(stats.binomtest(2, 4).pvalue)
    assert paired_p(one, [one[0]] * 2) == 0.5  # samples 2 and 3, both in favour of the first


def test_format_p():
    assert [format_p(p) for p in (0.0004, 0.0123, 0.5, 1.0)] == [
        "p < 0.001",
        "p = 0.012",
        "p = 0.5",
        "p = 1",
    ]
