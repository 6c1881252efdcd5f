"""Packages changed at random: each is loaded and draws, or is refused with one sentence.

``SYNCFLOW_FUZZ=1000 pytest tests/engine/test_package_fuzz.py`` tries more than the tests of every day.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from syncflow import Engine
from syncflow.engine.codecs import AudioCodec, TextEncoder, VideoCodec
from syncflow.engine.components import Components
from syncflow.engine.config import DDiTConfig, ModelConfig
from syncflow.engine.model import DDiT
from syncflow.engine.package import INDEX, MANIFEST, sha256

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("SYNCFLOW_FUZZ", "100"))
LONGEST_S = 20.0  # of the processor, without the import of diffusers, which takes longer than any package
SHAPE = DDiTConfig(
    width=16, depth=2, heads=2, audio_heads=2, video_channels=16, audio_channels=16, text_width=128, text_tokens=8
)
STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-30, 1e30, "", "x", "\ud800", "../x",
    [], [0], [1, 2], ["x"], {}, {"x": 1}, [[]],
]  # fmt: skip
DEEP = '{"a":' * 20_000 + "1" + "}" * 20_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusers.AutoencoderKLLTXVideo  # noqa: B018 - a configuration that is not the bundled model's imports it
    torch.manual_seed(0)
    model = DDiT(SHAPE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("package") / "model"
    config = ModelConfig(name="small", ddit=SHAPE)
    Components(config, model, VideoCodec.build(), AudioCodec(), TextEncoder.build(max_tokens=8)).save(folder)
    return folder


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a JSON value, as a container and a key."""
    if not isinstance(value, (dict, list)):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [spot for key in keys for spot in [(value, key), *spots(value[key])]]


def change_json(rng: random.Random, folder: Path) -> str:
    file = rng.choice([*folder.glob("*/config.json"), folder / INDEX, folder / MANIFEST])
    values = json.loads(file.read_text())
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if not (places := spots(values)):
            break
        container, key = rng.choice(places)
        what = rng.randrange(4)
        if what == 0:
            del container[key]
        elif what == 1 and type(container[key]) in (int, float):
            container[key] = type(container[key])(container[key] * rng.choice([-1, 0, 0.5, 2, 1000]))
        elif what == 2 and isinstance(container, dict):
            container[rng.choice(["extra", "width", "../x", "/etc/hostname"])] = rng.choice(STRANGE)
        else:
            container[key] = rng.choice(STRANGE)
    file.write_text(json.dumps(values))
    return file.relative_to(folder).as_posix()


def change_text(rng: random.Random, folder: Path) -> str:
    file = rng.choice([*folder.glob("*/config.json"), folder / INDEX, folder / MANIFEST])
    text = file.read_text()
    at = rng.randrange(len(text))
    file.write_text(rng.choice([text[:at], text[:at] + rng.choice('{["0,\u00e9}') + text[at:], DEEP, "[]", "NaN", ""]))
    return file.relative_to(folder).as_posix()


def change_bytes(rng: random.Random, folder: Path) -> str:
    file = rng.choice(list(folder.glob("*/*.safetensors")))
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 10, 1000])):
        data[rng.randrange(rng.choice([16, 2000, len(data)]))] = rng.randrange(256)
    file.write_bytes(data[: rng.choice([len(data), len(data), 7, 100, len(data) // 2])])
    return file.relative_to(folder).as_posix()


def change_tensor(rng: random.Random, folder: Path) -> str:
    file = rng.choice(list(folder.glob("*/*.safetensors")))
    tensors = load_file(file)
    name = rng.choice(list(tensors))
    tensor = tensors.pop(name)
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: torch.full_like(tensor, rng.choice([float("nan"), float("inf"), 0.0, 3e4])),
        lambda: tensor.to(rng.choice([torch.int8, torch.bool, torch.float64, torch.bfloat16, torch.float8_e4m3fn])),
        lambda: tensor.flatten()[: rng.randrange(1 + tensor.numel())].clone(),
        lambda: torch.zeros(*tensor.shape, 2),
        lambda: torch.zeros(0),
    ]
    if rng.random() < 0.9:
        tensors[rng.choice([name, name, name, "other"])] = rng.choice(changes)().contiguous()
    save_file(tensors, file)
    return file.relative_to(folder).as_posix()


def change_files(rng: random.Random, folder: Path) -> str:
    files = [file for file in folder.rglob("*") if file.is_file()]
    file = rng.choice(files)
    what = rng.randrange(5)
    if what == 0:
        file.unlink()
    elif what == 1:
        shutil.copy(
            rng.choice(files), file.with_name(rng.choice([".DS_Store", "model-00001-of-00002.safetensors", "x"]))
        )
    elif what == 2:
        file.unlink()
        file.mkdir()
    elif what == 3:
        file.unlink()
        file.symlink_to(rng.choice([Path("nowhere"), Path("/dev/null"), folder, file]))
    else:
        os.replace(rng.choice(files), file)
    return "files"


CHANGES = [change_json, change_json, change_json, change_text, change_bytes, change_tensor, change_tensor, change_files]


def seal(folder: Path) -> None:
    """Checksums that agree with what the folder holds now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["sha256"]:
        if (folder / name).is_file() and not (folder / name).samefile("/dev/null"):
            manifest["sha256"][name] = sha256(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("start", range(0, COUNT, 50))
def test_a_changed_package_draws_or_is_refused_in_one_sentence(whole: Path, tmp_path: Path, start: int) -> None:
    drawn = 0
    for seed in range(start, min(start + 50, COUNT)):
        rng = random.Random(seed)
        folder = shutil.copytree(whole, tmp_path / str(seed))
        changed = rng.choice(CHANGES)(rng, folder)
        if changed not in (MANIFEST, "files") and rng.random() < 0.95:
            seal(folder)
        began = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                engine = Engine.from_pretrained(folder, device="cpu", runtime="torch")
                clip = engine.generate("a ball", steps=1, seconds=0.25, width=64, height=64)
            assert clip.frames.shape[1:] == (64, 64, 3) and abs(clip.waveform).max() <= 1, seed
            drawn += 1
        except ValueError as error:
            assert str(error) and "\n" not in str(error), f"seed {seed}, {changed}: {error}"
        except Exception as error:
            raise AssertionError(f"seed {seed}, {changed}: {type(error).__name__}: {error}") from error
        assert time.process_time() - began < LONGEST_S, f"seed {seed}, {changed}"
        shutil.rmtree(folder)
    assert drawn
