"""The confusion matrix."""

from types import SimpleNamespace

import torch

from spatial_transformer.callbacks import mistakes


def test_rows_of_the_confusion_matrix_are_labels_and_columns_predictions(tmp_path, monkeypatch):
    counted = []
    plot = mistakes.plot_confusion_matrix
    monkeypatch.setattr(
        mistakes, "plot_confusion_matrix", lambda counts, **more: counted.append(counts) or plot(counts, **more)
    )
    data = SimpleNamespace(classes=3, names=["a", "b", "c"], texts=lambda labels: [str(n) for n in labels.tolist()])
    monkeypatch.setattr(mistakes, "picture_of", lambda *args: SimpleNamespace(save=lambda path, kind: path.touch()))
    module = SimpleNamespace(confidences=lambda logits: logits.amax(1), predictions=lambda logits: logits.argmax(1))
    trainer = SimpleNamespace(is_global_zero=True, datamodule=data, loggers=[])
    callback = mistakes.Mistakes(tmp_path)
    callback.on_test_epoch_start(trainer, module)
    callback.on_test_batch_end(trainer, module, torch.eye(3)[[0, 1, 1, 2]], (None, torch.tensor([0, 1, 2, 2])), 0)
    callback.on_test_epoch_end(trainer, module)
    assert counted[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert (tmp_path / "confusion.png").is_file()
