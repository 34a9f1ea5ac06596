"""The confusion matrix as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

_MAX_NAMED = 20  # classes; the counts of more are unreadable


def confusion_figure(counts: Tensor, names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix, coloured by the fraction of each true class.

    With at most 20 classes, the classes are named and the counts are written. The figure is not
    known to pyplot, so that no notebook shows it and no backend changes.

    Args:
        counts: ``(classes, classes)`` samples of each true class (rows) by predicted class.
        names: names of the classes.
        title: text above the matrix.
    """
    figure = Figure(figsize=(8.3, 7.3), layout="constrained")
    axes = figure.add_subplot()
    fraction = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    # The root makes rare confusions visible.
    image = axes.imshow(fraction, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    figure.colorbar(image, label="fraction of the true class")
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if len(names) <= _MAX_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
        for row, column in counts.nonzero().tolist():
            colour = "white" if fraction[row, column] > 0.3 else "black"
            text = str(int(counts[row, column]))
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return figure
