"""Defaults and options of a runtime, on a CPU and on described GPUs, and in an engine."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch

from syncflow.engine.batching import Limits
from syncflow.engine.components import Components
from syncflow.engine.cost.memory import weight_bytes
from syncflow.engine.engine import Engine, bundled_model
from syncflow.engine.exports import ExportLocations
from syncflow.engine.runtime import pytorch
from syncflow.engine.runtime.cuda_graphs.capture import eager_capture
from syncflow.engine.runtime.cuda_graphs.denoiser import CudaGraphDenoiser
from syncflow.engine.runtime.exported import without_weights
from syncflow.engine.runtime.pytorch import cast
from syncflow.engine.runtime.selection import choose as choose_module
from syncflow.engine.runtime.selection.choose import choose
from syncflow.engine.runtime.selection.settings import ComputeDevice, TorchOptions, resolve_settings
from syncflow.engine.types import Request

from ..conftest import CONFIGS
from ..exported import MODEL, exported, result, stand_in
from ..tape import TapeCapture

CPU = ComputeDevice("cpu")
A100, ADA, H100 = (ComputeDevice("cuda", capability) for capability in ((8, 0), (8, 9), (9, 0)))
T4 = ComputeDevice("cuda", (7, 5))
OFF = TorchOptions(cuda_graphs=False, overlap=False)
FP8_NEEDS = "fp8 needs a CUDA device of compute capability 8.9 or newer"


@pytest.mark.parametrize(
    ("runtime", "device", "one_way", "precision", "cuda_graphs", "overlap"),
    [
        ("auto", CPU, True, "float32", False, False),
        ("torch", CPU, True, "float32", False, False),
        ("auto", H100, True, "bfloat16", True, True),
        ("auto", H100, False, "bfloat16", True, False),
        ("auto", A100, True, "bfloat16", True, True),
        ("auto", T4, True, "float16", True, True),
        ("torch", H100, True, "bfloat16", False, False),
        ("compiled", H100, True, "bfloat16", False, False),
        ("torch-plain", T4, True, "float16", False, False),
        ("tensorrt", H100, True, "float32", False, False),
    ],
)
def test_defaults(runtime, device, one_way, precision, cuda_graphs, overlap):
    resolved = resolve_settings(runtime, "auto", TorchOptions(), device, one_way=one_way)
    assert resolved == (precision, TorchOptions(cuda_graphs, overlap))
    assert resolve_settings(runtime, *resolved, device, one_way=one_way) == resolved


def test_offloaded_blocks_need_no_graphs():
    _, resolved = resolve_settings("auto", "auto", TorchOptions(block_offload=True), H100, one_way=True)
    assert resolved == replace(OFF, block_offload=True)


@pytest.mark.parametrize("runtime", ["auto", "torch", "compiled"])
def test_a_setting_of_the_user_is_kept(runtime):
    on = TorchOptions(cuda_graphs=True, overlap=True, fp8=True, autotune=runtime == "compiled")
    for options in (on, OFF):
        assert resolve_settings(runtime, "float16", options, H100, one_way=True) == ("float16", options)


@pytest.mark.parametrize(
    ("runtime", "precision", "options", "device", "message"),
    [
        ("auto", "int8", {}, CPU, "precision is 'int8'; it must be one of auto, float32, bfloat16, float16"),
        ("auto", "auto", {"cuda_graphs": True}, CPU, "cuda_graphs needs a CUDA device; this is a CPU"),
        ("torch", "auto", {"overlap": True}, CPU, "overlap needs a CUDA device; this is a CPU"),
        ("torch", "auto", {"block_offload": True}, CPU, "block_offload needs a CUDA device; this is a CPU"),
        (
            "auto",
            "auto",
            {"block_offload": True, "fp8": True},
            H100,
            "block_offload goes without cuda_graphs, fp8 and the runtime compiled",
        ),
        (
            "compiled",
            "auto",
            {"block_offload": True},
            H100,
            "block_offload goes without cuda_graphs, fp8 and the runtime compiled",
        ),
        (
            "torch",
            "auto",
            {"overlap": True},
            H100,
            "overlap needs a model in which one tower reads nothing of the other; in this one both read",
        ),
        (
            "torch",
            "auto",
            {"fp8": True},
            A100,
            f"{FP8_NEEDS}; this is a CUDA device of compute capability 8.0",
        ),
        (
            "auto",
            "auto",
            {"fp8": True},
            CPU,
            f"{FP8_NEEDS}; this is a CPU",
        ),
        (
            "native",
            "auto",
            {"fp8": True},
            CPU,
            "fp8 is an option of the runtimes auto, torch, compiled; this one is native",
        ),
        ("torch", "auto", {"autotune": True}, H100, "autotune is an option of the runtime compiled; this one is torch"),
    ],
)
def test_an_option_that_does_not_apply_is_refused(runtime, precision, options, device, message):
    with pytest.raises(ValueError) as error:
        resolve_settings(runtime, precision, TorchOptions(**options), device, one_way=False)
    assert str(error.value) == message


@pytest.fixture
def gpu(monkeypatch):
    """Describes an H100 where there is a CPU, with tapes as CUDA graphs."""
    monkeypatch.setattr(choose_module, "compute_device", lambda device: H100)
    graphs = partial(CudaGraphDenoiser, capture=TapeCapture())
    monkeypatch.setattr(pytorch, "CudaGraphDenoiser", graphs)


@pytest.mark.parametrize("name", ["adaptor", "global_local"])
def test_auto_on_a_gpu(models, tmp_path, gpu, name):
    """It does not claim that anything was measured."""
    chosen = choose("auto", models[name], ExportLocations(tmp_path, "7" * 64))
    told = chosen.describe()
    assert (told["runtime"], told["dtype"], told["cuda_graphs"]) == ("torch", "bfloat16", True)
    assert told["overlap"] is chosen.overlap is chosen.denoiser.overlap is (name == "adaptor")
    assert told["why"] == "the default on a GPU, bfloat16; no exported graphs were verified to be faster"


def test_an_option_excludes_exports(models, tmp_path, gpu):
    chosen = choose("auto", models["adaptor"], ExportLocations(tmp_path, "7" * 64), options=TorchOptions(fp8=True))
    assert chosen.describe()["fp8"] is True
    assert chosen.others["tensorrt"] == "exported graphs do not have the option fp8"


@pytest.mark.parametrize("runtime", ["torch", "compiled"])
def test_named_runtimes_take_options(models, tmp_path, gpu, runtime):
    options = TorchOptions(cuda_graphs=True, overlap=True, autotune=runtime == "compiled")
    told = choose(runtime, models["adaptor"], ExportLocations(tmp_path, "7" * 64), options=options).describe()
    assert (told["cuda_graphs"], told["overlap"], told["dtype"]) == (True, True, "bfloat16")
    assert told["compile"] == ("max-autotune" if runtime == "compiled" else False)
    eager = choose(
        runtime, models["adaptor"], ExportLocations(tmp_path, "7" * 64), "float32", options=TorchOptions(overlap=True)
    )
    assert (eager.overlap, eager.describe()["overlap"], eager.describe()["cuda_graphs"]) == (True, True, False)


@pytest.mark.slow
def test_an_engine_passes_its_settings_on(gpu):
    """And samples with them: here the streams of a CPU are one, and the graphs are tapes."""
    components = Components.load(bundled_model())
    engine = Engine(components, runtime="auto", precision="auto", fp8=True)
    told = engine.describe()
    names = ("dtype", "cuda_graphs", "overlap", "fp8", "compile", "captured_graphs")
    assert [told[name] for name in names] == ["bfloat16", True, True, True, False, 0]
    clip = engine.generate("a ball", steps=1, seconds=0.5)
    assert clip.frames.shape[0] == 8
    assert engine.describe()["captured_graphs"] > 0
    eager = Engine(components, runtime="torch", cuda_graphs=False, overlap=False).describe()
    assert not any(eager[name] for name in ("cuda_graphs", "overlap", "fp8", "compile"))


@pytest.mark.slow
def test_batches_are_captured_at_the_start_within_a_budget(gpu, monkeypatch):
    """Those of the model's own clip, the largest first; a clip of its size then needs no capture."""
    monkeypatch.setattr(pytorch, "CudaGraphDenoiser", partial(CudaGraphDenoiser, capture=eager_capture))
    components, limits = Components.load(bundled_model()), Limits(batch=2)
    engine = Engine(components, runtime="auto", precision="float32", limits=limits, capture_seconds=600)
    told = engine.describe()
    assert told["captured_batches"] == [2, 1]
    batch = engine.backend.make_batch()
    batch.join([engine.backend.encode(engine.pipeline.prepare(Request(prompt, steps=3))) for prompt in ("a", "b")])
    while not batch.step():
        pass
    assert engine.describe()["captured_graphs"] == told["captured_graphs"] > 0
    prepared = engine.pipeline.prepare(Request("a ball"))
    least = engine.memory.graphs(prepared.sequence, prepared.plan, [1], overlap=True)
    assert engine.backend.capture(2, 600, least.total - 1) == ()
    assert engine.backend.capture(2, 0, 1 << 62) == ()
    engine.backend.deterministic = True
    assert engine.backend.capture(2, 600, least.total) == (1,)


