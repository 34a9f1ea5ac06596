import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spatial_transformer.data.svhn import SvhnData
from spatial_transformer.tasks.number_reading import NO_DIGIT, NumberReading


@pytest.fixture
def task():
    return NumberReading(nn.Identity(), torch.optim.SGD)


def random_numbers(n, positions=5):
    lengths = torch.randint(1, positions + 1, (n, 1))
    digits = torch.randint(10, (n, positions))
    return torch.where(torch.arange(positions) < lengths, digits, NO_DIGIT)


def expected_scores(read, labels):
    """Compute the scores number by number, on strings."""
    wrong, wrong_digits, wrong_length = [], [], []
    for digits, truth in zip(read.tolist(), labels.tolist(), strict=True):
        length = truth.index(NO_DIGIT) if NO_DIGIT in truth else len(truth)
        read_length = digits.index(NO_DIGIT) if NO_DIGIT in digits else len(digits)
        wrong.append(digits != truth)
        wrong_digits.append(sum(digits[n] != truth[n] for n in range(length)) / length)
        wrong_length.append(read_length != length)
    scores = {"error": wrong, "digit_error": wrong_digits, "length_error": wrong_length}
    return {f"test/{name}": 100 * sum(values) / len(read) for name, values in scores.items()}


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 1.0])
def test_scores(task, noise):
    labels = random_numbers(200)
    is_noisy = torch.rand(labels.shape) < noise
    read = torch.where(is_noisy, torch.randint(11, labels.shape), labels)
    logits = F.one_hot(read, 11).float()
    for part in (slice(0, 90), slice(90, 200)):
        task.test_step((logits[part], labels[part]), 0)
    scores = task.test_scores.compute()
    for name, value in expected_scores(read, labels).items():
        assert scores[name].item() == pytest.approx(value, abs=1e-3), name


def test_loss_is_the_sum_over_positions(task):
    labels, logits = random_numbers(3), torch.randn(3, 5, 11)
    expected = sum(F.cross_entropy(logits[:, n], labels[:, n], reduction="none") for n in range(5))
    torch.testing.assert_close(task.per_sample_loss(logits, labels), expected)


def test_data_and_task_have_the_same_class_for_no_digit():
    assert SvhnData.classes - 1 == NO_DIGIT
    assert SvhnData().decode_labels(torch.tensor([[1, 0, NO_DIGIT], [NO_DIGIT] * 3])) == ["10", ""]


def test_confidence_is_the_product_over_positions(task):
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    assert task.confidences(logits).item() == pytest.approx(0.4)
