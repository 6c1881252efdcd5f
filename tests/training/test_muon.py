"""Muon: updates with singular values near 1, and descent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from syncflow.training.muon import Muon, orthogonalise


def matrices(count, rows, columns, seed, condition=10.0):
    """Matrices with singular values spread evenly between 1 and 1 / ``condition``."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vt = torch.linalg.svd(torch.randn(count, rows, columns, generator=generator), full_matrices=False)
    return u @ torch.diag(torch.linspace(1, 1 / condition, min(rows, columns))) @ vt


@given(
    count=st.integers(1, 3),
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50)
def test_singular_values_near_1(count, rows, columns, size, seed):
    values = torch.linalg.svdvals(orthogonalise(size * matrices(count, rows, columns, seed)))
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 12), (12, 5)])
def test_singular_vectors_stay(rows, columns):
    given = matrices(1, rows, columns, 0)[0]
    u, _, vt = torch.linalg.svd(given, full_matrices=False)
    turned = u.mT @ orthogonalise(given[None])[0] @ vt.mT
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=1e-4, rtol=0)
    assert (turned.diagonal() > 0.6).all()


def test_matrices_of_a_stack_do_not_see_each_other():
    stack = matrices(3, 6, 9, 0)
    torch.testing.assert_close(orthogonalise(stack)[1], orthogonalise(stack[1:2])[0], atol=1e-6, rtol=1e-5)


def test_nothing_stays_nothing():
    assert not orthogonalise(torch.zeros(2, 3, 4)).any()


def steps(count, lr, weight_decay=0.0):
    """Distance to a target after every step of descent on the squared distance."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 4, generator=generator)
    weight = nn.Parameter(torch.zeros(6, 4))
    optimizer = Muon([weight], lr=lr, weight_decay=weight_decay)
    losses = []
    for i in range(count):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / count)
        optimizer.zero_grad()
        loss = (weight - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_descends_a_quadratic():
    losses = steps(100, lr=0.2)
    assert losses[-1] < 1e-2 * losses[0]
    assert losses[10] < losses[0]


def test_the_first_step_has_the_size_of_adams():
    """Root mean square of 0.2 lr times that of an orthogonal matrix scaled by sqrt(max(m, n))."""
    weight = nn.Parameter(torch.zeros(32, 8))
    weight.grad = matrices(1, 32, 8, 0)[0]
    Muon([weight], lr=0.1, weight_decay=0.0).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.25)
    assert (weight * weight.grad).sum() < 0


def test_bfloat16_gives_nearly_the_same_step():
    """Products of three digits: singular values in the same range, directions within a few per cent."""
    moved = []
    for bfloat16 in (False, True):
        weight = nn.Parameter(torch.zeros(24, 16))
        weight.grad = matrices(1, 24, 16, 0)[0]
        Muon([weight], lr=0.1, bfloat16=bfloat16).step()
        moved.append(weight.detach())
    assert not torch.equal(*moved)
    assert (moved[0] - moved[1]).norm() < 0.05 * moved[0].norm()


def test_weight_decay_shrinks():
    weight = nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.zeros(3, 3)
    Muon([weight], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), 0.95))


def test_parameters_without_gradient_stay():
    idle, used = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    used.grad = torch.eye(3)
    Muon([idle, used], lr=0.5).step()
    assert torch.equal(idle, torch.ones(3, 3))
    assert not torch.equal(used, torch.ones(3, 3))


def test_shapes_are_stepped_each_on_its_own():
    together, alone = [], []
    for shape in ((4, 6), (6, 4), (4, 6)):
        gradient = matrices(1, *shape, len(together))[0]
        for parameters in (together, alone):
            parameters.append(nn.Parameter(torch.zeros(shape)))
            parameters[-1].grad = gradient.clone()
    Muon(together, lr=0.1).step()
    for parameter in alone:
        Muon([parameter], lr=0.1).step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_state_goes_on_where_it_stopped():
    gradients = matrices(4, 5, 5, 0)

    def descend(weight, optimizer, part):
        for gradient in part:
            weight.grad = gradient.clone()
            optimizer.step()

    straight = nn.Parameter(torch.zeros(5, 5))
    descend(straight, Muon([straight], lr=0.1), gradients)
    resumed = nn.Parameter(torch.zeros(5, 5))
    first, second = Muon([resumed], lr=0.1), Muon([resumed], lr=0.1)
    descend(resumed, first, gradients[:2])
    second.load_state_dict(first.state_dict())
    descend(resumed, second, gradients[2:])
    assert torch.equal(resumed, straight)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), ()])
def test_only_matrices(shape):
    with pytest.raises(ValueError, match="Muon takes matrices; a parameter has shape"):
        Muon([nn.Parameter(torch.zeros(shape))])
