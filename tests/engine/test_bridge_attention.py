"""Attention across the bridges: positions, windows, which tokens it reads, the style of a reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from syncflow.engine.model import DDiT, bridges

from .bridge_cases import (
    AUDIO,
    FRAMES,
    ROWS,
    SIDE,
    SMALL,
    flags,
    inputs,
    randomised,
    run,
)


def crossings(monkeypatch: pytest.MonkeyPatch, model: DDiT, given: dict[str, Tensor]) -> list[tuple[Any, ...]]:
    """Arguments of every cross-attention of the bridge in one forward."""
    calls: list[tuple[Any, ...]] = []
    attend = bridges.rope_cross_attention
    monkeypatch.setattr(bridges, "rope_cross_attention", lambda *args: calls.append(args) or attend(*args))
    run(model, **given)
    return calls


def test_audio_rope_stands_on_the_clock_of_the_latent_frames(monkeypatch):
    model = randomised("audio_rope", window=1.5)
    calls = crossings(monkeypatch, model, inputs())
    assert len(calls) == SMALL.depth
    tokens = (SIDE // SMALL.patch) ** 2
    for _, _, _, video, audio, frequencies, window, _ in calls:
        torch.testing.assert_close(video, (torch.arange(4.0) + 0.5).repeat_interleave(tokens))
        torch.testing.assert_close(audio, torch.arange(10.0) * 0.4)
        torch.testing.assert_close(frequencies, 1e4 ** (-torch.arange(0, 8, 2) / 8))
        assert window == 1.5


def test_global_local_reads_each_side_on_its_own_clock(monkeypatch):
    calls = crossings(monkeypatch, randomised("global_local"), inputs())
    assert len(calls) == 3 * SMALL.depth
    tokens = (SIDE // SMALL.patch) ** 2
    for to_video, to_audio, style in zip(calls[::3], calls[1::3], calls[2::3], strict=True):
        torch.testing.assert_close(to_video[3], (torch.arange(4.0) + 0.5).repeat_interleave(tokens))
        torch.testing.assert_close(to_video[4], torch.arange(10.0) * 0.4)
        torch.testing.assert_close(to_audio[3], torch.arange(10.0) * 0.4)
        torch.testing.assert_close(to_audio[4], torch.tensor([0.5, 1.5, 2.5, 3.5]).repeat_interleave(tokens))
        torch.testing.assert_close(to_audio[5], 2.5 * 1e4 ** (-torch.arange(0, 4, 2) / 4))  # by audio tokens
        assert (to_video[6], to_audio[6]) == (1.0, 1.0)
        assert not style[3].any()
        assert not style[4].any()
        assert style[6] < 0


@pytest.mark.parametrize("bridge", ["audio_rope", "global_local"])
def test_audio_outside_the_window_is_not_read(bridge):
    """One bridged layer without self-attention over time: a frame changes with the audio in its window alone."""
    model = randomised(bridge, depth=1)
    model.video.temporal_blocks[0].attn.proj.weight.zero_()
    model.audio.layers[0].attn.proj.weight.zero_()  # an audio token carries itself alone
    given = inputs()
    before = run(model, **given).video
    for token in range(AUDIO):
        changed = given["z_a"].clone()
        changed[:, token] += 1
        after = run(model, **given | {"z_a": changed}).video
        moved = (before != after).flatten(3).any(-1).any(1).any(0)
        assert moved.tolist() == [abs(frame + 0.5 - token * FRAMES / AUDIO) <= 1 for frame in range(FRAMES)]


def test_video_outside_the_window_is_not_read():
    model = randomised("global_local", depth=1)
    model.audio.layers[0].attn.proj.weight.zero_()
    given = inputs()
    before = run(model, **given).audio
    for frame in range(FRAMES):
        changed = given["z_v"].clone()
        changed[:, :, frame] += 1
        moved = (before != run(model, **given | {"z_v": changed}).audio).any(-1).any(0)
        middle = (frame + 0.5) * AUDIO / FRAMES
        assert moved.tolist() == [abs(token - middle) <= AUDIO / FRAMES for token in range(AUDIO)]


def entries(model: DDiT, given: dict[str, Any]) -> list[Tensor]:
    """What the self-attention of every spatial block reads, and what every temporal block does."""
    seen: list[Tensor] = []
    blocks = [block for layer in model.video.layers for block in layer]
    hooks = [block.attn.qkv.register_forward_hook(lambda _, x, __: seen.append(x[0])) for block in blocks]
    run(model, **given)
    for hook in hooks:
        hook.remove()
    return seen


def test_blocks_before_the_first_are_those_of_a_model_without_the_bridge():
    model, given = randomised("audio_rope", first_block=2), inputs()
    assert len(model.bridge.layers) == 1
    on = entries(model, given)
    off = entries(model, given | {"bridged": flags(False, False, False)})
    assert [torch.equal(a, b) for a, b in zip(on, off, strict=True)] == [True] * 4 + [False] * 2


def test_the_video_reads_audio_after_its_self_attention():
    model, given = randomised("audio_rope"), inputs()
    queried, packed = [], []
    hooks = [
        *(
            layer.cross_attn.q_linear.register_forward_hook(lambda _, x, __: queried.append(x[0]))
            for layer in model.audio.layers
        ),
        *(layer.kv_linear.register_forward_hook(lambda _, x, __: packed.append(x[0])) for layer in model.bridge.layers),
    ]
    run(model, **given)
    for hook in hooks:
        hook.remove()
    assert len(queried) == len(packed) == SMALL.depth
    assert all(torch.equal(a, b) for a, b in zip(queried, packed, strict=True))


def test_both_towers_read_the_entry_of_the_layer():
    model, given = randomised("global_local"), inputs()
    video, audio, read = [], [], []
    bridge = model.bridge.register_forward_pre_hook(lambda _, x: read.append(x[1:4]))
    first = model.video.layer, model.audio.layer
    model.video.layer = lambda i, state, *a, **k: video.append(state.x) or first[0](i, state, *a, **k)
    model.audio.layer = lambda i, state, *a, **k: audio.append((state.x, state.style)) or first[1](i, state, *a, **k)
    run(model, **given)
    bridge.remove()
    assert len(read) == SMALL.depth
    for (x_v, x_a, style), at_video, at_audio in zip(read, video, audio, strict=True):
        assert torch.equal(x_v, at_video)
        assert torch.equal(x_a, at_audio[0])
        assert torch.equal(style, at_audio[1])


def test_a_reference_sets_the_style_of_both():
    model, given = randomised("global_local"), inputs()
    one = run(model, **given, reference=torch.randn(ROWS, 4, 5, generator=torch.Generator().manual_seed(1)))
    two = run(model, **given, reference=torch.randn(ROWS, 4, 5, generator=torch.Generator().manual_seed(2)))
    none = run(model, **given)
    assert one.audio.shape == none.audio.shape == given["z_a"].shape
    for modality in ("video", "audio"):
        a, b, c = (getattr(v, modality) for v in (one, two, none))
        assert not torch.allclose(a, b, atol=1e-4)
        assert not torch.allclose(a, c, atol=1e-4)


def test_the_reference_takes_the_style_of_the_whole_video():
    """With the local paths shut, the video reaches the audio through the reference."""
    model, given = randomised("global_local"), inputs()
    for layer in model.bridge.layers:
        layer.to_audio.proj.weight.zero_()
    before = run(model, **given).audio
    changed = given["z_v"].clone()
    changed[:, :, 0] += 1
    assert (before != run(model, **given | {"z_v": changed}).audio).any(-1).all()
    for layer in model.bridge.layers:
        layer.style.proj.weight.zero_()
    assert torch.equal(run(model, **given).audio, run(model, **given | {"z_v": changed}).audio)


@pytest.mark.parametrize("bridge", ["adaptor", "audio_rope"])
def test_a_reference_needs_its_bridge(bridge):
    with pytest.raises(ValueError, match=f"needs the bridge global_local; this model has {bridge}"):
        run(randomised(bridge), **inputs(), reference=torch.zeros(ROWS, 4, 5))
