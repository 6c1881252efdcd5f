"""Layers that both towers share. Parameter names are those of Open-Sora's STDiT3: its checkpoints load as they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...kernels import linear, linear_gelu

EPS = 1e-6


class Linear(nn.Linear):
    """A linear layer with a bias, by the faster library on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def delta(self, x: Tensor) -> Tensor | None:
        """What adapters add to the output for x; None where there are none (:mod:`.lora`)."""
        return None


class HeadNorm(nn.Module):
    """The weight of an RMS norm over the head width; the norm itself is part of the attention operation."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_width))


class SelfAttention(nn.Module):
    """Projections around a self-attention operation: packed q, k, v in, one projection out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.q_norm = HeadNorm(width // heads)
        self.k_norm = HeadNorm(width // heads)
        self.proj = Linear(width, width)

    def pack(self, x: Tensor) -> Tensor:
        """(R, T, S, D) -> (R, T, S, 3, n, d)."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1))


class CrossAttention(nn.Module):
    """Projections around a cross-attention operation; keys and values are projected
    separately, so that they can be kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = Linear(width, width)
        self.kv_linear = Linear(width, 2 * width)
        self.proj = Linear(width, width)

    def queries(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., n, d)."""
        return self.q_linear(x).unflatten(-1, (self.heads, -1))

    def pack(self, context: Tensor) -> Tensor:
        """Keys and values of a context (..., M, D), packed. -> (..., M, 2, n, d)."""
        return self.kv_linear(context).unflatten(-1, (2, self.heads, -1))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(..., M, D) -> keys and values (..., M, n, d)."""
        keys, values = self.pack(context).unbind(-3)
        return keys, values


class Mlp(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        if (added := self.fc1.delta(x)) is not None:
            hidden = linear(x, self.fc1.weight, self.fc1.bias) + added
            return self.fc2(nn.functional.gelu(hidden, approximate="tanh"))
        return self.fc2(linear_gelu(x, self.fc1.weight, self.fc1.bias))


class ScalarEmbedding(nn.Module):
    """A scalar as a 256-d sinusoid (cosines first) through a two-layer MLP. (...,) -> (..., D)."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        half = self.frequencies // 2
        ladder = torch.exp(-math.log(10_000) * torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angles = x[..., None].float() * ladder
        return self.mlp(torch.cat((angles.cos(), angles.sin()), -1).to(self.mlp[0].weight.dtype))  # type: ignore[arg-type]


def rope_frequencies(head_width: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Rotary frequencies theta^(-2i / d), radians per unit of position. -> (d / 2,)."""
    return theta ** -(torch.arange(0, head_width, 2, dtype=torch.float32, device=device) / head_width)
