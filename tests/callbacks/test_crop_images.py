"""The animation of the crops of a run."""

import resource
from types import SimpleNamespace

import pytest
from PIL import Image, ImageDraw

from spatial_transformer import Affine, FcLocalisation, SpatialTransformer
from spatial_transformer.callbacks.crop_images import CropImages
from spatial_transformer.visualization.crops import read_png
from spatial_transformer.visualization.drawing import REGION, TOP


def animate(folder, network=None):
    """Make the animation of the pictures in a directory."""
    network = network or SpatialTransformer(FcLocalisation((1, 9, 9), Affine()), Affine())
    trainer = SimpleNamespace(is_global_zero=True, loggers=[])
    CropImages(folder).on_fit_end(trainer, SimpleNamespace(network=network))
    return folder / "training.gif"


def test_thin_lines_keep_their_colours(tmp_path):
    for step in range(3):
        frame = Image.effect_noise((400, 300), 80).convert("RGB")
        ImageDraw.Draw(frame).line([(20, 20), (200, 60)], fill=REGION)
        ImageDraw.Draw(frame).line([(20, 90 + step), (200, 130)], fill=TOP)
        frame.save(tmp_path / f"crops_{step}.png")
    with Image.open(animate(tmp_path)) as animation:
        assert animation.n_frames == 3
        animation.seek(2)
        assert animation.info["duration"] == 2000, "it rests on the last frame"
        colours = {colour for _, colour in animation.convert("RGB").getcolors(1 << 24)}
    assert {REGION, TOP} <= colours


def test_lower_frames_are_padded(tmp_path):
    for height in (20, 30):
        Image.new("RGB", (10, height), "red").save(tmp_path / f"crops_{height:07d}.png")
    with Image.open(animate(tmp_path)) as animation:
        assert animation.size == (10, 30)
        for frame, red in ((0, 20), (1, 30)):
            animation.seek(frame)
            pixels = animation.convert("RGB")
            column = [pixels.getpixel((5, y)) == (255, 0, 0) for y in range(30)]
            assert column == [True] * red + [False] * (30 - red)


@pytest.fixture
def few_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    yield 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_frames_are_a_selection_of_more_pictures_than_files_can_be_open(tmp_path, few_open_files):
    shades = range(2 * few_open_files + 1)
    for step in shades:
        Image.new("RGB", (4, 4), (step, 0, 0)).save(tmp_path / f"crops_{step:07d}.png")
    seen = []
    with Image.open(animate(tmp_path)) as animation:
        for frame in range(animation.n_frames):
            animation.seek(frame)
            seen.append(animation.convert("RGB").getpixel((0, 0))[0])
    assert len(seen) == 60
    assert (seen[0], seen[-1]) == (shades[0], shades[-1])
    assert seen == sorted(seen)


def test_a_broken_picture_is_named_and_left_out(tmp_path, caplog):
    for step in range(3):
        frame = Image.effect_noise((40, 40), 50 + step).convert("RGB")
        frame.save(tmp_path / f"crops_{step:07d}.png")
    broken = tmp_path / "crops_0000001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with Image.open(animate(tmp_path)) as animation:
        assert animation.n_frames == 2
    assert str(broken) in caplog.text
    for path in tmp_path.glob("crops_*.png"):
        path.write_bytes(b"")
    (tmp_path / "training.gif").unlink()
    assert not animate(tmp_path).exists()
    assert "on_fit_end failed" not in caplog.text


def test_pictures_are_read_by_the_decoder_of_png_only(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript", lambda *args, **more: started.append(args)
    )
    file = tmp_path / "crops_0000001.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(any PostScript) run\n")
    with pytest.raises(ValueError, match=r"crops_0000001.png cannot be read as a PNG file"):
        read_png(file)
    assert started == []
