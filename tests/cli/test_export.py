"""Exports from the command line: where they go, what is said of them, and that nothing runs from what is not whole.

The graphs here are bytes that nobody can run: whoever would load one is a stand-in that says so.
"""

from __future__ import annotations

import ast
import json
import shutil
from io import BytesIO
from pathlib import Path

import pytest
import torch

import syncflow
from syncflow.engine.engine import bundled_model
from syncflow.engine.exports import CONSTANTS, STEP, Export, Format, GraphSpec, VerificationResult
from syncflow.engine.package import MANIFEST, open_package, sha256
from syncflow.engine.runtime import aoti
from syncflow.engine.runtime.exported import graph_names
from syncflow.export import verification, writing

pytestmark = pytest.mark.slow

PACKAGE = open_package(bundled_model())
GRAPHS = graph_names(PACKAGE.config.ddit)
LOADERS = {
    "onnxruntime": ("onnxruntime", "InferenceSession"),
    "openvino": ("openvino", "Core"),
    "aoti": ("torch._inductor", "aoti_load_package"),
}


def refused(result: tuple[int, str, str], words: str) -> None:
    """Exit code 2, and one line on standard error that has the words."""
    code, _, err = result
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("syncflow: ") and words in line


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("SYNCFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def exported(folder: Path, format: Format = "onnx", digest: str = PACKAGE.digest) -> Path:
    """An export of the bundled model whose graphs are bytes. -> its folder."""
    path = folder / digest / ("onnx" if format == "onnx" else "aoti/cpu")
    path.mkdir(parents=True, exist_ok=True)
    files = {name: f"{name}{writing.SUFFIXES[format]}" for name in GRAPHS}
    for file in (*files.values(), CONSTANTS):
        (path / file).write_bytes(f"{file} is no graph".encode())
    checksums = {file.name: sha256(file) for file in path.iterdir()}
    graphs = {name: GraphSpec(file, {}, {}, {}) for name, file in files.items()}
    versions, machine = {"torch": torch.__version__}, "" if format == "onnx" else aoti.machine(torch.device("cpu"))
    device = "any" if format == "onnx" else "cpu"
    Export(path, digest, format, device, "float32", graphs, versions, checksums, machine).write()
    return path


class Opened(Exception):
    """A graph was given to a runtime."""


@pytest.fixture(params=LOADERS)
def runtime(request, monkeypatch) -> str:
    """A runtime that ends the command when it would open a file."""

    def refuse(path: object, *_: object, **__: object) -> None:
        raise Opened(str(path))

    class Core:
        compile_model = read_model = staticmethod(refuse)

    module, name = LOADERS[request.param]
    library = pytest.importorskip(module)
    monkeypatch.setattr(library, name, Core if name == "Core" else refuse)
    return request.param


def generate(run, runtime: str, tmp_path: Path) -> tuple[int, str, str]:
    return run("generate", "a red ball", "-o", tmp_path / "c.wav", "--steps", 1, "--runtime", runtime)


def format_of(runtime: str) -> Format:
    return "aoti" if runtime == "aoti" else "onnx"


def test_a_whole_export_is_opened(run, runtime, cache, tmp_path):
    """What the refusals below hold against: the stand-ins are where graphs are opened."""
    path = exported(cache, format_of(runtime))
    with pytest.raises(Opened, match=str(path)):
        generate(run, runtime, tmp_path)


@pytest.mark.parametrize("file", [GRAPHS[-1], CONSTANTS])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "does not match its checksum"),
        (lambda data: data[:4] + b"!" + data[5:], "does not match its checksum"),
        (None, "the export is incomplete"),
    ],
    ids=["truncated", "changed", "gone"],
)
def test_nothing_of_a_changed_export_is_opened(run, runtime, cache, tmp_path, file, damage, words):
    """Not even its other files."""
    path = exported(cache, format_of(runtime))
    changed = path / (file if file == CONSTANTS else file + writing.SUFFIXES[format_of(runtime)])
    if damage is None:
        changed.unlink()
    else:
        changed.write_bytes(damage(changed.read_bytes()))
    refused(generate(run, runtime, tmp_path), words)
    refused(run("verify", "--runtimes", runtime), words)
    assert not (tmp_path / "c.wav").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 99}, "has export schema 99; this version reads schema 2"),
        ({"model": "0" * 64}, "belongs to another model"),
        ({"sha256": {}}, "lists no checksum"),
        ({"graphs": None}, "is damaged"),
        (None, "cannot be read as JSON"),
    ],
    ids=["newer", "foreign", "no checksums", "no graphs", "truncated"],
)
def test_manifests_that_are_refused(run, runtime, cache, tmp_path, changes, words):
    manifest = exported(cache, format_of(runtime)) / MANIFEST
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2] if changes is None else json.dumps(json.loads(text) | changes))
    refused(generate(run, runtime, tmp_path), words)
    refused(run("verify", "--runtimes", runtime), words)


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    return shutil.copytree(bundled_model(), tmp_path_factory.mktemp("copied") / "model")


@pytest.fixture
def package(copied, tmp_path) -> Path:
    """A copy of the bundled model, to be changed."""
    return shutil.copytree(copied, tmp_path / "model")


