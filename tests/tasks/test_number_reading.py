"""Reading numbers: scores against a slow reference."""

import math

import pytest
import torch
from torch import nn

from spatial_transformer.data.svhn import SvhnData
from spatial_transformer.tasks.number_reading import NO_DIGIT, NumberReading


def task():
    return NumberReading(nn.Identity(), lambda groups: torch.optim.SGD(groups, lr=0.1))


def random_numbers(n, positions=5):
    labels = torch.full((n, positions), NO_DIGIT)
    for number in labels:
        length = int(torch.randint(1, positions + 1, ()))
        number[:length] = torch.randint(10, (length,))
    return labels


def logits_that_say(labels, wrong=0.0):
    logits = nn.functional.one_hot(labels, 11).float() * 5 + torch.randn(*labels.shape, 11)
    spoilt = torch.rand(labels.shape) < wrong
    logits[spoilt] = torch.randn(int(spoilt.sum()), 11)
    return logits


def slow_scores(logits, labels):
    wrong = wrong_length = 0
    wrong_digits = []
    for rows, truth in zip(logits.tolist(), labels.tolist(), strict=True):
        read = [row.index(max(row)) for row in rows]
        digits = [n for n, digit in enumerate(truth) if digit != NO_DIGIT]
        wrong += read != truth
        wrong_digits.append(sum(read[n] != truth[n] for n in digits) / len(digits))
        length = next((n for n, digit in enumerate(read) if digit == NO_DIGIT), len(read))
        wrong_length += length != len(digits)
    n = len(labels)
    return {
        "error": 100 * wrong / n,
        "digit_error": 100 * sum(wrong_digits) / n,
        "length_error": 100 * wrong_length / n,
    }


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.5, 1.0])
def test_scores_are_those_of_a_slow_reference(wrong):
    torch.manual_seed(1)
    scored, labels = task(), random_numbers(200)
    logits = logits_that_say(labels, wrong)
    for part in (slice(0, 90), slice(90, 200)):
        scored.test_step((logits[part], labels[part]), 0)
    computed = scored.test_scores.compute()
    for name, value in slow_scores(logits, labels).items():
        assert computed[f"test/{name}"].item() == pytest.approx(value, abs=1e-3), name


def test_a_number_with_the_right_digits_and_one_too_many_is_wrong():
    labels = torch.tensor([[1, 2, NO_DIGIT, NO_DIGIT, NO_DIGIT]])
    logits = logits_that_say(torch.tensor([[1, 2, 3, NO_DIGIT, NO_DIGIT]])) * 100
    assert {
        name: value.item() for name, value in task().per_sample_errors(logits, labels).items()
    } == {
        "error": 100,
        "digit_error": 0,
        "length_error": 100,
    }


def test_the_loss_is_the_sum_over_the_positions():
    torch.manual_seed(2)
    labels = random_numbers(3)
    logits = torch.randn(3, 5, 11)
    for n, loss in enumerate(task().per_sample_loss(logits, labels).tolist()):
        positions = zip(logits[n].tolist(), labels[n].tolist(), strict=True)
        assert loss == pytest.approx(
            sum(math.log(sum(map(math.exp, row))) - row[label] for row, label in positions),
            rel=1e-5,
        )


def test_task_and_data_agree_on_what_is_no_digit():
    assert SvhnData.classes - 1 == NO_DIGIT


def test_numbers_are_written_as_people_write_them():
    assert SvhnData().decode_labels(torch.tensor([[1, 0, NO_DIGIT], [NO_DIGIT] * 3])) == ["10", ""]


def test_the_confidence_in_a_number_is_the_product_over_its_positions():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    assert task().confidences(logits).item() == pytest.approx(0.4)
