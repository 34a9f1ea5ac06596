"""Synthetic photographs of handwritten digits."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

STROKES = {
    "2": [((20, 30), (27, 12), (50, 3), (72, 12), (75, 32), (55, 60), (18, 96), (85, 94))],
    "4": [((35, 3), (18, 55), (85, 52)), ((70, 20), (62, 100))],
    "5": [((82, 4), (32, 5), (26, 44), (55, 38), (78, 55), (76, 82), (50, 97), (18, 88))],
    "7": [((15, 8), (85, 5), (60, 50), (45, 100))],
}
"""Points (x, y) of each stroke, in percent of a square."""


def photograph(digit: str, angle: float = 0, size: tuple[int, int] = (600, 800)) -> Image.Image:
    """Draw with a dark blue pen on bright paper in uneven light, blurred, noisy and off-centre.

    Args:
        digit: one of :data:`STROKES`.
        angle: clockwise rotation in degrees.
        size: width and height in pixels.
    """
    rng = np.random.default_rng(0)
    width, height = size
    side = 0.35 * min(size)
    centre = np.array(size) * rng.uniform(0.32, 0.4, 2)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = np.array([[cos, -sin], [sin, cos]])
    pen = Image.new("L", size)
    for stroke in STROKES[digit]:
        points = [tuple(centre + side * matrix @ (np.array(xy) / 100 - 0.5)) for xy in stroke]
        ImageDraw.Draw(pen).line(points, fill=255, width=round(side / 12), joint="curve")
    ink = np.asarray(pen.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float32)[:, :, None] / 255
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = (205 + 35 * x - 25 * y - 20 * (x**2 + y**2))[:, :, None]  # from 80 to 220
    colour = (1 - ink) * np.array([1, 0.98, 0.92]) + ink * np.array([0.2, 0.22, 0.4])
    pixels = light * colour + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
