"""Runs of random settings, interrupted at random places and resumed."""

import os
import random
import signal
from pathlib import Path

import pytest
from programs import Program
from run_files import assert_bit_equal

from spatial_transformer.callbacks.checkpointing import ResumeCheckpoint

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


def draw(seed):
    """Return random legal settings, and the place, the time and the signal of an interruption."""
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


def interrupt(place, times, number):
    """Send the signal at the n-th call of a function, or of a hook of what saves checkpoints."""
    owner = {"write_bytes": Path, "replace": os}.get(place, ResumeCheckpoint)
    inner, count = getattr(owner, place), [0]

    def hook(*arguments):
        if owner is not ResumeCheckpoint or not arguments[1].sanity_checking:
            count[0] += 1
            if count[0] == times:
                os.kill(os.getpid(), number)
        return inner(*arguments)

    setattr(owner, place, hook)


@pytest.mark.parametrize(
    "seeds",
    [range(5), pytest.param(range(5, 205), marks=pytest.mark.slow)],
    ids=["5 draws", "200 draws"],
)
def test_resume_is_bit_equal(mnist_root, tmp_path, seeds):
    codes = []
    for seed in seeds:
        settings, place, times, number = draw(seed)
        print(f"seed {seed}: {number.name} at {place} {times}")  # shown if the test fails

        def run(name, prepare=None, words=(*settings, f"data.root={mnist_root}")):
            words = [*words, f"hydra.run.dir={tmp_path}/{name}"]
            return Program("train.py", *words, merge=True, prepare=prepare).wait()

        codes.append(run(f"{seed}-stopped", (interrupt, place, times, number)))
        assert codes[-1] in (0, -number if number == signal.SIGKILL else 128 + number)
        assert run(f"{seed}-stopped") == run(f"{seed}-whole") == 0
        assert_bit_equal(tmp_path / f"{seed}-stopped", tmp_path / f"{seed}-whole")
    assert sum(code != 0 for code in codes) > len(codes) / 2, "most were stopped"
