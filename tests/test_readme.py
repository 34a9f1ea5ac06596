"""The commands, code and links of README and docs work, and the README stays short."""

import re
import runpy
import sys

import pytest
import torch
from conftest import REPOSITORY, SHORT
from hydra.core.global_hydra import GlobalHydra
from photographs import photograph
from tiny_birds import Bird, write_birds
from torch import nn

from spatial_transformer.tasks import digit_encoder
from spatial_transformer.training.runner import train
from spatial_transformer.training.validation import validate

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
README, MANUAL = (REPOSITORY / "README.md").read_text(), REPOSITORY / "docs" / "getting-started.md"
NOT_EXECUTED = {  # first words of a command, and the resource that it needs
    "torchrun": "several processes",
    "wandb": "an account",
    "scripts/dev/slurm.sh": "a root shell on Debian",
    "pip": "a network",
    "python -m venv": "a network",
    "pytest": "runs these tests",
    "python tests/conformance/make_golden.py": "overwrites expected results",
    ". .venv/bin/activate": "an environment",
}


def commands(page):
    """Return the commands of a page: lines of bash blocks, and cells of tables of the README."""
    text = page.read_text()
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", " ")
    cells = (
        re.findall(r"^\|.*`((?:python|make) [^`]+)`", text, re.M)
        if page.parent == REPOSITORY
        else []
    )
    found = [line.split(" #")[0].strip() for line in [*lines.splitlines(), *cells]]
    return [command for command in found if command and not command.startswith("#")]


COMMANDS = {command: page for page in PAGES for command in commands(page)}


def training_commands():
    """Return the settings of each training command on one device. Those of most pages are slow."""
    found = {}
    for command, page in COMMANDS.items():
        is_here = not re.search("--|sweep=|ablation=|launcher=|trainer=(ddp|gpu|mps)", command)
        if command.startswith("python train.py ") and is_here:
            words = [word.strip("'").split(",")[0] for word in command.split()[2:] if word != "-m"]
            found.setdefault(tuple(word for word in words if "data.root" not in word), page)
    slow = [page not in (REPOSITORY / "README.md", MANUAL) for page in found.values()]
    marks = [[pytest.mark.slow] if is_slow else [] for is_slow in slow]
    return [
        pytest.param(words, marks=mark, id=" ".join(words))
        for words, mark in zip(found, marks, strict=True)
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists(command, composed, tmp_path):
    words = command.split()
    if command.startswith("python train.py ") and "--" not in command:
        overrides = [word.split(",")[0] for word in words[2:] if word != "-m"]
        validate(composed(*overrides, f"data.root={tmp_path}"))
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.M)
    elif not command.startswith(tuple(NOT_EXECUTED)):
        text = (REPOSITORY / words[1]).read_text()
        assert all(word in text for word in words[2:] if word.startswith("--") and word != "--help")


@pytest.mark.parametrize("overrides", training_commands())
def test_a_training_command_runs(composed, request, tmp_path, monkeypatch, overrides):
    overrides = [word for word in overrides if not word.startswith("logger")]
    more = []
    if any("birds" in word for word in overrides):
        birds = [Bird(species, n % 3 > 0) for species in range(1, 201) for n in range(3)]
        root = write_birds(tmp_path / "birds", birds, species=200)
        more = ["model.weights=none", "data.batch_size=2", "data.eval_batch_size=2"]
    elif any("svhn" in word for word in overrides):
        root = request.getfixturevalue("svhn_root")
        more = [f"data.cache={tmp_path}", "data.eval_batch_size=4"]
        if "experiment=svhn_registration" not in overrides:
            more.append("model.width=0.1")
    else:
        root = request.getfixturevalue("mnist_root")
    if any("colocalisation" in word for word in overrides):
        monkeypatch.setitem(digit_encoder.RECIPE, "steps", 2)
        more = [f"task.cache={tmp_path}"]
    config = composed(*overrides, *SHORT, f"data.root={root}", "logger=csv", *more)
    assert train(config)["steps"] == 2


@pytest.mark.parametrize("command", [command for command in COMMANDS if "checkpoints/" in command])
def test_a_command_for_a_trained_network_runs(command, tmp_path, monkeypatch, mnist_root):
    photograph("5", 30).save(tmp_path / "five.jpg")
    program, *words = command.split()[1:]
    places = {"IMAGES": f"{tmp_path}/five.jpg", "network.onnx": f"{tmp_path}/network.onnx"}
    words = [places.get(word, word) for word in words]
    if program == "predict.py":
        words += [f"out={tmp_path}/out", f"data.root={mnist_root}"]
    else:
        words += ["--data-root", str(mnist_root)]
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", [program, *words])
    GlobalHydra.instance().clear()
    runpy.run_path(program, run_name="__main__")
    assert list(tmp_path.glob("out/predictions.csv")) or list(tmp_path.glob("network.onnx"))


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.S))
def test_a_python_example_runs(block, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    exec(block, {})


def test_the_layer_of_the_readme_fits_a_model():
    diff = re.search(r"```diff\n(.*?)```", README, re.S)[1]
    code = "\n".join(line[1:] for line in diff.splitlines())
    names = {"nn": nn}
    exec(code, names)
    assert len(re.findall(r"^\+", diff, re.M)) == 4
    assert names["model"](torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_and_images_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path = target.partition("#")[0]
        is_web = target.startswith(("https://", "../../actions/"))
        assert is_web or not path or (page.parent / path).exists(), target


def test_the_readme_is_short():
    prose = re.sub(r"```.*?```|<!--.*?-->", "", README, flags=re.S)
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    text = "\n".join(line for line in prose.splitlines() if not line.startswith(("|", "#", "[![")))
    text = re.sub(r"\]\([^)]*\)", "", text)
    sentences = re.findall(r"[^.!?:]+[.!?:](?=\s|\*)", text)
    assert len(re.findall(r"\b[A-Za-z][\w'-]*", prose)) <= 900
    assert len(rows) <= 45
    assert text.count(",") <= 0.9 * len(sentences)
    assert README.count(";") <= 3
    assert len(re.findall(r"\b[Yy]ou(?:r|rs)?\b", text)) >= 12


def test_the_tests_that_the_fault_table_names_exist():
    table = (REPOSITORY / "docs" / "guides" / "reliability.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(\w+)", table)
    assert len(named) >= 20
    for file, test in named:
        path = next((REPOSITORY / "tests").rglob(file))
        assert f"def {test}(" in path.read_text(), f"{file}::{test}"