@pytest.mark.slow
def test_an_engine_splits_a_batch_over_graphs(gpu, monkeypatch):
    """16 requests are 32 rows of text guidance, and a graph holds 16."""
    engine = Engine(Components.load(bundled_model()), runtime="auto", limits=Limits(batch=16))
    monkeypatch.setattr(CudaGraphDenoiser, "_record_read", None)
    job = engine.backend.encode(engine.pipeline.prepare(Request("a ball", steps=1, seconds=0.25, video_lead=0.0)))
    batch = engine.backend.make_batch()
    batch.join([job] * 16)
    assert [len(one.jobs) for one in batch.batches] == [8, 8]
    assert batch.step() == list(range(16))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["auto", "torch", "compiled", "torch-plain"])
def test_weights_in_another_type_are_let_go(gpu, runtime):
    """Of a model in half precision no float32 weights stay beside it."""
    components = Components.load(bundled_model())
    weights = [weakref.ref(parameter) for parameter in components.ddit.parameters()]
    bytes_before = sum(parameter.nbytes for parameter in components.ddit.parameters())
    engine = Engine(components, runtime=runtime, precision="auto")
    del components
    gc.collect()
    assert not any(weight() is not None for weight in weights)
    assert {parameter.dtype for parameter in engine.components.ddit.parameters()} == {torch.bfloat16}
    assert sum(parameter.nbytes for parameter in engine.components.ddit.parameters()) == bytes_before // 2
    assert engine.denoiser.null_text is engine.components.ddit.null_text


