"""Speed of the transformer, the data and training on this machine, against other implementations, side by side in one run.

Writes results/benchmarks/*.json: python scripts/dev/benchmark.py [--quick] [--only PART]; `make benchmark` then makes tables and
chart of them. On a GPU the warps and the networks are measured there too.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_svhn import make_part
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
from spatial_transformer.transformer import Transform
from spatial_transformer.transformer.transforms import pixel_centres
from spatial_transformer.utils.files import atomic_write
from spatial_transformer.utils.process import keep_freed_memory
from spatial_transformer.utils.random import sample_keys

ROOT = Path(__file__).parents[2]
TRANSFORMS: dict[str, type[Transform]] = {
    "affine": Affine,
    "attention": Attention,
    "projective": Projective,
    "tps": ThinPlateSpline,
    "affine3d": Affine3d,
}
DIGITS, PHOTOS, ONE_DIGIT = (256, 1, 28, 28), (32, 3, 224, 224), (1, 1, 28, 28)
MAPS = ((64, 128, 17, 17), (64, 64, 33, 33), (16, 128, 65, 65))
LAST = ((128, 48, 32, 32), (128, 64, 32, 32), (128, 128, 16, 16), (16, 128, 64, 64))
"""Channels-last maps, as those of SVHN; its second to fourth transformer warp the first three (appendix A.5)."""
VOLUMES = (4, 1, 60, 60, 60)
GRADIENTS = ("none", "theta", "theta and x")
Warp = Callable[[Tensor, Tensor], Tensor]


def median_times(
    functions: Mapping[str, Callable[[], object]], repeats: int, budget: float, device: str = "cpu"
) -> dict[str, float]:
    """Median time of each function in milliseconds.

    They take turns of a few calls, so that all see the same machine and none the caches that another has left. With one
    thread it is the processor's time, which other programs on the machine disturb less; with several, the clock's; on a
    GPU it is the time between two events.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    start = time.perf_counter()
    for turn in range(repeats):
        for name, function in functions.items():
            function()
            times[name] += [_milliseconds(function, device) for _ in range(3)]
        if turn >= 2 and time.perf_counter() - start > budget:
            break
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def _milliseconds(function: Callable[[], object], device: str) -> float:
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


def warp_step(warp: Warp, x: Tensor, theta: Tensor, grad: Tensor) -> Callable[[], None]:
    """Return a function that warps ``x``, and computes the gradients of what requires one."""

    def step() -> None:
        x.grad = theta.grad = None
        out = warp(x, theta)
        if out.requires_grad:
            out.backward(grad)

    return step


def ours(transform: Transform) -> Warp:
    """Grid and sampling of this project."""
    return lambda x, theta: sample(x, transform.grid(theta, x.shape[2:]))


def torch_affine(x: Tensor, theta: Tensor) -> Tensor:
    """PyTorch's own pair of functions, in two and three dimensions."""
    matrix = theta.view(-1, x.ndim - 2, x.ndim - 1)
    return F.grid_sample(
        x, F.affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False
    )


def torch_attention(x: Tensor, theta: Tensor) -> Tensor:
    """PyTorch's own pair of functions, on a matrix of scale and translation."""
    scale, shift_x, shift_y = theta.unbind(1)
    zero = torch.zeros_like(scale)
    return torch_affine(x, torch.stack([scale, zero, shift_x, zero, scale, shift_y], dim=1))


