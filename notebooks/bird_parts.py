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
# # Which parts of birds do the crops show?
#
# The paper shows examples in which one transformer finds the head of a bird and another its body
# (section 4.3). We measure how often each crop contains each part, with the part annotations of
# CUB-200-2011, which are not used in training. All numbers are from result files in `results/`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Image, display

from spatial_transformer import Attention
from spatial_transformer.networks.birds import tiles
from spatial_transformer.reporting.analyses import BOX, ON_BOX, bird_part_coverage, crop_names
from spatial_transformer.reporting.records import read_records

ROOT = next(
    folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").is_file()
)
RUN = os.environ.get("RUN")  # run directory of a bird experiment, for its pictures
plt.rcParams["figure.dpi"] = 90
results = [
    result
    for folder in sorted((ROOT / "results").glob("birds_*"))
    for result in read_records(folder)
]

# %% [markdown]
# ## Initial crops
#
# Before training, two crops are on the left and the right, and four in the quarters of the image.
# Their size is fixed (`transform=location`), so training can only move them.

# %%
transform = Attention(0.5)
corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
figure, row = plt.subplots(1, 2, figsize=(5.6, 2.9), layout="constrained")
for axes, n in zip(row, (2, 4)):
    axes.plot(*corners.T, color="gray", lw=1)
    for k, theta in enumerate(tiles(n, transform), start=1):
        outline = transform(theta[None], corners)[0]
        axes.plot(*outline.T, lw=2, color=f"C{k - 1}")
        axes.text(*outline[:4].mean(0), str(k), color=f"C{k - 1}", ha="center", va="center")
    axes.set(title=f"{n} transformers, untrained", aspect="equal", ylim=(1.1, -1.1))
    axes.axis("off")
plt.show()

# %% [markdown]
# ## How often each crop contains each part
#
# Of the test images in which a part is visible, each cell has the percentage in which the crop
# contains it. For comparison, the last columns show crops of the same size at the centre and at
# random positions. Birds are usually near the centre, so a crop is informative only where it
# differs from these.


# %%
def show_parts(experiment):
    """Draw a table of parts and crops for each recipe of an experiment."""
    for title, table in bird_part_coverage(results, ROOT / "conf", experiment).items():
        parts = [part for part in table if part not in (BOX, ON_BOX)]
        crops = crop_names(table)
        values = [[table[part][crop] for crop in crops] for part in parts]
        _, axes = plt.subplots(figsize=(1.6 + 0.9 * len(crops), 4.6), layout="constrained")
        axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                colour = "black" if value > 60 else "white"
                style = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
                axes.text(x, y, f"{value:.0f}", **style)
        axes.set_xticks(range(len(crops)), [crop.replace(" ", "\n") for crop in crops])
        axes.set_yticks(range(len(parts)), parts)
        axes.set_title(f"{experiment}\n{title}", fontsize=9)
        plt.show()


show_parts("birds_4st")

# %%
show_parts("birds_2st_448")

# %% [markdown]
# ## The best crop for each part
#
# For each part we list the crop that contains it most often, and the difference from the centre
# crop in percentage points. Left and right are from the bird's point of view.

# %%
for title, table in bird_part_coverage(results, ROOT / "conf", "birds_4st").items():
    print(title)
    crops = [crop for crop in crop_names(table) if crop.startswith("crop ")]
    for part, values in table.items():
        if part not in (BOX, ON_BOX):
            best = max(crops, key=values.get)
            gain = values[best] - values["centre crop"]
            print(
                f"  {part:11}{best}, {values[best]:3.0f} %  ({round(gain):+d} over the centre crop)"
            )

# %% [markdown]
# ## Pictures
#
# A run of a bird experiment writes `crops/contact_sheet.jpg`: the first test images of each species
# with the crops of each transformer. Result files do not contain images, so set `RUN` to a run
# directory to see its contact sheet.

# %%
if RUN:
    display(Image(filename=str(Path(RUN) / "crops" / "contact_sheet.jpg")))
else:
    print("RUN is not set. This command makes a run:")
    print("python train.py experiment=birds_4st data.root=DIRECTORY data.species=1-50")
