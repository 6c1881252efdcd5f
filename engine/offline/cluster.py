"""Entries over the workers of a Ray cluster: a Ray actor holds an engine, on a GPU or on some CPUs of any host.

The driver hands out single entries and keeps every worker's running batch full. When a worker dies, the entries that it
worked on go to others, each alone, so that one that kills its worker harms no other; a new worker takes the place of
the dead one. All hosts read the model and write the clips under the same paths.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..media.destinations import temporary
from ..validation import whole_between
from .manifest import Record
from .outputs import Outputs
from .prompts import Entry
from .worker import ClipWriter, EngineSettings, failed, reason

MAX_DEATHS = 3  # of workers at one entry: among others, and twice alone
MAX_START_FAILURES = 3  # of a worker, one after the other
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterOptions:
    """How many ``workers``, and the ``cpus`` of each; None: one for each GPU of the cluster, or without GPUs for each
    host, with an equal share of its CPUs.

    The cluster is that of ``RAY_ADDRESS``, one on this host, or a new one that ends with the run. Raises ``ValueError``
    with what is allowed.
    """

    workers: int | None = None
    cpus: int | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "cpus"):
            if getattr(self, name) is not None:
                whole_between(name, getattr(self, name), 1, 100_000)


@dataclass
class _Worker:
    """An actor: ``ready`` is its reference until it has loaded its engine, ``running`` the entries that it works on.

    ``alone``: it takes one entry at a time, as long as there are suspects.
    """

    actor: Any
    ready: Any
    running: dict[Any, Entry] = field(default_factory=dict)
    alone: bool = False


class ClipActor:
    """What runs in a worker's process, in ``in_flight`` threads."""

    def __init__(self, settings: EngineSettings, outputs: Outputs, model: str, token: str) -> None:
        self.settings, self.outputs, self.model, self.token = settings, outputs, model, token

    def load(self) -> str | None:
        """Load the engine. -> what is wrong with the host, if anything is."""
        host, folder = platform.node(), self.outputs.folder
        if not (folder / self.token).exists():
            return f"the host {host} does not see {folder}; all hosts must share it under one path"
        try:
            engine = self.settings.load()
        except ValueError as error:
            return f"on the host {host}, {error}"
        if engine.components.digest != self.model:
            return f"the host {host} has another model at {self.settings.model or 'syncflow-tiny'}"
        self.writer = ClipWriter(engine, self.outputs)
        return None

    def write(self, entry: Entry) -> Record:
        """See :meth:`ClipWriter.write`."""
        return self.writer.write(entry)


