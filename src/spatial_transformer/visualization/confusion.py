"""The confusion matrix as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from .crops import FEW_CLASSES


def confusion_figure(counts: Tensor, names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix, coloured by the share of each true class.

    With at most :data:`FEW_CLASSES` classes, the classes are named and the counts are written.
    The figure is not known to pyplot, so that no notebook shows it and no backend changes.

    Args:
        counts: ``(classes, classes)`` samples of each true class (rows) by predicted class.
        names: names of the classes.
        title: text above the matrix.
    """
    classes = len(names)
    side = 2 + 0.4 * min(classes, FEW_CLASSES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    share = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    # The root makes rare confusions visible.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    figure.colorbar(image, label="share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if classes <= FEW_CLASSES:
        axes.set_xticks(range(classes), names, rotation=45 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(classes), names)
        for row, column in counts.nonzero().tolist():
            colour = "white" if share[row, column] > 0.3 else "black"
            text = f"{int(counts[row, column])}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return figure
