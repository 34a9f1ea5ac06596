"""A network that warps one image onto another. Ours."""

from __future__ import annotations

from torch import Tensor, nn

from ..transformer import SpatialTransformer, Transform
from .localisation import FcLocalisation


class RegistrationNetwork(nn.Module):
    """A spatial transformer whose localisation network sees a fixed and a moving image.

    Args:
        size: height and width of the images in pixels.
        transform: family of transformations.
        hidden: units of each hidden layer of the localisation network.
    """

    def __init__(
        self, size: int, transform: Transform, hidden: tuple[int, ...] = (256, 128, 64)
    ) -> None:
        super().__init__()
        localisation = FcLocalisation((2, size, size), transform, hidden)
        self.transformer = SpatialTransformer(localisation, transform, (size, size))

    def forward(self, pair: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return the moving image warped onto the fixed one, ``(B, 1, H, H)``.

        Args:
            pair: ``(B, 2, H, H)`` in [0, 1]: the fixed and the moving image.
            theta: ``(B, n_params)``, which replaces that of the localisation network.
        """
        theta = self.transformer.localisation(pair) if theta is None else theta
        warped: Tensor = self.transformer(pair[:, 1:], theta=theta)
        return warped
