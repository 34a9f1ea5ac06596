"""Export of the networks of short real runs."""

import math
import sys

import export
import pytest
import torch
from conftest import REPOSITORY, SHORT
from make_svhn import make as make_numbers
from tiny_birds import Bird, write_birds

from spatial_transformer import SpatialTransformer
from spatial_transformer.inference import onnx as onnx_file
from spatial_transformer.inference.load import load_trained
from spatial_transformer.paper import NETWORKS
from spatial_transformer.training.runner import train
from spatial_transformer.utils.errors import UsageError

onnxruntime = pytest.importorskip(
    "onnxruntime", reason="ONNX needs packages of its own: pip install -e '.[onnx]'"
)


ST_CNN = REPOSITORY / "checkpoints" / "st_cnn_mnist.pt"


def expected_outputs(network, images):
    """Return logits, and theta and output of each transformer, by hooks other than the export's."""
    thetas, crops = [], []
    for module in network.modules():
        if isinstance(module, SpatialTransformer):
            module.localisation.register_forward_hook(lambda m, args, theta: thetas.append(theta))
            module.register_forward_hook(lambda m, args, crop: crops.append(crop))
    with torch.inference_mode():
        logits = network(images)
    return [logits, *(output for pair in zip(thetas, crops, strict=True) for output in pair)]


def check_file(run, file, names):
    """Export a network, compare the file with PyTorch and return the shapes of its outputs."""
    trained = load_trained(run)
    assert onnx_file.write_onnx(trained, file) < onnx_file.ATOL
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == names
    trained.data.setup()
    images = trained.data.samples("test", torch.arange(trained.data.size("test"))[:5])[0]
    images = images[torch.arange(5) % len(images)]
    expected = expected_outputs(trained.task.network, images)
    for n in (1, 5):
        outputs = session.run(None, {"images": images[:n].numpy()})
        for output, reference in zip(outputs, expected, strict=True):
            output = torch.from_numpy(output)
            assert output.shape[0] == n
            # A file has an axis of parallel transformers, a localisation network has not.
            difference = (output.flatten(1) - reference[:n].flatten(1)).abs().max()
            assert difference <= 1e-5 * max(1, float(reference.abs().max()))
    return {output.name: tuple(output.shape[1:]) for output in session.get_outputs()}


@pytest.mark.parametrize(
    ("model", "transform"),
    [
        options
        if options in (("cnn", "none"), ("st_fcn", "projective"), ("st_cnn", "tps"))
        else pytest.param(*options, marks=pytest.mark.slow)
        for options in (*NETWORKS.values(), ("st_fcn", "attention"))
    ],
)
def test_every_network_of_table_1_is_written_as_onnx(
    composed, mnist_root, tmp_path, model, transform
):
    chosen = [] if transform == "none" else [f"transform={transform}"]
    train(composed(f"model={model}", *chosen, *SHORT, f"data.root={mnist_root}", "logger=none"))
    names = ["logits"] if transform == "none" else ["logits", "theta", "crop"]
    check_file(tmp_path / "run", tmp_path / "network.onnx", names)


def test_transformers_in_a_row_have_numbered_outputs(composed, mnist_root, tmp_path):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 30})
    data = [f"data.root={tmp_path}/numbers", "model.width=0.05", "logger=none"]
    train(composed("experiment=svhn_st_multi", *data, *SHORT))
    numbered = [f"{name}_{k}" for k in (1, 2, 3, 4) for name in ("theta", "crop")]
    shapes = check_file(tmp_path / "run", tmp_path / "network.onnx", ["logits", *numbered])
    assert shapes["logits"] == (5, 11)
    assert [shapes[f"theta_{k}"] for k in (1, 2, 3, 4)] == [(6,)] * 4
    assert [shapes[f"crop_{k}"][-1] for k in (1, 2, 3, 4)] == [64, 32, 32, 16]


def test_parallel_transformers_have_one_theta_and_one_crop(composed, mnist_root, tmp_path):
    settings = ["experiment=mnist_addition", "model.transformers=2", f"data.root={mnist_root}"]
    train(composed(*settings, *SHORT, "logger=none"))
    shapes = check_file(tmp_path / "run", tmp_path / "network.onnx", ["logits", "theta", "crop"])
    size = load_trained(tmp_path / "run").data.input_size
    assert shapes == {"logits": (19,), "theta": (2, 6), "crop": (4, size, size)}


@pytest.mark.slow
def test_a_network_for_house_numbers_is_written_as_onnx(composed, mnist_root, tmp_path):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 30})
    data = [f"data.root={tmp_path}/numbers", "model.width=0.05", "logger=none"]
    train(composed("experiment=svhn_st_single", *data, *SHORT))
    check_file(tmp_path / "run", tmp_path / "network.onnx", ["logits", "theta", "crop"])


