"""LoRA: peft's format, rows of one batch with different adapters, stacking, merging, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from syncflow import Engine
from syncflow.engine.adapters import Adapter
from syncflow.engine.model.lora import AdaptedModel, LowRank, target_layers
from syncflow.engine.quantization import quantized
from syncflow.engine.runtime.pytorch import PlainTorchDenoiser
from syncflow.engine.sampling.loop import run_batch
from syncflow.engine.types import Request

from .model_cases import SMALL, passes, randomised
from .model_cases import inputs as model_inputs

TOLERANCE = 1e-5  # relative, of norms: products of more rows round differently
LAYERS = ("spatial_blocks.0.attn.qkv", "spatial_blocks.1.attn.proj", "temporal_blocks.2.mlp.fc1",
          "temporal_blocks.3.mlp.fc2", "spatial_blocks.4.cross_attn.q_linear",
          "temporal_blocks.0.cross_attn.kv_linear", "temporal_blocks.5.cross_attn.proj")  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(runtime="torch", device="cpu")


@pytest.fixture(scope="module")
def folders(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of different layers and ranks."""
    root, layers = tmp_path_factory.mktemp("adapters"), target_layers(engine.components.ddit)
    made = []
    for i, rank in enumerate((2, 3, 5)):
        torch.manual_seed(i)
        branches = {}
        for name in (f"video.{layer}" for layer in LAYERS[i:]):
            layer = layers[name]
            down, up = torch.randn(rank, layer.in_features), torch.randn(layer.out_features, rank)
            branches[name] = LowRank(down * layer.in_features**-0.5, up / 4)
        Adapter(branches).save_pretrained(root / f"adapter{i}", alpha=float(2 * rank))
        made.append(root / f"adapter{i}")
    return made


@pytest.fixture(scope="module")
def loaded(engine: Engine, folders: list[Path]) -> Engine:
    for folder in folders:
        engine.load_adapter(folder)
    return engine


def sample(engine: Engine, *requests: Request) -> list[torch.Tensor]:
    jobs = [engine.pipeline.encode(engine.pipeline.prepare(request)) for request in requests]
    return [latents.video[0] for latents in run_batch(engine.backend.make_batch(), jobs)]


def asked(seed: int, **settings: object) -> Request:
    return Request("a red ball", seed=seed, steps=2, seconds=0.5, **settings)  # type: ignore[arg-type]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.slow
def test_four_requests_with_three_adapters_equal_each_alone(loaded: Engine) -> None:
    requests = [
        asked(0, adapters="adapter0"),
        asked(1, adapters={"adapter1": 0.5, "adapter2": 1.0}),
        asked(2),
        asked(3, adapters=["adapter2"]),
    ]
    together = sample(loaded, *requests)
    for request, found in zip(requests, together, strict=True):
        assert error(found, sample(loaded, request)[0]) < TOLERANCE
    plain = [sample(loaded, replace(request, adapters=None))[0] for request in requests]
    assert error(together[2], plain[2]) < TOLERANCE
    assert all(error(together[i], plain[i]) > 1e-3 for i in (0, 1, 3))


@pytest.mark.slow
def test_an_adapter_is_its_merged_weights(engine: Engine, folders: list[Path], loaded: Engine) -> None:
    request = asked(4)
    for name, weight in (("adapter0", 1.0), ("adapter1", -0.7)):
        other = Engine.from_pretrained(runtime="torch", device="cpu")
        other.load_adapter(folders[int(name[-1])], name)
        other.merge_adapter(name, weight)
        assert other.adapters == ()
        with_adapter = sample(loaded, replace(request, adapters={name: weight}))[0]
        assert error(sample(other, request)[0], with_adapter) < TOLERANCE


@pytest.mark.parametrize("runtime", ["torch", "torch-plain"])
@torch.no_grad()
def test_an_adapter_beside_quantized_weights(runtime: str) -> None:
    in_8_bits, exact = quantized(randomised(SMALL)), randomised(SMALL)
    for name, weight in in_8_bits.named_parameters():
        if is_traceable_wrapper_subclass(weight):
            exact.get_parameter(name).copy_(weight.dequantize())
    generator = torch.Generator().manual_seed(0)
    branches = {
        name: LowRank(
            torch.randn(3, layer.in_features, generator=generator) / 4,
            torch.randn(layer.out_features, 3, generator=generator) / 4,
        )
        for name, layer in target_layers(exact).items()
    }
    found = []
    for model in (in_8_bits, exact):
        adapted = AdaptedModel(model)
        adapted.add(0, branches)
        denoiser = model if runtime == "torch" else PlainTorchDenoiser(model)
        with adapted.rows.set(torch.tensor([[1.0], [0.0]])):
            video, _ = passes(model, model_inputs())
            found.append(denoiser.video_pass(video)[0])
    plain = in_8_bits.video_pass(passes(in_8_bits, model_inputs())[0])[0]
    assert error(*found) < TOLERANCE
    assert error(found[0][0], plain[0]) > 1e-2
    assert error(found[0][1], plain[1]) < TOLERANCE


