"""From the command line: exported, verified and drawn by every runtime, a small model of each of the three papers."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

import syncflow
from syncflow import Clip, Engine, Request
from syncflow.cli import main
from syncflow.engine.components import Components
from syncflow.engine.engine import bundled_model
from syncflow.engine.media import load_clip
from syncflow.engine.model import DDiT
from syncflow.engine.runtime.calibration import ALIKE
from syncflow.engine.runtime.exported import graph_names
from syncflow.kernels import native

PAPERS = ("syncflow", "syncphony", "harmony")
PROMPTS = ("a large red rubber ball bounces on a wooden floor", "a small green metal ball falls on a stone floor")
CLIPS = ({"seconds": 0.5}, {"seconds": 1.0, "width": 96})
BOUND = 1e-4
NATIVE = () if native.EXTENSION is None else ("native",)
CODECS = {"text_encoder", "video_encoder", "video_decoder", "audio_encoder", "audio_decoder"}


@dataclass
class Exported:
    """A package with its exports, what ``verify`` printed of them, and its engines."""

    package: Path
    runtimes: tuple[str, ...]
    proofs: list[dict]
    engines: dict[str, Engine] = field(default_factory=dict)

    def engine(self, runtime: str) -> Engine:
        if runtime not in self.engines:
            self.engines[runtime] = Engine.from_pretrained(self.package, runtime=runtime)
        return self.engines[runtime]


def call(*arguments: object) -> tuple[int, str, str]:
    """``syncflow`` with arguments: exit code, and what it printed."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setattr(sys, "argv", ["syncflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture(scope="module", params=PAPERS)
def exported(request, tmp_path_factory) -> Exported:
    """A model of random weights beside the bundled codecs, which are exported with one of the models."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    for library in ("onnxruntime", "openvino"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    first = request.param == PAPERS[0]
    compiler = shutil.which("g++") or shutil.which("clang++")
    package = tmp_path_factory.mktemp(request.param) / "model"
    small(f"{request.param}-tiny").save(package)
    formats = "onnx,aoti" if first and compiler else "onnx"
    more = () if first else ("--no-codecs",)
    code, out, err = call("export", package, "--to", formats, "--no-verify", "--json", *more)
    assert code == 0, err
    for one in json.loads(out)["exports"]:
        assert not one["missing"]
    code, out, err = call("verify", package, "--json")
    assert code == 0, err
    proofs = [proof for one in json.loads(out)["exports"] for proof in one["runtimes"]]
    return Exported(package, tuple(proof["runtime"] for proof in proofs), proofs)


def small(name: str) -> Components:
    """A preset of one or two narrow layers, with no weight zero as those of fresh bridges and heads are."""
    bundled = Components.load(bundled_model())
    config = syncflow.preset(name)
    changes = {"width": 32, "depth": 2, "heads": 2, "audio_heads": 2}
    if config.ddit.bridge == "audio_rope":
        changes["first_block"] = 1
    else:
        changes["depth"] = 1  # one is compiled too, and one has both towers in a graph: each layer takes its time
    config = config.replace(ddit=config.ddit.replace(**changes))
    torch.manual_seed(0)
    model = DDiT(config.ddit)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 20)
    return Components(config, model, bundled.video, bundled.audio, bundled.text)


def psnr(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    error = float(np.square(a.astype(float) - b.astype(float)).mean())
    return float("inf") if error == 0 else 10 * np.log10(peak**2 / error)


def alike(a: Clip, b: Clip) -> list[float]:
    """PSNR of frames and of sound, in dB; the peak of a sound is its own."""
    return [psnr(a.frames, b.frames, 255), psnr(a.waveform, b.waveform, np.abs(b.waveform).max())]


def test_every_runtime_computes_every_graph(exported):
    """Velocities, and what they are made of, within 1e-4 of PyTorch's."""
    config = exported.engine("torch").config
    assert set(exported.runtimes) >= {"onnxruntime", "openvino"}
    for proof in exported.proofs:
        found = proof["errors"]
        assert set(graph_names(config.ddit)) <= found.keys()
        assert max(found.values()) <= BOUND, proof["runtime"]
        assert proof["seconds"]["step"][0] > 0
    if config.name == "syncflow-tiny":
        assert all(found.keys() >= CODECS for found in (p["errors"] for p in exported.proofs if p["runtime"] != "aoti"))


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_the_same_seed_is_the_same_clip(exported, clip, count):
    requests = [Request(prompt, seed=5 + i, steps=3, **clip) for i, prompt in enumerate(PROMPTS[:count])]
    plain = exported.engine("torch").generate(requests)
    other = exported.engine("torch").generate(Request(PROMPTS[0], seed=9, steps=3, **clip))
    assert max(alike(plain[0], other)) < 35  # or everything would be alike
    for runtime in (*NATIVE, *exported.runtimes):
        sampled = exported.engine(runtime).generate(requests)
        assert exported.engine(runtime).describe()["runtime"] == runtime
        for a, b in zip(sampled, plain, strict=True):
            assert a.frames.shape == b.frames.shape
            assert min(alike(a, b)) >= 40, runtime


def test_the_same_seed_is_the_same_file(exported, tmp_path):
    files = {runtime: tmp_path / f"{runtime}.mp4" for runtime in ("torch", *NATIVE, *exported.runtimes)}
    for runtime, file in files.items():
        arguments = ("--model", exported.package, "--runtime", runtime, "--steps", 2, "--seconds", 0.5, "--json")
        code, _, err = call("generate", PROMPTS[0], "-o", file, *arguments)
        assert code == 0, err
    plain = load_clip(files["torch"])
    for runtime in (*NATIVE, *exported.runtimes):
        assert min(alike(load_clip(files[runtime]), plain)) >= 40, runtime


def test_auto_times_what_was_verified(exported, monkeypatch):
    """Whichever is fastest here, its clip is PyTorch's."""
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "on")
    engine = Engine.from_pretrained(exported.package)
    told = engine.describe()
    graphs = graph_names(engine.config.ddit)
    right = {p["runtime"] for p in exported.proofs if max(p["errors"][name] for name in graphs) <= BOUND}
    assert told["step_ms"].keys() == {"torch", *(("torch-plain", "native") if NATIVE else ()), *right}
    assert min(told["step_ms"].values()) >= ALIKE * told["step_ms"][told["runtime"]]
    request = Request(PROMPTS[0], seed=3, steps=2, seconds=0.5)
    assert min(alike(engine.generate(request), exported.engine("torch").generate(request))) >= 40


def test_half_precision_has_its_own_bound(exported):
    """OpenVINO in bfloat16: what random weights make of its rounding is near, and is said to hold or not to hold.

    A processor without the type computes in float32, to float32's bound.
    """
    code, out, _ = call("verify", exported.package, "--runtimes", "openvino", "--precision", "bfloat16", "--json")
    (proof,) = json.loads(out)["exports"][0]["runtimes"]
    assert (proof["precision"], proof["bound"]) == ("bfloat16", 5e-2)
    errors = proof["errors"]
    largest = max(errors.values())
    assert code == int(largest > 5e-2)
    assert errors["prepare_times"] <= BOUND
    if "BF16" in pytest.importorskip("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert BOUND < errors["prepare_text"] < 5e-2
        assert largest < 0.2
    else:
        assert largest <= BOUND
