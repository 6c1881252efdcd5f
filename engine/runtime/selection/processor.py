"""The identity of this processor: times and errors that were measured on another one do not hold here."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")
X86 = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
ARM = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features")
OTHERS = ("cpu", "revision", "isa", "uarch")  # POWER, RISC-V
FIELDS = (*X86, *ARM, *OTHERS)
LISTS = ("flags", "Features")  # fields whose order has no meaning


@dataclass(frozen=True)
class Processor:
    """A processor by ``name``, and a hash of its vendor, family, model, stepping and flags.

    ``flags`` are the instruction sets that the operating system reports, if it reports any.
    """

    name: str
    digest: str
    flags: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.name} [{self.digest[:12]}]"


def processor(device: str | torch.device = "cpu") -> Processor:
    """The processor of a device: the GPU of a CUDA device, or this machine's CPU."""
    return _gpu(str(device)) if str(device).startswith("cuda") else cpu()


@cache
def cpu() -> Processor:
    """This machine's CPU."""
    try:
        found = parse(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    return found or _named(_name_without_cpuinfo())


def parse(cpuinfo: str) -> Processor | None:
    """The processor in the text of ``/proc/cpuinfo``, with all core types of a hybrid one; None if there is none."""
    kinds = {kind for block in cpuinfo.split("\n\n") if (kind := _kind(block))}
    if not kinds:
        return None
    fields = [dict(kind) for kind in sorted(kinds)]
    names = dict.fromkeys(_name(of_kind) for of_kind in fields)
    flags = [set(of_kind.get(name, "").split()) for of_kind in fields for name in LISTS if name in of_kind]
    common = frozenset(set.intersection(*flags)) if flags else frozenset()
    return Processor(" and ".join(names), _digest(repr(sorted(kinds))), common)


def _kind(block: str) -> tuple[tuple[str, str], ...]:
    fields = {}
    for line in block.splitlines():
        name, colon, value = (part.strip() for part in line.partition(":"))
        if colon and name in FIELDS:
            fields[name] = " ".join(sorted(value.split())) if name in LISTS else value
    return tuple(sorted(fields.items()))


def _name(fields: dict[str, str]) -> str:
    if "model name" in fields:
        return fields["model name"]
    known = [f"{name.removeprefix('CPU ')} {value}" for name, value in fields.items() if name not in LISTS]
    return f"{platform.machine()} ({', '.join(known)})" if known else platform.machine()


def _name_without_cpuinfo() -> str:
    """On macOS the brand, such as "Apple M2"; elsewhere the name from ``platform``."""
    name = ""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            name = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            name = ""
    return f"{name or platform.processor()} {platform.machine()}".strip()


def _gpu(device: str) -> Processor:
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return _named(f"{torch.cuda.get_device_name(device)} sm_{major}{minor}")


def _named(name: str) -> Processor:
    return Processor(name, _digest(name))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
