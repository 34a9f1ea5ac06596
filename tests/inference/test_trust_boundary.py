"""Files from other people are read or refused. Nothing in them is executed."""

import ast
import math
import os
import pickle

import pytest
import torch
import yaml
from conftest import REPOSITORY
from omegaconf import OmegaConf

from spatial_transformer.data.io.image_files import read_image
from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.inference.load import _safe_config, load_trained
from spatial_transformer.networks.backbones import load_backbone
from spatial_transformer.networks.colocalisation import DigitEncoder
from spatial_transformer.tasks import digit_encoder
from spatial_transformer.training.build import build
from spatial_transformer.training.fingerprint import fingerprint
from spatial_transformer.training.run_dir import RunDir
from spatial_transformer.training.runner import train
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.serialization import load_tensors

SETTINGS = ["model=fcn", "model.width=4", "logger=none"]
PACKED = REPOSITORY / "checkpoints" / "st_cnn_mnist.pt"
PYTHON_FILES = [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("s*/**/*.py")]  # src and scripts


class Evil:
    """An object that creates a directory when it is unpickled."""

    def __init__(self, directory):
        self.directory = str(directory)

    def __reduce__(self):
        return os.mkdir, (self.directory,)


@pytest.fixture
def evil(tmp_path):
    """An object whose code must not run."""
    yield {"state_dict": {"x": Evil(tmp_path / "executed")}}
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def run_dir(composed, tmp_path):
    """A run directory with config.yaml and checkpoints."""
    config = composed(*SETTINGS)
    data, task = build(config)
    run_dir = RunDir(tmp_path / "run")
    run_dir.checkpoints.mkdir(parents=True)
    plain = OmegaConf.to_container(config, resolve=True)
    plain["fingerprint"] = fingerprint(plain, data.digest())
    run_dir.config.write_text(yaml.safe_dump(plain))
    for name in ("best", "last"):
        torch.save({"state_dict": task.state_dict()}, run_dir.checkpoints / f"{name}.ckpt")
    return run_dir


# Weights


@pytest.mark.parametrize("file_format", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoint_is_not_executed(run_dir, evil, name, file_format):
    load_trained(run_dir.path, name)
    file = run_dir.checkpoints / f"{name}.ckpt"
    if file_format == "pickle":
        file.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, file, _use_new_zipfile_serialization=file_format == "zip")
    with pytest.raises(UsageError, match=rf"{name}\.ckpt cannot be read as a checkpoint: .*mkdir"):
        load_trained(run_dir.path, name)


def test_resumed_checkpoint_is_not_executed(composed, run_dir, evil, drawn_mnist):
    torch.save(evil, run_dir.last)
    with pytest.raises(UsageError, match=r"last\.ckpt cannot be read as a checkpoint: .*mkdir"):
        train(composed(*SETTINGS))
    other = run_dir.path / "other.ckpt"
    torch.save(evil, other)
    with pytest.raises(UsageError, match=r"other\.ckpt cannot be read as a checkpoint: .*mkdir"):
        train(composed(*SETTINGS, f"ckpt_path={other}", f"run_dir={run_dir.path}-2"))


def test_backbone_weights_are_not_executed(tmp_path, evil, monkeypatch):
    from torchvision.models import GoogLeNet_Weights

    torch.save(evil, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"weights\.pth cannot be read as a state dict: .*mkdir"):
        load_backbone("efficientnet_lite0", tmp_path / "weights.pth")
    # torch verifies a download, but not a file that is already in its cache.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    name = GoogLeNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(evil, tmp_path / "hub" / "checkpoints" / name)
    with pytest.raises(UsageError, match=r"model\.backbone=googlenet cannot be downloaded"):
        load_backbone("googlenet")


