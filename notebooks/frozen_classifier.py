# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Four lines for your own frozen classifier
#
# A classifier of upright digits fails on rotated ones. To fix this, we put a spatial transformer in
# front of it and train only the localisation network. The classifier does not change, so without
# the transformer it reads upright digits as before. You can do the same with your own classifier
# if it is differentiable.
#
# MNIST is read from `data/`, to which it is downloaded if it is missing. If you have it elsewhere,
# set `DATA_ROOT` to the directory that contains `MNIST/raw`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from spatial_transformer import Affine, FcLocalisation, SpatialTransformer
from spatial_transformer.data.mnist.distorted import MnistData
from spatial_transformer.inference.load import load_trained
from spatial_transformer.networks.frozen import Frozen

REPOSITORY = next(
    folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").is_file()
)
STEPS = int(os.environ.get("STEPS", 1500))  # about half a minute on a CPU
DATA_ROOT = os.environ.get("DATA_ROOT") or REPOSITORY / "data"
torch.manual_seed(0)
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## The classifier before
#
# It was trained only on upright digits. The distortion R rotates digits by up to 90 degrees in
# either direction. Each test set has 10,000 digits.

# %%
upright = MnistData("t", canvas=28, root=DATA_ROOT)  # a canvas without room to move
rotated = MnistData("r", root=DATA_ROOT)
for data in (upright, rotated):
    data.prepare_data()
    data.setup()
classifier = load_trained(REPOSITORY / "checkpoints" / "fcn_upright.pt").task.network.eval()


@torch.no_grad()
def test_error(model, data):
    """Return the error on the test digits in percent."""
    model.eval()
    images, labels = data.samples("test", torch.arange(10_000))
    return 100 * (model(images).argmax(dim=1) != labels).float().mean().item()


print(f"upright {test_error(classifier, upright):.2f} %")
print(f"rotated {test_error(classifier, rotated):.2f} %")

# %% [markdown]
# ## The four lines

# %%
transform = Affine()
localisation = FcLocalisation((1, 28, 28), transform)
transformer = SpatialTransformer(localisation, transform)
model = nn.Sequential(transformer, Frozen(classifier))

# %% [markdown]
# ## Train
#
# This is an ordinary training loop. From the class labels, the transformer learns which poses the
# classifier can read.

# %%
optimizer = torch.optim.AdamW(localisation.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
model.train()
for step in range(STEPS):
    images, labels = rotated.samples("train", torch.randint(55_000, (256,)), epoch=step)
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

# %% [markdown]
# ## The classifier after

# %%
print(f"upright {test_error(model, upright):.2f} %, with the transformer")
print(f"upright {test_error(classifier, upright):.2f} %, without it, as before")
print(f"rotated {test_error(model, rotated):.2f} %, with the transformer")

# %%
images, labels = rotated.samples("test", torch.arange(10))
with torch.no_grad():
    outputs = transformer(images)
    before, after = (logits.argmax(dim=1) for logits in (classifier(images), model(images)))
figure, rows = plt.subplots(2, 10, figsize=(10, 2.6), layout="constrained")
for row, pictures, predictions in zip(rows, (images, outputs), (before, after)):
    for axes, picture, prediction, label in zip(row, pictures, predictions, labels):
        axes.imshow(picture[0], cmap="gray")
        axes.set_title(int(prediction), color="black" if prediction == label else "red")
        axes.set(xticks=[], yticks=[])
rows[0][0].set_ylabel("input")
rows[1][0].set_ylabel("output")
plt.show()

# %% [markdown]
# The titles are predictions, and wrong ones are red. `experiment=mnist_frozen` runs this experiment
# with ten times as many steps, and [its page](../docs/experiments/frozen.md) has the results.
