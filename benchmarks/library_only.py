"""The exported graphs of one denoising step, run by their library alone: the baseline of a graph runtime."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syncflow.engine.runtime.exported import GraphDenoiser, Sessions, Tensors
from syncflow.engine.sampling.job import Job
from syncflow.engine.sampling.sequential import batch_of

Arrays = dict[str, np.ndarray[Any, Any]]


class LibraryOnly:
    """The graphs that a step of these jobs runs, in order and with the same inputs, in ``onnxruntime`` or ``openvino``.

    ``error`` is the largest deviation of their outputs from those in the step, relative to the largest value.
    """

    def __init__(self, runtime: str, denoiser: GraphDenoiser, jobs: Sequence[Job]) -> None:
        assert isinstance(denoiser.run, Sessions)
        export, calls = denoiser.run.export, _calls(denoiser, jobs)
        files = {name: os.fspath(export.path / export.graphs[name].file) for name, _, _ in calls}
        graphs = {name: LIBRARIES[runtime](file, list(export.graphs[name].outputs)) for name, file in files.items()}
        feeds = [(name, {k: x.numpy() for k, x in inputs.items()}) for name, inputs, _ in calls]
        self._work = [(graphs[name], feed) for name, feed in feeds]
        self.error = max(
            float(np.abs(one - given[name].numpy()).max() / np.abs(one).max())
            for (run, feed), (_, _, given) in zip(self._work, calls, strict=True)
            for name, one in run(feed).items()
        )

    def step(self) -> None:
        """Run all graphs once."""
        for run, feed in self._work:
            run(feed)


def _calls(denoiser: GraphDenoiser, jobs: Sequence[Job]) -> list[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """The graphs that the second step of these jobs runs, with their inputs and outputs."""
    calls: list[tuple[str, dict[str, Tensor], dict[str, Tensor]]] = []

    def record(name: str, inputs: Tensors) -> Tensors:
        found = denoiser.run(name, inputs)
        calls.append((name, _clones(inputs), _clones(found)))
        return found

    recording = copy.copy(denoiser)
    recording.run = record
    batch = batch_of(recording)
    batch.join(jobs)
    batch.step()
    calls.clear()
    batch.step()
    return calls


def _clones(tensors: Tensors) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in tensors.items()}


def _onnxruntime(file: str, outputs: list[str]) -> Callable[[Arrays], Arrays]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda feed: dict(zip(outputs, session.run(outputs, feed), strict=True))


def _openvino(file: str, outputs: list[str]) -> Callable[[Arrays], Arrays]:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.compile_model(file, "CPU", settings).create_infer_request()

    def run(feed: Arrays) -> Arrays:
        found = request.infer(feed)
        return {name: found[i] for i, name in enumerate(outputs)}

    return run


LIBRARIES: dict[str, Callable[[str, list[str]], Callable[[Arrays], Arrays]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
