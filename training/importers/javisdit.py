"""JavisDiT 0.1: its published transformer, autoencoders, vocoder, text and prior encoders, to a package and back.

| published | in the package |
|---|---|
| ``VASTDiT3`` | the d-DiT: STDiT3's tensors behind ``video.``, the others as :data:`LAYOUT` says |
| AudioLDM2's ``vae`` and ``vocoder`` folders | ``audio_vae`` |
| ``STIBPriorExtractor`` and ImageBind's text tower | ``text_encoder/prior`` |
| Open-Sora's video autoencoder, T5 | as of Open-Sora 1.2 |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.codecs.audio import STEM
from ...engine.codecs.files import bounded, read_config
from ...engine.codecs.mel import CLASS_NAME as MEL_CODEC
from ...engine.codecs.mel import MelCodec
from ...engine.codecs.prior import CLASS_NAME as PRIOR_ENCODER
from ...engine.codecs.prior import SETTINGS, PriorEncoder
from ...engine.codecs.text import PRIOR
from ...engine.config import CodecConfig, DDiTConfig
from ...engine.package import Package, write_json, write_manifest
from ...engine.presets import JAVISDIT
from .opensora import inferred_config, stdit3_config, video_codec, video_sequence
from .parts import Progress, copy_tokenizer, import_text, import_vae, package_folder, stored
from .tensors import TensorInfo, finite, mismatches, open_tensors, refuse, write_tensors
from .transformer import Layout, import_transformer

ARCHITECTURE = "VASTDiT3"
WORDS, TRUNK = "modality_preprocessors.text.", "modality_trunks.text."
TEXT = "text_encoder."
SPARE = (f"{TEXT}{WORDS}mask", f"{TEXT}modality_heads.", f"{TEXT}modality_postprocessors.")


def vastdit3_config(published: Mapping[str, Any]) -> DDiTConfig:
    """The configuration of the towers of a published ``config.json``. Raises ``ValueError`` for one of another kind."""
    video = stdit3_config(published)
    patch = published.get("audio_patch_size", [4, 1])
    if not isinstance(patch, (list, tuple)) or len(patch) != 2 or patch[1] != 1:
        raise ValueError(f"audio_patch_size is {patch}; it must be a number of latent frames, and 1 mel bin")
    spatial, temporal = (published.get(f"{kind}_prior_len", 32) for kind in ("spatial", "temporal"))
    if spatial != temporal:
        raise ValueError(f"spatial_prior_len is {spatial} and temporal_prior_len {temporal}; they must be the same")
    expected = {"st_prior_utilize": "cross_attn", "require_onset": False, "only_infer_audio": False}
    for name, value in (expected | {"train_st_prior_attn": True, "train_va_cross_attn": True}).items():
        if published.get(name, value) != value:
            raise ValueError(f"{name} is {published[name]!r}; it must be {value!r}, as in JavisDiT 0.1")
    channels, bins = published.get("audio_in_channels", 8), JAVISDIT.ddit.audio_bins
    if not isinstance(channels, int):
        raise ValueError(f"audio_in_channels is {channels!r}; it must be a whole number")
    return JAVISDIT.ddit.replace(
        **{name: getattr(video, name) for name in SHARED},
        audio_heads=video.heads,
        audio_channels=channels * bins,
        audio_patch=patch[0],
        prior_tokens=spatial,
        prior_width=published.get("st_prior_channel", 128),
    )


SHARED = (
    "width", "depth", "heads", "mlp_ratio", "patch", "video_channels", "text_width", "text_tokens", "sigma_head",
    "base_size",
)  # fmt: skip


def inferred_vastdit3(infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The ``config.json`` of a bare file, from the shapes of its tensors.

    Raises ``ValueError`` where they do not tell the size.
    """
    found = inferred_config(infos)
    for name, rank in (("ax_embedder.proj.weight", 4), ("st_prior_embedder.y_embedding", 2)):
        if name not in infos or len(infos[name].shape) != rank:
            raise ValueError(f"no config.json is there, and {name} does not tell the size of a {ARCHITECTURE}")
    _, channels, *patch = infos["ax_embedder.proj.weight"].shape
    tokens, width = infos["st_prior_embedder.y_embedding"].shape
    return found | {
        "model_type": ARCHITECTURE,
        "audio_in_channels": channels,
        "audio_patch_size": patch,
        "spatial_prior_len": tokens // 2,
        "temporal_prior_len": tokens // 2,
        "st_prior_channel": width,
    }


