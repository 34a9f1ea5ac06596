"""The spatial transformer: localisation network, grid generator, sampler (section 3, figure 2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .sampler import check_mode, fill_values, sample
from .transforms import MAX_CACHE_BYTES, Transform, grid_dtype


class SpatialTransformer(nn.Module):
    """Warp the input by a transformation that is inferred from the input itself.

    Use it like any other layer: at any depth of a network and several times in a row. With
    ``parallel`` = n, one localisation network regresses n thetas and n transformers warp the same
    input.

    Args:
        localisation: module from ``(B, C, H, W)`` to ``(B, parallel * n_params)``. It should start
            at the identity, as one that ends in :class:`~spatial_transformer.Regression` does.
        transform: family of transformations.
        output_size: ``(H', W')``, or ``(D', H', W')``. None keeps the size of the input.
        mode: as for :func:`~spatial_transformer.sample`.
        fill: as for :func:`~spatial_transformer.sample`.
        parallel: number of transformers.
        antialias: as for :func:`~spatial_transformer.sample`.
        second_order: as for :func:`~spatial_transformer.sample`.

    Raises:
        TypeError: transform is not a :class:`~spatial_transformer.transformer.Transform`, or fill
            is not numeric.
        ValueError: another argument is out of range.
    """

    def __init__(
        self,
        localisation: nn.Module,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        mode: str = "bilinear",
        fill: float | Sequence[float] = 0.0,
        parallel: int = 1,
        antialias: bool = False,
        second_order: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(transform, Transform):
            raise TypeError(f"transform must be an object such as Affine(), got {transform}")
        if output_size is not None:
            output_size = (output_size,) if isinstance(output_size, int) else tuple(output_size)
            if len(output_size) != transform.dims or any(n < 1 or n % 1 for n in output_size):
                raise ValueError(
                    f"output_size must be {transform.dims} positive integers, got {output_size}"
                )
        check_mode(mode, antialias)
        if parallel < 1:
            raise ValueError(f"parallel must be at least 1, got {parallel}")
        if mode == "nearest" and any(p.requires_grad for p in localisation.parameters()):
            message = (
                "mode='nearest' has no gradient for theta: the localisation network cannot train."
            )
            warnings.warn(message, stacklevel=2)
        self.localisation = localisation
        self.transform = transform
        self.output_size = output_size
        self.mode = mode
        self.fill = tuple(fill_values(fill))
        self.parallel = parallel
        self.antialias = antialias
        self.second_order = second_order
        self.basis: Tensor | None
        self.register_buffer("basis", None, persistent=False)
        self._store_basis(torch.device("cpu"))

    def _store_basis(self, device: torch.device) -> None:
        """Store the basis of the output size, so that exported programs do not compute it."""
        if self.output_size is not None:
            dtype = grid_dtype(torch.float32, device)
            basis = self.transform.basis(self.output_size, dtype, device)
            self.basis = basis if basis.nbytes <= MAX_CACHE_BYTES else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpatialTransformer:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.basis is not None:  # rounded by a cast, or emptied by to_empty
            self._store_basis(self.basis.device)
        return self

    def forward(
        self, x: Tensor, return_theta: bool = False, theta: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Warp ``x``.

        Args:
            x: ``(B, C, H, W)``, or ``(B, C, D, H, W)`` for a transform in three dimensions.
            return_theta: also return theta in float32 (float64 for a float64 network).
            theta: ``(B, parallel * n_params)``, which replaces that of the localisation network.

        Returns:
            ``(B, C, H', W')``, and theta ``(B, n_params)`` on request. With n transformers in
            parallel, outputs are concatenated to ``(B, n C, H', W')`` and theta is
            ``(B, n, n_params)``.

        Raises:
            ValueError: theta has the wrong shape.
        """
        name = "output of the localisation network" if theta is None else "theta"
        theta = self.localisation(x) if theta is None else theta
        expected = (x.shape[0], self.parallel * self.transform.n_params)
        if theta.shape != expected:
            needs = f"{expected} for {self.parallel} x {self.transform}"
            raise ValueError(f"{name} must be {needs}, got {tuple(theta.shape)}")
        theta = theta if theta.dtype == torch.float64 else theta.float()
        if self.parallel == 1:
            out = self._warp(x, theta)
        else:
            thetas = theta.chunk(self.parallel, dim=1)
            out = torch.cat([self._warp(x, one) for one in thetas], dim=1)
            theta = torch.stack(thetas, dim=1)
        return (out, theta) if return_theta else out

    def _warp(self, x: Tensor, theta: Tensor) -> Tensor:
        basis = self.basis
        if basis is not None and basis.dtype != grid_dtype(theta.dtype, theta.device):
            basis = None  # theta is float64
        grid = self.transform.grid(theta, self.output_size or x.shape[2:], basis)
        return sample(x, grid, self.mode, self.fill, self.antialias, self.second_order)

    def extra_repr(self) -> str:
        names = ("output_size", "mode", "fill", "parallel", "antialias", "second_order")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
