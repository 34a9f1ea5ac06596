"""Pictures of one's own, predicted."""

import csv
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SHORT
from make_svhn import make as make_numbers
from omegaconf import OmegaConf
from photographs import STROKES, photograph
from PIL import Image, ImageOps
from tiny_birds import Bird, write_birds

from spatial_transformer.data.io.image_files import read_picture
from spatial_transformer.inference import predict as predict_module
from spatial_transformer.inference.evaluate import evaluate
from spatial_transformer.inference.load import load_trained
from spatial_transformer.inference.predict import predict
from spatial_transformer.training.runner import train
from spatial_transformer.utils.errors import Stopped, UsageError
from spatial_transformer.visualization.drawing import REGION

SHIPPED = sorted((REPOSITORY / "checkpoints").glob("*.pt"))
ST_CNN = REPOSITORY / "checkpoints" / "st_cnn_mnist.pt"


@pytest.fixture
def of(tmp_path):
    """Predicts with a network; the pictures lie in ``tmp_path/pictures``."""
    (tmp_path / "pictures").mkdir()

    def predict_(run=ST_CNN, **settings):
        places = {
            "run": str(run),
            "images": str(tmp_path / "pictures"),
            "out": str(tmp_path / "out"),
        }
        return predict(
            OmegaConf.create(places | {"checkpoint": "best", "data": {"root": None}} | settings)
        )

    return predict_


def rows(folder):
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_photographed_digits_are_read_right(of, tmp_path, file):
    for digit in STROKES:
        for angle in (-30, 30):
            photograph(digit, angle).save(tmp_path / "pictures" / f"{digit} {angle}.jpg")
    predictions = of(file)
    assert [p.text for p in predictions] == [p.file[0] for p in predictions]
    assert all("inverted" in p.note for p in predictions)
    table = rows(tmp_path / "out")
    assert [row["file"] for row in table] == sorted(
        f"{digit} {angle}.jpg" for digit in STROKES for angle in (-30, 30)
    )
    assert list(table[0]) == [
        "file",
        "prediction",
        "confidence",
        "note",
        *(f"theta_{k}" for k in range(1, 7)),
    ]
    assert all(0.5 < float(row["confidence"]) <= 1 for row in table)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "overview.png",
        "predictions.csv",
        "crops",
    }
    assert {path.name for path in (tmp_path / "out" / "crops").iterdir()} == {
        f"{row['file']}.png" for row in table
    }
    with Image.open(tmp_path / "out" / "crops" / "5 30.jpg.png") as picture:
        assert REGION in {colour for _, colour in picture.getcolors(1 << 24)}, "the window is drawn"
        assert picture.height > 3 * 168, "the photograph, the network's image, the crop"


@pytest.mark.parametrize("dark", [False, True])
def test_images_of_the_networks_size_are_taken_as_they_are(of, tmp_path, mnist_root, dark):
    data, task = load_trained(ST_CNN, data_root=str(mnist_root))[1:3]
    data.setup()
    images = (data.samples("test", torch.arange(60))[0] * 255).round()
    for n, image in enumerate(images):
        picture = Image.fromarray(image[0].byte().numpy())
        (ImageOps.invert(picture) if dark else picture).save(tmp_path / "pictures" / f"{n:02}.png")
    expected = task.network(images / 255)
    assert [int(p.text) for p in of()] == expected.argmax(1).tolist()
    confidence = torch.tensor([float(row["confidence"]) for row in rows(tmp_path / "out")])
    assert torch.allclose(confidence, expected.softmax(1).amax(1), atol=1e-4)


