"""TensorRT: what it takes of a graph, graphs in that form, profiles, and engines as a stand-in builds and runs them."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.exports import Axis, Export, TensorSpec
from syncflow.engine.package import sha256
from syncflow.engine.runtime import tensorrt
from syncflow.engine.runtime.cuda_graphs import capture
from syncflow.engine.runtime.exported import graph_names
from syncflow.engine.runtime.selection.libraries import load
from syncflow.engine.sampling.loop import sample
from syncflow.export.graphs import denoiser_graphs
from syncflow.export.tensorrt.profiles import bounded, profiles_of, shapes_of
from syncflow.export.writing import write_export

from ..engine.plain import HEARING_JOBS, JOBS, TOLERANCE
from . import stand_in_tensorrt as stand_in
from .conftest import BRIDGES
from .runtimes import onnxruntime

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnx_ir", reason="onnx_ir is not installed")

from syncflow.export.tensorrt import building, operators  # noqa: E402 (after the libraries that they need)
from syncflow.export.tensorrt.building import build  # noqa: E402
from syncflow.export.tensorrt.lowering import lower  # noqa: E402
from syncflow.export.tensorrt.support import faults_of  # noqa: E402

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def graph(tmp_path):
    """Writes a graph in ONNX's own language to a file."""

    def write(text: str, opset: int = 23, imports: str = "") -> Path:
        header = f'<ir_version: 10, opset_import: ["" : {opset}{imports}]>'
        path = tmp_path / "graph.onnx"
        onnx.save(onnx.parser.parse_model(f"{header} graph {text}"), path)
        return path

    return write


@pytest.mark.parametrize("bridge", BRIDGES)
def test_tensorrt_takes_the_graphs_of_every_bridge(exports, bridge):
    export = exports[bridge]
    found = {name: faults_of(export.path / spec.file) for name, spec in export.graphs.items()}
    assert not any(found.values()), found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(float[N] x) => (int64[1, M] y) { y = NonZero(x) }", "is a NonZero, whose output is as long as its data"),
        ("(float[N, 2, 2] x) => (float[N] y) { y = Det(x) }", r"is a Det, which TensorRT 10.15 does not take"),
        ("(double[N] x) => (double[N] y) { y = Exp(x) }", "is an Exp of float64; TensorRT takes bfloat16, float16"),
        ("(string[N] x) => (string[N] y) { y = Identity(x) }", "is an Identity of string"),
        ("(uint8[N, M] x) => (uint8[M, N] y) { y = Transpose(x) }", "is a Transpose of uint8"),
        (
            "(float[N] x) => (float[N] y) { b = Cast <to = 2> (x) y = Cast <to = 1> (b) }",
            "of uint8, which TensorRT takes in inputs and outputs of the graph alone",
        ),
        (
            "(float[N, M] x, int64[1] axes) => (float[N, M] y) { y = ReduceSum (x, axes) }",
            "is a ReduceSum with a computed input 1; TensorRT takes a constant there",
        ),
        (
            "(float[N] x, int64[1] shape) => (float[M] y) { y = Reshape (x, shape) }",
            "is a Reshape whose length follows from what 'shape' holds",
        ),
        (
            "(float[N] x, float[1] z) => (float[M] y) { l = Cast <to = 7> (z) y = Expand (x, l) }",
            "is an Expand whose length follows from what 'z' holds",
        ),
        (
            '(float[N] x, int64[M, 1] i, float[M] u) => (float[N] y) { y = ScatterND <reduction = "add"> (x, i, u) }',
            "is a ScatterND with reduction 'add'; TensorRT takes 'none'",
        ),
        (
            "(float[N, 4] x, float[4] s) => (float[N, 4] y, float[N, 1] m) { y, m = LayerNormalization (x, s) }",
            "is a LayerNormalization with 2 outputs; TensorRT gives 1",
        ),
        (
            "(float[1, 2, 4] q) => (float[1, 2, 4] y) { y = Attention <q_num_heads = 1, kv_num_heads = 1> (q, q, q) }",
            "is an Attention whose input 0 has 3 axes; TensorRT takes 4",
        ),
        (
            "(float[A,B,C,D,E,F,G,H,I] x) => (float[A,B,C,D,E,F,G,H,I] y) { y = Exp (x) }",
            "is an Exp of 9 axes; TensorRT takes at most 8",
        ),
    ],
)
def test_what_tensorrt_does_not_take(graph, text, said):
    """One sentence for each fault, with the node."""
    faults = faults_of(graph(text))
    assert any(said in fault for fault in faults), faults
    assert all(fault.startswith("node ") and "\n" not in fault for fault in faults)


