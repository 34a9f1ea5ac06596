"""Stacked seeds against train(), and what a CUDA graph would need."""

from contextlib import contextmanager

import pytest
import torch
import train_stacked as script
from conftest import replace_mnist
from run_files import losses
from torch.utils._python_dispatch import TorchDispatchMode

from spatial_transformer.networks.mnist import MnistNetwork
from spatial_transformer.paper import NETWORKS
from spatial_transformer.reporting.records import read_records
from spatial_transformer.training.runner import train
from spatial_transformer.training.stacked import Stack, train_stacked
from spatial_transformer.utils.errors import UsageError

SEEDS = [3, 4]
COMMON = [
    "logger=csv",
    "ckpt_path=null",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.max_steps=8",
    "recipe.validate_every=2",
    "data.batch_size=128",
]


@pytest.fixture(autouse=True)
def few_digits(digits, monkeypatch):
    """Replace MNIST by 400 training, 100 validation and 150 test digits: 3 steps an epoch."""
    images = (digits[:50, 0] * 255).round().to(torch.uint8).repeat(10, 1, 1)
    labels = torch.arange(len(images)) % 10
    replace_mnist(monkeypatch, (images, labels), (images[:150], labels[:150]))
    monkeypatch.setattr("spatial_transformer.data.mnist.distorted.VALIDATION_SIZE", 100)


@pytest.fixture
def config(composed):
    return lambda words="", *more: composed(*COMMON, *words.split(), *more)


