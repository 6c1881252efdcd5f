"""The counting of work: against the loop itself, and against counting by hand."""

from __future__ import annotations

import pytest

from syncflow.benchmarks.flops import Counts, count, sample_flops
from syncflow.engine.config import DDiTConfig, ModelConfig, SequenceConfig, preset

STEPS, LAYERS, BRANCHES = 3, 3, 2
D, S, A, L = 16, 4, 50, 6
CONFIG = ModelConfig(
    name="micro",
    sequence=SequenceConfig(seconds=1.0, width=32, height=32),
    ddit=DDiTConfig(
        width=D,
        depth=LAYERS,
        heads=2,
        audio_heads=2,
        video_channels=4,
        audio_channels=8,
        text_width=12,
        text_tokens=L,
        sigma_head=False,
        base_size=32,
        adaptor_tokens="frame",
    ),
)
T = CONFIG.sequence.latent_frames


@pytest.fixture(scope="module")
def counts() -> Counts:
    return count(CONFIG, STEPS)


@pytest.mark.parametrize(
    ("field", "lead", "known"),
    [("shared_time", 0.0, False), ("video_first", 1.0, False), ("known_noised", 0.0, True), ("known_clean", 1.0, True)],
)
def test_lines_meet_the_loop(counts: Counts, field: str, lead: float, known: bool) -> None:
    assert getattr(counts, field) == sample_flops(CONFIG, STEPS, lead=lead, known=known)


def test_a_sample_is_the_sum_of_its_parts(counts: Counts) -> None:
    c, n = counts, STEPS
    texts = BRANCHES * c.text
    assert c.shared_time == texts + n * c.modulation + BRANCHES * n * (c.video + c.adaptors + c.audio)
    assert c.video_first == texts + 2 * n * c.modulation + BRANCHES * ((n + 1) * c.video + c.adaptors + n * c.audio)
    assert c.known_noised == c.shared_time
    assert c.known_clean == texts + n * c.modulation + BRANCHES * (c.video + c.adaptors + n * c.audio)


def test_a_sync_branch_costs_its_audio_tower_alone(counts: Counts) -> None:
    """It reads no video: no adaptors, and no keys and values of video tokens or attention to them."""
    attention_to_video = LAYERS * 4 * D * A * T
    alone = counts.audio - counts.context_keys - attention_to_video
    assert counts.sync_guided == counts.shared_time + STEPS * alone


def test_a_static_branch_costs_one_more_row_of_all(counts: Counts) -> None:
    more = STEPS * (counts.video + counts.adaptors + counts.audio) + counts.modulation
    assert counts.static_guided == counts.shared_time + more


def test_sync_guidance_costs_little_at_full_size() -> None:
    """At most 3 % more than classifier-free guidance alone."""
    full = count(preset("syncflow-xl"), steps=50)
    assert full.sync_guided / full.shared_time < 1.03


def test_video_pass_by_hand(counts: Counts) -> None:
    tokens = T * S
    projections = 2 * tokens * D * D * (3 + 1 + 1 + 1 + 4 + 4)  # qkv, out; query, out; both halves of the MLP
    attentions = 4 * D * tokens * (S + T) + 2 * 4 * D * tokens * L
    patches = 2 * 2 * tokens * (4 * 2 * 2) * D
    assert counts.video == LAYERS * (2 * projections + attentions) + patches


def test_audio_pass_by_hand(counts: Counts) -> None:
    context = T + 1
    projections = 2 * A * D * D * (3 + 1 + 1 + 1 + 4 + 4) + 2 * context * D * 2 * D
    attentions = 4 * D * A * (A + context)
    time = 2 * 256 * D + 2 * D * D
    assert counts.audio == LAYERS * (projections + attentions) + 2 * 2 * A * 8 * D + time
    assert counts.context_keys == LAYERS * 2 * T * D * 2 * D


def test_branches_together_are_half_the_calls(counts: Counts) -> None:
    assert counts.calls_apart == pytest.approx(2 * counts.calls_together, rel=0.02)
