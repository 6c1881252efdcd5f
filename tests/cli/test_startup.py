"""What the commands import, and what they say where an extra is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from syncflow.engine.engine import bundled_model
from syncflow.engine.package import write_json

pytestmark = pytest.mark.slow

PROMPT = "a small blue glass ball falls on a stone floor"
# Each takes a second or more to import.
SLOW = {"diffusers", "transformers", "librosa", "scipy", "matplotlib", "sympy", "torch._dynamo", "torch._inductor"}
LEFT_OUT = ("diffusers", "transformers", "librosa", "triton", "onnxruntime", "openvino", "accelerate")


def modules_of(*arguments: str) -> set[str]:
    """What a command has imported at its end."""
    code = """
import atexit, json, runpy, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
runpy.run_module("syncflow", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of an installation without extras: their libraries cannot be imported."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in LEFT_OUT:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not there')\n", encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, "PYTHONPATH": path}


def test_help_imports_no_slow_library() -> None:
    assert not modules_of("--help") & {"torch", "av", *SLOW}


def test_drawing_a_clip_imports_no_slow_library(tmp_path: Path) -> None:
    loaded = modules_of("generate", PROMPT, "--steps", "1", "--json", "-o", str(tmp_path / "clip.mp4"))
    assert "torch" in loaded
    assert not loaded & SLOW


def test_clips_are_drawn_and_inspected_without_extras(bare: dict[str, str], tmp_path: Path) -> None:
    clip, report = tmp_path / "clip.mp4", tmp_path / "report.png"
    for arguments in (
        ("generate", PROMPT, "--steps", "1", "--json", "-o", str(clip)),
        ("inspect", str(clip), "-o", str(report)),
    ):
        command = [sys.executable, "-m", "syncflow", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=bare, check=True)
        assert done.stderr == ""
    assert report.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("component", "change"),
    [
        ("video_vae", {"_class_name": "AutoencoderKLWan"}),
        ("video_vae", {"_class_name": "VideoAutoencoderPipeline"}),
        ("text_encoder", {}),
    ],
)
def test_the_extra_that_is_missing_is_named(
    component: str, change: dict[str, object], bare: dict[str, str], tmp_path: Path
) -> None:
    call = "VideoCodec.from_pretrained" if component == "video_vae" else "TextEncoder.from_pretrained"
    folder = tmp_path / component
    folder.mkdir()
    for file in (bundled_model() / component).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
        if file.suffix == ".safetensors":  # where Open-Sora's codec has its weights
            (folder / "model.safetensors").write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | change
    write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    code = f"import sys; from syncflow.engine.codecs import TextEncoder, VideoCodec; {call}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=bare)
    assert "ValueError" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("install it with `pip install syncflow[codecs]`")