def other_warps(size: tuple[int, ...], device: str) -> dict[str, dict[str, Warp]]:
    """What others offer for each transform: library -> warp. All but kornia's spline give what ours gives."""
    import kornia.geometry.transform as kornia
    from monai.networks.layers import AffineTransform
    from torch_tps import ThinPlateSpline as TorchTps

    def kornia_homography(x: Tensor, theta: Tensor) -> Tensor:
        matrix = torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)
        return kornia.homography_warp(x, matrix, (x.shape[2], x.shape[3]), align_corners=False)

    control = ThinPlateSpline().identity().view(2, 16).T.to(device)

    def kornia_tps(x: Tensor, theta: Tensor) -> Tensor:
        # Its spline has its centres at the source points, and its grid runs from pixel centre to pixel centre.
        source = theta.view(-1, 2, 16).mT
        kernel, affine = kornia.get_tps_transform(control.expand_as(source), source)
        return kornia.warp_image_tps(x, source, kernel, affine, align_corners=False)

    points = pixel_centres(size, torch.float32).T.to(device)

    def torch_tps(x: Tensor, theta: Tensor) -> Tensor:
        # One fit for the whole batch, as the control points are the same: a loop over samples would take far longer.
        spline = TorchTps(device=device).fit(control, theta.view(-1, 16).T)
        grid = spline.transform(points).view(*x.shape[2:], len(theta), 2).permute(2, 0, 1, 3)
        return F.grid_sample(x, grid, align_corners=False)

    monai_layer = AffineTransform(
        normalized=True, reverse_indexing=False, align_corners=False, padding_mode="zeros"
    )

    def monai_affine(x: Tensor, theta: Tensor) -> Tensor:
        return monai_layer(x, theta.view(-1, x.ndim - 2, x.ndim - 1))

    warps: dict[str, dict[str, Warp]] = {
        "affine": {"torch": torch_affine, "monai": monai_affine},
        "attention": {"torch": torch_attention},
        "projective": {"kornia": kornia_homography},
        "tps": {"torch-tps": torch_tps, "kornia": kornia_tps},
        "affine3d": {"torch": torch_affine, "monai": monai_affine},
    }
    if size == PHOTOS[2:]:
        del warps["tps"]["kornia"]  # it wants over 20 GB
    return warps


def benchmark_warps(quick: bool) -> list[dict]:
    """Grid and sampling: on one thread and on all, and on a GPU if there is one.

    Affine warps with each kind of gradient, all others as a network has them: behind a localisation
    network, with a gradient of feature maps and none of images.
    """
    flat = ("attention", "projective", "tps")
    cases: list[tuple[str, tuple[int, ...], bool, str]]
    cases = [
        ("affine", size, False, gradient)
        for size in (DIGITS, PHOTOS, ONE_DIGIT, *MAPS)
        for gradient in GRADIENTS
    ]
    cases += [("affine", size, True, gradient) for size in LAST for gradient in GRADIENTS]
    cases += [(name, size, False, "theta") for size in (DIGITS, PHOTOS) for name in flat]
    cases += [(name, MAPS[1], False, "theta and x") for name in flat]
    cases += [("affine3d", VOLUMES, False, "theta")]
    places = [("cpu", threads) for threads in sorted({1, torch.get_num_threads()})]
    rows: list[dict] = []
    for device, threads in places + ([("cuda", 1)] if torch.cuda.is_available() else []):
        with _threads(threads):
            for case in cases:
                rows.append(
                    _warp_row(*case, device, quick) | {"device": device, "threads": threads}
                )
                print(rows[-1], flush=True)
    return rows


def _warp_row(
    name: str, size: tuple[int, ...], channels_last: bool, gradient: str, device: str, quick: bool
) -> dict:
    transform = TRANSFORMS[name]().to(device)
    torch.manual_seed(1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(size, device=device).contiguous(memory_format=memory_format)
    grad = torch.randn(size, device=device).contiguous(memory_format=memory_format)
    theta = transform.identity().to(device) + 0.05 * torch.randn(
        size[0], transform.n_params, device=device
    )
    theta.requires_grad_(gradient != "none")
    x.requires_grad_(gradient == "theta and x")
    warps = {"ours": ours(transform)} | other_warps(size[2:], device)[name]
    if channels_last:  # what comes next in a network wants the maps as they were
        warps = {who: _in_format(warp, memory_format) for who, warp in warps.items()}
    with torch.no_grad():
        expected = warps["ours"](x, theta)
        for who, warp in warps.items():
            if (name, who) != ("tps", "kornia") and not torch.allclose(
                warp(x, theta), expected, atol=2e-2
            ):
                raise AssertionError(
                    f"{who} does not give the same {name} warp: its time says nothing"
                )
    steps = {who: warp_step(warp, x, theta, grad) for who, warp in warps.items()}
    times = median_times(steps, 1 if quick else 400, 0 if quick else 3, device)
    row: dict = {
        "transform": name,
        "size": list(size),
        "channels last": channels_last,
        "gradient": gradient,
    }
    row |= {f"{who} ms": round(value, 4) for who, value in times.items()}
    return row | {
        f"ours/{who}": round(times["ours"] / times[who], 4) for who in times if who != "ours"
    }


def _in_format(warp: Warp, memory_format: torch.memory_format) -> Warp:
    return lambda x, theta: warp(x, theta).contiguous(memory_format=memory_format)


def benchmark_memory(quick: bool) -> list[dict]:
    """Peak memory of a warp, each in its own process, as a multiple of PyTorch's own pair of functions."""
    rows: list[dict] = []
    for name, size in (
        ("affine", DIGITS),
        ("affine", PHOTOS),
        ("tps", PHOTOS),
        ("affine3d", (1, 2, 160, 192, 224)),
    ):
        for gradient in ("none", "theta and x"):
            peaks = {
                who: _peak_mb(who, name, size, gradient)
                for who in ("ours", "torch")
                if (who, name) != ("torch", "tps")
            }
            row: dict = {"transform": name, "size": list(size), "gradient": gradient}
            row |= {f"{who} MB": round(peak, 1) for who, peak in peaks.items()}
            row |= (
                {"ours/torch": round(peaks["ours"] / peaks["torch"], 3)} if "torch" in peaks else {}
            )
            rows.append(row)
            print(row, flush=True)
    return rows


def _peak_mb(who: str, name: str, size: tuple[int, ...], gradient: str) -> float:
    """Return how far a warp raises the peak of a process that holds its inputs, in MB."""
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "scripts" / "dev")!r})
import torch
from benchmark import TRANSFORMS, ours, torch_affine, warp_step