class WithBuffer(MnistNetwork):
    """A network whose state is not only parameters."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batch_norm = torch.nn.BatchNorm2d(1)


@pytest.mark.parametrize(
    "words",
    [
        "model=fcn model.width=24 data.distortion=r recipe.optimizer.lr=0.03",
        "model=st_fcn model.width=24 data.distortion=rts recipe=long",
        "model=cnn model.width=8 data.distortion=e recipe=paper",
        "model=st_cnn model.width=8 data.distortion=r recipe.localisation_lr_factor=0.1",
        "experiment=mnist_iterated model.width=24 data.distortion=r",
    ],
)
def test_each_seed_is_as_in_train(config, tmp_path, words):
    stacked, in_turn = (train_stacked(config(words), SEEDS, use_vmap=v) for v in (True, False))
    for n, seed in enumerate(SEEDS):
        run = tmp_path / str(seed)
        plain = train(config(words, f"seed={seed}", f"run_dir={run}"))
        for result in (stacked[n], in_turn[n]):
            logged = result.pop("losses")
            assert result.pop("stacked") == SEEDS
            assert logged["step"] == list(range(1, 9))
            assert logged["train/loss"] == pytest.approx(losses(run), rel=1e-4)
            assert_same_result(result, plain)


def assert_same_result(result, plain):
    assert result.keys() == plain.keys()
    for name in result.keys() - {"metrics", "curve", "seconds"}:
        assert result[name] == plain[name], name
    for part in ("metrics", "curve"):
        for name, value in result[part].items():
            assert value == pytest.approx(plain[part][name], rel=1e-4), name


def test_the_weights_with_the_lowest_validation_error_are_tested(config, monkeypatch):
    errors = {"val": [[9.0, 5.0], [8.0, 7.0], [8.0, 4.0], [9.0, 6.0]], "test": [[0.0, 0.0]]}
    weights = {"val": [], "test": []}

    def evaluate(stack, split):
        weights[split].append([p.detach().clone() for p in stack.task.network.parameters()])
        error = torch.tensor(errors[split][len(weights[split]) - 1])[:, None]
        return error / 10, error

    monkeypatch.setattr(Stack, "evaluate", evaluate)
    results = train_stacked(config("model=fcn"), SEEDS)
    assert [result["metrics"]["val/best_error"] for result in results] == [8.0, 4.0]
    assert [result["metrics"]["val/error"] for result in results] == [9.0, 6.0]
    (tested,) = weights["test"]
    for n, best in enumerate([1, 2]):  # the first of equal ones, as in train()
        for value, expected in zip(tested, weights["val"][best], strict=True):
            assert torch.equal(value[n], expected[n])


def test_dropout_differs_between_seeds_and_repeats(config):
    words = "model=fcn model.width=24 recipe.dropout=0.5"
    stack = Stack(config(words), SEEDS)
    (batch,) = stack.batches(1)
    same = [torch.stack([tensor[0]] * 2) for tensor in batch]
    for weight in stack.task.parameters():
        weight.data[1] = weight.data[0]
    losses, *_ = stack.loss_and_gradients(*same)
    assert losses[0] != losses[1]
    first, second = (train_stacked(config(words), SEEDS) for _ in range(2))
    assert [result["losses"] for result in first] == [result["losses"] for result in second]


def test_samples_do_not_depend_on_how_many_are_drawn_at_once(config):
    batches = [
        list(Stack(config("recipe=long"), SEEDS, draw_steps=steps).batches(5))
        for steps in (None, 1, 2)
    ]
    for other in batches[1:]:
        for expected, batch in zip(batches[0], other, strict=True):
            for a, b in zip(expected, batch, strict=True):
                torch.testing.assert_close(a, b)


# CUDA graphs


class RecordedGraph(TorchDispatchMode):
    """A CUDA graph on a CPU: record operations, and repeat them on the same memory.

    Raises:
        AssertionError: an operation would make a GPU wait, which a CUDA graph does not allow.
    """

    WAITING = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, name
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.calls:
            new = func(*args, **kwargs)
            pairs = [(out, new)] if isinstance(out, torch.Tensor) else zip(out, new, strict=True)
            for tensor, value in pairs:
                if tensor is not None and tensor.data_ptr() != value.data_ptr():
                    tensor.copy_(value)


@pytest.fixture
def recorded_graphs(monkeypatch):
    """Let :func:`capture` work on a CPU, and return the graphs that it makes."""
    graphs = []

    class Stream:
        def wait_stream(self, stream):
            pass

    @contextmanager
    def on_stream(stream):
        yield

    def new_graph():
        graphs.append(RecordedGraph())
        return graphs[-1]

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: graph)
    return graphs


@pytest.mark.parametrize(("model", "transform"), NETWORKS.values())
def test_training_by_a_recorded_graph_is_the_same(config, recorded_graphs, model, transform):
    words = f"model={model} model.width=8 data.distortion=rts recipe=long "
    words += f"transform={transform}" if transform != "none" else ""
    plain, graph = (Stack(config(words), SEEDS, use_vmap=use_vmap) for use_vmap in (False, True))
    graph._use_graph = True
    for batch, same in zip(plain.batches(3), graph.batches(3), strict=True):
        torch.testing.assert_close(graph.train_step(same), plain.train_step(batch))
    assert len(recorded_graphs) == 1
    for a, b in zip(graph.task.parameters(), plain.task.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize(("model", "transform"), NETWORKS.values())
def test_training_by_a_cuda_graph_is_the_same(config, model, transform):
    words = f"trainer=gpu model={model} data.distortion=rts recipe=long "
    words += f"transform={transform}" if transform != "none" else ""
    plain, graph = (Stack(config(words), SEEDS, use_graph) for use_graph in (False, True))
    for batch, same in zip(plain.batches(4), graph.batches(4), strict=True):
        losses = graph.train_step(same)
        torch.testing.assert_close(losses, plain.train_step(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", ["st_fcn", "st_cnn"])
@pytest.mark.parametrize("seeds", [[1], SEEDS])
def test_gradients_have_the_strides_of_the_weights(config, model, seeds):
    stack = Stack(config(f"model={model} model.width=8"), seeds)
    (batch,) = stack.batches(1)
    stack.train_step(batch)
    for weight in stack.task.parameters():
        assert weight.grad.stride() == weight.stride()


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("++trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1"),
        ("trainer.precision=bf16-mixed", "trainer.precision=bf16-mixed"),
        ("trainer.devices=2", "one device"),
        ("ckpt_path=other.ckpt", "ckpt_path=other.ckpt"),
        ("callbacks.best=null", "callbacks.best=None"),
        ("debug=overfit", "callbacks.overfit"),
        ("recipe.optimizer._target_=torch.optim.Adafactor ~recipe.optimizer.fused", "Adafactor"),
        ("experiment=mnist_registration", "Registration"),
        ("model._target_=test_stacked.WithBuffer model.width=8", "batch_norm"),
        ("data.batch_size=401", "data.batch_size must be at most 400"),
        ("recipe.optimizer.lr=1e30", "The loss of seed 3 is not finite at step"),
    ],
)
def test_what_is_not_supported_is_refused(config, words, message):
    with pytest.raises(UsageError, match=message):
        train_stacked(config(words), SEEDS)


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_are_different_numbers(config, seeds):
    with pytest.raises(UsageError, match="seed must be different numbers"):
        train_stacked(config(), seeds)


# The script


def test_script_writes_a_result_for_each_seed(run_program, tmp_path):
    words = [*COMMON, "model=fcn", "model.width=24", "seed=5,6"]
    folder = tmp_path / "three seeds, ö"
    code, out, _ = run_program(script.main, *words, "--out", folder)
    assert not code
    assert out.count("test error") == 2
    records = read_records(folder)
    assert [record["seed"] for record in records] == [5, 6]
    assert all(record["stacked"] == [5, 6] for record in records)


@pytest.mark.parametrize("words", [[], ["seed=1,x"], ["seed=1", "seed=2"]])
def test_script_names_a_wrong_seed(run_program, words):
    code, _, _ = run_program(script.main, "model=fcn", *words)
    assert code.startswith("error: seed must be set once, as seed=1,2,3")


def test_script_names_a_directory_that_cannot_be_created(run_program, tmp_path):
    (tmp_path / "file").touch()
    code, _, _ = run_program(script.main, "seed=1", "--out", tmp_path / "file" / "results")
    assert code.startswith("error: ")
    assert f"{tmp_path}/file" in code


def test_script_shortens_errors_of_the_configuration(run_program):
    code, _, _ = run_program(script.main, "model=fnc", "seed=1")
    assert code.startswith("error: model=fnc does not exist. Did you mean")