LAYOUT = Layout(
    "javisdit-0.1",
    ARCHITECTURE,
    "JavisDiT 0.1",
    vastdit3_config,
    inferred_vastdit3,
    {
        "ax_embedder.": "audio.x_embedder.",
        "audio_y_embedder.": "audio.y_embedder.",
        "audio_spatial_blocks.": "audio.spatial_blocks.",
        "audio_temporal_blocks.": "audio.temporal_blocks.",
        "audio_final_layer.": "audio.final_layer.",
        "st_t_block.": "prior.t_block.",
        "st_prior_embedder.": "prior.embedder.",
        "video_st_prior_blocks.": "prior.video_blocks.",
        "audio_st_prior_blocks.": "prior.audio_blocks.",
        "va_cross_blocks.": "bridge.layers.",
    },
)


def import_javisdit(
    transformer: Path,
    vae: Path,
    text_encoder: Path,
    audio_vae: Path,
    prior: Path,
    target: Path,
    *,
    imagebind: Path | None = None,
    tokenizer: Path | None = None,
    prior_tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    name: str = JAVISDIT.name,
    progress: Progress = lambda name: None,
) -> Package:
    """Make a package of a VASTDiT3 and the parts that it works with.

    ``audio_vae`` has AudioLDM2's folders ``vae`` and ``vocoder``; ``prior`` is the prior extractor, with ImageBind's
    text tower in it or in the file ``imagebind``, and ``prior_tokenizer`` the folder of its tokenizer (CLIP's), by
    default ``prior``. The others, and what is refused, as of
    :func:`~syncflow.training.importers.opensora.import_opensora`.
    """
    with package_folder(target) as part:
        ddit = import_transformer(LAYOUT, transformer, part / "ddit", dtype, progress)
        video = import_vae(vae, part / "video_vae", dtype, progress)
        text = import_text(text_encoder, tokenizer, part / "text_encoder", ddit, dtype, progress)
        audio = import_mel_codec(audio_vae, part / "audio_vae", dtype, progress)
        import_prior(prior, imagebind, prior_tokenizer, part / "text_encoder" / PRIOR, ddit, dtype, progress)
        if (audio.channels, audio.bins) != (ddit.audio_channels, ddit.audio_bins):
            raise ValueError(
                f"{audio_vae} has {audio.channels // audio.bins} channels of {audio.bins} mel bins; the transformer "
                f"reads {ddit.audio_channels // ddit.audio_bins} of {ddit.audio_bins}"
            )
        sequence = video_sequence(JAVISDIT.sequence, ddit, video).replace(
            sample_rate=audio.sample_rate, audio_hop=audio.hop, audio_multiple=audio.multiple
        )
        config = dataclasses.replace(
            JAVISDIT,
            name=name,
            ddit=ddit.replace(audio_rate=sequence.audio_rate, latent_fps=sequence.latent_fps),
            sequence=sequence,
            video_vae=video_codec(video),
            audio_vae=CodecConfig(MEL_CODEC),
            text_encoder=text,
        )
        write_json(part / "ddit" / "config.json", config.ddit.to_dict())
        package = write_manifest(part, config)
    return dataclasses.replace(package, path=target)


