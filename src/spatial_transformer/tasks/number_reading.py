"""Reading numbers of several digits: what is trained and how it is scored (section 4.2 of the paper)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .classification import Classification

NO_DIGIT = 10
"""The class of a position behind the last digit."""


class NumberReading(Classification):
    """Trains a reader of numbers by the sum of its positions' cross-entropies.

    The network gives ``(B, positions, 11)`` logits; labels are ``(B, positions)``, digits from the left, then NO_DIGIT.

    Logged
        As for :class:`Classification`. ``error`` is that of whole numbers, the paper's: all digits and the length count.
        ``digit_error`` is the share of a number's digits that are wrong, ``length_error`` that of numbers of a wrong length.
    """

    error_names = ("error", "digit_error", "length_error")

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.mT, labels, reduction="none", label_smoothing=self.smoothing).sum(dim=1)

    def errors(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        read = self.predictions(logits)
        wrong = read != labels
        is_digit = labels != NO_DIGIT
        wrong_digits = (wrong & is_digit).sum(dim=1) / is_digit.sum(dim=1).clamp(min=1)
        return {
            "error": 100.0 * wrong.any(dim=1),
            "digit_error": 100.0 * wrong_digits,
            "length_error": 100.0 * (_lengths(read) != _lengths(labels)),
        }

    def confidences(self, logits: Tensor) -> Tensor:
        return super().confidences(logits).prod(dim=1)


def _lengths(numbers: Tensor) -> Tensor:
    """Digits before the first position without one: ``(B, positions)`` -> ``(B,)``."""
    return (numbers != NO_DIGIT).int().cumprod(dim=1).sum(dim=1)
