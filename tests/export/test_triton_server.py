"""A model repository: its configurations by Triton's schema, its graphs, and its backend on a stand-in of Triton."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from syncflow import Engine
from syncflow.cli import main
from syncflow.engine.batching import Full
from syncflow.engine.engine import bundled_model
from syncflow.engine.exports import Export, GraphSpec, TensorSpec
from syncflow.engine.media import load_clip
from syncflow.engine.package import open_package, sha256
from syncflow.export.triton_server.config import TYPES, graph_config
from syncflow.export.triton_server.fields import INPUTS, OUTPUTS
from syncflow.export.triton_server.repository import NAME, write_repository

from . import stand_in_triton as stand_in
from .conftest import BRIDGES

pytestmark = pytest.mark.slow

PROMPT = "a large red rubber ball bounces on a wooden floor"
KINDS = {"TYPE_STRING": np.object_, "TYPE_UINT64": np.uint64, "TYPE_INT32": np.int32, "TYPE_FP32": np.float32}


@pytest.fixture(scope="session")
def schema() -> ModuleType:
    """Triton's own messages, without the client around them."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    (folder,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    return _loaded("triton_model_config", Path(folder) / "grpc" / "model_config_pb2.py")


@pytest.fixture(scope="module")
def repositories(exports, tmp_path_factory) -> dict[str, Path]:
    """The bundled model, with the graphs of every small model beside it."""
    folder, package = tmp_path_factory.mktemp("repositories"), open_package(bundled_model())
    for bridge, export in exports.items():
        names = write_repository(package, export, folder / bridge)
        assert names == [NAME, *(f"{NAME}_{graph}" for graph in export.graphs)]
    return {bridge: folder / bridge for bridge in exports}


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parsed(schema: ModuleType, model: Path) -> Any:
    text_format = pytest.importorskip("google.protobuf.text_format")
    return text_format.Parse((model / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.mark.parametrize("bridge", BRIDGES)
def test_graphs_are_configured_as_they_are(schema, repositories, exports, bridge):
    for graph in exports[bridge].graphs:
        model = repositories[bridge] / f"{NAME}_{graph}"
        config = _parsed(schema, model)
        assert (config.name, config.backend, config.max_batch_size) == (model.name, "onnxruntime", 0)
        found = onnx.load(model / "1" / config.default_model_filename).graph
        for stated, values in ((config.input, found.input), (config.output, found.output)):
            assert [tensor.name for tensor in stated] == [value.name for value in values]
            for tensor, value in zip(stated, values, strict=True):
                kind = value.type.tensor_type
                assert [*tensor.dims] == [-1 if n.dim_param else n.dim_value for n in kind.shape.dim]
                dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
                assert schema.DataType.Name(tensor.data_type) == TYPES[dtype]


def test_the_pipeline_is_configured_as_its_backend_wants(schema, repositories):
    config = _parsed(schema, repositories["adaptor"] / NAME)
    assert (config.name, config.backend, config.max_batch_size) == (NAME, "python", 0)
    assert [tensor.name for tensor in config.input] == [*INPUTS]
    assert [tensor.name for tensor in config.input if not tensor.optional] == ["prompt"]
    assert [tensor.name for tensor in config.output] == [*OUTPUTS]
    for tensor in (*config.input, *config.output):
        field = (INPUTS | OUTPUTS)[tensor.name]
        assert (schema.DataType.Name(tensor.data_type), (*tensor.dims,)) == (field.type, field.dims)
    assert config.parameters["runtime"].string_value == "auto"
    assert not config.model_transaction_policy.decoupled


def test_types_and_lengths_of_every_kind(schema):
    """Also of those that no small model has; a graph without inputs is none, and a free axis is -1."""
    specs = {kind: TensorSpec(kind, ("N", 3)) for kind in TYPES}
    config = schema.ModelConfig()
    pytest.importorskip("google.protobuf.text_format").Parse(
        graph_config("x", GraphSpec("x", specs, specs, {})), config
    )
    assert [schema.DataType.Name(tensor.data_type) for tensor in config.input] == [*TYPES.values()]
    assert {(*tensor.dims,) for tensor in config.output} == {(-1, 3)}


def test_weights_beside_a_graph_go_with_it(exports, tmp_path):
    export = exports["adaptor"]
    graphs = {"prepare_times": export.graphs["prepare_times"]}
    folder = tmp_path / "onnx"
    folder.mkdir()
    for name in ("prepare_times.onnx", "constants.safetensors"):
        (folder / name).write_bytes((export.path / name).read_bytes())
    (folder / "prepare_times.onnx.data").write_bytes(b"weights")
    large = Export(
        folder, export.model, "onnx", "any", "float32", graphs, {}, {f.name: sha256(f) for f in folder.iterdir()}
    )
    write_repository(open_package(bundled_model()), large, tmp_path / "repository")
    files = {file.name for file in (tmp_path / "repository" / f"{NAME}_prepare_times" / "1").iterdir()}
    assert files == {"model.onnx", "prepare_times.onnx.data"}


def test_refusals(exports, tmp_path):
    package, export = open_package(bundled_model()), exports["adaptor"]
    with pytest.raises(ValueError, match="is there already; a model repository goes into a new folder"):
        write_repository(package, export, tmp_path)
    with pytest.raises(ValueError, match="holds aoti graphs; a model repository is made of onnx ones"):
        write_repository(package, dataclasses.replace(export, format="aoti"), tmp_path / "new")
    with pytest.raises(ValueError, match="lacks missing; the export is incomplete"):
        write_repository(package, dataclasses.replace(export, checksums={"missing": ""}), tmp_path / "new")
    assert not any(tmp_path.iterdir())


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """``syncflow export … --to triton-server``: exit code, standard output, standard error."""
    monkeypatch.setenv("SYNCFLOW_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["syncflow", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_the_command_takes_the_graphs_that_there_are(command, exports, tmp_path):
    model = open_package(bundled_model()).digest
    folder = tmp_path / "cache" / model / "onnx"
    shutil.copytree(exports["adaptor"].path, folder)
    dataclasses.replace(exports["adaptor"], path=folder, model=model).write()
    code, out, err = command("syncflow-tiny", tmp_path / "models", "--to", "triton-server", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert sorted(said["models"]) == sorted(entry.name for entry in (tmp_path / "models").iterdir())
    assert said["graphs"] == str(folder)
    assert open_package(tmp_path / "models" / NAME / "1" / "package").digest == model


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "triton-server"], "name a folder for the model repository"),
        (["syncflow-tiny", "{tmp}", "--to", "triton-server"], "is there already; a model repository goes into a new"),
        (
            ["syncflow-tiny", "{tmp}/new", "--to", "onnx,triton-server"],
            "triton-server cannot be combined with other formats",
        ),
    ],
)
def test_what_the_command_refuses(command, tmp_path, arguments, said):
    code, _, err = command(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    (line,) = err.strip().splitlines()
    assert code == 2 and said in line
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def backend(repositories):
    """The model of a repository as Triton makes it, and what it takes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "triton_python_backend_utils", stand_in)
        module = _loaded("triton_model", repositories["adaptor"] / NAME / "1" / "model.py")
    model = module.TritonPythonModel()
    config = {"parameters": {"runtime": {"string_value": "torch"}}}
    model.initialize(
        {"model_config": json.dumps(config), "model_instance_kind": "CPU", "model_instance_device_id": "0"}
    )
    yield model
    model.finalize()


def _request(wanted=("waveform",), timeout: int = 0, **values: Any) -> stand_in.InferenceRequest:
    arrays = {
        name: np.array([value.encode() if isinstance(value, str) else value], KINDS[INPUTS[name].type])
        for name, value in values.items()
    }
    return stand_in.InferenceRequest(arrays, wanted, timeout)


def _given(request: stand_in.InferenceRequest) -> dict[str, np.ndarray]:
    response = request.get_response_sender().response()
    assert response.error() is None, response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def test_a_request_becomes_a_clip(backend, tmp_path):
    request = _request(tuple(OUTPUTS), prompt=PROMPT, seed=7, steps=2, width=32, height=48, seconds=0.5, guidance=1.0)
    assert backend.execute([request]) is None
    found = _given(request)
    plain = Engine.from_pretrained(runtime="torch").generate(
        PROMPT, seed=7, steps=2, width=32, height=48, seconds=0.5, guidance=1.0
    )
    assert np.array_equal(found["frames"], plain.frames) and found["frames"].dtype == np.uint8
    np.testing.assert_allclose(found["waveform"], plain.waveform, atol=1e-5)
    assert found["waveform"].dtype == np.float32
    assert (found["fps"].item(), found["sample_rate"].item()) == (plain.fps, plain.sample_rate)
    assert json.loads(found["provenance"].item()) == json.loads(json.dumps(dict(plain.provenance)))
    (tmp_path / "clip.mp4").write_bytes(found["mp4"].item())
    assert load_clip(tmp_path / "clip.mp4").frames.shape == plain.frames.shape
    for name, array in found.items():
        assert all(n in (-1, length) for n, length in zip(OUTPUTS[name].dims, array.shape, strict=True)), name


def test_requests_share_a_batch_and_are_answered_by_themselves(backend):
    """Two at once, a third while they run; only what is asked for is made."""
    first = _request(prompt=PROMPT, seed=1, steps=3, seconds=0.5)
    second = _request(("fps",), prompt="a ball falls", seed=2, steps=1, seconds=0.5, negative_prompt="blue")
    third = _request(("frames",), prompt=PROMPT, seed=1, steps=3, seconds=0.5)
    backend.execute([first, second])
    backend.execute([third])
    assert _given(second).keys() == {"fps"}
    waveform, frames = _given(first)["waveform"], _given(third)["frames"]
    assert (waveform.shape, frames.shape) == ((24000,), (8, 64, 64, 3))


def test_known_media_travel_as_bytes(backend, tmp_path):
    clip = Engine.from_pretrained(runtime="torch").generate(PROMPT, steps=1, seconds=0.5)
    content = clip.save(tmp_path / "known.mp4").read_bytes()
    request = _request(("frames", "provenance"), prompt=PROMPT, video=content, steps=1)
    backend.execute([request])
    found = _given(request)
    assert found["frames"].shape == clip.frames.shape
    assert json.loads(found["provenance"].item())["task"] == "video-to-audio"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": " "}, "the prompt is empty; say in a sentence what the clip shows"),
        ({"prompt": PROMPT, "steps": 0}, "steps is 0; it must be a whole number from 1 to 1000"),
        ({"prompt": b"\xff"}, "a text is not UTF-8"),
        ({"prompt": PROMPT, "video": b"no film"}, "video"),
    ],
)
def test_refused_requests_are_one_sentence(backend, values, said):
    """And those beside them are answered."""
    bad, good = _request(**values), _request(("fps",), prompt=PROMPT, steps=1, seconds=0.5)
    backend.execute([bad, good])
    error = bad.get_response_sender().response().error()
    assert error.code() == stand_in.TritonError.INVALID_ARG
    assert said in error.message() and "\n" not in error.message()
    assert _given(good)["fps"].item() == 16


def test_a_request_of_several_clips(backend):
    request = stand_in.InferenceRequest({"prompt": np.array([b"a", b"b"], np.object_)}, ["fps"])
    backend.execute([request])
    error = request.get_response_sender().response().error()
    assert error.message() == "prompt has 2 elements; a request is of one clip, so each input has one"


def test_a_request_that_is_too_late(backend):
    request = _request(prompt=PROMPT, steps=50, seconds=0.5, timeout=1000)
    backend.execute([request])
    assert request.get_response_sender().response().error().code() == stand_in.TritonError.CANCELLED


def test_a_cancelled_request_leaves_its_batch(backend):
    """While it runs, and while it waits; its neighbours are answered."""
    long, neighbour = (_request(prompt=PROMPT, seed=seed, steps=1000, seconds=0.5) for seed in (1, 2))
    backend.execute([long, neighbour])
    stats = backend.engine.batcher.stats
    _wait_until(lambda: stats().running == 2)
    neighbour.get_response_sender().cancel()
    error = neighbour.get_response_sender().response(timeout=30).error()
    assert (error.code(), error.message()) == (stand_in.TritonError.CANCELLED, "the request was cancelled")
    _wait_until(lambda: stats().running == 1)
    third = _request(("fps",), prompt=PROMPT, steps=1, seconds=0.5)
    backend.execute([third])
    assert _given(third)["fps"].item() == 16
    assert not long.get_response_sender().answered()
    long.get_response_sender().cancel()
    assert long.get_response_sender().response(timeout=30).error().code() == stand_in.TritonError.CANCELLED
    _wait_until(lambda: stats().running == 0)


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)


def test_a_full_queue(backend, monkeypatch):
    def submit(*_: object, **__: object) -> None:
        raise Full("128 requests wait already")

    monkeypatch.setattr(backend.engine, "submit", submit)
    request = _request(prompt=PROMPT)
    backend.execute([request])
    error = request.get_response_sender().response().error()
    assert (error.code(), error.message()) == (stand_in.TritonError.UNAVAILABLE, "128 requests wait already")
