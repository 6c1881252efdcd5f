"""The instructions of a compiled kernel, its loops, and what the assembler says of it."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .language import triton

SERIALISED = "C7515"
"""The warning of ptxas that it waits after every matrix instruction, because it cannot tell that they do not touch."""

DISASSEMBLY = "kernel.sass"

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_LABEL = re.compile(r"^(\.L_x?_?\w+):")
_TARGET = re.compile(r"`\((\.L_x?_?\w+)\)")
_MATRIX = re.compile(r"^(?:HGMMA|QGMMA|IGMMA)\.")
_WAIT = "WARPGROUP.DEPBAR"


@dataclass(frozen=True)
class Instruction:
    """An instruction of a warp: its operation with modifiers (``HGMMA.64x64x16.F32.BF16``) and its operands."""

    operation: str
    operands: str

    @property
    def multiplies_matrices(self) -> bool:
        """Whether a warpgroup multiplies matrices with it."""
        return _MATRIX.match(self.operation) is not None


@dataclass(frozen=True)
class MachineCode:
    """The instructions of a kernel in the order of their addresses; ``loops`` are ranges [first, last] of them."""

    instructions: tuple[Instruction, ...]
    loops: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, cubin: bytes) -> MachineCode:
        """Disassembled from a cubin that holds one kernel."""
        return cls.parse(disassemble(cubin))

    @classmethod
    def parse(cls, text: str) -> MachineCode:
        """From what ``nvdisasm -c`` prints. A branch to an earlier label closes a loop, one to itself is the end."""
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        loops: list[tuple[int, int]] = []
        for line in text.splitlines():
            if (label := _LABEL.match(line)) is not None:
                labels[label.group(1)] = len(instructions)
            if (found := _INSTRUCTION.match(line)) is None:
                continue
            target = _TARGET.search(found.group(2))
            first = None if target is None else labels.get(target.group(1))
            if found.group(1).startswith("BRA") and first is not None and first < len(instructions):
                loops.append((first, len(instructions)))
            if found.group(1) != "NOP":  # padding
                instructions.append(Instruction(*found.groups()))
        return cls(tuple(instructions), tuple(loops))

    @cached_property
    def main_loop(self) -> tuple[int, int] | None:
        """The loop with the most instructions among those with matrix instructions, or among all; None without one."""
        inner = [loop for loop in self.loops if any(one.multiplies_matrices for one in self.body(loop))]
        return max(inner or self.loops, key=lambda loop: loop[1] - loop[0], default=None)

    def body(self, loop: tuple[int, int]) -> Sequence[Instruction]:
        """The instructions of a loop."""
        return self.instructions[loop[0] : loop[1] + 1]

    def count(self, operation: str) -> int:
        """Instructions whose operation begins with this."""
        return sum(one.operation.startswith(operation) for one in self.instructions)

    @property
    def waits_per_loop(self) -> int:
        """How often the main loop waits for matrix instructions; 0 where no loop has any."""
        body = () if self.main_loop is None else self.body(self.main_loop)
        if not any(one.multiplies_matrices for one in body):
            return 0
        return sum(one.operation.startswith(_WAIT) for one in body)


def disassemble(cubin: bytes) -> str:
    """What ``nvdisasm -c`` prints. It takes most of a second to start, so Triton's cache keeps the text."""
    from triton.runtime.cache import get_cache_manager

    tool = triton.knobs.nvidia.nvdisasm
    cache = get_cache_manager(hashlib.sha256(tool.version.encode() + cubin).hexdigest())
    if (known := cache.get_file(DISASSEMBLY)) is not None:
        return Path(known).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [tool.path, "-c", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cache.put(text, DISASSEMBLY, binary=False)
    return text


def assembler_warnings(ptx: str, arch: str) -> tuple[str, ...]:
    """What ptxas warns of when it assembles a kernel for ``arch`` (``sm_90``), each as one line."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        name = target.group(1) if target else arch
        tool = get_ptxas(int(re.sub(r"\D", "", name)))  # Triton's own choice, as it reads the version of the PTX
        command = [tool.path, f"--gpu-name={name}", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (said.stdout + said.stderr).splitlines()
    return tuple(line.strip() for line in lines if "warning" in line or re.search(r"\(C\d{4}\)", line))
