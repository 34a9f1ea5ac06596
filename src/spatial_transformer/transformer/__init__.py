"""Section 3 of the paper in plain PyTorch: transformations, sampler, localisation networks and the module of the three.

Nothing here knows the rest of the project; the folder can be lifted out and used alone.
"""

from .localisation import ConvLocalisation, FcLocalisation, JoinedLocalisation, Regression
from .sampler import sample
from .spatial_transformer import SpatialTransformer, localisation_networks
from .transforms import Affine, Affine3d, Attention, Projective, ThinPlateSpline, Transform, pixel_centres

__all__ = [
    "Affine",
    "Affine3d",
    "Attention",
    "ConvLocalisation",
    "FcLocalisation",
    "JoinedLocalisation",
    "Projective",
    "Regression",
    "SpatialTransformer",
    "ThinPlateSpline",
    "Transform",
    "localisation_networks",
    "pixel_centres",
    "sample",
]