def test_files_that_cannot_be_predicted_are_listed_with_the_reason(of, tmp_path, capsys):
    folder = tmp_path / "pictures"
    photograph("7").save(folder / "seven.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "half.png").write_bytes((folder / "seven.png").read_bytes()[:5000])
    Image.new("RGB", (300, 200), "white").save(folder / "blank.png")
    Image.new("1", (9_000, 8_000)).save(folder / "huge.png")
    Image.new("1", (1, 70_000)).save(folder / "narrow.png")
    Image.fromarray(np.array([[0.0, np.inf], [1.0, 2.0]], np.float32)).save(
        folder / "infinite.tiff"
    )
    os.mkfifo(folder / "pipe.png")  # would be read for ever
    (folder / ".hidden").touch()
    (folder / "more").mkdir()
    (folder / ("long" * 62 + ".png")).write_bytes((folder / "seven.png").read_bytes())
    assert [p.file for p in of()] == ["seven.png"]
    reasons = {
        "notes.txt": "no picture of these formats",
        "half.png": "cannot be read",
        "blank.png": "no digit",
        "huge.png": "9,000 x 8,000",
        "narrow.png": "1 x 70,000",
        "infinite.tiff": "finite",
        "pipe.png": "not a regular file",
        "more": "a folder",
        "long" * 62 + ".png": "at most 240 bytes",
    }
    table = {row["file"]: row for row in rows(tmp_path / "out")}
    assert list(table) == sorted([*reasons, "seven.png"])
    printed = capsys.readouterr().err.splitlines()
    for name, reason in reasons.items():
        assert table[name]["prediction"] == table[name]["confidence"] == ""
        assert table[name]["note"].startswith("skipped: ")
        assert reason in table[name]["note"], name
        assert any(line.startswith(f"Skipped {name}: ") and reason in line for line in printed), (
            name
        )


def test_hostile_names_reach_neither_the_terminal_nor_a_spreadsheet(of, tmp_path, capsys):
    folder = os.fsencode(tmp_path / "pictures")
    picture = io.BytesIO()
    photograph("7").save(picture, "PNG")
    names = [b"=HYPERLINK(0).png", b"-1.png", b"new\nline.png", b"red\x1b[31m.png", b"overview"]
    for name in [*names, b"caf\xe9.png", b"caf\xe8.png"]:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(picture.getvalue())
    with open(os.path.join(folder, b"empty\x1b[2J.png"), "wb"):
        pass
    of()
    table = rows(tmp_path / "out")
    assert sorted(row["file"] for row in table) == sorted(
        [
            *("'=HYPERLINK(0).png", "'-1.png", r"new\nline.png", r"red\x1b[31m.png", "overview"),
            *(r"caf\udce9.png", r"caf\udce8.png", r"empty\x1b[2J.png"),
        ]
    )
    assert len(list((tmp_path / "out" / "crops").iterdir())) == 7, (
        "no picture was written over another"
    )
    with (
        Image.open(tmp_path / "out" / "crops" / "overview.png") as one,
        Image.open(tmp_path / "out" / "overview.png") as sheet,
    ):
        assert one.width < sheet.width
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert len(printed.out.splitlines()) == 1 + 7 + 1


def test_several_digits_and_low_confidence_are_noted(of, tmp_path):
    two = Image.new("RGB", (1200, 800), (210, 210, 200))
    for n, digit in enumerate("47"):
        two.paste(photograph(digit), (600 * n, 0))
    two.save(tmp_path / "pictures" / "two.png")
    photograph("4").save(tmp_path / "pictures" / "one.png")
    one, two = of()
    assert "separate" not in one.note
    assert "2 separate shapes: expected one digit" in two.note
    assert two.note.startswith("unsure") == (two.confidence < 0.5)
    assert [row["note"] for row in rows(tmp_path / "out")] == [one.note, two.note]


def test_an_interrupt_leaves_the_rows_of_what_is_done(of, tmp_path, monkeypatch):
    for n in range(4):
        photograph("7").save(tmp_path / "pictures" / f"{n}.png")
    monkeypatch.setattr(predict_module, "_BATCH_SIZE", 2)
    read = predict_module.read_picture

    def interrupted(path):
        if path.name == "3.png":
            assert len(rows(tmp_path / "out")) == 2, "rows are there while later files are read"
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(predict_module, "read_picture", interrupted)
    with pytest.raises(
        Stopped, match=r"^Interrupted: .*predictions\.csv holds 2 of 4 files\.$"
    ) as stopped:
        of()
    assert stopped.value.code == 130
    assert [row["prediction"] for row in rows(tmp_path / "out")] == ["7", "7"]


def test_nothing_to_predict_is_reported_before_any_work(of, tmp_path):
    with pytest.raises(UsageError, match="no files in it"):
        of()
    with pytest.raises(UsageError, match="no such folder or file"):
        of(images=str(tmp_path / "nowhere"))
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    with pytest.raises(UsageError, match="out must not be the directory of the pictures"):
        of(out=str(tmp_path / "pictures"))
    with pytest.raises(UsageError, match="out must not be the directory of the pictures"):
        of(images=str(tmp_path / "pictures" / "notes.txt"), out=str(tmp_path / "pictures"))
    with pytest.raises(UsageError, match=r"^images and run must be set"):
        of(images="???", run="???")
    with pytest.raises(UsageError, match="not a run directory"):
        of(tmp_path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        UsageError, match=r"predictions\.csv\), first notes\.txt: it cannot be read"
    ):
        of()
    assert [row["file"] for row in rows(tmp_path / "out")] == ["notes.txt"]


def test_a_run_without_a_checkpoint_or_for_other_data_is_refused(
    of, composed, mnist_root, tmp_path
):
    photograph("4").save(tmp_path / "pictures" / "four.png")
    short = [*SHORT, f"data.root={mnist_root}", "logger=csv"]
    train(composed("experiment=mnist_addition", "model=addition_fcn", *short))
    with pytest.raises(UsageError, match="two channels"):
        of(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UsageError, match=r"best\.ckpt does not exist"):
        of(tmp_path / "run")


def test_a_network_without_a_transformer_just_predicts(of, composed, mnist_root, tmp_path):
    train(
        composed("model=fcn", "data.distortion=r", *SHORT, f"data.root={mnist_root}", "logger=csv")
    )
    photograph("2").save(tmp_path / "pictures" / "two.png")
    (prediction,) = of(tmp_path / "run")
    assert prediction.theta == []
    assert len(prediction.column) == 2
    assert list(rows(tmp_path / "out")[0]) == ["file", "prediction", "confidence", "note"]


def test_house_numbers_are_read_whole(of, composed, mnist_root, tmp_path):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 30})
    settings = [
        "experiment=svhn_st_multi",
        f"data.root={tmp_path}/numbers",
        "model.width=0.05",
        "logger=none",
        *SHORT,
    ]
    train(composed(*settings))
    Image.effect_noise((90, 40), 60).convert("CMYK").save(tmp_path / "pictures" / "number.jpg")
    (prediction,) = of(tmp_path / "run")
    assert len(prediction.theta) == 4 * 6
    picture = Image.new("RGB", (30, 60), (10, 20, 30))
    image = load_trained(tmp_path / "run").data.preprocess_picture(picture).image
    assert image.shape == (3, 64, 64)
    assert image.mean().abs() < 1e-6


