"""Every operation as PyTorch sees it: one op with schema, fake rule and derivative, and a door in front of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from syncflow import kernels

NAMES = [name for name in kernels.__all__]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def op(name):
    return getattr(torch.ops.syncflow, name)


def reference(name):
    return getattr(kernels, name).__wrapped__


def plain(arguments):
    return tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)


def test_every_operation_has_an_example(examples):
    assert sorted(examples) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, examples):
    """Schema, autograd registration, fake tensors and ahead-of-time dispatch, as ``torch.library`` tests them."""
    torch.library.opcheck(op(name).default, examples[name](torch.float32))
    torch.library.opcheck(op(name).default, plain(examples[name](torch.bfloat16)))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_reference(name, examples):
    def gradients(function):
        arguments = examples[name](torch.float32)
        tensors = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
        output = function(*arguments)
        seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        return output, torch.autograd.grad(output, tensors, seed)

    output, actual = gradients(op(name))
    expected_output, expected = gradients(reference(name))
    torch.testing.assert_close(output, expected_output, rtol=0, atol=0)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name, examples):
    assert torch.autograd.gradcheck(op(name), examples[name](torch.float64), fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_only_where_they_are_wanted(name, examples):
    arguments = examples[name](torch.float32)
    first, *others = (a for a in arguments if isinstance(a, Tensor) and a.requires_grad)
    for tensor in others:
        tensor.requires_grad_(False)
    op(name)(*arguments).sum().backward()
    assert first.grad is not None
    assert all(tensor.grad is None for tensor in others)


@pytest.mark.parametrize("name", NAMES)
def test_door(name, examples):
    """Without gradients the op, with them the reference inline: its derivative needs no second forward pass."""
    arguments = examples[name](torch.float32)
    recorded = getattr(kernels, name)(*arguments)
    with torch.no_grad():
        unrecorded = getattr(kernels, name)(*arguments)
    through_op = op(name)(*arguments)
    assert recorded.grad_fn is not None
    assert type(recorded.grad_fn).__name__ != type(through_op.grad_fn).__name__
    assert unrecorded.grad_fn is None
    torch.testing.assert_close(recorded.detach(), unrecorded, rtol=0, atol=0)
    torch.testing.assert_close(through_op.detach(), unrecorded, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_export_keeps_one_node(name, examples):
    arguments = plain(examples[name](torch.float32))
    tensors = [i for i, a in enumerate(arguments) if isinstance(a, Tensor)]

    class Graph(nn.Module):
        def forward(self, *given):
            filled = list(arguments)
            for i, tensor in zip(tensors, given, strict=True):
                filled[i] = tensor
            return getattr(kernels, name)(*filled)

    with torch.no_grad():
        exported = torch.export.export(Graph(), tuple(arguments[i] for i in tensors))
    called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert called == [op(name).default]
    result = exported.module()(*(arguments[i] for i in tensors))
    torch.testing.assert_close(result, reference(name)(*arguments), rtol=0, atol=0)
