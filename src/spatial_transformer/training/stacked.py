"""Train several seeds of one network at once, for GPUs that wait for the launches of small kernels.

- The weights of all seeds are stacked, so that a kernel works on all of them (``torch.func``).
- The training samples of an epoch are distorted at once.
- Forward and backward are one CUDA graph. The optimizer stays outside: its fused step is a few
  launches, and OneCycleLR sets its momentum to a Python number, which a graph would keep.

Each seed has the weights, the order, the distortions and the noise on theta that ``train.py`` gives
it, so the results agree up to rounding. Dropout differs: it is drawn for all seeds together.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import SGD, Adam, AdamW, RMSprop

from ..tasks.classification import Classification
from ..utils.errors import UsageError
from ..utils.process import keep_freed_memory
from ..utils.random import mix_integers, normal, sample_keys
from .build import build
from .fingerprint import acting_callbacks, fingerprint
from .result import make_result
from .runner import build_trainer, unchanged_process
from .validation import validate

log = logging.getLogger(__name__)
CPU_STEPS = 16
"""Steps whose samples are drawn at once on a CPU, where an epoch would take gigabytes."""
_OPTIMIZERS = (SGD, Adam, AdamW, RMSprop)
"""Optimizers that update each weight independently, so they can be given stacked weights."""
_TRAINER = {
    "_target_",
    "accelerator",
    "check_val_every_n_epoch",
    "default_root_dir",
    "deterministic",
    "devices",
    "enable_model_summary",
    "log_every_n_steps",
    "max_steps",
    "num_nodes",
    "num_sanity_val_steps",
    "precision",
    "use_distributed_sampler",
    "val_check_interval",
}
"""Settings of the trainer that are respected here, or have nothing to do here."""

Function = Callable[..., list[Tensor]]


def train_stacked(
    config: DictConfig, seeds: Sequence[int], use_graph: bool = True, use_vmap: bool = True
) -> list[dict[str, Any]]:
    """Train and test several seeds of a configuration. Nothing is written.

    Args:
        config: the composed configuration of one run. Its seed is replaced.
        seeds: one run for each.
        use_graph: capture a CUDA graph, on a GPU.
        use_vmap: compute each layer for all seeds at once. A convolution then has a group for each
            seed. False computes the losses of the seeds in turn, within the same step.

    Returns:
        For each seed a result as in ``metrics.json``, with the field ``stacked``: the seeds that
        were trained together. Its ``seconds`` are the share of one seed.

    Raises:
        UsageError: a setting is wrong or not supported here, or a loss is not finite.
    """
    with unchanged_process():
        keep_freed_memory()
        return _train(Stack(config, seeds, use_graph, use_vmap))


class Stack:
    """The networks of several seeds with stacked weights, and their data and optimizer.

    Args:
        config: the composed configuration of one run.
        seeds: as for :func:`train_stacked`.
        use_graph: as for :func:`train_stacked`.
        use_vmap: as for :func:`train_stacked`.
        draw_steps: steps whose samples are drawn at once. None is an epoch on a GPU, and
            :data:`CPU_STEPS` on a CPU.

    Attributes:
        configs: the configuration of each seed.
        data: the data of each seed.
        tasks: the task of each seed, with its initial weights.
        task: a task whose weights have a leading dimension for the seeds.
        trainer: Lightning's trainer of the configuration. It chooses the device.
        device: where training runs.

    Raises:
        UsageError: a setting is wrong or not supported here.
    """

    def __init__(
        self,
        config: DictConfig,
        seeds: Sequence[int],
        use_graph: bool = True,
        use_vmap: bool = True,
        draw_steps: int | None = None,
    ) -> None:
        if not seeds or len(set(seeds)) < len(seeds):
            raise UsageError(f"seed must be different numbers, got {list(seeds)}.")
        self.seeds = list(seeds)
        self.configs: list[Any] = [OmegaConf.merge(config, {"seed": seed}) for seed in seeds]
        self.data: list[Any] = []
        self.tasks: list[Classification] = []
        for each in self.configs:
            validate(each)
            _check_settings(each)
            pl.seed_everything(each.seed, workers=True, verbose=False)  # as train() does
            data, task = build(each)
            data.prepare_data()
            data.setup()
            self.data.append(data)
            self.tasks.append(task)
        _check_task(self.tasks[0])
        self.trainer = build_trainer(self.configs[0])
        if self.trainer.world_size > 1:
            raise UsageError("Stacked seeds train on one device. Set trainer.devices=1.")
        self.device: torch.device = self.trainer.strategy.root_device
        is_cuda = self.device.type == "cuda"
        if is_cuda:
            torch.cuda.set_device(self.device)
        self.draw_steps = draw_steps or (10**9 if is_cuda else CPU_STEPS)

        self.task = copy.deepcopy(self.tasks[0])
        weights, _ = stack_module_state([task.network for task in self.tasks])
        for name, parameter in self.task.network.named_parameters():
            parameter.data = weights[name].data
        self.task.to(self.device).train()
        optimizer: Any = self.task.configure_optimizers()
        is_scheduled = isinstance(optimizer, dict)
        self.optimizer = optimizer["optimizer"] if is_scheduled else optimizer
        self.scheduler = optimizer["lr_scheduler"]["scheduler"] if is_scheduled else None
        if type(self.optimizer) not in _OPTIMIZERS:
            names = ", ".join(kind.__name__ for kind in _OPTIMIZERS)
            raise UsageError(
                f"recipe.optimizer must be one of {names} for stacked seeds, "
                f"got {type(self.optimizer).__name__}."
            )
        self._loss = _TrainingLoss(self.task)
        self._trained = [p for p in self.task.parameters() if p.requires_grad]
        self._use_graph = use_graph and is_cuda
        self._use_vmap = use_vmap
        self._gradients: Function | None = None

    def batches(self, steps: int) -> Iterator[list[Tensor]]:
        """Yield the training batches of the first steps of all seeds.

        Yields:
            Images ``(seeds, B, C, H, W)``, labels ``(seeds, B)`` and, for a task with noise on
            theta, standard normal numbers ``(seeds, B, n)``.
        """
        done = epoch = 0
        while done < steps:
            orders = [_order(data, done)[: steps - done] for data in self.data]
            for chunk in torch.arange(done, done + len(orders[0])).split(self.draw_steps):
                drawn = (
                    self._draw(n, epoch, order[chunk - done], chunk)
                    for n, order in enumerate(orders)
                )
                stacked = [torch.stack(tensors, dim=1) for tensors in zip(*drawn, strict=True)]
                yield from map(list, zip(*stacked, strict=True))
            done, epoch = done + len(orders[0]), epoch + 1

    def _draw(self, n: int, epoch: int, index: Tensor, steps: Tensor) -> list[Tensor]:
        """Return samples and noise of the n-th seed: ``(steps, B)`` to ``(steps, B, ...)``."""
        data, shape = self.data[n], index.shape
        samples = data.samples("train", index.flatten().to(self.device), epoch)
        parts = [tensor.unflatten(0, shape) for tensor in samples]
        if size := self.task.noise_size:
            # The keys of Classification.training_sample_keys on one device.
            batches = data.size("train") // data.batch_size
            mixed = [mix_integers(self.seeds[n], step, step % batches) for step in steps.tolist()]
            keys = sample_keys(torch.tensor(mixed)[:, None], 0, torch.arange(shape[1]))
            noise = normal(keys.flatten().to(self.device), size)
            parts.append(noise.unflatten(0, shape))
        return parts

    def train_step(self, batch: list[Tensor]) -> Tensor:
        """Train on a batch of each seed and return the losses, ``(seeds,)``.

        With a CUDA graph, the next step overwrites them.
        """
        if self._gradients is None:
            function = self.loss_and_gradients
            self._gradients = capture(function, batch) if self._use_graph else function
        losses, *gradients = self._gradients(*batch)
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return losses

    def loss_and_gradients(self, *batch: Tensor) -> list[Tensor]:
        """Return the losses ``(seeds,)``, and the gradient of each stacked weight that trains."""
        losses = self._losses(dict(self._loss.named_parameters()), batch)
        # A seed's loss depends on its weights alone: the gradient of the sum is that of each loss.
        gradients = torch.autograd.grad(losses.sum(), self._trained)
        # Fused optimizers need the strides of the weights, also along dimensions of size 1. With
        # others they raise an error on a GPU, and read the wrong elements on a CPU.
        layouts = [(weight.size(), weight.stride()) for weight in self._trained]
        return [
            losses.detach(),
            *(g.contiguous().as_strided(*layout) for g, layout in zip(gradients, layouts)),
        ]

    def _losses(self, weights: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        compute = partial(functional_call, self._loss)
        if self._use_vmap:
            losses: Tensor = vmap(compute, randomness="different")(weights, batch)
            return losses
        parts = zip(*(weight.unbind() for weight in weights.values()), strict=True)
        return torch.stack(
            [
                compute(dict(zip(weights, part, strict=True)), inputs)
                for part, inputs in zip(parts, zip(*batch, strict=True), strict=True)
            ]
        )

    def result(
        self, n: int, metrics: dict[str, float], losses: Tensor, **progress: Any
    ) -> dict[str, Any]:
        """Return the result of the n-th seed. ``losses`` are those of all steps, ``(steps,)``."""
        config: Any = OmegaConf.to_container(self.configs[n], resolve=True)
        data, task = self.data[n], self.tasks[n]
        mark = fingerprint(config, data.digest())
        result = make_result(config, mark, metrics, self.trainer, task, data, **progress)
        every = config["trainer"]["log_every_n_steps"]
        steps = range(every, len(losses) + 1, every)
        rows = {"step": list(steps), "train/loss": losses[every - 1 :: every].tolist()}
        return result | {"losses": rows, "stacked": self.seeds}

    @torch.no_grad()
    def evaluate(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the loss and the error of each validation or test sample, ``(seeds, N)`` both."""
        self.task.eval()
        weights = dict(self.task.network.named_parameters())
        forward = vmap(partial(functional_call, self.task.network), in_dims=(0, None))
        losses, errors = [], []
        for index in torch.arange(self.data[0].size(split)).split(self.data[0].eval_batch_size):
            images, labels = self.data[0].samples(split, index.to(self.device))
            logits = forward(weights, images)
            losses.append(torch.stack([self.task.per_sample_loss(x, labels) for x in logits]))
            wrong = [self.task.per_sample_errors(x, labels)["error"] for x in logits]
            errors.append(torch.stack(wrong))
        self.task.train()
        return torch.cat(losses, dim=1), torch.cat(errors, dim=1)


