"""MNIST in all experiments of the paper: distorted, added, in volumes and for co-localisation."""

from .addition import MnistAdditionData
from .colocalisation import ColocalisationData
from .distorted import MnistData
from .registration import RegistrationData
from .rotated import RotatedMnistData
from .volumes import Mnist3dData

__all__ = [
    "ColocalisationData",
    "Mnist3dData",
    "MnistAdditionData",
    "MnistData",
    "RegistrationData",
    "RotatedMnistData",
]
