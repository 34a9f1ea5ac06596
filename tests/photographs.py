"""Photographs of digits written with a pen, made here."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

STROKES = {
    "2": [
        [
            (0.2, 0.3),
            (0.27, 0.12),
            (0.5, 0.03),
            (0.72, 0.12),
            (0.75, 0.32),
            (0.55, 0.6),
            (0.18, 0.96),
            (0.85, 0.94),
        ]
    ],
    "4": [[(0.35, 0.03), (0.18, 0.55), (0.85, 0.52)], [(0.7, 0.2), (0.62, 1.0)]],
    "5": [
        [
            (0.82, 0.04),
            (0.32, 0.05),
            (0.26, 0.44),
            (0.55, 0.38),
            (0.78, 0.55),
            (0.76, 0.82),
            (0.5, 0.97),
            (0.18, 0.88),
        ],
    ],
    "7": [[(0.15, 0.08), (0.85, 0.05), (0.6, 0.5), (0.45, 1.0)]],
}
"""Of some digits, x and y in a square."""


def photograph(
    digit: str, angle: float = 0, size: tuple[int, int] = (600, 800), seed: int = 0
) -> Image.Image:
    """A dark blue pen on bright paper in uneven light, off-centre, a little blurred and noisy.

    Args:
        digit: one of :data:`STROKES`.
        angle: degrees by which it is turned, clockwise.
        size: width and height in pixels.
        seed: of place and noise.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    side = 0.35 * min(size)
    centre = np.array(size) * rng.uniform(0.32, 0.4, 2)
    turn = math.radians(angle)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    pen = Image.new("L", size)
    for stroke in STROKES[digit]:
        points = [tuple(centre + side * matrix @ (np.array(point) - 0.5)) for point in stroke]
        ImageDraw.Draw(pen).line(points, fill=255, width=round(side / 12), joint="curve")
    ink = np.asarray(pen.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float32)[:, :, None] / 255
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = (205 + 35 * x - 25 * y - 20 * (x**2 + y**2))[:, :, None]  # from 80 to 220
    colour = (1 - ink) * np.array([1, 0.98, 0.92]) + ink * np.array([0.2, 0.22, 0.4])
    pixels = light * colour + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
