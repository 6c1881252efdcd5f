"""How much a step computes, by a formula over the shape of a model: enough to tell how long it will take, roughly."""

from __future__ import annotations

from ..config import DDiTConfig, SequenceConfig


def step_flops(config: DDiTConfig, sequence: SequenceConfig, rows: int = 2) -> float:
    """Floating-point operations of the layers of both towers in one step of ``rows`` branches.

    1 multiply-add = 2 operations. Embeddings and last projections, a few percent at most, are left out.
    """
    width, depth, mlp = config.width, config.depth, 2 * config.mlp_ratio
    frames, spatial, audio = sequence.latent_frames, sequence.spatial_tokens, sequence.audio_tokens
    video = frames * spatial

    def projections(tokens: int, matrices: float) -> float:
        return 2 * tokens * matrices * width**2

    def attention(queries: int, keys: int) -> float:
        return 4 * queries * keys * width

    def reads(queries: int, keys: int) -> float:
        """A cross-attention with its four projections."""
        return projections(queries, 2) + projections(keys, 2) + attention(queries, keys)

    block = projections(video, 6 + mlp) + attention(video, config.text_tokens)  # keys of the text are there already
    video_layer = 2 * block + attention(video, spatial) + attention(video, frames)
    tail = 1 + (config.text_tokens if config.audio_text else 0)
    audio_layer = projections(audio, 6 + mlp) + projections(tail, 2) + attention(audio, audio + tail)
    bridged = depth
    if config.bridge == "adaptor":
        context = frames if config.adaptor_tokens == "frame" else video
        adapted = 0.0 if config.adaptor_tokens == "none" else projections(context, 4) + attention(context, context)
        bridge = adapted + projections(context, 2) + attention(audio, context)
    elif config.bridge == "audio_rope":
        bridged, bridge = depth - config.first_block, reads(video, audio)
    else:
        bridge = reads(video, audio) + reads(audio, video)
    return rows * (depth * (video_layer + audio_layer) + bridged * bridge)
