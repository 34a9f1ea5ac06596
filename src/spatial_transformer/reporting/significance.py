"""Intervals and tests over seeds and test samples, from Student's t."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from scipy.stats import t


def prediction_interval(
    values: Sequence[float], new: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval that contains the mean of ``new`` more values with probability ``level``.

    Args:
        values: at least two independent values of a normal distribution.
        new: number of further values.
        level: probability.
    """
    spread = statistics.stdev(values) * math.sqrt(1 / len(values) + 1 / new)
    low, high = t.interval(level, len(values) - 1, statistics.fmean(values), spread)
    return float(low), float(high)


def published_p(values: Sequence[float], published: float, samples: int, decimals: int) -> float:
    """Return the p-value of the difference of mean percentages from a published percentage.

    It is Welch's test. The variance of each side has a part of the seeds and one of the test
    samples. The publication is taken to have as many seeds, and seeds that differ as much. Its
    rounding adds a part.

    Args:
        values: percentages of at least two seeds.
        published: the published percentage.
        samples: number of test samples.
        decimals: of the published percentage.
    """
    mean = statistics.fmean(values)
    seeds = 2 * statistics.variance(values) / len(values)
    digits = sum(rate * (100 - rate) for rate in (mean, published)) / samples
    variance = seeds + digits + 10.0 ** (-2 * decimals) / 12
    df = (len(values) - 1) * (variance / seeds) ** 2 if seeds else math.inf
    return float(2 * t.sf(abs(mean - published) / math.sqrt(variance), df))


def paired_p(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]], samples: int) -> float:
    """Return the p-value of the difference of two networks' mean errors on the same test samples.

    It is Welch's test. The variance has a part of the seeds of each network, and one of the
    differences between the networks on single samples. It is conservative: the seeds' parts also
    contain noise of single samples.

    Args:
        one, other: the misclassified samples of each run of a network, at least two runs.
        samples: number of test samples.
    """
    counts, seeds = [], []
    for runs in (one, other):
        counts.append(Counter(sample for run in runs for sample in run))
        seeds.append(statistics.variance(len(run) / samples for run in runs) / len(runs))
    a, b = counts
    differences = [a[n] / len(one) - b[n] / len(other) for n in a.keys() | b.keys()]
    mean = sum(differences) / samples
    variance = sum(seeds) + (sum(d * d for d in differences) / samples - mean**2) / samples
    if not variance:
        return float(not mean)
    df_parts = seeds[0] ** 2 / (len(one) - 1) + seeds[1] ** 2 / (len(other) - 1)
    df = variance**2 / df_parts if df_parts else math.inf
    return float(2 * t.sf(abs(mean) / math.sqrt(variance), df))


def format_p(p: float) -> str:
    """Return "p < 0.001", or p with two significant digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