def capture(function: Function, inputs: Sequence[Tensor]) -> Function:
    """Capture a function of tensors as a CUDA graph and return a function that replays it.

    The function must not wait for the GPU. Its outputs are overwritten by each replay. Weights that
    it reads must be changed in place.

    Args:
        function: from tensors to tensors.
        inputs: tensors of the shapes that the replays will have.
    """
    inputs = [tensor.clone() for tensor in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries choose algorithms and allocate in the first calls
            function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = function(*inputs)

    def replay(*values: Tensor) -> list[Tensor]:
        for tensor, value in zip(inputs, values, strict=True):
            tensor.copy_(value)
        graph.replay()
        return outputs

    return replay


class _TrainingLoss(nn.Module):
    """The mean loss of a training batch, as a module whose weights can be replaced."""

    def __init__(self, task: Classification) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Tensor, labels: Tensor, noise: Tensor | None = None) -> Tensor:
        logits = self.task.training_logits(images, noise)
        return self.task.per_sample_loss(logits, labels).mean()


def _train(stack: Stack) -> list[dict[str, Any]]:
    """Train with validations, test the best weights, and return the results."""
    start = time.monotonic()
    n_steps, every = stack.trainer.max_steps, int(stack.trainer.val_check_interval)
    weights = [parameter.data for parameter in stack.task.network.parameters()]
    best = [weight.clone() for weight in weights]
    best_error = torch.full((len(stack.seeds),), math.inf, device=stack.device)
    losses = torch.empty(n_steps, len(stack.seeds), device=stack.device)
    curve: dict[str, list[Any]] = {"step": [], "val/error": [], "val/loss": []}
    torch.manual_seed(mix_integers(*stack.seeds))  # of dropout
    for step, batch in enumerate(stack.batches(n_steps), start=1):
        losses[step - 1] = stack.train_step(batch)
        if step % every:
            continue
        _check_finite(losses[:step], stack.seeds)
        val_loss, error = (values.mean(dim=1) for values in stack.evaluate("val"))
        is_better = error < best_error
        best_error = torch.minimum(error, best_error)
        for weight, kept in zip(weights, best, strict=True):
            kept[is_better] = weight[is_better]
        for name, value in zip(curve, (step, error.tolist(), val_loss.tolist()), strict=True):
            curve[name].append(value)
        errors = "  ".join(f"{value:.2f}" for value in error.tolist())
        log.info("step %s of %s   val/error  %s %%", f"{step:,}", f"{n_steps:,}", errors)
    _check_finite(losses, stack.seeds)
    for weight, kept in zip(weights, best, strict=True):
        weight.copy_(kept)
    test_losses, test_errors = stack.evaluate("test")
    seconds = round((time.monotonic() - start) / len(stack.seeds), 1)
    results = []
    for n, task in enumerate(stack.tasks):
        task.misclassified = test_errors[n].nonzero()[:, 0].tolist()
        metrics = {
            "test/error": float(test_errors[n].mean()),
            "test/loss": float(test_losses[n].mean()),
            "val/best_error": float(best_error[n]),
            "val/error": curve["val/error"][-1][n],
            "val/loss": curve["val/loss"][-1][n],
        }
        own = {name: [float(f"{row[n]:.6g}") for row in curve[name]] for name in list(curve)[1:]}
        progress = {"steps": n_steps, "curve": {"step": curve["step"], **own}, "seconds": seconds}
        results.append(stack.result(n, metrics, losses[:, n], **progress))
    return results


