"""Compare an undisturbed run with one that is killed at a random place and resumed.

    python tests/training/resume_worker.py DIRECTORY DATA FIRST LAST

draws the settings of seeds FIRST to LAST - 1 and prints a line of JSON for each. Every run is a
fork of this process, which imports everything once.
"""

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = (
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_end",
    "on_validation_end",
    "on_save_checkpoint",
    "on_test_batch_end",
    "write_bytes",  # of a checkpoint
    "replace",  # of a file by its complete successor
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def draw(seed: int) -> tuple[list[str], str, int, int]:
    """Return random legal settings, and the place, the time and the signal of the kill."""
    rng = random.Random(seed)
    accumulate = rng.choice([1, 1, 2, 3, 4, 8])
    steps = rng.randint(4, 14)
    settings = [
        "experiment=mnist",
        "logger=csv",
        f"seed={seed}",
        f"model={rng.choice(['fcn', 'st_fcn'])}",
        "model.width=8",
        f"data.distortion={rng.choice(['r', 'p'])}",
        "data.batch_size=8",
        "data.eval_batch_size=20",
        f"trainer.max_steps={steps}",
        f"recipe.validate_every={rng.randint(1, 6)}",
        f"recipe.dropout={rng.choice([0, 0.3])}",
        f"recipe.theta_noise={rng.choice([0, 0.1])}",
        f"trainer.log_every_n_steps={rng.randint(1, 5)}",
        f"checkpoint_minutes={rng.choice([0, 60])}",
        f"++trainer.limit_train_batches={accumulate * rng.randint(2, 6)}",
        f"++trainer.limit_val_batches={rng.randint(1, 3)}",
        f"++trainer.limit_test_batches={rng.randint(1, 2)}",
        f"++trainer.accumulate_grad_batches={accumulate}",
    ]
    is_mixed = rng.random() < 0.3
    if is_mixed:
        settings += ["trainer.precision=bf16-mixed"]
    if rng.random() < 0.4:
        settings += [f"++trainer.gradient_clip_val={rng.choice([0.1, 1.0])}"]
        settings += ["recipe.optimizer.fused=false"] if is_mixed else []
    if rng.random() < 0.3:
        settings += ["recipe.scheduler=null"]
    stop = "callbacks.stop"
    if rng.random() < 0.3:
        settings += [f"+{stop}._target_=pytorch_lightning.callbacks.EarlyStopping"]
        settings += [f"+{stop}.monitor=val/loss", f"+{stop}.patience={rng.randint(1, 2)}"]
    if rng.random() < 0.2:
        settings += ["callbacks.best=null"]
    if rng.random() < 0.2:
        settings += ["~callbacks.theta", "~callbacks.crops"]
    place = rng.choice(PLACES)
    times = rng.randint(1, max(1, steps if "train" in place or "optimizer" in place else 3))
    return settings, place, times, rng.choice(SIGNALS)


def run(settings: list[str], run_dir: Path, kill: tuple[str, int, int] | None = None) -> int:
    """Train in a fork and return its exit code, negative for a signal."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            from spatial_transformer.training.config import compose_config
            from spatial_transformer.training.runner import train
            from spatial_transformer.utils.errors import Stopped

            if kill:
                arm(*kill)
            with run_dir.with_suffix(".log").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            try:
                train(compose_config(REPOSITORY / "conf", *settings, f"run_dir={run_dir}"))
                code = 0
            except Stopped as stop:
                print(stop, flush=True)
                code = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def arm(place: str, times: int, number: int) -> None:
    """Send the signal at the n-th call of a function, or of a hook of what saves checkpoints."""
    from spatial_transformer.callbacks.checkpointing import ResumeCheckpoint

    owner: Any = {"write_bytes": Path, "replace": os}.get(place, ResumeCheckpoint)
    inner, count = getattr(owner, place), [0]

    def hook(*arguments):
        if owner is not ResumeCheckpoint or not arguments[1].sanity_checking:
            count[0] += 1
            if count[0] == times:
                os.kill(os.getpid(), number)
        return inner(*arguments)

    setattr(owner, place, hook)


def difference(run_dir: Path, expected_dir: Path) -> str:
    """Return what differs between two finished runs; empty if they are bit-equal."""
    for name in ("last", "best"):
        paths = [d / "checkpoints" / f"{name}.ckpt" for d in (run_dir, expected_dir)]
        if not paths[1].exists() and not paths[0].exists():
            continue
        found, expected = (torch.load(path, weights_only=True) for path in paths)
        if found["global_step"] != expected["global_step"]:
            return f"{name}.ckpt: step {found['global_step']} for {expected['global_step']}"
        for key, tensor in expected["state_dict"].items():
            if not torch.equal(found["state_dict"][key], tensor):
                return f"{name}.ckpt: {key}"
    results = [json.loads((d / "metrics.json").read_text()) for d in (run_dir, expected_dir)]
    for key in ("metrics", "curve", "misclassified", "steps"):
        if results[0][key] != results[1][key]:
            return f"metrics.json: {key}: {results[0][key]} for {results[1][key]}"
    if (run_dir / "metrics.csv").read_text() != (expected_dir / "metrics.csv").read_text():
        return "metrics.csv"
    return ""


def main(directory: str, data: str, first: int, last: int) -> None:
    torch.set_num_threads(1)
    import spatial_transformer.training.runner  # noqa: F401  before the forks

    for seed in range(first, last):
        settings, place, times, number = draw(seed)
        settings = [*settings, f"data.root={data}"]
        expected, found = (Path(directory) / f"{seed}-{name}" for name in ("whole", "killed"))
        codes = [run(settings, expected), run(settings, found, (place, times, number))]
        codes.append(run(settings, found))
        interrupted = -number if number == signal.SIGKILL else 128 + number
        is_right = codes[0] == codes[2] == 0 and codes[1] in (0, interrupted)
        reason = "" if is_right else f"exit codes {codes}"
        reason = reason or difference(found, expected)
        kill = f"{signal.Signals(number).name} at {place} {times}"
        result = {"seed": seed, "kill": kill, "codes": codes, "reason": reason}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
