"""Test the layer with second derivatives, torch.func, tracing, export and compilation."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from families import (
    every_class,
    every_family,
    image,
    random,
    since_torch,
    small_inputs,
    small_warp,
    trained,
)
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from spatial_transformer import (
    Affine,
    Affine3d,
    FcLocalisation,
    SpatialTransformer,
    ThinPlateSpline,
)

SIZES = {"input_size": None, "output_size": (3, 5, 6)}
both_sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


# Derivatives


@since_torch("2.12")
@every_family
def test_first_and_second_derivatives_are_the_numerical_ones(make):
    transform = make()
    inputs = small_inputs(transform)
    forward = torch.__version__ >= "2.15"
    assert torch.autograd.gradcheck(small_warp(transform), inputs, check_forward_ad=forward)
    assert torch.autograd.gradgradcheck(small_warp(transform), inputs)


@since_torch("2.15")
@every_family
@both_sizes
def test_forward_mode_gives_the_directional_derivative(make, size):
    transform = make()
    x = image(transform).double()
    transformer, direction = trained(transform, x, size).double(), torch.ones_like(x)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(transformer(forward_ad.make_dual(x, direction))).tangent
    numerical = (transformer(x + 1e-6 * direction) - transformer(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(tangent, numerical, rtol=1e-4, atol=1e-5)


@every_family
def test_vectorised_jacobians_are_those_of_the_loop(make):
    transform = make()
    inputs = small_inputs(transform)
    jacobians = [
        torch.autograd.functional.jacobian(small_warp(transform), inputs, vectorize=v)
        for v in (True, False)
    ]
    for vectorised, looped in zip(*jacobians, strict=True):
        torch.testing.assert_close(vectorised, looped)


@since_torch("2.12")
@every_family
@both_sizes
def test_gradients_of_each_sample_by_torch_func_are_those_of_backward(make, size):
    x = image(make()).double()
    transformer = trained(make(), x, size).double()
    weights = {name: weight.detach() for name, weight in transformer.named_parameters()}

    def loss(weights, one):
        return torch.func.functional_call(transformer, weights, (one[None],)).square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for n, one in enumerate(x):  # by the same module: its bases must be ordinary tensors
        transformer.zero_grad()
        transformer(one[None]).square().sum().backward()
        for name, weight in transformer.named_parameters():
            torch.testing.assert_close(of_each[name][n], weight.grad)


@since_torch("2.12")
@pytest.mark.parametrize("channels", [3, 64])
def test_torch_func_takes_channels_last_maps(channels):
    batches = random(2, 4, 5, 6, channels).movedim(-1, 2)
    transformer = trained(Affine(), batches[0])
    expected = torch.stack([transformer(batch) for batch in batches])
    torch.testing.assert_close(torch.func.vmap(transformer)(batches), expected)

    slope = torch.func.grad(lambda batch: transformer(batch).square().sum())
    expected = torch.stack([slope(batch) for batch in batches])
    torch.testing.assert_close(torch.func.vmap(slope)(batches), expected)


# Graphs


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@every_class
@both_sizes
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_training_gives_what_eager_training_gives(make, size):
    x = image(make())
    eager = trained(make(), x, size, fill=[0.3, -0.1])
    compiled = trained(make(), x, size, fill=[0.3, -0.1])
    compiled.compile(backend="aot_eager", fullgraph=True)
    results = []
    for transformer in (compiled, eager):  # the fresh one is compiled
        out = transformer(x)
        out.square().sum().backward()
        results.append([out, *[parameter.grad for parameter in transformer.parameters()]])
    for by_compiled, by_eager in zip(*results, strict=True):
        torch.testing.assert_close(by_compiled, by_eager)


@pytest.mark.usefixtures("fresh_compiler")
@both_sizes
def test_no_compiled_graph_solves_a_linear_system(size):
    operators = []

    def keep(graph, inputs):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    x = image(ThinPlateSpline())
    torch.compile(trained(ThinPlateSpline(), x, size), backend=keep, fullgraph=True)(x)
    assert any("matmul" in name for name in operators)
    assert not any("solve" in name for name in operators)


@every_class
@both_sizes
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_an_exported_program_takes_any_batch(make, size, used):
    x = image(make())
    transformer = trained(make(), x, size).eval()
    if used:
        transformer(x)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(transformer, (x,), dynamic_shapes=({0: batch},))
    assert not any("solve" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x[:2]), transformer(x[:2]))


@every_class
@both_sizes
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_a_traced_transformer_gives_what_the_module_gives(make, size, used):
    x = image(make())
    transformer = trained(make(), x, size).eval()
    if used:
        transformer(x)
    traced = torch.jit.trace(transformer, x)
    torch.testing.assert_close(traced(2 * x), transformer(2 * x))
    assert "solve" not in str(traced.inlined_graph)


@every_class
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_gives_what_the_module_gives(make, dynamo):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = image(make())
    transformer, file = trained(make(), x).eval(), io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            transformer,
            (x,),
            None if dynamo else file,
            dynamo=dynamo,
            opset_version=20,
            input_names=["x"],
        )
    if dynamo:
        program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), transformer(x).detach(), rtol=0, atol=1e-4)


@every_family
def test_make_fx_takes_fake_tensors(make):
    transform = make()
    size, theta = (3, 4, 5)[-transform.dims :], transform.identity()[None]
    for _ in range(2):
        graph = make_fx(lambda theta: transform.grid(theta, size), tracing_mode="fake")(theta)
        torch.testing.assert_close(graph(theta), transform.grid(theta, size))


# Devices and copies


@every_family
@both_sizes
def test_a_transformer_on_the_meta_device_has_shapes_and_gets_its_start_back(make, size):
    with torch.device("meta"):
        x = torch.empty(image(make()).shape)
        transformer = SpatialTransformer(
            FcLocalisation(x.shape[1:], make()), make(), size and size[-make().dims :]
        )
        out = transformer(x)
    expected = SpatialTransformer(
        FcLocalisation(x.shape[1:], make()), make(), size and size[-make().dims :]
    )
    assert out.shape == expected(image(make())).shape
    transformer.to_empty(device="cpu")
    for module in transformer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(transformer(image(make())), expected(image(make())))


@every_family
@both_sizes
def test_fresh_and_used_copies_and_pickles_warp_alike(make, size):
    x = image(make())
    transformer = trained(make(), x, size)
    fresh = [copy.deepcopy(transformer), pickle.loads(pickle.dumps(transformer))]
    expected = transformer(x)
    for other in [*fresh, copy.deepcopy(transformer), pickle.loads(pickle.dumps(transformer))]:
        assert torch.equal(other(x), expected)


@every_family
def test_the_stored_basis_survives_casts(make):
    x = image(make())
    transformer = trained(make(), x, (3, 5, 6))
    basis = transformer.basis.clone()
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        assert torch.equal(transformer.to(dtype).basis, basis)


def test_a_large_basis_is_not_stored():
    transformer = SpatialTransformer(nn.Identity(), Affine3d(), (130, 130, 130))
    assert transformer.basis is None
