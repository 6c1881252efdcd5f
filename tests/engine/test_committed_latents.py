"""Latents of fixed requests against committed ones, at every bridge: a refactoring changes none of them.

``python -m tests.engine.test_committed_latents`` writes the file anew, for a change that is meant to alter results.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from syncflow.engine.model import DDiT
from syncflow.engine.sampling.guidance import combine, sync_cfg_audio, sync_cfg_video, sync_guidance, text_guidance
from syncflow.engine.sampling.job import Job
from syncflow.engine.sampling.loop import sample
from syncflow.kernels.launch import implementation

from .plain import CONFIG, job, randomised

FILE = Path(__file__).parent / "latents.safetensors"
BRIDGES = ("adaptor", "audio_rope", "global_local")


def model_of(bridge: str) -> DDiT:
    """Weights come from a seeded generator of PyTorch, which gives the same on every machine."""
    return randomised(CONFIG.replace(bridge=bridge, first_block=int(bridge == "audio_rope")))


def requests(bridge: str) -> list[Job]:
    """Of different lengths and tasks, with every guidance that the bridge knows."""
    directions = [text_guidance(4.0), sync_guidance(1.5), sync_cfg_audio(2.0)]
    if bridge != "adaptor":
        directions.append(sync_cfg_video(2.0))
    guidance = combine(directions, interval=(0.0, 0.9), rescale=0.5)
    return [
        job(1, steps=3, guidance=guidance, shift=3.0),
        job(2, steps=2, guidance=guidance, lead=0.5, prefix=1, negative=True, clean=True),
    ]


def latents(bridge: str) -> dict[str, Tensor]:
    """What the loop makes of the requests."""
    with implementation("reference"):
        found = sample(model_of(bridge), requests(bridge))
    return {f"{bridge}.video": found.video, f"{bridge}.audio": found.audio}


@pytest.mark.parametrize("bridge", BRIDGES)
def test_latents_are_those_that_were_committed(bridge: str) -> None:
    committed = load_file(FILE)
    for name, found in latents(bridge).items():
        torch.testing.assert_close(found, committed[name], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    save_file({name: found.contiguous() for bridge in BRIDGES for name, found in latents(bridge).items()}, FILE)
