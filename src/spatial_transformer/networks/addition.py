"""The networks of MNIST addition (appendix A.1 of the paper): FCN, CNN, ST-FCN and 2 x ST-FCN on images of two channels.

Layers, localisation networks and the budget are those of Table 1 (:mod:`.mnist`), as is the pooling behind transformers. Each
transformer reads both channels and warps both; two of them, in parallel, give four channels to the classifier.
"""

from __future__ import annotations

from ..transformer import SpatialTransformer, Transform
from .localisation import FcLocalisation, JoinedLocalisation
from .mnist import BUDGET, MnistNetwork, at_width, cnn_layers, fcn_layers, pooling

CHANNELS = 2
"""One for each digit."""
MOST = 16
"""Parallel transformers: more than that would be a mistake. The paper has two."""


def fcn(
    size: int,
    width: int | None = None,
    pool: int | None = None,
    dropout: float = 0.0,
    classes: int = 19,
    budget: int = BUDGET,
) -> MnistNetwork:
    """FCN on two channels.

    Args:
        pool: average pooling of the image; None for none, unlike Table 1's (docs/addition.md).
        size, width, dropout, classes, budget: as for :func:`.mnist.fcn`.

    Raises:
        ValueError: a pooling larger than the image, or no width within the budget.
    """
    by = pooling(1 if pool is None else pool, size)
    return at_width(
        width, budget, lambda units: MnistNetwork(fcn_layers(size // by, units, dropout, classes, CHANNELS), pool=by)
    )


def cnn(size: int, width: int | None = None, dropout: float = 0.0, classes: int = 19, budget: int = BUDGET) -> MnistNetwork:
    """CNN on two channels.

    Args: as for :func:`.mnist.cnn`.
    """
    return at_width(width, budget, lambda filters: MnistNetwork(cnn_layers(size, filters, dropout, classes, CHANNELS)))


def st_fcn(
    size: int,
    transform: Transform,
    transformers: int = 1,
    width: int | None = None,
    pool: int = 2,
    dropout: float = 0.0,
    classes: int = 19,
    budget: int = BUDGET,
) -> MnistNetwork:
    """ST-FCN, or n x ST-FCN: transformers in parallel on the input, each with a localisation network of its own, then FCN.

    Args:
        size: height and width of the image in pixels; each transformer's output has the same.
        transform: the family of transformations.
        transformers: how many, 1 or 2 in the paper.
        width: units of both hidden layers of the FCN; None solves it from the budget.
        pool: average pooling after the transformers; by 2, as for RTS in Table 1 (ours: A.1 does not say).
        dropout, classes, budget: as for :func:`.mnist.fcn`.

    Raises:
        ValueError: no transformer or more than :data:`MOST`, a pooling larger than the image, or no width within the budget.
    """
    if not 1 <= transformers <= MOST:
        raise ValueError(f"transformers must be from 1 to {MOST}, got {transformers}")
    pool = pooling(pool, size)

    def build(width: int) -> MnistNetwork:
        shape = CHANNELS, size, size
        localisation = JoinedLocalisation(FcLocalisation(shape, transform) for _ in range(transformers))
        transformer = SpatialTransformer(localisation, transform, (size, size), parallel=transformers)
        layers = fcn_layers(size // pool, width, dropout, classes, CHANNELS * transformers)
        return MnistNetwork(layers, transformer, pool)

    return at_width(width, budget, build)
