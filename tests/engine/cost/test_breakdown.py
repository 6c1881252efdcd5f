"""FLOPs of parts and samples: against the sampling loop itself, and against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from syncflow.engine.config import DDiTConfig, ModelConfig, SequenceConfig
from syncflow.engine.cost.breakdown import (
    TAKES,
    FlopBreakdown,
    StepOverhead,
    breakdown,
    sample_flops,
    step_flops,
    step_overhead,
)
from syncflow.engine.cost.jobs import synthetic_job
from syncflow.engine.presets import preset
from syncflow.engine.sampling.guidance import (
    Direction,
    combine,
    sync_cfg_audio,
    sync_cfg_video,
    sync_guidance,
    text_guidance,
)

STEPS, LAYERS, BRANCHES = 4, 3, 2
D, S, A, L, C_V, C_A = 16, 4, 50, 6, 4, 8

pytestmark = pytest.mark.slow

CONFIG = ModelConfig(
    name="micro",
    sequence=SequenceConfig(seconds=1.0, width=32, height=32),
    ddit=DDiTConfig(
        width=D,
        depth=LAYERS,
        heads=2,
        audio_heads=2,
        video_channels=C_V,
        audio_channels=C_A,
        text_width=12,
        text_tokens=L,
        sigma_head=False,
        base_size=32,
        adaptor_tokens="frame",
    ),
)
T = CONFIG.sequence.latent_frames
TEXT = text_guidance(6.0)


def bridged(bridge: str, first_block: int = 0) -> ModelConfig:
    return replace(CONFIG, ddit=CONFIG.ddit.replace(bridge=bridge, first_block=first_block))


@pytest.fixture(scope="module")
def counts() -> FlopBreakdown:
    return breakdown(CONFIG, STEPS)


@pytest.fixture(scope="module")
def full_size() -> FlopBreakdown:
    return breakdown(preset("syncflow-xl"), 10)


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("shared_time", {}),
        ("half_lead", {"lead": 0.5}),
        ("video_first", {"lead": 1.0}),
        ("known_noised", {"known": True}),
        ("known_clean", {"known": True, "lead": 1.0}),
        ("sync_guided", {"plan": combine([TEXT, sync_guidance(2.0)])}),
        ("static_guided", {"plan": combine([TEXT, sync_cfg_audio(2.0)])}),
        ("takes_shared_time", {"takes": range(TAKES)}),
        ("takes_video_first", {"takes": range(TAKES), "lead": 1.0}),
    ],
)
def test_lines_meet_the_loop(counts: FlopBreakdown, field: str, settings: dict) -> None:
    assert getattr(counts, field) == sample_flops(CONFIG, synthetic_job(CONFIG, STEPS, **settings))


def once_a_sample(c: FlopBreakdown, steps: int) -> int:
    """Texts, and every flow time besides time 1."""
    return BRANCHES * c.text + (steps + 1) * (c.modulation + c.audio_time)


def shared_time(c: FlopBreakdown, steps: int) -> int:
    return once_a_sample(c, steps) + BRANCHES * steps * (c.video + c.audio + c.contexts)


def video_first(c: FlopBreakdown, steps: int) -> int:
    return once_a_sample(c, steps) + BRANCHES * (steps * (c.video + c.audio) + c.video_context_only + c.contexts)


def test_a_sample_is_the_sum_of_its_parts(counts: FlopBreakdown) -> None:
    """Each text once, each flow time and time 1 once, what the audio sees once a video pass."""
    c, n, half = counts, STEPS, STEPS // 2
    assert c.shared_time == shared_time(c, n)
    assert c.video_first == video_first(c, n)
    once, moving = once_a_sample(c, n), n * (c.video + c.audio)
    assert c.half_lead == once + BRANCHES * (moving + c.video_context_only + (half + 1) * c.contexts)
    assert c.known_noised == c.shared_time
    standing = once - n * c.modulation
    assert c.known_clean == standing + BRANCHES * (c.video_context_only + c.contexts + n * c.audio)


def test_a_take_costs_its_audio_tower_alone(counts: FlopBreakdown) -> None:
    more = (TAKES - 1) * BRANCHES * STEPS * counts.audio
    assert counts.takes_shared_time == counts.shared_time + more
    assert counts.takes_video_first == counts.video_first + more


def test_a_sync_branch_costs_its_audio_tower_alone(counts: FlopBreakdown) -> None:
    """It reads no video: no adaptors, and no keys and values of video tokens."""
    assert counts.sync_guided == counts.shared_time + STEPS * counts.audio


def test_a_static_branch_costs_a_context_only_row(counts: FlopBreakdown) -> None:
    more = STEPS * (counts.video_context_only + counts.contexts + counts.audio)
    assert counts.static_guided == counts.shared_time + more


def test_sync_guidance_costs_little_at_full_size(full_size: FlopBreakdown) -> None:
    """At most 3 % more than classifier-free guidance alone."""
    assert full_size.sync_guided / full_size.shared_time < 1.03


def test_takes_cost_little_at_full_size(full_size: FlopBreakdown) -> None:
    """Eight sounds of a video at most half as much again as one."""
    assert TAKES == 8
    assert full_size.takes_shared_time / full_size.shared_time < 1.5
    assert full_size.takes_video_first / full_size.video_first < 1.5


def test_the_video_first_costs_what_a_shared_time_does() -> None:
    """Within 3 %, with 50 steps of the bundled model."""
    tiny = breakdown(preset("syncflow-tiny"), STEPS)
    assert video_first(tiny, 50) / shared_time(tiny, 50) == pytest.approx(1, abs=0.03)


def linears(tokens: int, *columns: int) -> int:
    """Matrix products of tokens of width D, each with D times so many columns."""
    return sum(2 * tokens * D * D * count for count in columns)


# A layer of the video: qkv, out; query, out; both halves of the MLP, twice; attention over space, time and text.
VIDEO_LAYER = 2 * linears(T * S, 3, 1, 1, 1, 4, 4) + 4 * D * T * S * (S + T) + 2 * 4 * D * T * S * L
PATCHES = 2 * T * S * (C_V * 2 * 2) * D


def test_video_pass_by_hand(counts: FlopBreakdown) -> None:
    """A context-only row stops before the text and the MLP of the last temporal block."""
    assert counts.video == LAYERS * VIDEO_LAYER + 2 * PATCHES
    assert counts.video_context_only == counts.video - linears(T * S, 1, 1, 4, 4) - 4 * D * T * S * L - PATCHES


def test_what_the_audio_sees_by_hand(counts: FlopBreakdown) -> None:
    adaptor = linears(T, 3, 1, 1) + 4 * D * T * T
    assert counts.context_keys == LAYERS * linears(T, 2)
    assert counts.contexts == LAYERS * adaptor + counts.context_keys


def test_audio_pass_by_hand(counts: FlopBreakdown) -> None:
    """Keys and values of the time token alone."""
    projections = linears(A, 3, 1, 1, 1, 4, 4) + linears(1, 2)
    attentions = 4 * D * A * (A + T + 1)
    assert counts.audio == LAYERS * (projections + attentions) + 2 * 2 * A * C_A * D
    assert counts.audio_time == 2 * 256 * D + 2 * D * D


def test_branches_together_are_half_the_calls(counts: FlopBreakdown) -> None:
    assert counts.calls_sequential == pytest.approx(2 * counts.calls_batched, rel=0.02)


def test_shares_meet_the_parts(counts: FlopBreakdown) -> None:
    full = counts.video + counts.contexts + counts.audio
    assert step_flops(CONFIG) == full
    assert step_overhead(CONFIG) == StepOverhead(
        no_text=pytest.approx(1),
        no_bridge=pytest.approx(counts.audio / full),
        muted=0,
        static=pytest.approx((full - counts.video + counts.video_context_only) / full),
        take=pytest.approx(counts.audio / full),
    )


@pytest.mark.parametrize("bridge", ["audio_rope", "global_local"])
@pytest.mark.parametrize("direction", [sync_guidance(2.0), sync_cfg_video(2.0)], ids=["off-sync", "muted"])
def test_a_branch_of_a_step_is_a_branch_of_the_loop(bridge: str, direction: Direction) -> None:
    config, steps = bridged(bridge, first_block=int(bridge == "audio_rope")), 2
    with_it, without = (sample_flops(config, synthetic_job(config, steps, plan=combine(d))) for d in ([direction], []))
    assert with_it - without == steps * (step_flops(config, [direction]) - step_flops(config))


def test_an_off_sync_branch_shares_the_layers_before_the_bridge() -> None:
    """Syncphony: of the video tower, the layers from the first with a bridge on, and the final layer."""
    config = bridged("audio_rope", first_block=1)
    more = step_flops(config, [sync_guidance(2.0)]) - step_flops(config)
    bridge = linears(T * S, 1, 1) + 4 * D * T * S * A
    assert more == (LAYERS - 1) * (VIDEO_LAYER + bridge) + PATCHES


def test_an_off_sync_branch_costs_two_thirds_at_full_size() -> None:
    """8 of 24 layers are shared; at most 70 % of the full branch."""
    config = preset("syncphony-xl")
    assert (config.ddit.first_block, config.ddit.depth) == (8, 24)
    assert step_overhead(config).no_bridge <= 0.7


def test_a_joint_branch_leaves_out_the_velocity_that_it_does_not_need() -> None:
    """Harmony: a muted branch the audio's last projection, a static one the video's last layer."""
    config = bridged("global_local")
    full = step_flops(config)
    muted, static = (step_flops(config, [one]) - full for one in (sync_cfg_video(2.0), sync_cfg_audio(2.0)))
    assert full - muted == 2 * A * C_A * D
    assert full - static == VIDEO_LAYER + PATCHES
