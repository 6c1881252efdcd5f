"""The blocks of Open-Sora's STDiT3, tensor for tensor (SyncFlow section 3.2).

Each block: ``x += gate * attention(modulate(LN(x)))``; ``x += text_cross_attention(x)``; ``x += gate *
mlp(modulate(LN(x)))``. A residual and the norm that follows it, in the same block or at the start of the next, are one
operation. What a bridge adds at the entry of a layer is such a residual, without a gate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ...kernels import (
    gated_linear,
    gated_residual,
    gated_residual_norm,
    modulated_layer_norm,
    spatial_attention,
    temporal_attention,
    text_cross_attention,
)
from ..config import DDiTConfig
from ..types import Conditioning
from .layers import EPS, CrossAttention, Linear, Mlp, SelfAttention

ATTENTION, MLP = 0, 3  # where the (shift, scale, gate) of each half of a block stands in its table


def add_and_norm(
    x: Tensor, branch: Tensor, modulation: Tensor, block: STDiTBlock | None, half: int, gate: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """x + gate * branch, and the modulated norm of that with which a ``half`` of ``block`` begins, in one operation.

    ``gate`` is the table of the block whose MLP made the branch, and then ``block`` is the one that follows, or
    ``None`` after the last, where there is no norm. The branches of the text and of a bridge have no gate.
    """
    if block is not None:
        return gated_residual_norm(x, branch, gate, modulation, MLP, block.scale_shift_table, half, EPS)
    assert gate is not None
    return gated_residual(x, branch, gate, modulation, MLP), None


class STDiTBlock(nn.Module):
    """A spatial block, or a temporal one when it is given the rotation of the latent frames."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attn = SelfAttention(width, config.heads)
        self.cross_attn = CrossAttention(width, config.heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def forward(
        self,
        x: Tensor,
        normed: Tensor | None,
        state: STDiTState,
        index: int,
        following: STDiTBlock | None,
        *,
        branch: Tensor | None = None,
        temporal: bool = False,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The tokens x (R, T, S, D) after the block, their norm that the ``following`` block begins with, and the
        tokens after this block's attention.

        ``normed`` is the norm of x that this block begins with, where it came with the last residual; ``branch``
        (R, T, S, D) is what a bridge adds to x first. Modulation, rope and text are those of ``state``, ``index`` the
        place of this block among the keys and values of the text. Only the first ``num_outputs`` rows go on after the
        attention.
        """
        modulation, text_of_row = state.block_modulation, state.text_of_row
        x, normed = self.begin(x, normed, branch, modulation)
        # x += gate * attention(modulate(LN(x)))
        x = attended = self.gated_attention(x, normed, modulation, state.rope if temporal else None)
        if num_outputs is not None:
            x, modulation, text_of_row = x[:num_outputs], modulation[:num_outputs], text_of_row[:num_outputs]
        # x += text_cross_attention(x)
        text = self.text_attention(x, state.text, index, text_of_row)
        x, normed = add_and_norm(x, text, modulation, self, MLP)
        # x += gate * mlp(modulate(LN(x)))
        x, normed = add_and_norm(x, self.mlp(normed), modulation, following, ATTENTION, self.scale_shift_table)
        return x, normed, attended

    def begin(
        self, x: Tensor, normed: Tensor | None, branch: Tensor | None, modulation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x with the branch of a bridge added, and its norm, from which the attention begins."""
        if branch is not None:
            x, normed = add_and_norm(x, branch, modulation, self, ATTENTION)
        elif normed is None:
            normed = modulated_layer_norm(x, self.scale_shift_table, modulation, ATTENTION, EPS)
        assert normed is not None
        return x, normed

    def gated_attention(self, x: Tensor, normed: Tensor, modulation: Tensor, rope: Tensor | None) -> Tensor:
        """x + gate * attention(normed): (R, T, S, D) -> (R, T, S, D)."""
        packed = self.attn.pack(normed)
        q_weight, k_weight = self.attn.q_norm.weight, self.attn.k_norm.weight
        if rope is None:
            mixed = spatial_attention(packed, q_weight, k_weight, EPS)
        else:
            mixed = temporal_attention(packed, q_weight, k_weight, rope, EPS)
        proj, table = self.attn.proj, self.scale_shift_table
        x = gated_linear(mixed, proj.weight, proj.bias, x, table, modulation, ATTENTION)
        added = proj.delta(mixed)
        return x if added is None else gated_residual(x, added, table, modulation, ATTENTION)

    def text_attention(self, x: Tensor, text: Conditioning, index: int, text_of_row: Tensor) -> Tensor:
        """Cross-attention from x to the text of every row, without norm or gate: (R, T, S, D) -> (R, T, S, D)."""
        queries = self.cross_attn.queries(x.flatten(1, 2))
        mixed = text_cross_attention(queries, text.keys[index], text.values[index], text.lengths, text_of_row)
        return self.cross_attn.proj(mixed).view_as(x)


class CaptionEmbedding(nn.Module):
    """Text encoder states to the width of the tower, and the learned null text (L, W) that stands for no prompt."""

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.y_embedding = nn.Parameter(torch.randn(config.text_tokens, config.text_width) / config.text_width**0.5)
        self.y_proj = Mlp(config.text_width, config.width, config.width)

    def forward(self, states: Tensor) -> Tensor:
        return self.y_proj(states)


class FinalLayer(nn.Module):
    """Modulated norm and a linear map to the patch; ``scale_shift_table`` (2, D) goes with the un-blocked embedding."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = Linear(width, outputs)

    def forward(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        modulation = time_embedding[:, :, None].expand(-1, -1, 2, -1)
        return self.linear(modulated_layer_norm(x, self.scale_shift_table, modulation, 0, EPS))


@dataclass(frozen=True)
class STDiTState:
    """R rows between two layers: tokens x (R, T, S, D) and what no layer changes.

    ``normed`` is the norm that the next layer begins with, where it came with the last residual. Modulation as from
    :meth:`VideoTower.modulation`; rope (T, d / 2, 2); ``size`` tokens of a frame, down and across.
    """

    x: Tensor
    normed: Tensor | None
    block_modulation: Tensor
    time_embedding: Tensor
    text: Conditioning
    text_of_row: Tensor
    rope: Tensor
    size: tuple[int, int]

    def take(self, index: Tensor | slice) -> STDiTState:
        """Rows ``index``, which may repeat: branches that agree up to here share what came before."""
        names = ("x", "block_modulation", "time_embedding", "text_of_row")
        normed = None if self.normed is None else self.normed[index]
        return replace(self, normed=normed, **{name: getattr(self, name)[index] for name in names})


class STDiT(nn.Module):
    """The blocks of a tower: what the video tower and the audio tower of a ``bidirectional`` model have in common.

    ``first_text``: the place of the first block of this tower among the keys and values of the text.
    """

    config: DDiTConfig
    y_embedder: CaptionEmbedding
    final_layer: FinalLayer
    spatial_blocks: nn.ModuleList
    temporal_blocks: nn.ModuleList
    first_text = 0

    def initialize_blocks(self) -> None:
        """Let a fresh temporal block pass its input on, and the final layer give a velocity of 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for _, block in self.layers:
            for linear in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
                nn.init.zeros_(linear.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    @property
    def layers(self) -> list[tuple[STDiTBlock, STDiTBlock]]:
        """The spatial and the temporal block of every layer."""
        pairs = zip(self.spatial_blocks, self.temporal_blocks, strict=True)
        return cast("list[tuple[STDiTBlock, STDiTBlock]]", list(pairs))

    def condition(self, states: Tensor, lengths: Tensor) -> Conditioning:
        """Keys and values of all blocks (spatial and temporal of layer 0, of layer 1, …) for P prompts, once a prompt.

        states (P, L, W) of the text encoder, lengths (P,) tokens that count.
        """
        text = self.y_embedder(states)
        projected = [block.cross_attn.keys_values(text) for layer in self.layers for block in layer]
        keys, values = (torch.stack(parts) for parts in zip(*projected, strict=True))
        return Conditioning(keys, values, lengths, text)

    def layer(
        self,
        index: int,
        state: STDiTState,
        branch: Tensor | None = None,
        *,
        ahead: bool = True,
        num_outputs: int | None = None,
    ) -> tuple[STDiTState, Tensor]:
        """The state after layer ``index``, and its tokens after temporal attention (R, T, S, D).

        ``branch`` (R, T, S, D) is added at the entry. ``ahead`` takes the norm that the next layer begins with along;
        wasted where that layer has a branch, with the same result. Only the first ``num_outputs`` rows go on after the
        temporal attention.
        """
        spatial, temporal = self._blocks(index)
        following = self._blocks(index + 1)[0] if ahead and index + 1 < self.config.depth else None
        x, normed, _ = spatial(state.x, state.normed, state, self.first_text + 2 * index, temporal, branch=branch)
        x, normed, feature = temporal(
            x, normed, state, self.first_text + 2 * index + 1, following, temporal=True, num_outputs=num_outputs
        )
        if num_outputs is not None:
            state = state.take(slice(num_outputs))
        return replace(state, x=x, normed=normed), feature

    def _blocks(self, index: int) -> tuple[STDiTBlock, STDiTBlock]:
        return cast("tuple[STDiTBlock, STDiTBlock]", (self.spatial_blocks[index], self.temporal_blocks[index]))