torch.set_num_threads(1)

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

def step(size):
    transform = TRANSFORMS[{name!r}]()
    theta = transform.identity().repeat(size[0], 1).requires_grad_({gradient!r} != "none")
    x, grad = torch.ones(size), torch.ones(size)
    x.requires_grad_({gradient!r} == "theta and x")
    return warp_step(ours(transform) if {who!r} == "ours" else torch_affine, x, theta, grad)

step([2] * {len(size)})()  # loads libraries
run = step({size!r})
Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now: imports may have taken more
before = peak()
run()
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def benchmark_scaling(quick: bool) -> list[dict]:
    """How the time of grid and sampling, forward and backward, grows: on one thread, for an image without gradient."""
    torch.manual_seed(1)
    rows: list[dict] = []

    def measure(
        over: str, value: int, size: tuple[int, ...], transform: Transform, others: dict[str, Warp]
    ) -> None:
        x, grad = torch.randn(size), torch.randn(size)
        theta = (
            transform.identity() + 0.05 * torch.randn(size[0], transform.n_params)
        ).requires_grad_()
        steps = {
            who: warp_step(warp, x, theta, grad)
            for who, warp in ({"ours": ours(transform)} | others).items()
        }
        times = median_times(steps, repeats=1 if quick else 40, budget=0 if quick else 1)
        rows.append(
            {"over": over, "value": value}
            | {f"{who} ms": round(time, 3) for who, time in times.items()}
        )
        print(rows[-1], flush=True)

    with _threads(1):
        for batch in (1, 4, 16, 64, 256, 1024):
            measure(
                "batch size, 28 × 28 px",
                batch,
                (batch, 1, 28, 28),
                Affine(),
                {"torch": torch_affine},
            )
        for side in (28, 42, 60, 112, 224):
            measure(
                "side in px, batch 64", side, (64, 1, side, side), Affine(), {"torch": torch_affine}
            )
        for side in (2, 4, 6, 8, 10):
            measure(
                "control points, 256 × 28 × 28",
                side * side,
                DIGITS,
                ThinPlateSpline((side, side)),
                {},
            )
        for n in (1, 2, 4, 8):
            transform = Affine()
            localisation = FcLocalisation(
                (1, 42, 42), transform, start=transform.identity().repeat(n, 1)
            )
            st = SpatialTransformer(localisation, transform, parallel=n)
            x = torch.randn(64, 1, 42, 42)
            times = median_times(
                {"ours": partial(_transform, st, x)}, 1 if quick else 40, 0 if quick else 1
            )
            rows.append(
                {
                    "over": "parallel transformers, 64 × 42 × 42",
                    "value": n,
                    "ours ms": round(times["ours"], 3),
                }
            )
            print(rows[-1], flush=True)
    return rows


def _transform(st: SpatialTransformer, x: Tensor) -> None:
    st(x).sum().backward()


