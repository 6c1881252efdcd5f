"""The cost of a request: against the sampling loop itself, and against what the bridges save."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from syncflow import Clip, ModelConfig, Request, SequenceConfig
from syncflow.engine.config import DDiTConfig, SamplingConfig
from syncflow.engine.cost.counting import CountingDenoiser, meta_components
from syncflow.engine.cost.flops import flops
from syncflow.engine.cost.request import LayerRows, RequestCost, request_cost
from syncflow.engine.pipeline import Pipeline
from syncflow.engine.sampling.loop import sample

STEPS, LAYERS, FIRST = 4, 3, 1

pytestmark = pytest.mark.slow

SHAPE = DDiTConfig(
    width=16,
    depth=LAYERS,
    heads=2,
    audio_heads=2,
    video_channels=4,
    audio_channels=8,
    text_width=12,
    text_tokens=6,
    sigma_head=False,
    base_size=32,
    adaptor_tokens="frame",
)
SYNCFLOW = ModelConfig(
    name="micro",
    sequence=SequenceConfig(seconds=1.0, width=32, height=32),
    ddit=SHAPE,
    sampling=SamplingConfig(steps=STEPS, guidance=2.0),
)
SPEAKING = SYNCFLOW.replace(ddit=SHAPE.replace(audio_text=True))
SYNCPHONY = SYNCFLOW.replace(ddit=SHAPE.replace(bridge="audio_rope", first_block=FIRST))
HARMONY = SYNCFLOW.replace(ddit=SHAPE.replace(bridge="global_local", audio_text=True))
CLIP = Clip(np.zeros((16, 32, 32, 3), np.uint8), np.zeros(48_000, np.float32), 16, 48_000)
WHOLE = (1, LAYERS)


def plan(config: ModelConfig, **settings: Any) -> RequestCost:
    return request_cost(config, Request("a ball", **settings))


def rows(ranges: tuple[LayerRows, ...]) -> list[tuple[int, int, int]]:
    return [(one.first, one.last, one.rows) for one in ranges]


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (SYNCFLOW, {"video_lead": 0.5, "sync_guidance": 2.0, "takes": 3}),
        (SYNCFLOW, {"steps": 3, "sync_cfg_audio": 2.0, "guidance_interval": (0.3, 0.8)}),
        (SYNCFLOW, {"video": CLIP, "video_lead": 1.0, "takes": 2}),
        (SYNCFLOW, {"extend": CLIP, "negative_prompt": "a cube"}),
        (SYNCFLOW, {"video": CLIP, "strength": 0.5, "shift": 3.0}),
        (SPEAKING, {"sound_only": True, "takes": 2}),
        (SYNCPHONY, {"sync_guidance": 2.0, "sync_cfg_video": 3.0}),
        (SYNCPHONY, {"audio": CLIP, "sync_guidance": 2.0}),
        (HARMONY, {"sync_guidance": 2.0, "sync_cfg_audio": 2.0, "sync_cfg_video": 3.0}),
        (HARMONY, {"sound_only": True}),
        (HARMONY, {"reference": CLIP, "video_lead": 1.0, "sync_guidance": 1.0}),
    ],
    ids=lambda value: value.ddit.bridge if isinstance(value, ModelConfig) else " ".join(value) or "plain",
)
def test_the_total_is_what_a_real_sample_counts(config: ModelConfig, settings: dict[str, Any]) -> None:
    request = Request("a ball", **{"steps": 2} | settings)
    found, denoiser = request_cost(config, request), CountingDenoiser(config.ddit)
    pipeline = Pipeline(meta_components(config, denoiser), denoiser.device)
    job = pipeline.encode(pipeline.prepare(request))
    assert found.total == flops(lambda: sample(denoiser.model, [job]))
    steps = [step for phase in found.phases for step in range(phase.first, phase.last + 1)]
    assert steps == list(range(1, len(job.schedule) + 1))
    assert config is HARMONY or found.total <= found.reference
    assert json.loads(json.dumps(found.to_dict()))["total"] == found.total


def test_a_finished_video_is_passed_once_more_and_kept() -> None:
    sampled, seen, kept = plan(SYNCFLOW, video_lead=1.0).phases
    assert (sampled.first, sampled.last, seen.first, seen.last, kept.first, kept.last) == (1, 4, 5, 5, 6, 8)
    assert [rows(phase.video) for phase in (sampled, seen, kept)] == [[(*WHOLE, 2)], [(*WHOLE, 2)], []]
    assert [rows(phase.audio) for phase in (sampled, seen, kept)] == [[], [(*WHOLE, 2)], [(*WHOLE, 2)]]
    assert [(p.context_only, p.contexts_computed, p.contexts_kept) for p in (sampled, seen, kept)] == [
        (0, 0, 0),
        (2, 2, 0),
        (0, 0, 2),
    ]


def test_a_sync_branch_adds_no_video_rows() -> None:
    (plain,), (guided,) = (plan(SYNCFLOW, sync_guidance=strength).phases for strength in (0.0, 2.0))
    assert plain.video == guided.video == (LayerRows(*WHOLE, 2),)
    assert (plain.audio, guided.audio) == ((LayerRows(*WHOLE, 2),), (LayerRows(*WHOLE, 3),))
    assert (plain.contexts_computed, guided.contexts_computed) == (2, 2)


def test_takes_add_no_video_rows() -> None:
    one, many = plan(SYNCFLOW), plan(SYNCFLOW, takes=5)
    assert one.phases[0].video == many.phases[0].video
    assert many.phases[0].audio == (LayerRows(*WHOLE, 10),)
    assert (many.takes, many.branches, many.reference) == (5, one.branches, 5 * one.reference)


def test_branches_of_syncphony_share_the_layers_before_its_bridge() -> None:
    (phase,) = plan(SYNCPHONY, sync_guidance=2.0).phases
    assert rows(phase.video) == [(1, FIRST, 2), (FIRST + 1, LAYERS, 3)]
    assert rows(phase.audio) == [(*WHOLE, 1)]
    assert (phase.contexts_computed, phase.contexts_kept) == (1, 0)


def test_a_given_sound_is_heard_once() -> None:
    first, others = plan(SYNCPHONY, audio=CLIP).phases
    assert rows(first.audio) == [(*WHOLE, 1)] and first.context_only == 1
    assert rows(others.audio) == [] and others.contexts_kept == 1


def test_towers_that_read_each_other_share_all_rows() -> None:
    """But for the last layer of the video, which a branch without a weight on it does not reach."""
    (phase,) = plan(HARMONY, sync_cfg_audio=2.0).phases
    assert rows(phase.video) == [(1, LAYERS - 1, 3), (LAYERS, LAYERS, 2)]
    assert rows(phase.audio) == [(*WHOLE, 3)]


def test_outside_of_its_interval_guidance_costs_nothing() -> None:
    phases = plan(SYNCFLOW, guidance_interval=(0.25, 0.75)).phases
    assert [(phase.steps, rows(phase.video)[0][2]) for phase in phases] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("config", [SPEAKING, HARMONY], ids=["adaptor", "global_local"])
def test_a_sound_alone_is_the_audio_tower_alone(config: ModelConfig) -> None:
    found = plan(config, sound_only=True)
    (phase,) = found.phases
    assert (rows(phase.video), rows(phase.audio)) == ([], [(*WHOLE, 2)])
    assert found.task == "text-to-audio" and found.branches == 2 * STEPS
    assert found.total <= found.reference < plan(config).reference


def test_the_reference_loop_is_a_forward_of_both_towers_a_branch() -> None:
    """At a shared time, without guidance, it differs in texts and times alone."""
    found = plan(SYNCFLOW, guidance=1.0)
    (phase,) = found.phases
    a_time = (plan(SYNCFLOW, guidance=1.0, steps=2 * STEPS).once - found.once) // STEPS
    a_text = found.once - (STEPS + 1) * a_time
    assert found.branches == STEPS and found.texts == 1
    assert found.reference == STEPS * (phase.flops + a_text + a_time)


def test_the_table_says_it_all() -> None:
    lines = plan(SYNCPHONY, sync_guidance=2.0).table().splitlines()
    assert lines[0] == "micro, text-to-audio-video: 1 s, 32x32"
    head, once, phase, total = (line.split("  ") for line in lines[2:6])
    assert head[0] == "steps" and head[-1].strip() == "GFLOP"
    assert once[0] == "once" and "texts: 2, times: 10" in lines[3]
    assert phase[0] == "1-4" and "2 in layers 1, 3 in 2-3" in lines[4] and "1 computed" in lines[4]
    assert total[0] == "sum"
    assert lines[-1].startswith("The reference loop: 12 forwards of both towers, ")


def test_what_a_model_cannot_do_is_refused_before_anything_is_counted() -> None:
    with pytest.raises(ValueError, match="a reference sound needs a model with the bridge global_local"):
        plan(SYNCFLOW, reference=CLIP)
