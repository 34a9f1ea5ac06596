"""Intervals and tests: Student's t over seeds, and exact tests over samples."""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence


def student_p(t: float, df: float) -> float:
    """Return the two-sided p-value of Student's t with ``df`` degrees of freedom (Simpson's rule).

    With t = sqrt(df) tan(x), the density is proportional to cos(x) ** (df - 1).
    """

    def area(low: float, high: float, pieces: int = 200) -> float:
        step = (high - low) / pieces
        weights = (1 if n in (0, pieces) else 2 + 2 * (n % 2) for n in range(pieces + 1))
        values = (max(math.cos(low + n * step), 0.0) ** (df - 1) for n in range(pieces + 1))
        return step / 3 * sum(weight * value for weight, value in zip(weights, values))

    angle = math.atan(abs(t) / math.sqrt(df))
    return area(angle, math.pi / 2) / area(0, math.pi / 2)


@functools.cache
def student_quantile(df: float, level: float = 0.95) -> float:
    """Return the t whose two-sided p-value is 1 - ``level``, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, df) > 1 - level else (low, middle)
    return high


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
    half = student_quantile(len(values) - 1, level) * spread
    mean = statistics.fmean(values)
    return mean - half, mean + half


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
    return student_p((mean - published) / math.sqrt(variance), min(df, 1e3))


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
    tail = sum(math.comb(n, k) for k in range(min(wins, n - wins) + 1))
    return min(1.0, 2 * tail / 2**n)


def format_p(p: float) -> str:
    """Return "p < 0.001", or p with two significant digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
