"""``syncflow import`` of JavisDiT: every tensor accounted for, the same bits back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from syncflow.engine.presets import JAVISDIT
from syncflow.training.importers.javisdit import LAYOUT, import_javisdit, inferred_vastdit3, vastdit3_config
from syncflow.training.importers.layouts import LAYOUTS, describe
from syncflow.training.importers.tensors import TensorInfo
from syncflow.training.importers.transformer import export_transformer

from .published import write_published
from .published_javisdit import PRIOR, VASTDIT3, Published, prior_tensors, vastdit3_tensors, write_all

LISTED = Path(__file__).with_name("vastdit3_xl_2.txt")  # names and shapes of JavisVerse/JavisDiT-v0.1-jav
NAME = "va_cross_blocks.1.cross_attn.values_m2_proj.weight"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return write_all(tmp_path_factory.mktemp("published"))


def imported(published: Published, target: Path, transformer: Path | None = None, **changes: Path | None) -> Path:
    parts = published._replace(transformer=transformer or published.transformer)
    settings = {"imagebind": published.imagebind} | changes
    return import_javisdit(*parts[:-1], target, **settings).path


def test_the_full_size_towers_have_the_published_tensors() -> None:
    lines = (line.split() for line in LISTED.read_text().splitlines())
    expected = {name: tuple(map(int, shape.split("x"))) for name, shape in lines}
    assert len(expected) == 3286
    assert LAYOUT.shapes(JAVISDIT.ddit) == expected
    assert round(sum(torch.Size(shape).numel() for shape in expected.values()) / 1e6) == 3722
    assert vastdit3_config({"model_type": "VASTDiT3"}) == JAVISDIT.ddit


def test_a_bare_file_tells_its_configuration() -> None:
    infos = {name: TensorInfo(x.dtype, tuple(x.shape)) for name, x in vastdit3_tensors().items()}
    assert vastdit3_config(inferred_vastdit3(infos)) == vastdit3_config(VASTDIT3)
    with pytest.raises(ValueError, match=r"st_prior_embedder\.y_embedding does not tell the size"):
        inferred_vastdit3({name: info for name, info in infos.items() if "st_prior_embedder" not in name})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("table", [True, False], ids=["with rope.freqs", "without"])
def test_the_same_bits_come_back(published: Published, tmp_path: Path, dtype: torch.dtype, table: bool) -> None:
    given = {n: x.to(dtype) for n, x in vastdit3_tensors().items() if table or n != "rope.freqs"}
    source = write_published(tmp_path / "vastdit3", VASTDIT3, given)
    file = export_transformer(LAYOUTS, imported(published, tmp_path / "package", source), tmp_path / "back")
    found = load_file(file)
    assert found.keys() == given.keys()
    assert all(found[name].dtype == x.dtype and torch.equal(found[name], x) for name, x in given.items())
    assert file.read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == VASTDIT3


def planted(kind: str) -> tuple[dict[str, Tensor], str]:
    given = vastdit3_tensors()
    if kind == "missing":
        del given[NAME]
        return given, f"{NAME} is missing."
    if kind == "extra":
        given["onset_embedder.mlp.0.weight"] = torch.zeros(3)
        return given, "onset_embedder.mlp.0.weight is no tensor of a VASTDiT3."
    if kind == "misshapen":
        given[NAME] = given[NAME][:-1]
        return given, f"{NAME} is 47x96; it must be 48x96."
    given[NAME] = given[NAME].clone()
    given[NAME][3, 5] = float(kind)
    return given, f"NaN or infinity in {NAME}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "extra", "misshapen", "nan", "inf"])
def test_a_planted_tensor_is_refused_with_its_name(published: Published, tmp_path: Path, kind: str) -> None:
    given, said = planted(kind)
    source = write_published(tmp_path / "source", VASTDIT3, given)
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        imported(published, tmp_path / "package", source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    if kind not in ("nan", "inf"):
        assert said in describe(source).problems


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"require_onset": True}, "require_onset is True; it must be False"),
        ({"st_prior_utilize": "modulate"}, "st_prior_utilize is 'modulate'; it must be 'cross_attn'"),
        ({"temporal_prior_len": 8}, "they must be the same"),
        ({"audio_patch_size": [2, 2]}, "audio_patch_size"),
        ({"num_heads": 3}, "heads is 3; it must be even"),
        ({"model_type": "STDiT2"}, "says 'VASTDiT3'"),
    ],
)
def test_a_transformer_of_another_kind(published: Published, tmp_path: Path, change: dict, said: str) -> None:
    source = write_published(tmp_path / "source", VASTDIT3 | change, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=said):
        imported(published, tmp_path / "package", source)


@pytest.mark.slow
def test_parts_of_another_kind(published: Published, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no text tower of ImageBind; name its file"):
        imported(published, tmp_path / "package", imagebind=None)
    extractor, _ = prior_tensors()
    extractor["spatial_query_emb"] = extractor["spatial_query_emb"][:, :-1]
    other = write_published(tmp_path / "prior", PRIOR, extractor)
    with pytest.raises(ValueError, match=r"spatial_query_emb is 1x5x32; it must be 1x6x32\."):
        imported(published._replace(prior=other), tmp_path / "package")
    onsets = write_published(tmp_path / "onsets", PRIOR | {"pred_onset": True}, extractor)
    with pytest.raises(ValueError, match="predicts onsets"):
        imported(published._replace(prior=onsets), tmp_path / "package")
    vocoder = load_file(published.audio_vae / "vocoder" / "model.safetensors")
    vocoder["conv_post.weight"][0, 0, 0] = float("nan")
    source = tmp_path / "audioldm2"
    for part in ("vae", "vocoder"):
        (source / part).mkdir(parents=True)
        for file in (published.audio_vae / part).iterdir():
            (source / part / file.name).write_bytes(file.read_bytes())
    save_file(vocoder, source / "vocoder" / "model.safetensors")
    with pytest.raises(ValueError, match=r"NaN or infinity in vocoder\.conv_post\.weight"):
        imported(published._replace(audio_vae=source), tmp_path / "package")


@pytest.mark.slow
def test_the_command(published: Published, tmp_path: Path, run) -> None:
    parts = {
        "--vae": published.vae,
        "--text-encoder": published.text_encoder,
        "--audio-vae": published.audio_vae,
        "--prior": published.prior,
        "--imagebind": published.imagebind,
    }
    package = tmp_path / "package"
    code, out, err = run("import", published.transformer, package, *(x for pair in parts.items() for x in pair))
    assert code == 0 and "javisdit-0.1" in out, err
    assert run("import", "--reverse", package, tmp_path / "back")[0] == 0
    assert describe(package).details["bridge"] == "bidirectional"
    assert "VASTDiT3" in str(describe(published.transformer))
    few = [x for pair in list(parts.items())[:2] for x in pair]
    code, _, err = run("import", published.transformer, tmp_path / "other", *few)
    assert code == 2 and "needs --audio-vae and --prior" in err
