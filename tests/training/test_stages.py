"""What a stage trains moves, what it freezes stays, and each weight has one optimiser."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from syncflow.training.batches import Batches
from syncflow.training.loop import train
from syncflow.training.muon import Muon
from syncflow.training.objectives import FlowObjective, sample_flow
from syncflow.training.stages import freeze_rest, optimisers, trained_modules

from .small_model import Words, config, parts, states

pytestmark = pytest.mark.slow

STAGES = [
    ("video", False, ("video.",)),
    ("video", True, ("video.", "states.", "encoder.")),
    ("audio", True, ("audio.",)),
    ("joint", False, ("video.", "audio.")),
    ("joint", True, ("video.", "audio.", "states.", "encoder.")),
]


@pytest.mark.parametrize(("stage", "train_text", "moving"), STAGES)
def test_a_stage_moves_what_it_trains_and_nothing_else(stage, train_text, moving, latents, tmp_path):
    model, words = parts()
    before = states(model, words)
    train(model, words, [latents], config(stage=stage, steps=2, train_text=train_text), tmp_path)
    after = states(model, words)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(moving) and not name.endswith("freqs")}
    assert all(tensor.isfinite().all() for tensor in after.values())


LATE = tuple(f"video.{block}_blocks.1." for block in ("spatial", "temporal"))


@pytest.mark.parametrize(
    ("bridge", "settings", "moving"),
    [
        ("audio_rope", {"stage": "sync", "train_text": True}, (*LATE, "video.final_layer.", "audio.", "bridge.")),
        (
            "global_local",
            {"stage": "joint", "synergy_video": 0.1, "synergy_audio": 0.3},
            ("video.", "audio.", "bridge."),
        ),
    ],
    ids=["syncphony", "harmony"],
)
def test_what_the_other_papers_train_moves(bridge, settings, moving, latents, tmp_path):
    """But for what has no part in it: in Syncphony what follows the last self-attention of the audio, in both the query
    of the only token that the audio reads.
    """
    model, words = parts(bridge)
    before = states(model, words)
    train(model, words, [latents], config(steps=2, **settings), tmp_path)
    after = states(model, words)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {name for name in before if name.startswith(moving) and not name.endswith("freqs")}
    last = tuple(f"audio.layers.1.{part}" for part in ("cross_attn", "mlp", "norm2", "norm3"))
    unread = ("audio.final", "audio.layers.0.cross_attn.q_linear.bias", *(last if bridge == "audio_rope" else ()))
    assert moved <= wanted
    assert {name for name in wanted - moved if not name.startswith(unread)} == set()
    assert {name for name in moved if name.startswith("bridge.")}


def test_bfloat16_trains_too(latents, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # one process has one precision otherwise
    model, words = parts()
    train(model, words, [latents], config(stage="audio", steps=1, precision="bf16"), tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert all(tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in states(model, words).values())


@pytest.mark.parametrize(("stage", "train_text", "moving"), STAGES)
def test_every_trained_parameter_has_one_optimiser(stage, train_text, moving):
    model, words = parts()
    settings = config(stage=stage, train_text=train_text)
    freeze_rest(model, words, settings)
    held = [p for o in optimisers(model, words, settings) for group in o.param_groups for p in group["params"]]
    wanted = [p for module in trained_modules(model, words, settings) for p in module.parameters()]
    assert sorted(map(id, held)) == sorted(map(id, wanted))
    named = [*model.named_parameters(), *words.named_parameters()]
    assert {name for name, p in named if p.requires_grad} == {name for name, _ in named if name.startswith(moving)}


def test_muon_has_the_matrices_inside_blocks():
    model, words = parts()
    settings = config(stage="joint", train_text=True)
    muon, adam = optimisers(model, words, settings)
    assert isinstance(muon, Muon)
    assert isinstance(adam, torch.optim.AdamW)
    names = {id(p): name for name, p in (*model.named_parameters(), *words.named_parameters())}
    matrices = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert {
        "video.spatial_blocks.0.attn.qkv.weight",
        "video.temporal_blocks.0.mlp.fc2.weight",
        "audio.layers.0.cross_attn.kv_linear.weight",
        "audio.adaptors.0.linear.weight",
        "encoder.block.weight",
    } <= matrices
    outside = ("embedder", "final", "t_block", "table", "norm", "bias", "states")
    assert not [name for name in matrices if any(part in name for part in outside)]


class DroppingWords(Words):
    """With the dropout that T5 has by default, and more."""

    def forward(self, ids, mask):
        return nn.functional.dropout(super().forward(ids, mask), 0.5, self.training)


def dropping_parts():
    model, words = parts()
    dropping = DroppingWords()
    dropping.load_state_dict(words.state_dict())
    return model, dropping


@pytest.mark.parametrize("train_text", [False, True], ids=["frozen", "trained"])
def test_only_a_trained_text_encoder_drops(train_text, latents):
    model, words = dropping_parts()
    settings = config(stage="video", train_text=train_text)
    objective = FlowObjective(model, words, settings).train()
    assert (objective.training, model.video.training, model.audio.training) == (True, True, False)
    assert words.training is train_text
    generator = torch.Generator().manual_seed(0)
    batch = Batches([latents], words, settings, torch.device("cpu")).at(generator)
    sample = sample_flow(batch, settings, generator)
    losses = {objective(batch, sample)["loss"].item() for _ in range(3)}
    assert len(losses) == (3 if train_text else 1)
    assert not any(module.training for module in objective.eval().modules())


@pytest.mark.parametrize("train_text", [False, True], ids=["frozen", "trained"])
def test_dropout_is_that_of_the_step(train_text, latents, tmp_path):
    """A run that goes on is the run in one piece, whatever was drawn between them."""
    found = []
    for name, steps in (("straight", (4,)), ("resumed", (2, 4))):
        for count in steps:
            model, words = dropping_parts()
            torch.rand(len(found) + 1)
            train(
                model,
                words,
                [latents],
                config(stage="video", steps=count, train_text=train_text, decay=0.0),
                tmp_path / name,
            )
        found.append(states(model, words))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