def test_birds_are_seen_as_in_the_test(of, composed, tmp_path):
    birds = [Bird(species, training) for species in (1, 2) for training in (True, True, False)]
    root = write_birds(tmp_path / "birds", birds)
    short = ["model.weights=none", "logger=none", *SHORT, "data.batch_size=2", "data.workers=1"]
    train(composed("experiment=birds_2st", f"data.root={root}", "data.species=1-2", *short))
    trained = load_trained(tmp_path / "run")
    trained.data.setup()
    images, _ = trained.data.samples("test", torch.arange(2))
    test_files = [
        root / "images" / file
        for file, is_training in zip(*_listed(trained.data))
        if not is_training
    ]
    for file, image in zip(test_files, images, strict=True):
        assert torch.equal(trained.data.preprocess_picture(read_picture(file)).image, image)
    (prediction,) = of(tmp_path / "run", images=str(test_files[0]))
    assert prediction.text in ("Kind a Wren", "Kind b Wren")
    assert len(prediction.theta) == 2 * 2


def _listed(data):
    return data.birds.files, data.birds.training


def test_a_shipped_networks_figure_is_its_own(mnist_root):
    for file in SHIPPED:
        config = OmegaConf.create(
            {
                "run": str(file),
                "checkpoint": "best",
                "data": {"root": str(mnist_root)},
                "trainer": {},
            }
        )
        figures = evaluate(config)
        recorded = torch.load(file, weights_only=True)["record"]["metrics"]
        assert figures["test/error"] == pytest.approx(recorded["test/error"], abs=0.02), (
            "rounding may turn a sample or two"
        )
        assert file.stat().st_size <= 2_000_000


def test_the_program_ends_with_one_message(tmp_path):
    words = [sys.executable, "predict.py", f"run={ST_CNN}", f"images={tmp_path}/nowhere"]
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "no such folder or file" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("program", ["predict.py", "evaluate.py"])
def test_a_program_refuses_a_setting_that_it_has_not(program):
    # A folder may be called 2024.
    words = ["images=2024", "+checkpont=last"] if program == "predict.py" else ["checkpont=last"]
    ended = subprocess.run(
        [sys.executable, program, "run=7", *words], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "checkpont" in ended.stderr
    assert "Did you mean 'checkpoint'?" in ended.stderr
    assert "Traceback" not in ended.stderr
