"""Models of every bridge as a whole: directions, what is skipped, rows, precisions, and that they learn."""

from __future__ import annotations

import pytest
import torch

from syncflow import preset
from syncflow.engine.model import DDiT
from syncflow.engine.types import Velocities
from syncflow.kernels.launch import implementation

from .bridge_cases import (
    BRIDGES,
    FRAMES,
    ROWS,
    SMALL,
    flags,
    fresh,
    inputs,
    randomised,
    run,
    same,
    without_bridge,
)


@pytest.mark.parametrize(
    ("bridge", "audio_text"),
    [(bridge, text) for bridge in BRIDGES for text in (False, True) if bridge != "adaptor" or not text],
)
def test_a_skipped_bridge_is_a_model_without_it(bridge, audio_text):
    model, given = randomised(bridge, audio_text=audio_text), inputs()
    assert same(run(model, **given, bridged=flags(False, False, False)), without_bridge(model, given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_skipped_bridge_in_one_attention_with_words_leaves_roundings(dtype):
    """The keys of the video stand before those of the words with a weight of zero: a longer sum of the same numbers."""
    model, given = randomised("adaptor", audio_text=True).to(dtype), {k: x.to(dtype) for k, x in inputs().items()}
    skipped, alone = run(model, **given, bridged=flags(False, False, False)), without_bridge(model, given)
    assert torch.equal(skipped.video, alone.video)
    roundings = 8 * torch.finfo(dtype).eps * alone.audio.abs().max().item()
    torch.testing.assert_close(skipped.audio, alone.audio, rtol=0, atol=roundings)


def test_a_skipped_bridge_hides_the_reference():
    model, given = randomised("global_local"), inputs()
    skipped = run(model, **given, bridged=flags(False, False, False), reference=torch.randn(ROWS, 4, 5))
    assert same(skipped, without_bridge(model, given))


def test_the_towers_of_the_three_models_are_the_same():
    """A skipped bridge leaves the towers, whose weights do not depend on the bridge."""
    given, skipped = inputs(), flags(False, False, False)
    one, two, three = (run(randomised(bridge), **given, bridged=skipped) for bridge in BRIDGES)
    assert same(one, two)
    assert same(one, three)


def test_a_fresh_audio_rope_bridge_changes_nothing():
    model, given = fresh("audio_rope"), inputs()
    assert same(run(model, **given), without_bridge(model, given))


def test_a_fresh_global_local_bridge_leaves_the_video_as_it_is():
    """The audio already hears the token that stands for no reference."""
    model, given = fresh("global_local"), inputs()
    joint, alone = run(model, **given), without_bridge(model, given)
    assert torch.equal(joint.video, alone.video)
    changed = run(model, **given | {"z_v": given["z_v"] * 0.5})
    assert torch.equal(joint.audio, changed.audio)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_a_bridge_matters_where_it_is_on(bridge):
    model, given = randomised(bridge), inputs()
    joint, alone = run(model, **given), without_bridge(model, given)
    assert torch.allclose(joint.video, alone.video, atol=1e-4) is not model.config.video_reads_audio
    assert torch.allclose(joint.audio, alone.audio, atol=1e-4) is not model.config.audio_reads_video


@pytest.mark.parametrize("bridge", BRIDGES)
def test_all_on_is_the_default(bridge):
    model, given = randomised(bridge), inputs()
    assert same(run(model, **given), run(model, **given, bridged=flags(True, True, True)))


@pytest.mark.parametrize("bridge", BRIDGES)
def test_a_row_does_not_depend_on_the_flags_of_others(bridge):
    """To the bit where the bridge is skipped; else up to rounding, which depends on how many rows cross it."""
    model, given = randomised(bridge).double(), {name: value.double() for name, value in inputs().items()}
    on, off = run(model, **given), run(model, **given, bridged=flags(False, False, False))
    mixed = run(model, **given, bridged=flags(True, False, True))
    assert same(mixed, off, [1])
    torch.testing.assert_close(mixed.video[[0, 2]], on.video[[0, 2]], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed.audio[[0, 2]], on.audio[[0, 2]], rtol=0, atol=1e-12)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