@pytest.mark.parametrize("command", ["generate", "verify", "export"])
def test_a_newer_package_is_refused(run, package, tmp_path, command):
    manifest = package / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 99}))
    arguments = ("a ball", "-o", tmp_path / "c.mp4", "--model", package) if command == "generate" else (package,)
    refused(run(command, *arguments), "has package schema 99; this version reads schema 1")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("component", ["ddit", "video_vae", "audio_vae", "text_encoder"])
@pytest.mark.parametrize("kept", [True, False], ids=["in the place of weights", "beside none"])
def test_pickles_are_never_loaded(run, package, tmp_path, component, kept):
    """A package that is whole by its checksums, and whose weights are a pickle under the names that libraries know."""
    mark = tmp_path / "exploded"
    (weights,) = (package / component).glob("*.safetensors")
    weights.unlink()
    names = [weights.name] if kept else ["pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "model.ckpt"]
    for name in names:
        torch.save(Bomb(mark), package / component / name)
    torch.load(BytesIO((package / component / names[0]).read_bytes()), weights_only=False)
    assert mark.exists()
    mark.unlink()
    manifest = json.loads((package / MANIFEST).read_text())
    files = sorted(file for file in package.rglob("*") if file.is_file() and file.name != MANIFEST)
    manifest["sha256"] = {file.relative_to(package).as_posix(): sha256(file) for file in files}
    (package / MANIFEST).write_text(json.dumps(manifest))
    code, _, err = run("generate", "a ball", "-o", tmp_path / "c.mp4", "--model", package)
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert not mark.exists()


def test_what_loads_models_cannot_unpickle():
    """No module that a model passes through reads a format that can hold code."""
    root = Path(syncflow.__file__).parent
    found = []
    for file in (path for package in ("cli", "engine", "export", "kernels") for path in (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found += [f"{file}: {name}" for name in _names(node) if name in UNSAFE]
    assert not found


UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.load", "np.load", "eval"}


def _names(node: ast.AST) -> list[str]:
    """What a node imports or calls."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return [module.partition(".")[0], *(f"{module}.{alias.name}" for alias in node.names)]
    return [ast.unparse(node.func)] if isinstance(node, ast.Call) else []


@pytest.fixture
def written(monkeypatch) -> list[Path]:
    """Exports are bytes; the folders into which they were written."""
    folders: list[Path] = []

    def write(components, folder: Path, format: Format, **_: object) -> Export:
        folders.append(folder)
        return Export.read(exported(folder / "made", format, components.digest), components.digest)

    monkeypatch.setattr(writing, "write_export", write)
    return folders


def test_where_exports_go(run, written, cache, package, tmp_path):
    """Those of the bundled model into the cache, those of others into their package, or into a copy of it."""
    for arguments, place in (
        ((), cache / PACKAGE.digest),
        ((package,), package / "exports"),
        ((package, tmp_path / "new"), tmp_path / "new" / "exports"),
        ((package, tmp_path / "new"), tmp_path / "new" / "exports"),
    ):
        code, out, err = run("export", *arguments, "--to", "onnx,aoti", "--no-verify", "--json")
        assert code == 0, err
        assert [one["format"] for one in json.loads(out)["exports"]] == ["onnx", "aoti"]
        assert written == [place, place]
        written.clear()
    assert open_package(tmp_path / "new").digest == PACKAGE.digest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "tflite"], "format is 'tflite'; it must be one of onnx, aoti"),
        (["{tmp}/nowhere"], "no model folder"),
        (["{tmp}"], "is the folder of a training run"),
        (["{tmp}/model", "{tmp}"], "is the folder of a training run"),
        (["{tmp}/model", "{tmp}/model/model_index.json/new"], "must be a folder"),
    ],
    ids=str,
)
def test_exports_that_cannot_be(run, package, tmp_path, arguments, words):
    refused(run("export", *(a.replace("{tmp}", str(tmp_path)) for a in arguments)), words)


def test_verify_without_exports(run):
    refused(run("verify"), "is whole, and has no exported graphs; `syncflow export` writes them")
    refused(run("verify", "--runtimes", "tflite"), "runtime is 'tflite'")


@pytest.mark.parametrize(("precision", "bound"), [("float32", "1e-04"), ("bfloat16", "5e-02")])
def test_verify_prints_errors_and_their_bound(run, cache, monkeypatch, precision, bound):
    pytest.importorskip("openvino")
    exported(cache)
    found = dict.fromkeys(GRAPHS, 3e-5)

    def verify(components, export, runtime, *, device, precision, progress) -> VerificationResult:
        errors = {name: found[name] for name in export.graphs}
        seconds = {STEP: [0.01, 0.02]}
        return VerificationResult(runtime, "1", device, precision, errors, verification.BOUNDS[precision], seconds)

    monkeypatch.setattr(verification, "verify", verify)
    arguments = ("verify", "--runtimes", "openvino", "--precision", precision)
    code, out, err = run(*arguments)
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert ["denoise_audio", "3.0e-05"] in lines and ["allowed", bound] in lines
    assert ["step", "10", "(20)"] in lines
    found |= {"denoise_audio": 0.5, "denoise_video": None}
    code, out, err = run(*arguments)
    assert code == 1
    assert "fails" in out and "5.0e-01" in out
    assert err.strip() == "syncflow: openvino does not compute denoise_video as PyTorch does, and 1 more are wrong"
    code, out, _ = run(*arguments, "--json")
    assert code == 1
    (result,) = json.loads(out)["exports"][0]["runtimes"]
    assert result["errors"]["denoise_video"] is None and result["bound"] == verification.BOUNDS[precision]
