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
# Each finished run writes a result file in JSON, and all tables of the documentation are generated
# from those in `results/`. This notebook reads them, builds Table 1 of the paper, and plots the
# learning curves of one of your own runs.

# %%
import csv
import os
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from spatial_transformer.reporting.paper_tables import confidence_interval, paper_tables
from spatial_transformer.reporting.records import read_records

ROOT = next(
    folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").is_file()
)
RUN = os.environ.get("RUN")  # a run directory; None takes the newest in runs/
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## Result files
#
# A result file contains the settings, the machine, the metrics and the learning curve of a run.

# %%
results = read_records(ROOT / "results" / "mnist")
result = results[-1]
print(f"{len(results)} result files. The last one:")
for name in ("label", "seed", "steps", "seconds", "device", "commit"):
    print(f"  {name:16}{result[name]}")
for name in ("test/error", "val/best_error"):
    print(f"  {name:16}{result['metrics'][name]:.2f} %")

# %% [markdown]
# ## Table 1 of the paper
#
# `paper_tables` returns all tables by name, built from the runs that used the settings of their
# recipe in `conf/`. A cell shows the test error in percent: the mean ± 95 % confidence interval
# (number of seeds), or the values of one or two seeds.

# %%
table = paper_tables(ROOT / "results", ROOT / "conf")["mnist"]
display(Markdown(table.markdown()))

# %% [markdown]
# ## Table 1 as a chart
#
# Dots are our means with their 95 % confidence intervals, and crosses are the values of the paper.
# For a network with several recipes in the table, the dots show the last one.

# %%
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
networks = [
    (network.name, network.rows[-1][1])
    for network in table.networks
    if any(cell.values for cell in network.rows[-1][1])
]
for n, (name, cells) in enumerate(networks):
    shift = 0.14 * (n - (len(networks) - 1) / 2)
    means = [(k + shift, *confidence_interval(c.values)) for k, c in enumerate(cells) if c.values]
    paper = [(k + shift, c.paper) for k, c in enumerate(cells) if c.paper is not None]
    places, values, halves = zip(*means)
    bars = [half or 0 for half in halves]  # one seed has no interval
    axes.errorbar(places, values, yerr=bars, fmt="o", color=f"C{n}", label=name)
    axes.plot(*zip(*paper), "x", color=f"C{n}")
ticks = [1, 2, 5, 10, 20]
axes.set(yscale="log", yticks=ticks, ylabel="test error (%)", xticks=range(len(table.columns)))
axes.minorticks_off()
axes.yaxis.set_major_formatter("{x:g}")
axes.set_xticklabels(table.columns)
axes.legend(title="ours ●, paper ×", fontsize=8)
plt.show()

# %% [markdown]
# ## Learning curves of a run
#
# `metrics.csv` in a run directory has one row per logged step and one column per metric. A cell is
# empty if the metric was not logged at that step.

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
        if logged:
            axes.plot(*zip(*logged), ".-", label=name)
    axes.set(xlabel="step", ylabel="error (%)", ylim=(0, None), title=tables[-1].parent.name)
    axes.legend()
    plt.show()
else:
    print("No run found in runs/. Run `make train` or the notebook train_in_five_minutes.")
