"""Limit a process to an instruction level, so that one machine shows what slower ones would do.

The native part and PyTorch's libraries read their limits from the environment when they are first used, so the limits
are set before torch is imported; where it is already, the process begins anew.
"""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from pathlib import Path

from syncflow.engine.runtime.selection.processor import processor

# What limits the native part, PyTorch's own loops, oneDNN, MKL (on processors of Intel alone) and OpenVINO, whose limit
# must agree with that of oneDNN.
VARIABLES = (
    "SYNCFLOW_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "OV_CPU_MAX_ISA",
)
COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"
LEVELS: dict[str, tuple[str | None, ...]] = {
    "baseline": ("baseline", "default", "SSE41", "SSE4_2", "SSE41"),
    "x86-64-v3": ("x86-64-v3", "avx2", "AVX2", "AVX2", "AVX2"),
    "x86-64-v4": ("x86-64-v4", None, None, None, None),
}
NEEDED = {
    "baseline": frozenset[str](),
    "x86-64-v3": frozenset(("avx2", "fma", "bmi2")),
    "x86-64-v4": frozenset(("avx2", "fma", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
}


def limit(level: str) -> None:
    """Limit this process to a level; it begins anew if torch is already in it.

    Raises ``ValueError`` for a level that there is not or that this processor lacks.
    """
    if level not in LEVELS:
        raise ValueError(f"the instruction level is {level!r}; it must be one of {', '.join(LEVELS)}")
    flags = processor().flags
    if flags and (missing := NEEDED[level] - flags):
        raise ValueError(f"this processor has no {level}: it lacks {', '.join(sorted(missing))}")
    wanted = dict(zip(VARIABLES, LEVELS[level], strict=True)) | {COMPILED_CODE: _compiled_code(level)}
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    for name, value in wanted.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if "torch" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _compiled_code(level: str) -> str | None:
    """Where torch.compile keeps code: each limited level has a folder of its own, since the cache ignores limits."""
    folder = os.environ.get(COMPILED_CODE)
    if not any(LEVELS[level][1:]):
        return folder
    folder = folder or str(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")
    return folder if folder.endswith(level) else f"{folder}_{level}"


def used() -> str:
    """The level that the native part uses, or, without it, PyTorch."""
    import torch

    from syncflow.kernels import native

    return native.instructions() or torch.backends.cpu.get_cpu_capability()


def is_limited() -> bool:
    """Whether the native part uses a lower level than this processor has."""
    from syncflow.kernels import native

    return native.EXTENSION is not None and native.instructions() != native.EXTENSION.instruction_levels()[-1]


def check(level: str) -> None:
    """Raises ``ValueError`` where the native part is there and uses another level than this."""
    from syncflow.kernels import native

    found = native.instructions()
    if found not in (None, level):
        raise ValueError(f"the native part of this build uses {found} and has no {level} on this processor")