@pytest.mark.slow
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_fp8_lets_go_of_the_weights_that_it_has_as_codes(gpu, monkeypatch, cuda_graphs):
    monkeypatch.setattr(pytorch, "CudaGraphDenoiser", partial(CudaGraphDenoiser, capture=eager_capture))
    components = Components.load(bundled_model())
    components = replace(components, ddit=cast(components.ddit, torch.bfloat16))
    half, video = weight_bytes(components), components.ddit.video
    blocks = *video.spatial_blocks, *video.temporal_blocks
    linears = [linear for block in blocks for linear in (block.attn.qkv, block.mlp.fc1)]
    numbers, channels = (sum(f(linear.weight) for linear in linears) for f in (torch.numel, len))
    weights = [weakref.ref(linear.weight) for linear in linears]
    engine = Engine(components, runtime="torch", precision="bfloat16", fp8=True, cuda_graphs=cuda_graphs)
    del components, video, blocks, linears
    gc.collect()
    assert not any(weight() is not None for weight in weights)
    assert engine.describe()["weight_bytes"] == half - numbers + 4 * channels  # codes, and a scale for each channel
    assert engine.memory.weights == engine.describe()["weight_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "auto"])
def test_no_weights_are_held_beside_those_of_graphs(monkeypatch, tmp_path, runtime):
    stand_in(monkeypatch, tmp_path / "cache")
    components = replace(Components.load(bundled_model()), digest=MODEL)
    whole = weight_bytes(components)
    names = {weakref.ref(parameter): name for name, parameter in components.ddit.named_parameters()}
    engine = Engine(components, runtime=runtime, folder=exported(tmp_path, result("onnxruntime")))
    del components
    gc.collect()
    assert engine.describe()["runtime"] == "onnxruntime"
    assert {name for weight, name in names.items() if weight() is not None} <= {"video.y_embedder.y_embedding"}
    assert engine.denoiser.null_text.data_ptr() == engine.components.ddit.null_text.data_ptr()
    assert [tensor.is_meta for tensor in engine.components.ddit.parameters()].count(False) == 1
    assert engine.describe()["weight_bytes"] == engine.memory.weights == whole  # the library holds as many


def test_graphs_in_half_precision_count_half(models):
    """Their weights by the number, and what no graph holds as it is."""
    for name in ("adaptor", "global_local"):
        model = models[name]
        shapes = without_weights(model, torch.float16, torch.device("cpu"))
        held = {name for name, parameter in shapes.named_parameters() if not parameter.is_meta}
        assert held == {"video.y_embedder.y_embedding", *["bridge.silence"] * (name == "global_local")}
        assert {shapes.get_parameter(name).dtype for name in held} == {torch.float32}
        numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
        expected = sum(count * (4 if name in held else 2) for name, count in numbers.items())
        assert sum(parameter.nbytes for parameter in shapes.parameters()) == expected
        again = without_weights(shapes, torch.float16, torch.device("cpu"))
        assert again.null_text.data_ptr() == model.null_text.data_ptr()


def test_an_engine_in_the_type_of_its_model_makes_no_copy():
    components = Components.load(bundled_model())
    assert Engine(components, precision="float32").components.ddit is components.ddit


def test_an_engine_on_a_cpu_refuses_what_needs_a_gpu():
    components = Components.load(bundled_model())
    for option in ("cuda_graphs", "overlap", "fp8"):
        with pytest.raises(ValueError, match=f"{option} needs a CUDA device"):
            Engine(components, **{option: True})


def test_models_of_every_bridge_resolve(models, tmp_path):
    for name in CONFIGS:
        told = choose("torch", models[name], ExportLocations(tmp_path, "7" * 64)).describe()
        assert (told["dtype"], told["cuda_graphs"], told["overlap"]) == ("float32", False, False)
