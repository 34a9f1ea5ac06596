"""Entries for torch.hub: torch.hub.load(REPOSITORY, "st_cnn_mnist"), with source="local" for a folder.

The weights are files in checkpoints/. Each holds its configuration, and its record with the test error, too.
"""

import sys
from pathlib import Path as _Path  # public names are entries

from torch import nn

dependencies = [
    "torch",
    "torchvision",
    "pytorch_lightning",
    "torchmetrics",
    "hydra",
    "omegaconf",
    "pydantic",
    "yaml",
    "numpy",
    "PIL",
]

_HERE = _Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE / "src"))  # torch.hub installs nothing


def st_cnn_mnist(pretrained: bool = True) -> nn.Module:
    """ST-CNN with an affine transformer, for digits that are turned, scaled and moved (RTS of Table 1).

    It takes ``(B, 1, 42, 42)`` images in [0, 1], light ink on black, to ``(B, 10)`` logits.

    Args:
        pretrained: with trained weights; False starts from chance.
    """
    return _network("st_cnn_mnist.pt", pretrained)


def st_fcn_mnist(pretrained: bool = True) -> nn.Module:
    """ST-FCN, likewise.

    Args:
        pretrained: as for :func:`st_cnn_mnist`.
    """
    return _network("st_fcn_mnist.pt", pretrained)


def spatial_transformer(
    in_shape: tuple[int, int, int], transform: str = "Affine", output_size: tuple[int, int] | None = None
) -> nn.Module:
    """An untrained spatial transformer, with the fully connected localisation network of the paper's ST-FCN, to put anywhere.

    It takes ``(B, *in_shape)`` to ``(B, C, *output_size)`` and starts as the identity.

    Args:
        in_shape: channels, height and width of what it is put before.
        transform: Affine, Attention, Projective or ThinPlateSpline.
        output_size: height and width of its output; None keeps those of the input.

    Raises:
        ValueError: another transform.
    """
    import spatial_transformer as package
    from spatial_transformer.transformer import FcLocalisation

    families = ("Affine", "Attention", "Projective", "ThinPlateSpline")
    if transform not in families:
        raise ValueError(f"transform must be one of {', '.join(families)}, got {transform!r}")
    family = getattr(package, transform)()
    return package.SpatialTransformer(FcLocalisation(in_shape, family), family, output_size)


def _network(file: str, pretrained: bool) -> nn.Module:
    from spatial_transformer.building import build, load_trained

    trained = load_trained(_HERE / "checkpoints" / file)
    return trained.task.network if pretrained else build(trained.config)[1].network
