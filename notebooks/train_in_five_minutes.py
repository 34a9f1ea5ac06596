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
# A short run on distorted MNIST, configured as `train.py` configures it: digits that are turned, scaled and moved, and an
# ST-FCN, an affine transformer before a fully connected network. Nothing tells it where the digit is but the label.
#
# MNIST comes from `data/`, where `make train` has put it; if it is not there it is downloaded now. If you have it elsewhere,
# name the folder that holds `MNIST/raw` in `DATA_ROOT`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Image, display

from spatial_transformer.inference.load import load_trained
from spatial_transformer.training.config import compose_config
from spatial_transformer.training.runner import train

os.chdir(
    next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").is_file())
)
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# Parameters. 600 steps take a minute or less on a CPU; 7,000 are `make train`, 15,000 those of the tables.

# %%
STEPS = int(os.environ.get("STEPS", 600))
DATA_ROOT = os.environ.get("DATA_ROOT")  # None is data/
RUN = Path(os.environ.get("RUN", "runs/notebook"))

# %% [markdown]
# ## Configure
#
# The same groups and settings as on the command line: `python train.py experiment=mnist data.distortion=rts model=st_fcn
# ...`. The folder is used again each time (`ckpt_path=null`).

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
print(f"{config.label}: {config.trainer.max_steps} steps of {config.recipe.batch_size} digits")

# %% [markdown]
# ## Train
#
# Validation and test are part of the run, and so are the pictures in `crops/`.

# %%
record = train(config)
print(f"test error {record['metrics']['test/error']:.2f} % after {record['steps']:,} steps")

# %% [markdown]
# ## Before and after
#
# Above each digit what the transformer reads (green, its top edge red), below it what it gives to the classifier: at first
# the whole picture, then something steadier.

# %%
crops = sorted((RUN / "crops").glob("crops_*.png"))
for path in (crops[0], crops[-1]):
    print(path.stem)
    display(Image(filename=str(path)))

# %% [markdown]
# ## The mean of each class
#
# If a transformer brings all digits of a class to one pose, their mean is sharp. The network is rebuilt from its run folder,
# as `evaluate.py` does, and reads a thousand test digits.

# %%
trained = load_trained(RUN)
trained.data.setup()
images, labels = trained.data.samples("test", torch.arange(1000))
with torch.no_grad():
    read = trained.task.network.transformer(images)
figure, rows = plt.subplots(2, 10, figsize=(10, 2.3), layout="constrained")
for row, pictures in zip(rows, (images, read)):
    for digit, axes in enumerate(row):
        axes.imshow(pictures[labels == digit].mean(0)[0], cmap="gray")
        axes.axis("off")
figure.suptitle(
    f"mean test digit of each class: as it comes, and as the transformer gives it after {record['steps']:,} steps",
    fontsize=9,
)
plt.show()

# %% [markdown]
# With more steps the lower row sharpens. `reading_results` shows the curves of this run.
