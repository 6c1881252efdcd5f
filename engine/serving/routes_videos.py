"""``/v1/videos``: create, follow, list, download and delete videos."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from .access import Key, Served
from .derived import FILES, MEDIA_TYPES, derive, measure
from .errors import ApiError, not_found, wrong_value
from .events import events
from .keys import ApiKey
from .reading import read_body, store_job
from .schemas import EXAMPLE, ErrorResponse, JsonVideoCreateParams, Video, VideoCreateParams, VideoDeleted, VideoList
from .service import Service
from .store import VideoJob

Variant = Literal["video", "audio", "frames", "thumbnail", "spritesheet"]
VideoId = Annotated[str, Path(max_length=128, description="The id of a video.", examples=["video_0123456789abcdef"])]
TakeNumber = Annotated[int, Query(ge=1, le=64, description="Which of the soundtracks.")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="A request that is sent again with it creates no second video."),
]


Responses = dict[int | str, dict[str, Any]]


def refusals(*statuses: int) -> Responses:
    """The error responses of a route, for the OpenAPI document."""
    texts = {
        400: "The request is malformed.",
        401: "The API key is missing or wrong.",
        403: "The API key may not do this.",
        404: "There is no such video.",
        409: "The video is not completed, or failed.",
        413: "The request is too large.",
        415: "The body is neither JSON nor a form.",
        416: "The range is outside of the file.",
        422: "A field has a value that is not allowed.",
        429: "Too many requests; send it again after Retry-After seconds.",
        503: "The server is stopping.",
    }
    return {status: {"model": ErrorResponse, "description": texts[status]} for status in statuses}


def _form_schema() -> dict[str, Any]:
    schema = VideoCreateParams.model_json_schema(ref_template="#/components/schemas/{model}")
    media = {"type": "string", "format": "binary", "description": "A video, a sound or a picture."}
    return schema | {"properties": schema["properties"] | {"input_reference": media}}


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JsonVideoCreateParams"},
                "examples": {"text": {"summary": "A video from a sentence", "value": EXAMPLE}},
            },
            "multipart/form-data": {"schema": _form_schema()},
        },
    }
}
FILE: Responses = {200: {"content": {"video/mp4": {}, "audio/wav": {}}, "description": "The first take as a file."}}
CONTENT: Responses = {
    200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}, "description": "The file."},
    206: {"description": "A range of the file."},
}
EVENTS: Responses = {200: {"content": {"text/event-stream": {}}, "description": "Events until the video has ended."}}
router = APIRouter(prefix="/v1/videos", tags=["videos"])


@router.post("", response_model=Video, responses=refusals(400, 401, 413, 415, 422, 429, 503), openapi_extra=BODY)
async def create_video(request: Request, service: Served, key: Key, idempotency_key: IdempotencyKey = None) -> Video:
    """Create a video. The job is stored before the response; follow it by its id."""
    return service.video(await _create(request, service, key, idempotency_key))


@router.post(
    "/sync",
    responses=FILE | refusals(400, 401, 409, 413, 415, 422, 429, 503),
    response_class=FileResponse,
    openapi_extra=BODY,
)
async def create_video_sync(
    request: Request, service: Served, key: Key, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a video and wait for it. A client that goes away cancels it."""
    job = await _create(request, service, key, idempotency_key)
    live = service.runner.live(job.id)
    if live is not None:
        with live.watch() as changed:
            gone = asyncio.ensure_future(_disconnected(request))
            try:
                while not live.ended:
                    changed.clear()
                    waiting = asyncio.ensure_future(changed.wait())
                    if not live.ended:
                        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED, timeout=5)
                    waiting.cancel()
                    if gone.done() and not live.ended:
                        await run_sync(service.runner.delete, job)
                        raise ApiError(499, "the client went away", "client_closed_request")
                    if service.draining and service.runner.position(job.id) is not None:
                        raise ApiError(
                            503, f"the server is stopping; {job.id} is made later", "stopping", retry_after=10
                        )
            except asyncio.CancelledError:  # how Ray Serve says that the client went away; nothing can be awaited now
                asyncio.get_running_loop().run_in_executor(None, service.runner.delete, job)
                raise
            finally:
                gone.cancel()
    done = await _found(service, key, job.id)
    _check_completed(service, done)
    variant = "video" if "mp4" in (done.result or {"takes": [{"files": {}}]})["takes"][0]["files"] else "audio"
    return _file(service, done, variant, 1)


