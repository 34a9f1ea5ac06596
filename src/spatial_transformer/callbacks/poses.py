"""Whether a transformer brings what it reads to one pose, and of which object, measured by where the objects are."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..transformer import SpatialTransformer, Transform
from ..transformer.transforms import pixel_centres

_LATTICE = 8  # points along each side of the output at which poses are compared


class Poses(pl.Callback):
    """After the test: how far a digit in a transformer's output lies from its usual pose there (appendix A.1 of the paper).

    The data module gives ``poses(split, index)``, ``(B, C, 2, 3)``: for each channel the matrix from pixels of the image to
    pixels of the digit, both from the centre. A transformer that resolves a channel gives its digit in one and the same pose,
    whatever the distortion was.

    Logged
        ``test/pose_K_C``: median over the samples of the distance, in pixels of the digit, between where transformer K reads
        channel C's digit and where it mostly does; ``test/pose_input_C``: the same in the image.
        ``test/resolves_first_K``: percentage of the samples of which transformer K brings the first channel's digit closer to
        its usual pose than the second's.
    """

    def __init__(self) -> None:
        self._thetas: list[Tensor] = []
        self._hook: RemovableHandle | None = None

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        transformers = [module for module in pl_module.network.modules() if isinstance(module, SpatialTransformer)]
        self._transformer = transformers[0] if len(transformers) == 1 and trainer.world_size == 1 else None
        if self._transformer is not None:  # a sample's place in the test set is known on one device only
            self._thetas = []
            self._hook = self._transformer.localisation.register_forward_hook(self._keep_theta)

    def _keep_theta(self, module: nn.Module, args: tuple, theta: Tensor) -> None:
        self._theta = theta.float()

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if self._hook is not None:  # not in the hook: other callbacks run the network for their pictures
            self._thetas.append(self._theta)

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        if self._hook is None or self._transformer is None:
            return
        self._hook.remove()
        self._hook = None
        transform, data = self._transformer.transform, trainer.datamodule
        theta = torch.cat(self._thetas)
        poses = data.poses("test", torch.arange(len(theta), device=theta.device))
        identity = transform.identity().to(theta.device).expand(len(theta), -1)
        figures = {}
        for name, of_one in zip(
            ["input", *(str(k + 1) for k in range(self._transformer.parallel))],
            [identity, *theta.chunk(self._transformer.parallel, dim=1)],
            strict=True,
        ):
            distances = distances_to_usual_pose(transform, of_one, poses, data.input_size)
            for channel, values in enumerate(distances.unbind(1), start=1):
                figures[f"test/pose_{name}_{channel}"] = values.median()
            if name != "input":
                figures[f"test/resolves_first_{name}"] = 100 * (distances[:, 0] < distances[:, 1]).float().mean()
        pl_module.log_dict(figures)


def distances_to_usual_pose(transform: Transform, theta: Tensor, poses: Tensor, size: int) -> Tensor:
    """How far each digit lies from its usual pose in the output of a transformer: ``(B, C)``, in pixels of the digit.

    The pose is where points of the output are read in the digit; the usual one is their median over the samples; the
    distance is the root mean square over the points.

    Args:
        transform: the family of transformations.
        theta: ``(B, n_params)``.
        poses: ``(B, C, 2, 3)``, from pixels of the image to pixels of the digit, both from the centre.
        size: height and width of the image in pixels.
    """
    points = pixel_centres((_LATTICE, _LATTICE), torch.float32).T.to(theta.device)
    read = transform(theta, points) * (size / 2)
    read = torch.cat([read, torch.ones_like(read[..., :1])], dim=2)
    in_digit = read[:, None] @ poses.mT  # (B, C, points, 2)
    usual = in_digit.median(dim=0).values
    return (in_digit - usual).square().sum(dim=-1).mean(dim=-1).sqrt()