def test_cached_encoder_is_not_executed(tmp_path, evil, monkeypatch, caplog):
    def train_encoder(root, folder):
        torch.save(DigitEncoder().state_dict(), folder / "encoder.pt")
        return {}

    monkeypatch.setattr(digit_encoder, "_train", train_encoder)
    monkeypatch.setattr(mnist_files, "prepare", lambda root: tmp_path)
    digit_encoder.load_or_train_encoder(tmp_path, tmp_path / "cache")
    (cached,) = (tmp_path / "cache").rglob("encoder.pt")
    torch.save(evil, cached)
    state = digit_encoder.load_or_train_encoder(tmp_path, tmp_path / "cache")
    assert state.keys() == DigitEncoder().state_dict().keys()
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("byte", range(0, 256, 37))
def test_flipped_bit_is_detected(tmp_path, byte):
    path = tmp_path / "saved.pt"
    torch.save({"weight": torch.arange(64.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(64.0).numpy().tobytes()) + byte] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        load_tensors(path)


RECURSIVE = {}
RECURSIVE["data"] = RECURSIVE


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("config", None),
        ("config", RECURSIVE),
        ("config", {5: {}}),
        ("config", {"data": torch.zeros(1)}),
        ("classes", 3),
        ("classes", ["0", "1"]),
        ("classes", list(range(10))),
        ("record", []),
        ("record", {}),
        ("record", {"metrics": {"test/error": "1"}}),
        ("record", {"metrics": {"test/error": 1.0, "test/loss": "1"}}),
        ("record", {"config": {}}),
        ("record", {"metrics": {"test/error": math.nan}}),
        ("state_dict", [torch.zeros(1)]),
        ("state_dict", {5: torch.zeros(1), "x": torch.zeros(1)}),
        ("state_dict", {"x": 5}),
    ],
)
def test_packed_network_with_a_wrong_part(tmp_path, part, value):
    packed = load_tensors(PACKED)
    if part == "record" and value:
        value = packed["record"] | value  # only this field of it is wrong
    torch.save(packed | {part: value}, tmp_path / "network.pt")
    with pytest.raises(UsageError, match=r"network\.pt"):
        load_trained(tmp_path / "network.pt")


# Configurations

CODE = "{_target_: os.mkdir, _args_: [EXECUTED]}"
OURS = "spatial_transformer"
REFUSED = [
    f"data={CODE}",
    f"model={{_target_: {OURS}.networks.backbones.nn.Linear}}",  # imported there
    f"data={{_target_: {OURS}.data.mnist.files.os.mkdir, _args_: [EXECUTED]}}",
    f"data={{_target_: {OURS}.data.mnist.files.shutil}}",
    f"data={{_target_: {OURS}.utils.files.atomic_write, path: EXECUTED}}",  # not a component
    f"data={{_target_: {OURS}.data.download.fetch}}",
    "data={_target_: hydra.utils.get_method, path: os.mkdir}",
    f"model={{_target_: {OURS}.training.build.instantiate, config: {{}}}}",
    f"model={{_target_: {OURS}.networks.backbones._efficientnet_lite0_trained}}",
    f"task={{_target_: {OURS}.tasks.classification.Classification.__init__.__globals__}}",
    "task={_target_: pytorch_lightning.demos.boring_classes.BoringModel}",
    f"data={{_target_: {OURS}.tasks.classification.Classification}}",  # of another kind
    f"data.root=[{CODE}]",
    f"data.root=[[{CODE}]]",
    f"data.root={CODE}",
    f"data.root={{_target_: {OURS}.transformer.Affine}}",
    "data._args_=[EXECUTED]",
    "data._partial_=true",
    "data.root='${oc.env:HOME}'",
    "model.transform='${oc.create:\"{_target_: os.mkdir, _args_: [EXECUTED]}\"}'",
    "data={_target_: '${oc.select:nothing,os.mkdir}', _args_: [EXECUTED]}",
    "data={'${seed}': 1}",
    "data.root='???'",
    "data={_target_: 5}",
    "data={_target_: null}",
    "data={_target_: ..os.mkdir}",
    f"data={{_target_: {OURS}.data.}}",
    "label=../../network",  # the default name of an export
]


def edit_config(run_dir, path, value):
    """Replace a value in config.yaml."""
    settings = group = yaml.safe_load(run_dir.config.read_text())
    *groups, name = path.split(".")
    for key in groups:
        group = group[key]
    group[name] = value
    run_dir.config.write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize("assignment", REFUSED)
