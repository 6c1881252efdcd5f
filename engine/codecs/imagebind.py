"""What the text tower of ImageBind (Girdhar et al. 2023) is made of, and its other towers; tensors have its names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPSILON = 1e-6


class Layer(nn.Module):
    """A pre-norm layer; ``bias_kv``: every token attends to one more, learned key and value."""

    def __init__(self, width: int, heads: int, *, bias_kv: bool = False) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, add_bias_kv=bias_kv, batch_first=True)
        self.norm_1, self.norm_2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.norm_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm_2(x))))


class Trunk(nn.Module):
    """``depth`` layers for tokens (B, L, W); in a ``causal`` one each token attends to those up to it.

    ``pre_norm``: the tokens are normalised before the first layer.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        causal: bool = False,
        pre_norm: bool = False,
        bias_kv: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        if pre_norm:
            self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(width, EPSILON))
        self.blocks = nn.ModuleList(Layer(width, heads, bias_kv=bias_kv) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        mask = None
        if self.causal:
            mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        if hasattr(self, "pre_transformer_layer"):
            x = self.pre_transformer_layer(x)
        for layer in self.blocks:
            x = layer(x, mask)
        return x


class TokenEmbedding(nn.Module):
    """Token ids (B, L) to tokens (B, L, W) with their positions."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, width))

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.pos_embed


class TextTower(nn.Module):
    """Token ids of prompts to states; ``length`` tokens (L) of a ``vocabulary``, ``width`` (W) numbers each."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.length = length
        self.modality_preprocessors = nn.ModuleDict({"text": TokenEmbedding(vocabulary, length, width)})
        self.modality_trunks = nn.ModuleDict({"text": Trunk(width, depth, heads, causal=True)})

    def text_states(self, ids: Tensor) -> Tensor:
        """States (B, L, W) of token ids (B, L), each of the tokens up to it."""
        return self.modality_trunks["text"](self.modality_preprocessors["text"](ids))

    def padded(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The token ids of B prompts, each cut or padded with 0, on the device: (B, L)."""
        rows = torch.zeros(len(prompts), self.length, dtype=torch.int64)
        for row, ids in zip(rows, prompts, strict=True):
            kept = torch.tensor(ids[: self.length])
            row[: len(kept)] = kept
        return rows.to(next(self.parameters()).device)
