"""Random numbers from keys: distributions, independence, repeatability."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from spatial_transformer.utils.random import integers, normal, sample_keys, uniform

N = 50_000
UNCORRELATED = 4.5 / math.sqrt(N)


def keys(n=N, seed=1, epoch=0):
    return sample_keys(seed, epoch, torch.arange(n))


def assert_uncorrelated(*columns):
    matrix = np.corrcoef(np.stack([column.double().numpy() for column in columns]))
    assert np.abs(matrix[np.triu_indices(len(columns), 1)]).max() < UNCORRELATED


@pytest.mark.parametrize("seeds", [[0, 1, 2], [2**31, 2**31 + 1]])
def test_keys_of_seeds_epochs_and_samples_differ(seeds):
    all_keys = torch.cat([keys(60_000, seed, epoch) for seed, epoch in product(seeds, range(3))])
    assert len(all_keys.unique()) == len(all_keys)


def test_keys_depend_on_their_own_index_only():
    index = torch.arange(12).view(3, 4)
    assert torch.equal(sample_keys(3, 2, index), keys(12, 3, 2).view(3, 4))
    assert torch.equal(sample_keys(3, 2, index.int()), sample_keys(3, 2, index))
    assert torch.equal(sample_keys(3, 2, torch.tensor([7, 5])), keys(10, 3, 2)[[7, 5]])


def test_keys_of_several_seeds_are_those_of_each():
    seeds, index = [1, 2**40 + 7, -5], torch.arange(6)
    expected = torch.stack([sample_keys(seed, 2, index) for seed in seeds])
    assert torch.equal(sample_keys(torch.tensor(seeds)[:, None], 2, index), expected)


def test_each_bit_of_the_keys_is_random():
    shares = torch.stack([(keys() >> bit & 1).double().mean() for bit in range(64)])
    assert (shares - 0.5).abs().max() < 0.5 * UNCORRELATED


def test_uniform_fills_the_open_unit_interval():
    numbers = uniform(keys(), 4)
    assert numbers.shape == (N, 4)
    assert numbers.dtype == torch.float32
    assert 0 < numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3


def test_smallest_number_is_positive_and_its_normal_finite():
    key = torch.tensor([0x61C8864680B583EB])  # cancels the first counter: all bits are 0
    assert 0 < uniform(key, 1).item() < 1e-6
    assert normal(key, 1).isfinite()


def test_normal_has_the_standard_distribution():
    numbers = normal(keys(), 4).flatten().double()
    moments = [numbers.pow(power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("below", [1, 2, 23, 33, 55_000])
def test_integers_are_uniform_below_the_bound(below):
    numbers = integers(keys(), 20, below)
    assert numbers.shape == (N, 20)
    assert numbers.dtype == torch.int64
    counts = torch.bincount(numbers.flatten(), minlength=below)
    assert len(counts) == below
    assert counts.min() > 0
    assert below == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("draw", [uniform, normal])
def test_numbers_and_streams_of_a_sample_are_independent(draw):
    streams = [draw(keys(), 4, stream) for stream in range(4)]
    assert_uncorrelated(*torch.cat(streams, dim=1).unbind(1))
    numbers = torch.cat([uniform(keys(1), 64, stream) for stream in range(8)], dim=1)
    assert len(numbers.unique()) > 0.99 * numbers.numel()


@pytest.mark.parametrize("lag", [1, 2, 256])
def test_neighbouring_samples_and_keys_are_independent(lag):
    for all_keys in (keys(N + lag), torch.arange(N + lag)):
        numbers = uniform(all_keys, 2)
        assert_uncorrelated(*numbers[:-lag].unbind(1), *numbers[lag:].unbind(1))


def test_epochs_and_seeds_are_independent():
    assert_uncorrelated(*(uniform(keys(epoch=epoch), 1)[:, 0] for epoch in range(6)))
    assert_uncorrelated(*(uniform(keys(seed=seed), 1)[:, 0] for seed in range(6)))
    one = torch.cat([sample_keys(1, epoch, torch.tensor([7])) for epoch in range(2_000)])
    numbers = uniform(one, 1)[:, 0].double().numpy()
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4.5 / math.sqrt(len(numbers))
