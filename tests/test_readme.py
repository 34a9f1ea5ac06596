"""What the README says can be done can be done."""

import re

import pytest
from conftest import REPOSITORY
from test_runner import SHORT
from tiny_birds import Bird, write_birds

from spatial_transformer.runner import run
from spatial_transformer.tasks import digit_encoder

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
COMMANDS = [line.split(" #")[0].split() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
TRAINING = [words[2:] for words in COMMANDS if words[:2] == ["python", "train.py"] and "--help" not in words]


@pytest.mark.parametrize("overrides", TRAINING, ids=" ".join)
def test_a_training_command_runs(composed, request, tmp_path, monkeypatch, overrides):
    first_of_each = [word.split(",")[0] for word in overrides if word not in ("-m", "data.root=FOLDER")]
    more = []
    if any("birds" in word for word in overrides):
        birds = [Bird(species, n % 3 > 0) for species in range(1, 51) for n in range(3)]
        root = write_birds(tmp_path / "birds", birds, species=50)
        more = ["model.weights=none", "data.batch_size=2", "data.eval_batch_size=2"]
    elif any("svhn" in word for word in overrides):
        root = request.getfixturevalue("svhn_root")
        more = [f"data.cache={tmp_path}", "data.eval_batch_size=4"]
    else:
        root = request.getfixturevalue("mnist_root")
    if "experiment=colocalisation" in overrides:
        monkeypatch.setitem(digit_encoder.RECIPE, "steps", 2)
        more = [f"task.cache={tmp_path}"]
    config = composed(*first_of_each, *SHORT, f"data.root={root}", "logger=csv", *more)
    assert run(config)["steps"] == 2


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
def test_a_piece_of_python_runs(block):
    exec(block, {})


def test_every_make_target_exists():
    targets = {words[1] for words in COMMANDS if words and words[0] == "make"}
    assert targets
    assert targets <= set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{file.name}" for file in (REPOSITORY / "docs").glob("*.md"))])
def test_links_and_pictures_are_there(document):
    file = REPOSITORY / document
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text()):
        assert target.startswith("https://") or (file.parent / target).is_file(), target


def test_the_tests_that_the_fault_table_names_are_there():
    table = (REPOSITORY / "docs" / "reliability.md").read_text()
    assert len(re.findall(r"^\| .*(?:`|the same) \|$", table, re.M)) >= 15
    for file, test in re.findall(r"`(test_\w+\.py)::(\w+)", table):
        assert f"def {test}(" in next((REPOSITORY / "tests").rglob(file)).read_text(), f"{file}::{test}"
