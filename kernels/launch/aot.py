"""Compile a launch for a GPU that need not be present, and read what it takes: registers, spills, shared memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .language import INSTALLED, VERSION, interpreted, triton
from .launching import Launch
from .machine_code import SERIALISED, MachineCode, assembler_warnings

# Bytes of shared memory that one program may take (CUDA programming guide, table of technical specifications).
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "u1",
    torch.uint8: "u8",
}
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
ALIGNED = [["tt.divisibility", 16]]
_MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b")
_LOAD = re.compile(r"\bld\.global(?:\.[a-zA-Z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.[bfsu](\d+)\s")
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\S*\s+\[[^\]]*\],\s*\[[^\]]*\],\s*(0x[0-9a-f]+|\d+)")
_BULK = re.compile(r"\bcp\.async\.bulk\.tensor\.\dd\.shared\S*\.global")


@dataclass(frozen=True)
class Specialisation:
    """What Triton compiles a kernel for: the types of its arguments, constants, alignments and compiler options."""

    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, int]


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes on the GPU.

    ``registers`` and ``spills`` (bytes of local memory) of a thread, ``shared_bytes`` of a program; ``tensor_core`` the
    matrix instruction that it uses (``wgmma``, ``tcgen05``, ``mma``) or None. ``loads`` counts the global loads by
    their bytes a thread, asynchronous copies among them (a bulk copy counts as 16); ``load_bytes`` is the widest.
    ``waits_per_loop``: how often an iteration of the main loop waits for matrix instructions; ``serialised``: what
    ptxas says where it waits after every one (C7515), else None.
    """

    registers: int
    spills: int
    shared_bytes: int
    tensor_core: str | None
    load_bytes: int
    loads: dict[int, int]
    waits_per_loop: int
    serialised: str | None


@dataclass(frozen=True)
class Inspection:
    """A compiled kernel: what it takes, its machine code, and its TTIR (Triton's own intermediate representation)."""

    resources: Resources
    code: MachineCode
    ttir: str


def architecture(name: str) -> int:
    """``sm_90`` -> 90. Raises ``ValueError`` for a name that is not among ``SHARED_LIMIT``."""
    if name not in SHARED_LIMIT:
        raise ValueError(f"architecture {name!r} is not known; choose one of {', '.join(SHARED_LIMIT)}")
    return int(name.removeprefix("sm_"))


def specialise(launch: Launch) -> Specialisation:
    """What a launch with these arguments is compiled for, to the letter of Triton's own launcher: the machine code then
    lies in its cache when the kernel is first called.

    Tensors may lie on the meta device; their pointers count as aligned to 16 bytes, as fresh allocations are.
    """
    constants = {**launch.constants, **launch.tiles}
    options = {name: constants.pop(name) for name in OPTIONS if name in constants}
    signature: dict[str, str] = {}
    fixed = dict(constants)
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, name in enumerate(launch.kernel.arg_names):
        value = None if name in constants else launch.arguments[name]
        if value is None or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            if value is not None:
                fixed[name] = value
            if VERSION >= (3, 7):
                attributes[(position,)] = []
        elif isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            attributes[(position,)] = ALIGNED
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            attributes[(position,)] = [] if value % 16 else ALIGNED
    return Specialisation(signature, fixed, attributes, options)


def compile_launch(launch: Launch, arch: str) -> Any:
    """Triton's compiled kernel for ``arch`` (``sm_90``). Raises ``ValueError`` where kernels cannot be compiled."""
    source, target, options = _source(launch, arch)
    return triton.compile(source, target=target, options=options)


def ttir(launch: Launch, arch: str) -> str:
    """The kernel in Triton's intermediate representation, without compiling it further; errors as above."""
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    source, target, chosen = _source(launch, arch)
    backend = make_backend(target)
    options = backend.parse_options(dict(chosen))
    context, stages = ir.context(), dict[str, Any]()
    ir.load_dialects(context)
    backend.load_dialects(context)
    backend.add_stages(stages, options, source.language)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    module = source.make_ir(target, options, functions, modules, context)
    return str(stages["ttir"](module, {}))


def _source(launch: Launch, arch: str) -> tuple[Any, Any, dict[str, int]]:
    """What Triton compiles, for which GPU, and with which options."""
    capability = architecture(arch)
    if not INSTALLED:
        raise ValueError("compiling kernels needs triton; install it with `pip install syncflow[gpu]`")
    if interpreted():
        raise ValueError("kernels cannot be compiled in a process that runs with TRITON_INTERPRET=1")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    chosen = specialise(launch)
    source = ASTSource(launch.kernel, chosen.signature, chosen.constants, chosen.attributes)
    return source, GPUTarget("cuda", capability, 32), chosen.options


def inspect(launch: Launch, arch: str) -> Inspection:
    """Compile, and read the report on the machine code and the instructions that were chosen."""
    compiled = compile_launch(launch, arch)
    report, code = _report(compiled.asm["cubin"]), MachineCode.of(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    units = set(_MATRIX.findall(ptx))
    used = next(
        (unit.partition(".")[0] for unit in ("wgmma.mma_async", "tcgen05.mma", "mma.sync") if unit in units), None
    )
    widths = load_widths(ptx)
    found = Resources(
        registers=max(int(n) for n in re.findall(r"\bREG:(\d+)", report)),
        spills=max(int(n) for n in re.findall(r"\bSTACK:(\d+)", report)),
        shared_bytes=int(compiled.metadata.shared),
        tensor_core=used,
        load_bytes=max(widths, default=0),
        loads=widths,
        waits_per_loop=code.waits_per_loop,
        serialised=_serialised(code, ptx, arch),
    )
    return Inspection(found, code, compiled.asm["ttir"])


def load_widths(ptx: str) -> dict[int, int]:
    """How many global loads and asynchronous copies move how many bytes a thread."""
    found: Counter[int] = Counter()
    for vector, bits in _LOAD.findall(ptx):
        found[int(vector or 1) * int(bits) // 8] += 1
    for size in _COPY.findall(ptx):
        found[int(size, 0)] += 1
    if bulk := len(_BULK.findall(ptx)):
        found[16] += bulk
    return dict(sorted(found.items()))


def _serialised(code: MachineCode, ptx: str, arch: str) -> str | None:
    """The warning of ptxas, which is asked only where the code shows a wait for every other matrix instruction."""
    if 2 * code.count("WARPGROUP.DEPBAR") < sum(one.multiplies_matrices for one in code.instructions) + 1:
        return None
    return next((line for line in assembler_warnings(ptx, arch) if SERIALISED in line), None)


def _report(cubin: bytes) -> str:
    """The resources of the functions in a cubin, by the tool that the triton package carries."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
