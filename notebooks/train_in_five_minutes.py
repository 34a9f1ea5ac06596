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
# # Train in five minutes
#
# We train an ST-FCN, an affine spatial transformer in front of a fully connected network, on MNIST
# digits that are rotated, scaled and translated. The network gets only the class labels, so it has
# to learn for itself where the digits are.
#
# MNIST is read from `data/`, to which it is downloaded if it is missing. If you have it elsewhere,
# set `DATA_ROOT` to the directory that contains `MNIST/raw`.

# %%
import logging
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Image, display

from spatial_transformer.inference.load import load_trained
from spatial_transformer.training.config import compose_config
from spatial_transformer.training.runner import train

logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)  # print the progress
os.chdir(
    next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").is_file())
)
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# 600 steps take about a minute on a CPU. `make train` runs 7,000 steps, and most runs in our tables
# have 15,000 or more.

# %%
STEPS = int(os.environ.get("STEPS", 600))
DATA_ROOT = os.environ.get("DATA_ROOT")  # None means data/
RUN = Path(os.environ.get("RUN", "runs/notebook"))

# %% [markdown]
# ## Configure
#
# The settings are the same as on the command line: `python train.py experiment=mnist
# data.distortion=rts model=st_fcn ...`. With `ckpt_path=null` the run starts over each time.

# %%
config = compose_config(
    Path("conf"),
    "experiment=mnist",
    "data.distortion=rts",
    "model=st_fcn",
    "transform=affine",
    f"data.root={DATA_ROOT or 'null'}",
    f"trainer.max_steps={STEPS}",
    "recipe.validate_every=250",
    "ckpt_path=null",
    "logger=csv",
    f"run_dir={RUN}",
)
print(
    f"{config.label}: {config.trainer.max_steps} steps with batch size {config.recipe.batch_size}"
)

# %% [markdown]
# ## Train
#
# A run includes validation and the final test, and writes images of the crops to `crops/`.

# %%
result = train(config)
print(f"test error {result['metrics']['test/error']:.2f} % after {result['steps']:,} steps")

# %% [markdown]
# ## Crops before and after training
#
# The upper image is the input with the sampled region in green (top edge in red). The lower image
# is the crop that the classifier receives. Before training, the crop is the whole input.

# %%
crops = sorted((RUN / "crops").glob("crops_*.png"))
for path in (crops[0], crops[-1]):
    print(path.stem)
    display(Image(filename=str(path)))

# %% [markdown]
# ## Mean image of each class
#
# If a transformer brings all digits of a class to the same pose, their mean is sharp. To see this,
# we load the network from its run directory, as `evaluate.py` does, and average a thousand test
# digits.

# %%
trained = load_trained(RUN)
trained.data.setup()
images, labels = trained.data.samples("test", torch.arange(1000))
with torch.no_grad():
    crops = trained.task.network.transformer(images)
figure, rows = plt.subplots(2, 10, figsize=(10, 2.3), layout="constrained")
for row, pictures in zip(rows, (images, crops)):
    for digit, axes in enumerate(row):
        axes.imshow(pictures[labels == digit].mean(0)[0], cmap="gray")
        axes.axis("off")
title = f"mean test digit of each class: inputs (above) and crops (below) after {STEPS:,} steps"
figure.suptitle(title, fontsize=9)
plt.show()

# %% [markdown]
# The lower row becomes sharper with more steps. To plot the learning curves of this run, see the
# notebook `reading_results`.
