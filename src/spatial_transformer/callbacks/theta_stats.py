"""Statistics of theta, and the base class of callbacks that measure theta after the test."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..data.base import gather_in_order
from ..networks.localisation import localisation_networks
from ..transformer import Attention, SpatialTransformer, ThetaRecorder, ThinPlateSpline, Transform
from .base import CollectingCallback


class ThetaStatistics(pl.Callback):
    """Log statistics of theta over the validation set.

    Logged:
        ``theta/mean_k`` and ``theta/std_k`` of each parameter. ``theta/outside``, the fraction of
        points read outside the image. ``localisation/gradient_norm`` in training. To the loggers
        alone, and not among the metrics of the result: those of :func:`describe_theta`, such as
        ``theta/rotation``. Of several transformers, in a row or parallel, the second has
        ``theta_2/...``, and so on.
    """

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._recorder = ThetaRecorder(pl_module.network)
        self._batches: list[list[Tensor]] = []

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        self._batches.append(_latest(self._recorder))

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self._recorder.close()
        thetas: list[tuple[SpatialTransformer, Tensor]] = []
        for transformer, parts in zip(self._recorder.transformers, zip(*self._batches)):
            thetas += [(transformer, theta) for theta in gather_in_order(parts).unbind(1)]
        metrics, described = {}, {}
        for n, (transformer, theta) in enumerate(thetas, start=1):
            name = "theta" if n == 1 else f"theta_{n}"
            std, mean = torch.std_mean(theta, dim=0, correction=0)
            for k in range(len(mean)):
                metrics[f"{name}/mean_{k}"], metrics[f"{name}/std_{k}"] = mean[k], std[k]
            # All points of a large crop would take long and give the same fraction.
            dims = transformer.transform.dims
            coarse = 32 if dims == 2 else 10
            size = [min(side, coarse) for side in transformer.output_size or (coarse,) * dims]
            outside = (transformer.transform.grid(theta, size).abs() > 1).any(dim=-1)
            metrics[f"{name}/outside"] = outside.float().mean()
            for key, value in describe_theta(transformer.transform, theta).items():
                described[f"{name}/{key}"] = value
        pl_module.log_dict(metrics, sync_dist=True)
        if described and not trainer.sanity_checking:
            for logger in trainer.loggers:  # Lightning gives rows the number of steps before
                logger.log_metrics(described, step=trainer.global_step - 1)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if not pl_module.should_log:
            return
        networks = localisation_networks(pl_module.network)
        gradients = [p.grad for net in networks for p in net.parameters() if p.grad is not None]
        if gradients:
            # With float16 a fused optimizer removes the scale of the loss only within its step.
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
            scale = scaler.get_scale() if scaler and is_fused else 1
            norm = torch.nn.utils.get_total_norm(gradients) / scale
            pl_module.log("localisation/gradient_norm", norm)


def describe_theta(transform: Transform, theta: Tensor) -> dict[str, float]:
    """Return how a transform scales, rotates and shifts, over some samples.

    Every value is a root mean square. Those of the identity are 1 for scales and 0 for the others.
    An axis of the output is measured between the middles of two opposite edges of the crop.

    Args:
        transform: the family of transformations.
        theta: ``(B, n_params)``.

    Returns:
        For a thin plate spline "displacement", how far points move, in units of half the image.
        For a window of fixed scale "shift", how far the centre moves, in the same units. For any
        window also "scale". For other families of two dimensions "scale_x", "scale_y", "shift" and
        "rotation", in degrees clockwise on the screen. In three dimensions "scale_z" as well, and
        no "rotation".
    """
    if isinstance(transform, ThinPlateSpline):
        return {
            "displacement": _rms(
                (theta - transform.identity().to(theta)).view(len(theta), 2, -1).norm(dim=1)
            )
        }
    axes = torch.eye(transform.dims, device=theta.device)
    ends = transform(theta, torch.cat([axes, -axes])).unflatten(1, (2, -1))
    centre = transform(theta, torch.zeros_like(axes[:1]))
    along = (ends[:, 0] - ends[:, 1]) / 2  # (B, axes, dims)
    values = {"shift": _rms(centre.norm(dim=2))}
    scales = along.norm(dim=2)
    if isinstance(transform, Attention):
        return values | ({"scale": _rms(scales)} if transform.scale is None else {})
    values |= {f"scale_{axis}": _rms(scale) for axis, scale in zip("xyz", scales.unbind(1))}
    if transform.dims == 2:
        (xx, xy), (yx, yy) = along.movedim(0, 2)
        values["rotation"] = _rms(torch.atan2(xy - yx, xx + yy).rad2deg())
    return values


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _latest(recorder: ThetaRecorder) -> list[Tensor]:
    """Return theta of the latest batch for each transformer, ``(B, parallel, n_params)``.

    It is read after each batch, as other callbacks run the network for their images. It is empty
    for a network that has not used all its transformers.
    """
    if len(recorder.latest) < len(recorder.transformers):
        return []
    return [recorder.latest[t].unflatten(1, (t.parallel, -1)) for t in recorder.transformers]


class ThetaTestCallback(CollectingCallback):
    """Base class: measure, after the test, what the only transformer of a network did.

    Networks without a transformer or with several in a row are skipped.
    """

    @abstractmethod
    def measure(
        self, trainer: Any, pl_module: Any, transformer: SpatialTransformer, thetas: Tensor
    ) -> None:
        """Log metrics of ``thetas``, ``(N, parallel, n_params)`` on the CPU, of the test samples.

        In a short test they are the first N of the set. It is called in every process. Only the
        first one may write files.
        """

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        super().on_test_epoch_start(trainer, pl_module)
        self._recorder = ThetaRecorder(pl_module.network)

    def collect(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        return _latest(self._recorder)

    def on_test_collected(self, trainer, pl_module, *collected) -> None:
        self._recorder.close()
        if len(collected) == 1:
            transformer = self._recorder.transformers[0]
            self.measure(trainer, pl_module, transformer, collected[0].cpu())
