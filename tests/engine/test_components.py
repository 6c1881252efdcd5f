"""Model parts to disk and back, with the real adapters at their smallest."""

from __future__ import annotations

import copy
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


def test_who_may_read_a_folder_may_read_its_weights(saved, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    weights = list(saved.rglob("*.safetensors"))
    assert len(weights) == 4
    assert {file.stat().st_mode for file in weights} == {plain.stat().st_mode}


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


def test_values_beyond_half_precision_stay_in_single(components, tmp_path):
    """A weight of 1e5 would be infinite in float16, and the package would be refused when it is loaded."""
    large = dataclasses.replace(components, ddit=copy.deepcopy(components.ddit), video=copy.deepcopy(components.video))
    weights = [large.ddit.video.x_embedder.proj.weight, next(iter(large.video.parameters()))]
    for weight in weights:
        weight.data.view(-1)[0] = 1e5
    large.save(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "ddit" / DDIT_WEIGHTS)
    assert [name for name, tensor in stored.items() if tensor.abs().max() == 1e5] == ["video.x_embedder.proj.weight"]
    assert stored["video.x_embedder.proj.weight"].dtype == torch.float32
    assert stored["audio.final_linear.weight"].dtype == torch.float16
    loaded = Components.load(tmp_path / "model")
    assert torch.equal(loaded.ddit.video.x_embedder.proj.weight, weights[0])
    assert next(iter(loaded.video.parameters())).flatten()[0] == 1e5


def test_weights_that_are_not_finite_are_not_saved(components, tmp_path):
    broken = dataclasses.replace(components, ddit=copy.deepcopy(components.ddit))
    broken.ddit.audio.final_linear.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"holds NaN or infinity in audio\.final_linear\.bias"):
        broken.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


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
    assert "model.safetensors is damaged" in refusal(package)


def test_weights_of_another_model(package):
    file = package / "ddit" / DDIT_WEIGHTS
    tensors = load_file(file)
    tensors["video.x_embedder.proj.bias"] = torch.zeros(3)
    save_file(tensors, file)
    reseal(package)
    assert "video.x_embedder.proj.bias is (3,), it must be" in refusal(package)


def test_weights_with_one_missing(package):
    file = package / "ddit" / DDIT_WEIGHTS
    tensors = load_file(file)
    del tensors["audio.final_linear.weight"]
    save_file(tensors, file)
    reseal(package)
    assert "1 tensors missing ['audio.final_linear.weight']" in refusal(package)


def test_a_model_without_weights(package):
    (package / "ddit" / DDIT_WEIGHTS).unlink()
    reseal(package)
    assert "ddit holds no diffusion_pytorch_model.safetensors" in refusal(package)


@pytest.mark.parametrize("content", ["[]", "{", '{"width": "wide"}', '{"no_such": 1}'])
def test_a_model_with_a_foreign_configuration(package, content):
    (package / "ddit" / "config.json").write_text(content)
    reseal(package)
    refusal(package)


def test_the_configuration_on_disk_is_the_models(saved):
    assert DDiTConfig.from_dict(json.loads((saved / "ddit" / "config.json").read_text())) == SHAPE


WEIGHTS = [
    f"ddit/{DDIT_WEIGHTS}",
    f"video_vae/{DDIT_WEIGHTS}",
    "audio_vae/model.safetensors",
    "text_encoder/model.safetensors",
]


@pytest.mark.slow
@pytest.mark.parametrize("file", WEIGHTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: torch.full_like(tensor, torch.nan), "holds NaN or infinity in"),
        (lambda tensor: torch.full_like(tensor, -torch.inf), "holds NaN or infinity in"),
        (lambda tensor: tensor.to(torch.int8), "in int8; weights must be in float16, bfloat16, float32 or float64"),
        (lambda tensor: tensor > 0, "in bool; weights must be in float16, bfloat16, float32 or float64"),
    ],
    ids=["nan", "infinity", "int8", "bool"],
)
def test_weights_that_are_no_finite_numbers(package, file, change, message):
    tensors = load_file(package / file)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = change(tensors[name])
    save_file(tensors, package / file)
    reseal(package)
    assert message in (said := refusal(package)) and name in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("component", "changes", "message"),
    [
        ("ddit", {"width": 0}, "width is 0; it must be a whole number from 1 to"),
        ("ddit", {"depth": 1024}, "describes a larger model than its weights hold"),
        ("ddit", {"depth": 10**6}, "depth is 1000000; it must be a whole number from 1 to 1024"),
        ("ddit", {"width": 65_536}, "describes a larger model than its weights hold"),
        ("ddit", {"mlp_ratio": 0}, "mlp_ratio is 0; it must be above 0 and at most 64"),
        ("ddit", {"rope_theta": -1}, "rope_theta is -1; it must be above 0"),
        ("ddit", {"window": 2.0}, "says another ddit than the components"),
        ("text_encoder", {"num_layers": 1000}, "describes a larger model than its weights hold"),
        ("text_encoder", {"num_heads": 0}, "num_heads is 0; it must be a whole number from 1"),
        ("text_encoder", {"d_ff": "wide"}, "d_ff is 'wide'; it must be a whole number"),
        ("text_encoder", {"relative_attention_max_distance": 8}, "relative_attention_max_distance is 8; it must be"),
        ("text_encoder", {"max_tokens": 7}, "says another ddit.text_tokens than the components (8, and 7 there)"),
        ("audio_vae", {"latent_channels": 10**9}, "describes a larger model than its weights hold"),
        ("audio_vae", {"upsampling_ratios": 5}, "upsampling_ratios is 5; it must be a list of strides"),
        ("audio_vae", {"sampling_rate": 44_100}, "says another sequence.sample_rate than the components"),
        ("audio_vae", {"latents_std": [0.0] * 16}, "means or deviations of latents that are not finite or are 0"),
        ("audio_vae", {"latents_mean": "x"}, "describes no model that can be built"),
        ("video_vae", {"block_out_channels": [10**6, 10**6]}, "describes a larger model than its weights hold"),
        ("video_vae", {"block_out_channels": 5}, "describes no model that can be built"),
        ("video_vae", {"down_block_types": 5}, "describes no model that can be built"),
        ("video_vae", {"latents_std": [0.0] * 16}, "means or deviations of latents that are not finite or are 0"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, (str, dict)) else None,
)
def test_configurations_that_no_model_can_have(package, component, changes, message):
    """Refused before memory or minutes are spent on them."""
    file = package / component / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    reseal(package)
    assert message in refusal(package)


def test_a_configuration_that_is_nested_too_deeply(package):
    (package / "ddit" / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    reseal(package)
    assert "nested too deeply" in refusal(package)


def test_a_text_encoder_of_several_precisions_computes_in_single(package):
    file = package / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    tensors[name] = tensors[name].bfloat16()
    save_file(tensors, file)
    reseal(package)
    text = Components.load(package).text
    assert {parameter.dtype for parameter in text.parameters()} == {torch.float32}
    assert text.encode(["a ball"])[0].isfinite().all()
