"""Which parameters each stage trains, and with which optimiser (SyncFlow section 3.3, Syncphony, Harmony)."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer

from ..engine.codecs.text import TextEncoder
from ..engine.config import DDiTConfig
from ..engine.model import DDiT
from .config import Stage, TrainConfig
from .lora import branches_of
from .muon import Muon

# By what crosses between the towers (``DDiTConfig.bridge``).
STAGES_OF_BRIDGE: dict[str, tuple[Stage, ...]] = {
    "none": ("video", "distill"),
    "adaptor": ("video", "audio", "joint", "distill"),
    "audio_rope": ("video", "sync", "joint", "distill"),
    "global_local": ("video", "joint", "distill"),
    "bidirectional": (),
}


def check_stage(config: TrainConfig, model: DDiTConfig) -> None:
    """Raise ``ValueError`` for a stage or a loss that a model with this bridge does not have."""
    stages = STAGES_OF_BRIDGE[model.bridge]
    if config.stage not in stages:
        raise ValueError(
            f"a model with the bridge {model.bridge} has no stage {config.stage}; it has {', '.join(stages) or 'none'}"
        )
    if (config.synergy_video or config.synergy_audio) and model.bridge != "global_local":
        raise ValueError(f"cross-task synergy needs the bridge global_local; this model has {model.bridge}")


def trained_modules(model: DDiT, text_encoder: TextEncoder, config: TrainConfig) -> list[nn.Module]:
    """SyncFlow's stages: 1 the video tower, 2 the audio tower with its adaptors, 3 both and the bridge; Syncphony's
    ``sync``: the bridge, the audio tower, which it reads, and the video layers from the first bridge on. The text
    encoder if the recipe says so, but for stage 2 and ``sync``.

    The stage ``distill`` trains what ``config.student_towers`` names. Of a model with branches of an adapter, these
    alone.
    """
    if branches := branches_of(model):
        return [*branches]
    bridge: list[nn.Module] = [] if model.bridge is None else [model.bridge]
    by_stage: dict[str, list[nn.Module]] = {
        "video": [model.video],
        "audio": [model.audio],
        "joint": [model.video, model.audio, *bridge],
        "sync": [*_late_video_layers(model), model.audio, *bridge],
    }
    by_student = {"video": by_stage["video"], "audio": by_stage["audio"], "both": by_stage["joint"]}
    modules = by_student[config.student_towers] if config.stage == "distill" else by_stage[config.stage]
    return [*modules, text_encoder] if config.train_text and config.stage in ("video", "joint") else modules


def _late_video_layers(model: DDiT) -> list[nn.Module]:
    """What of the video tower follows its first bridge (Syncphony trains layers 8 to 23 of 24)."""
    first = model.config.first_block
    tower = model.video
    return [*tower.spatial_blocks[first:], *tower.temporal_blocks[first:], tower.final_layer]


def freeze_rest(model: DDiT, text_encoder: TextEncoder, config: TrainConfig) -> None:
    """Only the stage's modules require gradients afterwards."""
    model.requires_grad_(False)
    text_encoder.requires_grad_(False)
    for module in trained_modules(model, text_encoder, config):
        module.requires_grad_(True)


def optimisers(model: DDiT, text_encoder: TextEncoder, config: TrainConfig) -> list[Optimizer]:
    """Muon for the matrices inside blocks, AdamW for embeddings, norms, tables, biases, first and last layers."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    trained = {p for module in trained_modules(model, text_encoder, config) for p in module.parameters()}
    named = (*model.named_parameters(), *(text_encoder.named_parameters() if config.train_text else ()))
    for name, parameter in named:
        if parameter in trained:
            inside = any(part in name for part in ("blocks.", "layers.", "adaptors.", "encoder.block"))
            hidden = inside and parameter.ndim == 2 and name.endswith("weight") and "relative" not in name
            (matrices if hidden else others).append(parameter)
    bfloat16, decay = config.precision == "bf16", config.weight_decay
    muon = [Muon(matrices, lr=config.matrix_lr, weight_decay=decay, bfloat16=bfloat16)] if matrices else []
    return [
        *muon,
        AdamW(others, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]
