"""An engine under a budget of memory: the same clips, with parts that are loaded and released in turn."""

from __future__ import annotations

import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from syncflow.engine.codecs.files import read_weights
from syncflow.engine.components import STEM, Components
from syncflow.engine.engine import Engine, bundled_model
from syncflow.engine.package import open_package
from syncflow.engine.residency import Residency
from syncflow.engine.types import WHOLE

SHORT = {"seconds": 0.5, "steps": 2, "seed": 3}
PROMPT = "a large red rubber ball"
IN_TURN = "46MB"  # what steps of the bundled model's own clip take, and little more


class Counted:
    """Residency of two small layers, by a loader that counts."""

    def __init__(self, *kept: str) -> None:
        self.loaded: list[str] = []
        parts = {name: nn.Linear(2, 2).to("meta") for name in ("a", "b", "c")}
        self.residency = Residency(parts, self.load, kept, torch.device("cpu"))

    def load(self, name: str) -> nn.Module:
        self.loaded.append(name)
        return nn.Linear(2, 2).requires_grad_(False)

    def use(self, *names: str) -> frozenset[str]:
        for name in names:
            with self.residency.using(name):
                weights = self.residency.parts[name].weight
                assert not weights.is_meta and not weights.is_inference()
        return self.residency.loaded


def test_parts_are_in_memory_one_at_a_time():
    counted = Counted()
    assert counted.use("a", "a", "b") == {"b"}
    assert counted.use("a") == {"a"}
    assert counted.loaded == ["a", "b", "a"]
    assert counted.residency.parts["b"].weight.is_meta


def test_parts_that_are_kept_stay():
    counted = Counted("a")
    assert counted.use("a", "b", "c", "a") == {"a"}
    assert counted.loaded == ["a", "b", "c"]


def test_parts_that_are_not_kept_are_released_on_demand():
    counted = Counted("a")
    counted.use("a", "b")
    counted.residency.release()
    assert counted.residency.loaded == {"a"}
    assert counted.residency.parts["b"].weight.is_meta


def test_the_weights_are_no_inference_tensors():
    with torch.inference_mode():
        Counted().use("a")


def test_another_thread_waits_until_a_part_is_not_in_use():
    counted, entered = Counted(), threading.Event()

    def other() -> None:
        with counted.residency.using("b"):
            entered.set()

    thread = threading.Thread(target=other)
    with counted.residency.using("a"):
        thread.start()
        assert not entered.wait(0.05)
        assert not counted.residency.parts["a"].weight.is_meta
    thread.join()
    assert entered.is_set()


