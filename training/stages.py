"""Which parameters each stage trains, and with which optimiser (SyncFlow section 3.3)."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer

from ..engine.codecs.text import TextEncoder
from ..engine.model import DDiT
from .config import TrainConfig
from .lora import branches_of
from .muon import Muon


def trained_modules(model: DDiT, text_encoder: TextEncoder, config: TrainConfig) -> list[nn.Module]:
    """Stage 1 the video tower, 2 the audio tower with its adaptors, 3 both; the text encoder if the recipe says so.

    Of a model with branches of an adapter, these alone.
    """
    if branches := branches_of(model):
        return [*branches]
    by_stage: dict[str, list[nn.Module]] = {
        "video": [model.video],
        "audio": [model.audio],
        "joint": [model.video, model.audio],
    }
    modules = by_stage[config.stage]
    return [*modules, text_encoder] if config.train_text and config.stage != "audio" else modules


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
    for module in trained_modules(model, text_encoder, config):
        for name, parameter in module.named_parameters():
            inside = any(part in name for part in ("blocks.", "layers.", "adaptors.", "encoder.block"))
            hidden = inside and parameter.ndim == 2 and name.endswith("weight") and "relative" not in name
            (matrices if hidden else others).append(parameter)
    muon = [Muon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay)] if matrices else []
    return [
        *muon,
        AdamW(others, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]
