"""What the tests of all operations share: the tolerance rule, NaN-poisoned allocations, an example of every op."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from syncflow.kernels.launch import implementation
from syncflow.kernels.reference_ops import rope_table

Arguments = tuple[object, ...]


@pytest.fixture(scope="module", autouse=True)
def poisoned_allocations() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element which is never written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def check() -> Callable[..., None]:
    """``check(operation, formulation, *arguments, orders=())``: the rule, for reference, default and Triton kernel.

    ``formulation`` is run in float64 for the truth and in the arguments' own dtype for what plain PyTorch makes of it;
    the operation's error may be twice the latter's and two roundings of the largest element. Without a GPU the kernel
    runs in Triton's interpreter, and the default is what suits a CPU. Arguments and outputs may be lists or tuples of
    tensors. ``orders`` are the formulation with its sums in other orders: of few elements the error of one is chance,
    and plain PyTorch's is the largest of all.
    """

    def widen(leaf: object) -> object:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    def largest(found: Tensor, exact: Tensor) -> float:
        return (found.double() - exact).abs().max().item()

    def run(
        operation: Callable[..., object],
        formulation: Callable[..., object],
        *arguments: object,
        orders: Sequence[Callable[..., object]] = (),
    ) -> None:
        exact = tree_leaves(formulation(*tree_map(widen, arguments)))
        plain = [tree_leaves(of_plain(*arguments)) for of_plain in (formulation, *orders)]
        assert operation.plan_launches(*arguments) is not None, "no kernel takes these arguments"  # type: ignore[attr-defined]
        for name in ("reference", "auto", "triton"):
            with torch.no_grad(), implementation(name):
                actual = tree_leaves(operation(*arguments))
            assert len(actual) == len(exact)
            for a, e, *p in zip(actual, exact, *plain, strict=True):
                assert a.shape == e.shape
                assert a.dtype == p[0].dtype
                assert a.is_contiguous()
                if not a.numel():
                    continue
                floor = 2 * torch.finfo(a.dtype).eps * e.abs().max().item()
                allowed = 2 * max(largest(one, e) for one in p) + floor
                error = largest(a, e)
                assert error <= allowed, f"{name}: {error:.3g} is more than {allowed:.3g}"

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
        return (packed, *weights(dtype), rope_table(numbers(dtype, frames, width // 2)).detach(), 1e-6)

    def text(dtype: torch.dtype) -> Arguments:
        keys, values = numbers(dtype, 2, 4, heads, width), numbers(dtype, 2, 4, heads, width)
        queries = numbers(dtype, 3, tokens, heads, width)
        return (queries, keys, values, torch.tensor([4, 2]), torch.tensor([1, 0, 1]))

    def rope(dtype: torch.dtype) -> Arguments:
        queries, keys = numbers(dtype, 3, tokens, heads, width), numbers(dtype, 2, 4, heads, width)
        values, tail = numbers(dtype, 2, 4, heads, width), (numbers(dtype, 3, 2, heads, width) for _ in range(2))
        positions = torch.arange(tokens).to(torch.float32), 1.25 * torch.arange(4).to(torch.float32)
        frequencies = numbers(torch.float32, width // 2).detach()
        return (queries, keys, values, *positions, frequencies, 2.0, torch.tensor([1, -1, 0]), *tail)

    def weights(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return numbers(dtype, width), numbers(dtype, width)

    def norm(dtype: torch.dtype) -> Arguments:
        x, table = numbers(dtype, rows, frames, tokens, full), numbers(dtype, 6, full)
        return (x, table, numbers(dtype, rows, frames, 6, full), 3, 1e-6)

    def gate(dtype: torch.dtype) -> Arguments:
        x, branch = numbers(dtype, rows, frames, tokens, full), numbers(dtype, rows, frames, tokens, full)
        return (x, branch, numbers(dtype, 6, full), numbers(dtype, rows, 1, 6, full), 0)

    def gate_and_norm(dtype: torch.dtype) -> Arguments:
        return (*gate(dtype), numbers(dtype, 6, full), 3, 1e-6)

    def euler(dtype: torch.dtype) -> Arguments:
        z, v = numbers(dtype, 2, 3, 4), numbers(dtype, 3, 3, 4)
        known, noise = numbers(dtype, 2, 3, 4).detach(), numbers(dtype, 2, 3, 4).detach()
        branches, mask = torch.tensor([[0, 1], [2, 2]]), torch.tensor([True, False])[:, None, None]
        weights = torch.tensor([[6.0, -5.0], [1.0, 0.0]], dtype=dtype)
        dt, t = torch.tensor([0.25, 0.5], dtype=dtype), torch.tensor([0.5, 1.0], dtype=dtype)
        return z, v, branches, weights, dt, known, noise, mask, t, torch.float64

    def linear(dtype: torch.dtype) -> Arguments:
        return numbers(dtype, rows, frames, tokens, full), numbers(dtype, 8, full), numbers(dtype, 8)

    def linear_and_gate(dtype: torch.dtype) -> Arguments:
        residual, table = numbers(dtype, rows, frames, tokens, 8), numbers(dtype, 6, 8)
        return (*linear(dtype), residual, table, numbers(dtype, rows, frames, 6, 8), 3)

    def codes(dtype: torch.dtype) -> Arguments:
        x, weight, bias = linear(dtype)
        eight = torch.float8_e4m3fn
        scales = torch.rand(rows, frames, tokens), torch.rand(8)
        return x.detach().to(eight), scales[0], weight.detach().to(eight), scales[1], bias, True

    return {
        "fp8_linear": codes,
        "gated_linear": linear_and_gate,
        "gated_residual": gate,
        "gated_residual_norm": gate_and_norm,
        "guided_euler_step": euler,
        "linear_gelu": linear,
        "modulated_layer_norm": norm,
        "modulated_layer_norm_fp8": norm,
        "rope_cross_attention": rope,
        "spatial_attention": spatial,
        "temporal_attention": temporal,
        "text_cross_attention": text,
    }
