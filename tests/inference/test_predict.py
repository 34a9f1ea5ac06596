"""Predictions for files and for images in memory."""

import csv
import io
import os
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, SHORT
from make_svhn import make as make_numbers
from omegaconf import OmegaConf
from photographs import STROKES, photograph
from PIL import Image, ImageOps
from tiny_birds import write_birds

from spatial_transformer.data.io.image_files import read_picture
from spatial_transformer.inference.load import Trained, load_trained
from spatial_transformer.inference.predict import predict, predict_images
from spatial_transformer.training.build import build
from spatial_transformer.training.runner import train
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.visualization.drawing import REGION

PACKED = sorted((REPOSITORY / "checkpoints").glob("st_*.pt"))
ST_CNN = REPOSITORY / "checkpoints" / "st_cnn_mnist.pt"


@pytest.fixture
def pictures(tmp_path):
    """A directory for pictures."""
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


@pytest.fixture
def predict_files(tmp_path, pictures):
    """Predict all pictures."""

    def predict_(run=ST_CNN, **settings):
        paths = {"run": str(run), "images": str(pictures), "out": str(tmp_path / "out")}
        defaults = paths | {"checkpoint": "best", "data": {"root": None}}
        return predict(OmegaConf.create(defaults | settings))

    return predict_


@pytest.fixture(scope="module")
def trained():
    return load_trained(ST_CNN)


@pytest.fixture
def strokes(digits):
    """Return five black and white images of the network's size, ``(5, 42, 42)`` uint8."""
    return F.pad((digits[:5, 0] > 0.5).byte() * 255, (7, 7, 7, 7)).numpy()


@pytest.fixture
def make_untrained(composed):
    """Return a network with random weights as load_trained does."""

    def make(*settings):
        torch.manual_seed(0)
        config = composed(*settings)
        return Trained(config, *build(config), {})

    return make


def read_table(directory):
    with (directory / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


# Files


@pytest.mark.parametrize("network", PACKED, ids=lambda file: file.stem)
def test_photographed_digits(predict_files, pictures, tmp_path, network):
    for digit in STROKES:
        for angle in (-30, 30):
            photograph(digit, angle).save(pictures / f"{digit} {angle}.jpg")
    predictions = predict_files(network)
    assert [p.text for p in predictions] == [p.file[0] for p in predictions]
    assert all("inverted" in p.note for p in predictions)
    labels = ["your image", "input and sampling grid", "transformer output"]
    assert all(p.labels == labels and len(p.column) == 3 for p in predictions)
    out, files = tmp_path / "out", sorted(file.name for file in pictures.iterdir())
    table = read_table(out)
    assert [row["file"] for row in table] == files
    thetas = [f"theta_{k}" for k in range(1, 7)]
    assert list(table[0]) == ["file", "prediction", "confidence", "note", *thetas]
    assert all(0.5 < float(row["confidence"]) <= 1 for row in table)
    assert {file.name for file in out.iterdir()} == {"overview.png", "predictions.csv", "crops"}
    assert sorted(file.name for file in (out / "crops").iterdir()) == [f"{f}.png" for f in files]
    with Image.open(out / "crops" / "5 30.jpg.png") as picture:
        assert REGION in {colour for _, colour in picture.getcolors(1 << 24)}
        assert picture.height > 3 * 168  # photograph, input and crop


@pytest.mark.parametrize("dark", [False, True])
def test_test_images_as_files(predict_files, pictures, tmp_path, mnist_root, monkeypatch, dark):
    monkeypatch.setattr("spatial_transformer.inference.predict.MAX_OVERVIEW", 4)
    data, task = load_trained(ST_CNN, data_root=str(mnist_root))[1:3]
    data.setup()
    images = (data.samples("test", torch.arange(40))[0] * 255).round()
    for n, image in enumerate(images):
        picture = Image.fromarray(image[0].byte().numpy())
        (ImageOps.invert(picture) if dark else picture).save(pictures / f"{n:02}.png")
    expected = task.network(images / 255)
    predictions = predict_files()
    assert [int(p.text) for p in predictions] == expected.argmax(1).tolist()
    assert [len(p.column) for p in predictions] == [3] * 4 + [0] * 36
    with Image.open(tmp_path / "out" / "overview.png") as overview:
        assert overview.height < 4 * 168, "one row of three images each"
    confidence = torch.tensor([float(row["confidence"]) for row in read_table(tmp_path / "out")])
    assert torch.allclose(confidence, expected.softmax(1).amax(1), atol=1e-4)


def test_skipped_files_are_listed(predict_files, pictures, tmp_path, capsys):
    photograph("7").save(pictures / "seven.png")
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "half.png").write_bytes((pictures / "seven.png").read_bytes()[:5000])
    Image.new("RGB", (300, 200), "white").save(pictures / "blank.png")
    Image.new("1", (9_000, 8_000)).save(pictures / "huge.png")
    Image.new("1", (1, 70_000)).save(pictures / "narrow.png")
    infinite = np.array([[0.0, np.inf], [1.0, 2.0]], np.float32)
    Image.fromarray(infinite).save(pictures / "infinite.tiff")
    os.mkfifo(pictures / "pipe.png")  # reading it would never end
    (pictures / ".hidden").touch()
    (pictures / "more").mkdir()
    assert [p.file for p in predict_files()] == ["seven.png"]
    reasons = {
        "notes.txt": "no picture of these formats",
        "half.png": "cannot be read",
        "blank.png": "no digit",
        "huge.png": "9,000 x 8,000",
        "narrow.png": "no digit",
        "infinite.tiff": "finite",
        "pipe.png": "not a regular file",
        "more": "a folder",
    }
    table = {row["file"]: row for row in read_table(tmp_path / "out")}
    assert list(table) == sorted([*reasons, "seven.png"])
    errors = capsys.readouterr().err
    for name, reason in reasons.items():
        assert table[name]["prediction"] == table[name]["confidence"] == ""
        assert re.fullmatch(rf"skipped: .*{reason}.*", table[name]["note"])
        assert re.search(rf"^Skipped {re.escape(name)}: .*{reason}", errors, re.M)