def import_ray() -> Any:
    """Ray, which then reports to nobody. Raises ``ValueError`` where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ValueError("a cluster needs Ray: pip install 'syncflow[cluster]'") from None
    return ray


def write_on_cluster(
    entries: Sequence[Entry], settings: EngineSettings, outputs: Outputs, model: str, options: ClusterOptions
) -> Generator[Record, None, None]:
    """Records of entries as they end, made by the workers of a cluster, which must have the ``model`` of that hash.

    Closing the iterator, or an exception in it, ends the workers. Raises ``ValueError`` where no worker can start.
    """
    ray = import_ray()
    with _connected(ray), _token(outputs.folder) as token:
        arguments = settings, outputs, model, token
        driver = _Driver(ray, arguments, *_resources(ray, options, len(entries)))
        try:
            yield from driver.run(entries)
        finally:
            driver.close()


class _Driver:
    """Hands out entries, and gathers their records."""

    def __init__(
        self, ray: Any, arguments: tuple[EngineSettings, Outputs, str, str], workers: int, resources: dict[str, float]
    ) -> None:
        self.ray, self.arguments, self.in_flight = ray, arguments, arguments[0].in_flight
        self.make = ray.remote(ClipActor).options(max_concurrency=self.in_flight + 1, **resources).remote
        self.suspects: deque[Entry] = deque()
        self.deaths: Counter[str] = Counter()
        self.start_failures = 0
        self.workers = [self._start() for _ in range(workers)]

    def run(self, entries: Sequence[Entry]) -> Iterator[Record]:
        """A record for every entry."""
        left, missing = deque(entries), len(entries)
        while missing:
            for worker in self.workers:
                self._fill(worker, left)
            references = [r for w in self.workers for r in ([w.ready] if w.ready is not None else w.running)]
            (reference,), _ = self.ray.wait(references)
            worker = next(w for w in self.workers if reference is w.ready or reference in w.running)
            for record in self._starts(worker) if reference is worker.ready else self._ends(worker, reference):
                missing -= 1
                yield record

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            self._kill(worker)

    def _fill(self, worker: _Worker, left: deque[Entry]) -> None:
        """Give entries to a worker that is ready: a suspect where it has nothing else to do, or as many as it takes."""
        if worker.ready is not None or (worker.alone and worker.running):
            return
        worker.alone = bool(self.suspects) and not worker.running and (worker.alone or not left)
        source, most = (self.suspects, 1) if worker.alone else (left, self.in_flight)
        while source and len(worker.running) < most:
            entry = source.popleft()
            worker.running[worker.actor.write.remote(entry)] = entry

    def _starts(self, worker: _Worker) -> list[Record]:
        try:
            wrong = self.ray.get(worker.ready)
        except self.ray.exceptions.RayError as error:
            wrong = reason(getattr(error, "cause", None) or error)
        worker.ready = None
        if wrong is None:
            self.start_failures = 0
            return []
        self.start_failures += 1
        self._kill(worker)
        self.workers.remove(worker)
        if self.start_failures < MAX_START_FAILURES:
            log.warning("a worker could not start and is started again: %s", wrong)
            self.workers.append(self._start())
        elif not self.workers:
            raise ValueError(f"no worker can start: {wrong}")
        return []

    def _ends(self, worker: _Worker, reference: Any) -> list[Record]:
        try:
            record = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            return [failed(worker.running.pop(reference), reason(error.cause))]
        except self.ray.exceptions.RayError as error:
            return self._dies(worker, reason(error))
        del worker.running[reference]
        return [record]

    def _dies(self, worker: _Worker, why: str) -> list[Record]:
        """Replace a worker, and suspect what it worked on. -> records of the entries that are given up."""
        lost = [*worker.running.values()]
        log.warning("a worker has died with %d requests, which others take over (%s)", len(lost), why[:200])
        self._kill(worker)
        self.workers[self.workers.index(worker)] = replacement = self._start()
        replacement.alone = True
        self.deaths.update(entry.id for entry in lost)
        given_up = [entry for entry in lost if self.deaths[entry.id] >= MAX_DEATHS]
        self.suspects.extend(entry for entry in lost if self.deaths[entry.id] < MAX_DEATHS)
        return [failed(entry, f"its worker died {MAX_DEATHS} times ({why})") for entry in given_up]

    def _start(self) -> _Worker:
        actor = self.make(*self.arguments)
        return _Worker(actor, actor.load.remote())

    def _kill(self, worker: _Worker) -> None:
        with suppress(Exception):  # it is dead, or the cluster is gone
            self.ray.kill(worker.actor)


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """A connection to a cluster; one that is there already stays as it is."""
    if ray.is_initialized():
        yield
        return
    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot use a Ray cluster ({reason(error)})") from None
    finally:
        if on_main_thread:  # Ray puts its own in its place
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _token(folder: Path) -> Iterator[str]:
    """The name of a file in the output folder, by which a host knows that it sees the same folder."""
    with temporary(folder) as path:
        path.touch()
        yield path.name


def _resources(ray: Any, options: ClusterOptions, entries: int) -> tuple[int, dict[str, float]]:
    """The number of workers, never more than entries, and what each takes of the cluster."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    workers = options.workers or gpus or max(1, len(nodes))
    if gpus:
        return min(workers, entries), {"num_gpus": 1, "num_cpus": options.cpus or 1}
    each_host = -(-workers // max(1, len(nodes)))
    share = min((int(node.get("CPU", 1)) // each_host for node in nodes), default=1)
    return min(workers, entries), {"num_cpus": options.cpus or max(1, share)}
