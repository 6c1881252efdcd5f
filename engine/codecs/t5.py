"""The encoder of T5 in plain PyTorch: the tensors and numbers of transformers' ``T5EncoderModel``.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020; gated MLPs as
in T5 1.1. It is here because importing transformers takes longer than drawing a clip with the bundled model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, relu, scaled_dot_product_attention, silu

from ..validation import number_between, whole_between

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32_128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
# What the encoder can be built and computed with.
WHOLE = {
    "vocab_size": (1, 10_000_000),
    "d_model": (1, 65_536),
    "d_kv": (1, 65_536),
    "d_ff": (1, 1_000_000),
    "num_layers": (1, 1000),
    "num_heads": (1, 4096),
    "relative_attention_num_buckets": (4, 65_536),
    "relative_attention_max_distance": (2, 10_000_000),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_new": partial(gelu, approximate="tanh"),
    "silu": silu,
}


class T5Encoder(nn.Module):
    """Token ids (B, L) and their mask (B, L) to states (B, L, W).

    ``config`` holds the settings of transformers' ``T5Config``, whose defaults it has too. Raises ``ValueError`` for a
    setting out of its range and for an activation that is not one of ``ACTIVATIONS``.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config: dict[str, Any] = DEFAULTS | {"model_type": "t5"} | dict(config or {})
        for name, (low, high) in WHOLE.items():
            whole_between(name, self.config[name], low, high)
        number_between("dropout_rate", self.config["dropout_rate"], 0, 1)
        number_between("layer_norm_epsilon", self.config["layer_norm_epsilon"], 0, 1, above=True)
        exact, far = (self.config[f"relative_attention_{name}"] for name in ("num_buckets", "max_distance"))
        if far <= exact // 4:
            raise ValueError(f"relative_attention_max_distance is {far}; it must be above {exact // 4}")
        self.shared = nn.Embedding(self.config["vocab_size"], self.config["d_model"])
        self.encoder = Stack(self.config)
        self._initialize()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(self.shared(ids), mask.bool())

    @torch.no_grad()
    def _initialize(self) -> None:
        """Normal weights whose deviations keep the variance without a scale in the attention, as Mesh TensorFlow's."""
        width, inner = self.config["d_model"], self.config["num_heads"] * self.config["d_kv"]
        deviations = {"q": (width * self.config["d_kv"]) ** -0.5, "o": inner**-0.5, "wo": self.config["d_ff"] ** -0.5}
        for name, weight in self.named_parameters():
            layer = name.split(".")[-2]
            if "layer_norm" not in layer:
                weight.normal_(0, 1.0 if layer == "shared" else deviations.get(layer, width**-0.5))


class Stack(nn.Module):
    """The blocks and the last norm; the first block's bias by relative position is that of all."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.rate = float(config["dropout_rate"])
        self.block = nn.ModuleList(Block(config, first=i == 0) for i in range(config["num_layers"]))
        self.final_layer_norm = RmsNorm(config["d_model"], config["layer_norm_epsilon"])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x, bias = dropout(x, self.rate, self.training), None
        for block in self.block:
            x, bias = block(x, bias, mask)
        return dropout(self.final_layer_norm(x), self.rate, self.training)


class Block(nn.Module):
    """Self-attention and MLP, each behind a norm and beside its input."""

    def __init__(self, config: Mapping[str, Any], *, first: bool) -> None:
        super().__init__()
        self.rate = float(config["dropout_rate"])
        norms = [RmsNorm(config["d_model"], config["layer_norm_epsilon"]) for _ in range(2)]
        attention = nn.ModuleDict({"SelfAttention": SelfAttention(config, biased=first), "layer_norm": norms[0]})
        mlp = nn.ModuleDict({"DenseReluDense": Mlp(config), "layer_norm": norms[1]})
        self.layer = nn.ModuleList([attention, mlp])

    def forward(self, x: Tensor, bias: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        attention, mlp = self.layer
        y, bias = attention["SelfAttention"](attention["layer_norm"](x), bias, mask)  # type: ignore[index]
        x = x + dropout(y, self.rate, self.training)
        y = mlp["DenseReluDense"](mlp["layer_norm"](x))  # type: ignore[index]
        return x + dropout(y, self.rate, self.training), bias


class SelfAttention(nn.Module):
    """Attention of all tokens that count, with a bias by relative position and without a scale."""

    def __init__(self, config: Mapping[str, Any], *, biased: bool) -> None:
        super().__init__()
        self.heads, self.rate = int(config["num_heads"]), float(config["dropout_rate"])
        self.buckets = int(config["relative_attention_num_buckets"])
        self.farthest = int(config["relative_attention_max_distance"])
        width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, width, bias=False)
        self.relative_attention_bias = nn.Embedding(self.buckets, self.heads) if biased else None

    def forward(self, x: Tensor, bias: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        """-> the attended tokens and the bias (1, n, L, L), here made of the positions where none is given."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if bias is None:
            assert self.relative_attention_bias is not None
            places = torch.arange(x.shape[1], device=x.device)
            buckets = self._bucket(places[None, :] - places[:, None])
            bias = self.relative_attention_bias(buckets).permute(2, 0, 1).unsqueeze(0)
        allowed = torch.where(mask[:, None, None, :], bias, torch.finfo(x.dtype).min)
        rate = self.rate if self.training else 0.0
        y = scaled_dot_product_attention(q, k, v, allowed.contiguous(), dropout_p=rate, scale=1.0)
        return self.o(y.transpose(1, 2).flatten(2)), bias

    def _bucket(self, distance: Tensor) -> Tensor:
        """One of the buckets for each distance: half of them for each sign, near ones exact, far ones logarithmic."""
        half = self.buckets // 2
        exact, far = half // 2, distance.abs()
        grown = torch.log(far.float() / exact) / math.log(self.farthest / exact) * (half - exact)
        large = (exact + grown.to(torch.long)).clamp(max=half - 1)
        return (distance > 0).to(torch.long) * half + torch.where(far < exact, far, large)


class Mlp(nn.Module):
    """Two layers around an activation, gated in T5 1.1."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.rate = float(config["dropout_rate"])
        said = str(config["feed_forward_proj"])
        gated, name = said.startswith("gated-"), said.removeprefix("gated-")
        name = "gelu_new" if said == "gated-gelu" else name
        if name not in ACTIVATIONS:
            raise ValueError(f"feed_forward_proj is {said!r}; T5 has {', '.join(ACTIVATIONS)}, also as gated-…")
        self.act = ACTIVATIONS[name]
        width, hidden = config["d_model"], config["d_ff"]
        self.gates = ("wi_0", "wi_1") if gated else ("wi",)
        for gate in self.gates:
            self.add_module(gate, nn.Linear(width, hidden, bias=False))
        self.wo = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, *second = (self.get_submodule(gate)(x) for gate in self.gates)
        y = self.act(first)
        for gate in second:
            y = y * gate
        return self.wo(dropout(y, self.rate, self.training).to(self.wo.weight.dtype))


class RmsNorm(nn.Module):
    """Root mean square norm in float32, without a shift."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        y = x * torch.rsqrt(variance + self.eps)
        half = self.weight.dtype in (torch.float16, torch.bfloat16)
        return self.weight * (y.to(self.weight.dtype) if half else y)
