"""Convolution of a one-channel image, as behind a spatial transformer, that is fast on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneChannelConv2d(nn.Conv2d):
    """A convolution of one input channel, without stride or padding, made for training on a CPU.

    A transformer in front of the first convolution needs the gradient of its one-channel input, and PyTorch's takes most of a
    step there. As a matrix product and a fold it takes a fraction of that. The maps come out with their channels last in
    memory, which the layers behind take over: pooling them is faster. Values, the other gradients and the
    weights' names are those of :class:`torch.nn.Conv2d`; on a GPU it is nothing else.

    Args:
        out_channels: number of filters.
        kernel_size: height and width of a filter in pixels.
    """

    def __init__(self, out_channels: int, kernel_size: int) -> None:
        super().__init__(1, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        # What PyTorch transforms (compilation, torch.func) it must know.
        if x.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return super().forward(x)
        weight = self.weight.to(memory_format=torch.channels_last)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return F.conv2d(x, weight, self.bias)
        inputs: Any = x, weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            inputs = tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in inputs)
        return _OneChannelConvolution.apply(*inputs)


class _OneChannelConvolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, *needs_rest = ctx.needs_input_grad
        grad_x = None
        if needs_x:
            # What each output sends back to its patch of the input, then the sum over overlapping patches, many terms to a
            # pixel: not in half precision.
            dtype = torch.promote_types(x.dtype, torch.float32)
            patches = weight.to(dtype).flatten(1).T @ grad.to(dtype).flatten(2)
            grad_x = F.fold(patches, x.shape[2:], weight.shape[2:]).to(x.dtype)
        _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, (False, *needs_rest)
        )
        return grad_x, grad_weight, grad_bias
