from functools import partial

import pytest
import pytorch_lightning as pl
import torch

from spatial_transformer.geometry import box_to_theta
from spatial_transformer.networks.colocalisation import Colocalisation
from spatial_transformer.tasks import colocalisation
from spatial_transformer.tasks.colocalisation import ColocalisationTask, paired_iou, triplet_loss
from spatial_transformer.transformer import Attention


def make_task(lr=0.1, **settings):
    network = Colocalisation(84, Attention())
    return ColocalisationTask(network, partial(torch.optim.SGD, lr=lr), **settings)


@pytest.mark.parametrize("margin", [1.0, 0.1])
def test_triplet_loss_is_the_mean_over_pairs(margin):
    crops, random = torch.randn(5, 7) / 2, torch.randn(5, 7) / 2
    terms = torch.stack(
        [
            (crops[n] - crops[m]).square().sum() - (crops[n] - random[n]).square().sum() + margin
            for n in range(5)
            for m in range(5)
            if m != n
        ]
    )
    assert (terms <= 0).any()  # or the hinge would not be tested
    torch.testing.assert_close(triplet_loss(crops, random, margin), terms.relu().mean())


def test_paired_iou():
    box = [0.0, 0, 28, 28]
    others = torch.tensor([box, [14.0, 0, 42, 28], [0, 0, 14, 14], [28, 0, 56, 28], [7, 7, 35, 35]])
    iou = paired_iou(box_to_theta(torch.tensor([box] * 5), 84), box_to_theta(others, 84))
    assert iou.tolist() == pytest.approx([1, 1 / 3, 1 / 4, 0, 441 / 1127], abs=1e-5)


def test_images_are_found_above_half_an_overlap():
    box = torch.tensor([[0.0, 0, 28, 28], [0, 0, 28, 28]])
    near = torch.tensor([[0.0, 9, 28, 37], [0, 10, 28, 38]])  # 19 and 18 of 28 rows overlap
    errors = make_task().per_sample_errors(box_to_theta(near, 84), box_to_theta(box, 84))
    assert errors["error"].tolist() == [0, 100]
    assert errors["overlap"].tolist() == pytest.approx([100 * 19 / 37, 100 * 18 / 38])


class GradientRecorder(pl.Callback):
    """Record the freedom of the windows and the gradient of theta at each step."""

    def __init__(self):
        self.freedom, self.gradients = [], []

    def on_after_backward(self, trainer, pl_module):
        self.freedom.append(pl_module.network.windows.freedom.item())
        regression = pl_module.network.transformer.localisation[-2]
        self.gradients.append(regression.bias.grad.clone())


def test_training_has_two_stages_and_leaves_the_encoder_unchanged(monkeypatch):
    # With so large a margin, all pairs have a gradient. Large steps would end at a bound.
    task = make_task(lr=1e-4, margin=1e3)
    encoder = {name: value.clone() for name, value in task.network.encoder.state_dict().items()}
    monkeypatch.setattr(colocalisation, "load_or_train_encoder", lambda root, cache: encoder)
    batches = [(torch.rand(6, 1, 84, 84), torch.zeros(6, 3))] * 10
    recorder = GradientRecorder()
    trainer = pl.Trainer(
        max_steps=10,
        accelerator="cpu",
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=None))
    assert recorder.freedom == pytest.approx([0, 0, 0, 0, 0, 0, 0.5, 1, 1, 1])
    scale, places = torch.stack(recorder.gradients).split([1, 2], dim=1)
    assert (scale.flatten() != 0).tolist() == [False] * 6 + [True] * 4
    assert (places != 0).all()
    assert all(
        torch.equal(value, encoder[n]) for n, value in task.network.encoder.state_dict().items()
    )
