"""The linears of the video blocks that a norm feeds, on 8-bit floats: q, k, v and the first of the MLP.

The norm writes codes with a scale for every token, the weights are codes with a scale for every output channel
(``kernels/modulated_layer_norm_fp8.py``, ``kernels/fp8_linear.py``). Approximate: see ``docs/performance.md`` for its
error. The other linears keep the type of the model: their inputs come from an attention or a GELU, and quantising those
would be a pass of its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...kernels import fp8_linear, gated_residual, modulated_layer_norm_fp8
from ..model import DDiT
from ..model.layers import EPS, Mlp, SelfAttention
from ..model.stdit import ATTENTION, MLP, STDiTBlock, STDiTState

LARGEST = 448.0  # of float8_e4m3fn


@dataclass(frozen=True)
class Quantised:
    """Tokens as ``codes`` (R, T, S, D) float8_e4m3fn, of which one unit is ``scales`` (R, T, S)."""

    codes: Tensor
    scales: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Quantised:
        codes = self.codes.view(torch.uint8)[rows].view(self.codes.dtype)
        return Quantised(codes, self.scales[rows])


class Fp8Linear(nn.Module):
    """A linear layer, and its GELU, on tokens and weights of 8 bits; the result has the type of the bias."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self.gelu = gelu
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(1) / LARGEST).clamp(min=1e-12)
        self.register_buffer("codes", (weight / scales[:, None]).to(torch.float8_e4m3fn))
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: Quantised) -> Tensor:
        return fp8_linear(x.codes, x.scales, self.codes, self.scales, self.bias, self.gelu)


class Fp8SelfAttention(nn.Module):
    """Projections around a self-attention operation; the first reads codes."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.qkv = Fp8Linear(attention.qkv)
        self.q_norm, self.k_norm, self.proj = attention.q_norm, attention.k_norm, attention.proj

    def pack(self, x: Quantised) -> Tensor:
        """(R, T, S, D) -> (R, T, S, 3, n, d)."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1))


class Fp8Mlp(nn.Module):
    """Linear, GELU (tanh form), Linear; the first reads codes."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1, self.fc2 = Fp8Linear(mlp.fc1, gelu=True), mlp.fc2

    def forward(self, x: Quantised) -> Tensor:
        return self.fc2(self.fc1(x))


class Fp8Block(STDiTBlock):
    """A block of the video tower whose norms are :class:`Quantised`."""

    def __init__(self, block: STDiTBlock) -> None:
        nn.Module.__init__(self)
        self.scale_shift_table = block.scale_shift_table
        self.attn = cast("SelfAttention", Fp8SelfAttention(block.attn))
        self.cross_attn = block.cross_attn
        self.mlp = cast("Mlp", Fp8Mlp(block.mlp))

    def forward(
        self,
        x: Tensor,
        normed: Any,
        state: STDiTState,
        index: int,
        following: STDiTBlock | None,
        *,
        branch: Tensor | None = None,
        temporal: bool = False,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, Any, Tensor]:
        """As :class:`~syncflow.engine.model.stdit.STDiTBlock` does it."""
        modulation, text_of_row, table = state.block_modulation, state.text_of_row, self.scale_shift_table
        if branch is not None:
            x = x + branch
        if branch is not None or normed is None:
            normed = _norm(x, table, modulation, ATTENTION)
        x = attended = self.gated_attention(x, normed, modulation, state.rope if temporal else None)
        if num_outputs is not None:
            x, modulation, text_of_row = x[:num_outputs], modulation[:num_outputs], text_of_row[:num_outputs]
        x = x + self.text_attention(x, state.text, index, text_of_row)
        x = gated_residual(x, self.mlp(_norm(x, table, modulation, MLP)), table, modulation, MLP)
        normed = None if following is None else _norm(x, following.scale_shift_table, modulation, ATTENTION)
        return x, normed, attended


def with_fp8(model: DDiT) -> DDiT:
    """A model that shares all of ``model`` but the linears above, which it has as codes."""
    made, video = _shallow(model), _shallow(model.video)
    for name in ("spatial_blocks", "temporal_blocks"):
        setattr(video, name, nn.ModuleList(Fp8Block(block) for block in getattr(model.video, name)))
    made.video = video
    return made


def has_fp8_linears(model: DDiT) -> bool:
    """Whether it came from :func:`with_fp8`."""
    return any(isinstance(block, Fp8Block) for block in model.video.spatial_blocks)


def _norm(x: Tensor, table: Tensor, modulation: Tensor, half: int) -> Quantised:
    return Quantised(*modulated_layer_norm_fp8(x, table, modulation, half, EPS))


def _shallow(module: Any) -> Any:
    """A module whose parts can be replaced without the other's."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made
