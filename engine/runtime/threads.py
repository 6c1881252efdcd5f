"""How many threads to compute with: no more than the processors that this process may use.

PyTorch itself respects the affinity of a process (``taskset``) and ``OMP_NUM_THREADS``, and starts a thread for every
processor of the machine in a container whose CPU quota is smaller.
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
    """Let PyTorch compute with as many threads as there are processors to use, and return how many it has.

    A number that ``OMP_NUM_THREADS`` or ``torch.set_num_threads`` made smaller stays; one that ``OMP_NUM_THREADS``
    made larger stays too.
    """
    available = available_cpus()
    if torch.get_num_threads() > available and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(available)
    return torch.get_num_threads()


def available_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Processors that this process may use at once: those of its affinity, and a container's quota, rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(cgroups, membership)]
    return max(1, min([affinity, *quotas]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The CPU quotas of all control groups around this process, in processors; nothing where there are none."""
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
