"""What a refused HTTP request gets: a status, and one sentence in the shape of OpenAI's errors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger("syncflow.serving")
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal. ``param`` names the field of the request; ``retry_after`` seconds make a ``Retry-After`` header."""

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after


def wrong_value(param: str | None, message: str) -> ApiError:
    """422: a field has a value that is not allowed."""
    return ApiError(422, message, "invalid_value", param=param)


def not_found(video_id: str) -> ApiError:
    """404: there is no such video, or it belongs to another tenant."""
    return ApiError(404, f"there is no video {video_id[:60]!r}", "video_not_found", param="video_id")


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def respond(error: ApiError) -> JSONResponse:
    """The response for a refusal."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(error.status, error.message, error.code, error.param)
    return JSONResponse(body, error.status, headers)


def from_validation(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's complaints, with its field."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
    if first["type"] == "extra_forbidden":
        return wrong_value(field, f"a request has no field {field}; /openapi.json lists those that it has")
    return wrong_value(field or None, f"{field or 'the request'}: {first['msg']}")


def install(app: FastAPI) -> None:
    """Let the application answer every error in one shape."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return respond(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused_by_framework(_: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
        body = error_body(error.status_code, str(error.detail), codes.get(error.status_code, "invalid_request"))
        return JSONResponse(body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body(500, "the server failed; its log has the request id", "server_error"), 500)
