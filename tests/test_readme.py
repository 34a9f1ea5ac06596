"""What the README says can be done can be done."""

import re
import runpy
import sys

import pytest
from conftest import REPOSITORY, SHORT
from hydra.core.global_hydra import GlobalHydra
from photographs import photograph
from tiny_birds import Bird, write_birds

from spatial_transformer.tasks import digit_encoder
from spatial_transformer.training.runner import train
from spatial_transformer.training.validation import validate

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
COMMANDS = [
    line.split(" #")[0].split()
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
]
DOCUMENTS = [
    "README.md",
    *sorted(str(file.relative_to(REPOSITORY)) for file in REPOSITORY.glob("docs/**/*.md")),
]
TRAINING = [
    words[2:] for words in COMMANDS if words[:2] == ["python", "train.py"] and "--help" not in words
]


@pytest.mark.parametrize("overrides", TRAINING, ids=" ".join)
def test_a_training_command_runs(composed, request, tmp_path, monkeypatch, overrides):
    first_of_each = [
        word.split(",")[0] for word in overrides if word not in ("-m", "data.root=FOLDER")
    ]
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
    assert train(config)["steps"] == 2


@pytest.mark.parametrize("document", DOCUMENTS[1:])
def test_a_training_command_of_a_document_is_a_right_configuration(composed, tmp_path, document):
    for block in re.findall(r"```bash\n(.*?)```", (REPOSITORY / document).read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            _, train, overrides = line.split(" #")[0].partition("train.py ")
            if train and "--" not in overrides:
                first_of_each = [word.split(",")[0] for word in overrides.split() if word != "-m"]
                validate(composed(*first_of_each, f"data.root={tmp_path}"))


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
def test_a_piece_of_python_runs(block, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    exec(block, {})


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if "checkpoints/" in "".join(words)], ids=" ".join
)
def test_a_command_for_a_trained_network_runs(words, tmp_path, monkeypatch, mnist_root):
    photograph("5", 30).save(tmp_path / "five.jpg")
    more = ["data.root="] if words[1] == "predict.py" else ["--data-root", ""]
    more[-1] += str(mnist_root)
    places = {
        "images=FOLDER_OR_FILE": f"images={tmp_path}/five.jpg",
        "network.onnx": f"{tmp_path}/network.onnx",
    }
    out = [f"out={tmp_path}/out"] if words[1] == "predict.py" else []
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(
        sys, "argv", [words[1], *(places.get(word, word) for word in words[2:]), *out, *more]
    )
    GlobalHydra.instance().clear()
    runpy.run_path(words[1], run_name="__main__")
    made = tmp_path / ("out/predictions.csv" if out else "network.onnx")
    assert made.is_file()


def test_every_make_target_exists():
    targets = {words[1] for words in COMMANDS if words and words[0] == "make"}
    assert targets
    assert targets <= set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_pictures_are_there(document):
    file = REPOSITORY / document
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text()):
        assert target.startswith("https://") or (file.parent / target).is_file(), target


def test_the_tests_that_the_fault_table_names_are_there():
    table = (REPOSITORY / "docs" / "guides" / "reliability.md").read_text()
    assert len(re.findall(r"^\| .*` \|$", table, re.M)) >= 20
    for file, test in re.findall(r"`(test_\w+\.py)::(\w+)", table):
        assert f"def {test}(" in next((REPOSITORY / "tests").rglob(file)).read_text(), (
            f"{file}::{test}"
        )
