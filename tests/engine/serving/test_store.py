"""The database of jobs: every change of status once, pages, tenants; on SQLite, and on PostgreSQL where there is one.

``SYNCFLOW_TEST_DATABASE=postgresql+psycopg://…`` names an empty database for the second.
"""

from __future__ import annotations

import os
import threading

import pytest

from syncflow.engine.serving.errors import ApiError
from syncflow.engine.serving.keys import ApiKey
from syncflow.engine.serving.store import JobStore, NewJob, new_id
from syncflow.engine.serving.tables import connect, metadata

ALICE, BOB = ApiKey("alice", queued=3, videos_per_day=5), ApiKey("bob")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    given = os.environ.get("SYNCFLOW_TEST_DATABASE")
    if given is None:
        pytest.skip("SYNCFLOW_TEST_DATABASE names no PostgreSQL database")
    engine = connect(given)
    metadata.drop_all(engine)
    engine.dispose()
    return given


@pytest.fixture
def store(url):
    made = JobStore(url, "server 1")
    yield made
    made.close()


def _new(key: str | None = None, fingerprint: str = "f") -> NewJob:
    return NewJob(new_id(), {"prompt": "é ✓", "seed": 2**64 - 1}, None, fingerprint, key)


def test_a_job_goes_its_way_once(store):
    new = _new()
    job, is_new = store.add(new, BOB, 10)
    assert is_new and (job.id, job.status, job.params) == (new.id, "queued", new.params)
    assert not store.complete(job.id, {}) and not store.fail(job.id, "x", "y")
    assert store.get(job.id) == job
    assert store.start(job.id) and store.get(job.id).attempts == 1 and not store.start(job.id)
    assert store.requeue(job.id, counted=False) and store.get(job.id).attempts == 0
    store.start(job.id)
    assert store.complete(job.id, {"takes": []}) and not store.complete(job.id, {})
    done = store.get(job.id)
    assert (done.status, done.completions, done.result) == ("completed", 1, {"takes": []})
    assert store.delete(job.id) and not store.delete(job.id) and store.get(job.id) is None


def test_one_of_many_threads_stores_a_request(store):
    found: list[bool] = []
    new = [_new("the same") for _ in range(8)]
    threads = [threading.Thread(target=lambda one=one: found.append(store.add(one, BOB, 99)[1])) for one in new]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False] * 7 + [True] and len(store.ids()) == 1
    with pytest.raises(ApiError, match="another request before"):
        store.add(_new("the same", "other"), BOB, 99)
    assert store.add(_new("the same", "other"), ALICE, 99)[1]


def test_limits(store):
    for _ in range(3):
        store.add(_new(), ALICE, 10)
    with pytest.raises(ApiError, match="3 of your videos wait"):
        store.add(_new(), ALICE, 10)
    store.add(_new(), BOB, 10)
    with pytest.raises(ApiError, match="4 videos wait, and no more may"):
        store.add(_new(), BOB, 4)
    for job in store.with_status("queued"):
        store.start(job.id)
        store.fail(job.id, "x", "y")
    for _ in range(2):
        store.add(_new(), ALICE, 10)
    with pytest.raises(ApiError, match="5 videos were created today"):
        store.add(_new(), ALICE, 10)
    assert store.counts() == {"failed": 4, "queued": 2}


def test_servers_share_a_database_and_no_job(store, url):
    job, _ = store.add(_new(), BOB, 10)
    other = JobStore(url, "server 2")
    assert other.get(job.id) is None and other.ids() == [] and not other.delete(job.id) and not other.start(job.id)
    other.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nothing", "no URL"),
        ("nosuch://x/y", "no URL|cannot be opened|needs the driver"),
        ("sqlite:////no/such/folder/x", "cannot be opened"),
    ],
)
def test_a_wrong_database_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message) as refused:
        JobStore(wrong, "server")
    assert "secret" not in str(refused.value)
