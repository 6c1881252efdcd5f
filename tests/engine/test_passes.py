"""Passes of a SyncFlow model: velocities of some rows, contexts of others, and the audio that reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from syncflow.engine.model import DDiT, audio
from syncflow.engine.model.denoiser import ALL_ROWS, AudioInputs, VideoContextRef
from syncflow.engine.sampling.sequential import batch_of
from syncflow.kernels import rope_table

from . import plain
from .model_cases import AUDIO, FRAMES, ROWS, SIDE, SMALL, close, features_of, inputs, passes, randomised, run


def middles(frames: int) -> torch.Tensor:
    """The middle of each latent frame, in seconds."""
    return (torch.arange(frames) + 0.5) / SMALL.latent_fps


@pytest.fixture(scope="module")
def model() -> DDiT:
    return randomised(SMALL)


@pytest.mark.parametrize("adaptor_tokens", ["all", "frame", "none"])
def test_contexts_are_keys_and_values_of_the_adapted_tokens(adaptor_tokens):
    config = SMALL.replace(adaptor_tokens=adaptor_tokens)
    model = randomised(config)
    video, _ = passes(model, inputs(frames=3))
    features = features_of(model, video)
    _, contexts = model.video_pass(replace(video, context_rows=torch.arange(ROWS)))
    tokens = 3 if adaptor_tokens == "frame" else 3 * (SIDE // 2) ** 2
    rope = rope_table(model.video_token_positions(middles(3), (SIDE // 2) ** 2)[:, None] * model.audio.freqs)
    assert len(contexts) == len(features) == config.depth
    for i, (context, feature) in enumerate(zip(contexts, features, strict=True)):
        x = feature.mean(2) if adaptor_tokens == "frame" else feature.flatten(1, 2)
        x = x if adaptor_tokens == "none" else model.audio.adaptors[i](x, rope)
        assert context.shape == (ROWS, tokens, 2, config.audio_heads, config.audio_head_width)
        close(context.unbind(2), model.audio.layers[i].cross_attn.keys_values(x))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=30)
def test_a_video_pass_gives_what_it_is_asked_for(model, data):
    """Velocities of the first rows, contexts of any."""
    rows = data.draw(st.integers(1, 4))
    num_outputs = data.draw(st.none() | st.integers(0, rows))
    context_rows = data.draw(st.none() | st.lists(st.integers(0, rows - 1), min_size=1, max_size=4))
    video, _ = passes(model, inputs(rows))
    whole, contexts = model.video_pass(replace(video, context_rows=torch.arange(rows)))
    index = None if context_rows is None else torch.tensor(context_rows)
    velocity, found = model.video_pass(replace(video, num_outputs=num_outputs, context_rows=index))
    assert len(velocity) >= (rows if num_outputs is None else num_outputs)
    close(velocity[:num_outputs], whole[:num_outputs])
    assert len(found) == (0 if context_rows is None else SMALL.depth)
    for one, every in zip(found, contexts, strict=False):
        close(one, every[context_rows])


class Selections(TorchDispatchMode):
    """Counts the copies of selected rows of features of this shape (R, …) without R."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::index", "aten::index_select") and args[0].shape[1:] == self.shape
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adaptor_tokens", ["all", "frame", "none"])
def test_no_features_are_copied_where_every_row_gives_a_context(adaptor_tokens):
    model = randomised(SMALL.replace(adaptor_tokens=adaptor_tokens))
    video, _ = passes(model, inputs(3))
    tokens = FRAMES if adaptor_tokens == "frame" else FRAMES * (SIDE // 2) ** 2
    with Selections(tokens, SMALL.width) as selections:
        found = model.video_pass(replace(video, num_outputs=2, context_rows=ALL_ROWS))
    assert selections.count == 0
    with selections:
        expected = model.video_pass(replace(video, num_outputs=2, context_rows=torch.arange(3)))
    assert selections.count == SMALL.depth
    assert torch.equal(found[0], expected[0])
    assert all(map(torch.equal, found[1], expected[1]))


@pytest.mark.parametrize(("leads", "copies"), [((0.0, 0.0), 0), ((0.0, 1.0), plain.CONFIG.depth)])
def test_a_step_copies_no_features_where_every_row_gives_a_context(leads, copies):
    """The rows of a request whose sound does not move yet give no context."""
    batch = batch_of(plain.randomised())
    batch.join([plain.job(seed, steps=4, lead=lead) for seed, lead in enumerate(leads)])
    with Selections(plain.VIDEO_SHAPE[1], plain.CONFIG.width) as selections:
        batch.step()
    assert selections.count == copies


@pytest.mark.slow
@given(st.data())
@settings(max_examples=30)
def test_audio_rows_read_the_contexts_that_they_are_given(model, data):
    """One by one the same as together: each its own context, another's, or none."""
    rows, contexts = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    of_row = data.draw(st.lists(st.integers(-1, contexts - 1), min_size=rows, max_size=rows))
    num_outputs = data.draw(st.none() | st.integers(0, rows))
    (video, _), (_, audio) = passes(model, inputs(contexts)), passes(model, inputs(rows, seed=1))
    _, context = model.video_pass(replace(video, context_rows=torch.arange(contexts)))
    positions = model.video_token_positions(middles(FRAMES), (SIDE // 2) ** 2)
    ref = VideoContextRef(positions, torch.tensor(of_row))
    together, no_context = model.audio_pass(
        replace(audio, video_context=context, video_context_ref=ref, num_outputs=num_outputs)
    )
    assert no_context == []
    for r in range(rows)[:num_outputs]:
        row, c = slice(r, r + 1), of_row[r]
        alone = AudioInputs(audio.latents[row], audio.time_token[row], audio.text, audio.text_of_row[row])
        if c >= 0:
            own = [part[c : c + 1] for part in context]
            alone = replace(alone, video_context=own, video_context_ref=VideoContextRef(positions))
        close(together[r], model.audio_pass(alone)[0][0])


@pytest.mark.parametrize("audio_text", [False, True])
def test_the_audio_tower_reads_text_when_it_is_told_to(audio_text):
    model, given = randomised(SMALL.replace(audio_text=audio_text)), inputs()
    shape = (ROWS, FRAMES, 2, SMALL.audio_heads, SMALL.audio_head_width)
    context = [torch.randn(shape) for _ in range(SMALL.depth)]
    ref = VideoContextRef(model.video_token_positions(middles(FRAMES), tokens=1))

    def velocity(states):
        _, audio = passes(model, given | {"states": states})
        return model.audio_pass(replace(audio, video_context=context, video_context_ref=ref))[0]

    before, after = velocity(given["states"]), velocity(given["states"] + 1)
    assert torch.equal(before, after) is not audio_text


def test_the_bridge_carries_features_after_temporal_attention(model):
    """Layer l hands over what its temporal block's attention makes, before text and MLP."""
    video, _ = passes(model, inputs())
    seen = {}
    hooks = []
    for i, block in enumerate(model.video.temporal_blocks):
        hooks.append(block.cross_attn.q_linear.register_forward_hook(lambda _, x, __, i=i: seen.update({i: x[0]})))
    features = features_of(model, video)
    for hook in hooks:
        hook.remove()
    assert len(features) == SMALL.depth
    for i, feature in enumerate(features):
        torch.testing.assert_close(feature.flatten(1, 2), seen[i], rtol=0, atol=0)


def test_audio_positions_are_seconds_on_both_sides(model, monkeypatch):
    """Audio token k sounds at k / 50 s, a latent frame stands in the middle of its quarter second.

    The time token is the tail, which stands at 0.
    """
    calls = []
    attend = audio.rope_cross_attention
    monkeypatch.setattr(audio, "rope_cross_attention", lambda *args: calls.append(args[3:]) or attend(*args))
    given = inputs()
    run(model, **given)
    assert len(calls) == SMALL.depth
    tokens = (SIDE // SMALL.patch) ** 2
    for layer, (sounds, context, frequencies, window, _, *tail) in zip(model.audio.layers, calls, strict=True):
        torch.testing.assert_close(sounds, torch.arange(float(AUDIO)))
        torch.testing.assert_close(context, torch.tensor([6.25] * tokens + [18.75] * tokens))
        torch.testing.assert_close(frequencies, 1e4 ** (-torch.arange(0, 8, 2) / 8))
        assert window < 0
        torch.testing.assert_close(tail, list(layer.cross_attn.keys_values(model.audio_time(given["t_a"])[:, None])))
