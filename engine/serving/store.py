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

from sqlalchemy import Connection, Row

from .errors import ApiError, wrong_value
from .files import JOB_ID
from .keys import ApiKey
from .settings import DAY, retry_after
from .statements import Change, Statements
from .tables import connect, jobs

Status = Literal["queued", "in_progress", "completed", "failed"]


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
    params: Mapping[str, Any]
    upload: Mapping[str, Any] | None
    started_at: float | None = None
    completed_at: float | None = None
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    attempts: int = 0
    completions: int = 0


COLUMNS = tuple(VideoJob.__dataclass_fields__)


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
        self._sql = Statements(server, COLUMNS)
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
            self._check_queue(connection, key, queue)
            self._count_today(connection, key)
            values: dict[str, Any] = {
                "id": new.id,
                "tenant": key.tenant,
                "status": "queued",
                "created_at": self._clock(),
                "params": dict(new.params),
                "upload": None if new.upload is None else dict(new.upload),
            }
            stored = {"server": self._server, "fingerprint": new.fingerprint, "idempotency_key": new.idempotency_key}
            inserted = connection.execute(self._sql.insert, values | stored)
            assert inserted.inserted_primary_key is not None, "one row is inserted"
            values["number"] = inserted.inserted_primary_key[0]
        return VideoJob(**values), True

    def get(self, job_id: str, tenant: str | None = None) -> VideoJob | None:
        """A job, if it belongs to the tenant (None: any)."""
        if not JOB_ID.fullmatch(job_id):
            return None
        query = self._sql.job if tenant is None else self._sql.own_job
        with self._database.connect() as connection:
            row = connection.execute(query, _named(job_id, tenant)).one_or_none()
        return None if row is None else _job(row)

    def page(self, tenant: str, after: str | None, limit: int, *, newest_first: bool) -> tuple[list[VideoJob], bool]:
        """Jobs of a tenant behind the job ``after``, and whether there are more. Raises :class:`ApiError`."""
        query = self._sql.jobs.where(jobs.c.tenant == tenant)
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
        query = self._sql.jobs.where(jobs.c.status.in_(statuses)).order_by(jobs.c.number)
        with self._database.connect() as connection:
            return [_job(row) for row in connection.execute(query)]

    def ids(self) -> list[str]:
        """The ids of all jobs."""
        with self._database.connect() as connection:
            return list(connection.execute(self._sql.ids).scalars())

    def finished(self, until: float | None = None, most: int = 1000) -> list[VideoJob]:
        """Jobs that have ended (before ``until``), the oldest first."""
        query = self._sql.jobs.where(jobs.c.status.in_(("completed", "failed")))
        if until is not None:
            query = query.where(jobs.c.completed_at < until)
        with self._database.connect() as connection:
            return [_job(row) for row in connection.execute(query.order_by(jobs.c.completed_at).limit(most))]

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each status."""
        with self._database.connect() as connection:
            return {status: count for status, count in connection.execute(self._sql.counts)}

    def start(self, job_id: str) -> bool:
        """A queued job is in progress now, one attempt more; whether it was queued."""
        return self._change(self._sql.start, job_id, now=self._clock())

    def complete(self, job_id: str, result: Mapping[str, Any]) -> bool:
        """A job in progress is completed; whether it was in progress."""
        return self._change(self._sql.complete, job_id, now=self._clock(), manifest=dict(result))

    def fail(self, job_id: str, code: str, message: str) -> bool:
        """A job in progress has failed; whether it was in progress."""
        reason = {"code": code, "message": message}
        return self._change(self._sql.fail, job_id, now=self._clock(), reason=reason)

    def requeue(self, job_id: str, *, counted: bool) -> bool:
        """A job in progress waits again; ``counted``: the attempt counts."""
        return self._change(self._sql.requeue if counted else self._sql.requeue_uncounted, job_id)

    def delete(self, job_id: str, tenant: str | None = None) -> bool:
        """Forget a job; whether it was there."""
        return self._change(self._sql.delete if tenant is None else self._sql.delete_own, **_named(job_id, tenant))

    def _change(self, statement: Change, job_id: str, **values: Any) -> bool:
        with self._writing, self._database.begin() as connection:
            return connection.execute(statement, {"job_id": job_id, **values}).rowcount == 1

    def _same(self, connection: Connection, new: NewJob, key: ApiKey) -> VideoJob | None:
        if new.idempotency_key is None:
            return None
        row = connection.execute(self._sql.same, {"owner": key.tenant, "key": new.idempotency_key}).one_or_none()
        if row is None:
            return None
        if row.fingerprint != new.fingerprint:
            raise wrong_value("Idempotency-Key", "Idempotency-Key: it came with another request before")
        return _job(row)

    def _check_queue(self, connection: Connection, key: ApiKey, queue: int) -> None:
        """Raises :class:`ApiError` where no more jobs may wait."""
        own, waiting = connection.execute(self._sql.open_counts, {"owner": key.tenant}).one()
        if own >= key.queued:
            message = f"{key.queued} of your videos wait or are being made, which is your limit"
            raise ApiError(429, message, "too_many_queued", retry_after=5)
        if waiting >= queue:
            raise ApiError(429, f"{queue} videos wait, and no more may", "queue_full", retry_after=5)

    def _count_today(self, connection: Connection, key: ApiKey) -> None:
        """One video more of a tenant's day. Raises :class:`ApiError` for one too many."""
        now = self._clock()
        today: dict[str, Any] = {"owner": key.tenant, "today": int(now // DAY)}
        if connection.execute(self._sql.one_more_today, today | {"most": key.videos_per_day}).rowcount:
            return
        if connection.execute(self._sql.videos_today, today).scalar_one_or_none() is not None:
            message = f"{key.videos_per_day} videos were created today (UTC), which is your limit"
            raise ApiError(429, message, "quota_exceeded", retry_after=retry_after(DAY - now % DAY))
        connection.execute(self._sql.first_today, today)


def _named(job_id: str, tenant: str | None) -> dict[str, str]:
    """The parameters of a statement on a job, or on a job of a tenant."""
    return {"job_id": job_id} if tenant is None else {"job_id": job_id, "owner": tenant}


def _job(row: Row[Any]) -> VideoJob:
    return VideoJob(*(row._mapping[name] for name in COLUMNS))
