"""``syncflow import``: every tensor accounted for, the same bits back, and what is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from syncflow.engine.components import Components
from syncflow.engine.package import open_package
from syncflow.engine.presets import OPEN_SORA
from syncflow.training.importers import tensors as files
from syncflow.training.importers.layouts import LAYOUTS, describe
from syncflow.training.importers.opensora import LAYOUT, import_opensora, stdit3_config
from syncflow.training.importers.transformer import export_transformer

from .published import STDIT3, stdit3_tensors, write_all, write_published

LISTED = Path(__file__).with_name("stdit3_xl_2.txt")  # names and shapes of hpcai-tech/OpenSora-STDiT-v3


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return write_all(tmp_path_factory.mktemp("published"))


def listed() -> dict[str, tuple[int, ...]]:
    lines = (line.split() for line in LISTED.read_text().splitlines())
    return {name: tuple(map(int, shape.split("x"))) for name, shape in lines}


def test_the_full_size_tower_has_the_published_tensors() -> None:
    expected = listed()
    assert len(expected) == 973
    assert LAYOUT.shapes(OPEN_SORA.ddit) == expected
    assert round(sum(torch.Size(shape).numel() for shape in expected.values()) / 1e6, 1) == 1208.9
    assert stdit3_config({"model_type": "STDiT3"}) == OPEN_SORA.ddit


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("table", [True, False], ids=["with rope.freqs", "without"])
def test_the_same_bits_come_back(
    published: tuple[Path, Path, Path], tmp_path: Path, dtype: torch.dtype, table: bool
) -> None:
    given = {n: x.to(dtype) for n, x in stdit3_tensors().items() if table or n != "rope.freqs"}
    source = write_published(tmp_path / "stdit3", STDIT3 | {"transformers_version": "4.36.2"}, given)
    package = import_opensora(source, *published[1:], tmp_path / "package")
    assert open_package(package.path).config == package.config
    file = export_transformer(LAYOUTS, package.path, tmp_path / "back")
    assert_same_bits(load_file(file), given)
    assert file.read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text())["transformers_version"] == "4.36.2"


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shards", "pt", "old pt", "file"])
def test_layouts(published: tuple[Path, Path, Path], tmp_path: Path, layout: str) -> None:
    given, source = stdit3_tensors(), tmp_path / "source"
    source.mkdir()
    if layout != "file":
        (source / "config.json").write_text(json.dumps(STDIT3))
    if layout == "shards":
        names = sorted(given)
        parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
        for file, part in parts.items():
            save_file({name: given[name].contiguous() for name in part}, source / file)
        weights = {name: file for file, part in parts.items() for name in part}
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    elif layout == "file":
        save_file({name: x.contiguous() for name, x in given.items()}, source / "ema.safetensors")
    else:
        torch.save(given, source / "model.pt", _use_new_zipfile_serialization=layout == "pt")
    path = source / "ema.safetensors" if layout == "file" else source
    package = import_opensora(path, *published[1:], tmp_path / "package")
    assert_same_bits(load_file(export_transformer(LAYOUTS, package.path, tmp_path / "back")), given)
    assert package.config.ddit == stdit3_config(STDIT3)


@pytest.mark.slow
def test_a_package_in_another_precision(published: tuple[Path, Path, Path], tmp_path: Path) -> None:
    package = import_opensora(*published, tmp_path / "package", dtype=torch.float16)
    found = files.open_tensors(package.component("ddit")).infos
    assert {info.dtype for name, info in found.items() if "rope" not in name} == {torch.float16}
    assert Components.load(package.path).ddit.dtype == torch.float32


def broken(kind: str) -> tuple[dict[str, Tensor], str]:
    given, name = stdit3_tensors(), "temporal_blocks.1.attn.qkv.weight"
    if kind == "missing":
        del given[name]
        return given, f"{name} is missing."
    if kind == "extra":
        given["pos_embed"] = torch.zeros(3)
        return given, "pos_embed is no tensor of an STDiT3."
    if kind == "misshapen":
        given[name] = given[name][:-1]
        return given, f"{name} is 287x96; it must be 288x96."
    if kind == "whole numbers":
        given[name] = given[name].to(torch.int32)
        return given, f"{name} is in int32; it must be floating point."
    given[name] = given[name].clone()
    given[name][3, 5] = float(kind)
    return given, f"NaN or infinity in {name}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "extra", "misshapen", "whole numbers", "nan", "inf"])
def test_a_planted_tensor_is_refused_with_its_name(
    published: tuple[Path, Path, Path], tmp_path: Path, kind: str
) -> None:
    given, said = broken(kind)
    source = write_published(tmp_path / "source", STDIT3, given)
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        import_opensora(source, *published[1:], tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    if kind not in ("nan", "inf"):
        assert said in describe(source).problems


def test_values_beyond_the_asked_precision(published: tuple[Path, Path, Path], tmp_path: Path) -> None:
    given = stdit3_tensors()
    given["t_block.1.bias"] = torch.full_like(given["t_block.1.bias"], 1e5)
    source = write_published(tmp_path / "source", STDIT3, given)
    with pytest.raises(ValueError, match=r"t_block\.1\.bias beyond 65504"):
        import_opensora(source, *published[1:], tmp_path / "package", dtype=torch.float16)


def test_every_mismatch_has_a_sentence_up_to_ten(published: tuple[Path, Path, Path], tmp_path: Path) -> None:
    given = {name: x for name, x in stdit3_tensors().items() if "spatial_blocks.1" not in name}
    source = write_published(tmp_path / "source", STDIT3, given)
    with pytest.raises(ValueError, match=r"is missing\. And 7 more\."):
        import_opensora(source, *published[1:], tmp_path / "package")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "DiT"}, "says 'STDiT3'"),
        ({"qk_norm": False}, "qk_norm is false"),
        ({"patch_size": [2, 2, 2]}, "patch_size"),
        ({"hidden_size": "wide"}, "width is 'wide'"),
    ],
)
def test_a_model_of_another_kind(
    published: tuple[Path, Path, Path], tmp_path: Path, change: dict[str, object], said: str
) -> None:
    source = write_published(tmp_path / "source", STDIT3 | change, stdit3_tensors())
    with pytest.raises(ValueError, match=said):
        import_opensora(source, *published[1:], tmp_path / "package")


def test_the_text_encoder_must_fit(published: tuple[Path, Path, Path], tmp_path: Path) -> None:
    config = json.loads((published[2] / "config.json").read_text())
    other = write_published(tmp_path / "t5", config | {"d_model": 24}, load_file(published[2] / "model.safetensors"))
    with pytest.raises(ValueError, match="has states of 24; the transformer reads 48"):
        import_opensora(*published[:2], other, tmp_path / "package")


def test_a_pickle_is_never_executed(published: tuple[Path, Path, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(STDIT3))
    torch.save({"weights": subprocess.Popen}, source / "model.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        import_opensora(source, *published[1:], tmp_path / "package")


def test_what_folders_are(published: tuple[Path, Path, Path], tmp_path: Path) -> None:
    package = import_opensora(*published, tmp_path / "package").path
    assert describe(package).kind == "package" and "open-sora-1.2" in str(describe(package))
    for path, word in zip(published, ("STDiT3", "video autoencoder", "T5"), strict=True):
        found = describe(path)
        assert found.kind == "published" and word in found.what and not found.problems
    with pytest.raises(ValueError, match="`syncflow import` makes a package of published weights"):
        open_package(published[0])
    assert describe(tmp_path).kind == "unknown"
    (package / "ddit" / "source.json").unlink()
    assert describe(package).kind == "unknown" and "source.json" in describe(package).problems[0]


@pytest.mark.slow
def test_the_command(published: tuple[Path, Path, Path], tmp_path: Path, run) -> None:
    def syncflow(*arguments: object, code: int = 0) -> str:
        found, out, err = run(*arguments)
        assert found == code, err
        return out if code == 0 else err

    package = tmp_path / "package"
    parts = ("--vae", published[1], "--text-encoder", published[2])
    assert "open-sora-1.2" in syncflow("import", published[0], package, *parts)
    assert "the transformer as it was published" in syncflow("import", "--reverse", package, tmp_path / "back")
    assert json.loads(syncflow("inspect", package, "--json"))["kind"] == "package"
    assert "exists already" in syncflow("import", published[0], package, *parts, code=2)
    assert "needs --vae and --text-encoder" in syncflow("import", published[0], tmp_path / "other", code=2)