def test_hostile_names(predict_files, pictures, tmp_path, capsys):
    content = io.BytesIO()
    photograph("7").save(content, "PNG")
    names = [b"=HYPERLINK(0).png", b"-1.png", b"new\nline.png", b"red\x1b[31m.png", b"overview"]
    for name in [*names, b"caf\xe9.png", b"caf\xe8.png"]:
        with open(os.path.join(os.fsencode(pictures), name), "wb") as file:
            file.write(content.getvalue())
    (pictures / "empty\x1b[2J.png").touch()
    predict_files()
    expected = ["'=HYPERLINK(0).png", "'-1.png", r"new\nline.png", r"red\x1b[31m.png", "overview"]
    expected += [r"caf\udce9.png", r"caf\udce8.png", r"empty\x1b[2J.png"]
    out = tmp_path / "out"
    assert sorted(row["file"] for row in read_table(out)) == sorted(expected)
    assert len(list((out / "crops").iterdir())) == 7
    with (
        Image.open(out / "crops" / "overview.png") as one,
        Image.open(out / "overview.png") as all_,
    ):
        assert one.width < all_.width
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert len(printed.out.splitlines()) == 7 + 1


def test_notes(predict_files, pictures, tmp_path):
    two = Image.new("RGB", (1200, 800), (210, 210, 200))
    for n, digit in enumerate("47"):
        two.paste(photograph(digit), (600 * n, 0))
    two.save(pictures / "two.png")
    photograph("4").save(pictures / "one.png")
    one, two = predict_files()
    assert "separate" not in one.note
    assert "2 separate shapes: expected one digit" in two.note
    assert two.note.startswith("unsure") == (two.confidence < 0.5)
    assert [row["note"] for row in read_table(tmp_path / "out")] == [one.note, two.note]


def test_interruption_keeps_the_rows(predict_files, pictures, tmp_path, monkeypatch):
    for n in range(3):
        photograph("7").save(pictures / f"{n}.png")

    def interrupt(path):
        if path.name == "2.png":
            raise KeyboardInterrupt
        return read_picture(path)

    monkeypatch.setattr("spatial_transformer.inference.predict.read_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict_files()
    assert [row["prediction"] for row in read_table(tmp_path / "out")] == ["7", "7"]


def test_wrong_paths(predict_files, pictures, tmp_path):
    with pytest.raises(UsageError, match="contains no files"):
        predict_files()
    with pytest.raises(UsageError, match="does not exist"):
        predict_files(images=str(tmp_path / "nowhere"))
    (pictures / "notes.txt").write_text("no picture")
    for images in (pictures, pictures / "notes.txt"):
        with pytest.raises(UsageError, match="out must not be the directory of the pictures"):
            predict_files(images=str(images), out=str(pictures))
    with pytest.raises(UsageError, match="not a run directory"):
        predict_files(tmp_path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=r"nothing to predict, see .*predictions\.csv"):
        predict_files()
    assert [row["file"] for row in read_table(tmp_path / "out")] == ["notes.txt"]
    photograph("2").save(pictures / "two.png")
    with pytest.raises(UsageError, match=r"notes\.txt/out cannot be written: .*Use out=DIRECTORY"):
        predict_files(out=str(pictures / "notes.txt" / "out"))


def test_directory_whose_name_is_a_number(predict_files, pictures, tmp_path, monkeypatch):
    photograph("2").save(pictures / "two.png")
    monkeypatch.chdir(tmp_path)
    predict_files(out=2026)
    assert (tmp_path / "2026" / "predictions.csv").is_file()


def test_network_without_a_transformer(predict_files, pictures, composed, mnist_root, tmp_path):
    settings = ["model=fcn", "data.distortion=r", f"data.root={mnist_root}", "logger=csv"]
    train(composed(*settings, *SHORT))
    photograph("2").save(pictures / "two.png")
    (prediction,) = predict_files(tmp_path / "run")
    assert prediction.theta == []
    assert len(prediction.column) == 2
    assert list(read_table(tmp_path / "out")[0]) == ["file", "prediction", "confidence", "note"]


def test_house_number(predict_files, pictures, composed, mnist_root, tmp_path):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 30})
    settings = ["experiment=svhn_st_multi", f"data.root={tmp_path}/numbers", "model.width=0.05"]
    train(composed(*settings, "logger=none", *SHORT))
    Image.effect_noise((90, 40), 60).convert("CMYK").save(pictures / "number.jpg")
    Image.new("RGB", (1, 900), "red").save(pictures / "narrow.png")
    narrow, prediction = predict_files(tmp_path / "run")
    assert narrow.column[0].getpixel((80, 80)) == (255, 0, 0)
    assert len(prediction.theta) == 4 * 6
    image = (
        load_trained(tmp_path / "run")
        .data.preprocess_picture(Image.new("RGB", (30, 60), (10, 20, 30)))
        .image
    )
    assert image.shape == (3, 64, 64)
    assert image.mean().abs() < 1e-6


