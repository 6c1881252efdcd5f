"""A stand-in for the module ``tensorrt``: the calls that building and running make of it, with what it demands of them.

Its engines are ONNX files with their profiles, computed by ONNX Runtime on the addresses that they are given. Names,
arguments and results are those of the Python bindings of TensorRT 10.16 and 11.4.
"""

from __future__ import annotations

import ctypes
import enum
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

__version__ = "11.4.0.106"
ALIGNMENT = 64  # what PyTorch gives on a CPU; 256 on a GPU


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class Logger:
    WARNING = 2

    def __init__(self, severity: int) -> None:
        assert severity == Logger.WARNING


class HostMemory(bytes):
    """A buffer."""


class TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"timed "


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: list[int], opt: list[int], max: list[int]) -> None:
        assert len(min) == len(opt) == len(max)
        assert all(0 <= a <= b <= c for a, b, c in zip(min, opt, max, strict=True)), (input, min, opt, max)
        self.shapes[input] = [list(min), list(opt), list(max)]


class BuilderConfig:
    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.profiles: list[OptimizationProfile] = []
        self.workspace = 0
        self.cache: TimingCache | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.workspace = pool_size

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.remove(flag)

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache:
        assert self.cache is not None
        return self.cache


class Network:
    model: onnx.ModelProto


class Builder:
    def __init__(self, logger: Logger) -> None:
        pass

    def create_network(self, flags: int = 0) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None:
        free = {value.name: _shape(value) for value in network.model.graph.input}
        assert config.profiles and config.workspace and not config.flags
        for profile in config.profiles:
            assert profile.shapes.keys() == free.keys()
            for name, shape in free.items():
                spans = zip(shape, *profile.shapes[name], strict=True)
                assert all(n in ("", low) or isinstance(n, str) for n, low, _, _ in spans), name
        profiles = json.dumps([profile.shapes for profile in config.profiles]).encode()
        return HostMemory(len(profiles).to_bytes(8) + profiles + network.model.SerializeToString())


class OnnxParser:
    def __init__(self, network: Network, logger: Logger) -> None:
        self.network = network
        self.error: str = ""

    def parse_from_file(self, model: str) -> bool:
        self.network.model = onnx.load(model)
        known = not any(node.op_type == "Det" for node in self.network.model.graph.node)
        self.error = "" if known else "no importer registered for op: Det"
        return known

    @property
    def num_errors(self) -> int:
        return 1 if self.error else 0

    def get_error(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(desc=lambda: self.error, node_name=lambda: "det")


class Runtime:
    def __init__(self, logger: Logger) -> None:
        pass

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        length = int.from_bytes(serialized_engine[:8])
        try:
            profiles = json.loads(serialized_engine[8 : 8 + length])
        except ValueError:
            return None
        return Engine(serialized_engine[8 + length :], profiles)


class Engine:
    def __init__(self, model: bytes, profiles: list[dict[str, list[list[int]]]]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(model).graph
        self.inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.outputs = {value.name: value.type.tensor_type.elem_type for value in graph.output}
        self.profiles = profiles
        self.contexts: list[Context] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile_index][name]]

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    """Computes as soon as the shapes are known, and writes when it is enqueued."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.given: dict[str, np.ndarray] = {}
        self.streams: list[int] = []

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.active_optimization_profile = profile_index
        self.shapes.clear()
        self.addresses.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profiles[self.active_optimization_profile][name]
        self.given = {}
        self.shapes[name] = shape
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory and memory % ALIGNMENT == 0, f"{name} lies at {memory}"
        self.addresses[name] = memory
        return name in self.engine.inputs or name in self.engine.outputs

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self.engine.inputs if name not in self.shapes]
        if not missing:
            feed = {name: self._read(name) for name in self.engine.inputs}
            self.given = dict(zip(self.engine.outputs, self.engine.session.run(None, feed), strict=True))
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.given[name].shape if self.given else (-1,)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.addresses.keys() == {*self.engine.inputs, *self.engine.outputs}
        self.infer_shapes()
        for name, array in self.given.items():
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)
        self.streams.append(stream_handle)
        return True

    def _read(self, name: str) -> np.ndarray:
        shape, kind = self.shapes[name], onnx.helper.tensor_dtype_to_np_dtype(self.engine.inputs[name])
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer(ctypes.string_at(self.addresses[name], size), kind).reshape(shape)


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [length.dim_param or length.dim_value for length in value.type.tensor_type.shape.dim]
