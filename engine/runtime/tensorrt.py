"""TensorRT engines on tensors of PyTorch: nothing is copied that lies as TensorRT wants it, and nothing waits.

Every optimisation profile that is used has an execution context of its own on every stream that it is used on: contexts
hold the memory of what is under way. :class:`Recorded` replays a CUDA graph for every set of input shapes.
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
from .exported import Tensors
from .sessions import Load, Run, Sessions

SINCE = (10, 15)
ALIGNMENT = 256  # bytes, of the address of every tensor
RECORDINGS = 32  # most sets of shapes of a graph that are recorded

Shapes = Mapping[str, Sequence[int]]


def library() -> Any:
    """The module ``tensorrt``. Raises ``ValueError`` where it is missing or too old."""
    try:
        import tensorrt
    except ImportError:
        raise ValueError("the runtime tensorrt needs tensorrt; install it with `pip install syncflow[gpu]`") from None
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < SINCE:
        least = ".".join(map(str, SINCE))
        raise ValueError(f"the runtime tensorrt needs TensorRT {least} or newer, and this is {tensorrt.__version__}")
    return tensorrt


def machine(device: torch.device) -> str:
    """What an engine that is built here needs of another machine: the same kind of GPU."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} sm_{major}{minor}"


def sessions(export: Export, device: torch.device, *, recorded: bool = False) -> Sessions:
    """Engines on a GPU; ``recorded`` as CUDA graphs.

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
        return Recorded(plan, CudaCapture(device)) if recorded else plan

    typed: Load = load
    return Sessions(export, typed, {"tensorrt": here, "machine": export.machine, "recorded": recorded})


class Plan:
    """An engine as a function of named tensors on ``device``."""

    def __init__(self, engine: Any, spec: GraphSpec, device: torch.device) -> None:
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        if strange := names ^ {*spec.inputs, *spec.outputs}:
            raise ValueError(f"{spec.file} has other tensors than its manifest says: {', '.join(sorted(strange))}")
        self.engine, self.spec, self.device = engine, spec, device
        self.profiles = [
            {name: engine.get_tensor_profile_shape(name, i) for name in spec.inputs}
            for i in range(engine.num_optimization_profiles)
        ]
        self._contexts: dict[tuple[int, int], Any] = {}
        self._nothing = torch.empty(ALIGNMENT, dtype=torch.uint8, device=device)
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors) -> Tensors:
        """What the engine gives, on the current stream of this thread."""
        with self._lock:
            held = self.held(inputs)
            stream = current_stream(self.device)
            profile = self.profile({name: x.shape for name, x in held.items()})
            if (profile, stream) not in self._contexts:
                self._contexts[profile, stream] = self.context(profile)
            return self.enqueue(self._contexts[profile, stream], held)

    def held(self, inputs: Tensors) -> dict[str, Tensor]:
        """The inputs, each without gaps and where an address may be."""
        held = {name: inputs[name].contiguous() for name in self.spec.inputs}
        return {name: x.clone() if x.data_ptr() % ALIGNMENT else x for name, x in held.items()}

    def profile(self, shapes: Shapes) -> int:
        """The first profile that was built for such shapes. Raises ``ValueError`` where there is none."""
        for i, spans in enumerate(self.profiles):
            if all(_within(shapes[name], *spans[name]) for name in shapes):
                return i
        name = next(name for name in shapes if not any(_within(shapes[name], *spans[name]) for spans in self.profiles))
        built = " or ".join(f"{tuple(least)} to {tuple(most)}" for least, _, most in (p[name] for p in self.profiles))
        raise ValueError(f"{self.spec.file} was built for {name} of shape {built}, and it is {tuple(shapes[name])}")

    def context(self, profile: int) -> Any:
        """A new execution context of a profile."""
        context = self.engine.create_execution_context()
        if context is None:
            raise ValueError(f"there is no memory for the activations of {self.spec.file}")
        context.set_optimization_profile_async(profile, current_stream(self.device))
        return context

    def enqueue(self, context: Any, held: Tensors) -> dict[str, Tensor]:
        """What the engine gives of inputs that are :meth:`held`, on the current stream."""
        for name, x in held.items():
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
        """Of a tensor; empty ones have one too."""
        return x.data_ptr() if x.numel() else self._nothing.data_ptr()


class Recorded:
    """A plan whose every set of input shapes is recorded once, with a context of its own, and replayed."""

    def __init__(self, plan: Plan, capture: Capture) -> None:
        self.plan, self.capture = plan, capture
        self._recorded: dict[tuple[torch.Size, ...], tuple[dict[str, Tensor], Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors) -> Tensors:
        """What the engine gives, in memory of its own."""
        shapes = tuple(inputs[name].shape for name in self.plan.spec.inputs)
        with self._lock:
            if shapes not in self._recorded:
                if len(self._recorded) == RECORDINGS:
                    return self.plan(inputs)
                self._recorded[shapes] = self._record(inputs)
            places, replay = self._recorded[shapes]
            for name, place in places.items():
                place.copy_(inputs[name])
            return {name: y.clone() for name, y in replay().items()}

    def _record(self, inputs: Tensors) -> tuple[dict[str, Tensor], Any]:
        """Inputs that stay where they are, and what replays the engine on them."""
        places = {name: inputs[name].clone(memory_format=torch.contiguous_format) for name in self.plan.spec.inputs}
        context = self.plan.context(self.plan.profile({name: x.shape for name, x in places.items()}))
        return places, self.capture(lambda: self.plan.enqueue(context, places), self.plan.spec.file)


def current_stream(device: torch.device) -> int:
    """The handle of the stream on which PyTorch works on a device."""
    return torch.cuda.current_stream(device).cuda_stream


def _within(shape: Sequence[int], least: Sequence[int], usual: Sequence[int], most: Sequence[int]) -> bool:
    return all(low <= length <= high for low, length, high in zip(least, shape, most, strict=True))