def _order(data: Any, done: int) -> Tensor:
    """Return the order of the epoch that follows after ``done`` steps, ``(steps, B)``."""
    sampler: Any = data.train_dataloader().sampler
    sampler.progress = lambda: (done, 1, math.inf)
    return torch.stack([batch.indices for batch in sampler])


def _check_settings(config: DictConfig) -> None:
    """Raise a UsageError for a setting that changes training and is not respected here."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    callbacks = acting_callbacks(plain)
    wrong = {
        f"trainer.{name}": value
        for name, value in plain["trainer"].items()
        if name not in _TRAINER and value is not None
    }
    if str(plain["trainer"]["precision"]) not in ("32", "32-true"):
        wrong["trainer.precision"] = plain["trainer"]["precision"]
    if plain["ckpt_path"] not in (None, "auto"):
        wrong["ckpt_path"] = plain["ckpt_path"]
    if (callbacks.get("best") or {}).get("monitor") != "val/error":
        wrong["callbacks.best"] = callbacks.get("best")
    callbacks.pop("best", None)
    wrong |= {f"callbacks.{name}": node for name, node in callbacks.items() if node is not None}
    if wrong:
        settings = ", ".join(f"{name}={value}" for name, value in wrong.items())
        raise UsageError(f"Stacked seeds cannot have {settings}. Use train.py.")


def _check_task(task: Any) -> None:
    """Raise a UsageError for a task or a network that cannot be stacked."""
    if type(task) is not Classification:
        raise UsageError(
            f"Stacked seeds need the task Classification, got {type(task).__name__}. Use train.py."
        )
    buffers = task.network.state_dict().keys() - dict(task.network.named_parameters()).keys()
    if buffers:
        raise UsageError(
            f"Stacked seeds need a network whose only state is its parameters, got the buffer "
            f"{min(buffers)}. Use train.py."
        )


def _check_finite(losses: Tensor, seeds: list[int]) -> None:
    """Raise a UsageError for the first loss that is not finite, of ``(steps, seeds)``."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step, n = bad[0].tolist()
        raise UsageError(
            f"The loss of seed {seeds[n]} is not finite at step {step + 1:,}.\n"
            "Try a lower learning rate (recipe.optimizer.lr=...)."
        )
