"""The SQL statements of one server's jobs. Each is built once: building one takes SQLAlchemy longer than running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, BindParameter, Delete, Update, and_, bindparam, delete, func, insert, select, update

from .tables import jobs, usage

OPEN = ("queued", "in_progress")
Change = Update | Delete


class Statements:
    """``columns`` of a job are selected. Parameters are named after what they hold: ``job_id``, ``owner``, ``now``."""

    def __init__(self, server: str, columns: Sequence[str]) -> None:
        self._mine = jobs.c.server == server
        self._is_job = and_(self._mine, jobs.c.id == bindparam("job_id"))
        self._is_own = and_(self._is_job, jobs.c.tenant == bindparam("owner"))
        self.jobs = select(*(jobs.c[name] for name in columns)).where(self._mine)
        self.ids = select(jobs.c.id).where(self._mine)
        self.counts = select(jobs.c.status, func.count()).where(self._mine).group_by(jobs.c.status)
        self.job, self.own_job = self.jobs.where(self._is_job), self.jobs.where(self._is_own)
        self.delete, self.delete_own = delete(jobs).where(self._is_job), delete(jobs).where(self._is_own)
        self._add(server)
        self._change()

    def _add(self, server: str) -> None:
        """To store a job, after its idempotency key, the queue and the quota of the day were looked at."""
        key = and_(jobs.c.tenant == bindparam("owner"), jobs.c.idempotency_key == bindparam("key"))
        self.same = self.jobs.add_columns(jobs.c.fingerprint).where(key)
        own = func.count().filter(jobs.c.tenant == bindparam("owner"))
        waiting = func.count().filter(jobs.c.status == "queued")
        self.open_counts = select(own, waiting).where(self._mine, jobs.c.status.in_(OPEN))
        self.insert = insert(jobs)
        today = and_(usage.c.server == server, usage.c.tenant == bindparam("owner"), usage.c.day == bindparam("today"))
        self.videos_today = select(usage.c.videos).where(today)
        self.first_today = insert(usage).values(
            server=server, tenant=bindparam("owner"), day=bindparam("today"), videos=1
        )
        self.one_more_today = (
            update(usage).where(today, usage.c.videos < bindparam("most")).values(videos=usage.c.videos + 1)
        )

    def _change(self) -> None:
        """Of a job in one status to another one: no row changes where it has another status."""
        now: BindParameter[float] = bindparam("now")
        attempts = jobs.c.attempts
        self.start = self._update("queued", status="in_progress", started_at=now, attempts=attempts + 1)
        self.complete = self._update(
            "in_progress",
            status="completed",
            completed_at=now,
            result=bindparam("manifest", type_=JSON),
            completions=jobs.c.completions + 1,
        )
        self.fail = self._update(
            "in_progress", status="failed", completed_at=now, error=bindparam("reason", type_=JSON)
        )
        self.requeue = self._update("in_progress", status="queued", started_at=None)
        self.requeue_uncounted = self._update("in_progress", status="queued", started_at=None, attempts=attempts - 1)

    def _update(self, before: str, /, **values: Any) -> Update:
        return update(jobs).where(self._is_job, jobs.c.status == before).values(**values)
