"""Convolution of a one-channel image, with a fast gradient of the image on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer.transforms import is_eager


class OneChannelConv2d(nn.Conv2d):
    """A convolution of one input channel, without stride or padding, for training on a CPU.

    A spatial transformer in front of the first convolution needs the gradient of its one-channel
    input. PyTorch's takes most of a training step there. A matrix product and a fold take a
    fraction of that. The output is channels-last, which makes the next pooling faster. Values,
    derivatives of any order and parameter names are those of :class:`torch.nn.Conv2d`. So is the
    computation on a GPU, under ``torch.compile`` and under ``torch.func``.

    Args:
        out_channels: number of filters.
        kernel_size: height and width of a filter in pixels.
    """

    def __init__(self, out_channels: int, kernel_size: int) -> None:
        super().__init__(1, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 1, H, W)`` to ``(B, out_channels, H - k + 1, W - k + 1)``."""
        if x.device.type != "cpu" or x.ndim != 4 or not is_eager(x):
            return super().forward(x)
        weight = self.weight.to(memory_format=torch.channels_last)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return F.conv2d(x, weight, self.bias)
        inputs: Any = x, weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            inputs = tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in inputs)
        out: Tensor = _OneChannelConvolution.apply(*inputs)
        return out


class _OneChannelConvolution(torch.autograd.Function):
    """The backward pass consists of differentiable operations, so it is differentiable itself."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, *needs_rest = ctx.needs_input_grad
        grad_x = None
        if needs_x:
            # Each output sends its gradient to its patch of the input. Overlapping patches add up,
            # many terms to a pixel: not in half precision.
            dtype = torch.promote_types(x.dtype, torch.float32)
            filters = weight.to(dtype).reshape(weight.shape[0], -1)
            batch, channels, height, width = grad.shape
            patches = filters.T @ grad.to(dtype).reshape(batch, channels, height * width)
            grad_x = F.fold(patches, x.shape[2:], weight.shape[2:]).to(x.dtype)
        # torch.nn.grad has no gradient of the bias. A separate sum would take a sixth longer.
        bias_size, stride, padding, dilation = [weight.shape[0]], [1, 1], [0, 0], [1, 1]
        geometry = bias_size, stride, padding, dilation, False, [0, 0], 1
        _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, *geometry, [False, *needs_rest]
        )
        return grad_x, grad_weight, grad_bias

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        saved_x, saved_weight = ctx.saved_tensors
        x = torch.zeros_like(saved_x) if x is None else x
        weight = torch.zeros_like(saved_weight) if weight is None else weight
        return F.conv2d(x, saved_weight, bias) + F.conv2d(saved_x, weight)
