"""The figure of the confusion matrix."""

import itertools
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from conftest import REPOSITORY
from torch import nn

from spatial_transformer.callbacks.misclassified import MisclassifiedSamples
from spatial_transformer.tasks.classification import Classification
from spatial_transformer.visualization.confusion import confusion_figure


def test_rows_are_true_classes_and_columns_predicted_ones():
    axes = confusion_figure(torch.tensor([[7, 0], [2, 1000]]), ["a", "b"], "title").axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "7", (0, 1): "2", (1, 1): "1000"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert axes.get_title() == "title"


def test_a_run_counts_its_true_classes_in_rows(tmp_path, monkeypatch):
    drawn = []

    def draw(counts, *texts):
        drawn.append(counts.tolist())
        return confusion_figure(counts, *texts)

    monkeypatch.setattr("spatial_transformer.callbacks.misclassified.confusion_figure", draw)
    data = SimpleNamespace(classes=3, names=list("abc"), decode_labels=torch.Tensor.tolist)
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, loggers=[])
    logits, labels = torch.eye(3)[[0, 2, 2, 2]], torch.tensor([0, 1, 1, 2])
    task = Classification(nn.Identity(), None)
    MisclassifiedSamples(tmp_path).on_test_collected(trainer, task, logits, labels)
    assert drawn == [[[1, 0, 0], [0, 0, 2], [0, 0, 1]]]


def test_colours_are_fractions_of_the_true_class():
    image = confusion_figure(torch.tensor([[30, 10], [1, 0]]), ["a", "b"]).axes[0].images[0]
    assert image.get_array().tolist() == [[0.75, 0.25], [1.0, 0.0]]


def test_counts_do_not_overlap():
    counts = torch.full((19, 19), 1234)
    figure = confusion_figure(counts, [str(n) for n in range(19)])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 19 * 19
    neighbours = [*itertools.pairwise(boxes), *zip(boxes, boxes[19:])]
    assert not any(a.overlaps(b) for a, b in neighbours)


def test_drawing_leaves_pyplot_alone(tmp_path):
    """A notebook would show its figures, and lose its own where the backend changes."""
    before = plt.get_backend(), plt.get_fignums()
    confusion_figure(torch.eye(3), ["a", "b", "c"]).savefig(tmp_path / "confusion.png")
    assert (plt.get_backend(), plt.get_fignums()) == before
    pyplot = r"matplotlib\.(use|pyplot)|from matplotlib import pyplot|torchmetrics\.utilities\.plot"
    for file in (REPOSITORY / "src").rglob("*.py"):
        assert not re.search(pyplot, file.read_text()), file
