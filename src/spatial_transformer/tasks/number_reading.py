"""Reading of numbers with several digits (section 4.2, appendix A.5)."""

from __future__ import annotations

from torch import Tensor

from .classification import Classification

NO_DIGIT = 10
"""Class of the positions after the last digit."""


class NumberReading(Classification):
    """Train a network that reads numbers by the sum of the cross-entropies of all positions.

    The network returns ``(B, positions, 11)`` logits. Labels are ``(B, positions)``: digits from
    the left, then NO_DIGIT.

    Logged:
        As for :class:`Classification`. ``error`` is the sequence error of the paper: a number is
        wrong if a digit or the length is wrong. ``digit_error`` is the fraction of wrong digits in
        a number. ``length_error`` is the fraction of numbers of a wrong length.
    """

    error_names = ("error", "digit_error", "length_error")

    def per_sample_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().per_sample_loss(logits.mT, labels).sum(dim=1)

    def per_sample_errors(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
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
    """Count the digits before the first position without one: ``(B, positions)`` to ``(B,)``."""
    return (numbers != NO_DIGIT).int().cumprod(dim=1).sum(dim=1)
