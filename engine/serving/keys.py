"""API keys: who may send requests, and how many.

A key is a random token of which the file of keys holds the SHA-256 alone. ::

    {"keys": [{"tenant": "acme", "sha256": "…", "requests_per_minute": 120, "queued": 32, "videos_per_day": 1000}]}
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..media.destinations import destination
from ..validation import check_names, text, truth, whole_between
from .settings import names_of

PREFIX = "sf-"


@dataclass(frozen=True)
class ApiKey:
    """One key. ``tenant`` owns the jobs that it creates and sees no others.

    ``requests_per_minute`` of HTTP requests, ``queued`` jobs that wait or run at once, ``videos_per_day`` that are
    created; ``admin`` may read ``/debug/engine``. Raises ``ValueError`` with what is allowed.
    """

    tenant: str
    sha256: str = ""
    requests_per_minute: int = 600
    queued: int = 64
    videos_per_day: int = 10_000
    admin: bool = False

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "queued", "videos_per_day"):
            whole_between(name, getattr(self, name), 1, 10**9)
        truth("admin", self.admin)
        if not text("tenant", self.tenant) or len(self.tenant) > 64:
            raise ValueError(f"tenant is {self.tenant[:70]!r}; it must have from 1 to 64 characters")


EVERYBODY = ApiKey("default", requests_per_minute=10**9, queued=10**9, videos_per_day=10**9, admin=True)


class KeyRing:
    """The keys of a server. Without any, everybody is the tenant "default"."""

    def __init__(self, keys: Sequence[ApiKey] | None = None) -> None:
        self.keys = keys

    @classmethod
    def load(cls, path: Path | None) -> KeyRing:
        """The keys of a file. Raises ``ValueError`` for one that cannot be read or has no valid keys."""
        if path is None:
            return cls()
        keys = _read(path)
        if not keys:
            raise ValueError(f"{path} holds no keys; `syncflow serve --new-key TENANT --keys {path}` adds one")
        return cls(keys)

    def find(self, token: str | None) -> ApiKey | None:
        """The key with this token. The time that it takes does not depend on the token."""
        if self.keys is None:
            return EVERYBODY
        digest = hashlib.sha256((token or "").encode()).hexdigest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def _read(path: Path) -> list[ApiKey]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["keys"]
        for entry in entries:
            check_names(list(entry), names_of(ApiKey), {}, "a key")
        keys = [ApiKey(**entry) for entry in entries]
    except OSError as error:
        raise ValueError(f"the keys {path} cannot be read ({error.strerror})") from error
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} is no file of keys: it must be JSON, {{"keys": [{{"tenant": …}}]}}') from error
    for key in keys:
        if len(key.sha256) != 64 or not set(key.sha256) <= set("0123456789abcdef"):
            raise ValueError(f"{path}: the key of {key.tenant!r} has no sha256 of 64 hexadecimal digits")
    return keys


def add_key(path: Path, tenant: str, **limits: Any) -> str:
    """Add a key of a tenant to a file, which is made where it is missing. -> the token, which is stored nowhere."""
    token = PREFIX + secrets.token_urlsafe(32)
    keys = _read(path) if path.exists() else []
    keys.append(ApiKey(tenant, hashlib.sha256(token.encode()).hexdigest(), **limits))
    path.parent.mkdir(parents=True, exist_ok=True)
    with destination(path) as target:
        target.write_text(json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n", encoding="utf-8")
    os.chmod(path, 0o600)
    return token


class RateLimiter:
    """A token bucket for each tenant: a minute's requests at once, and then as they come back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: ApiKey) -> float:
        """0 and a request less, or the seconds until there is one."""
        now, most = self._clock(), float(key.requests_per_minute)
        left, since = self._buckets.get(key.tenant, (most, now))
        left = min(most, left + (now - since) * most / 60)
        allowed = left >= 1
        self._buckets[key.tenant] = (left - 1 if allowed else left, now)
        return 0.0 if allowed else (1 - left) * 60 / most
