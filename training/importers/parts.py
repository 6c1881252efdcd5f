"""What published models are made of beside their transformer: Open-Sora's video autoencoder and a T5 encoder."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ...engine.codecs.captions import OPEN_SORA as CAPTION_STYLE
from ...engine.codecs.files import bounded, read_config
from ...engine.codecs.opensora import CLASS_NAME, OpenSoraVAE
from ...engine.codecs.t5 import T5Encoder
from ...engine.codecs.video import renamed
from ...engine.config import CodecConfig, DDiTConfig
from ...engine.package import write_json
from ...engine.presets import OPEN_SORA
from .tensors import TensorInfo, finite, mismatches, open_tensors, refuse, write_tensors

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "spiece.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
BYTE_VOCABULARY = 384

Progress = Callable[[str], None]


@contextmanager
def package_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write a package in, which takes its place at the end; nothing is left of one that
    fails. Raises ``ValueError`` where ``target`` exists."""
    if target.exists():
        raise ValueError(f"{target} exists already; name a new folder")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def import_vae(source: Path, folder: Path, dtype: torch.dtype | None, progress: Progress) -> OpenSoraVAE:
    """Open-Sora's video autoencoder, from its folder."""
    published, files = read_config(source), open_tensors(source)
    if published.get("model_type") != CLASS_NAME:
        raise ValueError(f"{source} holds a {published.get('model_type')!r} model; Open-Sora's VAE says {CLASS_NAME!r}")
    with torch.device("meta"), bounded(source, {n: torch.empty(i.shape) for n, i in files.infos.items()}):
        vae = OpenSoraVAE(published)
    expected = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    original = dict(zip(renamed(files.infos), files.infos, strict=True))
    found = renamed(files.infos)
    refuse(source, "Open-Sora's VAE", mismatches(found, expected, "the VAE"))
    kept = ("shift", "scale")  # a few numbers that all latents pass through
    infos = {name: stored(info, None if name in kept else dtype) for name, info in found.items()}

    def read(name: str) -> Tensor:
        return finite(source, files.read(original[name]), original[name], infos[name].dtype)

    folder.mkdir()
    write_tensors(folder / "model.safetensors", infos, read, progress)
    write_json(folder / "config.json", published)
    return vae


def import_text(
    source: Path, tokenizer: Path | None, folder: Path, ddit: DDiTConfig, dtype: torch.dtype | None, progress: Progress
) -> CodecConfig:
    """The encoder of a T5, its decoder left out, with its tokenizer and the captions of Open-Sora."""
    published, files = read_config(source), open_tensors(source)
    if published.get("model_type") != "t5":
        raise ValueError(f"{source} holds a {published.get('model_type')!r} model; a text encoder must be a T5 ('t5')")
    with torch.device("meta"), bounded(source, {n: torch.empty(i.shape) for n, i in files.infos.items()}):
        encoder = T5Encoder(published)
    if encoder.config["d_model"] != ddit.text_width:
        raise ValueError(f"{source} has states of {encoder.config['d_model']}; the transformer reads {ddit.text_width}")
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    unused = {"encoder.embed_tokens.weight", "lm_head.weight"} - expected.keys()
    found = {n: i for n, i in files.infos.items() if n not in unused and not n.startswith("decoder.")}
    names = dict(zip(found, found, strict=True))
    if "shared.weight" not in found and "encoder.embed_tokens.weight" in files.infos:
        found["shared.weight"] = files.infos["encoder.embed_tokens.weight"]
        names["shared.weight"] = "encoder.embed_tokens.weight"
    refuse(source, "a T5 encoder", mismatches(found, expected, "the encoder"))
    infos = {name: stored(info, dtype) for name, info in found.items()}

    def read(name: str) -> Tensor:
        return finite(source, files.read(names[name]), names[name], infos[name].dtype)

    folder.mkdir()
    write_tensors(folder / "model.safetensors", infos, read, progress)
    copy_tokenizer(tokenizer or source, folder, encoder.config["vocab_size"])
    settings = published | {"architectures": ["T5EncoderModel"], "max_tokens": ddit.text_tokens}
    write_json(folder / "config.json", settings | {"caption_style": CAPTION_STYLE})
    return CodecConfig("T5EncoderModel", {name: encoder.config[name] for name in OPEN_SORA.text_encoder.settings})


def copy_tokenizer(source: Path, folder: Path, vocabulary: int) -> None:
    """The files of a tokenizer; bytes need none. Raises ``ValueError`` where there are none."""
    copied = [file for file in TOKENIZER_FILES if (source / file).is_file()]
    for file in copied:
        shutil.copyfile(source / file, folder / file)
    if not copied and vocabulary != BYTE_VOCABULARY:
        raise ValueError(f"{source} holds no tokenizer; it must hold tokenizer.json, spiece.model or vocab.json")


def stored(info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    """A tensor as it is written: in ``dtype``, or in its own."""
    return info if dtype is None else dataclasses.replace(info, dtype=dtype)
