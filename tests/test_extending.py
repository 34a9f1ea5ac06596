"""What docs/extending.md tells to write works as it stands there."""

import re

import pytorch_lightning as pl
import torch
from conftest import REPOSITORY
from torch.optim import AdamW

from spatial_transformer import SpatialTransformer
from spatial_transformer.tasks.classification import Classification


def test_its_transform_network_and_data_set_train_together():
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "extending.md").read_text(), re.S)
    assert len(blocks) == 3
    there = {}
    exec("\n".join(blocks), there)
    similarity, data = there["Similarity"](), there["Bars"]()
    images, labels = data.samples("val", torch.arange(50))
    assert torch.equal(images.sum(dim=(1, 3))[labels == 1], torch.ones(25, 28)), "an upright bar has a pixel in each row"
    torch.manual_seed(0)
    network = there["small_cnn"](data.input_size, similarity, classes=data.classes)
    transformer = next(module for module in network.modules() if isinstance(module, SpatialTransformer))
    assert torch.equal(transformer(images), images), "a similarity starts as the identity"
    quarter_turn = similarity.grid(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), (28, 28))
    turned = torch.nn.functional.grid_sample(images[:1], quarter_turn, align_corners=False)
    torch.testing.assert_close(turned, images[:1].rot90(1, (2, 3)), atol=1e-5, rtol=0)
    task = Classification(network, lambda groups: AdamW(groups, lr=3e-3))
    trainer = pl.Trainer(
        max_steps=60, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, data)
    assert trainer.test(task, data, verbose=False)[0]["test/error"] < 5
