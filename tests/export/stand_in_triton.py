"""A stand-in for ``triton_python_backend_utils``: what a model in Triton's Python backend uses of it.

Names and arguments are those of the backend's bindings; a request is answered once, and with every tensor in its place.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert isinstance(array, np.ndarray)
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def error(self) -> TritonError | None:
        return self._error


class InferenceResponseSender:
    """Holds the one response that a model without decoupled responses may send."""

    def __init__(self) -> None:
        self._sent, self._cancelled = threading.Event(), threading.Event()
        self._response: InferenceResponse | None = None

    def is_cancelled(self) -> bool:
        assert not self._sent.is_set(), "a request that was answered is gone"
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """What the client does, or the server when the client is gone."""
        self._cancelled.set()

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self._sent.is_set(), "a request is answered once"
        assert flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._response = response
        self._sent.set()

    def answered(self) -> bool:
        return self._sent.is_set()

    def response(self, timeout: float = 300) -> InferenceResponse:
        assert self._sent.wait(timeout), "there is no answer"
        assert self._response is not None
        return self._response


class InferenceRequest:
    def __init__(self, inputs: Mapping[str, np.ndarray], wanted: Sequence[str], timeout: int = 0) -> None:
        self._inputs = [Tensor(name, array) for name, array in inputs.items()]
        self._wanted, self._timeout = list(wanted), timeout
        self._sender = InferenceResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._wanted

    def timeout(self) -> int:
        return self._timeout

    def get_response_sender(self) -> InferenceResponseSender:
        return self._sender
