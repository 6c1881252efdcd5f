"""The denoising loop of diffusers' LTX pipeline, with a transformer that takes as many FLOPs as a step of this model.

Weights are random. Width, heads, and tokens of the video and of the text are those of the model; the layers, and for
the rest the width of the text states, are chosen so that a step has the same FLOPs. The two compute different things,
so that what is compared is the share of the matrix rate that each reaches (model FLOPs utilisation, MFU; A. Chowdhery
et al., "PaLM", 2022): at equal FLOPs the inverse of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from syncflow.engine.config import ModelConfig
from syncflow.engine.cost.flops import flops

from .step import OTHER_WORK, Variant

BRANCHES = 2
GUIDANCE = 6.0
STEPS = 200  # of the schedule, which begins again after them
LEAST_TEXT = 64  # width of the text states
MISSING = "diffusers' LTX loop is left out: it needs diffusers; install it with `pip install syncflow[codecs]`"


class LTXLoop:
    """A batch of clips in ``LTXPipeline.__call__``, whose steps take ``flops``: ``target`` or slightly fewer.

    Raises ``ValueError`` without diffusers, and where one layer takes more than ``target``.
    """

    def __init__(self, config: ModelConfig, batch: int, target: int, device: str = "cpu") -> None:
        try:
            from diffusers import FlowMatchEulerDiscreteScheduler
        except ImportError:
            raise ValueError(MISSING) from None
        settings = _matching(config, batch, target)
        torch.manual_seed(0)
        self.transformer, self.inputs = _model(settings, device), _inputs(config, settings, batch, device)
        self.latents = self.inputs.pop("hidden_states")[:batch]
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler()
        self.flops = _flops(config, settings, batch)
        self._left: list[Tensor] = []

    @torch.inference_mode()
    def step(self) -> None:
        """One Euler step of all clips, with classifier-free guidance."""
        if not self._left:
            self.scheduler.set_timesteps(STEPS, device=self.latents.device)
            self._left = list(self.scheduler.timesteps)
        time, both = self._left.pop(0), torch.cat([self.latents] * BRANCHES)
        inputs = self.inputs | {"hidden_states": both, "timestep": time.expand(len(both))}
        without, text = self.transformer(**inputs, return_dict=False)[0].float().chunk(2)
        guided = without + GUIDANCE * (text - without)
        self.latents = self.scheduler.step(guided, time, self.latents, return_dict=False)[0]


def variant(config: ModelConfig, batch: int, target: int, device: str = "cpu") -> Variant:
    """A step of :class:`LTXLoop`; its velocities are those of another model, so there is no error to state."""
    loop = LTXLoop(config, batch, target, device)
    return Variant(OTHER_WORK, OTHER_WORK, loop.step, None, loop.flops)


def maker(
    config: ModelConfig, batch: int, device: str, report: Callable[[str], object]
) -> Callable[[int], Variant] | None:
    """:func:`variant` of so many FLOPs; None without diffusers, which is reported in a sentence."""
    if find_spec("diffusers") is None:
        report(MISSING)
        return None
    return partial(variant, config, batch, device=device)


def _matching(config: ModelConfig, batch: int, target: int) -> dict[str, Any]:
    """Settings of a transformer of as many FLOPs, which grow linearly with its layers and its text states."""
    ddit = config.ddit
    settings = {
        "in_channels": ddit.video_channels,
        "out_channels": ddit.video_channels,
        "num_attention_heads": ddit.heads,
        "attention_head_dim": ddit.width // ddit.heads,
        "cross_attention_dim": ddit.width,
        "caption_channels": LEAST_TEXT,
    }
    one, two = (_flops(config, settings | {"num_layers": layers}, batch) for layers in (1, 2))
    layers = 1 + (target - one) // (two - one)
    if layers < 1:
        raise ValueError(f"diffusers' LTX loop is left out: one of its layers takes {one} FLOPs, and a step {target}")
    rest = target - one - (layers - 1) * (two - one)
    text = 2 * BRANCHES * batch * ddit.text_tokens * ddit.width  # FLOPs of one more channel of the text states
    return settings | {"num_layers": layers, "caption_channels": LEAST_TEXT + rest // text}


def _model(settings: dict[str, Any], device: str) -> Any:
    from diffusers import LTXVideoTransformer3DModel

    with torch.device(device):
        model: Any = LTXVideoTransformer3DModel(**settings)
    return model.eval().requires_grad_(False)


def _inputs(config: ModelConfig, settings: dict[str, Any], batch: int, device: str) -> dict[str, Any]:
    sequence, rows, text = config.sequence, BRANCHES * batch, config.ddit.text_tokens
    height, width = (-(-side // sequence.patch) for side in (sequence.latent_height, sequence.latent_width))
    noise: Callable[..., Tensor] = partial(torch.randn, device=device)
    return {
        "hidden_states": noise(rows, sequence.latent_frames * height * width, settings["in_channels"]),
        "encoder_hidden_states": noise(rows, text, settings["caption_channels"]),
        "encoder_attention_mask": torch.ones(rows, text, device=device),
        "num_frames": sequence.latent_frames,
        "height": height,
        "width": width,
    }


def _flops(config: ModelConfig, settings: dict[str, Any], batch: int) -> int:
    model, inputs = _model(settings, "meta"), _inputs(config, settings, batch, "meta")
    inputs["timestep"] = torch.ones(BRANCHES * batch, device="meta")
    return flops(lambda: model(**inputs, return_dict=False))
