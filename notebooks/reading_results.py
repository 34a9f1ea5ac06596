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
# # Reading results
#
# Every finished run leaves a record, a small JSON file. Those in `results/` make all tables of the documents; here they are
# read by hand. Then the curves of a run of your own.

# %%
import csv
import os
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from spatial_transformer.reporting.paper_tables import confidence_interval, mnist_table
from spatial_transformer.reporting.records import read_records

ROOT = next(
    folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").is_file()
)
RUN = os.environ.get("RUN")  # a run folder; None takes the newest below runs/
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## Records
#
# A record says what was run, on what, and what came out.

# %%
records = read_records(ROOT / "results" / "mnist")
record = records[-1]
print(f"{len(records)} records; the last:")
for name in ("label", "seed", "steps", "seconds", "device", "commit"):
    print(f"  {name:10}{record[name]}")
for name in ("test/error", "val/best_error"):
    print(f"  {name:16}{record['metrics'][name]:.2f} %")

# %% [markdown]
# ## The paper's table beside ours
#
# `mnist_table` takes the runs whose settings are those of the option that they are named by. There is one such function for
# each table. Errors in percent, mean ± 95 % interval (seeds); one or two seeds are listed.

# %%
table = mnist_table(records, ROOT / "conf")
display(Markdown(table.markdown()))

# %% [markdown]
# ## A chart
#
# A point for each of our runs' means, a cross for the paper. The axis is logarithmic.

# %%
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
ours = [
    (network, network.rows[-1][1])
    for network in table.networks
    if any(cell.values for cell in network.rows[-1][1])
]
for n, (network, cells) in enumerate(ours):
    shift = 0.14 * (n - (len(ours) - 1) / 2)
    run_here = [
        (place + shift, confidence_interval(cell.values))
        for place, cell in enumerate(cells)
        if cell.values
    ]
    of_paper = [
        (place + shift, cell.paper) for place, cell in enumerate(cells) if cell.paper is not None
    ]
    axes.errorbar(
        [place for place, _ in run_here],
        [mean for _, (mean, _) in run_here],
        yerr=[half or 0 for _, (_, half) in run_here],
        fmt="o",
        color=f"C{n}",
        label=network.name,
    )
    axes.plot(*zip(*of_paper), "x", color=f"C{n}")
axes.set(
    yscale="log", yticks=[1, 2, 5, 10, 20], ylabel="test error, %", xticks=range(len(table.columns))
)
axes.minorticks_off()
axes.yaxis.set_major_formatter("{x:g}")
axes.set_xticklabels(table.columns)
axes.legend(title="ours ●, paper ×", fontsize=8)
plt.show()

# %% [markdown]
# ## The curves of a run
#
# `metrics.csv` in a run folder has a row for each time that something was logged and a column for each figure; a place is
# empty where the figure was not logged then.

# %%
tables = (
    [Path(RUN) / "metrics.csv"]
    if RUN
    else sorted((ROOT / "runs").rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
)
if tables:
    with tables[-1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for name in ("train/error", "val/error"):
        logged = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes.plot(*zip(*logged), ".-", label=name)
    axes.set(xlabel="step", ylabel="error, %", ylim=(0, None), title=tables[-1].parent.name)
    axes.legend()
    plt.show()
else:
    print(
        "There is no run here yet. `make train` makes one, or the notebook train_in_five_minutes."
    )
