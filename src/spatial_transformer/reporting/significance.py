"""Intervals and tests: Student's t over seeds, and exact tests over samples."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from scipy.stats import binomtest, t


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


def paired_p(one: Iterable[Iterable[int]], other: Iterable[Iterable[int]]) -> float:
    """Return the p-value of a sign test over samples, which for single runs is McNemar's exact one.

    A sample favours the network that misclassifies it in a smaller share of its runs.

    Args:
        one, other: the misclassified samples of each run of a network.
    """
    shares = []
    for runs in map(list, (one, other)):
        counts = Counter(sample for run in runs for sample in run)
        shares.append({sample: count / len(runs) for sample, count in counts.items()})
    a, b = shares
    differences = [a.get(sample, 0.0) - b.get(sample, 0.0) for sample in a.keys() | b.keys()]
    wins = sum(difference > 1e-9 for difference in differences)
    n = wins + sum(difference < -1e-9 for difference in differences)
    return float(binomtest(wins, n).pvalue) if n else 1.0


def format_p(p: float) -> str:
    """Return "p < 0.001", or p with two significant digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
