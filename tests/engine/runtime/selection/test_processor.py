"""The identity of a processor: the fields of /proc/cpuinfo, with flags in any order."""

from __future__ import annotations

import pytest

from syncflow.engine.runtime.selection.processor import parse, processor

ZEN3 = """\
processor	: {core}
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 1
model name	: AMD EPYC 7763
stepping	: 1
cpu MHz		: {mhz}
flags		: fpu sse2 fma avx2 bmi2

"""
ARM = """\
processor	: {core}
BogoMIPS	: 50.00
Features	: fp asimd
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: {part}
CPU revision	: 1

"""
ONE = ZEN3.format(core=0, mhz=2445)


def test_equal_cores_are_one_processor():
    both = ONE + ZEN3.format(core=1, mhz=3000)
    found = parse(both)
    assert found == parse(ONE)
    assert found.name == "AMD EPYC 7763" and found.flags == {"fpu", "sse2", "fma", "avx2", "bmi2"}
    assert str(found) == f"AMD EPYC 7763 [{found.digest[:12]}]"


def test_the_order_of_flags_does_not_matter():
    assert parse(ONE.replace("fpu sse2", "sse2 fpu")) == parse(ONE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("AuthenticAMD", "GenuineIntel"),
        ("family	: 25", "family	: 26"),
        ("model		: 1", "model		: 17"),
        ("7763", "7713"),
        ("stepping	: 1", "stepping	: 2"),
        ("bmi2", "bmi2 avx512f"),
        (" avx2", ""),
    ],
)
def test_another_processor(before, after):
    assert before in ONE
    assert parse(ONE.replace(before, after)).digest != parse(ONE).digest


def test_arm_with_two_types_of_cores():
    """A hybrid processor is what all of its cores are together, and has the features of all."""
    small = ARM.format(core=0, part="0xd05")
    large = ARM.format(core=1, part="0xd41").replace("asimd", "asimd sve")
    found = parse(small + large)
    assert found.digest not in (parse(small).digest, parse(large).digest)
    assert found == parse(large + small)
    assert "0xd05" in found.name and "0xd41" in found.name
    assert found.flags == {"fp", "asimd"}


@pytest.mark.parametrize("text", ["", "\n\n", "processor : 0\n"])
def test_text_without_a_processor(text):
    assert parse(text) is None


def test_this_machine():
    assert processor() == processor("cpu") and processor().name
