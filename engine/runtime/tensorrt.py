"""TensorRT engines that read and write tensors of PyTorch, without copies of contiguous inputs and without waiting.

Each optimisation profile has one execution context per stream, because a context holds the memory of running work.
:class:`CapturedPlan` replays one CUDA graph per set of input shapes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..exports import Export, GraphSpec
from .cuda_graphs.capture import Capture, CudaCapture
from .exported import Load, Run, Sessions, Tensors

MINIMUM_VERSION = (10, 15)
ALIGNMENT = 256  # bytes, of the address of every tensor
MAX_GRAPHS = 32  # captured sets of input shapes of an engine

Shapes = Mapping[str, Sequence[int]]


def library() -> Any:
    """The module ``tensorrt``. Raises ``ValueError`` where it is missing or too old."""
    try:
        import tensorrt
    except ImportError:
        raise ValueError("the runtime tensorrt needs tensorrt; install it with `pip install syncflow[gpu]`") from None
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < MINIMUM_VERSION:
        least = ".".join(map(str, MINIMUM_VERSION))
        raise ValueError(f"the runtime tensorrt needs TensorRT {least} or newer, and this is {tensorrt.__version__}")
    return tensorrt


def machine(device: torch.device) -> str:
    """The kind of GPU on which an engine that is built here runs."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} sm_{major}{minor}"


def sessions(export: Export, device: torch.device, *, cuda_graphs: bool = False) -> Sessions:
    """Engines on a GPU; ``cuda_graphs`` captures each of their input shapes as a CUDA graph.

    Raises ``ValueError`` for engines of another version of TensorRT or another kind of GPU.
    """
    trt = library()
    made_with, here = export.versions.get("tensorrt", "none"), trt.__version__
    if made_with != here:
        raise ValueError(f"{export.path} was built by TensorRT {made_with}, and this is {here}; export it anew")
    if export.machine != machine(device):
        raise ValueError(f"{export.path} was built for {export.machine}, and this is {machine(device)}; export it anew")
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))

    def load(spec: GraphSpec, path: Path) -> Run:
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ValueError(f"TensorRT cannot read {path}; what it wrote above says why")
        plan = Plan(engine, spec, device)
        return CapturedPlan(plan, CudaCapture(device)) if cuda_graphs else plan

    typed: Load = load
    return Sessions(export, typed, {"tensorrt": here, "machine": export.machine, "cuda_graphs": cuda_graphs})


class Plan:
    """An engine as a function of named tensors on ``device``."""

    def __init__(self, engine: Any, spec: GraphSpec, device: torch.device) -> None:
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        if unexpected := names ^ {*spec.inputs, *spec.outputs}:
            raise ValueError(f"{spec.file} has other tensors than its manifest says: {', '.join(sorted(unexpected))}")
        self.engine, self.spec, self.device = engine, spec, device
        self.profiles = [
            {name: engine.get_tensor_profile_shape(name, i) for name in spec.inputs}
            for i in range(engine.num_optimization_profiles)
        ]
        self._contexts: dict[tuple[int, int], Any] = {}
        self._empty = torch.empty(ALIGNMENT, dtype=torch.uint8, device=device)
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors) -> Tensors:
        """The outputs of the engine, computed on the current stream of this thread."""
        with self._lock:
            inputs = self.aligned(inputs)
            stream = current_stream(self.device)
            profile = self.profile({name: x.shape for name, x in inputs.items()})
            if (profile, stream) not in self._contexts:
                self._contexts[profile, stream] = self.context(profile)
            return self.enqueue(self._contexts[profile, stream], inputs)

    def aligned(self, inputs: Tensors) -> dict[str, Tensor]:
        """The inputs, contiguous and aligned."""
        contiguous = {name: inputs[name].contiguous() for name in self.spec.inputs}
        return {name: x.clone() if x.data_ptr() % ALIGNMENT else x for name, x in contiguous.items()}

    def profile(self, shapes: Shapes) -> int:
        """The first profile that covers these shapes. Raises ``ValueError`` if none does."""
        for i, ranges in enumerate(self.profiles):
            if all(_within(shapes[name], *ranges[name]) for name in shapes):
                return i
        name = next(
            name for name in shapes if not any(_within(shapes[name], *ranges[name]) for ranges in self.profiles)
        )
        built = " or ".join(f"{tuple(least)} to {tuple(most)}" for least, _, most in (p[name] for p in self.profiles))
        raise ValueError(f"{self.spec.file} was built for {name} of shape {built}, and it is {tuple(shapes[name])}")

    def context(self, profile: int) -> Any:
        """A new execution context of a profile."""
        context = self.engine.create_execution_context()
        if context is None:
            raise ValueError(f"there is no memory for the activations of {self.spec.file}")
        context.set_optimization_profile_async(profile, current_stream(self.device))
        return context

    def enqueue(self, context: Any, inputs: Tensors) -> dict[str, Tensor]:
        """The outputs for inputs from :meth:`aligned`, computed on the current stream."""
        for name, x in inputs.items():
            accepted = context.set_input_shape(name, tuple(x.shape))
            assert accepted, f"{self.spec.file} does not take {name} of shape {tuple(x.shape)}"
            context.set_tensor_address(name, self._address(x))
        missing = context.infer_shapes()
        assert not missing, f"{self.spec.file} lacks shapes of {missing}"
        outputs = {}
        for name, port in self.spec.outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            outputs[name] = torch.empty(shape, dtype=getattr(torch, port.dtype), device=self.device)
            context.set_tensor_address(name, self._address(outputs[name]))
        if not context.execute_async_v3(current_stream(self.device)):
            raise RuntimeError(f"TensorRT could not run {self.spec.file}; what it wrote above says why")
        return outputs

    def _address(self, x: Tensor) -> int:
        """The address of a tensor, also of an empty one."""
        return x.data_ptr() if x.numel() else self._empty.data_ptr()


class CapturedPlan:
    """A plan that captures a CUDA graph for every set of input shapes, each with its own context, and replays it."""

    def __init__(self, plan: Plan, capture: Capture) -> None:
        self.plan, self.capture = plan, capture
        self._graphs: dict[tuple[torch.Size, ...], tuple[dict[str, Tensor], Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors) -> Tensors:
        """The outputs of the engine, in new memory."""
        shapes = tuple(inputs[name].shape for name in self.plan.spec.inputs)
        with self._lock:
            if shapes not in self._graphs:
                if len(self._graphs) == MAX_GRAPHS:
                    return self.plan(inputs)
                self._graphs[shapes] = self._capture(inputs)
            static_inputs, replay = self._graphs[shapes]
            for name, static_input in static_inputs.items():
                static_input.copy_(inputs[name])
            return {name: y.clone() for name, y in replay().items()}

    def _capture(self, inputs: Tensors) -> tuple[dict[str, Tensor], Any]:
        """Static inputs, and the function that replays the engine on them."""
        static_inputs = {
            name: inputs[name].clone(memory_format=torch.contiguous_format) for name in self.plan.spec.inputs
        }
        context = self.plan.context(self.plan.profile({name: x.shape for name, x in static_inputs.items()}))
        return static_inputs, self.capture(lambda: self.plan.enqueue(context, static_inputs), self.plan.spec.file)


def current_stream(device: torch.device) -> int:
    """The handle of the stream on which PyTorch works on a device."""
    return torch.cuda.current_stream(device).cuda_stream


def _within(shape: Sequence[int], least: Sequence[int], usual: Sequence[int], most: Sequence[int]) -> bool:
    return all(low <= length <= high for low, length, high in zip(least, shape, most, strict=True))