def test_birds(predict_files, composed, tmp_path):
    root = write_birds(tmp_path / "birds", species=2)
    settings = ["experiment=birds_2st", f"data.root={root}", "data.species=1-2", "data.workers=1"]
    settings += ["model.weights=none", "logger=none", *SHORT, "data.batch_size=2"]
    train(composed(*settings))
    data = load_trained(tmp_path / "run").data
    data.setup()
    files = [file for file, used in zip(data.birds.files, data.birds.training) if not used]
    for file, image in zip(files, data.samples("test", torch.arange(2))[0], strict=True):
        assert torch.equal(
            data.preprocess_picture(read_picture(root / "images" / file)).image, image
        )
    (prediction,) = predict_files(tmp_path / "run", images=str(root / "images" / files[0]))
    assert prediction.text in ("Kind a Wren", "Kind b Wren")
    assert len(prediction.theta) == 2 * 2
    (root / "classes.txt").unlink()
    with pytest.raises(UsageError, match=r"CUB is incomplete: .* does not contain classes\.txt"):
        predict_files(tmp_path / "run", images=str(root / "images" / files[0]))


# Images in memory


def test_images_are_predicted_as_files(trained, predict_files, pictures):
    photographs = [photograph(digit, angle=20) for digit in STROKES]
    for digit, picture in zip(STROKES, photographs):
        picture.save(pictures / f"{digit}.png")
    expected = predict_files()
    found = predict_images(trained, photographs)
    assert found.texts == [one.text for one in expected] == list(STROKES)
    assert found.confidences.tolist() == pytest.approx([one.confidence for one in expected])
    thetas = torch.tensor([one.theta for one in expected])
    torch.testing.assert_close(found.thetas[0], thetas, atol=1e-5, rtol=1e-5)


def test_outputs_of_the_network(trained, strokes):
    found = predict_images(trained, strokes)
    inputs = torch.from_numpy(strokes)[:, None] / 255
    assert torch.equal(found.inputs, inputs)
    network = trained.task.network
    with torch.no_grad():
        probabilities = network(inputs).softmax(dim=1)
        crop, theta = network.transformer(inputs, return_theta=True)
    torch.testing.assert_close(found.confidences, probabilities.amax(dim=1))
    assert torch.equal(found.labels, probabilities.argmax(dim=1))
    assert found.texts == [str(label) for label in found.labels.tolist()]
    torch.testing.assert_close((found.thetas, found.crops), ((theta,), (crop,)))


def test_network_in_training_mode(make_untrained, strokes):
    untrained = make_untrained("model=fcn", "data.distortion=rts", "recipe.dropout=0.9")
    untrained.task.train()
    found = predict_images(untrained, strokes)
    assert untrained.task.training
    assert found.thetas == found.crops == ()
    logits = untrained.task.eval().network(found.inputs)
    torch.testing.assert_close(found.confidences, logits.softmax(dim=1).amax(dim=1).detach())


def test_house_numbers_have_a_label_per_position(make_untrained, tmp_path):
    settings = ["experiment=svhn_st_multi", "model.width=0.05", f"data.root={tmp_path}"]
    found = predict_images(make_untrained(*settings), np.random.rand(2, 90, 40, 3))
    assert found.labels.shape == (2, 5)
    digits = [[str(n) for n in number if n < 10] for number in found.labels.tolist()]
    assert found.texts == ["".join(number) for number in digits]
    assert [tuple(theta.shape) for theta in found.thetas] == [(2, 6)] * 4
    assert [crop.shape[-1] for crop in found.crops] == [64, 32, 32, 16]


def test_wrong_images(trained, make_untrained, strokes):
    with pytest.raises(UsageError, match=r"^images\[2\]: it shows no digit"):
        predict_images(trained, [strokes[:2], np.zeros((1, 60, 80), np.uint8)])
    untrained = make_untrained("experiment=mnist_addition", "model=addition_fcn")
    with pytest.raises(UsageError, match=r"addition.* cannot be used .* two channels"):
        predict_images(untrained, np.zeros((42, 42)))
