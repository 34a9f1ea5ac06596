"""Section 3 of the paper in plain PyTorch. You can copy this directory and use it on its own."""

from .recorder import ThetaRecorder as ThetaRecorder
from .recorder import find_transformers as find_transformers
from .sampler import sample as sample
from .spatial_transformer import SpatialTransformer as SpatialTransformer
from .transforms import Affine as Affine
from .transforms import Affine3d as Affine3d
from .transforms import Attention as Attention
from .transforms import Projective as Projective
from .transforms import ThinPlateSpline as ThinPlateSpline
from .transforms import Transform as Transform
from .transforms import pixel_centres as pixel_centres