def benchmark_data(quick: bool) -> list[dict]:
    """Distorted images per second, on one thread: batches of 256 as here, and torchvision's transforms sample by sample.

    torchvision's nearest equivalents, on tensors and on PIL images (which then become tensors).
    """
    from torchvision.transforms import InterpolationMode, v2

    bilinear = InterpolationMode.BILINEAR
    shrink = v2.RandomAffine(0, scale=(0.75, 1.0), interpolation=bilinear)
    nearest_of: dict[str, list[nn.Module]] = {
        "r": [v2.RandomRotation(90, bilinear)],
        "rts": [
            v2.Pad(7),
            v2.RandomAffine(45, translate=(0.17, 0.17), scale=(0.7, 1.2), interpolation=bilinear),
        ],
        "p": [shrink, v2.RandomPerspective(0.5, 1.0, bilinear)],
        "e": [shrink, v2.ElasticTransform(50.0, 5.0, bilinear)],
        "t": [v2.Pad(32), v2.RandomCrop(60)],
    }
    torch.manual_seed(1)
    digits = torch.randint(0, 256, (256, 1, 28, 28), dtype=torch.uint8)
    pictures = [v2.functional.to_pil_image(digit) for digit in digits]
    to_float = v2.ToDtype(torch.float32, scale=True)
    rows = []
    with _threads(1):
        for name, transforms in nearest_of.items():
            tensors = v2.Compose([*transforms, to_float])
            images = v2.Compose([*transforms, v2.PILToTensor(), to_float])
            functions: dict[str, Callable[[], object]] = {
                "ours": partial(_distorted, DISTORTIONS[name], digits),
                "torchvision, tensors": partial(_one_by_one, tensors, digits),
                "torchvision, PIL": partial(_one_by_one, images, pictures),
            }
            times = median_times(functions, repeats=1 if quick else 40, budget=0 if quick else 3)
            row: dict = {"distortion": name} | {
                f"{who} images/s": round(256e3 / ms) for who, ms in times.items()
            }
            row |= {
                f"ours/{who}": round(times[who] / times["ours"], 1)
                for who in times
                if who != "ours"
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def _distorted(distortion: Distortion, digits: Tensor) -> Tensor:
    keys = sample_keys(1, 0, torch.arange(len(digits)))
    return distortion.apply(digits.float() / 255, keys, distortion.canvas, digits[:, 0])


def _one_by_one(transform: nn.Module, images: Iterable) -> Tensor:
    return torch.stack([transform(image) for image in images])


class PlainTransformer(nn.Module):
    """An affine spatial transformer as one would write it with PyTorch's own functions."""

    def __init__(self, localisation: nn.Module) -> None:
        super().__init__()
        self.localisation = localisation

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        return torch_affine(x, self.localisation(x))


def plainly(network: mnist.MnistNetwork) -> nn.Module:
    """A copy of a network with an affine transformer, of PyTorch's own layers."""
    network = copy.deepcopy(network)
    assert network.transformer is not None
    layers = list(network.classifier.children())
    if isinstance(layers[0], nn.Conv2d):
        layers[0] = nn.Conv2d(1, layers[0].out_channels, 9, device=layers[0].weight.device)
    pool: list[nn.Module] = [nn.AvgPool2d(network.pool)] if network.pool > 1 else []
    return nn.Sequential(PlainTransformer(network.transformer.localisation), *pool, *layers)


def benchmark_networks(quick: bool) -> list[dict]:
    """Training steps per second of the eight networks at batch 256: forward, backward and AdamW, no data.

    With an affine transformer also of the same network written plainly in PyTorch.
    """
    rows = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size in (28, 42):
        for name, (model, transform) in NETWORKS.items():
            arguments: dict = {} if transform == "none" else {"transform": TRANSFORMS[transform]()}
            arguments["pool"] = 1 if model == "cnn" else None
            network = mnist.MnistNetwork(model.removeprefix("st_"), size, **arguments).to(device)
            steps = {"ms": training_step(network, size)}
            if transform == "affine":
                steps["plain ms"] = training_step(plainly(network), size)
            times = median_times(steps, 1 if quick else 20, 0 if quick else 6, device)
            row: dict = {
                "network": name,
                "size": size,
                "device": device,
                "threads": torch.get_num_threads(),
            }
            row |= {key: round(value, 2) for key, value in times.items()} | {
                "steps/s": round(1e3 / times["ms"], 1)
            }
            if "plain ms" in times:
                row["times faster"] = round(times["plain ms"] / times["ms"], 2)
            rows.append(row)
            print(row, flush=True)
    return rows


def training_step(network: nn.Module, size: int) -> Callable[[], None]:
    """Forward, backward and optimiser step on a batch of 256."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    device = next(network.parameters()).device
    x, y = torch.rand(256, 1, size, size, device=device), torch.randint(10, (256,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    return step


def benchmark_svhn(quick: bool) -> list[dict]:
    """The networks of Table 2 at full width, forward and backward, and how fast their data are made.

    For each network also in bfloat16, and what its localisation networks and its warps take of it, timed apart on maps of
    the same shapes. The data are synthetic numbers of noise digits; one process makes the crops and reads them.
    """
    rows: list[dict] = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = 128 if device == "cuda" else 8
    for size in (64, 128):
        torch.manual_seed(1)
        x = torch.randn(batch, 3, size, size, device=device)
        functions: dict[str, Callable[[], None]] = {}
        for name, (model, transform) in SVHN_NETWORKS.items():
            arguments: dict = {} if transform == "none" else {"transform": TRANSFORMS[transform]()}
            network = getattr(svhn, model.removeprefix("svhn_"))(size, **arguments).to(device)
            functions[name] = partial(_forward_backward, [network], [x])
            functions[f"{name} bfloat16"] = partial(
                _forward_backward, [network], [x], torch.bfloat16
            )
            transformers, maps = _transformed_maps(network, x)
            if maps:
                functions[f"{name} localisation"] = partial(
                    _forward_backward, [t.localisation for t in transformers], maps
                )
                functions[f"{name} transformers"] = partial(_forward_backward, transformers, maps)
        times = median_times(functions, 1 if quick else 3, 0, device)
        for name in SVHN_NETWORKS:
            row: dict = {
                "network": name,
                "size": size,
                "batch": batch,
                "device": device,
                "threads": torch.get_num_threads(),
            }
            row |= {"ms": round(times[name], 1), "times CNN": round(times[name] / times["CNN"], 3)}
            row |= {"bfloat16 ms": round(times[f"{name} bfloat16"], 1)}
            if f"{name} transformers" in times:
                localisation, both = times[f"{name} localisation"], times[f"{name} transformers"]
                row |= {
                    "localisation ms": round(localisation, 1),
                    "warps ms": round(both - localisation, 1),
                }
            rows.append(row)
            print(row, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in _svhn_data_rows(Path(folder), quick):
            rows.append(row)
            print(row, flush=True)
    return rows


def _forward_backward(
    modules: Iterable[nn.Module], inputs: Iterable[Tensor], dtype: torch.dtype | None = None
) -> None:
    for module, x in zip(modules, inputs, strict=True):
        module.zero_grad()
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            out = module(x)
        out.float().square().sum().backward()


def _transformed_maps(
    network: nn.Module, x: Tensor
) -> tuple[list[SpatialTransformer], list[Tensor]]:
    """The transformers of a network and what each gets; maps within a network want their gradient."""
    transformers = [
        module for module in network.modules() if isinstance(module, SpatialTransformer)
    ]
    maps: list[Tensor] = []
    hooks = [
        t.register_forward_pre_hook(lambda module, args: maps.append(args[0].detach()))
        for t in transformers
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return transformers, [kept.requires_grad_(kept is not maps[0]) for kept in maps]


def _svhn_data_rows(folder: Path, quick: bool) -> Iterator[dict]:
    n = 300 if quick else 3000
    digits = (
        np.random.default_rng(1).integers(0, 256, (100, 28, 28), dtype=np.uint8),
        np.arange(100) % 10,
    )
    for part, images in (("train", n), ("test", 1)):
        make_part(folder / part, images, digits, seed=1)
    for size in (64, 128):
        start = time.perf_counter()
        open_crops(folder / "train", size, workers=1)
        row: dict = {"size": size, "crops made/s": round(n / (time.perf_counter() - start))}
        start = time.perf_counter()
        data = SvhnData(size, folder, batch_size=128)
        data.setup()
        row["second start ms"] = round(1e3 * (time.perf_counter() - start), 1)
        index = torch.arange(128)
        with _threads(1):
            for what, augment in (("plain", False), ("augmented", True)):
                data = SvhnData(size, folder, batch_size=128, augment=augment)
                data.setup()
                times = median_times(
                    {what: partial(data.samples, "train", index)},
                    1 if quick else 20,
                    0 if quick else 3,
                )
                row[f"{what} images/s"] = round(128e3 / times[what])
        yield row


def benchmark_birds(quick: bool) -> list[dict]:
    """The networks of Table 3 with EfficientNet-Lite0, forward and backward: images per second, and what is kept for backward.

    The transformer, that is the localisation network and the warp, is timed alone, too: the rest is the streams. And how fast
    one process decodes and resizes photographs of the size of CUB's, and cuts training batches out of what it has resized.
    """
    rows: list[dict] = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = 32 if device == "cuda" else 8
    cases = [(n, size) for size in (224, 448) for n in (0, 2, 4)]
    functions: dict[str, Callable[[], None]] = {}
    kept: dict[tuple[int, int], float] = {}
    for n, size in cases:
        torch.manual_seed(1)
        more: dict = {"backbone": "efficientnet_lite0", "weights": "none"}
        if n:
            network = birds.birds_st(size, 200, Attention(0.5), n, **more).to(device)
        else:
            network = birds.birds_cnn(200, **more).to(device)
        x = torch.rand(batch, 3, size, size, device=device)
        functions[f"{n} {size}"] = partial(_forward_backward, [network], [x])
        if network.transformer is not None:
            functions[f"{n} {size} transformer"] = partial(
                _forward_backward, [network.transformer], [x]
            )
        kept[n, size] = _kept_for_backward(network, x)
    times = median_times(functions, 1 if quick else 3, 0, device)
    for n, size in cases:
        ms = times[f"{n} {size}"]
        row: dict = {
            "transformers": n,
            "size": size,
            "batch": batch,
            "device": device,
            "threads": torch.get_num_threads(),
        }
        row |= {
            "ms": round(ms, 1),
            "images/s": round(1e3 * batch / ms, 1),
            "kept MB/image": round(kept[n, size] / batch, 1),
        }
        if n:
            row["transformer ms"] = round(times[f"{n} {size} transformer"], 1)
        rows.append(row)
        print(row, flush=True)
    with tempfile.TemporaryDirectory() as folder, _threads(1):
        for row in _birds_data_rows(Path(folder), 10 if quick else 200):
            rows.append(row)
            print(row, flush=True)
    return rows


def _birds_data_rows(folder: Path, n: int) -> Iterator[dict]:
    rng = np.random.default_rng(1)
    photographs = [folder / f"{i}.jpg" for i in range(n)]
    for (
        path
    ) in photographs:  # smooth, but for the noise of a camera: about 100 kB each, as CUB's are
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        Image.fromarray(
            (np.asarray(coarse) + rng.normal(0, 8, (375, 500, 3))).clip(0, 255).astype(np.uint8)
        ).save(path)
    for size, longest in cub_images.LONGEST.items():
        start = time.perf_counter()
        images = [
            cub_images.resize(Image.open(path).convert("RGB"), longest) for path in photographs
        ]
        row: dict = {"size": size, "decoded/s": round(n / (time.perf_counter() - start))}
        sizes, lengths = (
            np.array([image.shape[:0:-1] for image in images]),
            [image.size for image in images],
        )
        starts = np.cumsum([0, *lengths[:-1]])
        pictures = cub_images.Images(
            np.concatenate([image.ravel() for image in images]), sizes, sizes, starts
        )
        positions, mirrored = np.arange(32) % n, np.arange(32) % 2 == 0
        corners = (sizes[positions] - size) // 2
        batch = partial(
            cut_crops, pictures, positions, corners, mirrored, size, torch.device("cpu")
        )
        times = median_times({"cut": batch}, 1 if n < 32 else 20, 0)
        yield row | {"cut/s": round(32e3 / times["cut"])}


def _kept_for_backward(network: nn.Module, x: Tensor) -> float:
    """Megabytes that autograd keeps between forward and backward, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network(x)
    del out
    return sum(storages.values()) / 1e6


def benchmark_program(quick: bool) -> list[dict]:
    """Runs of the real program on real data: how long until it trains, and what share of it is not training.

    The share is what is not forward, backward or optimiser step: data, Lightning, logging, validation, pictures; from
    Lightning's profiler, with one validation. The start is from the command to the first validated step.
    """
    steps = 50 if quick else 500
    rows: list[dict] = [
        {
            "command": "train.py --help",
            "seconds": round(min(_seconds_until("", "--help") for _ in range(3)), 2),
        },
    ]
    first_step = (
        "logger=csv",
        "trainer.max_steps=1",
        "recipe.validate_every=1",
        "++trainer.limit_val_batches=1",
    )
    for model in ("st_fcn", "st_cnn"):
        with tempfile.TemporaryDirectory() as folder:
            start = _seconds_until(
                "step 1 of", *first_step, f"model={model}", f"hydra.run.dir={folder}/start"
            )
            command = (
                "debug=profiler",
                f"model={model}",
                f"hydra.run.dir={folder}/run",
                f"trainer.max_steps={steps}",
            )
            _seconds_until("", *command)
            seconds = _profile_totals(Path(folder) / "run" / "fit-profile.txt")
        share = 1 - seconds["run_training_batch"] / seconds["run_training_epoch"]
        row = {
            "model": model,
            "distortion": "rts",
            "steps": steps,
            "seconds to the first step": round(start, 2),
        }
        row["steps/s"] = round(steps / seconds["run_training_epoch"], 1)
        rows.append(row | {"share outside forward, backward, step": round(share, 3)})
    for row in rows:
        print(row, flush=True)
    return rows


def benchmark_threads(quick: bool) -> list[dict]:
    """Training steps per second of an ST-FCN with all threads, alone and beside one busy program for each core.

    With the wait that OpenMP's threads have by themselves, and with that of :func:`process.limit_spinning`.
    """
    rows = []
    for busy in (0, torch.get_num_threads()):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for wait in ("as OpenMP has it", "brief"):
                steps_per_second = _steps_per_second_elsewhere(
                    wait == "brief", seconds=1 if quick else 10
                )
                rows.append(
                    {"busy programs": busy, "wait": wait, "steps/s": round(steps_per_second, 1)}
                )
                print(rows[-1], flush=True)
        finally:
            for process in others:
                process.kill()
    return rows


def _steps_per_second_elsewhere(brief: bool, seconds: float) -> float:
    """In a process of its own, as OpenMP reads its settings when it is loaded."""
    program = f"""
import time
from spatial_transformer.utils.process import keep_freed_memory, limit_spinning
keep_freed_memory()
{"limit_spinning()" if brief else ""}
import benchmark
from spatial_transformer.networks.mnist import MnistNetwork
step = benchmark.training_step(MnistNetwork("fcn", 42, benchmark.Affine()), 42)
step()
start, steps = time.perf_counter(), 0
while time.perf_counter() - start < {seconds}:
    step()
    steps += 1
print(steps / (time.perf_counter() - start))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command,
        cwd=ROOT / "scripts",
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=_without_waiting(),
    )
    return float(done.stdout)


def _without_waiting() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }


def _seconds_until(line: str, *overrides: str) -> float:
    """Seconds from calling train.py until it prints a line that starts so, or, without one, until it ends."""
    start, seconds = time.perf_counter(), 0.0
    command = [sys.executable, "train.py", *overrides]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for printed in process.stdout:
            if line and not seconds and printed.startswith(line):
                seconds = time.perf_counter() - start
        if process.wait():
            assert process.stderr is not None
            raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr.read()}")
    return seconds or time.perf_counter() - start


def _profile_totals(path: Path) -> dict[str, float]:
    """Total seconds of each action in a report of Lightning's SimpleProfiler."""
    rows = [[cell.strip() for cell in line.split("|")] for line in path.read_text().splitlines()]
    return {row[1]: float(row[4]) for row in rows if len(row) > 5 and row[3].isdigit()}


def machine() -> dict:
    """What the figures were taken on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.processor(),
    )
    packages = {
        name: version(name)
        for name in ("torch", "torchvision", "kornia", "monai", "torch-tps", "pytorch-lightning")
    }
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "commit": commit,
        "packages": packages,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


PARTS: dict[str, Callable[[bool], list[dict]]] = {
    "warps": benchmark_warps,
    "memory": benchmark_memory,
    "scaling": benchmark_scaling,
    "data": benchmark_data,
    "networks": benchmark_networks,
    "svhn": benchmark_svhn,
    "birds": benchmark_birds,
    "program": benchmark_program,
    "threads": benchmark_threads,
}


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing written")
    parser.add_argument("--only", choices=PARTS, help="one part")
    options = parser.parse_args()
    keep_freed_memory()  # as train.py does; all that is compared gains by it
    for name, part in PARTS.items():
        if options.only in (None, name):
            rows = part(options.quick)
            if not options.quick:
                with atomic_write(ROOT / "results" / "benchmarks" / f"{name}.json") as path:
                    path.write_text(
                        json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n"
                    )


if __name__ == "__main__":
    main()
