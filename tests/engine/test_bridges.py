"""Bridges between the towers: directions, windows, what is skipped, the kernels' path, and that they learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from syncflow import preset
from syncflow.engine.config import DDiTConfig
from syncflow.engine.model import DDiT, bridges
from syncflow.engine.model.denoiser import AudioInputs, JointInputs, Modulation, VideoInputs
from syncflow.engine.types import Velocities
from syncflow.kernels.launch import implementation

BRIDGES = ("adaptor", "audio_rope", "global_local")
SMALL = DDiTConfig(
    width=16,
    depth=3,
    heads=2,
    audio_heads=4,
    video_channels=3,
    audio_channels=5,
    text_width=8,
    text_tokens=6,
    base_size=32,
    adaptor_tokens="frame",
)
ROWS, FRAMES, SIDE, AUDIO = 3, 4, 4, 10


def fresh(bridge: str, **changes: Any) -> DDiT:
    """Random weights outside the bridge; what a bridge starts with stays."""
    return randomised(bridge, outside="bridge.", **changes)


def randomised(bridge: str, outside: str = "none", seed: int = 0, **changes: Any) -> DDiT:
    """A model none of whose weights is zero, except those whose name begins with ``outside``."""
    model = DDiT(SMALL.replace(bridge=bridge, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(outside):
                generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model.requires_grad_(False)


def inputs(rows: int = ROWS, seed: int = 0, config: DDiTConfig = SMALL) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "z_v": torch.randn(rows, config.video_channels, FRAMES, SIDE, SIDE, generator=generator),
        "z_a": torch.randn(rows, AUDIO, config.audio_channels, generator=generator),
        "t_v": torch.rand(rows, generator=generator),
        "t_a": torch.rand(rows, generator=generator),
        "fps": torch.full((rows,), 16.0),
        "states": torch.randn(rows, config.text_tokens, config.text_width, generator=generator),
    }


def run(model: DDiT, *, states: Tensor, **given: Any) -> Velocities:
    text = model.video.condition(states, torch.full((len(states),), model.config.text_tokens))
    return model(**given, text=text, text_of_row=torch.arange(len(states)))


def passes(model: DDiT, given: dict[str, Tensor]) -> tuple[VideoInputs, AudioInputs]:
    """Inputs of the video pass and of the audio pass, a text for every row."""
    states, rows = given["states"], torch.arange(len(given["states"]))
    text = model.condition(states, torch.full((len(states),), model.config.text_tokens))
    times = model.modulation(given["t_v"][:, None], given["fps"]), model.audio_time(given["t_a"])
    return VideoInputs(given["z_v"], times[0], text, rows), AudioInputs(given["z_a"], times[1], text, rows)


def apart(model: DDiT, given: dict[str, Tensor]) -> Velocities:
    """Both towers on their own, as if the model had no bridge."""
    video, audio = passes(model, given)
    return Velocities(model.video_pass(video)[0], model.audio_pass(audio)[0])


def same(one: Velocities, other: Velocities, rows: Any = slice(None)) -> bool:
    return torch.equal(one.video[rows], other.video[rows]) and torch.equal(one.audio[rows], other.audio[rows])


def flags(*values: bool) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("bridge", "audio_text"),
    [(bridge, text) for bridge in BRIDGES for text in (False, True) if bridge != "adaptor" or not text],
)
def test_a_skipped_bridge_is_a_model_without_it(bridge, audio_text):
    model, given = randomised(bridge, audio_text=audio_text), inputs()
    assert same(run(model, **given, bridged=flags(False, False, False)), apart(model, given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_skipped_bridge_in_one_attention_with_words_leaves_roundings(dtype):
    """The keys of the video stand before those of the words with a weight of zero: a longer sum of the same numbers."""
    model, given = randomised("adaptor", audio_text=True).to(dtype), {k: x.to(dtype) for k, x in inputs().items()}
    skipped, alone = run(model, **given, bridged=flags(False, False, False)), apart(model, given)
    assert torch.equal(skipped.video, alone.video)
    roundings = 8 * torch.finfo(dtype).eps * alone.audio.abs().max().item()
    torch.testing.assert_close(skipped.audio, alone.audio, rtol=0, atol=roundings)


def test_a_skipped_bridge_hides_the_reference():
    model, given = randomised("global_local"), inputs()
    skipped = run(model, **given, bridged=flags(False, False, False), reference=torch.randn(ROWS, 4, 5))
    assert same(skipped, apart(model, given))


def test_the_towers_of_the_three_models_are_the_same():
    """A skipped bridge leaves the towers, whose weights do not depend on the bridge."""
    given, skipped = inputs(), flags(False, False, False)
    one, two, three = (run(randomised(bridge), **given, bridged=skipped) for bridge in BRIDGES)
    assert same(one, two)
    assert same(one, three)


def test_a_fresh_audio_rope_bridge_changes_nothing():
    model, given = fresh("audio_rope"), inputs()
    assert same(run(model, **given), apart(model, given))


def test_a_fresh_global_local_bridge_leaves_the_video_as_it_is():
    """The audio already hears the token that stands for no reference."""
    model, given = fresh("global_local"), inputs()
    joint, alone = run(model, **given), apart(model, given)
    assert torch.equal(joint.video, alone.video)
    changed = run(model, **given | {"z_v": given["z_v"] * 0.5})
    assert torch.equal(joint.audio, changed.audio)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_a_bridge_matters_where_it_is_on(bridge):
    model, given = randomised(bridge), inputs()
    joint, alone = run(model, **given), apart(model, given)
    assert torch.allclose(joint.video, alone.video, atol=1e-4) is not model.config.video_reads_audio
    assert torch.allclose(joint.audio, alone.audio, atol=1e-4) is not model.config.audio_reads_video


@pytest.mark.parametrize("bridge", BRIDGES)
def test_all_on_is_the_default(bridge):
    model, given = randomised(bridge), inputs()
    assert same(run(model, **given), run(model, **given, bridged=flags(True, True, True)))


@pytest.mark.parametrize("bridge", BRIDGES)
def test_a_row_does_not_depend_on_the_flags_of_others(bridge):
    model, given = randomised(bridge), inputs()
    on, off = run(model, **given), run(model, **given, bridged=flags(False, False, False))
    mixed = run(model, **given, bridged=flags(True, False, True))
    assert same(mixed, on, [0, 2])
    assert same(mixed, off, [1])


@pytest.mark.parametrize("bridge", BRIDGES)
def test_a_row_does_not_depend_on_its_neighbours(bridge):
    model, given = randomised(bridge), inputs()
    bridged = flags(True, False, True)
    together = run(model, **given, bridged=bridged)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = run(model, **{name: value[one] for name, value in given.items()}, bridged=bridged[one])
        torch.testing.assert_close(together.video[one], alone.video, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.audio[one], alone.audio, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("what", "other"), [("z_v", "audio"), ("t_v", "audio"), ("z_a", "video"), ("t_a", "video")])
@pytest.mark.parametrize("bridge", BRIDGES)
def test_who_reads_whom(bridge, what, other):
    model, given = randomised(bridge), inputs()
    before, after = run(model, **given), run(model, **given | {what: given[what] * 0.5})
    reads = model.config.audio_reads_video if other == "audio" else model.config.video_reads_audio
    before, after = getattr(before, other), getattr(after, other)
    if reads:
        assert not torch.allclose(before, after, atol=1e-4)
    else:
        assert torch.equal(before, after)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_frames_may_have_times_of_their_own(bridge):
    model, given = randomised(bridge), inputs()
    one = run(model, **given)
    repeated = run(model, **given | {"t_v": given["t_v"][:, None].expand(-1, FRAMES)})
    torch.testing.assert_close(one.video, repeated.video, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.audio, repeated.audio, rtol=1e-4, atol=1e-4)
    changed = run(model, **given | {"t_v": torch.linspace(0, 1, FRAMES).expand(ROWS, -1)})
    assert not torch.allclose(one.video, changed.video, atol=1e-4)


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
        torch.testing.assert_close(video, torch.arange(4.0).repeat_interleave(tokens))
        torch.testing.assert_close(audio, torch.arange(10.0) * 0.4)
        torch.testing.assert_close(frequencies, 1e4 ** (-torch.arange(0, 8, 2) / 8))
        assert window == 1.5


def test_global_local_reads_each_side_on_its_own_clock(monkeypatch):
    calls = crossings(monkeypatch, randomised("global_local"), inputs())
    assert len(calls) == 3 * SMALL.depth
    tokens = (SIDE // SMALL.patch) ** 2
    for to_video, to_audio, style in zip(calls[::3], calls[1::3], calls[2::3], strict=True):
        torch.testing.assert_close(to_video[3], torch.arange(4.0).repeat_interleave(tokens))
        torch.testing.assert_close(to_video[4], torch.arange(10.0) * 0.4)
        torch.testing.assert_close(to_audio[3], torch.arange(10.0) * 0.4)
        torch.testing.assert_close(to_audio[4], torch.tensor([0.5, 1.5, 2.5, 3.5]).repeat_interleave(tokens))
        torch.testing.assert_close(to_audio[5], 2.5 * 1e4 ** (-torch.arange(0, 4, 2) / 4))  # by audio tokens
        assert (to_video[6], to_audio[6]) == (1.0, 1.0)
        assert not style[3].any()
        assert not style[4].any()
        assert style[6] < 0


@pytest.mark.parametrize("bridge", ["audio_rope", "global_local"])
def test_audio_outside_the_window_is_not_heard(bridge):
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
        assert moved.tolist() == [abs(frame - token * FRAMES / AUDIO) <= 1 for frame in range(FRAMES)]


def test_video_outside_the_window_is_not_seen():
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


def one(video: VideoInputs, row: int) -> VideoInputs:
    """A row of the inputs of a video pass."""
    index = slice(row, row + 1)
    modulation = Modulation(*(part[index] for part in video.modulation))
    return VideoInputs(video.latents[index], modulation, video.text, video.text_of_row[index])


@pytest.mark.parametrize("first_block", [0, 2])
@examples(st.data())
@settings(max_examples=20)
def test_rows_share_prefixes_and_contexts(first_block, data):
    """What guidance away from a skipped bridge needs: layers that rows agree on once, then each reads its own."""
    model = randomised("audio_rope", first_block=first_block)
    rows = data.draw(st.integers(1, 4))
    picks = [st.lists(st.integers(low, ROWS - 1), min_size=rows, max_size=rows) for low in (0, -1)]
    prefix_of_row, context_of_row = data.draw(picks[0]), data.draw(picks[1])
    video, audio = passes(model, inputs())
    _, contexts = model.audio_pass(audio)
    together, _ = model.video_pass(
        replace(
            video,
            audio_context=contexts,
            audio_context_of_row=torch.tensor(context_of_row),
            prefix_of_row=torch.tensor(prefix_of_row),
        )
    )
    assert len(together) == rows
    for row, (prefix, context) in enumerate(zip(prefix_of_row, context_of_row, strict=True)):
        own = None if context < 0 else [part[context : context + 1] for part in contexts]
        alone, _ = model.video_pass(replace(one(video, prefix), audio_context=own))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_audio_rows_without_a_velocity_still_have_contexts(count):
    model = randomised("audio_rope", first_block=1)
    _, audio = passes(model, inputs())
    whole, every = model.audio_pass(audio)
    velocity, contexts = model.audio_pass(replace(audio, num_outputs=count))
    torch.testing.assert_close(velocity[:count], whole[:count])
    for part, other in zip(contexts, every, strict=True):
        assert torch.equal(part, other)


@examples(st.data())
@settings(max_examples=20)
def test_a_joint_pass_gives_what_it_is_asked_for(data):
    """Any rows see each other, any have velocities of the video or of the audio."""
    model, given = randomised("global_local"), inputs()
    some = st.sets(st.integers(0, ROWS - 1)).map(sorted)
    bridged, video_rows, audio_rows = (torch.tensor(data.draw(some), dtype=torch.long) for _ in range(3))
    reference = torch.randn(ROWS, 4, 5) if data.draw(st.booleans()) else None
    flagged = torch.zeros(ROWS, dtype=torch.bool).index_fill(0, bridged, True)
    whole = run(model, **given, bridged=flagged, reference=reference)
    video, audio = passes(model, given)
    found = model.joint_pass(
        JointInputs(
            video.latents,
            audio.latents,
            video.modulation,
            audio.time_token,
            video.text,
            video.text_of_row,
            bridged_rows=bridged,
            reference=None if reference is None else reference[bridged],
            video_output_rows=video_rows,
            audio_output_rows=audio_rows,
        )
    )
    torch.testing.assert_close(found.video, whole.video[video_rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.audio, whole.audio[audio_rows], rtol=1e-4, atol=1e-5)


def test_the_video_hears_audio_after_its_self_attention():
    model, given = randomised("audio_rope"), inputs()
    seen, heard = [], []
    hooks = [
        *(
            layer.cross_attn.q_linear.register_forward_hook(lambda _, x, __: seen.append(x[0]))
            for layer in model.audio.layers
        ),
        *(layer.kv_linear.register_forward_hook(lambda _, x, __: heard.append(x[0])) for layer in model.bridge.layers),
    ]
    run(model, **given)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(heard) == SMALL.depth
    assert all(torch.equal(a, b) for a, b in zip(seen, heard, strict=True))


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


@pytest.mark.parametrize("bridge", BRIDGES)
def test_the_kernels_agree_with_the_references(bridge):
    model, given = randomised(bridge, depth=2), inputs(rows=2)
    results = []
    for name in ("reference", "triton"):
        with implementation(name):
            results.append([run(model, **given), run(model, **given, bridged=flags(True, False))])
    for reference, triton in zip(*results, strict=True):
        torch.testing.assert_close(triton.video, reference.video, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(triton.audio, reference.audio, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_weights_are_all_there_is_to_a_model(bridge):
    model, given = randomised(bridge), inputs()
    with torch.device("meta"):
        loaded = DDiT(model.config)
    loaded.load_state_dict(model.state_dict(), assign=True)
    assert same(run(model, **given), run(loaded.eval().requires_grad_(False), **given))


@pytest.mark.parametrize("bridge", BRIDGES)
def test_half_precision_runs(bridge):
    model = randomised(bridge).to(torch.bfloat16)
    given = {name: x.bfloat16() if name in ("z_v", "z_a", "states") else x for name, x in inputs().items()}
    velocities = run(model, **given, bridged=flags(True, False, True))
    assert velocities.video.dtype == velocities.audio.dtype == torch.bfloat16
    assert velocities.video.isfinite().all()
    assert velocities.audio.isfinite().all()


@pytest.mark.parametrize("name", ["syncphony-xl", "harmony-xl", "syncflow-xl"])
def test_the_full_size_forward_without_memory(name):
    config = preset(name)
    s, d = config.sequence, config.ddit
    with torch.device("meta"), torch.no_grad():
        model = DDiT(d)
        z_v = torch.zeros(2, d.video_channels, s.latent_frames, s.latent_height, s.latent_width)
        z_a, t, fps = torch.zeros(2, s.audio_tokens, d.audio_channels), torch.zeros(2), torch.zeros(2)
        states = torch.zeros(2, d.text_tokens, d.text_width)
        velocities = run(model, z_v=z_v, z_a=z_a, t_v=t, t_a=t, fps=fps, states=states)
    assert velocities.video.shape == z_v.shape
    assert velocities.audio.shape == z_a.shape


def test_the_video_tower_of_harmony_is_that_of_open_sora():
    with torch.device("meta"):
        one, other = (DDiT(preset(name).ddit) for name in ("syncflow-xl", "harmony-xl"))
    shapes = [{name: x.shape for name, x in model.video.state_dict().items()} for model in (one, other)]
    assert shapes[0] == shapes[1]
    assert not len(other.audio.adaptors)
    assert one.bridge is None


@pytest.mark.parametrize("bridge", BRIDGES)
def test_a_small_model_learns_a_batch_by_heart(bridge):
    torch.manual_seed(0)
    model = DDiT(SMALL.replace(width=32, depth=2, bridge=bridge))
    given = inputs(rows=2)
    target = Velocities(torch.randn_like(given["z_v"]), torch.randn_like(given["z_a"]))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        velocities = run(model, **given)
        loss = (velocities.video - target.video).square().mean() + (velocities.audio - target.audio).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    learned = [p for name, p in model.named_parameters() if name.startswith("bridge.") and name.endswith("proj.weight")]
    assert all(bool(weight.any()) for weight in learned)
