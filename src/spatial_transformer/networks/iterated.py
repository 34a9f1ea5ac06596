"""A transformer that refines its theta in several passes. Ours.

The localisation network sees its own output again and corrects it, as in inverse compositional
spatial transformers (Lin and Lucey 2017). All passes share its weights. Their thetas are composed,
and the image is sampled once.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..transformer import Transform, sample
from .localisation import ConvLocalisation, FcLocalisation
from .mnist import MnistNetwork


class IteratedLocalisation(nn.Module):
    """Apply a localisation network several times and compose the thetas.

    Args:
        localisation: module from ``(B, C, H, W)`` to ``(B, n_params)``.
        transform: family of transformations with ``compose``.
        passes: number of passes. With 1, theta is that of ``localisation``. You can change it after
            training.

    Raises:
        ValueError: there is no pass, or ``transform`` has no ``compose``.
    """

    def __init__(self, localisation: nn.Module, transform: Transform, passes: int) -> None:
        super().__init__()
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}.")
        if not transform.is_group:
            raise ValueError(f"Passes need a transform with compose, got {transform}.")
        self.localisation = localisation
        self.transform = transform
        self.passes = passes

    def forward(self, x: Tensor) -> Tensor:
        """Return theta of all passes together, ``(B, n_params)``, for images ``(B, C, H, W)``."""
        theta: Tensor = self.localisation(x)
        for _ in range(self.passes - 1):
            warped = sample(x, self.transform.grid(theta, x.shape[2:]))
            theta = self.transform.compose(theta, self.localisation(warped))
        return theta


class IteratedMnistNetwork(MnistNetwork):
    """A network of Table 1 whose transformer has several passes, with the same parameter budget.

    Args:
        arch: as for :class:`.mnist.MnistNetwork`.
        size: as for :class:`.mnist.MnistNetwork`.
        transform: a family of transformations with ``compose``.
        passes: as for :class:`IteratedLocalisation`.
        options: other arguments of :class:`.mnist.MnistNetwork`.
    """

    def __init__(
        self, arch: str, size: int, transform: Transform, passes: int = 2, **options: Any
    ) -> None:
        kind = FcLocalisation if arch == "fcn" else ConvLocalisation
        localisation = IteratedLocalisation(kind((1, size, size), transform), transform, passes)
        super().__init__(arch, size, transform, localisation=localisation, **options)
