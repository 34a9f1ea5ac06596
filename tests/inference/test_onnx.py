"""ONNX files of networks after short real runs."""

import json
import math

import pytest
import torch
from conftest import REPOSITORY, SHORT
from make_svhn import make as make_numbers
from tiny_birds import write_birds

from spatial_transformer.inference.load import load_trained
from spatial_transformer.inference.onnx import ATOL, write_onnx
from spatial_transformer.paper import NETWORKS
from spatial_transformer.training.runner import train
from spatial_transformer.transformer.recorder import find_transformers
from spatial_transformer.utils.errors import UsageError

onnxruntime = pytest.importorskip("onnxruntime", reason="run pip install -e '.[onnx]'")

FAST = (("cnn", "none"), ("st_fcn", "projective"), ("st_cnn", "tps"))
MNIST_NETWORKS = [
    pytest.param(*network, marks=() if network in FAST else pytest.mark.slow)
    for network in (*NETWORKS.values(), ("st_fcn", "attention"))
]
ONE = ["logits", "theta", "crop"]


def reference_outputs(network, images):
    """Return logits, and theta and crop of each transformer."""
    thetas, crops = [], []
    for module in find_transformers(network):
        module.localisation.register_forward_hook(lambda m, args, theta: thetas.append(theta))
        module.register_forward_hook(lambda m, args, crop: crops.append(crop))
    with torch.inference_mode():
        logits = network(images)
    return [logits, *(output for pair in zip(thetas, crops, strict=True) for output in pair)]


@pytest.fixture
def exported_shapes(composed, tmp_path):
    """Train, export, compare the file with PyTorch and return the shapes of its outputs."""

    def export(*settings):
        train(composed(*SHORT, "logger=none", *settings))
        trained = load_trained(tmp_path / "run")
        assert write_onnx(trained, tmp_path / "network.onnx") < ATOL
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=providers)
        metadata = session.get_modelmeta().custom_metadata_map
        assert json.loads(metadata["classes"]) == trained.data.names
        record = trained.record
        assert metadata["label"] == record["label"]
        assert float(metadata["test_error"]) == record["metrics"]["test/error"]
        assert metadata["commit"] == (record["commit"] or "")
        count = trained.data.size("test")
        images = trained.data.samples("test", torch.arange(5) % count)[0]
        reference = reference_outputs(trained.task.network, images)
        for n in (1, 5):
            outputs = session.run(None, {"images": images[:n].numpy()})
            for output, expected in zip(map(torch.from_numpy, outputs), reference, strict=True):
                assert output.shape[0] == n
                atol = 1e-5 * max(1, float(expected.abs().max()))
                # Parallel transformers have an axis of their own in the file.
                actual = output.flatten(1)
                torch.testing.assert_close(actual, expected[:n].flatten(1), rtol=0, atol=atol)
        return {output.name: tuple(output.shape[1:]) for output in session.get_outputs()}

    return export


@pytest.mark.parametrize(("model", "transform"), MNIST_NETWORKS)
def test_mnist(exported_shapes, mnist_root, model, transform):
    settings = [f"model={model}", f"transform={transform}", f"data.root={mnist_root}"]
    shapes = exported_shapes(*settings)
    assert list(shapes) == (["logits"] if transform == "none" else ONE)
    assert shapes["logits"] == (10,)


def test_transformers_in_a_row(exported_shapes, mnist_root, tmp_path):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 30})
    data = f"data.root={tmp_path}/numbers"
    shapes = exported_shapes("experiment=svhn_st_multi", "model.width=0.05", data)
    assert shapes.pop("logits") == (5, 11)
    assert list(shapes) == [f"{name}_{k}" for k in (1, 2, 3, 4) for name in ("theta", "crop")]
    assert [shapes[f"theta_{k}"] for k in (1, 2, 3, 4)] == [(6,)] * 4
    assert [shapes[f"crop_{k}"][-1] for k in (1, 2, 3, 4)] == [64, 32, 32, 16]


def test_parallel_transformers(exported_shapes, mnist_root):
    settings = ["experiment=mnist_addition", "model.transformers=2", f"data.root={mnist_root}"]
    assert exported_shapes(*settings) == {"logits": (19,), "theta": (2, 6), "crop": (4, 42, 42)}


def test_volumes(exported_shapes, mnist_root):
    settings = ["experiment=mnist_3d", "data.canvas=40", f"data.root={mnist_root}"]
    assert list(exported_shapes(*settings)) == ONE


@pytest.mark.slow
def test_birds(exported_shapes, tmp_path):
    root = write_birds(tmp_path / "birds", species=2)
    settings = ["model.weights=none", "data.species=1-2", "data.workers=1", f"data.root={root}"]
    settings += ["data.batch_size=2"]
    assert list(exported_shapes("experiment=birds_2st", *settings)) == ONE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("logits", lambda output: output + 1e-3),
        ("theta", lambda output: output * math.nan),
        ("crop", lambda output: output[:, None]),
    ],
)
def test_wrong_file_is_not_written(tmp_path, mnist_root, monkeypatch, name, change):
    class WrongSession(onnxruntime.InferenceSession):
        def run(self, names, inputs):
            outputs = super().run(names, inputs)
            return [change(o) if n == name else o for n, o in zip(names, outputs, strict=True)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", WrongSession)
    trained = load_trained(REPOSITORY / "checkpoints/st_cnn_mnist.pt", data_root=str(mnist_root))
    with pytest.raises(UsageError, match=f"disagree about '{name}': got a difference of"):
        write_onnx(trained, tmp_path / "out" / "network.onnx")
    assert not list((tmp_path / "out").iterdir())
