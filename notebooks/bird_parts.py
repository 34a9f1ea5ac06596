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
# # What the crops look at: parts of birds
#
# The paper tells by eye that one transformer finds the head of a bird and another its body (section 4.3). The data set says
# where the parts are. Training never sees that, but it can be counted afterwards: how often does each crop hold each part?
# The figures are those of the recorded runs in `results/`.

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
RUN = os.environ.get("RUN")  # a run folder of birds, for its pictures
plt.rcParams["figure.dpi"] = 90
records = [
    record
    for folder in sorted((ROOT / "results").glob("birds_*"))
    for record in read_records(folder)
]

# %% [markdown]
# ## Where crops start
#
# Before training the windows are spread over the image, each half as wide as the image. Their size is fixed
# (`transform=location`), so training can only move them.

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
# ## Which parts each crop holds
#
# Of the test images in which a part can be seen, the percentage in which the crop holds it. On the right, for comparison,
# crops of the same size in the centre and at random places: birds are mostly in the middle, so a crop says something only
# where it differs from these.


# %%
def show_parts(experiment):
    """A map of the parts and crops of each recipe that the experiment was run with."""
    for title, table in bird_part_coverage(records, ROOT / "conf", experiment).items():
        parts = [part for part in table if part not in (BOX, ON_BOX)]
        crops = crop_names(table)
        values = [[table[part][crop] for crop in crops] for part in parts]
        _, axes = plt.subplots(figsize=(1.6 + 0.9 * len(crops), 4.6), layout="constrained")
        axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for p, of_part in enumerate(values):
            for c, value in enumerate(of_part):
                axes.text(
                    c,
                    p,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if value > 60 else "white",
                )
        axes.set_xticks(range(len(crops)), [crop.replace(" ", "\n") for crop in crops])
        axes.set_yticks(range(len(parts)), parts)
        axes.set_title(f"{experiment}\n{title}", fontsize=9)
        plt.show()


show_parts("birds_4st")

# %%
show_parts("birds_2st_448")

# %% [markdown]
# ## Which crop is whose
#
# For each part, the crop that holds it most often above what the centre would. Left and right eyes, legs and wings are those
# of the bird.

# %%
for title, table in bird_part_coverage(records, ROOT / "conf", "birds_4st").items():
    print(title)
    own = [crop for crop in crop_names(table) if crop.startswith("crop ")]
    for part, values in table.items():
        if part not in (BOX, ON_BOX):
            best = max(own, key=lambda crop: values[crop])
            print(
                f"  {part:11}{best}, {values[best]:3.0f} %  ({values[best] - values['centre crop']:+.0f} against the centre)"
            )

# %% [markdown]
# ## Pictures
#
# A run of birds leaves `crops/contact_sheet.jpg`: the first test images of each species with what each transformer reads. The
# records have figures alone, so pictures need a run folder: name it in `RUN`.

# %%
if RUN:
    display(Image(filename=str(Path(RUN) / "crops" / "contact_sheet.jpg")))
else:
    print(
        "No run folder is named. `python train.py experiment=birds_4st data.root=FOLDER data.species=1-50` makes one."
    )
