"""Random numbers from keys: a sample is a function of (seed, epoch, index) alone."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF


def sample_keys(seed: int | Tensor, epoch: int, index: Tensor) -> Tensor:
    """Return a key for each sample from (seed, epoch, index): int64, shape of ``index``.

    An int64 tensor of seeds is broadcast against ``index``.
    """
    key = torch.zeros_like(index, dtype=torch.int64) + (seed & _MASK_32)
    for part in (torch.full_like(key, epoch), index.to(torch.int64)):
        key = _mix(key * 0x632BE5AB + part + 1)
    return key


def _mix(z: Tensor) -> Tensor:
    """Scramble int64 bijectively, as splitmix64: each bit of the result depends on all bits."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor  # the mask: a logical shift
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def uniform(keys: Tensor, n: int, stream: int = 0) -> Tensor:
    """Return uniform numbers in (0, 1), ``(B, n)`` float32, from ``(B,)`` keys.

    Different streams are independent.
    """
    counter = torch.arange(1, n + 1, device=keys.device) + (stream << 32)
    bits = _mix(keys[:, None] + counter * -0x61C8864680B583EB)
    return (((bits >> 41) & 0x7FFFFF).float() + 0.5) * 2.0**-23


def normal(keys: Tensor, n: int, stream: int = 0) -> Tensor:
    """Return standard normal numbers, ``(B, n)`` float32, from ``(B,)`` keys."""
    return torch.special.ndtri(to_double(uniform(keys, n, stream))).float().to(keys.device)


def integers(keys: Tensor, n: int, below: int, stream: int = 0) -> Tensor:
    """Return uniform integers in [0, below), ``(B, n)`` int64, from ``(B,)`` keys."""
    numbers = (to_double(uniform(keys, n, stream)) * below).long().clamp_(max=below - 1)
    return numbers.to(keys.device)


def to_double(numbers: Tensor) -> Tensor:
    """Return float64 numbers, on the CPU for MPS, which has no float64."""
    return (numbers.cpu() if numbers.device.type == "mps" else numbers).double()


def mix_integers(*values: int) -> int:
    """Return a seed in [-2^63, 2^63) that depends on all bits of some integers.

    It is the variant of xxHash64 that CPython uses for tuples of integers below 2^61 - 1: earlier
    versions used ``hash``, and their runs can be repeated.
    """
    mask = 2**64 - 1
    seed = 0x27D4EB2F165667C5
    for value in values:
        seed = (seed + value * 0xC2B2AE3D27D4EB4F) & mask
        seed = (seed << 31 | seed >> 33) & mask
        seed = seed * 0x9E3779B185EBCA87 & mask
    seed = (seed + (len(values) ^ 0x27D4EB2F165667C5 ^ 3527539)) & mask
    return seed - 2**64 if seed >> 63 else seed
