"""Where the work of an engine runs on its device: steps, encoding and decoding, each on a stream of its own.

On a GPU a clip is decoded, and the next request encoded, while the steps of others go on. What passes from one stream
to another are the tensors of a job, from encoding to the steps, and the latents of a request that is done, from the
steps to decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from ..types import Latents
from .cuda_graphs.capture import CAPTURES


class DeviceStreams:
    """Those of a device with a single stream."""

    def start_thread(self) -> None:
        """Make the device the current one of this thread: a thread begins with device 0."""

    def stepping(self) -> AbstractContextManager[object]:
        """Within: batches are made, joined, stepped and left."""
        return nullcontext()

    def encoding(self) -> AbstractContextManager[object]:
        """Within: texts and media are encoded."""
        return nullcontext()

    def pass_to_steps(self, tensors: Iterable[Tensor]) -> None:
        """Block the host until what was encoded is there; the steps may read ``tensors`` of it."""

    def decoding(self, latents: Latents) -> AbstractContextManager[object]:
        """Within: latents that a batch has returned are decoded."""
        return nullcontext()


class CudaStreams(DeviceStreams):
    """Three streams of a CUDA device. Weights that were loaded before can be read on all of them.

    ``synchronize`` in :meth:`pass_to_steps` holds the thread that encodes, never the one that steps. A capture excludes
    encoding and decoding, whose matrix products use the workspaces that it clears.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._step, self._encode, self._decode = (torch.cuda.Stream(device) for _ in range(3))
        torch.cuda.synchronize(device)

    def start_thread(self) -> None:
        torch.cuda.set_device(self.device)

    def stepping(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._step)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        with CAPTURES.shared(), torch.cuda.stream(self._encode):
            yield

    def pass_to_steps(self, tensors: Iterable[Tensor]) -> None:
        self._encode.synchronize()
        self._hold(tensors, self._step)

    @contextmanager
    def decoding(self, latents: Latents) -> Iterator[None]:
        if latents.ready is not None:
            self._decode.wait_event(latents.ready)
        self._hold((latents.video, latents.audio), self._decode)
        with CAPTURES.shared(), torch.cuda.stream(self._decode):
            yield

    def _hold(self, tensors: Iterable[Tensor], stream: torch.cuda.Stream) -> None:
        """Keep the memory of tensors, once they are freed, until ``stream`` has read them."""
        for tensor in tensors:
            if tensor.device == self.device:
                tensor.record_stream(stream)


def streams_of(device: torch.device) -> DeviceStreams:
    """The streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else DeviceStreams()