def test_other_operators_and_operator_sets(graph):
    foreign = graph("(float[N] x) => (float[N] y) { y = com.acme.Blur (x) }", imports=', "com.acme" : 1')
    (fault,) = faults_of(foreign)
    assert "is a Blur of com.acme; TensorRT takes standard operators" in fault
    (fault,) = faults_of(graph("(float[N] x) => (float[N] y) { y = Exp (x) }", opset=25))
    assert fault == "graph.onnx is in operator set 25; TensorRT 10.15 takes 9 to 24"


def test_lengths_may_be_computed_from_lengths(graph):
    text = """(float[N, M] x) => (float[K] y)
    { n = Shape <start = 0, end = 1> (x)  m = Shape <start = 1, end = 2> (x)  k = Mul (n, m)  y = Reshape (x, k) }"""
    assert faults_of(graph(text)) == []


def test_the_table_knows_its_operators():
    for name in (*operators.TYPES, *operators.DATA_DEPENDENT):
        schema = onnx.defs.get_schema(name, max(operators.OPERATOR_SETS))
        for i in operators.RESTRICTIONS.get(name, operators.Restriction()).constant:
            assert i < len(schema.inputs), name
        assert operators.RESTRICTIONS.get(name, operators.Restriction()).attributes.keys() <= schema.attributes.keys()
        assert all(i < len(schema.inputs) for i in operators.LENGTHS.get(name, ()))
    assert {*operators.RESTRICTIONS, *operators.LENGTHS} <= operators.TYPES.keys()


@given(perms=st.lists(st.permutations(range(3)), min_size=1, max_size=3), data=st.data())
@settings(max_examples=20)
def test_bytes_go_to_the_edges_and_the_numbers_stay(tmp_path_factory, perms, data):
    """Of any changes of layout after the last Cast, and of lengths asked of bytes."""
    turns = "".join(f"b{i + 1} = Transpose <perm = {[*perm]}> (b{i}) " for i, perm in enumerate(perms))
    text = f"""<ir_version: 10, opset_import: ["" : 23]> graph (uint8[A, B, C] x) => (uint8[D, E, F] y)
    <float half = {{0.5}}>
    {{ n = Shape (x)  f = Cast <to = 1> (x)  g = Reshape (f, n)  h = Mul (g, half)
       b0 = Cast <to = 2> (h) {turns} y = Identity (b{len(perms)}) }}"""
    folder = tmp_path_factory.mktemp("lowered")
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    onnx.save(model, folder / "before.onnx")
    shutil.copy(folder / "before.onnx", folder / "after.onnx")
    lower(folder / "after.onnx")
    assert faults_of(folder / "before.onnx")
    assert faults_of(folder / "after.onnx") == []
    onnx.checker.check_model(folder / "after.onnx", full_check=True)
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    frames = {"x": torch.from_numpy(np.random.default_rng(0).integers(0, 255, shape, np.uint8))}
    before, after = (onnxruntime(folder / f"{when}.onnx")(frames) for when in ("before", "after"))
    assert torch.equal(before[0], after[0])


@given(
    st.dictionaries(
        st.sampled_from("RPCKTHWA"),
        st.builds(
            lambda least, more, most: Axis(least, None if most is None else least + more + most, least + more),
            st.integers(0, 4),
            st.integers(0, 40),
            st.none() | st.integers(0, 200),
        ),
        min_size=1,
    )
)
def test_profiles_hold_the_usual_lengths_and_lie_within_the_limits(axes):
    profiles = profiles_of(axes)
    for profile in profiles:
        least, usual, most = shapes_of(TensorSpec("float32", (*axes, 7)), profile)
        assert usual == [*(axis.usual for axis in axes.values()), 7]
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        assert all(axis.most is None or profile[name].most <= axis.most for name, axis in axes.items())
    for name, axis in bounded(axes).items():
        assert all(axis.least <= p[name].least and p[name].most <= axis.most for p in profiles)
    own = [axis for axis in axes.values() if axis.most is not None]
    assert all(profiles[0][name].least == axis.usual for name, axis in axes.items() if axis in own)


