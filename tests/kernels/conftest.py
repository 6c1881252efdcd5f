"""What the tests of all operations share: the tolerance rule, NaN-poisoned allocations, an example of every op."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

Arguments = tuple[object, ...]


@pytest.fixture(scope="module", autouse=True)
def poisoned_allocations() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element which is never written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def check() -> Callable[..., None]:
    """``check(operation, formulation, *arguments)``: the tolerance rule.

    ``formulation`` is run in float64 for the truth and in the arguments' own dtype for what plain PyTorch makes of it;
    the operation's error may be twice the latter's and one rounding of the largest element.
    """

    def run(operation: Callable[..., Tensor], formulation: Callable[..., Tensor], *arguments: object) -> None:
        wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
        exact, plain = formulation(*wide), formulation(*arguments)
        with torch.no_grad():
            actual = operation(*arguments)
        assert actual.shape == exact.shape
        assert actual.dtype == plain.dtype
        assert actual.is_contiguous()
        floor = torch.finfo(actual.dtype).eps * exact.abs().max().item()
        allowed = 2 * (plain.double() - exact).abs().max().item() + floor
        assert (actual.double() - exact).abs().max().item() <= allowed

    return run


@pytest.fixture(scope="session")
def examples() -> dict[str, Callable[[torch.dtype], Arguments]]:
    """By name of the op: a dtype to arguments, floating tensors among them wanting gradients."""
    rows, frames, tokens, heads, width = 2, 3, 5, 2, 6
    full = heads * width

    def numbers(dtype: torch.dtype, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    def spatial(dtype: torch.dtype) -> Arguments:
        return (numbers(dtype, rows, frames, tokens, 3, heads, width), *weights(dtype), 1e-6)

    def temporal(dtype: torch.dtype) -> Arguments:
        packed = numbers(dtype, rows, frames, tokens, 3, heads, width)
        return (packed, *weights(dtype), numbers(dtype, frames, width // 2), 1e-6)

    def text(dtype: torch.dtype) -> Arguments:
        keys, values = numbers(dtype, 2, 4, heads, width), numbers(dtype, 2, 4, heads, width)
        queries = numbers(dtype, 3, tokens, heads, width)
        return (queries, keys, values, torch.tensor([4, 2]), torch.tensor([1, 0, 1]))

    def rope(dtype: torch.dtype) -> Arguments:
        queries, keys = numbers(dtype, rows, tokens, heads, width), numbers(dtype, rows, 4, heads, width)
        values = numbers(dtype, rows, 4, heads, width)
        return (queries, keys, values, numbers(dtype, tokens, width // 2), numbers(dtype, 4, width // 2))

    def weights(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return numbers(dtype, width), numbers(dtype, width)

    def norm(dtype: torch.dtype) -> Arguments:
        x, table = numbers(dtype, rows, frames, tokens, full), numbers(dtype, 6, full)
        return (x, table, numbers(dtype, rows, frames, 6, full), 3, 1e-6)

    def gate(dtype: torch.dtype) -> Arguments:
        x, branch = numbers(dtype, rows, frames, tokens, full), numbers(dtype, rows, frames, tokens, full)
        return (x, branch, numbers(dtype, 6, full), numbers(dtype, rows, 1, 6, full), 0)

    def euler(dtype: torch.dtype) -> Arguments:
        z, v = numbers(dtype, 2, 3, 4), numbers(dtype, 3, 3, 4)
        known, noise = numbers(dtype, 2, 3, 4), numbers(dtype, 2, 3, 4)
        branches, mask = torch.tensor([[0, 1], [2, 2]]), torch.tensor([True, False])[:, None, None]
        weights = torch.tensor([[6.0, -5.0], [1.0, 0.0]], dtype=dtype)
        dt, t = torch.tensor([0.25, 0.5], dtype=dtype), torch.tensor([0.5, 1.0], dtype=dtype)
        return (z, v, branches, weights, dt, known, noise, mask, t)

    return {
        "gated_residual": gate,
        "guided_euler_step": euler,
        "modulated_layer_norm": norm,
        "rope_cross_attention": rope,
        "spatial_attention": spatial,
        "temporal_attention": temporal,
        "text_cross_attention": text,
    }
