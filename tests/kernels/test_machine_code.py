"""What is read of compiled kernels: loops and waits of machine code, and products of indices that can overflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from syncflow.kernels.launch import Launch
from syncflow.kernels.launch.index_ranges import overflowing_products
from syncflow.kernels.launch.language import INSTALLED
from syncflow.kernels.launch.machine_code import MachineCode

SASS = """
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FADD R2, R2, R3 ;
        /*0020*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   WARPGROUP.ARRIVE ;
        /*0040*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, !UPT ;
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, R8, gdesc[UR12], R24, gsb0 ;
        /*0060*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   BRA `(.L_x_2);
        /*00b0*/                   NOP;
"""


def test_loops_and_waits_of_machine_code():
    code = MachineCode.parse(SASS)
    assert [one.operation for one in code.instructions][-2:] == ["EXIT", "BRA"]
    assert code.loops == ((1, 2), (3, 7))
    assert code.main_loop == (3, 7)
    assert code.waits_per_loop == 1
    assert code.count("WARPGROUP.DEPBAR") == 2
    assert sum(one.multiplies_matrices for one in code.instructions) == 2


class Kernel:
    __name__ = "kernel"


def launch(grid: tuple[int, ...], **arguments: int) -> Launch:
    return Launch(Kernel(), grid, arguments, {}, {"num_warps": 4})


def ttir(multiply: str, *more: str) -> str:
    lines = (
        "tt.func public @kernel(%x: !tt.ptr<bf16>, %length: i32, %stride: i32) {",
        "%c64_i32 = arith.constant 64 : i32 loc(#loc)",
        "%tile = tt.get_program_id x : i32 loc(#loc3)",
        "%first = arith.muli %tile, %c64_i32 : i32 loc(#loc3)",
        "%0 = tt.splat %first : i32 -> tensor<64xi32> loc(#loc)",
        "%1 = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32> loc(#loc)",
        "%2 = arith.addi %0, %1 : tensor<64xi32> loc(#loc)",
        "%3 = tt.splat %stride : i32 -> tensor<64xi32> loc(#loc)",
        "%4 = arith.extsi %2 : tensor<64xi32> to tensor<64xi64> loc(#loc)",
        "%5 = arith.extsi %3 : tensor<64xi32> to tensor<64xi64> loc(#loc)",
        multiply,
        *more,
    )
    return "\n".join(lines)


NARROW = "%6 = arith.muli %2, %3 : tensor<64xi32> loc(#loc)"
WIDE = "%6 = arith.muli %4, %5 : tensor<64xi64> loc(#loc)"


def test_a_narrow_product_is_found_where_the_sizes_reach_it():
    small, large = launch((4,), length=256, stride=3456), launch((512,), length=32768, stride=70000)
    assert overflowing_products(ttir(NARROW), small) == []
    assert overflowing_products(ttir(NARROW), large) == [NARROW.removesuffix(" loc(#loc)")]
    assert overflowing_products(ttir(WIDE), large) == []


def test_a_narrow_product_with_a_number_from_memory_is_found():
    lines = ("%7 = tt.load %p : !tt.ptr<i32>", "%8 = arith.muli %7, %stride : i32")
    assert overflowing_products(ttir(WIDE, *lines), launch((1,), length=1, stride=2))
    assert not overflowing_products(ttir(WIDE, *lines), launch((1,), length=1, stride=1))


def test_ranges_follow_loops_divisions_and_choices():
    lines = (
        "%9:2 = scf.for %i = %c64_i32 to %length step %c64_i32 iter_args(%a = %x, %b = %x) -> (i32, i32)  : i32 {",
        "%10 = arith.muli %i, %stride : i32",
        "%11 = arith.divsi %i, %c64_i32 : i32",
        "%12 = arith.remsi %i, %c64_i32 : i32",
        "%13 = arith.select %q, %11, %12 : i32",
        "%14 = arith.muli %13, %stride : i32",
    )
    found = overflowing_products(ttir(WIDE, *lines), launch((1,), length=2**20, stride=2**12))
    assert found == ["%10 = arith.muli %i, %stride : i32"]
    assert not overflowing_products(ttir(WIDE, *lines), launch((1,), length=2**18, stride=2**12))


LARGEST = """
import json
from dataclasses import replace
import torch
from syncflow.benchmarks.kernels import cases
from syncflow.kernels.launch import tiles
from syncflow.kernels.launch.aot import ttir
from syncflow.kernels.launch.index_ranges import overflowing_products

# 2048 x 2048, 39 frames, 16 clips: a row of packed projections alone has 8.8e9 numbers
sizes = replace(cases.Sizes.of("syncflow-xl", 16, 8), frames=39)
found, overflowed = {}, []
with tiles.target("sm_90"):
    for name, places in cases.FACTORIES.items():
        for place in places:
            for launch in cases.Case(name, place, sizes).launches(torch.bfloat16):
                kernel, text = launch.kernel.__name__, ttir(launch, "sm_90")
                found[f"{name} {place} {kernel}"] = overflowing_products(text, launch)
                # the check itself: with every integer narrow, an index times a stride of these sizes does overflow
                overflowed.append((kernel, bool(overflowing_products(text.replace("i64", "i32"), launch))))
print(json.dumps({"found": found, "overflowed": sorted({kernel for kernel, is_one in overflowed if is_one})}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="compiling kernels needs triton")
def test_no_index_overflows_at_the_largest_sizes():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", LARGEST]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["found"]) > 20
    assert not {name: lines for name, lines in said["found"].items() if lines}
    attentions = {"temporal_attention_kernel", "flash_attention_kernel", "rope_cross_attention_kernel"}
    assert attentions <= set(said["overflowed"])
