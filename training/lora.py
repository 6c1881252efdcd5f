"""Training of a low-rank adapter (LoRA) instead of the weights of a model (docs/training.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.adapters import Adapter
from ..engine.model import DDiT
from ..engine.model.layers import Linear
from ..engine.model.lora import LowRank, target_layers


class Branch(nn.Module):
    """The trained matrices A (r, in), random, and B (out, r), zero at first, of one layer."""

    def __init__(self, layer: Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, layer.in_features, device=layer.weight.device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(F.linear(x, self.down), self.up)


class TrainedLoraLinear(Linear):
    """A linear layer, frozen, with a branch that is trained."""

    def __init__(self, layer: Linear, rank: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.branch = Branch(layer, rank)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(x) + self.branch(x)

    def delta(self, x: Tensor) -> Tensor:
        """What the branch adds for x."""
        return self.branch(x)


def add_branches(model: DDiT, rank: int, seed: int = 0) -> None:
    """Give every layer that an adapter may change a branch of this rank, which changes nothing yet."""
    torch.manual_seed(seed)
    for name, layer in target_layers(model).items():
        _put(model, name, TrainedLoraLinear(layer, rank))


def branches_of(model: DDiT) -> list[Branch]:
    """The branches that are trained; empty in a model without."""
    return [module for module in model.modules() if isinstance(module, Branch)]


def take_branches(model: DDiT) -> Adapter:
    """The trained branches as an adapter; the model is as it was before :func:`add_branches`."""
    branches = {}
    for name, layer in target_layers(model).items():
        if isinstance(layer, TrainedLoraLinear):
            branches[name] = LowRank(layer.branch.down.detach(), layer.branch.up.detach())
            plain = Linear(1, 1, device="meta")
            plain.in_features, plain.out_features = layer.in_features, layer.out_features
            plain.weight, plain.bias = layer.weight, layer.bias
            _put(model, name, plain)
    return Adapter(branches)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
