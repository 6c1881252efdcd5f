"""The body of ``POST /v1/videos``: JSON or a form, with or without media, as checked parameters and a stored upload."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from .errors import ApiError, from_validation, wrong_value
from .keys import ApiKey
from .schemas import DataUrl, JsonVideoCreateParams, VideoCreateParams
from .service import Service
from .store import NewJob, VideoJob, new_id
from .uploads import FIELD, MediaKind, check_upload, from_data_url

MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Body:
    """Parameters as they were given, and a file."""

    params: VideoCreateParams
    file: BinaryIO | None


async def read_body(request: Request, service: Service) -> Body:
    """The body of a request. Raises :class:`ApiError` with the field that is wrong."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(await request.body(), service.settings.uploads.bytes)
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _from_form(request)
    raise ApiError(415, "the body must be application/json or multipart/form-data", "unsupported_media_type")


def _from_json(content: bytes, limit: int) -> Body:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise ApiError(422, "the body is no JSON", "invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(422, "the body is no JSON object", "invalid_json")
    params = _validated(JsonVideoCreateParams, values)
    assert isinstance(params, JsonVideoCreateParams)
    file = None
    if params.input_reference is not None:
        file = io.BytesIO(from_data_url(_url(params.input_reference), limit))
    return Body(params, file)


def _url(reference: DataUrl) -> str:
    given = [url for url in (reference.image_url, reference.video_url, reference.audio_url) if url is not None]
    if len(given) != 1:
        raise wrong_value(FIELD, f"{FIELD} must have one of image_url, video_url and audio_url")
    return given[0]


async def _from_form(request: Request) -> Body:
    try:
        form = await _parsed(request)
    except (MultiPartException, HTTPException) as error:
        detail = getattr(error, "detail", None) or getattr(error, "message", "")
        raise ApiError(422, f"the form cannot be read: {detail}", "invalid_form") from None
    except (ValueError, KeyError):
        raise ApiError(422, "the form cannot be read: it is damaged", "invalid_form") from None
    upload = form.get(FIELD)
    return Body(_validated(VideoCreateParams, _values(form)), upload.file if isinstance(upload, UploadFile) else None)


class _Parser(MultiPartParser):
    """Knows whether the last boundary came; the parser takes a form that was cut off, without the part at its end."""

    ended = False

    def on_end(self) -> None:
        super().on_end()
        self.ended = True


async def _parsed(request: Request) -> FormData:
    if not request.headers["content-type"].lower().startswith("multipart/"):
        return await request.form(max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    limits = {"max_files": 1, "max_fields": MAX_FIELDS, "max_part_size": MAX_FIELD_BYTES}
    parser = _Parser(request.headers, request.stream(), **limits)
    form = await parser.parse()
    if not parser.ended:
        await form.close()
        raise MultiPartException("it ends before its last boundary")
    return form


def _values(form: FormData) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in values:
            raise wrong_value(name[:60], f"{name[:60]} is given twice")
        if not isinstance(value, UploadFile):
            if name == FIELD:
                raise wrong_value(FIELD, f"{FIELD} must be a file")
            values[name] = value
        elif name != FIELD:
            raise wrong_value(name[:60], f"{name[:60]} must be no file; media are sent as {FIELD}")
    return values


def _validated(kind: type[VideoCreateParams], values: Mapping[str, Any]) -> VideoCreateParams:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_context=False, include_input=False)) from None


def store_job(body: Body, service: Service, key: ApiKey, idempotency_key: str | None) -> VideoJob:
    """Check a request, and store its upload and its job, or find the job of the same idempotency key. Takes a while.

    Raises :class:`ApiError`; nothing stays on disk then.
    """
    job_id, is_new = new_id(), False
    try:
        job, is_new = service.add(_new_job(body, service, job_id, idempotency_key), key)
        return job
    finally:
        if body.file is not None and not is_new:
            service.folder.remove_upload(job_id)


def _new_job(body: Body, service: Service, job_id: str, idempotency_key: str | None) -> NewJob:
    kind: MediaKind | None = None
    upload: Path | None = None
    stored: dict[str, str] | None = None
    given = body.params.model_dump(exclude={FIELD}, exclude_none=True)
    if body.file is not None:
        digest = service.folder.save_upload(job_id, body.file, service.settings.uploads.bytes)
        upload = service.folder.upload(job_id)
        kind = check_upload(upload, service.settings.uploads)
        stored = {"kind": kind, "sha256": digest}
    fingerprint = hashlib.sha256(json.dumps([given, stored], sort_keys=True).encode()).hexdigest()
    params = service.prepare(body.params, kind, upload)
    return NewJob(job_id, params, stored, fingerprint, idempotency_key)