@pytest.fixture(scope="module")
def library() -> Iterator[None]:
    """The stand-in for TensorRT, on the CPU."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "tensorrt", stand_in)
        patched.setattr(tensorrt, "ALIGNMENT", stand_in.ALIGNMENT)
        patched.setattr(tensorrt, "machine", lambda device: "a GPU sm_90")
        patched.setattr(tensorrt, "current_stream", lambda device: 7)
        patched.setattr(tensorrt, "CudaCapture", lambda device: capture.eager_capture)
        yield


@pytest.fixture(scope="module")
def engines(exports, library, tmp_path_factory) -> dict[str, Export]:
    """The small models as engines of the stand-in."""
    return {bridge: _build(export, tmp_path_factory.mktemp(bridge)) for bridge, export in exports.items()}


def _build(export: Export, folder: Path) -> Export:
    shutil.copy(export.path / "constants.safetensors", folder)
    graphs = {}
    for name, spec in export.graphs.items():
        plan = build(export.path / spec.file, spec.inputs, profiles_of(spec.axes), folder / "timings")
        (folder / f"{name}.plan").write_bytes(plan)
        graphs[name] = dataclasses.replace(spec, file=f"{name}.plan", axes=bounded(spec.axes))
    (folder / "timings").unlink()
    built = dataclasses.replace(
        export,
        path=folder,
        format="tensorrt",
        device="cuda",
        graphs=graphs,
        machine="a GPU sm_90",
        versions={"tensorrt": stand_in.__version__},
        checksums={file.name: sha256(file) for file in folder.iterdir()},
    )
    built.write()
    return built


@pytest.fixture(scope="module")
def denoisers(engines, models):
    class Loaded(dict):
        def __missing__(self, key):
            bridge, runtime = key
            self[key] = load(runtime, engines[bridge], models[bridge].ddit, "float32")
            return self[key]

    return Loaded()


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-cuda-graphs"])
@pytest.mark.parametrize("bridge", BRIDGES)
@given(data=st.data())
@settings(max_examples=4)
def test_sampling_through_engines_is_sampling(denoisers, models, runtime, bridge, data):
    """Rows, tasks and guidance of any mix, in the profiles that are built and on the addresses that are allowed."""
    jobs = data.draw(st.lists(JOBS if bridge == "adaptor" else HEARING_JOBS, min_size=1, max_size=3))
    through, plain = sample(denoisers[bridge, runtime], jobs), sample(models[bridge].ddit, jobs)
    torch.testing.assert_close(through.video, plain.video, **TOLERANCE)
    torch.testing.assert_close(through.audio, plain.audio, **TOLERANCE)


def test_the_manifest_of_engines_is_read_again(engines, models):
    export = engines["adaptor"]
    assert Export.read(export.path, models["adaptor"].digest).check() == export
    assert tuple(export.graphs) == graph_names(models["adaptor"].config.ddit)


def test_timings_are_read_and_kept(engines, exports, tmp_path):
    spec = exports["adaptor"].graphs["prepare_times"]
    for times in (1, 2):
        build(exports["adaptor"].path / spec.file, spec.inputs, profiles_of(spec.axes), tmp_path / "of" / "gpu")
        assert (tmp_path / "of" / "gpu").read_bytes() == b"timed " * times


def test_a_graph_that_the_parser_refuses(library, graph, tmp_path):
    file = graph("(float[N, 2, 2] x) => (float[N] y) { y = Det (x) }")
    with pytest.raises(
        ValueError, match="TensorRT does not take graph: node 'det', no importer registered for op: Det"
    ):
        build(file, {}, [], tmp_path / "timings")


@pytest.fixture
def times(engines, models):
    """The engine of a schedule's times, as a plan of its own."""
    return load("tensorrt", engines["adaptor"], models["adaptor"].ddit, "float32").run


def test_every_stream_has_a_context_of_its_own(engines, models, monkeypatch):
    spec = engines["adaptor"].graphs["prepare_times"]
    engine = stand_in.Runtime(None).deserialize_cuda_engine((engines["adaptor"].path / spec.file).read_bytes())
    plan = tensorrt.Plan(engine, spec, CPU)
    inputs = {"t": torch.rand(3), "fps": torch.full((3,), 8.0)}
    for stream in (7, 8, 7):
        monkeypatch.setattr(tensorrt, "current_stream", lambda device, stream=stream: stream)
        plan(inputs)
    assert [context.streams for context in engine.contexts] == [[7, 7], [8]]


def test_inputs_lie_where_they_may(times):
    """Views between two addresses that are allowed, and with gaps."""
    t, fps = torch.rand(5), torch.full((4, 2), 8.0)
    found = times("prepare_times", {"t": t[1:], "fps": fps[:, 1]})
    plain = times("prepare_times", {"t": t[1:].clone(), "fps": fps[:, 1].clone()})
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_recordings_are_bounded_and_do_not_share_results(engines, models, monkeypatch):
    monkeypatch.setattr(tensorrt, "MAX_GRAPHS", 2)
    run = load("tensorrt-cuda-graphs", engines["adaptor"], models["adaptor"].ddit, "float32").run
    plain = load("tensorrt", engines["adaptor"], models["adaptor"].ddit, "float32").run
    batches = [{"t": torch.rand(count), "fps": torch.full((count,), 8.0)} for count in (2, 3, 2, 4, 3)]
    found = [run("prepare_times", inputs) for inputs in batches]
    for inputs, outputs in zip(batches, found, strict=True):
        for name, exact in plain("prepare_times", inputs).items():
            assert torch.equal(outputs[name], exact)


