"""Models of random weights, exported and verified from the command line, and how alike two clips are."""

from __future__ import annotations

import json
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
from syncflow.engine.runtime.exported import graph_names
from syncflow.engine.runtime.selection.calibration import TIE_RATIO
from syncflow.kernels import native

from ..library_caches import register_onnx_operations_once
from ..native.parity import compare, has_backend

register_onnx_operations_once()

PROMPTS = ("a large red rubber ball bounces on a wooden floor", "a small green metal ball falls on a stone floor")
BOUND = 1e-4
# By bridge the settings of a request that needs all of it: takes of one video, rows that read no context, a reference.
BRIDGE_REQUESTS: dict[str, dict[str, object]] = {
    "adaptor": {"takes": 2, "sync_guidance": 1.0, "video_lead": 0.5},
    "audio_rope": {"sync_guidance": 2.0, "video_lead": 0.5},
    "global_local": {"sync_guidance": 1.0, "reference": True},
}
NATIVE = () if native.EXTENSION is None else ("native",)


@dataclass
class Exported:
    """A package with its exports, what ``verify`` printed of them, and its engines."""

    package: Path
    runtimes: tuple[str, ...]
    results: list[dict]
    engines: dict[str, Engine] = field(default_factory=dict)

    def engine(self, runtime: str) -> Engine:
        if runtime not in self.engines:
            self.engines[runtime] = Engine.from_pretrained(self.package, runtime=runtime)
        return self.engines[runtime]


def export(parts: Components, package: Path, format: str, *options: str) -> Exported:
    """A model saved in ``package``, exported to a format and verified in every runtime of it."""
    parts.save(package)
    code, out, err = call("export", package, "--to", format, "--no-verify", "--json", *options)
    assert code == 0, err
    for one in json.loads(out)["exports"]:
        assert not one["missing"]
    code, out, err = call("verify", package, "--json")
    assert code == 0, err
    results = [result for one in json.loads(out)["exports"] for result in one["runtimes"]]
    return Exported(package, tuple(result["runtime"] for result in results), results)


def call(*arguments: object) -> tuple[int, str, str]:
    """``syncflow`` with arguments: exit code, and what it printed."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setattr(sys, "argv", ["syncflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def small(name: str) -> Components:
    """A preset of one or two narrow layers, with no weight zero as those of fresh bridges and heads are."""
    bundled = Components.load(bundled_model())
    config = syncflow.preset(name)
    changes = {"width": 32, "depth": 2, "heads": 2, "audio_heads": 2}
    if config.ddit.bridge == "audio_rope":
        changes["first_block"] = 1
    else:
        changes["depth"] = 1  # graphs with both towers, and compiled ones, take their time for each layer
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


def check_clips(exported: Exported, count: int, **clip: object) -> None:
    """The same requests in every runtime give PyTorch's clips."""
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


def check_files(exported: Exported, folder: Path) -> None:
    """``syncflow generate`` writes PyTorch's clip with every runtime."""
    files = {runtime: folder / f"{runtime}.mp4" for runtime in ("torch", *NATIVE, *exported.runtimes)}
    for runtime, file in files.items():
        arguments = ("--model", exported.package, "--runtime", runtime, "--steps", 2, "--seconds", 0.5, "--json")
        code, _, err = call("generate", PROMPTS[0], "-o", file, *arguments)
        assert code == 0, err
    plain = load_clip(files["torch"])
    for runtime in (*NATIVE, *exported.runtimes):
        assert min(alike(load_clip(files[runtime]), plain)) >= 40, runtime


def check_auto(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` times what was verified and takes the fastest, whose clip is PyTorch's."""
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "on")
    engine = Engine.from_pretrained(exported.package)
    described = engine.describe()
    graphs = graph_names(engine.config.ddit)
    right = {r["runtime"] for r in exported.results if max(r["errors"][name] for name in graphs) <= BOUND}
    assert described["step_ms"].keys() == {"torch", *(("torch-plain", "native") if NATIVE else ()), *right}
    assert min(described["step_ms"].values()) >= TIE_RATIO * described["step_ms"][described["runtime"]]
    request = Request(PROMPTS[0], seed=3, steps=2, seconds=0.5)
    assert min(alike(engine.generate(request), exported.engine("torch").generate(request))) >= 40


def check_cpp(exported: Exported, folder: Path) -> None:
    """libsyncflow with the same graphs computes the same velocities and clip, of all that the model's bridge does."""
    built = [runtime for runtime in exported.runtimes if has_backend(runtime)]
    if not built:
        pytest.skip("libsyncflow is built without these back ends; docs/cpp.md says how to build them")
    parts = Components.load(exported.package)
    request = {"seconds": 0.5, "guidance": 3.0} | BRIDGE_REQUESTS[parts.config.ddit.bridge]
    for runtime in built:
        engine = exported.engine(runtime)
        compare(parts, exported.package, request, folder, runtime, engine.denoiser)
