"""The machine and the software that a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from syncflow.engine.runtime.selection.processor import processor

from . import instructions

LIBRARIES = ("torch", "triton", "onnxruntime", "openvino")
QUIET_LOAD = 1.0
LEVEL_NAMES = {"x86-64-v3": "AVX2", "x86-64-v4": "AVX-512", "baseline": "SSE2"}


@dataclass(frozen=True)
class Machine:
    """``processor`` (a CPU, or the GPU of a CUDA device), its ``digest`` and the instruction level in use.

    ``load`` is the number of processes that ran or waited in the minute before: on a quiet machine it is near 0.
    ``revision`` is that of the working tree, with "+" after it if files differ; empty outside a git checkout.
    """

    processor: str
    digest: str
    instructions: str
    cores: int
    threads: int
    load: float
    revision: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """A name for files: machines of one kind are comparable."""
        name = re.sub(r"[^a-z0-9]+", "-", self.processor.lower()).strip("-")
        return f"{name}-{self.digest[:8]}-{self.instructions.lower()}-{self.threads}-threads"

    def __str__(self) -> str:
        level = f"{self.instructions} ({LEVEL_NAMES[self.instructions]})" if self.instructions in LEVEL_NAMES else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        busy = f", beside other work (load {self.load:g})" if self.load > QUIET_LOAD else ""
        what = f"{self.processor}, {level or self.instructions}, {self.cores} cores, {self.threads} threads"
        return f"{what}{busy}; {versions}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def this_machine(device: str = "cpu") -> Machine:
    """The machine of this process; ``device`` as PyTorch names it."""
    found = processor(device)
    versions = {"Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Machine(
        processor=found.name,
        digest=found.digest,
        instructions=instructions.used(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        revision=_revision(),
        versions=versions,
    )


def _revision() -> str:
    root = Path(__file__).parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--match="]
    try:
        inside = subprocess.run([*command[:3], "rev-parse", "--show-toplevel"], capture_output=True, text=True)
        if inside.returncode or Path(inside.stdout.strip()).resolve() != root.resolve():
            return ""
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