def test_lengths_without_a_profile(times):
    with pytest.raises(ValueError, match=r"prepare_times.plan was built for t of shape \(1,\) to \(4096,\), and it is"):
        times("prepare_times", {"t": torch.rand(5000), "fps": torch.rand(5000)})


def test_engines_of_another_place(engines, models, monkeypatch, tmp_path):
    export, model = engines["adaptor"], models["adaptor"].ddit
    with pytest.raises(ValueError, match=r"was built by TensorRT 10.16.0, and this is 11.4.0.106; export it anew"):
        load("tensorrt", dataclasses.replace(export, versions={"tensorrt": "10.16.0"}), model, "float32")
    with pytest.raises(ValueError, match=r"was built for another sm_80, and this is a GPU sm_90; export it anew"):
        load("tensorrt", dataclasses.replace(export, machine="another sm_80"), model, "float32")
    shutil.copytree(export.path, tmp_path / "changed")
    (tmp_path / "changed" / "prepare_times.plan").write_bytes(b"other")
    with pytest.raises(ValueError, match="does not match its checksum"):
        load("tensorrt", dataclasses.replace(export, path=tmp_path / "changed"), model, "float32")
    strange = dataclasses.replace(
        export.graphs["prepare_times"], outputs={"block_modulation": TensorSpec("float32", ("K",))}
    )
    with pytest.raises(ValueError, match="has other tensors than its manifest says: time_embedding, time_token"):
        engine = stand_in.Runtime(None).deserialize_cuda_engine((export.path / strange.file).read_bytes())
        tensorrt.Plan(engine, strange, CPU)


def test_a_plan_that_cannot_be_read(engines, models, tmp_path):
    shutil.copytree(engines["adaptor"].path, tmp_path / "copy")
    broken = tmp_path / "copy" / "prepare_times.plan"
    broken.write_bytes(bytes(7) + b"\x04nono")
    checksums = {**engines["adaptor"].checksums, broken.name: sha256(broken)}
    export = dataclasses.replace(engines["adaptor"], path=tmp_path / "copy", checksums=checksums)
    run = load("tensorrt", export, models["adaptor"].ddit, "float32").run
    with pytest.raises(ValueError, match=r"TensorRT cannot read .*prepare_times.plan"):
        run("prepare_times", {"t": torch.rand(2), "fps": torch.rand(2)})


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (None, r"needs tensorrt; install it with `pip install syncflow\[gpu\]`"),
        ("10.14.1.48", "needs TensorRT 10.15 or newer, and this is 10.14.1.48"),
    ],
)
def test_no_library(monkeypatch, version, said):
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in if version else None)
    monkeypatch.setattr(stand_in, "__version__", version)
    with pytest.raises(ValueError, match=said):
        tensorrt.library()


def test_engines_are_built_for_a_gpu(models, tmp_path):
    with pytest.raises(ValueError, match="TensorRT builds engines for a GPU; export for cuda"):
        write_export(models["adaptor"], tmp_path, "tensorrt")


def test_a_graph_is_exported_checked_and_built(exports, models, library, tmp_path, monkeypatch):
    """The file that is exported is the one of the small model, which takes a second export no further."""
    export, parts = exports["adaptor"], models["adaptor"]

    def export_graph(module, inputs, dynamic, outputs, path):
        assert (tuple(inputs), outputs) == (("t", "fps"), ("block_modulation", "time_embedding", "time_token"))
        shutil.copy(export.path / path.name, path)

    monkeypatch.setattr(building, "export_graph", export_graph)
    monkeypatch.setattr(building, "machine", tensorrt.machine)
    monkeypatch.setenv("SYNCFLOW_CACHE", str(tmp_path / "cache"))
    (times,) = (graph for graph in denoiser_graphs(parts.ddit, parts.config) if graph.name == "prepare_times")
    outputs = building.build_graph(times, tmp_path / "prepare_times.plan", parts.config)
    assert outputs["time_token"] == TensorSpec("float32", ("K", 16))
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["prepare_times.plan"]
    assert [file.name for file in (tmp_path / "cache" / "tensorrt").iterdir()] == ["a-GPU-sm_90-11.4.0.106.timings"]
    monkeypatch.setattr(building, "faults_of", lambda path: ["node 'x' is a NonZero"])
    with pytest.raises(ValueError, match="TensorRT does not take prepare_times: node 'x' is a NonZero"):
        building.build_graph(times, tmp_path / "other.plan", parts.config)
    assert not (tmp_path / "other.plan").exists()
