"""Run directories, checkpoints and packed networks, and the programs that use them."""

import re
import shutil
from pathlib import Path

import export
import pytest
import torch
from conftest import REPOSITORY, SHORT
from omegaconf import OmegaConf
from photographs import photograph

import evaluate as evaluate_program
import predict as predict_program
from spatial_transformer.inference.evaluate import evaluate
from spatial_transformer.inference.load import load_trained, pack
from spatial_transformer.training.runner import train
from spatial_transformer.training.weights import load_weights
from spatial_transformer.utils.errors import UsageError

PACKED = sorted((REPOSITORY / "checkpoints").glob("*.pt"))
ST_CNN = REPOSITORY / "checkpoints" / "st_cnn_mnist.pt"


@pytest.fixture
def run(composed, mnist_root, tmp_path):
    """The directory of a short run."""
    train(composed("data.distortion=r", *SHORT, f"data.root={mnist_root}", "logger=none"))
    return tmp_path / "run"


def test_packed_network(run, tmp_path):
    trained = load_trained(run)
    pack(trained, tmp_path / "network.pt")
    packed = load_trained(tmp_path / "network.pt")
    assert packed.record == trained.record
    for name, tensor in trained.task.state_dict().items():
        assert torch.equal(packed.task.state_dict()[name], tensor)
    saved = torch.load(tmp_path / "network.pt", weights_only=True)
    assert saved["classes"] == [str(n) for n in range(10)]
    assert str(tmp_path) not in str(saved["config"])
    (run / "metrics.json").unlink()
    with pytest.raises(UsageError, match="is not the best checkpoint of a finished run"):
        pack(load_trained(run), tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoint_path(run, tmp_path, name):
    trained = load_trained(run / "checkpoints" / f"{name}.ckpt")
    expected = load_trained(run, name).task.state_dict()
    for key, tensor in trained.task.state_dict().items():
        assert torch.equal(tensor, expected[key])
    assert bool(trained.record) == (name == "best")  # the result is that of the best checkpoint
    (run / "checkpoints" / f"{name}.ckpt").rename(tmp_path / f"{name}.ckpt")
    with pytest.raises(UsageError, match=rf"{name}\.ckpt does not exist"):
        load_trained(run, name)
    with pytest.raises(UsageError, match="is not a run directory"):
        load_trained(tmp_path / f"{name}.ckpt")


@pytest.mark.parametrize("is_frozen", [True, False])
def test_frozen_classifier_is_in_the_checkpoint(composed, mnist_root, tmp_path, is_frozen):
    weights = shutil.copy(REPOSITORY / "checkpoints" / "fcn_upright.pt", tmp_path)
    settings = [f"data.root={mnist_root}", f"model.weights={weights if is_frozen else 'null'}"]
    train(composed("experiment=mnist_frozen", *settings, *SHORT, "logger=none"))
    Path(weights).unlink()
    trained = load_trained(tmp_path / "run")
    pack(trained, tmp_path / "network.pt")
    packed = load_trained(tmp_path / "network.pt").task.state_dict()
    saved = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    for name, tensor in saved["state_dict"].items():
        assert torch.equal(trained.task.state_dict()[name], tensor)
        assert torch.equal(packed[name], tensor)


@pytest.mark.parametrize("name", ["bias", b"bias"])
def test_weights_without_a_tensor_or_a_name(tmp_path, name):
    network = torch.nn.BatchNorm2d(2)
    torch.save({"state_dict": network.state_dict() | {name: 5}}, tmp_path / "odd.ckpt")
    with pytest.raises(UsageError, match=r"odd\.ckpt holds the weights of another network"):
        load_weights(network, tmp_path / "odd.ckpt")


@pytest.mark.parametrize("file", PACKED, ids=lambda file: file.stem)
def test_published_network_has_its_result(mnist_root, file):
    assert file.stat().st_size <= 2_000_000
    settings = {"run": str(file), "checkpoint": "best", "data": {"root": str(mnist_root)}}
    settings["trainer"] = {
        "precision": "32-true"
    }  # bfloat16 takes minutes on a CPU without AVX-512
    metrics = evaluate(OmegaConf.create(settings))
    recorded = torch.load(file, weights_only=True)["record"]["metrics"]
    assert metrics["test/error"] == pytest.approx(recorded["test/error"], abs=0.03)  # rounding


def test_evaluate_takes_a_position(run_program, run):
    code, output, errors = run_program(evaluate_program.main, run / "checkpoints" / "best.ckpt")
    assert code == 0, errors
    assert re.search(r"^test/error \S+  \(in metrics\.json: ", output, re.M)
    code, output, errors = run_program(evaluate_program.main, run / "checkpoints" / "last.ckpt")
    assert code == 0, errors
    assert re.search(r"^test/error \S+$", output, re.M)


def test_predict_takes_positions(run_program, tmp_path):
    pictures = tmp_path / 'a, "b" = [c]'
    pictures.mkdir()
    photograph("7").save(pictures / "seven.png")
    code, output, errors = run_program(
        predict_program.main, ST_CNN, pictures, f"out={tmp_path}/out"
    )
    assert code == 0, errors
    assert "seven.png: 7 (" in output
    assert (tmp_path / "out" / "predictions.csv").is_file()
    assert "images" in run_program(predict_program.main, "--help")[1]


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        (evaluate_program, [], "run must be set"),
        (predict_program, [], "images must be set"),
        (predict_program, [ST_CNN], "images must be set"),
        (predict_program, [f"run={ST_CNN}"], "images must be set"),
        (evaluate_program, ["nowhere.pt"], "nowhere.pt does not exist"),
        (evaluate_program, ["run=~/nowhere"], f"{Path.home()}/nowhere does not exist"),
        (predict_program, [ST_CNN, "nowhere"], "does not exist"),
        (evaluate_program, [ST_CNN, "more"], "more is not a setting. Write NAME=VALUE."),
        (evaluate_program, ["7", "checkpont=last"], "Did you mean 'checkpoint'?"),
        (evaluate_program, ["7"], "7 does not exist"),
        (evaluate_program, ["/"], "/ is not a run directory"),
        (evaluate_program, ["7", "trainer=cpu"], "There is no setting or group trainer.\n"),
        (predict_program, [ST_CNN, "2024"], "does not exist"),
    ],
)
def test_wrong_command(run_program, program, words, message):
    code, _, errors = run_program(program.main, *words)
    assert code == 1
    assert message in errors
    assert "Traceback" not in errors


def test_export_writes_both_formats(run_program, run, tmp_path, mnist_root):
    packed, onnx = tmp_path / "network.pt", tmp_path / "network.onnx"
    assert "test error" in run_program(export.main, run, "--out", packed)[1]
    pytest.importorskip("onnxruntime", reason="run pip install -e '.[onnx]'")
    code, output, _ = run_program(export.main, packed, "--out", onnx, "--data-root", mnist_root)
    assert code == 0
    (line,) = output.splitlines()
    assert "differs from PyTorch by at most" in line
    assert onnx.is_file()
    error = run_program(export.main, run, "--out", "network.txt")[0]
    assert error == "error: --out must end in .onnx or .pt, got network.txt."


@pytest.mark.parametrize("name", ["network.pt", "network.onnx"])
def test_export_to_a_wrong_place(run_program, tmp_path, mnist_root, name):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / name
    error = run_program(export.main, ST_CNN, "--out", out, "--data-root", mnist_root)[0]
    assert f"{name} cannot be written: " in error
    assert "Use --out=FILE to choose another." in error
