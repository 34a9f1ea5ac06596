"""Networks taken out of their run folders, by real runs of a few steps."""

import sys

import export
import pytest
import torch
from conftest import REPOSITORY
from test_runner import SHORT
from tiny_birds import Bird, write_birds

from spatial_transformer import onnx_file
from spatial_transformer.building import load_trained
from spatial_transformer.data.svhn_synthetic import make as make_numbers
from spatial_transformer.errors import UsageError
from spatial_transformer.paper import NETWORKS
from spatial_transformer.runner import run

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs packages of its own: pip install -e '.[onnx]'")


def computes_the_same(folder, file):
    """Beside the check that the export makes itself: of batches of 1 and 5, by the file alone."""
    trained = load_trained(folder)
    assert onnx_file.write_onnx(trained, file) <= onnx_file.TOLERANCE
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    trained.data.setup()
    images = trained.data.samples("test", torch.arange(trained.data.size("test"))[:5])[0]
    images = images[torch.arange(5) % len(images)]
    with torch.inference_mode():
        expected = trained.task.network(images)
    for n in (1, 5):
        (output,) = session.run(None, {"images": images[:n].numpy()})
        assert output.shape == expected[:n].shape
        assert abs(output - expected[:n].numpy()).max() <= 1e-5 * max(1, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("model", "transform"),
    [
        options
        if options in (("cnn", "none"), ("st_fcn", "projective"), ("st_cnn", "tps"))
        else pytest.param(*options, marks=pytest.mark.slow)
        for options in (*NETWORKS.values(), ("st_fcn", "attention"))
    ],
)
def test_every_network_of_table_1_is_written_as_onnx(composed, mnist_root, tmp_path, model, transform):
    chosen = [] if transform == "none" else [f"transform={transform}"]
    run(composed(f"model={model}", *chosen, *SHORT, f"data.root={mnist_root}", "logger=none"))
    computes_the_same(tmp_path / "run", tmp_path / "network.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["svhn_st_single", "svhn_st_multi"])
def test_networks_for_house_numbers_are_written_as_onnx(composed, mnist_root, tmp_path, experiment):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 30})
    settings = [f"experiment={experiment}", f"data.root={tmp_path}/numbers", "model.width=0.05", "logger=none", *SHORT]
    run(composed(*settings))
    computes_the_same(tmp_path / "run", tmp_path / "network.onnx")


@pytest.mark.slow
def test_a_network_for_birds_is_written_as_onnx(composed, tmp_path):
    birds = [Bird(species, training) for species in (1, 2) for training in (True, True, False)]
    root = write_birds(tmp_path / "birds", birds)
    short = ["model.weights=none", "logger=none", *SHORT, "data.batch_size=2", "data.workers=1"]
    run(composed("experiment=birds_2st", f"data.root={root}", "data.species=1-2", *short))
    computes_the_same(tmp_path / "run", tmp_path / "network.onnx")


@pytest.fixture
def short_run(composed, mnist_root, tmp_path):
    run(composed("data.distortion=r", *SHORT, f"data.root={mnist_root}", "logger=none"))
    return tmp_path / "run"


def test_a_volume_is_written_as_onnx(composed, mnist_root, tmp_path):
    run(composed("experiment=mnist_3d", "data.canvas=40", *SHORT, f"data.root={mnist_root}", "logger=none"))
    computes_the_same(tmp_path / "run", tmp_path / "network.onnx")


def test_a_file_that_computes_something_else_does_not_appear(short_run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "TOLERANCE", -1.0)
    monkeypatch.setattr(onnx_file, "_rounding", lambda *of: -1.0)
    with pytest.raises(UsageError, match="computes other outputs"):
        onnx_file.write_onnx(load_trained(short_run), tmp_path / "out" / "network.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_may_round_as_pytorch_does(short_run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "TOLERANCE", -1.0)
    assert 0 < onnx_file.write_onnx(load_trained(short_run), tmp_path / "network.onnx") < 1e-4


def test_the_program_writes_both_kinds_of_file(short_run, tmp_path, monkeypatch, mnist_root, capsys):
    packed, written = tmp_path / "network.pt", tmp_path / "network.onnx"
    monkeypatch.setattr(sys, "argv", ["export.py", str(short_run), "--out", str(packed)])
    export.main()
    monkeypatch.setattr(sys, "argv", ["export.py", str(packed), "--out", str(written), "--data-root", str(mnist_root)])
    export.main()
    assert written.is_file()
    assert "test error" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["export.py", str(short_run), "--out", "network.txt"])
    with pytest.raises(SystemExit, match="Way out"):
        export.main()


@pytest.mark.parametrize("name", ["network.pt", "network.onnx"])
def test_a_place_that_cannot_be_written_to_is_told(tmp_path, mnist_root, monkeypatch, name):
    (tmp_path / "file").touch()
    run_file = str(REPOSITORY / "checkpoints" / "st_cnn_mnist.pt")
    options = ["--out", str(tmp_path / "file" / name), "--data-root", str(mnist_root)]
    monkeypatch.setattr(sys, "argv", ["export.py", run_file, *options])
    with pytest.raises(SystemExit, match=rf"{name} cannot be written: .*\nWay out: --out=FILE"):
        export.main()


def test_a_packed_file_holds_the_run_and_nothing_of_its_places(short_run, tmp_path):
    from spatial_transformer.building import pack

    of_run = load_trained(short_run)
    pack(of_run, tmp_path / "network.pt")
    packed = load_trained(tmp_path / "network.pt")
    assert packed.record == of_run.record
    for name, tensor in of_run.task.state_dict().items():
        assert torch.equal(packed.task.state_dict()[name], tensor)
    saved = torch.load(tmp_path / "network.pt", weights_only=True)
    assert saved["classes"] == [str(n) for n in range(10)]
    assert str(tmp_path) not in str(saved["config"])
    (short_run / "metrics.json").unlink()
    with pytest.raises(UsageError, match="came to its end"):
        pack(load_trained(short_run), tmp_path / "other.pt")
    with pytest.raises(UsageError, match="no file of a trained network"):
        load_trained(short_run / "checkpoints" / "best.ckpt")
