"""The number of threads: at most the number of CPUs that this process may use.

PyTorch respects the affinity of a process (``taskset``) and ``OMP_NUM_THREADS``, but not the CPU quota of a container.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def limit_threads() -> int:
    """Limit PyTorch to as many threads as there are available CPUs. -> the number of threads.

    A smaller number from ``torch.set_num_threads``, and any number from ``OMP_NUM_THREADS``, is kept.
    """
    available = available_cpus()
    if torch.get_num_threads() > available and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(available)
    return torch.get_num_threads()


def available_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """The number of CPUs that this process may use: the minimum of its affinity and of its CPU quotas, rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(cgroups, membership)]
    return max(1, min([affinity, *quotas]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The CPU quotas of all control groups of this process, in CPUs."""
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text().splitlines()
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        unified = controllers == ""
        if not unified and "cpu" not in controllers.split(","):
            continue
        root = cgroups if unified else cgroups / "cpu"
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            with suppress(OSError, ValueError, ZeroDivisionError):
                if unified:
                    quota, period = (folder / "cpu.max").read_text().split()
                else:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                if quota != "max" and float(quota) > 0:
                    yield float(quota) / float(period)
