"""What a training run is, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..engine.config import Config

Stage = Literal["video", "audio", "joint", "sync", "distill"]
STAGES: tuple[Stage, ...] = ("video", "audio", "joint", "sync", "distill")
StudentTowers = Literal["video", "audio", "both"]
Times = Literal["uniform", "logit-normal"]
MOST_MINUTES = 1_000_000
RANGES: dict[str, tuple[float, float]] = {
    "lr": (0, 10),
    "matrix_lr": (0, 10),
    "weight_decay": (0, 10),
    "clip_norm": (1e-6, 1e6),
    "time_shift": (1e-3, 1e3),
    "warmup": (0, 10**9),
    "motion_weight": (0, 1000),
    "synergy_video": (0, 1000),
    "synergy_audio": (0, 1000),
    "seed": (0, 2**63 - 1),
    **dict.fromkeys(("minutes", "checkpoint_minutes", "sample_minutes"), (0, MOST_MINUTES)),
    **dict.fromkeys(
        ("text_dropout", "clean_video", "independent", "bridge_dropout", "between_steps", "ema", "decay"), (0, 1)
    ),
}


@dataclass(frozen=True)
class TrainConfig(Config):
    """One stage of training (``docs/method.md`` section 7).

    ``steps`` optimiser steps, or fewer when ``minutes`` of training time are over; the learning rate follows whichever
    is nearer its end. A step has ``batch`` clips in each of ``accumulate`` parts on every process. ``clean_video`` and
    ``independent`` are the shares of rows that see clean video, and that draw the two times independently.
    ``times`` is the distribution of training times, which ``time_shift`` bends towards noise.
    ``motion_weight`` is the lambda of Syncphony's motion-aware loss. ``synergy_video`` and ``synergy_audio`` weigh the
    two driven terms of Harmony's cross-task synergy. A share ``bridge_dropout`` of the rows skips the bridge. ``lora``
    is the rank of an adapter of the video tower that is trained in place of the weights (0: the weights).
    ``recompute`` keeps the inputs of layers alone for the backward pass, and computes the rest again. Every
    ``sample_minutes`` (0: never) a few clips are sampled for TensorBoard. ``shard`` spreads the weights over the
    processes (FSDP), for a model that does not fit one device.

    The stage ``distill`` makes a student of ``student_steps`` sampling steps; ``steps`` are those of the optimiser, as
    in every stage. It trains the ``student_towers`` on ``trajectories`` of the teacher, sampled with the settings of a
    request in ``teacher`` (by default the model's own), of which a share ``clean_video`` is of known video and a share
    ``text_dropout`` of these has no prompt. The video tower also learns from ``beginnings`` of further ones, which end
    after the student's first ``beginning_steps``. A share ``between_steps`` of the rows lies within a segment, the
    others at its start.
    """

    stage: Stage = "video"
    steps: int = 100_000
    minutes: float = 0.0
    batch: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    matrix_lr: float = 3e-3
    warmup: int = 100
    decay: float = 0.4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    text_dropout: float = 0.1
    train_text: bool = False
    optimal_transport: bool = True
    clean_video: float = 0.25
    independent: float = 0.25
    times: Times = "uniform"
    time_shift: float = 1.0
    motion_weight: float = 0.0
    synergy_video: float = 0.0
    synergy_audio: float = 0.0
    bridge_dropout: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False
    shard: bool = False
    lora: int = 0
    student_steps: int = 4
    student_towers: StudentTowers = "both"
    trajectories: int = 1000
    beginnings: int = 0
    beginning_steps: int = 1
    between_steps: float = 0.0
    teacher: dict[str, Any] = field(default_factory=dict)
    compile: bool = True
    checkpoint_minutes: float = 5.0
    sample_minutes: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}; it must be one of {', '.join(STAGES)}")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps ({self.steps}) and batch ({self.batch}) must be at least 1")
        if not 1 <= self.accumulate <= 4096:
            raise ValueError(f"accumulate is {self.accumulate}; it must be from 1 to 4096")
        if not 0 <= self.lora <= 4096:
            raise ValueError(f"lora is {self.lora}; it must be a rank from 0 (off) to 4096")
        if self.lora and self.stage in ("audio", "sync"):
            raise ValueError(f"an adapter is one of the whole video tower, which the stage {self.stage} does not train")
        if self.lora and self.stage == "distill":
            raise ValueError("an adapter is one of the video tower alone; the stage distill trains both")
        if not 1 <= self.student_steps <= 64:
            raise ValueError(f"student_steps is {self.student_steps}; it must be from 1 to 64")
        if self.trajectories < 1:
            raise ValueError(f"trajectories is {self.trajectories}; it must be at least 1")
        if self.beginnings < 0:
            raise ValueError(f"beginnings is {self.beginnings}; it must be 0 (none) or more")
        if not 1 <= self.beginning_steps <= self.student_steps:
            raise ValueError(
                f"beginning_steps is {self.beginning_steps}; it must be from 1 to the student's {self.student_steps}"
            )
        if self.student_towers not in get_args(StudentTowers):
            allowed = ", ".join(get_args(StudentTowers))
            raise ValueError(f"student_towers is {self.student_towers!r}; it must be one of {allowed}")
        if self.times not in get_args(Times):
            raise ValueError(f"times is {self.times!r}; it must be one of {', '.join(get_args(Times))}")
        if (self.synergy_video or self.synergy_audio) and self.stage != "joint":
            raise ValueError(f"cross-task synergy belongs to the stage joint, not to {self.stage}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; it must be fp32 or bf16")
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from {least} to {most}")
        if self.stage != "distill" and self.clean_video + self.independent > 1:
            raise ValueError(
                f"clean_video ({self.clean_video}) and independent ({self.independent}) sum to more than 1"
            )
