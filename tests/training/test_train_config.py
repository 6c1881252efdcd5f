"""Settings of training that are refused, each in a sentence."""

from __future__ import annotations

import math

import pytest

from syncflow.training.config import TrainConfig


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
        ({"lr": math.inf}, "lr is inf; it must be from 0 to 10"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; it must be from 1e-06 to 1000000.0"),
        ({"time_shift": 0.0}, "time_shift is 0.0; it must be from 0.001 to 1000.0"),
        ({"seed": -1}, "seed is -1; it must be from 0 to"),
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
