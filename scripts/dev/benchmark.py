"""Measure the speed of warps, data and training on this machine, and of other libraries.

python scripts/dev/benchmark.py [--quick] [--only PART] [--out DIRECTORY]

Each part is a file of rows in results/benchmarks. `make benchmark` also updates the documents.
With a GPU, warps and networks are also measured on it.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from make_svhn import make_part
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from spatial_transformer import (
    Affine,
    Affine3d,
    Attention,
    Projective,
    SpatialTransformer,
    ThinPlateSpline,
    sample,
)
from spatial_transformer.data.cub import images as cub_images
from spatial_transformer.data.cub.datamodule import cut_crops
from spatial_transformer.data.mnist.distortions import DISTORTIONS, Distortion
from spatial_transformer.data.svhn import SvhnData
from spatial_transformer.data.svhn.crops import open_crops
from spatial_transformer.networks import birds, mnist, svhn
from spatial_transformer.networks.localisation import FcLocalisation
from spatial_transformer.paper import NETWORKS, SVHN_NETWORKS
from spatial_transformer.training.build import build
from spatial_transformer.training.config import compose_config
from spatial_transformer.training.runner import build_trainer, unchanged_process
from spatial_transformer.training.stacked import Stack
from spatial_transformer.transformer import Transform, find_transformers
from spatial_transformer.transformer.transforms import pixel_centres
from spatial_transformer.utils.files import write_json
from spatial_transformer.utils.process import keep_freed_memory, limit_spinning
from spatial_transformer.utils.random import sample_keys

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRANSFORMS: dict[str, type[Transform]] = {
    "affine": Affine,
    "attention": Attention,
    "projective": Projective,
    "tps": ThinPlateSpline,
    "affine3d": Affine3d,
}
Size = tuple[int, ...]
Row = dict[str, Any]
Warp = Callable[[Tensor, Tensor], Tensor]
DIGITS, PHOTOS, ONE_DIGIT = (256, 1, 28, 28), (32, 3, 224, 224), (1, 1, 28, 28)
MAPS = ((64, 128, 17, 17), (64, 64, 33, 33), (16, 128, 65, 65))
SVHN_MAPS = ((128, 48, 32, 32), (128, 64, 32, 32), (128, 128, 16, 16), (16, 128, 64, 64))
"""Inputs of the second to fourth transformer of ST-CNN Multi (appendix A.5), channels last."""
VOLUMES = (4, 1, 60, 60, 60)
GRADIENTS = ("none", "theta", "theta and x")
# (transform, size, channels last, gradient of). Other transforms than affine have the gradient
# that a network needs: of theta, and of feature maps but not of images.
WARPS: list[tuple[str, Size, bool, str]] = [
    *(("affine", s, False, g) for s in (DIGITS, PHOTOS, ONE_DIGIT, *MAPS) for g in GRADIENTS),
    *(("affine", s, True, g) for s in SVHN_MAPS for g in GRADIENTS),
    *((t, s, False, "theta") for s in (DIGITS, PHOTOS) for t in ("attention", "projective", "tps")),
    *((t, MAPS[1], False, "theta and x") for t in ("attention", "projective", "tps")),
    ("affine3d", VOLUMES, False, "theta"),
]
MEMORY = [
    ("affine", DIGITS),
    ("affine", PHOTOS),
    ("tps", PHOTOS),
    ("affine3d", (1, 2, 160, 192, 224)),
]
# (what grows, value, size, transform)
SCALING: list[tuple[str, int, Size, Transform]] = [
    *(("batch size, 28 × 28 px", n, (n, 1, 28, 28), Affine()) for n in (1, 4, 16, 64, 256, 1024)),
    *(
        ("side in px, batch 64", side, (64, 1, side, side), Affine())
        for side in (28, 42, 60, 112, 224)
    ),
    *(
        ("control points, 256 × 28 × 28", side**2, DIGITS, ThinPlateSpline((side, side)))
        for side in (2, 4, 6, 8, 10)
    ),
]


# Timing


def median_times(
    functions: Mapping[str, Callable[[], object]],
    quick: bool,
    repeats: int,
    seconds: float = 0.0,
    device: str = "cpu",
) -> dict[str, float]:
    """Return the median time of each function in milliseconds.

    The functions take turns of a few calls, so that all see the same load of the machine. On one
    thread the time is processor time, which other programs disturb less; on several threads it is
    wall time, and on a GPU the time between two events.

    Args:
        functions: by name.
        quick: whether one turn is enough.
        repeats: number of turns.
        seconds: after this time, three turns are enough.
        device: "cpu" or "cuda".
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    start = time.perf_counter()
    for turn in range(1 if quick else repeats):
        for name, function in functions.items():
            function()
            times[name] += [_time_once(function, device) for _ in range(3)]
        if turn >= 2 and time.perf_counter() - start > seconds:
            break
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def _time_once(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()
    return 1e3 * (clock() - start)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_in_process(function: Callable[..., float], *arguments: Any) -> float:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# Warps


def our_warp(transform: Transform) -> Warp:
    """Return grid and sampling of this project."""
    return lambda x, theta: sample(x, transform.grid(theta, x.shape[2:]))


def torch_affine(x: Tensor, theta: Tensor) -> Tensor:
    """Warp with PyTorch's ``affine_grid`` and ``grid_sample``, in two or three dimensions."""
    matrix = theta.view(-1, x.ndim - 2, x.ndim - 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def torch_attention(x: Tensor, theta: Tensor) -> Tensor:
    """Warp with PyTorch's functions by a scale and a translation."""
    scale, shift_x, shift_y = theta.unbind(1)
    zero = torch.zeros_like(scale)
    return torch_affine(x, torch.stack([scale, zero, shift_x, zero, scale, shift_y], dim=1))


def other_warps(size: Size, device: str) -> dict[str, dict[str, Warp]]:
    """Return the warps of other libraries by transform and library.

    All but kornia's thin plate spline give the same result as ours.
    """
    import kornia.geometry.transform as kornia
    from monai.networks.layers import AffineTransform
    from torch_tps import ThinPlateSpline as TorchTps

    def kornia_homography(x: Tensor, theta: Tensor) -> Tensor:
        matrix = torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)
        return kornia.homography_warp(x, matrix, (x.shape[2], x.shape[3]), align_corners=False)

    control = ThinPlateSpline().identity().view(2, 16).T.to(device)

    def kornia_tps(x: Tensor, theta: Tensor) -> Tensor:
        # The spline has its centres at the source points, and the grid aligns the corners.
        source = theta.view(-1, 2, 16).mT
        kernel, affine = kornia.get_tps_transform(control.expand_as(source), source)
        return kornia.warp_image_tps(x, source, kernel, affine, align_corners=False)

    points = pixel_centres(size, torch.float32).T.to(device)

    def torch_tps(x: Tensor, theta: Tensor) -> Tensor:
        # The control points are the same, so one fit serves the batch. A loop is far slower.
        spline = TorchTps(device=device).fit(control, theta.view(-1, 16).T)
        grid = spline.transform(points).view(*x.shape[2:], len(theta), 2).permute(2, 0, 1, 3)
        return F.grid_sample(x, grid, align_corners=False)

    layer = AffineTransform(
        normalized=True, reverse_indexing=False, align_corners=False, padding_mode="zeros"
    )

    def monai_affine(x: Tensor, theta: Tensor) -> Tensor:
        return layer(x, theta.view(-1, x.ndim - 2, x.ndim - 1))

    warps: dict[str, dict[str, Warp]] = {
        "affine": {"torch": torch_affine, "monai": monai_affine},
        "attention": {"torch": torch_attention},
        "projective": {"kornia": kornia_homography},
        "tps": {"torch-tps": torch_tps, "kornia": kornia_tps},
        "affine3d": {"torch": torch_affine, "monai": monai_affine},
    }
    if size == PHOTOS[2:]:
        del warps["tps"]["kornia"]  # it needs more than 20 GB
    return warps


def warp_step(warp: Warp, x: Tensor, theta: Tensor, grad: Tensor) -> Callable[[], None]:
    """Return a function that warps ``x`` and computes the gradients that are required."""

    def step() -> None:
        x.grad = theta.grad = None
        out = warp(x, theta)
        if out.requires_grad:
            out.backward(grad)

    return step


def benchmark_warps(quick: bool) -> Iterator[Row]:
    """Time all warps on one thread, on all threads, and on a GPU if there is one."""
    places = [("cpu", threads) for threads in sorted({1, torch.get_num_threads()})]
    if DEVICE == "cuda":
        places.append(("cuda", 1))
    for device, threads in places:
        with _threads(threads):
            for case in WARPS:
                times = _time_warp(*case, device, quick)
                row: Row = dict(
                    zip(("transform", "size", "channels last", "gradient"), case, strict=True)
                )
                row |= {f"{name} ms": round(value, 4) for name, value in times.items()}
                ours = times.pop("ours")
                row |= {f"ours/{name}": round(ours / value, 4) for name, value in times.items()}
                yield row | {"device": device, "threads": threads}


def _time_warp(
    name: str, size: Size, channels_last: bool, gradient: str, device: str, quick: bool
) -> dict[str, float]:
    torch.manual_seed(1)
    transform = TRANSFORMS[name]().to(device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (
        torch.randn(size, device=device).contiguous(memory_format=memory_format) for _ in range(2)
    )
    noise = torch.randn(size[0], transform.n_params, device=device)
    theta = transform.identity().to(device) + 0.05 * noise
    theta.requires_grad_(gradient != "none")
    x.requires_grad_(gradient == "theta and x")
    warps = {"ours": our_warp(transform)} | other_warps(size[2:], device)[name]
    if channels_last:  # the next layer of a network needs this format
        warps = {library: _in_format(warp, memory_format) for library, warp in warps.items()}
    with torch.no_grad():
        expected = warps["ours"](x, theta)
        for library, warp in warps.items():
            is_checked = (name, library) != ("tps", "kornia")
            if is_checked and not torch.allclose(warp(x, theta), expected, atol=2e-2):
                raise AssertionError(f"{name} of {library} is another warp than ours.")
    steps = {library: warp_step(warp, x, theta, grad) for library, warp in warps.items()}
    return median_times(steps, quick, repeats=400, seconds=3, device=device)


def _in_format(warp: Warp, memory_format: torch.memory_format) -> Warp:
    return lambda x, theta: warp(x, theta).contiguous(memory_format=memory_format)


def benchmark_memory(quick: bool) -> Iterator[Row]:
    """Measure the peak memory of warps, and of PyTorch's functions, each in its own process."""
    for name, size in MEMORY:
        for gradient in ("none", "theta and x"):
            ours = _run_in_process(_measure_peak, name, size, gradient, True)
            row: Row = {"transform": name, "size": size, "gradient": gradient}
            row["ours MB"] = round(ours, 1)
            if name != "tps":
                theirs = _run_in_process(_measure_peak, name, size, gradient, False)
                row |= {"torch MB": round(theirs, 1), "ours/torch": round(ours / theirs, 3)}
            yield row


def _measure_peak(name: str, size: Size, gradient: str, is_ours: bool) -> float:
    """Return by how many MB a warp raises the peak of this process, which holds its inputs."""
    torch.set_num_threads(1)

    def make_step(size: Size) -> Callable[[], None]:
        transform = TRANSFORMS[name]()
        theta = transform.identity().repeat(size[0], 1).requires_grad_(gradient != "none")
        x, grad = torch.ones(size), torch.ones(size)
        x.requires_grad_(gradient == "theta and x")
        return warp_step(our_warp(transform) if is_ours else torch_affine, x, theta, grad)

    def peak() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    make_step((2,) * len(size))()  # loads libraries
    step = make_step(size)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which imports may have set
    before = peak()
    step()
    return peak() - before


def benchmark_scaling(quick: bool) -> Iterator[Row]:
    """Time forward and backward of warps as one size grows, on one thread."""
    with _threads(1):
        for over, value, size, transform in SCALING:
            torch.manual_seed(1)
            x, grad = torch.randn(size), torch.randn(size)
            theta = transform.identity() + 0.05 * torch.randn(size[0], transform.n_params)
            theta.requires_grad_()
            warps = {"ours": our_warp(transform)}
            if isinstance(transform, Affine):
                warps["torch"] = torch_affine
            steps = {name: warp_step(warp, x, theta, grad) for name, warp in warps.items()}
            times = median_times(steps, quick, repeats=40, seconds=1)
            milliseconds = {f"{name} ms": round(value, 3) for name, value in times.items()}
            yield {"over": over, "value": value} | milliseconds
        for n in (1, 2, 4, 8):
            transform = Affine()
            start = transform.identity().repeat(n, 1)
            localisation = FcLocalisation((1, 42, 42), transform, start=start)
            st = SpatialTransformer(localisation, transform, parallel=n)
            step = partial(_forward_backward, [st], [torch.randn(64, 1, 42, 42)])
            times = median_times({"ours": step}, quick, repeats=40, seconds=1)
            over = "parallel transformers, 64 × 42 × 42"
            yield {"over": over, "value": n, "ours ms": round(times["ours"], 3)}


# Distorted MNIST


def benchmark_data(quick: bool) -> Iterator[Row]:
    """Time distortions of batches of 256, and torchvision's nearest transforms of single images.

    torchvision's transforms run on tensors, and on PIL images that then become tensors.
    """
    from torchvision.transforms import InterpolationMode, v2

    bilinear = InterpolationMode.BILINEAR
    shrink = v2.RandomAffine(0, scale=(0.75, 1.0), interpolation=bilinear)
    shift = v2.RandomAffine(45, translate=(0.17, 0.17), scale=(0.7, 1.2), interpolation=bilinear)
    nearest: dict[str, list[nn.Module]] = {
        "r": [v2.RandomRotation(90, bilinear)],
        "rts": [v2.Pad(7), shift],
        "p": [shrink, v2.RandomPerspective(0.5, 1.0, bilinear)],
        "e": [shrink, v2.ElasticTransform(50.0, 5.0, bilinear)],
        "t": [v2.Pad(32), v2.RandomCrop(60)],
    }
    torch.manual_seed(1)
    digits = torch.randint(0, 256, (256, 1, 28, 28), dtype=torch.uint8)
    pil_images = [v2.functional.to_pil_image(digit) for digit in digits]
    to_float = v2.ToDtype(torch.float32, scale=True)
    with _threads(1):
        for name, transforms in nearest.items():
            on_tensors = v2.Compose([*transforms, to_float])
            on_images = v2.Compose([*transforms, v2.PILToTensor(), to_float])
            functions: dict[str, Callable[[], object]] = {
                "ours": partial(_distort, DISTORTIONS[name], digits),
                "torchvision, tensors": partial(_apply_to_each, on_tensors, digits),
                "torchvision, PIL": partial(_apply_to_each, on_images, pil_images),
            }
            times = median_times(functions, quick, repeats=40, seconds=3)
            row: Row = {"distortion": name}
            row |= {f"{who} images/s": round(256e3 / ms) for who, ms in times.items()}
            ours = times.pop("ours")
            yield row | {f"ours/{who}": round(ms / ours, 1) for who, ms in times.items()}


def _distort(distortion: Distortion, digits: Tensor) -> Tensor:
    keys = sample_keys(1, 0, torch.arange(len(digits)))
    return distortion.apply(digits.float() / 255, keys, distortion.canvas, digits[:, 0])


def _apply_to_each(transform: nn.Module, images: Iterable) -> Tensor:
    return torch.stack([transform(image) for image in images])


class PlainTransformer(nn.Module):
    """An affine spatial transformer made of PyTorch's functions."""

    def __init__(self, localisation: nn.Module) -> None:
        super().__init__()
        self.localisation = localisation

    def forward(self, x: Tensor) -> Tensor:
        return torch_affine(x, self.localisation(x))


def build_plain(network: mnist.MnistNetwork) -> nn.Module:
    """Return a copy of a network with an affine transformer, made of PyTorch's layers."""
    network = copy.deepcopy(network)
    assert network.transformer is not None
    layers = list(network.classifier.children())
    if isinstance(layers[0], nn.Conv2d):
        layers[0] = nn.Conv2d(1, layers[0].out_channels, 9, device=layers[0].weight.device)
    pool: list[nn.Module] = [nn.AvgPool2d(network.pool)] if network.pool > 1 else []
    return nn.Sequential(PlainTransformer(network.transformer.localisation), *pool, *layers)


def benchmark_networks(quick: bool) -> Iterator[Row]:
    """Time training steps of the networks of Table 1 at batch 256, without data.

    Networks with an affine transformer are compared with :func:`build_plain`.
    """
    for size in (28, 42):
        for name, (model, transform) in NETWORKS.items():
            options: dict = {} if transform == "none" else {"transform": TRANSFORMS[transform]()}
            options["pool"] = 1 if model == "cnn" else None
            network = mnist.MnistNetwork(model.removeprefix("st_"), size, **options).to(DEVICE)
            steps = {"ms": training_step(network, size)}
            if transform == "affine":
                steps["plain ms"] = training_step(build_plain(network), size)
            times = median_times(steps, quick, repeats=20, seconds=6, device=DEVICE)
            row: Row = {"network": name, "size": size, **_place()}
            row |= {key: round(value, 2) for key, value in times.items()}
            row["steps/s"] = round(1e3 / times["ms"], 1)
            if "plain ms" in times:
                row["times faster"] = round(times["plain ms"] / times["ms"], 2)
            yield row


def _place() -> Row:
    return {"device": DEVICE, "threads": torch.get_num_threads()}


def training_step(network: nn.Module, size: int) -> Callable[[], None]:
    """Return a function that does forward, backward and AdamW on a batch of 256."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    device = next(network.parameters()).device
    x, y = torch.rand(256, 1, size, size, device=device), torch.randint(10, (256,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    return step


# SVHN and birds


def benchmark_svhn(quick: bool) -> Iterator[Row]:
    """Time forward and backward of the networks of Table 2, and their data.

    Localisation networks and warps are also timed alone, on inputs of the same shapes. The data are
    synthetic house numbers.
    """
    # With 8, a layer of ST-CNN Multi crashes PyTorch 2.15 in bfloat16 on CPUs with AMX.
    batch = 128 if DEVICE == "cuda" else 16
    for size in (64, 128):
        torch.manual_seed(1)
        x = torch.randn(batch, 3, size, size, device=DEVICE)
        functions: dict[str, Callable[[], None]] = {}
        for name, (model, transform) in SVHN_NETWORKS.items():
            options: dict = {} if transform == "none" else {"transform": TRANSFORMS[transform]()}
            network = getattr(svhn, model.removeprefix("svhn_"))(size, **options).to(DEVICE)
            functions[name] = partial(_forward_backward, [network], [x])
            functions[f"{name} bfloat16"] = partial(
                _forward_backward, [network], [x], torch.bfloat16
            )
            transformers, maps = _transformer_inputs(network, x)
            if maps:
                localisations = [transformer.localisation for transformer in transformers]
                localisation = partial(_forward_backward, localisations, maps)
                functions[f"{name} localisation"] = localisation
                functions[f"{name} transformers"] = partial(_forward_backward, transformers, maps)
        times = median_times(functions, quick, repeats=3, device=DEVICE)
        for name in SVHN_NETWORKS:
            row: Row = {"network": name, "size": size, "batch": batch, **_place()}
            row |= {"ms": round(times[name], 1), "times CNN": round(times[name] / times["CNN"], 3)}
            row["bfloat16 ms"] = round(times[f"{name} bfloat16"], 1)
            if f"{name} transformers" in times:
                localisation_ms = times[f"{name} localisation"]
                row["localisation ms"] = round(localisation_ms, 1)
                row["warps ms"] = round(times[f"{name} transformers"] - localisation_ms, 1)
            yield row
    with tempfile.TemporaryDirectory() as folder:
        yield from _benchmark_svhn_data(Path(folder), quick)


def _forward_backward(
    modules: Iterable[nn.Module], inputs: Iterable[Tensor], dtype: torch.dtype | None = None
) -> None:
    for module, x in zip(modules, inputs, strict=True):
        module.zero_grad()
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            out = module(x)
        out.float().square().sum().backward()


def _transformer_inputs(
    network: nn.Module, x: Tensor
) -> tuple[list[SpatialTransformer], list[Tensor]]:
    """Return the transformers of a network and their inputs, all but ``x`` with a gradient."""
    transformers = find_transformers(network)
    inputs: list[Tensor] = []
    hooks = [
        transformer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
        for transformer in transformers
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return transformers, [each.requires_grad_(each is not inputs[0]) for each in inputs]


def _benchmark_svhn_data(folder: Path, quick: bool) -> Iterator[Row]:
    n = 300 if quick else 3000
    noise = np.random.default_rng(1).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    for split, images in (("train", n), ("test", 1)):
        make_part(folder / split, images, (noise, np.arange(100) % 10))
    for size in (64, 128):
        start = time.perf_counter()
        open_crops(folder / "train", size, workers=1)
        row: Row = {"size": size, "crops made/s": round(n / (time.perf_counter() - start))}
        start = time.perf_counter()
        SvhnData(size, folder, batch_size=128).setup()
        row["second start ms"] = round(1e3 * (time.perf_counter() - start), 1)
        with _threads(1):
            for name, augment in (("plain", False), ("augmented", True)):
                data = SvhnData(size, folder, batch_size=128, augment=augment)
                data.setup()
                read = partial(data.samples, "train", torch.arange(128))
                times = median_times({name: read}, quick, repeats=20, seconds=3)
                row[f"{name} images/s"] = round(128e3 / times[name])
        yield row


def benchmark_birds(quick: bool) -> Iterator[Row]:
    """Time forward and backward of the networks of Table 3 with EfficientNet-Lite0, and their data.

    The transformer (localisation network and warp) is also timed alone.
    """
    batch = 32 if DEVICE == "cuda" else 8
    cases = [(n, size) for size in (224, 448) for n in (0, 2, 4)]
    functions: dict[str, Callable[[], None]] = {}
    kept: dict[tuple[int, int], float] = {}
    options: dict = {"backbone": "efficientnet_lite0", "weights": "none"}
    for n, size in cases:
        torch.manual_seed(1)
        transform = Attention(0.5) if n else None
        network = birds.BirdNetwork(size, 200, transform, n or 1, **options).to(DEVICE)
        x = torch.rand(batch, 3, size, size, device=DEVICE)
        functions[f"{n} {size}"] = partial(_forward_backward, [network], [x])
        if network.transformer is not None:
            transformer = partial(_forward_backward, [network.transformer], [x])
            functions[f"{n} {size} transformer"] = transformer
        kept[n, size] = _measure_saved_tensors(network, x)
    times = median_times(functions, quick, repeats=3, device=DEVICE)
    for n, size in cases:
        ms = times[f"{n} {size}"]
        row: Row = {"transformers": n, "size": size, "batch": batch, **_place()}
        row |= {"ms": round(ms, 1), "images/s": round(1e3 * batch / ms, 1)}
        row["kept MB/image"] = round(kept[n, size] / batch, 1)
        if n:
            row["transformer ms"] = round(times[f"{n} {size} transformer"], 1)
        yield row
    with tempfile.TemporaryDirectory() as folder, _threads(1):
        yield from _benchmark_birds_data(Path(folder), quick)


def _measure_saved_tensors(network: nn.Module, x: Tensor) -> float:
    """Return the megabytes that autograd saves for backward, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        out = network(x)
    del out
    return sum(storages.values()) / 1e6


def _benchmark_birds_data(folder: Path, quick: bool) -> Iterator[Row]:
    """Time decoding and cutting of photographs of about 100 kB, as those of CUB."""
    n = 10 if quick else 200
    rng = np.random.default_rng(1)
    photographs = [folder / f"{i}.jpg" for i in range(n)]
    for path in photographs:
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 8, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    for size, longest in cub_images.LONGEST.items():
        start = time.perf_counter()
        images = [
            cub_images.resize(Image.open(path).convert("RGB"), longest) for path in photographs
        ]
        row: Row = {"size": size, "decoded/s": round(n / (time.perf_counter() - start))}
        sizes = np.array([image.shape[:0:-1] for image in images])
        starts = np.cumsum([0, *(image.size for image in images[:-1])])
        pixels = np.concatenate([image.ravel() for image in images])
        cache = cub_images.Images(pixels, sizes, sizes, starts)
        positions, mirrored = np.arange(32) % n, np.arange(32) % 2 == 0
        corners = (sizes[positions] - size) // 2
        batch = partial(cut_crops, cache, positions, corners, mirrored, size, torch.device("cpu"))
        times = median_times({"cut": batch}, quick, repeats=20)
        yield row | {"cut/s": round(32e3 / times["cut"])}


# The whole program


def benchmark_program(quick: bool) -> Iterator[Row]:
    """Time train.py until the first validated step, and the share of time that is not training.

    The share is what is not forward, backward or optimiser step, from Lightning's profiler: data,
    logging, one validation, images.
    """
    seconds = min(_time_program("--help") for _ in range(3))
    yield {"command": "train.py --help", "seconds": round(seconds, 2)}
    steps = 50 if quick else 500
    short = ["logger=csv", "trainer.max_steps=1", "recipe.validate_every=1"]
    short.append("++trainer.limit_val_batches=1")
    for model in ("st_fcn", "st_cnn"):
        with tempfile.TemporaryDirectory() as folder:
            run_dir = f"hydra.run.dir={folder}/start"
            start = _time_program(f"model={model}", *short, run_dir, until="step 1 of")
            run_dir = f"hydra.run.dir={folder}/run"
            _time_program(f"model={model}", "debug=profiler", f"trainer.max_steps={steps}", run_dir)
            totals = _read_profile(Path(folder) / "run" / "fit-profile.txt")
        epoch = totals["run_training_epoch"]
        share = 1 - totals["run_training_batch"] / epoch
        row: Row = {"model": model, "distortion": "rts", "steps": steps}
        row |= {"seconds to the first step": round(start, 2), "steps/s": round(steps / epoch, 1)}
        yield row | {"share outside forward, backward, step": round(share, 3)}


def _time_program(*overrides: str, until: str = "") -> float:
    """Return the seconds until train.py prints a line that starts with ``until``, or ends."""
    start, seconds = time.perf_counter(), 0.0
    command = [sys.executable, "train.py", *overrides]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if until and not seconds and line.startswith(until):
                seconds = time.perf_counter() - start
        if process.wait():
            assert process.stderr is not None
            raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr.read()}")
    return seconds or time.perf_counter() - start


def _read_profile(path: Path) -> dict[str, float]:
    """Return the total seconds of each action in a report of Lightning's SimpleProfiler."""
    rows = [[cell.strip() for cell in line.split("|")] for line in path.read_text().splitlines()]
    return {row[1]: float(row[4]) for row in rows if len(row) > 5 and row[3].isdigit()}


def benchmark_stacked(quick: bool) -> Iterator[Row]:
    """Time training on distorted MNIST by Lightning's loop and by ``scripts/train_stacked.py``.

    The steps of all seeds are counted. The loops have no loggers, callbacks and validations. A CPU
    has one thread and no CUDA graph, and its time is processor time.
    """
    modes: dict[str, tuple[list[int], bool, bool]] = {  # seeds, use_graph, use_vmap
        "one seed": ([1], False, False),
        "CUDA graph": ([1], True, False),
        "three in turn": ([1, 2, 3], True, False),
        "three stacked": ([1, 2, 3], True, True),
    }
    if DEVICE == "cpu":
        del modes["CUDA graph"]
    seconds = 0 if quick else 3 if DEVICE == "cpu" else 2
    with _threads(1):
        for distortion in ("r", "rts"):
            for name in ("FCN", "ST-FCN affine", "CNN", "ST-CNN affine"):
                words = f"model={NETWORKS[name][0]} data.distortion={distortion} logger=none"
                limits = "trainer.max_steps=1000000 recipe.validate_every=1000000 run_dir=unused"
                config = compose_config(ROOT / "conf", *words.split(), *limits.split())
                row: Row = {"network": name, "distortion": distortion, **_place()}
                row["plain steps/s"] = round(_time_lightning(config, seconds), 1)
                for mode, options in modes.items():
                    row[f"{mode} steps/s"] = round(_time_stack(config, *options, seconds), 1)
                yield row


class _Stopwatch(pl.Callback):
    """Stop training after some seconds, and measure the steps per second after a warm-up.

    The clock, which waits for a GPU, is read every ``every`` steps. The first ones are the warm-up.
    """

    def __init__(self, every: int, seconds: float) -> None:
        self.every, self.seconds = every, seconds
        self.speed = self._start = 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        steps = trainer.global_step - self.every
        if steps == 0:
            self._start = _clock()
        elif steps % self.every == 0 and _clock() - self._start > self.seconds:
            self.speed = steps / (_clock() - self._start)
            trainer.should_stop = True


def _time_lightning(config: DictConfig, seconds: float) -> float:
    """Return the steps per second of ``Trainer.fit``."""
    with unchanged_process():
        pl.seed_everything(config.seed, verbose=False)
        data, task = build(config)
        stopwatch = _Stopwatch(1 if DEVICE == "cpu" else 50, seconds)
        silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        limits = {"limit_val_batches": 0, "callbacks": [stopwatch]}
        build_trainer(config, **silent, **limits).fit(task, data)
    return stopwatch.speed


def _time_stack(
    config: DictConfig, seeds: Sequence[int], use_graph: bool, use_vmap: bool, seconds: float
) -> float:
    """Return the steps per second of stacked seeds, of all seeds together.

    Whole epochs are timed on a GPU. On a CPU the samples of four steps are drawn at once.
    """
    with unchanged_process():
        draw_steps = 4 if DEVICE == "cpu" else None
        stack = Stack(config, seeds, use_graph, use_vmap, draw_steps)
    epoch = stack.data[0].size("train") // stack.data[0].batch_size
    steps = min(stack.draw_steps, epoch) if seconds else 1
    batches = stack.batches(config.trainer.max_steps)

    def train() -> None:
        for batch in islice(batches, steps):
            stack.train_step(batch)

    train()
    start, turns = _clock(), 0
    while not turns or _clock() - start < seconds:
        train()
        turns += 1
    return len(seeds) * turns * steps / (_clock() - start)


def _clock() -> float:
    """Return seconds: of the processor for one thread on a CPU, else of the clock on the wall."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def benchmark_threads(quick: bool) -> Iterator[Row]:
    """Time training steps of an ST-FCN on all threads, alone and next to busy programs.

    The wait of OpenMP's threads is its default, or that of :func:`process.limit_spinning`.
    """
    for busy in (0, torch.get_num_threads()):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for wait in ("default", "brief"):
                # The child process loads OpenMP, which reads the environment then.
                with mock.patch.dict(os.environ):
                    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
                        os.environ.pop(name, None)
                    if wait == "brief":
                        limit_spinning()
                    speed = _run_in_process(_count_steps, 1 if quick else 10)
                yield {"busy programs": busy, "wait": wait, "steps/s": round(speed, 1)}
        finally:
            for process in others:
                process.kill()


def _count_steps(seconds: float) -> float:
    """Return training steps per second of an ST-FCN on RTS."""
    keep_freed_memory()
    step = training_step(mnist.MnistNetwork("fcn", 42, Affine()), 42)
    step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        steps += 1
    return steps / (time.perf_counter() - start)


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "warps": benchmark_warps,
    "memory": benchmark_memory,
    "scaling": benchmark_scaling,
    "data": benchmark_data,
    "networks": benchmark_networks,
    "svhn": benchmark_svhn,
    "birds": benchmark_birds,
    "program": benchmark_program,
    "stacked": benchmark_stacked,
    "threads": benchmark_threads,
}


def describe_machine() -> Row:
    """Return the processor, the GPU, the commit and the versions of the packages."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "torchvision", "kornia", "monai", "torch-tps", "pytorch-lightning")
    return {
        "cpu": names[0] if names else platform.processor(),
        "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else None,
        "threads": torch.get_num_threads(),
        "commit": git.stdout.strip(),
        "packages": {name: version(name) for name in packages},
    }


def main() -> None:
    """Run the parts and write their results."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions; needs --out to write results"
    )
    parser.add_argument("--only", choices=PARTS, help="run one part")
    parser.add_argument("--out", type=Path, help="directory (default: results/benchmarks)")
    options = parser.parse_args()
    out = options.out or (None if options.quick else ROOT / "results" / "benchmarks")
    keep_freed_memory()  # as train.py does; all libraries profit
    for name in [options.only] if options.only else PARTS:
        rows = []
        for row in PARTS[name](options.quick):
            print(row, flush=True)
            rows.append(row)
        if out is not None:
            write_json({"machine": describe_machine(), "rows": rows}, out / f"{name}.json")


if __name__ == "__main__":
    main()