@pytest.mark.slow
def test_a_network_for_birds_is_written_as_onnx(composed, tmp_path):
    birds = [Bird(species, training) for species in (1, 2) for training in (True, True, False)]
    root = write_birds(tmp_path / "birds", birds)
    short = ["model.weights=none", "logger=none", *SHORT, "data.batch_size=2", "data.workers=1"]
    train(composed("experiment=birds_2st", f"data.root={root}", "data.species=1-2", *short))
    check_file(tmp_path / "run", tmp_path / "network.onnx", ["logits", "theta", "crop"])


@pytest.fixture
def short_run(composed, mnist_root, tmp_path):
    train(composed("data.distortion=r", *SHORT, f"data.root={mnist_root}", "logger=none"))
    return tmp_path / "run"


def test_a_volume_is_written_as_onnx(composed, mnist_root, tmp_path):
    train(
        composed(
            "experiment=mnist_3d",
            "data.canvas=40",
            *SHORT,
            f"data.root={mnist_root}",
            "logger=none",
        )
    )
    check_file(tmp_path / "run", tmp_path / "network.onnx", ["logits", "theta", "crop"])


class OffSession(onnxruntime.InferenceSession):
    """A session whose output ``name`` is wrong: by a constant, NaN, or of another shape."""

    name, fault = "logits", "off"

    def run(self, names, inputs):
        outputs = dict(zip(names, super().run(names, inputs), strict=True))
        if self.fault == "shape":
            outputs[self.name] = outputs[self.name][:, None]
        else:
            outputs[self.name] = outputs[self.name] + (1e-3 if self.fault == "off" else math.nan)
        return [outputs[name] for name in names]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("logits", "off"),
        ("theta", "nan"),
        ("crop", "shape"),
    ],
)
def test_a_file_with_a_wrong_output_does_not_appear(tmp_path, mnist_root, monkeypatch, name, fault):
    monkeypatch.setattr(onnxruntime, "InferenceSession", OffSession)
    monkeypatch.setattr(OffSession, "name", name)
    monkeypatch.setattr(OffSession, "fault", fault)
    trained = load_trained(ST_CNN, data_root=str(mnist_root))
    with pytest.raises(UsageError, match=f"disagree about '{name}': got a difference of"):
        onnx_file.write_onnx(trained, tmp_path / "out" / "network.onnx")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["st_cnn_mnist", "st_fcn_mnist"])
def test_a_trained_network_is_within_the_tolerance(tmp_path, mnist_root, name):
    trained = load_trained(REPOSITORY / "checkpoints" / f"{name}.pt", data_root=str(mnist_root))
    assert onnx_file.write_onnx(trained, tmp_path / "network.onnx") < onnx_file.ATOL


def test_the_program_writes_both_kinds_of_file(
    short_run, tmp_path, monkeypatch, mnist_root, capsys
):
    packed, written = tmp_path / "network.pt", tmp_path / "network.onnx"
    monkeypatch.setattr(sys, "argv", ["export.py", str(short_run), "--out", str(packed)])
    export.main()
    monkeypatch.setattr(
        sys,
        "argv",
        ["export.py", str(packed), "--out", str(written), "--data-root", str(mnist_root)],
    )
    export.main()
    assert written.is_file()
    assert "test error" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["export.py", str(short_run), "--out", "network.txt"])
    with pytest.raises(SystemExit, match=r"--out must end in \.onnx or \.pt, got network\.txt"):
        export.main()


@pytest.mark.parametrize("name", ["network.pt", "network.onnx"])
def test_a_place_that_cannot_be_written_to_is_told(tmp_path, mnist_root, monkeypatch, name):
    (tmp_path / "file").touch()
    run_file = str(REPOSITORY / "checkpoints" / "st_cnn_mnist.pt")
    options = ["--out", str(tmp_path / "file" / name), "--data-root", str(mnist_root)]
    monkeypatch.setattr(sys, "argv", ["export.py", run_file, *options])
    with pytest.raises(SystemExit, match=rf"{name} cannot be written: .* Use --out=FILE"):
        export.main()


def test_a_packed_file_holds_the_run_and_nothing_of_its_places(short_run, tmp_path):
    from spatial_transformer.inference.load import pack

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
    with pytest.raises(UsageError, match="is not finished"):
        pack(load_trained(short_run), tmp_path / "other.pt")
    with pytest.raises(UsageError, match="is not a packed network"):
        load_trained(short_run / "checkpoints" / "best.ckpt")
