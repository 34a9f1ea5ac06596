"""The spatial transformer: localisation network, grid generator, sampler (section 3, figure 2 of the paper)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .sampler import MODES, fill_values, sample
from .transforms import MAX_CACHE_BYTES, Transform, basis_dtype


class SpatialTransformer(nn.Module):
    """Warp the input by a transformation that is inferred from the input itself.

    Put several in a row, or at any depth of a network, as any other layer. With ``parallel`` = n, the localisation network
    regresses n thetas at once, and n transformers read the same input.

    Args:
        localisation: module from ``(B, C, H, W)`` to ``(B, parallel * n_params)`` that starts at the identity, as one that ends
            in a :class:`~spatial_transformer.Regression` does.
        transform: the family of transformations.
        output_size: ``(H', W')``, or ``(D', H', W')``; None keeps the size of the input.
        mode, fill, antialias, second_order: as for :func:`~spatial_transformer.sample`.
        parallel: number of transformers.

    Raises:
        TypeError, ValueError: sizes, mode, fill or ``parallel`` out of range; in ``forward``, a theta of another shape.
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
        if output_size is not None:
            output_size = (output_size,) if isinstance(output_size, int) else tuple(output_size)
            if len(output_size) != transform.dims or min(output_size) < 1:
                raise ValueError(
                    f"output_size must be {transform.dims} positive sizes, got {output_size}"
                )
        if mode not in (modes := MODES[:1] if antialias else MODES):
            raise ValueError(
                f"mode must be one of {', '.join(modes)}{' with antialias' * antialias}, got {mode!r}"
            )
        if parallel < 1:
            raise ValueError(f"parallel must be at least 1, got {parallel}")
        if mode == "nearest" and any(p.requires_grad for p in localisation.parameters()):
            warnings.warn(
                "mode='nearest' has no gradient for theta: the localisation network will not train.",
                stacklevel=2,
            )
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
        """Store the basis of the output size, so that neither a call nor an exported program computes it."""
        if self.output_size is not None:
            basis = self.transform.basis(self.output_size, torch.float32, device)
            self.basis = basis if basis.nbytes <= MAX_CACHE_BYTES else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpatialTransformer:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.basis is not None:  # a cast has rounded it, or to_empty has emptied it
            self._store_basis(self.basis.device)
        return self

    def forward(
        self, x: Tensor, return_theta: bool = False, theta: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Warp ``x``.

        Args:
            x: ``(B, C, H, W)``, or ``(B, C, D, H, W)`` for a transform in three dimensions.
            return_theta: also return theta, float32 (float64 for a float64 network).
            theta: ``(B, parallel * n_params)`` to warp by, in the place of the localisation network's.

        Returns:
            ``(B, C, H', W')``, and ``(B, n_params)`` on demand. With n transformers in parallel: their outputs side by side as
            channels, ``(B, n C, H', W')``, and ``(B, n, n_params)``.
        """
        name = "output of the localisation network" if theta is None else "theta"
        theta = self.localisation(x) if theta is None else theta
        expected = (x.shape[0], self.parallel * self.transform.n_params)
        if theta.shape != expected:
            raise ValueError(
                f"{name} must be {expected} for {self.parallel} x {self.transform}, got {tuple(theta.shape)}"
            )
        theta = theta if theta.dtype == torch.float64 else theta.float()
        thetas = theta.chunk(self.parallel, dim=1)
        outputs = [self._warp(x, one) for one in thetas]
        out, theta = (
            (outputs[0], theta)
            if self.parallel == 1
            else (torch.cat(outputs, 1), torch.stack(thetas, 1))
        )
        return (out, theta) if return_theta else out

    def _warp(self, x: Tensor, theta: Tensor) -> Tensor:
        dtype = basis_dtype(theta.dtype, theta.device)
        basis = (
            self.basis if self.basis is not None and self.basis.dtype == dtype else None
        )  # it is for a float32 theta
        grid = self.transform.grid(theta, self.output_size or x.shape[2:], basis)
        return sample(x, grid, self.mode, self.fill, self.antialias, self.second_order)

    def extra_repr(self) -> str:
        names = ("output_size", "mode", "fill", "parallel", "antialias", "second_order")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
