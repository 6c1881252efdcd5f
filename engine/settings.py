"""Requests made of prompts and settings given by name, as ``Engine.generate``, ``submit`` and ``retake`` take them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from .types import MAX_SEED, Request
from .validation import check_names, shown, whole

SETTINGS = tuple(field.name for field in fields(Request) if field.name != "prompt")
# Names that diffusers and others have for the settings of a request.
ALIASES = {
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "sampling_steps": "steps",
    "guidance_scale": "guidance",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "generator": "seed",
    "random_seed": "seed",
    "num_videos_per_prompt": "takes",
    "num_images_per_prompt": "takes",
    "num_waveforms_per_prompt": "takes",
    "num_frames": "seconds",
    "duration": "seconds",
    "audio_length_in_s": "seconds",
    "audio_end_in_s": "seconds",
    "size": "width and height",
    "resolution": "width and height",
    "flow_shift": "shift",
    "time_shift": "shift",
    "negative": "negative_prompt",
    "cfg_interval": "guidance_interval",
    "cfg_rescale": "guidance_rescale",
    "denoising_strength": "strength",
}


def seeded(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings with the first seed of a ``generator`` of PyTorch, as diffusers takes one, as the ``seed``.

    The noise is that of the seed here, not that of PyTorch. Raises ``ValueError`` for both at once.
    """
    generator: Any = settings.get("generator")
    if not hasattr(generator, "initial_seed"):
        return settings
    if "seed" in settings:
        raise ValueError("seed and generator are given; a request has one of them")
    rest = {name: value for name, value in settings.items() if name != "generator"}
    return {**rest, "seed": generator.initial_seed()}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what is no setting of a request, with the nearest that is. Raises ``ValueError``."""
    check_names(list(settings), SETTINGS, ALIASES, "a request")


def make_request(request: object, settings: Mapping[str, Any], place: str = "the request") -> Request:
    """A prompt with its settings as a request; a request as it is, beside which there can be no settings.

    Raises ``ValueError`` for anything else and for unknown settings.
    """
    settings = seeded(settings)
    check_settings(settings)
    if isinstance(request, Request):
        if settings:
            raise ValueError(
                f"{', '.join(settings)} cannot be given beside a Request, which has settings of its own; "
                "dataclasses.replace(request, …) changes them"
            )
        return request
    if not isinstance(request, str):
        more = "; Request(**values) makes one of a dictionary" if isinstance(request, Mapping) else ""
        raise ValueError(f"{place} is {shown(request)}; it must be a prompt or a Request{more}")
    return Request(request, **settings)


def make_requests(requests: object, settings: Mapping[str, Any]) -> list[Request]:
    """A prompt or request, or an iterable of them, as requests; of several prompts, each has the next seed.

    Raises ``ValueError`` as :func:`make_request`, and for none.
    """
    settings = seeded(settings)
    if isinstance(requests, (str, bytes, Request, Mapping)) or not isinstance(requests, Iterable):
        return [make_request(requests, settings)]
    several = list(requests)
    if not several:
        raise ValueError("there is nothing to generate: the list of requests is empty")
    seed = whole("seed", settings.get("seed", 0), f"a whole number from 0 to {MAX_SEED}")
    made = []
    for i, item in enumerate(several):
        own = settings if isinstance(item, Request) else {**settings, "seed": seed + i}
        made.append(make_request(item, own, f"request {i + 1}"))
    return made
