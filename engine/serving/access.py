"""Who sends a request: its API key, and whether it may send another one now."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from .errors import ApiError
from .keys import ApiKey
from .service import Service
from .settings import retry_after

bearer = HTTPBearer(auto_error=False, description="An API key, where the server has a file of keys.")


async def service_of(request: Request) -> Service:
    """The service of the application. A coroutine: FastAPI calls a plain function in a thread."""
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]


async def authenticated(
    request: Request, service: Served, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> ApiKey:
    """The key of a request. Raises :class:`ApiError`: 401 for none or a wrong one, 429 above its rate."""
    key = service.keys.find(None if credentials is None else credentials.credentials)
    if key is None:
        service.metrics.refused.labels("invalid_api_key").inc()
        raise ApiError(401, "the API key is missing or wrong; send Authorization: Bearer KEY", "invalid_api_key")
    request.state.tenant = key.tenant
    wait = service.rates.take(key)
    if wait:
        service.metrics.refused.labels("rate_limit").inc()
        message = f"at most {key.requests_per_minute} requests a minute are allowed"
        raise ApiError(429, message, "rate_limit", retry_after=retry_after(wait))
    return key


Key = Annotated[ApiKey, Depends(authenticated)]
