"""The weights of the video blocks on the host: on the device are those of the block that computes and of the next.

Before a block computes, the weights of the block after it begin to move to the device, beside the computation where
copies have a stream of their own; after it has computed, its own are let go. The projections of the text, which are
needed once a prompt and not once a step, move in an order of their own. What the block before reads (its modulation
table), embeddings, final layers and the audio tower stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..model import DDiT

SHARED = "scale_shift_table"  # of a block, also read by the block before it
TEXT = "cross_attn.kv_linear"  # of a block, computed once a prompt


class Transfer(Protocol):
    """Copies to a device."""

    def host(self, tensor: Tensor) -> Tensor:
        """A tensor as it is kept on the host."""

    def start(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Begin to copy tensors of the host to the device."""

    def wait(self, tensors: Sequence[Tensor]) -> None:
        """Let the computation that follows wait for copies that have begun."""


class PlainTransfer:
    """Copies that are done when they are begun."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def host(self, tensor: Tensor) -> Tensor:
        return tensor.detach().cpu()

    def start(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.empty_like(tensor, device=self.device).copy_(tensor) for tensor in tensors]

    def wait(self, tensors: Sequence[Tensor]) -> None:
        pass


class CudaTransfer(PlainTransfer):
    """Copies from page-locked memory, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)

    def host(self, tensor: Tensor) -> Tensor:
        return tensor.detach().cpu().pin_memory()

    def start(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        with torch.cuda.stream(self.stream):
            return [tensor.to(self.device, non_blocking=True) for tensor in tensors]

    def wait(self, tensors: Sequence[Tensor]) -> None:
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(computing)  # its memory is free once the computation has read it


class BlockSequence:
    """Modules that compute one after the other, each with parameters that are on the device while it does."""

    def __init__(
        self, modules: Sequence[nn.Module], parameters: Sequence[list[nn.Parameter]], transfer: Transfer
    ) -> None:
        self._parameters, self._transfer = parameters, transfer
        self._host = [[transfer.host(parameter) for parameter in group] for group in parameters]
        self._moving: dict[int, list[Tensor]] = {}
        for i, module in enumerate(modules):
            self._release(i)
            module.register_forward_pre_hook(lambda *_, i=i: self._enter(i))
            module.register_forward_hook(lambda *_, i=i: self._release(i), always_call=True)

    @property
    def on_device(self) -> list[int]:
        """The places whose parameters are on the device, or on their way."""
        used = [i for i, group in enumerate(self._parameters) if group and group[0].numel()]
        return sorted({*used, *self._moving})

    @torch.inference_mode(False)
    def _enter(self, i: int) -> None:
        tensors = self._moving.pop(i, None) or self._transfer.start(self._host[i])
        self._transfer.wait(tensors)
        for parameter, tensor in zip(self._parameters[i], tensors, strict=True):
            parameter.data = tensor
        following = (i + 1) % len(self._host)
        self._moving = {following: self._moving.get(following) or self._transfer.start(self._host[following])}

    @torch.inference_mode(False)
    def _release(self, i: int) -> None:
        for parameter, host in zip(self._parameters[i], self._host[i], strict=True):
            parameter.data = torch.empty(0, dtype=host.dtype, device=parameter.device)


def offload_blocks(model: DDiT, device: torch.device, transfer: Transfer | None = None) -> list[BlockSequence]:
    """Put ``model`` on ``device`` but for the weights of its video blocks, which move there when they are needed."""
    if transfer is None:
        transfer = CudaTransfer(device) if device.type == "cuda" else PlainTransfer(device)
    blocks = [block for layer in model.video.layers for block in layer]
    texts = [block.get_submodule(TEXT) for block in blocks]
    found = [
        BlockSequence(blocks, [[*_of_block(block)] for block in blocks], transfer),
        BlockSequence(texts, [[*text.parameters()] for text in texts], transfer),
    ]
    model.to(device)
    return found


def _of_block(block: nn.Module) -> Iterator[nn.Parameter]:
    for name, parameter in block.named_parameters():
        if name != SHARED and not name.startswith(TEXT):
            yield parameter
