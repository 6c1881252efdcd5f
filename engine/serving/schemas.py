"""Requests and responses of the HTTP API: the fields of OpenAI's videos API, and extensions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..tasks import Task
from ..types import MAX_SEED, MAX_STEPS, MAX_TAKES, MAX_WEIGHT

MAX_PROMPT = 4096
Text = Annotated[str, Field(max_length=MAX_PROMPT)]
Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TASKS: tuple[str, ...] = get_args(Task)
EXAMPLE: dict[str, str | int] = {
    "prompt": "a large red rubber ball bounces on a wooden floor",
    "seconds": "2",
    "size": "64x64",
    "num_inference_steps": 8,
    "seed": 7,
}


class DataUrl(BaseModel):
    """Media within JSON, as a ``data:`` URL in base64. Other URLs are not fetched."""

    model_config = ConfigDict(extra="forbid")

    image_url: str | None = None
    video_url: str | None = None
    audio_url: str | None = None


class VideoCreateParams(BaseModel):
    """One video to generate. Everything but the prompt is optional; the defaults are those of the model."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{**EXAMPLE}]})

    prompt: Text = Field(description="What the video shows, in a sentence; may be empty with input_reference.")
    model: Annotated[str, Field(max_length=256)] | None = Field(None, description="The served model, if given.")
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Duration; a number, or a number as text as in OpenAI's API."
    )
    size: Annotated[str, Field(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")] | None = Field(
        None, description="WIDTHxHEIGHT in pixels.", examples=["64x64"]
    )
    width: Annotated[int, Field(ge=1, le=65_536)] | None = Field(None, description="Width in pixels, for size.")
    height: Annotated[int, Field(ge=1, le=65_536)] | None = Field(None, description="Height in pixels, for size.")
    num_frames: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        None, description="Frames of the video, for seconds."
    )
    fps: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = Field(
        None, description="Frames per second; that of the model, if given."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = Field(
        None, description="Euler steps of each modality."
    )
    guidance_scale: Weight | None = Field(None, description="Scale of classifier-free guidance; 1: off.")
    sync_guidance: Weight | None = Field(
        None, description="Scale of sync guidance, away from a sound that does not read the video; 0: off."
    )
    negative_prompt: Text | None = Field(None, description="What classifier-free guidance moves away from.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, description="Seed of the noise; chosen at random, and returned, if not given."
    )
    audio_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, description="Seed of the sound's noise; by default the seed."
    )
    takes: Annotated[int, Field(ge=1, le=MAX_TAKES)] = Field(1, description="Soundtracks for the one video.")
    task: Task | None = Field(None, description="By default what input_reference asks for.")
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="Of a variation: above 0 (close to the video) to 1 (generated anew)."
    )
    flow_shift: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = Field(
        None, description="Shift of the time grid towards noise."
    )
    video_lead: Share | None = Field(None, description="Lead of the video's flow time over the sound's.")

    @field_validator("prompt", "negative_prompt", "model")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        if value is not None and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
            raise ValueError("it must be text that UTF-8 can hold, without null characters")
        return value


class JsonVideoCreateParams(VideoCreateParams):
    """A request as JSON, with its media as a ``data:`` URL."""

    input_reference: DataUrl | None = Field(None, description="A video, a sound or a picture.")


class VideoError(BaseModel):
    """Why a video could not be made."""

    code: str
    message: str


class Take(BaseModel):
    """One soundtrack of a video and its files."""

    take: int
    audio_seed: int
    files: dict[str, Any] = Field(description="SHA-256 and bytes of mp4 and wav.")


class Video(BaseModel):
    """A job that generates a video: OpenAI's fields, then extensions."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="Percent of the steps.")
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    seconds: str
    size: str
    error: VideoError | None = None
    remixed_from_video_id: str | None = None
    task: Task
    seed: int
    num_frames: int
    fps: float
    num_inference_steps: int
    queue_position: int | None = Field(None, description="Jobs that are likely to be served before this one.")
    estimated_seconds: float | None = Field(None, description="Until the video is completed.")
    params: dict[str, Any] = Field(description="The request with all choices made: sent again, it gives this video.")
    takes: list[Take] = []


class VideoList(BaseModel):
    """A page of videos; ``last_id`` is the ``after`` of the next one."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """The confirmation of a deletion."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class ErrorDetail(BaseModel):
    """What was wrong; ``param`` names the field."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """An error in the shape of OpenAI's."""

    error: ErrorDetail
