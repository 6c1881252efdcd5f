"""What training takes, counted before it starts, against what it takes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from syncflow import preset
from syncflow.engine.codecs.text import TextEncoder
from syncflow.engine.cost.flops import OPERATIONS
from syncflow.engine.cost.live_memory import LiveMemoryMode
from syncflow.engine.model import DDiT
from syncflow.training.config import TrainConfig
from syncflow.training.estimate import plan_stage
from syncflow.training.lora import add_branches, branches_of
from syncflow.training.objectives import Batch, FlowObjective, sample_flow
from syncflow.training.recipes import RECIPES
from syncflow.training.stages import freeze_rest, optimisers

STAGES = [
    ("syncflow-tiny", "video"),
    ("syncflow-tiny", "audio"),
    ("syncphony-tiny", "sync"),
    ("harmony-tiny", "joint"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_plan_is_what_a_step_takes(name: str, stage: str) -> None:
    model, settings = preset(name), RECIPES[name][stage].replace(batch=2)
    plan = plan_stage(model, settings)
    ddit, text = DDiT(model.ddit), TextEncoder.build(model.text_encoder.settings, model.ddit.text_tokens)
    freeze_rest(ddit, text, settings)
    trained = [p for p in (*ddit.parameters(), *text.parameters()) if p.requires_grad]
    assert plan.trained == sum(p.numel() for p in trained)
    assert plan.trained + plan.frozen == sum(p.numel() for p in (*ddit.parameters(), *text.parameters()))
    sequence, channels = model.sequence, (model.ddit.video_channels, model.ddit.audio_channels)
    sides = sequence.latent_height, sequence.latent_width
    ids = torch.ones(2, model.ddit.text_tokens, dtype=torch.long)
    batch = Batch(
        torch.randn(2, channels[0], sequence.latent_frames, *sides),
        torch.randn(2, sequence.audio_tokens, channels[1]),
        ids,
        ids,
        torch.full((2,), 16.0),
        torch.tensor(sequence.frame_times),
    )
    objective = FlowObjective(ddit, text, settings).train()
    sample = sample_flow(batch, settings.replace(bridge_dropout=0.0), torch.Generator().manual_seed(0))
    with LiveMemoryMode() as memory:
        objective(batch, sample)["loss"].backward()
    assert memory.peak == pytest.approx(plan.gradients + plan.activations, rel=0.02)
    with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
        objective(batch, sample)["loss"].backward()
    assert counter.get_total_flops() == pytest.approx(plan.step_flops, rel=0.01)
    held = 0
    for optimiser in optimisers(ddit, text, settings):
        optimiser.step()
        held += sum(v.numel() for state in optimiser.state.values() for v in state.values() if v.ndim)
    unused = sum(p.numel() for p in trained if p.grad is None)
    assert plan.states == pytest.approx(4 * (held + plan.trained), abs=8 * unused)


@pytest.mark.slow
def test_a_plan_is_of_the_adapter_and_of_all_parts_of_a_step() -> None:
    model, settings = preset("syncflow-tiny"), TrainConfig(stage="video", batch=1)
    whole, adapter = plan_stage(model, settings), plan_stage(model, settings.replace(lora=4))
    ddit = DDiT(model.ddit)
    add_branches(ddit, 4)
    assert adapter.trained == sum(p.numel() for branch in branches_of(ddit) for p in branch.parameters())
    assert adapter.frozen == whole.trained + whole.frozen and adapter.memory < whole.memory
    assert adapter.states == 3 * 4 * adapter.trained  # AdamW and the average
    assert adapter.step_flops < whole.step_flops
    parts = plan_stage(model, settings.replace(accumulate=3))
    assert parts.step_flops == 3 * whole.step_flops and parts.memory == whole.memory


@pytest.mark.slow
def test_full_size_fits_a_gpu_by_computing_layers_again() -> None:
    """A narrower model of the full-size shape: 28 layers, all video tokens in the adaptors."""
    model = preset("syncflow-xl")
    narrow = model.ddit.replace(width=64, heads=4, audio_heads=4, depth=8, text_width=128)
    model = type(model)(**{**vars(model), "ddit": narrow, "text_encoder": preset("syncflow-tiny").text_encoder})
    plans = [
        plan_stage(model, TrainConfig(stage="audio", batch=1, precision="bf16", recompute=recompute, steps=10))
        for recompute in (False, True)
    ]
    assert plans[1].activations < 0.5 * plans[0].activations
    assert plans[0].step_flops < plans[1].step_flops < 1.6 * plans[0].step_flops


def test_the_command_prints_the_plan_and_trains_nothing(tmp_path, run) -> None:
    code, out, err = run("train", tmp_path / "none", "--run", tmp_path / "run", "--stage", "audio", "--plan", 0.1)
    assert code == 0, err
    assert "stage audio: 2.1 M parameters are trained, 3.7 M are frozen" in out and "at 0.1 TFLOP/s" in out
    assert not (tmp_path / "run").exists()
