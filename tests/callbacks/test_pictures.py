"""The animation of a run's crops."""

from types import SimpleNamespace

from PIL import Image, ImageDraw

from spatial_transformer.callbacks.drawing import REGION, TOP
from spatial_transformer.callbacks.pictures import CropPictures


def test_thin_lines_keep_their_colours_in_the_animation(tmp_path):
    for step in range(3):
        frame = Image.effect_noise((400, 300), 80).convert("RGB")
        ImageDraw.Draw(frame).line([(20, 20), (200, 60)], fill=REGION)
        ImageDraw.Draw(frame).line([(20, 90 + step), (200, 130)], fill=TOP)
        frame.save(tmp_path / f"crops_{step}.png")
    CropPictures(tmp_path).on_fit_end(SimpleNamespace(is_global_zero=True, loggers=[]), None)
    with Image.open(tmp_path / "training.gif") as animation:
        assert animation.n_frames == 3
        animation.seek(2)
        colours = {colour for _, colour in animation.convert("RGB").getcolors(1 << 24)}
    assert {REGION, TOP} <= colours


def test_frames_with_captions_of_other_lengths_are_all_whole(tmp_path):
    for height in (20, 30):
        Image.new("RGB", (10, height), "red").save(tmp_path / f"crops_{height:07d}.png")
    trainer = SimpleNamespace(is_global_zero=True, loggers=[])
    CropPictures(tmp_path).on_fit_end(trainer, None)
    with Image.open(tmp_path / "training.gif") as animation:
        assert animation.size == (10, 30)
        for frame, red in ((0, 20), (1, 30)):
            animation.seek(frame)
            pixels = animation.convert("RGB")
            assert [pixels.getpixel((5, y)) == (255, 0, 0) for y in range(30)] == [True] * red + [False] * (30 - red)