@pytest.fixture(scope="module")
def whole() -> Engine:
    return Engine.from_pretrained(runtime="torch", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("memory", [IN_TURN, "1GiB"])
def test_clips_are_the_same_to_the_bit(whole, memory):
    engine = Engine.from_pretrained(memory=memory, device="cpu")
    residency = engine.components.residency
    assert engine.chosen.runtime == "torch"
    assert residency.loads == 0
    for _ in range(2):
        clip, expected = engine.generate(PROMPT, **SHORT), whole.generate(PROMPT, **SHORT)
        assert np.array_equal(clip.frames, expected.frames)
        assert np.array_equal(clip.waveform, expected.waveform)
    in_turn = {"ddit", "text", "video", "audio"} - set(engine.memory_plan.kept)
    assert bool(in_turn) == (memory == IN_TURN)
    assert len(residency.loaded & in_turn) <= 1
    assert engine.describe()["memory"]["predicted"] <= engine.memory_plan.budget


@pytest.mark.slow
def test_submitted_requests_under_a_budget(whole):
    with Engine.from_pretrained(memory=IN_TURN, device="cpu") as engine:
        (clip,) = engine.submit(PROMPT, **SHORT).result(120)
    assert np.array_equal(clip.frames, whole.generate(PROMPT, **SHORT).frames)
    assert engine.limits.memory == engine.memory_plan.bytes_for_requests


@pytest.mark.slow
def test_what_is_refused(whole):
    engine = Engine.from_pretrained(memory=IN_TURN, device="cpu")
    with pytest.raises(
        ValueError, match=r"the request needs .* in the stage \w+ and 46 MB are allowed; ask for a smaller"
    ):
        engine.generate(PROMPT, width=512, height=512, steps=1)
    with pytest.raises(ValueError, match="adapters need a model that stays in memory"):
        engine.load_adapter("adapter")
    with pytest.raises(ValueError, match=r"memory is 5 MB; .* allow at least memory='\d+(\.\d)?MB'$"):
        Engine.from_pretrained(memory=5_000_000, device="cpu")
    with pytest.raises(
        ValueError, match="memory is a setting of the runtimes torch and torch-plain; this one is native"
    ):
        Engine.from_pretrained(memory="1GB", runtime="native", device="cpu")
    with pytest.raises(ValueError, match="memory is 'much'; it must be bytes, or a number with MB"):
        Engine.from_pretrained(memory="much", device="cpu")
    with pytest.raises(ValueError, match=r"memory is a setting of Engine\.from_pretrained"):
        Engine(whole.components, memory="1GB")


@pytest.mark.slow
def test_large_frames_are_decoded_by_tiles(whole):
    engine = Engine.from_pretrained(memory="100MB", device="cpu")
    sequence = engine.config.sequence
    assert engine.pipeline.tiles_of(sequence) == WHOLE
    tiles = engine.pipeline.tiles_of(sequence.replace(width=256, height=256))
    assert tiles.side is not None
    assert tiles.side < 256


@pytest.mark.slow
def test_more_requests_than_fit_are_sampled_one_after_the_other(whole):
    engine = Engine.from_pretrained(memory=IN_TURN, device="cpu")
    batches: list[int] = []
    run = engine.backend.run
    engine.backend.run = lambda requests, *rest: batches.append(len(requests)) or run(requests, *rest)
    engine.generate([PROMPT] * 6, steps=1, seed=1)
    assert sum(batches) == 6
    assert max(batches) < 6


@pytest.mark.slow
def test_the_plan_is_printed_before_anything_is_loaded(run, tmp_path):
    code, _, err = run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--steps", 1, "--memory", "100MB")
    assert code == 0
    assert re.search(r"syncflow: memory: [\d.]+ MB of 100 MB predicted \(text .*; .* kept", err)
    code, _, err = run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--memory", "3MB")
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_parts_without_values_have_the_shapes_and_types_of_the_others():
    package = open_package(bundled_model())
    outline, real = Components.of(package, values=False), Components.of(package)
    for name in ("ddit", "video", "audio", "text"):
        empty, full = (dict(getattr(parts, name).state_dict()) for parts in (outline, real))
        assert {key: (value.shape, value.dtype) for key, value in empty.items()} == {
            key: (value.shape, value.dtype) for key, value in full.items()
        }
        assert all(value.is_meta for value in empty.values())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is mapped")
def test_weights_in_their_own_type_are_the_mapped_file(tmp_path):
    folder = tmp_path / "model"
    Components.of(open_package(bundled_model())).save(folder, dtype=torch.float32)
    model = Components.load(folder).ddit
    file = folder / "ddit" / f"{STEM}.safetensors"
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in mapped]
    address = model.video.spatial_blocks[0].mlp.fc1.weight.data_ptr()
    assert any(low <= address < high for low, high in ranges)


def test_tensors_are_converted_while_they_are_read(monkeypatch):
    from syncflow.engine.codecs import files

    monkeypatch.setattr(files, "MAPPED_BYTES", 1000)  # many mappings of the file
    folder = bundled_model() / "ddit"
    stored, first = read_weights(folder, STEM), "video.t_block.1.weight"
    found = read_weights(folder, STEM, {first: torch.empty(0, dtype=torch.float64)})
    assert found.keys() == stored.keys()
    assert {name for name in found if found[name].dtype != stored[name].dtype} == {first}
    for name, tensor in found.items():
        assert torch.equal(tensor, stored[name].to(tensor.dtype))


def test_a_damaged_package_is_refused_without_values(tmp_path):
    folder = shutil.copytree(bundled_model(), tmp_path / "model")
    weights = folder / "ddit" / f"{STEM}.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        read_weights(folder / "ddit", STEM, values=False)
    with pytest.raises(ValueError, match="checksum"):
        Engine.from_pretrained(folder, memory="1GB", device="cpu")