def import_mel_codec(source: Path, folder: Path, dtype: torch.dtype | None, progress: Progress) -> MelCodec:
    """AudioLDM2's mel autoencoder and vocoder, from the folder of its pipeline."""
    parts = {name: source / name for name in ("vae", "vocoder")}
    files = {name: open_tensors(path) for name, path in parts.items()}
    settings = {name: _without_pointers(read_config(path)) for name, path in parts.items()}
    found = {f"{part}.{name}": info for part, one in files.items() for name, info in one.infos.items()}
    with torch.device("meta"), bounded(source, {name: torch.empty(info.shape) for name, info in found.items()}):
        codec = MelCodec(settings)
    expected = {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}
    refuse(source, "AudioLDM2's mel codec", mismatches(found, expected, "the mel codec"))
    infos = {name: stored(info, dtype) for name, info in found.items()}

    def read(name: str) -> Tensor:
        part, _, within = name.partition(".")
        return finite(source, files[part].read(within), name, infos[name].dtype)

    folder.mkdir()
    write_tensors(folder / f"{STEM}.safetensors", infos, read, progress)
    write_json(folder / "config.json", settings | {"_class_name": MEL_CODEC})
    return codec


def import_prior(
    source: Path,
    imagebind: Path | None,
    tokenizer: Path | None,
    folder: Path,
    ddit: DDiTConfig,
    dtype: torch.dtype | None,
    progress: Progress,
) -> None:
    """The prior extractor and ImageBind's text tower, whose other towers are left out."""
    files = open_tensors(source)
    published = read_config(source) if (source / "config.json").is_file() else {}
    if not published.get("apply_sampling", True) or published.get("pred_onset"):
        raise ValueError(f"{source} samples no prior, or predicts onsets; it must be the prior of JavisDiT 0.1")
    where = {name: (files, name) for name in files.infos if not name.startswith(SPARE)}
    if imagebind is not None:
        of_text = open_tensors(imagebind)
        where |= {TEXT + n: (of_text, n) for n in of_text.infos if n.startswith((WORDS, TRUNK)) and n != f"{WORDS}mask"}
    if not any(name.startswith(TEXT) for name in where):
        raise ValueError(f"{source} holds no text tower of ImageBind; name its file (--imagebind)")
    found = {name: held.infos[within] for name, (held, within) in where.items()}
    settings = {name: value for name, value in published.items() if name in SETTINGS} | _text_sizes(found)
    with torch.device("meta"), bounded(source, {name: torch.empty(info.shape) for name, info in found.items()}):
        encoder = PriorEncoder(settings)
    if (encoder.tokens, encoder.width) != (ddit.prior_tokens, ddit.prior_width):
        raise ValueError(
            f"{source} makes twice {encoder.tokens} tokens of {encoder.width}; the transformer reads twice "
            f"{ddit.prior_tokens} of {ddit.prior_width}"
        )
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    refuse(source, "JavisDiT's prior encoder", mismatches(found, expected, "the prior encoder"))
    infos = {name: stored(info, dtype) for name, info in found.items()}

    def read(name: str) -> Tensor:
        held, within = where[name]
        return finite(held.path, held.read(within), within, infos[name].dtype)

    folder.mkdir()
    write_tensors(folder / "model.safetensors", infos, read, progress)
    write_json(folder / "config.json", encoder.config | {"_class_name": PRIOR_ENCODER})
    copy_tokenizer(tokenizer or source, folder, encoder.config["vocab_size"])


def _text_sizes(found: Mapping[str, TensorInfo]) -> dict[str, int]:
    """What the tensors tell of ImageBind's text tower: all but its number of heads, 64 wide each."""
    words, positions = (f"{TEXT}{WORDS}{name}" for name in ("token_embedding.weight", "pos_embed"))
    if not all(name in found and len(found[name].shape) == rank for name, rank in ((words, 2), (positions, 3))):
        raise ValueError(f"{words} and {positions} must tell the size of ImageBind's text tower")
    vocabulary, width = found[words].shape
    blocks = [
        int(n.split(".")[4]) for n in found if n.startswith(f"{TEXT}{TRUNK}blocks.") and n.split(".")[4].isdigit()
    ]
    sizes = {"vocab_size": vocabulary, "text_emb_dim": width, "text_length": found[positions].shape[1]}
    return sizes | {"text_layers": 1 + max(blocks, default=0), "text_heads": max(1, width // 64)}


def _without_pointers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the names of what wrote it and of where it came from."""
    return {name: value for name, value in config.items() if not name.startswith("_")}
