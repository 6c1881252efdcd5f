"""Jobs in a database: a request is stored before it is confirmed, and its status changes in one transaction each.

``queued -> in_progress -> completed | failed``; a job that was in progress when the process ended is queued again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, select, update

from .errors import ApiError, wrong_value
from .files import JOB_ID
from .keys import ApiKey
from .settings import DAY, retry_after
from .tables import connect, jobs, usage

Status = Literal["queued", "in_progress", "completed", "failed"]
OPEN = ("queued", "in_progress")


@dataclass(frozen=True)
class VideoJob:
    """A stored request and what has become of it.

    ``params`` are those of the API with all choices made; ``upload`` the kind of its media and their checksum;
    ``result`` the files by take; ``error`` a code and a message; times in seconds since 1970.
    """

    number: int
    id: str
    tenant: str
    status: Status
    created_at: float
    started_at: float | None
    completed_at: float | None
    params: Mapping[str, Any]
    upload: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    attempts: int
    completions: int


@dataclass(frozen=True)
class NewJob:
    """A request to store. Equal ``fingerprint`` means the same request; ``upload`` as in :class:`VideoJob`."""

    id: str
    params: Mapping[str, Any]
    upload: Mapping[str, Any] | None
    fingerprint: str
    idempotency_key: str | None = None


def new_id() -> str:
    """An id that cannot be guessed."""
    return f"video_{secrets.token_hex(16)}"


class JobStore:
    """The jobs of one server; several servers may share a database. Safe to use from any thread."""

    def __init__(self, url: str, server: str, clock: Callable[[], float] = time.time) -> None:
        self._database, self._server, self._clock = connect(url), server, clock
        self._writing = threading.Lock()  # SQLite takes one writer at a time

    def close(self) -> None:
        """Close the connections."""
        self._database.dispose()

    def add(self, new: NewJob, key: ApiKey, queue: int) -> tuple[VideoJob, bool]:
        """Store a job, or find the one with the same idempotency key. -> the job, and whether it is new.

        Raises :class:`ApiError`: 422 for a key that came with another request, 429 where too many jobs wait.
        """
        with self._writing, self._database.begin() as connection:
            found = self._same(connection, new, key)
            if found is not None:
                return found, False
            self._check_room(connection, key, queue)
            values = {
                "id": new.id,
                "server": self._server,
                "tenant": key.tenant,
                "status": "queued",
                "created_at": self._clock(),
                "params": dict(new.params),
                "upload": None if new.upload is None else dict(new.upload),
                "attempts": 0,
                "completions": 0,
                "fingerprint": new.fingerprint,
                "idempotency_key": new.idempotency_key,
            }
            connection.execute(insert(jobs).values(**values))
            stored = connection.execute(self._select().where(jobs.c.id == new.id)).one()
        return _job(stored), True

    def get(self, job_id: str, tenant: str | None = None) -> VideoJob | None:
        """A job, if it belongs to the tenant (None: any)."""
        if not JOB_ID.fullmatch(job_id):
            return None
        query = self._select().where(jobs.c.id == job_id)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        with self._database.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _job(row)

    def page(self, tenant: str, after: str | None, limit: int, *, newest_first: bool) -> tuple[list[VideoJob], bool]:
        """Jobs of a tenant behind the job ``after``, and whether there are more. Raises :class:`ApiError`."""
        query = self._select().where(jobs.c.tenant == tenant)
        if after is not None:
            last = self.get(after, tenant)
            if last is None:
                raise wrong_value("after", "after: there is no such video")
            query = query.where(jobs.c.number < last.number if newest_first else jobs.c.number > last.number)
        query = query.order_by(jobs.c.number.desc() if newest_first else jobs.c.number).limit(limit + 1)
        with self._database.connect() as connection:
            found = [_job(row) for row in connection.execute(query)]
        return found[:limit], len(found) > limit

    def with_status(self, *statuses: Status) -> list[VideoJob]:
        """All jobs with these statuses, in the order of their creation."""
        query = self._select().where(jobs.c.status.in_(statuses)).order_by(jobs.c.number)
        with self._database.connect() as connection:
            return [_job(row) for row in connection.execute(query)]

    def ids(self) -> list[str]:
        """The ids of all jobs."""
        with self._database.connect() as connection:
            return list(connection.execute(select(jobs.c.id).where(jobs.c.server == self._server)).scalars())

    def finished(self, until: float | None = None, most: int = 1000) -> list[VideoJob]:
        """Jobs that have ended (before ``until``), the oldest first."""
        query = self._select().where(jobs.c.status.in_(("completed", "failed")))
        if until is not None:
            query = query.where(jobs.c.completed_at < until)
        with self._database.connect() as connection:
            return [_job(row) for row in connection.execute(query.order_by(jobs.c.completed_at).limit(most))]

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each status."""
        query = select(jobs.c.status, func.count()).where(jobs.c.server == self._server).group_by(jobs.c.status)
        with self._database.connect() as connection:
            return {status: count for status, count in connection.execute(query)}

    def start(self, job_id: str) -> VideoJob | None:
        """A queued job is in progress now, one attempt more; None where it is not queued any more."""
        values = {"status": "in_progress", "started_at": self._clock(), "attempts": jobs.c.attempts + 1}
        return self.get(job_id) if self._change(job_id, "queued", values) else None

    def complete(self, job_id: str, result: Mapping[str, Any]) -> bool:
        """A job in progress is completed; whether it was in progress."""
        values = {"result": dict(result), "completions": jobs.c.completions + 1}
        return self._change(job_id, "in_progress", {"status": "completed", "completed_at": self._clock(), **values})

    def fail(self, job_id: str, code: str, message: str) -> bool:
        """A job in progress has failed; whether it was in progress."""
        error = {"code": code, "message": message}
        values = {"status": "failed", "completed_at": self._clock(), "error": error}
        return self._change(job_id, "in_progress", values)

    def requeue(self, job_id: str, *, counted: bool) -> bool:
        """A job in progress waits again; ``counted``: the attempt counts."""
        back = {} if counted else {"attempts": jobs.c.attempts - 1}
        return self._change(job_id, "in_progress", {"status": "queued", "started_at": None, **back})

    def delete(self, job_id: str, tenant: str | None = None) -> bool:
        """Forget a job; whether it was there."""
        condition = and_(jobs.c.server == self._server, jobs.c.id == job_id)
        if tenant is not None:
            condition = and_(condition, jobs.c.tenant == tenant)
        with self._writing, self._database.begin() as connection:
            return connection.execute(delete(jobs).where(condition)).rowcount == 1

    def _select(self) -> Select[Any]:
        columns = [jobs.c[name] for name in VideoJob.__dataclass_fields__]
        return select(*columns).where(jobs.c.server == self._server)

    def _change(self, job_id: str, status: Status, values: Mapping[str, Any]) -> bool:
        condition = and_(jobs.c.server == self._server, jobs.c.id == job_id, jobs.c.status == status)
        with self._writing, self._database.begin() as connection:
            return connection.execute(update(jobs).where(condition).values(**values)).rowcount == 1

    def _same(self, connection: Connection, new: NewJob, key: ApiKey) -> VideoJob | None:
        if new.idempotency_key is None:
            return None
        query = self._select().add_columns(jobs.c.fingerprint)
        query = query.where(jobs.c.tenant == key.tenant, jobs.c.idempotency_key == new.idempotency_key)
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.fingerprint != new.fingerprint:
            raise wrong_value("Idempotency-Key", "Idempotency-Key: it came with another request before")
        return _job(row)

    def _check_room(self, connection: Connection, key: ApiKey, queue: int) -> None:
        """Count a job, or refuse it. Raises :class:`ApiError`."""
        mine = and_(jobs.c.server == self._server, jobs.c.status.in_(OPEN))
        unfinished = select(func.count()).where(mine, jobs.c.tenant == key.tenant)
        if connection.execute(unfinished).scalar_one() >= key.queued:
            message = f"{key.queued} of your videos wait or are being made, which is your limit"
            raise ApiError(429, message, "too_many_queued", retry_after=5)
        waiting = select(func.count()).where(jobs.c.server == self._server, jobs.c.status == "queued")
        if connection.execute(waiting).scalar_one() >= queue:
            raise ApiError(429, f"{queue} videos wait, and no more may", "queue_full", retry_after=5)
        day = int(self._clock() // DAY)
        today = and_(usage.c.server == self._server, usage.c.tenant == key.tenant, usage.c.day == day)
        created = connection.execute(select(usage.c.videos).where(today)).scalar_one_or_none()
        if created is not None and created >= key.videos_per_day:
            message = f"{key.videos_per_day} videos were created today (UTC), which is your limit"
            until = retry_after((day + 1) * DAY - self._clock())
            raise ApiError(429, message, "quota_exceeded", retry_after=until)
        if created is None:
            values = {"server": self._server, "tenant": key.tenant, "day": day, "videos": 1}
            connection.execute(insert(usage).values(**values))
        else:
            connection.execute(update(usage).where(today).values(videos=usage.c.videos + 1))


def _job(row: Row[Any]) -> VideoJob:
    return VideoJob(*(row._mapping[name] for name in VideoJob.__dataclass_fields__))
