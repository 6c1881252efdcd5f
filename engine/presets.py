"""Named model configurations, as data."""

from __future__ import annotations

import dataclasses

from .config import CodecConfig, DDiTConfig, ModelConfig, SamplingConfig, SequenceConfig

SYNCFLOW_XL = ModelConfig(
    name="syncflow-xl",
    sequence=SequenceConfig(),
    ddit=DDiTConfig(),
    sampling=SamplingConfig(),
    video_vae=CodecConfig("VideoAutoencoderPipeline", {"micro_frame_size": None}),
    audio_vae=CodecConfig("AudioCodec"),
    text_encoder=CodecConfig("T5EncoderModel", {"d_model": 4096, "num_layers": 24, "num_heads": 64, "d_ff": 10240}),
)

# Open-Sora 1.2: video without sound; its 240p clip of 2 s in 16:9 (configs/opensora-v1-2/inference/sample.py).
OPEN_SORA = ModelConfig(
    name="open-sora-1.2",
    sequence=SequenceConfig(seconds=51 / 24, width=426, height=240, fps=24, chunk_frames=17, any_size=True),
    ddit=DDiTConfig(bridge="none", audio_channels=1, latent_fps=6.0),
    sampling=SamplingConfig(steps=30, guidance=7.0, size_shift=True),
    video_vae=CodecConfig("VideoAutoencoderPipeline", {"micro_frame_size": 17}),
    audio_vae=CodecConfig("NoAudioCodec", {"sampling_rate": 48_000, "hop": 960, "latent_channels": 1}),
    text_encoder=SYNCFLOW_XL.text_encoder,
)

# JavisDiT 0.1: the same with sound, 4 s (configs/javisdit-v0-1/inference/sample_240p4s.py). Audio latents are 16 mel
# bins of 8 channels, 25 a second, and a multiple of 8 of them: whole blocks of 32 frames of the spectrogram.
JAVISDIT = dataclasses.replace(
    OPEN_SORA,
    name="javisdit-0.1",
    sequence=OPEN_SORA.sequence.replace(seconds=102 / 24, sample_rate=16_000, audio_hop=640, audio_multiple=8),
    ddit=OPEN_SORA.ddit.replace(
        bridge="bidirectional", audio_channels=128, audio_rate=25.0, audio_bins=16, audio_patch=4, prior_tokens=32
    ),
    audio_vae=CodecConfig("MelCodec"),
)

SYNCFLOW_TINY = ModelConfig(
    name="syncflow-tiny",
    sequence=SequenceConfig(width=64, height=64),
    ddit=DDiTConfig(
        width=128,
        depth=6,
        heads=4,
        audio_heads=4,
        video_channels=16,
        audio_channels=16,
        text_width=128,
        text_tokens=64,
        sigma_head=False,
        base_size=64,
        adaptor_tokens="frame",
    ),
    sampling=SamplingConfig(guidance=1.5, shift=3.0, video_lead=1.0, v2a_sync_guidance=1.0),
    video_vae=CodecConfig("AutoencoderKLLTXVideo"),
    audio_vae=CodecConfig("AudioCodec"),
    text_encoder=CodecConfig(
        "T5EncoderModel", {"d_model": 128, "num_layers": 2, "num_heads": 4, "d_ff": 256, "dropout_rate": 0.0}
    ),
)

# The other bridges keep codecs, text, sequence and width, so that models differ in what crosses between the towers.
SYNCPHONY_XL = dataclasses.replace(
    SYNCFLOW_XL,
    name="syncphony-xl",
    ddit=SYNCFLOW_XL.ddit.replace(depth=24, bridge="audio_rope", first_block=8),
    sampling=SYNCFLOW_XL.sampling.replace(sync_guidance=2.0),
)
SYNCPHONY_TINY = dataclasses.replace(
    SYNCFLOW_TINY,
    name="syncphony-tiny",
    ddit=SYNCFLOW_TINY.ddit.replace(bridge="audio_rope", first_block=2),
    sampling=SamplingConfig(guidance=2.0, shift=3.0, sync_guidance=2.0),
)
# SyncCFG alone, as in Harmony's equations: no text guidance on top of it.
HARMONY_XL = dataclasses.replace(
    SYNCFLOW_XL,
    name="harmony-xl",
    ddit=SYNCFLOW_XL.ddit.replace(bridge="global_local"),
    sampling=SYNCFLOW_XL.sampling.replace(steps=40, guidance=1.0, shift=5.0, sync_cfg_audio=2.0, sync_cfg_video=3.0),
)
HARMONY_TINY = dataclasses.replace(
    SYNCFLOW_TINY,
    name="harmony-tiny",
    ddit=SYNCFLOW_TINY.ddit.replace(bridge="global_local"),
    sampling=SYNCFLOW_TINY.sampling.replace(
        steps=40, guidance=1.0, shift=5.0, video_lead=0.0, sync_cfg_audio=2.0, sync_cfg_video=3.0, v2a_sync_guidance=0.0
    ),
)

TINY_AND_XL = SYNCFLOW_XL, SYNCFLOW_TINY, SYNCPHONY_XL, SYNCPHONY_TINY, HARMONY_XL, HARMONY_TINY
PRESETS = {config.name: config for config in (*TINY_AND_XL, OPEN_SORA, JAVISDIT)}


def preset(name: str) -> ModelConfig:
    """A named configuration: ``syncflow``, ``syncphony`` or ``harmony``, each ``-xl`` or ``-tiny``; ``open-sora-1.2``,
    ``javisdit-0.1``.

    Raises ``ValueError`` for another name.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
