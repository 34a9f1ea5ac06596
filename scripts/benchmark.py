"""Speed of the transformer and of training on this machine, against other implementations, side by side in one run.

Writes results/benchmarks/*.json and prints them as tables: python scripts/benchmark.py [--quick]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_transformer import Affine, Projective, ThinPlateSpline, sample
from spatial_transformer.files import replacing
from spatial_transformer.memory import keep_freed_memory
from spatial_transformer.networks import mnist
from spatial_transformer.paper import NETWORKS
from spatial_transformer.transformer import Transform

ROOT = Path(__file__).parent.parent
SIZES = ((256, 1, 28, 28), (32, 3, 224, 224))
TRANSFORMS: dict[str, type[Transform]] = {"affine": Affine, "projective": Projective, "tps": ThinPlateSpline}


def median_times(functions: Mapping[str, Callable[[], object]], repeats: int, budget: float = 20.0) -> dict[str, float]:
    """Median time of each function in milliseconds.

    They take turns of a few calls, so that all see the same machine and none the caches that another has left. With one
    thread it is the processor's time, which other programs on the machine disturb less; with several, the clock's.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    start = time.perf_counter()
    for turn in range(repeats):
        for name, function in functions.items():
            function()
            for _ in range(3):
                begin = clock()
                function()
                times[name].append(clock() - begin)
        if turn >= 2 and time.perf_counter() - start > budget:
            break
    return {name: sorted(values)[len(values) // 2] * 1e3 for name, values in times.items()}


def warp_step(warp: Callable[[Tensor, Tensor], Tensor], x: Tensor, theta: Tensor, grad: Tensor) -> Callable[[], None]:
    """Forward and backward of a warp."""

    def step() -> None:
        x.grad = theta.grad = None
        warp(x, theta).backward(grad)

    return step


def ours(transform) -> Callable[[Tensor, Tensor], Tensor]:
    """Grid and sampling of this project."""
    return lambda x, theta: sample(x, transform.grid(theta, x.shape[2:]))


def torch_affine(x: Tensor, theta: Tensor) -> Tensor:
    """PyTorch's own pair of functions."""
    return F.grid_sample(x, F.affine_grid(theta.view(-1, 2, 3), list(x.shape), align_corners=False), align_corners=False)


def kornia_warps() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """kornia's nearest equivalents, made to read at the same kind of points."""
    import kornia.geometry.transform as kornia

    def affine(x: Tensor, theta: Tensor) -> Tensor:
        return kornia.warp_affine(x, theta.view(-1, 2, 3), (x.shape[2], x.shape[3]), align_corners=False)

    def projective(x: Tensor, theta: Tensor) -> Tensor:
        matrix = torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)
        return kornia.homography_warp(x, matrix, (x.shape[2], x.shape[3]), align_corners=False)

    control = ThinPlateSpline().identity().view(2, 16).T

    def tps(x: Tensor, theta: Tensor) -> Tensor:
        source = theta.view(-1, 2, 16).mT
        centres = control.expand_as(source)
        kernel, affine_part = kornia.get_tps_transform(centres, source)
        return kornia.warp_image_tps(x, centres, kernel, affine_part, align_corners=False)

    return {"affine": affine, "projective": projective, "tps": tps}


def benchmark_warps(quick: bool) -> list[dict[str, object]]:
    """Forward and backward of grid and sampling, for one thread and for all; the input's gradient wanted or not."""
    others = kornia_warps()
    rows: list[dict[str, object]] = []
    all_threads = torch.get_num_threads()
    for threads in sorted({1, all_threads}):
        torch.set_num_threads(threads)
        for size in SIZES:
            for input_gradient in (False, True):
                for name, family in TRANSFORMS.items():
                    transform = family()
                    torch.manual_seed(1)
                    x = torch.randn(size, requires_grad=input_gradient)
                    theta = (transform.identity() + 0.05 * torch.randn(size[0], transform.n_params)).requires_grad_()
                    grad = torch.randn(size)
                    warps = {"ours": ours(transform), "kornia": others[name]}
                    if name == "affine":
                        warps["torch"] = torch_affine
                    large_kornia_tps = name == "tps" and size[-1] > 100
                    if large_kornia_tps:
                        del warps["kornia"]  # it wants over 20 GB
                    steps = {who: warp_step(warp, x, theta, grad) for who, warp in warps.items()}
                    times = median_times(steps, repeats=5 if quick else 40, budget=3 if quick else 8)
                    row: dict[str, object] = {
                        "transform": name,
                        "size": size,
                        "input gradient": input_gradient,
                        "threads": threads,
                    }
                    row |= {f"{who} ms": round(value, 3) for who, value in times.items()}
                    row |= {f"ours/{who}": round(times["ours"] / times[who], 4) for who in times if who != "ours"}
                    rows.append(row)
                    print(row, flush=True)
    torch.set_num_threads(all_threads)
    return rows


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
        layers[0] = nn.Conv2d(1, layers[0].out_channels, 9)
    pool: list[nn.Module] = [nn.AvgPool2d(network.pool)] if network.pool > 1 else []
    return nn.Sequential(PlainTransformer(network.transformer.localisation), *pool, *layers)


def benchmark_networks(quick: bool) -> list[dict]:
    """Training steps per second of the eight networks at batch 256: forward, backward and AdamW, no data.

    With an affine transformer also of the same network written plainly in PyTorch.
    """
    rows = []
    for size in (28, 42):
        for name, (model, transform) in NETWORKS.items():
            arguments: dict = {} if transform == "none" else {"transform": TRANSFORMS[transform]()}
            network = getattr(mnist, model)(size, **arguments)
            steps = {"ms": training_step(network, size)}
            if transform == "affine":
                steps["plain ms"] = training_step(plainly(network), size)
            times = median_times(steps, repeats=1 if quick else 20, budget=2 if quick else 6)
            row: dict[str, object] = {"network": name, "size": size, "threads": torch.get_num_threads()}
            row |= {key: round(value, 2) for key, value in times.items()} | {"steps/s": round(1e3 / times["ms"], 1)}
            if "plain ms" in times:
                row["times faster"] = round(times["plain ms"] / times["ms"], 2)
            rows.append(row)
            print(row, flush=True)
    return rows


def training_step(network: nn.Module, size: int) -> Callable[[], None]:
    """Forward, backward and optimiser step on a batch of 256."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    x, y = torch.rand(256, 1, size, size), torch.randint(10, (256,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    return step


def benchmark_program(steps: int) -> list[dict]:
    """Share of a training run that is not forward, backward or optimiser step: data, Lightning, logging, validation, pictures.

    From Lightning's profiler in runs of the real program on real data, with one validation.
    """
    rows = []
    for model in ("st_fcn", "st_cnn"):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "train.py",
                "experiment=mnist",
                "debug=profile",
                f"model={model}",
                f"hydra.run.dir={folder}",
            ]
            command += [f"trainer.max_steps={steps}"]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds = _profile_totals(Path(folder) / "fit-profile.txt")
        share = 1 - seconds["run_training_batch"] / seconds["run_training_epoch"]
        row = {"model": model, "distortion": "rts", "steps": steps, "steps/s": round(steps / seconds["run_training_epoch"], 1)}
        rows.append(row | {"share outside forward, backward, step": round(share, 3)})
        print(rows[-1], flush=True)
    return rows


def _profile_totals(path: Path) -> dict[str, float]:
    """Total seconds of each action in a report of Lightning's SimpleProfiler."""
    rows = [[cell.strip() for cell in line.split("|")] for line in path.read_text().splitlines()]
    return {row[1]: float(row[4]) for row in rows if len(row) > 5 and row[3].isdigit()}


def machine() -> dict:
    """What the figures were taken on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    packages = {name: version(name) for name in ("torch", "kornia", "pytorch-lightning")}
    return {"cpu": cpu, "threads": torch.get_num_threads(), "commit": commit, "packages": packages}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing written")
    parser.add_argument("--only", choices=["warps", "networks", "program"], help="one part")
    options = parser.parse_args()
    keep_freed_memory()  # as train.py does; all that is compared gains by it
    parts: dict[str, Callable[[], list[dict]]] = {
        "warps": lambda: benchmark_warps(options.quick),
        "networks": lambda: benchmark_networks(options.quick),
        "program": lambda: benchmark_program(50 if options.quick else 500),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            rows = part()
            if not options.quick:
                with replacing(ROOT / "results" / "benchmarks" / f"{name}.json") as path:
                    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
