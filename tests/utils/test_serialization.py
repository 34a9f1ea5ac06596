"""Files of tensors, also on a full disk."""

import resource

import pytest
import torch

from spatial_transformer.utils.serialization import load_tensors, save_tensors


@pytest.fixture
def full_disk():
    """Limit the size of files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("durable", [False, True])
def test_saved_tensors_are_read_back(tmp_path, durable):
    save_tensors({"x": torch.arange(3), "y": [1, "a"]}, tmp_path / "new" / "saved.pt", durable)
    saved = load_tensors(tmp_path / "new" / "saved.pt")
    assert torch.equal(saved["x"], torch.arange(3))
    assert saved["y"] == [1, "a"]


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"got pathlib\S*Path$"):
        save_tensors({"x": tmp_path}, tmp_path / "saved.pt")
    assert not list(tmp_path.iterdir())


def test_full_disk_keeps_the_old_file(tmp_path, full_disk):
    save_tensors(torch.zeros(1), tmp_path / "saved.pt")
    with pytest.raises(OSError, match="too large"):
        save_tensors(torch.zeros(10_000), tmp_path / "saved.pt")
    assert torch.equal(load_tensors(tmp_path / "saved.pt"), torch.zeros(1))
    assert [path.name for path in tmp_path.iterdir()] == ["saved.pt"]
