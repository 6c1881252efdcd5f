"""A SyncFlow model in the Python backend of NVIDIA Triton Inference Server: prompts in, clips out.

Triton loads this file; the model lies beside it, in ``package``. A request joins the engine's running batch between two
steps, whoever else is in it, and is answered when its clip is done: ``execute`` only takes requests in. So one instance
is enough for a device. A request that its client cancels leaves the batch at the next step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from syncflow import Clip, Engine, Request
from syncflow.engine.batching import Cancelled, Closed, Expired, Full, Handle
from syncflow.export.triton_server.cancellation import CancellationWatcher
from syncflow.export.triton_server.fields import MEDIA, SETTINGS

MICROSECONDS = 1e6


class TritonPythonModel:
    """What Triton makes an instance of: ``initialize``, ``execute`` for requests, ``finalize``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine for the device of this instance."""
        runtime = json.loads(args["model_config"])["parameters"]["runtime"]["string_value"]
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        self.engine = Engine.from_pretrained(Path(__file__).parent / "package", device=device, runtime=runtime)
        self.answering = ThreadPoolExecutor(thread_name_prefix="answer")
        self.watcher = CancellationWatcher()

    def execute(self, requests: list[Any]) -> None:
        """Take every request in; each is answered by itself, when its clip is done."""
        for request in requests:
            sender, wanted = request.get_response_sender(), frozenset(request.requested_output_names())
            try:
                handle = self._submit(request)
            except Exception as error:
                _send(sender, _refusal(error))
            else:
                self.watcher.watch(sender, handle)
                handle.add_done_callback(partial(self._answer_later, sender, wanted))

    def finalize(self) -> None:
        """Finish what was taken in."""
        self.engine.drain()
        self.engine.close()
        self.answering.shutdown()
        self.watcher.close()

    def _submit(self, request: Any) -> Handle[list[Clip]]:
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        for name, array in given.items():
            if array.size != 1:
                raise ValueError(f"{name} has {array.size} elements; a request is of one clip, so each input has one")
        settings = {name: SETTINGS[name].read(array.item()) for name, array in given.items() if name in SETTINGS}
        with _files({name: given[name].item() for name in MEDIA if name in given}) as media:
            deadline = request.timeout() / MICROSECONDS or None
            return self.engine.submit(Request(**settings, **media), deadline=deadline)

    def _answer_later(self, sender: Any, wanted: Collection[str], handle: Handle[list[Clip]]) -> None:
        """In a thread of its own: the one that ended the request has others to step and to decode."""
        self.answering.submit(self._answer, sender, wanted, handle)

    def _answer(self, sender: Any, wanted: Collection[str], handle: Handle[list[Clip]]) -> None:
        response = _response(wanted, handle)
        self.watcher.forget(sender)
        _send(sender, response)


@contextmanager
def _files(media: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    """Files with these contents, until a request has read them."""
    with TemporaryDirectory() as folder:
        for name, content in media.items():
            (Path(folder) / name).write_bytes(content)
        yield {name: Path(folder) / name for name in media}


def _response(wanted: Collection[str], handle: Handle[list[Clip]]) -> Any:
    try:
        (clip,) = handle.result()
        tensors = [pb_utils.Tensor(name, make(clip)) for name, make in MAKE.items() if name in wanted]
        return pb_utils.InferenceResponse(output_tensors=tensors)
    except Exception as error:
        return _refusal(error)


def _refusal(error: Exception) -> Any:
    """What went wrong, in the sentence of the error, under Triton's code for it."""
    codes = pb_utils.TritonError
    if isinstance(error, ValueError):
        code = codes.INVALID_ARG
    elif isinstance(error, (Full, Closed)):
        code = codes.UNAVAILABLE
    elif isinstance(error, (Cancelled, Expired)):
        code = codes.CANCELLED
    else:
        code = codes.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error) or type(error).__name__, code))


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _mp4(clip: Clip) -> np.ndarray:
    with TemporaryDirectory() as folder:
        return _bytes(clip.save(Path(folder) / "clip.mp4").read_bytes())


def _bytes(content: bytes) -> np.ndarray:
    return np.array([content], np.object_)


MAKE: Mapping[str, Callable[[Clip], np.ndarray]] = {
    "mp4": _mp4,
    "frames": lambda clip: clip.frames,
    "waveform": lambda clip: clip.waveform,
    "fps": lambda clip: np.array([clip.fps], np.float32),
    "sample_rate": lambda clip: np.array([clip.sample_rate], np.int32),
    "provenance": lambda clip: _bytes(json.dumps(dict(clip.provenance)).encode()),
}