@router.get("", response_model=VideoList, responses=refusals(401, 422, 429))
async def list_videos(
    service: Served,
    key: Key,
    after: Annotated[str | None, Query(max_length=128, description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Videos on a page.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of creation.")] = "desc",
) -> VideoList:
    """The videos of this API key, a page at a time."""
    found, more = await run_sync(lambda: service.store.page(key.tenant, after, limit, newest_first=order == "desc"))
    videos = [service.video(job) for job in found]
    ends = (videos[0].id, videos[-1].id) if videos else (None, None)
    return VideoList(data=videos, first_id=ends[0], last_id=ends[1], has_more=more)


@router.get("/{video_id}", response_model=Video, responses=refusals(401, 404, 422, 429))
async def retrieve_video(video_id: VideoId, service: Served, key: Key) -> Video:
    """A video's status, progress and parameters."""
    return service.video(await _found(service, key, video_id))


@router.delete("/{video_id}", response_model=VideoDeleted, responses=refusals(401, 404, 422, 429))
async def delete_video(video_id: VideoId, service: Served, key: Key) -> VideoDeleted:
    """Delete a video with its files. One that is being made is cancelled and leaves its batch at the next step."""
    job = await _found(service, key, video_id)
    if not await run_sync(service.runner.delete, job):
        raise not_found(video_id)
    return VideoDeleted(id=video_id)


@router.get(
    "/{video_id}/content",
    responses=CONTENT | refusals(400, 401, 404, 409, 416, 422, 429),
    response_class=FileResponse,
)
async def download_content(
    video_id: VideoId,
    service: Served,
    key: Key,
    variant: Annotated[Variant, Query(description="mp4, wav, a zip of PNG frames, or a picture.")] = "video",
    take: TakeNumber = 1,
) -> Response:
    """A file of a completed video. Ranges are supported."""
    job = await _found(service, key, video_id)
    _check_completed(service, job)
    source = _source(service, job, take)
    if source.suffix != ".mp4" and variant != "audio":
        raise wrong_value("variant", f"variant is {variant}; this is a sound alone, which has audio")
    if variant not in ("video", "audio"):
        target = service.folder.result_file(job.id, FILES[variant].format(take=take))
        await run_sync(derive, variant, source, target)
    return _file(service, job, variant, take)


@router.get(
    "/{video_id}/events",
    responses=EVENTS | refusals(401, 404, 422, 429),
    response_class=StreamingResponse,
)
async def follow_video(video_id: VideoId, service: Served, key: Key) -> Response:
    """Progress, queue position, estimated time and previews, as server-sent events."""
    job = await _found(service, key, video_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(service, job), media_type="text/event-stream", headers=headers)


@router.get("/{video_id}/inspection", responses=refusals(401, 404, 409, 422, 429))
async def inspect_video(video_id: VideoId, service: Served, key: Key, take: TakeNumber = 1) -> dict[str, Any]:
    """The waveform, motion, impacts and onsets of a completed video."""
    job = await _found(service, key, video_id)
    _check_completed(service, job)
    source = _source(service, job, take)
    target = service.folder.result_file(job.id, f"{take}-inspection.json")
    return await run_sync(measure, source, target, service.inspect)


async def _create(request: Request, service: Service, key: ApiKey, idempotency_key: str | None) -> VideoJob:
    service.check_accepting()
    body = await read_body(request, service)
    return await run_sync(store_job, body, service, key, idempotency_key)


async def _found(service: Service, key: ApiKey, video_id: str) -> VideoJob:
    job = await run_sync(service.job, video_id, key)
    if job is None:
        raise not_found(video_id)
    return job


def _check_completed(service: Service, job: VideoJob) -> None:
    if job.status == "failed":
        raise ApiError(409, f"the video failed: {(job.error or {}).get('message')}", "video_failed")
    if job.status != "completed":
        raise ApiError(409, f"the video is {job.status}; it has files when it is completed", "video_not_completed")


def _source(service: Service, job: VideoJob, take: int) -> Any:
    """The file of a take: mp4, or wav of a sound alone."""
    takes = (job.result or {"takes": []})["takes"]
    if take > len(takes):
        raise wrong_value("take", f"take is {take}; the video has {len(takes)}")
    suffix = "mp4" if "mp4" in takes[take - 1]["files"] else "wav"
    return service.folder.result_file(job.id, f"{take}.{suffix}")


def _file(service: Service, job: VideoJob, variant: str, take: int) -> Response:
    name = FILES[variant].format(take=take)
    path = service.folder.result_file(job.id, name)
    if not path.is_file():
        raise not_found(job.id)
    headers = {"Cache-Control": "private, max-age=3600"}
    return FileResponse(path, media_type=MEDIA_TYPES[variant], filename=f"{job.id}-{name}", headers=headers)


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.25)


# The schema that the request bodies above refer to.
SCHEMAS = {"JsonVideoCreateParams": JsonVideoCreateParams}
