"""A failing drawing callback never stops a run."""

import logging

import pytest
from conftest import SHORT

from spatial_transformer.callbacks.base import DrawingCallback
from spatial_transformer.training.runner import train


class Broken(DrawingCallback):
    def __init__(self, error):
        self.error = error

    def on_train_start(self, trainer, pl_module):
        """Draw."""
        raise self.error


class MoreBroken(Broken):
    def on_test_end(self, trainer, pl_module):
        raise self.error


def test_a_failing_hook_is_a_warning(caplog):
    callback = MoreBroken(OSError(28, "No space left on device\nsecond line"))
    callback.on_train_start(None, None)
    callback.on_test_end(None, None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.records[0].getMessage() == (
        "Broken.on_train_start failed, and the run continues: "
        "OSError: [Errno 28] No space left on device"
    )
    assert MoreBroken.on_train_start.__doc__ == "Draw."


@pytest.mark.parametrize("request_to_stop", [KeyboardInterrupt, SystemExit])
def test_a_request_to_stop_is_not_a_failure(request_to_stop):
    with pytest.raises(request_to_stop):
        Broken(request_to_stop()).on_train_start(None, None)


def test_a_run_whose_pictures_cannot_be_written_ends_with_the_same_metrics(
    composed, drawn_mnist, tmp_path, caplog
):
    short = [*SHORT, "data.root=.", "logger=csv", "recipe.validate_every=1"]
    expected = train(composed(*short))["metrics"]
    (tmp_path / "file").touch()
    unwritable = [
        f"callbacks.{name}.folder={tmp_path}/file/crops" for name in ("crops", "mistakes")
    ]
    found = train(composed(*short, f"run_dir={tmp_path}/other", *unwritable))["metrics"]
    assert found == expected
    assert (tmp_path / "other" / "metrics.json").is_file()
    for lost in ("crops_0000000", "crops_0000002", "mean_images_0000002", "table", "confusion"):
        assert lost in caplog.text
