"""Low-rank adapters (LoRA) in the video tower: rows of a batch may each use others, several at once, or none.

    y = W x + b + sum_k w[r, k] B_k A_k x

for row r with weights w (R, K) of K adapters (Hu et al., arXiv 2106.09685). The matrices of all adapters of a layer
stand one under the other, so that a layer costs two more products whatever rows use; a weight of 0 leaves a row as it
is. Layers that are part of a larger operation add their branch after it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Linear

if TYPE_CHECKING:
    from .ddit import DDiT

TARGETS = (
    "attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
TARGET = re.compile(rf"video\.(spatial|temporal)_blocks\.\d+\.({'|'.join(map(re.escape, TARGETS))})")


@dataclass(frozen=True)
class LowRank:
    """The branch of an adapter in one layer: ``down`` A (r, in) and ``up`` B (out, r), its scale in B."""

    down: Tensor
    up: Tensor


def target_layers(model: nn.Module) -> dict[str, Linear]:
    """The layers that adapters may change, by name: the linear layers of the blocks of the video tower."""
    layers = ((name, layer) for name, layer in model.named_modules() if TARGET.fullmatch(name))
    return {name: layer for name, layer in layers if isinstance(layer, Linear)}


class RowWeights(threading.local):
    """``value`` (R, K): the weight of each adapter in each row of the pass that this thread computes; None outside."""

    value: Tensor | None = None

    @contextmanager
    def set(self, value: Tensor | None) -> Iterator[None]:
        """Rows have these weights within the block."""
        before, self.value = self.value, value
        try:
            yield
        finally:
            self.value = before


class LoraLinear(Linear):
    """A linear layer with the branches of adapters; ``weight`` and ``bias`` are those of the layer it stands for."""

    down: Tensor
    up: Tensor
    adapter_of_rank: Tensor

    def __init__(self, layer: Linear, rows: RowWeights) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.rows = rows
        self.branches: dict[int, LowRank] = {}
        self.stack()

    def stack(self) -> None:
        """Put the matrices of all branches one under the other."""
        device = self.bias.device
        parts = list(self.branches.values())
        ranks = torch.tensor([len(part.down) for part in parts], dtype=torch.long, device=device)
        numbers = torch.tensor(list(self.branches), dtype=torch.long, device=device)
        tensors = {
            "down": torch.cat([p.down for p in parts]) if parts else self.bias.new_zeros(0, self.in_features),
            "up": torch.cat([p.up for p in parts], 1) if parts else self.bias.new_zeros(self.out_features, 0),
            "adapter_of_rank": numbers.repeat_interleave(ranks),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(R, ..., in) -> (R, ..., out)."""
        y, added = super().forward(x), self.delta(x)
        return y if added is None else y + added

    def delta(self, x: Tensor) -> Tensor | None:
        """What the adapters add for x (R, ..., in), of which the rows are the first R of the pass."""
        weights = self.rows.value
        if weights is None or not self.branches:
            return None
        missing = max(self.branches) + 1 - weights.shape[1]  # adapters that were loaded after the weights were made
        weights = F.pad(weights, (0, max(0, missing)))[: len(x), self.adapter_of_rank]
        shape = len(x), *[1] * (x.ndim - 2), len(self.adapter_of_rank)
        inner = F.linear(x, self.down) * weights.reshape(shape).to(x.dtype)
        return F.linear(inner, self.up)


class AdaptedModel:
    """The adapters of a d-DiT whose video rows read no audio (bridges ``adaptor`` and ``none``), by number.

    ``model`` computes with them wherever :attr:`rows` are set; without, or with weights of 0, as before.
    """

    def __init__(self, model: DDiT) -> None:
        if model.config.video_reads_audio:
            raise ValueError(
                f"adapters of single requests need a model whose video reads no audio; this one has "
                f"{model.config.bridge} (merge the adapter into its weights instead)"
            )
        self.model, self.rows = model, RowWeights()
        model.adapter_rows = self.rows
        self.layers = {name: LoraLinear(layer, self.rows) for name, layer in target_layers(model).items()}
        for name, layer in self.layers.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)

    def add(self, number: int, branches: Mapping[str, LowRank]) -> None:
        """Add the branches of adapter ``number``, by the name of their layer."""
        for name, branch in branches.items():
            layer = self.layers[name]
            layer.branches[number] = LowRank(branch.down.to(layer.bias), branch.up.to(layer.bias))
            layer.stack()

    def remove(self, number: int) -> None:
        """Take the branches of an adapter away."""
        for layer in self.layers.values():
            if layer.branches.pop(number, None) is not None:
                layer.stack()


@torch.no_grad()
def merge(model: DDiT, branches: Mapping[str, LowRank], weight: float = 1.0) -> None:
    """Add the branches of an adapter to the weights of a model, for good."""
    for name, branch in branches.items():
        layer = cast("Linear", model.get_submodule(name))
        update = branch.up.double() @ branch.down.double() * weight
        layer.weight.copy_((layer.weight.double() + update.to(layer.weight.device)).to(layer.weight.dtype))
