"""Make the demo: an HTML page that runs three networks for distorted MNIST in the browser.

python scripts/make_demo.py [--out demo/index.html] [--data-root DIRECTORY] [--gif FILE.gif]

--gif also opens the page in Chromium, moves its sliders and writes an animation. It needs selenium.
"""

import base64
import io
import math
import shutil
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from spatial_transformer.data.mnist import files
from spatial_transformer.inference.load import load_trained
from spatial_transformer.reporting.html import write_page
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.files import atomic_write
from spatial_transformer.utils.text import one_line

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "checkpoints"
NETWORKS = {"ST-CNN": "st_cnn_mnist.pt", "ST-FCN": "st_fcn_mnist.pt", "CNN": "cnn_mnist.pt"}
GIF_WIDTH, GIF_FRAMES = 820, 60
WINDOW = 980
"""Width of the window that the animation shows, in pixels."""


def main() -> None:
    """Write the page and, on demand, the animation."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "demo" / "index.html",
        metavar="FILE",
        help="path of the page (default: demo/index.html)",
    )
    parser.add_argument("--data-root", metavar="DIRECTORY", help="contains MNIST/raw")
    parser.add_argument("--gif", type=Path, metavar="FILE", help="also write an animation")
    options = parser.parse_args()
    try:
        write_demo(options.out, read_digits(options.data_root))
        if options.gif is not None:
            write_gif(options.out, options.gif)
    except (UsageError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    for file in filter(None, (options.out, options.gif)):
        print(f"Wrote {file} ({file.stat().st_size / 1e6:.1f} MB).")


def read_digits(data_root: str | None) -> Tensor:
    """Return the first test digit of each class, ``(10, 28, 28)`` uint8."""
    images, labels = files.read(files.prepare(data_root), train=False)
    return torch.stack([images[labels == digit][0] for digit in range(10)])


def write_demo(out: Path, digits: Tensor) -> None:
    """Write the page.

    Args:
        out: the HTML file.
        digits: ``(10, 28, 28)`` uint8, the digits that the page offers.
    """
    data = {
        "networks": [describe_network(name, CHECKPOINTS / file) for name, file in NETWORKS.items()],
        "digits": [encode(digit.numpy()) for digit in digits],
    }
    write_page(out, "demo.html", {"data": data})


def describe_network(name: str, file: Path) -> dict[str, Any]:
    """Return the layers of a packed network and the result of its run."""
    trained = load_trained(file)
    network: Any = trained.task.network
    record = trained.record
    transformer = network.transformer
    pooling = [nn.AvgPool2d(network.pool)] if network.pool > 1 else []
    return {
        "name": name,
        "error": record["metrics"]["test/error"],
        **{key: record[key] for key in ("steps", "recipe", "precision", "parameters")},
        "localisation": None if transformer is None else describe_layers(transformer.localisation),
        "pooling": describe_layers(pooling),
        "classifier": describe_layers(network.classifier),
    }


def describe_layers(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Return layers as the page computes them. It needs no Flatten and no Dropout."""
    needed = [module for module in modules if not isinstance(module, nn.Flatten | nn.Dropout)]
    return [describe_layer(module) for module in needed]


def describe_layer(layer: nn.Module) -> dict[str, Any]:
    """Return the kind of a layer, its settings and its weights.

    Raises:
        TypeError: the page does not have such a layer.
    """
    match layer:
        case nn.Linear():
            return {"kind": "linear", **encode_weights(layer)}
        case nn.Conv2d():
            return {"kind": "conv", "kernel": layer.kernel_size[0], **encode_weights(layer)}
        case nn.MaxPool2d():
            return {"kind": "max_pool", "size": layer.kernel_size, "ceil": layer.ceil_mode}
        case nn.AvgPool2d():
            return {"kind": "mean_pool", "size": layer.kernel_size}
        case nn.ReLU():
            return {"kind": "relu"}
    raise TypeError(f"The demo page does not have the layer {layer}.")


def encode_weights(layer: nn.Module) -> dict[str, str]:
    """Return weight and bias of a layer as base64 of float16."""
    return {
        name: encode(tensor.detach().numpy().astype("<f2"))
        for name, tensor in layer.named_parameters()
    }


def encode(array: np.ndarray) -> str:
    """Return the bytes of an array as base64."""
    return base64.b64encode(array.tobytes()).decode()


def write_gif(page: Path, file: Path) -> None:
    """Write an animation of the page: a digit that turns, moves and changes its size."""
    driver = shutil.which("chromedriver")
    if driver is None or find_spec("selenium") is None:
        raise UsageError("--gif needs Chromium, chromedriver and selenium.")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for option in ("headless=new", "no-sandbox", "hide-scrollbars", f"window-size={WINDOW},1000"):
        options.add_argument(f"--{option}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(page.resolve().as_uri())
        frames = [_take_frame(browser, n / GIF_FRAMES) for n in range(GIF_FRAMES)]
    finally:
        browser.quit()
    palette = frames[0].quantize(255, Image.Quantize.MAXCOVERAGE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with atomic_write(file) as path:
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=120, loop=0)


def _take_frame(browser: Any, time: float) -> Image.Image:
    """Set the sliders for a time in [0, 1) and return a picture of the networks below the title."""
    turn = 2 * math.pi * time
    values = {
        "rotation": 80 * math.sin(turn),
        "scale": 1 - 0.4 * math.sin(2 * turn),
        "x": 9 * math.sin(3 * turn),
        "y": 5 * math.sin(turn),
    }
    top, bottom = browser.execute_script(
        """
        setSliders(arguments[0]);
        show();
        element("time").style.visibility = "hidden";
        const [cards, main] = ["fieldset", "main"].map((name) => document.querySelector(name));
        return [cards.getBoundingClientRect().top, main.getBoundingClientRect().bottom + 10];
        """,
        values,
    )
    clip = {"x": 0, "y": top, "width": WINDOW, "height": bottom - top, "scale": GIF_WIDTH / WINDOW}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


if __name__ == "__main__":
    main()