def test_only_components_are_built(run_dir, tmp_path, monkeypatch, assignment):
    monkeypatch.setenv("HOME", "/secret")
    path, _, value = assignment.replace("EXECUTED", f"{tmp_path}/executed").partition("=")
    edit_config(run_dir, path, yaml.safe_load(value))
    with pytest.raises(UsageError, match=r"config\.yaml: ") as caught:
        load_trained(run_dir.path)
    assert "/secret" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_every_network_of_this_package_is_accepted(composed):
    models = sorted(file.stem for file in (REPOSITORY / "conf" / "model").glob("*.yaml"))
    models.remove("custom")
    for option in [*(f"model={model}" for model in models), "experiment=mnist_rotated"]:
        settings = OmegaConf.to_container(composed(option), resolve=True)
        assert _safe_config(settings, None, ())["model"]["_target_"]


@pytest.mark.parametrize(
    ("group", "value"),
    [
        ("callbacks", {"x": {"_target_": "os.mkdir", "_args_": ["EXECUTED"]}}),
        ("logger", {"x": {"_target_": "a.logger.that.was.renamed"}}),
        ("trainer", {"_target_": "os.mkdir", "profiler": {"_target_": "os.mkdir"}}),
        ("run_dir", "${oc.env:HOME}"),
        ("recipe", {"optimizer": {"_target_": "os.mkdir"}, "scheduler": {"_target_": "gone"}}),
    ],
)
def test_other_settings_are_ignored(run_dir, group, value):
    edit_config(run_dir, group, value)
    config = load_trained(run_dir.path).config
    assert config.trainer._target_ == "pytorch_lightning.Trainer"
    assert not {"callbacks", "logger", "run_dir"} & config.keys()


def test_trusted_package(run_dir, tmp_path, monkeypatch):
    (tmp_path / "trusted_module.py").write_text(
        "from spatial_transformer.networks.mnist import MnistNetwork\n"
        "def net(size, classes, **more):\n    return MnistNetwork(size=size, **more)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    edit_config(run_dir, "model._target_", "trusted_module.net")
    with pytest.raises(UsageError, match=r"set trust=\[trusted_module\]"):
        load_trained(run_dir.path)
    load_trained(run_dir.path, trust=["trusted_module"])


def test_hostile_yaml(run_dir, tmp_path):
    executed = tmp_path / "executed"
    run_dir.config.write_text(f"seed: !!python/object/apply:os.mkdir [{executed}]\n")
    with pytest.raises(UsageError, match=r"config\.yaml cannot be read: .*object/apply:os\.mkdir"):
        load_trained(run_dir.path)
    assert not executed.exists()
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]  # grows tenfold with each line
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    run_dir.config.write_text("\n".join([*lines, "data: *a11"]))
    with pytest.raises(UsageError, match=r"config\.yaml: there must be at most"):
        load_trained(run_dir.path)


# The code

FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "joblib.load"}
FORBIDDEN |= {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load"}
FORBIDDEN_METHODS = {"extractall", "unpack_archive", "load_state_dict_from_url"}


def find_calls():
    for path in PYTHON_FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                yield f"{path}:{node.lineno}", ast.unparse(node.func), options


def test_code_executes_no_data():
    """Read SECURITY.md before you change this test."""
    loads = 0
    for where, name, options in find_calls():
        method = name.rpartition(".")[2]
        assert name not in FORBIDDEN, where
        assert method not in FORBIDDEN_METHODS, where
        assert options.get("shell", "False") == "False", where
        assert "allow_pickle" not in options, where
        if method == "extract":
            assert options["filter"] == "'data'", where
        if name == "torch.load" or (method in ("fit", "test") and "ckpt_path" in options):
            assert options["weights_only"] == "True", where
        if method == "get_state_dict":
            assert options == {"check_hash": "True", "weights_only": "True"}, where
        loads += name == "torch.load"
    assert loads == 1


def test_image_starts_no_program(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n"
    (tmp_path / "image.jpg").write_bytes(script)
    with pytest.raises(UsageError, match="cannot identify"):
        read_image(tmp_path / "image.jpg")
    assert not (tmp_path / "started").exists()
