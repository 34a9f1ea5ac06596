"""Pictures of one's own, predicted."""

import csv
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from omegaconf import OmegaConf
from photographs import STROKES, photograph
from PIL import Image, ImageOps
from test_runner import SHORT
from tiny_birds import Bird, write_birds

from spatial_transformer.building import load_trained
from spatial_transformer.callbacks.drawing import REGION
from spatial_transformer.data.picture_files import read_picture
from spatial_transformer.data.svhn_synthetic import make as make_numbers
from spatial_transformer.errors import UsageError
from spatial_transformer.prediction import predict
from spatial_transformer.runner import evaluate, run

SHIPPED = sorted((REPOSITORY / "checkpoints").glob("*.pt"))
ST_CNN = REPOSITORY / "checkpoints" / "st_cnn_mnist.pt"


@pytest.fixture
def of(tmp_path):
    """Predicts with a network; the pictures lie in ``tmp_path/pictures``."""
    (tmp_path / "pictures").mkdir()

    def predict_(run=ST_CNN, **settings):
        places = {"run": str(run), "images": str(tmp_path / "pictures"), "out": str(tmp_path / "out")}
        return predict(OmegaConf.create(places | {"checkpoint": "best", "data": {"root": None}} | settings))

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
    assert [row["file"] for row in table] == sorted(f"{digit} {angle}.jpg" for digit in STROKES for angle in (-30, 30))
    assert list(table[0]) == ["file", "prediction", "confidence", *(f"theta_{k}" for k in range(1, 7))]
    assert all(0.5 < float(row["confidence"]) <= 1 for row in table)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"overview.png", *(f"{row['file']}.png" for row in table)}
    with Image.open(tmp_path / "out" / "5 30.jpg.png") as picture:
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


def test_other_files_are_told_and_left_out(of, tmp_path, capsys):
    folder = tmp_path / "pictures"
    photograph("7").save(folder / "seven.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "half.png").write_bytes((folder / "seven.png").read_bytes()[:5000])
    Image.new("RGB", (300, 200), "white").save(folder / "blank.png")
    Image.new("1", (9_000, 8_000)).save(folder / "huge.png")
    (folder / ".hidden").touch()
    (folder / "more").mkdir()
    (folder / ("long" * 62 + ".png")).write_bytes((folder / "seven.png").read_bytes())
    assert [p.file for p in of()] == ["seven.png"]
    told = capsys.readouterr().err
    for name, reason in {
        "notes.txt": "no picture of these formats",
        "half.png": "cannot be read",
        "blank.png": "no digit",
        "huge.png": "9,000 x 8,000",
        "more": "a folder",
        "longlong": "a shorter name",
    }.items():
        assert any(name in line and reason in line for line in told.splitlines()), name
    assert ".hidden" not in told


def test_nothing_to_predict_is_said_before_any_work(of, tmp_path):
    with pytest.raises(UsageError, match="no files in it"):
        of()
    with pytest.raises(UsageError, match="no such folder or file"):
        of(images=str(tmp_path / "nowhere"))
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    with pytest.raises(UsageError, match="holds the pictures themselves"):
        of(out=str(tmp_path / "pictures"))
    with pytest.raises(UsageError, match="holds the pictures themselves"):
        of(images=str(tmp_path / "pictures" / "notes.txt"), out=str(tmp_path / "pictures"))
    with pytest.raises(UsageError, match=r"notes\.txt"):
        of()
    with pytest.raises(UsageError, match="not a run folder"):
        of(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_checkpoint_or_for_other_data_is_refused(of, composed, mnist_root, tmp_path):
    photograph("4").save(tmp_path / "pictures" / "four.png")
    short = [*SHORT, f"data.root={mnist_root}", "logger=csv"]
    run(composed("experiment=mnist_addition", "model=addition_fcn", *short))
    with pytest.raises(UsageError, match="two channels"):
        of(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UsageError, match=r"no checkpoint .*best\.ckpt"):
        of(tmp_path / "run")


def test_a_network_without_a_transformer_just_predicts(of, composed, mnist_root, tmp_path):
    run(composed("model=fcn", "data.distortion=r", *SHORT, f"data.root={mnist_root}", "logger=csv"))
    photograph("2").save(tmp_path / "pictures" / "two.png")
    (prediction,) = of(tmp_path / "run")
    assert prediction.theta == []
    assert len(prediction.column) == 2
    assert list(rows(tmp_path / "out")[0]) == ["file", "prediction", "confidence"]


def test_house_numbers_are_read_whole(of, composed, mnist_root, tmp_path):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 30})
    settings = ["experiment=svhn_st_multi", f"data.root={tmp_path}/numbers", "model.width=0.05", "logger=none", *SHORT]
    run(composed(*settings))
    Image.effect_noise((90, 40), 60).convert("CMYK").save(tmp_path / "pictures" / "number.jpg")
    (prediction,) = of(tmp_path / "run")
    assert len(prediction.theta) == 4 * 6
    image = load_trained(tmp_path / "run").data.view(Image.new("RGB", (30, 60), (10, 20, 30))).image
    assert image.shape == (3, 64, 64)
    assert image.mean().abs() < 1e-6


def test_birds_are_seen_as_in_the_test(of, composed, tmp_path):
    birds = [Bird(species, training) for species in (1, 2) for training in (True, True, False)]
    root = write_birds(tmp_path / "birds", birds)
    short = ["model.weights=none", "logger=none", *SHORT, "data.batch_size=2", "data.workers=1"]
    run(composed("experiment=birds_2st", f"data.root={root}", "data.species=1-2", *short))
    trained = load_trained(tmp_path / "run")
    trained.data.setup()
    images, _ = trained.data.samples("test", torch.arange(2))
    test_files = [root / "images" / file for file, is_training in zip(*_listed(trained.data)) if not is_training]
    for file, image in zip(test_files, images, strict=True):
        assert torch.equal(trained.data.view(read_picture(file)).image, image)
    (prediction,) = of(tmp_path / "run", images=str(test_files[0]))
    assert prediction.text in ("Kind a Wren", "Kind b Wren")
    assert len(prediction.theta) == 2 * 2


def _listed(data):
    return data._birds.files, data._birds.training


def test_a_shipped_networks_figure_is_its_own(mnist_root):
    for file in SHIPPED:
        config = OmegaConf.create({"run": str(file), "checkpoint": "best", "data": {"root": str(mnist_root)}, "trainer": {}})
        figures = evaluate(config)
        recorded = torch.load(file, weights_only=True)["record"]["metrics"]
        assert figures["test/error"] == pytest.approx(recorded["test/error"], abs=0.02), "rounding may turn a sample or two"
        assert file.stat().st_size <= 2_000_000


def test_the_program_ends_with_one_message(tmp_path):
    words = [sys.executable, "predict.py", f"run={ST_CNN}", f"images={tmp_path}/nowhere"]
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "no such folder or file" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("program", ["predict.py", "evaluate.py"])
def test_a_program_refuses_a_setting_that_it_has_not(program):
    images = ["images=2024"] if program == "predict.py" else []  # a folder may be called so
    for words in (["+checkpont=last"], ["checkpont=last"]):
        ended = subprocess.run(
            [sys.executable, program, "run=7", *images, *words], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert ended.returncode == 1
        assert "checkpont" in ended.stderr
        assert "did you mean checkpoint?" in ended.stderr
        assert "Traceback" not in ended.stderr
