"""Misclassified samples and the confusion matrix."""

import csv
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from conftest import REPOSITORY

from spatial_transformer.callbacks import misclassified
from spatial_transformer.visualization.confusion import confusion_figure


def test_the_table_and_the_confusion_matrix_show_what_was_wrong(tmp_path, monkeypatch):
    counted = []
    draw = misclassified.confusion_figure
    monkeypatch.setattr(
        misclassified,
        "confusion_figure",
        lambda counts, *args: counted.append(counts) or draw(counts, *args),
    )
    monkeypatch.setattr(
        misclassified, "render_samples", lambda *args: None
    )  # fails when it is saved
    data = SimpleNamespace(
        classes=3,
        names=["a", "b", "c"],
        decode_labels=lambda labels: [str(n) for n in labels.tolist()],
    )
    module = SimpleNamespace(
        confidences=lambda logits: logits.amax(1), predictions=lambda logits: logits.argmax(1)
    )
    trainer = SimpleNamespace(is_global_zero=True, datamodule=data, loggers=[])
    callback = misclassified.MisclassifiedSamples(tmp_path)
    callback.on_test_epoch_start(trainer, module)
    callback.on_test_batch_end(
        trainer, module, torch.eye(3)[[0, 1, 1, 2]], (None, torch.tensor([0, 1, 2, 2])), 0
    )
    callback.on_test_epoch_end(trainer, module)
    assert counted[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.png", "mistakes.csv"}
    with (tmp_path / "mistakes.csv").open() as file:
        assert list(csv.reader(file))[1:] == [["2", "2", "1", "1.0"]]


def test_rows_of_the_figure_are_true_classes_and_columns_predicted_ones():
    axes = confusion_figure(torch.tensor([[7, 0], [2, 1000]]), ["a", "b"]).axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "7", (0, 1): "2", (1, 1): "1000"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_the_figure_of_many_classes_has_no_numbers():
    assert not confusion_figure(torch.eye(200), [str(n) for n in range(200)]).axes[0].texts


def test_drawing_leaves_pyplot_alone(tmp_path):
    """A notebook would show its figures, and lose its own where the backend changes."""
    before = plt.get_backend(), plt.get_fignums()
    confusion_figure(torch.eye(3), ["a", "b", "c"]).savefig(tmp_path / "confusion.png")
    assert (plt.get_backend(), plt.get_fignums()) == before
    for file in (REPOSITORY / "src").rglob("*.py"):
        pattern = (
            r"matplotlib\.(use|pyplot)|from matplotlib import pyplot|torchmetrics\.utilities\.plot"
        )
        assert not re.search(pattern, file.read_text()), file
