"""Stages and the loop: what is frozen stays, what is trained moves, and a killed run goes on as if it had not been."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from syncflow.engine.config import DDiTConfig
from syncflow.engine.model import DDiT
from syncflow.training.average import Average
from syncflow.training.batches import Batches
from syncflow.training.config import TrainConfig
from syncflow.training.data.latents import LatentSet
from syncflow.training.loop import schedule, train
from syncflow.training.muon import Muon
from syncflow.training.objectives import FlowObjective, sample_flow
from syncflow.training.stages import freeze_rest, optimisers, trained_modules

pytestmark = pytest.mark.slow

SMALL = DDiTConfig(
    width=8,
    depth=1,
    heads=2,
    audio_heads=2,
    video_channels=2,
    audio_channels=3,
    text_width=8,
    text_tokens=6,
    base_size=32,
    adaptor_tokens="frame",
)
CAPTIONS = ["a ball falls", "a cup breaks", "a ball falls", "rain", "wind"]


class Block(nn.Module):
    """Named like a block of T5, so that its matrix counts as hidden."""

    def __init__(self, width):
        super().__init__()
        self.block = nn.Linear(width, width)


class Words(nn.Module):
    """Stands in for the text encoder: bytes to states."""

    def __init__(self):
        super().__init__()
        self.states = nn.Embedding(256, SMALL.text_width)
        self.encoder = Block(SMALL.text_width)

    def tokenize(self, prompts):
        rows = [list(prompt.encode())[: SMALL.text_tokens] for prompt in prompts]
        ids = torch.tensor([row + [0] * (SMALL.text_tokens - len(row)) for row in rows])
        return ids, torch.tensor([[1] * len(row) + [0] * (SMALL.text_tokens - len(row)) for row in rows])

    def forward(self, ids, mask):
        return self.encoder.block(self.states(ids))


@pytest.fixture
def latents() -> LatentSet:
    rng = np.random.default_rng(0)
    video, audio = rng.normal(size=(5, 2, 2, 4, 4)), rng.normal(size=(5, 6, 3))
    return LatentSet(video.astype(np.float16), audio.astype(np.float16), CAPTIONS, 16, (0.125, 0.375))


def parts(bridge: str = "adaptor") -> tuple[DDiT, Words]:
    """The same model and text encoder every time, none of its weights zero."""
    torch.manual_seed(0)
    changes = {"depth": 2, "first_block": 1} if bridge == "audio_rope" else {}
    model, words = DDiT(SMALL.replace(bridge=bridge, **changes)), Words()
    for parameter in (*model.parameters(), *words.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return model, words


def config(**changes) -> TrainConfig:
    plain = {"steps": 4, "batch": 4, "warmup": 1, "compile": False, "text_dropout": 0.5}
    return TrainConfig(**plain | changes)


def states(model, words):
    return {name: tensor.clone() for module in (model, words) for name, tensor in module.state_dict().items()}


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


@pytest.mark.parametrize("stage", ["video", "joint"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(stage, latents, tmp_path, monkeypatch):
    settings = config(stage=stage, steps=4, train_text=True, checkpoint_minutes=0.0)
    straight, straight_words = parts()
    train(straight, straight_words, [latents], settings, tmp_path / "straight")

    class Killed(Exception):
        pass

    def kill(self, step, update=Average.update):
        if step == 2:
            raise Killed
        update(self, step)

    model, words = parts()
    with monkeypatch.context() as patch:
        patch.setattr(Average, "update", kill)
        with pytest.raises(Killed):
            train(model, words, [latents], settings, tmp_path / "killed")
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] == 2

    resumed, resumed_words = parts()
    train(resumed, resumed_words, [latents], settings, tmp_path / "killed")
    expected, actual = states(straight, straight_words), states(resumed, resumed_words)
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


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


def test_a_finished_run_is_left_as_it_is(latents, tmp_path):
    model, words = parts()
    train(model, words, [latents], config(steps=2), tmp_path)
    again, again_words = parts()
    train(again, again_words, [latents], config(steps=2), tmp_path)
    torch.testing.assert_close(states(again, again_words), states(model, words), rtol=0, atol=0)


def test_the_model_holds_the_averages_and_the_checkpoint_the_last_weights(latents, tmp_path):
    model, words = parts()
    train(model, words, [latents], config(stage="video", steps=3), tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 3
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter, mean in zip(trained, saved["average"], strict=True):
        assert torch.equal(parameter, mean)
    assert not torch.equal(saved["model"]["video.x_embedder.proj.weight"], model.video.x_embedder.proj.weight)


def test_a_checkpoint_of_another_stage_is_refused(latents, tmp_path):
    model, words = parts()
    train(model, words, [latents], config(stage="video", steps=1), tmp_path)
    with pytest.raises(ValueError, match="belongs to stage video, not to stage audio; choose another run folder"):
        train(model, words, [latents], config(stage="audio", steps=1), tmp_path)


def test_a_checkpoint_is_written_beside_and_renamed(latents, tmp_path, monkeypatch):
    model, words = parts()
    train(model, words, [latents], config(steps=1), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def cut(state, file):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(OSError, match="no space left"):
        train(model, words, [latents], config(steps=2), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_run_says_what_it_is(latents, tmp_path):
    train(*parts(), [latents], config(steps=1, seed=3), tmp_path)
    assert TrainConfig.from_dict(json.loads((tmp_path / "train.json").read_text())) == config(steps=1, seed=3)
    assert list((tmp_path / "tensorboard").iterdir())


def test_another_seed_trains_otherwise(latents, tmp_path):
    runs = []
    for seed in (0, 1):
        model, words = parts()
        train(model, words, [latents], config(steps=1, seed=seed), tmp_path / str(seed))
        runs.append(states(model, words))
    assert not torch.equal(runs[0]["video.final_layer.linear.weight"], runs[1]["video.final_layer.linear.weight"])


def test_training_learns(latents, tmp_path):
    """Twenty steps on five clips: the loss on the training draws falls."""
    model, words = parts()
    settings = config(stage="joint", steps=30, batch=16, lr=1e-2, matrix_lr=1e-2)
    batches = Batches([latents], words, settings, torch.device("cpu"))

    def loss():
        total = 0.0
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            data = batches.at(generator)
            with torch.no_grad():
                total += FlowObjective(model, words, settings)(data, sample_flow(data, settings, generator))[
                    "loss"
                ].item()
        return total

    before = loss()
    train(model, words, [latents], settings, tmp_path)
    assert loss() < 0.8 * before


@given(step=st.integers(0, 500), warmup=st.integers(0, 300), decay=st.floats(0, 1), progress=st.floats(0, 1))
def test_learning_rate_factor(step, warmup, decay, progress):
    factor = schedule(progress, step, TrainConfig(warmup=warmup, decay=decay))
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    assert 0 <= factor <= warm
    if progress <= 1 - decay:
        assert factor == pytest.approx(warm)
    elif progress < 1:
        assert factor == pytest.approx(warm * (1 - progress) / max(decay, 1e-9))
    if progress == 1 and decay > 0:
        assert factor == 0


def test_average_formula():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average, expected = Average([module], decay=0.5), 0.0
    for step in range(12):
        with torch.no_grad():
            module.weight.fill_(step + 1.0)
        average.update(step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * (step + 1)
        assert average.mean[0].item() == pytest.approx(expected, rel=1e-5)
    average.store()
    assert module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_are_not_averaged():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert len(Average([module], decay=0.9).mean) == 1


def test_batches_pair_latents_with_their_captions(latents):
    words = Words()
    batches = Batches([latents], words, config(batch=64), torch.device("cpu"))
    made = batches.at(torch.Generator().manual_seed(0))
    assert made.video.dtype == made.audio.dtype == torch.float32
    assert made.fps.tolist() == [16.0] * 64
    for video, audio, ids, mask in zip(made.video, made.audio, made.ids, made.mask, strict=True):
        index = next(i for i in range(5) if np.array_equal(latents.video[i], video.half().numpy()))
        assert np.array_equal(latents.audio[index], audio.half().numpy())
        expected_ids, expected_mask = words.tokenize([CAPTIONS[index]])
        assert torch.equal(ids, expected_ids[0])
        assert torch.equal(mask, expected_mask[0])
    again = batches.at(torch.Generator().manual_seed(0))
    assert torch.equal(made.video, again.video)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": "sound"}, r"stage is 'sound'; it must be one of video, audio, joint, sync"),
        ({"steps": 0}, r"steps \(0\) and batch \(32\) must be at least 1"),
        ({"batch": 0}, r"batch \(0\) must be at least 1"),
        ({"precision": "fp16"}, r"precision is 'fp16'; it must be fp32 or bf16"),
        ({"text_dropout": 1.1}, r"text_dropout is 1.1; it must be from 0 to 1"),
        ({"ema": math.nan}, r"ema is nan; it must be from 0 to 1"),
        ({"sample_minutes": -1.0}, r"sample_minutes is -1.0; it must be from 0 to 1000000"),
        ({"synergy_audio": 0.3}, "cross-task synergy belongs to the stage joint, not to video"),
        ({"stage": "joint", "synergy_audio": -1}, "synergy_audio is -1; it must be from 0 to 1000"),
        (
            {"stage": "sync", "lora": 4},
            "an adapter is one of the whole video tower, which the stage sync does not train",
        ),
        ({"clean_video": 0.7, "independent": 0.4}, r"clean_video \(0.7\) and independent \(0.4\) sum to more than 1"),
    ],
)
def test_recipes_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_a_setting_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match="batch is 'many'; it must be a whole number"):
        TrainConfig().replace(batch="many")


def test_a_batch_is_of_one_length_and_of_as_many_tokens(latents):
    """Sets of other lengths take part as often as their clips; a longer clip leaves space for fewer rows."""
    longer = LatentSet(
        np.zeros((2, *latents.video.shape[1:2], 4, *latents.video.shape[3:]), np.float16),
        np.zeros((2, 2 * latents.audio.shape[1], latents.audio.shape[2]), np.float16),
        CAPTIONS[:2],
        16,
        (0.125, 0.375, 0.625, 0.875),
    )
    _, words = parts()
    batches = Batches([latents, longer], words, config(batch=4), torch.device("cpu"))
    counts = {2: 0, 4: 0}
    for step in range(300):
        batch = batches.at(torch.Generator().manual_seed(step))
        rows, length = len(batch.video), len(batch.frame_times)
        assert (batch.video.shape[2], rows) in {(2, 4), (4, 2)} and batch.video.shape[2] == length
        assert len(batch.audio) == len(batch.ids) == rows
        counts[length] += rows
    each = counts[4] / 2 / (counts[2] / len(latents))
    assert 0.7 < each < 1.4  # a clip of either set is seen equally often


def test_training_on_several_lengths(latents, tmp_path):
    longer = LatentSet(
        np.repeat(latents.video, 2, 2), np.repeat(latents.audio, 2, 1), CAPTIONS, 16, (0.125, 0.375, 0.625, 0.875)
    )
    model, words = parts()
    before = states(model, words)
    train(model, words, [latents, longer], config(stage="joint", steps=4), tmp_path)
    after = states(model, words)
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_samples_are_of_the_averaged_weights_in_evaluation_mode(latents, tmp_path):
    model, words = parts()
    seen = []

    def sampler():
        assert not any(module.training for module in (*model.modules(), *words.modules()))
        seen.append(states(model, words))
        raise ValueError("the model computed NaN")  # is said, and training goes on

    settings = config(stage="video", steps=3, train_text=True, sample_minutes=1e-9, checkpoint_minutes=0.0)
    train(model, words, [latents], settings, tmp_path, sampler)
    assert len(seen) == 3
    assert all(torch.equal(seen[-1][name], value) for name, value in states(model, words).items())
    assert model.video.training and words.training and not model.audio.training
