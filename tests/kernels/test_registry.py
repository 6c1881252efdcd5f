"""Every operation as PyTorch sees it: an op with schema, fake rule and derivative, and its dispatch function."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from syncflow import kernels
from syncflow.kernels import implementation

NAMES = [name for name in kernels.__all__ if hasattr(getattr(kernels, name), "plan_launches")]
QUANTISED = {"fp8_linear", "modulated_layer_norm_fp8"}
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
DIFFERENTIABLE = [name for name in NAMES if name not in QUANTISED]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def op(name):
    return getattr(torch.ops.syncflow, name)


def reference(name):
    return getattr(kernels, name).__wrapped__


def plain(arguments):
    return tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, arguments)


class Watched(TorchDispatchMode):
    """Keeps what is called within it."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called.add(function)
        return function(*args, **(kwargs or {}))


def wanting(arguments):
    return [a for a in tree_leaves(arguments) if isinstance(a, Tensor) and a.requires_grad]


def of_tensors(function, arguments):
    """``function`` as one of its tensors alone, and these tensors; other arguments stay as they are."""
    leaves, spec = tree_flatten(arguments)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def call(*tensors):
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return function(*tree_unflatten(filled, spec))

    return call, tuple(leaves[place] for place in places)


def assert_equal(actual, expected):
    for a, b in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.detach().float(), b.detach().float(), rtol=0, atol=0)


def test_every_operation_has_an_example(examples):
    assert sorted(examples) == sorted(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, examples):
    """Schema, autograd registration, fake tensors and ahead-of-time dispatch, as ``torch.library`` tests them."""
    wanted = examples[name](torch.float32)
    checks = list(OPCHECKS)
    if name == "fp8_linear":  # the check of the schema compares arguments, which PyTorch cannot with 8-bit ones
        checks.remove("test_schema")
    torch.library.opcheck(op(name).default, wanted if name in DIFFERENTIABLE else plain(wanted), test_utils=checks)
    checks.remove("test_aot_dispatch_dynamic")
    torch.library.opcheck(op(name).default, plain(examples[name](torch.bfloat16)), test_utils=checks)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_the_reference(name, examples):
    def gradients(function):
        arguments = examples[name](torch.float32)
        outputs = tree_leaves(function(*arguments))
        generator = torch.Generator().manual_seed(1)
        seeds = [torch.randn(output.shape, generator=generator) for output in outputs]
        return outputs, torch.autograd.grad(outputs, wanting(arguments), seeds)

    outputs, actual = gradients(op(name))
    expected_outputs, expected = gradients(reference(name))
    assert_equal(outputs, expected_outputs)
    assert_equal(actual, expected)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_finite_differences(name, examples):
    function, tensors = of_tensors(op(name), examples[name](torch.float64))
    assert torch.autograd.gradcheck(lambda *given: tuple(tree_leaves(function(*given))), tensors, fast_mode=True)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_only_where_they_are_wanted(name, examples):
    arguments = examples[name](torch.float32)
    first, *others = wanting(arguments)
    for tensor in others:
        tensor.requires_grad_(False)
    sum(output.sum() for output in tree_leaves(op(name)(*arguments))).backward()
    assert first.grad is not None
    assert all(tensor.grad is None for tensor in others)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_one_output_alone_has_a_gradient(name, examples):
    arguments = examples[name](torch.float32)
    last = tree_leaves(op(name)(*arguments))[-1]
    expected = tree_leaves(reference(name)(*arguments))[-1]
    tensors = wanting(arguments)
    found, wanted = (torch.autograd.grad(o.sum(), tensors, materialize_grads=True) for o in (last, expected))
    assert_equal(found, wanted)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_dispatch(name, examples):
    """With gradients the reference inline: its derivative needs no second forward pass."""
    arguments = examples[name](torch.float32)
    recorded = tree_leaves(getattr(kernels, name)(*arguments))
    with torch.no_grad(), implementation("reference"):
        unrecorded = tree_leaves(getattr(kernels, name)(*arguments))
    through_op = tree_leaves(op(name)(*arguments))
    for inline, node, bare in zip(recorded, through_op, unrecorded, strict=True):
        assert inline.grad_fn is not None
        assert type(inline.grad_fn).__name__ != type(node.grad_fn).__name__
        assert bare.grad_fn is None
    assert_equal(recorded, unrecorded)
    assert_equal(through_op, unrecorded)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_what_suits_a_cpu_is_the_reference_up_to_rounding(name, examples):
    """In float64, which no kernel takes: what ``dispatch`` computes there is at most a few roundings away."""
    arguments = plain(examples[name](torch.float64))
    with torch.no_grad():
        found, expected = getattr(kernels, name)(*arguments), reference(name)(*arguments)
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert (a.dtype, a.is_contiguous()) == (b.dtype, True)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_plain_calls_on_a_cpu_pass_the_dispatcher_by(name, examples):
    """And calls that something watches do not."""
    arguments = plain(examples[name](torch.float32))
    for chosen in ("auto", "torch", "reference"):
        with torch.no_grad(), implementation(chosen):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                getattr(kernels, name)(*arguments)
            with Watched() as watched:
                getattr(kernels, name)(*arguments)
        assert not any(event.name.startswith("syncflow::") for event in profile.events())
        assert op(name).default in watched.called


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_export_keeps_one_node(name, examples):
    arguments = plain(examples[name](torch.float32))
    call, tensors = of_tensors(getattr(kernels, name), arguments)

    class Graph(nn.Module):
        def forward(self, *given):
            return call(*given)

    with torch.no_grad():
        exported = torch.export.export(Graph(), tensors)
    called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert [target for target in called if target is not operator.getitem] == [op(name).default]
    assert_equal(exported.module()(*tensors), reference(name)(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compile_on_a_cpu_computes_the_reference(name, examples):
    """The compiler sees through the op: on a CPU to the reference's own operations, in one graph."""
    arguments = plain(examples[name](torch.float32))
    call, tensors = of_tensors(getattr(kernels, name), arguments)
    torch.compiler.reset()  # the operations share code, and compiled versions of code are few
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_equal(compiled(*tensors), reference(name)(*arguments))


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="none of auto, triton, torch, reference"), implementation("cuda"):
        pass


def test_a_kernel_that_cannot_take_the_arguments_leaves_them_to_the_reference(examples):
    """Float64 has no kernel."""
    arguments = plain(examples["spatial_attention"](torch.float64))
    assert kernels.spatial_attention.plan_launches(*arguments) is None
    with torch.no_grad(), implementation("triton"):
        assert_equal(kernels.spatial_attention(*arguments), reference("spatial_attention")(*arguments))