@pytest.mark.slow
def test_requests_with_adapters_and_quantized_weights(folders: list[Path]) -> None:
    own = Engine.from_pretrained(quantization="int8_weight_only", device="cpu")
    for folder in folders:
        own.load_adapter(folder)
    requests = [asked(0, adapters="adapter0"), asked(1, adapters={"adapter1": 0.5, "adapter2": 1.0}), asked(2)]
    for request, found in zip(requests, sample(own, *requests), strict=True):
        assert error(found, sample(own, request)[0]) < TOLERANCE
    assert error(sample(own, asked(0))[0], sample(own, requests[0])[0]) > 1e-3
    with pytest.raises(ValueError, match="quantized weights take no merged adapter; name the adapter in requests"):
        own.merge_adapter("adapter0")
    assert own.adapters == ("adapter0", "adapter1", "adapter2")


@pytest.mark.slow
def test_the_same_prompt_with_another_adapter_is_conditioned_anew(loaded: Engine) -> None:
    one, two = (sample(loaded, asked(5, adapters=name))[0] for name in ("adapter0", "adapter1"))
    assert error(one, two) > 1e-3


def test_no_adapter_changes_nothing(loaded: Engine) -> None:
    fresh = Engine.from_pretrained(runtime="torch", device="cpu")
    assert torch.equal(sample(loaded, asked(6))[0], sample(fresh, asked(6))[0])


def test_the_reference_loop_has_no_adapters_of_its_own(loaded: Engine) -> None:
    clip = loaded.generate(asked(7, adapters={"adapter0": 0.25}))
    assert clip.provenance["adapters"] == {"adapter0": 0.25}


def test_names(loaded: Engine, folders: list[Path]) -> None:
    assert loaded.adapters == ("adapter0", "adapter1", "adapter2")
    with pytest.raises(ValueError, match="taken"):
        loaded.load_adapter(folders[0])
    with pytest.raises(ValueError, match=r"there is no adapter 'other'; loaded are adapter0, adapter1, adapter2"):
        loaded.generate(asked(0, adapters="other"))
    with pytest.raises(ValueError, match="adapters is"):
        asked(0, adapters={"adapter0": "much"})


def test_unloading_leaves_the_others(engine: Engine, folders: list[Path]) -> None:
    own = Engine.from_pretrained(runtime="torch", device="cpu")
    own.load_adapter(folders[0], "first")
    own.load_adapter(folders[1], "second")
    before = sample(own, asked(8, adapters="second"))[0]
    own.unload_adapter("first")
    assert own.adapters == ("second",)
    assert error(sample(own, asked(8, adapters="second"))[0], before) < TOLERANCE


def test_peft_format(folders: list[Path], engine: Engine, tmp_path: Path) -> None:
    """Names without ``video.``, ranks and scales by pattern, rank-stabilised scales."""
    name = "spatial_blocks.0.attn.proj"
    layer = target_layers(engine.components.ddit)[f"video.{name}"]
    down, up = torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4)
    tensors = {f"base_model.model.{name}.lora_{part}.weight": x for part, x in (("A", down), ("B", up))}
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "alpha_pattern": {"attn.proj": 2}, "use_rslora": True}
    write(tmp_path, config, tensors)
    branch = Adapter.from_pretrained(tmp_path, engine.components.ddit).branches[f"video.{name}"]
    torch.testing.assert_close(branch.up, up)  # 2 / sqrt(4)
    again = Adapter.from_pretrained(folders[0], engine.components.ddit)
    again.save_pretrained(tmp_path / "again")
    reread = Adapter.from_pretrained(tmp_path / "again", engine.components.ddit)
    for key, one in again.branches.items():
        torch.testing.assert_close(reread.branches[key].up, one.up)


def write(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "must be 'LORA'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias must be 'none'"),
        ({"lora_alpha": "large"}, "lora_alpha 'large'"),
    ],
)
def test_settings_that_are_refused(
    folders: list[Path], engine: Engine, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    write(tmp_path, config | change, load_file(folders[0] / "adapter_model.safetensors"))
    with pytest.raises(ValueError, match=said):
        Adapter.from_pretrained(tmp_path, engine.components.ddit)


def test_unknown_keys_are_listed(folders: list[Path], engine: Engine, tmp_path: Path) -> None:
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    added = ("base_model.model.unet.down.lora_A.weight", "base_model.model.audio.layers.0.mlp.fc1.lora_B.weight")
    write(tmp_path, config, tensors | {name: torch.zeros(2, 3) for name in added})
    with pytest.raises(ValueError, match=", ".join(sorted(added)).replace(".", r"\.")):
        Adapter.from_pretrained(tmp_path, engine.components.ddit)
    half = {n: x for n, x in tensors.items() if not n.endswith("0.attn.qkv.lora_B.weight")}
    write(tmp_path, config, half)
    with pytest.raises(ValueError, match="only one of lora_A and lora_B"):
        Adapter.from_pretrained(tmp_path, engine.components.ddit)


@pytest.mark.parametrize("runtime", ["native", "compiled"])
def test_other_runtimes_refuse(folders: list[Path], runtime: str) -> None:
    try:
        other = Engine.from_pretrained(runtime=runtime, device="cpu")
    except ValueError as missing:
        pytest.skip(str(missing))
    with pytest.raises(ValueError, match="adapters need the runtime torch or torch-plain"):
        other.load_adapter(folders[0])
