"""From parameters of the API to a ``Request`` of the engine, and what the engine refuses to the field that is wrong."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..types import Request
from .errors import ApiError, wrong_value
from .schemas import VideoCreateParams
from .settings import RequestLimits
from .uploads import FIELD, MediaKind, says

# Fields of a request by the parameter that sets them.
FIELDS = {
    "prompt": "prompt",
    "seconds": "seconds",
    "width": "width",
    "height": "height",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "sync_guidance": "sync_guidance",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "audio_seed": "audio_seed",
    "takes": "takes",
    "strength": "strength",
    "flow_shift": "shift",
    "video_lead": "video_lead",
}
PARAMS = {field: param for param, field in FIELDS.items()}
MEDIA_OF_TASK = {
    "video-to-audio": ("video", "video"),
    "variation": ("video", "video"),
    "continuation": ("extend", "video"),
    "image-to-audio-video": ("image", "image"),
    "audio-to-video": ("audio", "audio"),
}
TASK_OF_KIND = {"video": "video-to-audio", "image": "image-to-audio-video", "audio": "audio-to-video"}


def complete_params(
    given: VideoCreateParams, kind: MediaKind | None, config: ModelConfig, limits: RequestLimits
) -> dict[str, Any]:
    """The parameters with every choice made, so that they give the same video again.

    Raises :class:`ApiError` with the field for what contradicts itself, the model or the limits.
    """
    if given.model not in (None, config.name):
        raise wrong_value("model", f"model is {given.model[:60]!r}; {config.name} is served")
    params = given.model_dump(exclude_none=True, exclude={"model", "size", "num_frames", "fps", "input_reference"})
    params |= _size(given, config, limits) | _duration(given, config, limits)
    params["task"] = _task(given, kind)
    params.setdefault("seed", secrets.randbelow(2**31))
    params.setdefault("num_inference_steps", config.sampling.steps)
    for name, most in (("num_inference_steps", limits.steps), ("takes", limits.takes)):
        if params[name] > most:
            raise wrong_value(name, f"{name} is {params[name]}; at most {most} are allowed")
    return params


def make_request(params: Mapping[str, Any], upload: Path | None) -> Request:
    """The request of complete parameters. Raises :class:`ApiError` with the field."""
    values = {FIELDS[name]: value for name, value in params.items() if name in FIELDS}
    task = params["task"]
    if task in MEDIA_OF_TASK:
        values[MEDIA_OF_TASK[task][0]] = upload
    try:
        return Request(**values, sound_only=task == "text-to-audio")
    except ValueError as error:
        raise refused(error, upload) from error


def refused(error: Exception, upload: Path | None = None) -> ApiError:
    """What the engine said of a request, with the parameter that it begins with."""
    message = str(error) if upload is None else says(error, upload)
    word = re.match(r"\w+", message)
    name = word[0] if word else ""
    if name in PARAMS:
        return wrong_value(PARAMS[name], PARAMS[name] + message[len(name) :])
    about = {"the prompt": "prompt", "the negative prompt": "negative_prompt", "a negative prompt": "negative_prompt"}
    found = next((param for start, param in about.items() if message.startswith(start)), None)
    return wrong_value(FIELD if name == FIELD else found, message)


def _size(given: VideoCreateParams, config: ModelConfig, limits: RequestLimits) -> dict[str, int]:
    if given.size is not None and (given.width, given.height) != (None, None):
        raise wrong_value("size", "size is given, and so is width or height; give one of them")
    width, height = given.width, given.height
    if given.size is not None:
        width, height = (int(side) for side in given.size.split("x"))
    width, height = width or config.sequence.width, height or config.sequence.height
    if width * height > limits.pixels:
        raise wrong_value("size", f"size is {width}x{height}; at most {limits.pixels:,} pixels are allowed")
    return {"width": width, "height": height}


def _duration(given: VideoCreateParams, config: ModelConfig, limits: RequestLimits) -> dict[str, float]:
    fps = config.sequence.fps
    if given.fps not in (None, fps):
        raise wrong_value("fps", f"fps is {given.fps:g}; {config.name} generates {fps} frames per second")
    seconds = given.seconds
    if given.num_frames is not None:
        if seconds is not None and round(seconds * fps) != given.num_frames:
            raise wrong_value(
                "num_frames", f"num_frames is {given.num_frames} and {seconds:g} s have {round(seconds * fps)} frames"
            )
        seconds = given.num_frames / fps
    if seconds is None:
        return {}
    if seconds > limits.seconds:
        raise wrong_value("seconds", f"seconds is {seconds:g}; at most {limits.seconds:g} are allowed")
    return {"seconds": seconds}


def _task(given: VideoCreateParams, kind: MediaKind | None) -> str:
    task = given.task
    if task is None:
        if kind is None:
            return "text-to-audio-video"
        return "variation" if kind == "video" and given.strength is not None else TASK_OF_KIND[kind]
    if task not in MEDIA_OF_TASK:
        if kind is not None:
            raise wrong_value(FIELD, f"{FIELD} is given, and the task {task} takes none")
        return task
    needed = MEDIA_OF_TASK[task][1]
    if kind is None or (needed == "image") != (kind == "image") or (needed == "video" and kind == "audio"):
        article = "an" if needed[0] in "aeiou" else "a"
        raise wrong_value(FIELD, f"the task {task} needs {article} {needed} as {FIELD}; this is {kind or 'nothing'}")
    if task == "variation" and given.strength is None:
        raise wrong_value("strength", "strength is missing; a variation needs one above 0 and at most 1")
    if task != "variation" and given.strength is not None:
        raise wrong_value("strength", f"strength is of a variation, and the task is {task}")
    return task
