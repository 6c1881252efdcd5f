"""Compare the working tree with another revision: the same clips in two processes, in alternation.

The other revision is extracted from git into a temporary folder, and its native part is built there where its C++
sources differ. Both processes load their engine once; then every round asks one after the other for each workload, so
that what disturbs the machine disturbs both. The ratio of a round is that of its two times, and the ratio of a workload
is the median over the rounds, with a bootstrap interval.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from .alternating import quiet, ratio

Progress = Callable[..., Iterable[int]]  # called like ``tqdm``
ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("compare_worker.py")
NATIVE = ("csrc", "CMakeLists.txt", "setup.py")  # what the native part is built from
STEPS = 8  # of one clip in a round; of more clips fewer, at least LEAST_STEPS
LEAST_STEPS = 2
MOST = 8  # times as many rounds, where a ratio is not certain


@dataclass(frozen=True)
class Workload:
    """What is timed in a round: denoising steps of a ``batch``, or a ``clip`` from a sentence to an mp4."""

    name: str
    kind: str
    batch: int = 1

    def request(self) -> str:
        """The line that the worker reads."""
        return json.dumps({"kind": self.kind, "batch": self.batch, "steps": max(LEAST_STEPS, STEPS // self.batch)})


@dataclass(frozen=True)
class Comparison:
    """``ratio`` of the revision's time to the working tree's: above 1 the working tree is faster.

    ``low`` and ``high`` bound it with 95 % confidence; ``base_ms`` and ``own_ms`` are medians over all rounds.
    ``same_bits``: whether both made the same frames.
    """

    workload: str
    base_ms: float
    own_ms: float
    ratio: float
    low: float
    high: float
    rounds: int
    same_bits: bool

    def is_slower(self, least: float) -> bool:
        """Whether the working tree is certainly below ``least`` times the speed of the revision."""
        return self.high < least

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def workloads(batches: Sequence[int], *, clip: bool) -> list[Workload]:
    """Steps of every batch size, and a clip if wanted."""
    found = [Workload(f"step, batch {batch}", "step", batch) for batch in batches]
    return [*found, Workload("clip", "clip")] if clip else found


class Worker:
    """A process that runs one revision of the engine."""

    def __init__(self, source: Path, *, model: Path | None, runtime: str, slow_down: float = 0.0) -> None:
        settings = {"model": None if model is None else str(model), "runtime": runtime, "slow_down": slow_down}
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(source), os.environ.get("PYTHONPATH", "")))}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=source,
        )
        self.loaded = self._answer()

    def run(self, workload: Workload) -> tuple[float, str]:
        """The median seconds of a workload, and the digest of its frames."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer is reported below
            print(workload.request(), file=self._process.stdin, flush=True)
        found = self._answer()
        return statistics.median(found["seconds"]), found["digest"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ValueError(f"the engine of a revision ended with exit code {code}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def compare(
    base: Worker,
    own: Worker,
    chosen: Sequence[Workload],
    rounds: int,
    progress: Any = quiet,
    least: float | None = None,
) -> list[Comparison]:
    """Every workload in both, in alternation, after one round that does not count; the order changes every round.

    While the interval of a ratio has ``least`` in it, as many rounds are added, up to ``MOST`` times as many.
    """
    seconds: dict[str, list[tuple[float, float]]] = {workload.name: [] for workload in chosen}
    same = dict.fromkeys(seconds, True)
    for extension in range(MOST):
        for k in progress(range(rounds + (extension == 0)), desc="comparing"):
            for workload in chosen:
                order = (base, own) if k % 2 else (own, base)
                found = {worker: worker.run(workload) for worker in order}
                (base_seconds, base_digest), (own_seconds, own_digest) = found[base], found[own]
                same[workload.name] &= base_digest == own_digest
                if k or extension:
                    seconds[workload.name].append((base_seconds, own_seconds))
        rows = [_comparison(name, pairs, same_bits=same[name]) for name, pairs in seconds.items()]
        if least is None or not any(row.low < least <= row.high for row in rows):
            break
    return rows


def _comparison(name: str, pairs: Sequence[tuple[float, float]], *, same_bits: bool) -> Comparison:
    base, own = np.array(pairs).T
    found = ratio(base, own)
    return Comparison(
        workload=name,
        base_ms=round(1e3 * float(np.median(base)), 3),
        own_ms=round(1e3 * float(np.median(own)), 3),
        ratio=found.median,
        low=found.low,
        high=found.high,
        rounds=len(pairs),
        same_bits=same_bits,
    )


def revision(name: str) -> str:
    """The hash of a commit. Raises ``ValueError`` outside a git checkout and for a name that git does not know."""
    found = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if found.returncode:
        inside = _git("rev-parse", "--show-toplevel").stdout.decode().strip()
        if not inside or Path(inside).resolve() != ROOT.resolve():
            raise ValueError("a comparison with a revision needs a git checkout of syncflow, and this is none")
        raise ValueError(f"git knows no revision {name!r}; it must be a commit, a branch or a tag of this repository")
    return found.stdout.decode().strip()


@contextmanager
def extracted(commit: str, report: Callable[[str], object]) -> Iterator[Path]:
    """A folder to import ``syncflow`` of this commit from, with its native part; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="syncflow-") as folder:
        tree = Path(folder) / "syncflow"
        archive = _git("archive", "--format=tar", commit)
        if archive.returncode:
            raise ValueError(f"git cannot read the files of {commit[:12]}: {archive.stderr.decode().strip()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(tree, filter="data")
        built = sorted(ROOT.glob("_native*.so"))
        if _git("diff", "--quiet", commit, "--", *NATIVE).returncode == 0:
            for library in built:
                shutil.copy2(library, tree)
        elif built:
            report(f"building the native part of {commit[:12]}")
            _build(tree)
        yield Path(folder)


def _build(tree: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if not list(tree.glob("_native*.so")):
        last = (built.stderr.strip() or built.stdout.strip() or "no output").splitlines()[-1]
        raise ValueError(f"the native part of the other revision did not build: {last}")


@contextmanager
def working_tree() -> Iterator[Path]:
    """A folder to import ``syncflow`` of the working tree from."""
    with tempfile.TemporaryDirectory(prefix="syncflow-") as folder:
        (Path(folder) / "syncflow").symlink_to(ROOT, target_is_directory=True)
        yield Path(folder)


def compare_revision(
    name: str | None,
    chosen: Sequence[Workload],
    rounds: int,
    *,
    model: Path | None = None,
    runtime: str = "auto",
    slow_down: float = 0.0,
    least: float | None = None,
    progress: Progress = quiet,
    report: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """The working tree against a revision. -> ``revision``, the ``runtime`` of each, ``rows`` of :class:`Comparison`.

    Without a name, against itself. ``slow_down`` lengthens every step of the working tree by this share, to show that a
    gate fails; ``least`` as in :func:`compare`. Raises ``ValueError`` for an unknown revision and where an engine does
    not start.
    """
    commit = "working tree" if name is None else revision(name)
    with ExitStack() as stack:
        base_source = stack.enter_context(working_tree() if name is None else extracted(commit, report))
        own_source = stack.enter_context(working_tree())
        report("loading both engines")
        base = stack.enter_context(Worker(base_source, model=model, runtime=runtime))
        own = stack.enter_context(Worker(own_source, model=model, runtime=runtime, slow_down=slow_down))
        rows = compare(base, own, chosen, rounds, progress, least)
        runtimes = {"base": base.loaded["runtime"], "own": own.loaded["runtime"]}
    return {"revision": commit, "runtimes": runtimes, "rows": rows}


def table(found: Mapping[str, Any]) -> str:
    """A result of :func:`compare_revision` as Markdown."""
    head = f"revision {found['revision'][:12]}"
    lines = [f"| {head} against the working tree | {head}, ms | working tree, ms | ratio | 95 % interval | same bits |"]
    lines.append("|---|--:|--:|--:|--:|---|")
    for row in found["rows"]:
        interval, same = f"{row.low:.3f} to {row.high:.3f}", "yes" if row.same_bits else "no"
        cells = row.workload, f"{row.base_ms:.2f}", f"{row.own_ms:.2f}", f"{row.ratio:.3f}", interval, same
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def faults(rows: Iterable[Comparison], least: float) -> list[str]:
    """A sentence for every workload that is certainly slower than ``least`` times the revision."""
    return [
        f"{row.workload}: {row.ratio:.3f} times as fast as the revision, at most {row.high:.3f}; the least is {least:g}"
        for row in rows
        if row.is_slower(least)
    ]


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
    except FileNotFoundError:
        raise ValueError("a comparison with a revision needs git, and it is not installed") from None
