"""Sharded training (FSDP2): each process keeps a part of every weight, of its gradient and of its optimiser's state.

The weights of a unit, a layer of a tower for example, are gathered when its ``forward`` begins and released when it
ends. A sharded tensor is a ``DTensor``; the functions here take plain tensors too, and return them as they are.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree as pytree

from ..engine.model.layers import CrossAttention
from .processes import process_mesh

if TYPE_CHECKING:
    from ..engine.codecs.text import TextEncoder
    from ..engine.model import DDiT
    from ..engine.model.video import VideoTower

Module = TypeVar("Module", bound=nn.Module)


def sharded(objective: Module, device: torch.device) -> Module:
    """A copy of an objective (with ``model`` and ``text_encoder``) of which each process has its part on ``device``.

    The objective itself is left as it is.
    """
    # No layer changes the output of another in place, which is what FSDP2 warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    own = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in objective.parameters()}
    copied = copy.deepcopy(objective, cast("dict[int, Any]", own))
    mesh = process_mesh(device)
    for unit in _units(cast("DDiT", copied.model), cast("TextEncoder", copied.text_encoder)):
        fully_shard(unit, mesh=mesh)
    fully_shard(copied, mesh=mesh)
    return copied


def _units(model: DDiT, text_encoder: TextEncoder) -> Iterator[nn.Module | list[nn.Module]]:
    """What is gathered at a time. What belongs to no unit stays whole during a step."""
    for layer in _cross_attentions(model):  # keys and values are projected before the layer that reads them
        yield layer.kv_linear
    for layer in _cross_attentions(model.bridge or nn.Module()):
        yield from (layer.q_linear, layer.proj)
    _end_with_layer(model.video)
    for spatial, temporal in model.video.layers:
        yield [spatial, temporal]
    for name in ("layers", "adaptors"):
        yield from getattr(model.audio, name, ())
    for layer in getattr(model.audio, "layers", ()):
        register_fsdp_forward_method(layer, "with_style")
    yield from text_encoder.encoder.encoder.block


def _cross_attentions(module: nn.Module) -> list[CrossAttention]:
    return [part for part in module.modules() if isinstance(part, CrossAttention)]


def _end_with_layer(tower: VideoTower) -> None:
    """Let no layer compute the norm with which the next one begins, whose weights it has not."""
    layer = tower.layer

    @wraps(layer)
    def alone(*arguments: Any, ahead: bool = False, **settings: Any) -> Any:
        return layer(*arguments, ahead=False, **settings)

    tower.layer = alone  # type: ignore[method-assign]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has, which shares its memory."""
    return cast("DTensor", tensor.detach()).to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, each of which has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def scattered(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that all processes have, sharded as ``like`` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered(values: Any) -> Any:
    """Dictionaries and lists with every sharded tensor gathered, in the memory of the host."""
    return pytree.tree_map_only(DTensor, lambda tensor: whole(tensor).cpu(), values)


def scattered_state(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state of whole tensors, sharded as the module is."""
    own = module.state_dict()
    return {name: scattered(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}


def scattered_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser with whole tensors, those of the shape of a parameter sharded as it is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(value: Any, p: Tensor) -> Any:
        return scattered(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value

    of_each = {i: pytree.tree_map(partial(part, p=parameters[i]), values) for i, values in state["state"].items()}
    return state | {"state": of_each}


@torch.no_grad()
def take_weights(objective: nn.Module, copied: nn.Module) -> None:
    """Put the weights of a sharded copy into the objective that it is a copy of."""
    for own, trained in zip(objective.parameters(), copied.parameters(), strict=True):
        if trained.requires_grad:
            own.copy_(whole(trained))
