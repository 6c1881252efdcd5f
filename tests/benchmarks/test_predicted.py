"""Predicted times of kernels and of a step: by hand at small numbers, and that the parts of a step add up."""

from __future__ import annotations

import pytest
import torch

from syncflow.benchmarks.kernels import predicted
from syncflow.benchmarks.kernels.cases import Work
from syncflow.benchmarks.kernels.predicted_step import Call, PredictedStep, product_us, table
from syncflow.kernels.launch import Launch
from syncflow.kernels.launch.aot import Resources
from syncflow.kernels.launch.machine_code import Instruction, MachineCode


class Kernel:
    __name__ = "flash_attention_kernel"


def launch(programs: int, length: int) -> Launch:
    tiles = {"BLOCK_K": 64, "num_warps": 4}
    return Launch(Kernel(), (programs,), {"length": length, "qkv": torch.empty(1)}, {}, tiles)


def machine_code() -> MachineCode:
    """Two instructions, then a loop of two additions, a product of matrices, a wait and a load."""
    names = ("FADD", "FADD", "FADD", "FADD", "HGMMA.64x128x16.F32.BF16", "WARPGROUP.DEPBAR.LE", "LDGSTS.E.BYPASS.128")
    operands = "R24, gdesc[UR8], R24"
    return MachineCode(tuple(Instruction(name, operands) for name in names), ((2, 6),))


RESOURCES = Resources(128, 0, 65536, "wgmma", 16, {}, 1, None)


def test_a_launch_by_hand():
    work = Work(3 * 10**9, 788 * 10**9)
    found = predicted.predict(launch(132 * 3, 640), machine_code(), RESOURCES, work, "bfloat16")
    assert found.memory_us == pytest.approx(1000)
    assert found.bound_us == pytest.approx(1000)
    # 10 iterations of one copy of 16 bytes a thread
    assert found.cache_us == pytest.approx(132 * 3 * 10 * 16 * 128 / predicted.CACHE * 1e6, rel=1e-3)
    # three programs share a multiprocessor; a product of 64 x 128 takes 64 cycles at the peak, 10 of them a program
    matrix = 3 * 10 * 64 * predicted.SUSTAINED
    assert found.compute_us == pytest.approx((predicted.START + matrix) / predicted.CLOCK * 1e6, abs=1e-3)
    assert found.predicted_us == found.memory_us


def test_one_program_waits_for_its_products():
    found = predicted.predict(launch(1, 640), machine_code(), RESOURCES, Work(1, 1), "bfloat16")
    latency = 10 * (64 * predicted.SUSTAINED + predicted.WAIT + 16)  # a copy takes 16 cycles of its pipe
    assert found.compute_us == pytest.approx((predicted.START + latency) / predicted.CLOCK * 1e6, abs=1e-3)


def test_more_programs_take_waves():
    one, two = (
        predicted.predict(launch(132 * 3 * n, 640), machine_code(), RESOURCES, Work(1, 1), "bfloat16").compute_us
        for n in (1, 2)
    )
    assert two == pytest.approx(2 * one, rel=1e-3)


def test_library_products_come_in_waves():
    full = product_us(4096, 1152, 1152, "bfloat16", 0)
    assert full == product_us(5632, 1152, 1152, "bfloat16", 0)  # 288 and 396 tiles are 3 waves
    assert product_us(4096, 1152, 1152, "float8_e4m3fn", 0) < full
    assert product_us(1, 1, 1, "bfloat16", 3 * 10**6) > 1
    # Triton's tutorial: 588 TFLOP/s for 8192 x 8192 x 1024, 646 for K = 4096, on a GPU at its power limit
    for k, rate in ((1024, 588), (4096, 646)):
        assert 1 <= 2 * 8192**2 * k / product_us(8192, 8192, k, "bfloat16", 0) / 1e6 / rate < 1.2


def test_parts_of_a_step_add_up():
    calls = (
        Call("video tower", "linear", "M=1", 10.0, 1, 3),
        Call("video tower", "spatial_attention", "1", 5.0, 1),
        Call("audio tower", "temporal_attention", "1", 2.0, 2, 2),
    )
    step = PredictedStep("syncflow-xl", 1, False, calls)
    assert step.parts() == pytest.approx(
        {
            "video tower: linear": 0.03,
            "video tower: attention": 0.005,
            "audio tower: attention": 0.004,
            "between launches": 8e-3 * predicted.LAUNCH_US,
        }
    )
    assert step.ms == pytest.approx(0.039 + 8e-3 * predicted.LAUNCH_US)
    assert step.overlapped_ms == pytest.approx(0.035 + 4e-3 * predicted.LAUNCH_US)
    assert "| sum | 0.05 |" in table([step])
    said = step.to_dict()
    assert said["launches"] == 8 and said["predicted_ms"] == 0.05
    assert said["calls"][0]["shape"] == "M=1"
