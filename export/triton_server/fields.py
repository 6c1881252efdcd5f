"""What a request to the model ``syncflow`` may hold, and what it answers: names, types, shapes of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Field:
    """A tensor: its type and its lengths as a configuration of Triton has them, -1 where they are free."""

    type: str
    dims: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Setting(Field):
    """A tensor of one element, of which ``read`` makes a setting of a :class:`syncflow.Request`."""

    read: Callable[[Any], Any] = field(kw_only=True)


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("a text is not UTF-8") from None


SETTINGS: Mapping[str, Setting] = {
    "prompt": Setting("TYPE_STRING", read=_text),
    "seed": Setting("TYPE_UINT64", read=int),
    "audio_seed": Setting("TYPE_UINT64", read=int),
    "steps": Setting("TYPE_INT32", read=int),
    "seconds": Setting("TYPE_FP32", read=float),
    "width": Setting("TYPE_INT32", read=int),
    "height": Setting("TYPE_INT32", read=int),
    "guidance": Setting("TYPE_FP32", read=float),
    "negative_prompt": Setting("TYPE_STRING", read=_text),
    "sync_guidance": Setting("TYPE_FP32", read=float),
    "video_lead": Setting("TYPE_FP32", read=float),
    "shift": Setting("TYPE_FP32", read=float),
    "strength": Setting("TYPE_FP32", read=float),
}
MEDIA = ("video", "image", "extend", "audio", "reference")
"""Known media, each the bytes of a file."""

REQUIRED = "prompt"
INPUTS: Mapping[str, Field] = {**SETTINGS, **{name: Field("TYPE_STRING") for name in MEDIA}}
"""Of a clip; all but the prompt may be left out."""

OUTPUTS: Mapping[str, Field] = {
    "mp4": Field("TYPE_STRING"),
    "frames": Field("TYPE_UINT8", (-1, -1, -1, 3)),
    "waveform": Field("TYPE_FP32", (-1,)),
    "fps": Field("TYPE_FP32"),
    "sample_rate": Field("TYPE_INT32"),
    "provenance": Field("TYPE_STRING"),
}
"""A clip: as a file, as frames and samples, and how it came to be (JSON). What nobody asks for is not made."""
