"""Entries for torch.hub: torch.hub.load(REPOSITORY, "st_cnn_mnist").

They need only PyTorch and NumPy. The files in checkpoints/ contain the weights of the pretrained
networks, and the configuration and the result of their runs.
"""

import sys
from pathlib import Path as _Path  # torch.hub lists public callables as entries

from torch import nn

dependencies = ["torch"]

_DIRECTORY = _Path(__file__).resolve().parent
_SIZE = 42  # height and width of an RTS image in pixels
sys.path.insert(0, str(_DIRECTORY / "src"))  # torch.hub installs nothing


def st_cnn_mnist(pretrained: bool = True) -> nn.Module:
    """Build ST-CNN for rotated, scaled and translated digits (RTS in Table 1 of the paper).

    It has one affine transformer. It maps ``(B, 1, 42, 42)`` images in [0, 1], light ink on black,
    to ``(B, 10)`` logits. ``network.transformer(images, return_theta=True)`` returns the crops and
    theta.

    Args:
        pretrained: load the trained weights and set evaluation mode. False returns a network with
            random weights in training mode.
    """
    return _build("cnn", "st_cnn_mnist.pt", pretrained)


def st_fcn_mnist(pretrained: bool = True) -> nn.Module:
    """Build ST-FCN for the same digits, with the same inputs and outputs.

    Args:
        pretrained: as for :func:`st_cnn_mnist`.
    """
    return _build("fcn", "st_fcn_mnist.pt", pretrained)


def cnn_mnist(pretrained: bool = True) -> nn.Module:
    """Build the CNN without a transformer for the same digits, with the same inputs and outputs.

    It was trained for 8,000 steps, st_cnn_mnist for 15,000.

    Args:
        pretrained: as for :func:`st_cnn_mnist`.
    """
    return _build("cnn", "cnn_mnist.pt", pretrained, has_transformer=False)


def spatial_transformer(
    in_shape: tuple[int, int, int],
    transform: str = "Affine",
    output_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Build an untrained spatial transformer with the localisation network of the paper's ST-FCN.

    It maps ``(B, *in_shape)`` to ``(B, C, *output_size)`` and starts as the identity.

    Args:
        in_shape: channels, height and width of its input.
        transform: Affine, Attention, Projective or ThinPlateSpline.
        output_size: height and width of its output. None keeps those of the input.

    Raises:
        ValueError: the transform is unknown.
    """
    import spatial_transformer as package

    families = ("Affine", "Attention", "Projective", "ThinPlateSpline")
    if transform not in families:
        raise ValueError(f"transform must be one of {', '.join(families)}, got {transform!r}.")
    family = getattr(package, transform)()
    localisation = package.FcLocalisation(in_shape, family)
    return package.SpatialTransformer(localisation, family, output_size)


def _build(arch: str, file: str, pretrained: bool, has_transformer: bool = True) -> nn.Module:
    """Build a network of Table 1, by default with an affine transformer, and load its weights."""
    from spatial_transformer import Affine
    from spatial_transformer.networks.mnist import MnistNetwork
    from spatial_transformer.utils.serialization import load_tensors

    transform, pool = (Affine(), None) if has_transformer else (None, 1)
    network = MnistNetwork(arch, _SIZE, transform, pool=pool)
    if pretrained:
        weights = load_tensors(_DIRECTORY / "checkpoints" / file)["state_dict"]
        # In a checkpoint the network is an attribute of its task.
        weights = {name.removeprefix("network."): value for name, value in weights.items()}
        network.load_state_dict(weights)
        network.eval()
    return network
