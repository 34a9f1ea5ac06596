"""The spatial transformer: localisation network, grid generator, sampler (section 3, figure 2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .sampler import MODES, sample
from .transforms import Transform


class SpatialTransformer(nn.Module):
    """Warps its input by a transformation that it infers from the input itself.

    Put several in a row, or at any depth of a network, as any other layer. For several **in parallel** on one input, set
    ``parallel`` and let the localisation network regress that many thetas at once (one shared network, as for birds in
    A.6, or several in a :class:`~spatial_transformer.transformer.JoinedLocalisation`).

    Args:
        localisation: module from ``(B, C, H, W)`` to ``(B, parallel * n_params)``, ending in a
            :class:`~spatial_transformer.transformer.Regression`.
        transform: the family of transformations.
        output_size: ``(H', W')``, or ``(D', H', W')``; None keeps the size of the input.
        mode: "bilinear" (trilinear in three dimensions) or "nearest", see :func:`~spatial_transformer.sample`.
        fill: what is read outside the input, in units of the input.
        parallel: number of transformers.

    Raises:
        ValueError: sizes, mode or ``parallel`` out of range; in ``forward``, a theta that does not fit.
    """

    def __init__(
        self,
        localisation: nn.Module,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        mode: str = "bilinear",
        fill: float | Sequence[float] = 0.0,
        parallel: int = 1,
    ) -> None:
        super().__init__()
        if output_size is not None:
            output_size = (output_size,) if isinstance(output_size, int) else tuple(output_size)
            if len(output_size) != transform.dims or min(output_size) < 1:
                raise ValueError(f"output_size must be {transform.dims} positive sizes, got {output_size}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if parallel < 1:
            raise ValueError(f"parallel must be at least 1, got {parallel}")
        self.localisation = localisation
        self.transform = transform
        self.output_size = output_size
        self.mode = mode
        fills = torch.as_tensor(fill, dtype=torch.float64, device="cpu").flatten().tolist()  # a tensor or an array, too
        self.fill: float | Sequence[float] = fills[0] if len(fills) == 1 else tuple(fills)
        self.parallel = parallel

    def forward(self, x: Tensor, return_theta: bool = False, theta: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Warps ``x``.

        Args:
            x: ``(B, C, H, W)``, or ``(B, C, D, H, W)`` for a transform in three dimensions.
            return_theta: also return theta, float32 (float64 for a float64 network).
            theta: ``(B, parallel * n_params)``, to warp by instead of by what the localisation network says.

        Returns:
            ``(B, C, H', W')``, and ``(B, n_params)`` on demand. With n transformers in parallel: their outputs
            side by side as channels, ``(B, n C, H', W')``, and ``(B, n, n_params)``.
        """
        given, theta = theta is not None, self.localisation(x) if theta is None else theta
        expected = (x.shape[0], self.parallel * self.transform.n_params)
        if theta.shape != expected:
            what = "theta must be of shape" if given else "the localisation network must return theta of shape"
            raise ValueError(
                f"{what} {tuple(expected)} for {self.parallel} x {self.transform}, it {'is' if given else 'returned'} "
                f"{tuple(theta.shape)}"
            )
        theta = theta if theta.dtype == torch.float64 else theta.float()
        size = self.output_size or tuple(x.shape[2:])
        if self.parallel == 1:
            out = sample(x, self.transform.grid(theta, size), self.mode, self.fill)
        else:
            theta = theta.unflatten(1, (self.parallel, -1))
            grids = self.transform.grid(theta.flatten(0, 1), size).unflatten(0, theta.shape[:2])
            # The outputs are sampled as one tall image, so that the input is not copied for each of them.
            tall = sample(x, grids.flatten(1, 2), self.mode, self.fill)
            out = tall.unflatten(2, (self.parallel, size[0])).transpose(1, 2).flatten(1, 2)
        return (out, theta) if return_theta else out

    def extra_repr(self) -> str:
        parts = [f"output_size={self.output_size}", f"mode={self.mode!r}"]
        parts += [f"fill={self.fill}"] if self.fill else []
        parts += [f"parallel={self.parallel}"] if self.parallel > 1 else []
        return ", ".join(parts)


def localisation_networks(network: nn.Module) -> list[nn.Module]:
    """The localisation networks of all spatial transformers in ``network``."""
    return [module.localisation for module in network.modules() if isinstance(module, SpatialTransformer)]
