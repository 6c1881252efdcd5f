"""Model parts to disk and back, with the real adapters at their smallest."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from syncflow.engine import components as module
from syncflow.engine.codecs import AudioCodec, TextEncoder, VideoCodec
from syncflow.engine.components import DDIT_WEIGHTS, Components
from syncflow.engine.config import DDiTConfig, ModelConfig
from syncflow.engine.model import DDiT
from syncflow.engine.package import write_manifest

SHAPE = DDiTConfig(
    width=16, depth=2, heads=2, audio_heads=2, video_channels=16, audio_channels=16, text_width=128, text_tokens=8
)


@pytest.fixture(scope="module")
def components() -> Components:
    torch.manual_seed(0)
    model = DDiT(SHAPE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    config = ModelConfig(name="small", ddit=SHAPE)
    return Components(config, model, VideoCodec.build(), AudioCodec(), TextEncoder.build(max_tokens=SHAPE.text_tokens))


@pytest.fixture(scope="module")
def saved(components, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package") / "model"
    components.save(folder)
    return folder


@pytest.fixture
def package(saved, tmp_path):
    """A package of one's own to damage."""
    return shutil.copytree(saved, tmp_path / "model")


def states(components):
    parts = (components.ddit, components.video, components.audio, components.text)
    return {f"{i}.{name}": tensor for i, part in enumerate(parts) for name, tensor in part.state_dict().items()}


def test_round_trip(components, tmp_path):
    written = components.save(tmp_path / "model", dtype=torch.float32)
    loaded = Components.load(tmp_path / "model")
    assert loaded.config == components.config
    assert loaded.digest == written.digest != ""
    assert written.path == tmp_path / "model"
    torch.testing.assert_close(states(loaded), states(components), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in loaded.ddit.parameters())
    assert not loaded.ddit.training


def test_half_precision_on_disk_and_single_in_memory(saved, components):
    stored = load_file(saved / "ddit" / DDIT_WEIGHTS)
    parameters = dict(components.ddit.named_parameters())
    assert {tensor.dtype for name, tensor in stored.items() if name in parameters} == {torch.float16}
    loaded = Components.load(saved).ddit
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter, parameters[name], rtol=1e-3, atol=1e-7)


def test_rotary_frequencies_are_kept_exact(saved, components):
    """A frequency rounded to half precision turns the hundredth position by a hundredth of a radian."""
    loaded = dict(Components.load(saved).ddit.named_buffers())
    assert loaded
    torch.testing.assert_close(loaded, dict(components.ddit.named_buffers()), rtol=0, atol=0)


def test_saving_twice_replaces(components, saved, tmp_path):
    first = components.save(tmp_path / "model")
    other = dataclasses.replace(components, config=components.config.replace(name="other"))
    second = other.save(tmp_path / "model")
    assert Components.load(tmp_path / "model").config.name == "other"
    assert first.digest != second.digest
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_package(components, package, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", fail)
        with pytest.raises(OSError, match="no space left"):
            dataclasses.replace(components, config=ModelConfig(name="never", ddit=SHAPE)).save(package)
    assert Components.load(package).config.name == "small"
    components.save(package)
    assert [path.name for path in package.parent.iterdir()] == ["model"]


def test_leftovers_of_a_killed_save_are_no_obstacle(components, package):
    for ending in (".part", ".old"):
        shutil.copytree(package, package.with_name(package.name + ending))
    components.save(package)
    assert [path.name for path in package.parent.iterdir()] == ["model"]
    Components.load(package)


def refusal(package):
    with pytest.raises(ValueError) as caught:
        Components.load(package)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folder(tmp_path):
    assert "there is no model folder" in refusal(tmp_path / "nowhere")


def test_damaged_weights(package):
    file = package / "ddit" / DDIT_WEIGHTS
    file.write_bytes(file.read_bytes()[:-7])
    assert "does not match its checksum" in refusal(package)


def reseal(package):
    """Checksums that agree with whatever the folder holds now."""
    write_manifest(package, ModelConfig(name="small", ddit=SHAPE))


def test_weights_that_are_no_safetensors(package):
    (package / "ddit" / DDIT_WEIGHTS).write_bytes(b"not weights")
    reseal(package)
    assert "does not hold this model" in refusal(package)


def test_weights_of_another_model(package):
    file = package / "ddit" / DDIT_WEIGHTS
    tensors = load_file(file)
    tensors["video.x_embedder.proj.bias"] = torch.zeros(3)
    save_file(tensors, file)
    reseal(package)
    assert "does not hold this model" in refusal(package)


def test_weights_with_one_missing(package):
    file = package / "ddit" / DDIT_WEIGHTS
    tensors = load_file(file)
    del tensors["audio.final_linear.weight"]
    save_file(tensors, file)
    reseal(package)
    assert "does not hold this model" in refusal(package)


def test_a_model_without_weights(package):
    (package / "ddit" / DDIT_WEIGHTS).unlink()
    reseal(package)
    assert "does not hold this model" in refusal(package)


@pytest.mark.parametrize("content", ["[]", "{", '{"width": "wide"}', '{"no_such": 1}'])
def test_a_model_with_a_foreign_configuration(package, content):
    (package / "ddit" / "config.json").write_text(content)
    reseal(package)
    refusal(package)


def test_the_configuration_on_disk_is_the_models(saved):
    assert DDiTConfig.from_dict(json.loads((saved / "ddit" / "config.json").read_text())) == SHAPE
