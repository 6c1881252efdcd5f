"""The runtime torch-plain: no operation runs in the C++ part, whatever other engines and threads run."""

from __future__ import annotations

import threading

import pytest
import torch

from syncflow.engine.exports import ExportLocations
from syncflow.engine.runtime.pytorch import PlainTorchDenoiser
from syncflow.engine.runtime.selection.choose import choose
from syncflow.engine.sampling.loop import sample
from syncflow.kernels import implementation, native

from ..plain import CONFIG, job, randomised

pytestmark = pytest.mark.slow

BRIDGES = {
    "adaptor": CONFIG.replace(width=32),
    "audio_rope": CONFIG.replace(width=32, bridge="audio_rope", first_block=1),
    "global_local": CONFIG.replace(width=32, bridge="global_local"),
}
built = pytest.mark.skipif(native.EXTENSION is None, reason="the native part was not built")


class Spied:
    """The native part, which notes what each thread calls."""

    def __init__(self, loops) -> None:
        self.loops, self.calls = loops, {}

    def __getattr__(self, name: str):
        found = getattr(self.loops, name)
        if name in ("instructions", "suits"):
            return found

        def call(*arguments):
            self.calls.setdefault(threading.current_thread().name, []).append(name)
            return found(*arguments)

        return call

    def of(self, name: str) -> list[str]:
        return self.calls.get(name, [])


@pytest.fixture
def spied(monkeypatch) -> Spied:
    spied = Spied(native.EXTENSION)
    monkeypatch.setattr(native, "EXTENSION", spied)
    return spied


@built
@pytest.mark.parametrize("bridge", BRIDGES)
def test_a_clip_without_the_native_part(bridge, spied, tmp_path):
    """The step of the loop itself included; and the same clip."""
    model, locations = randomised(BRIDGES[bridge]), ExportLocations(tmp_path, "7" * 64)
    plain = choose("torch-plain", model, locations)
    assert isinstance(plain.denoiser, PlainTorchDenoiser)
    found = sample(plain.denoiser, [job()])
    assert spied.calls == {}
    usual = sample(choose("torch", model, locations).denoiser, [job()])
    assert {"linear", "self_attention", "cross_attention", "residual_norm", "guided_step"} <= set(
        spied.of(threading.current_thread().name)
    )
    for name in ("video", "audio"):
        torch.testing.assert_close(getattr(found, name), getattr(usual, name), rtol=1e-3, atol=1e-4)


@built
def test_each_engine_has_its_operations_in_every_thread(spied, tmp_path):
    """Side by side, some of them in a thread that has another implementation of its own."""
    model, locations = randomised(BRIDGES["adaptor"]), ExportLocations(tmp_path, "7" * 64)
    names = ("torch-plain", "torch", "native")
    denoisers = {name: choose(name, model, locations).denoiser for name in names}
    spied.calls.clear()
    together = threading.Barrier(2 * len(names))

    def work(name: str, *, inside: str | None) -> None:
        together.wait()
        for _ in range(3):
            if inside is None:
                sample(denoisers[name], [job()])
            else:
                with implementation(inside):
                    sample(denoisers[name], [job()])

    threads = [
        threading.Thread(target=work, args=(name,), kwargs={"inside": inside}, name=f"{name} {inside}")
        for name in names
        for inside in (None, "reference" if name == "torch-plain" else "torch")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    busy = {name for name, calls in spied.calls.items() if calls}
    assert busy - {"native None"} == {"torch None"}  # whole blocks are made before, and are not seen here


@built
def test_whole_blocks_yield_to_plain_operations(tmp_path):
    """Where somebody asks for PyTorch's own, blocks in C++ are not used either: the bits are the plain model's."""
    model, locations = randomised(BRIDGES["adaptor"]), ExportLocations(tmp_path, "7" * 64)
    blocks, plain = (choose(name, model, locations).denoiser for name in ("native", "torch-plain"))
    with implementation("torch"):
        found = sample(blocks, [job()])
    assert torch.equal(found.video, sample(plain, [job()]).video)
    assert not torch.equal(found.video, sample(blocks, [job()]).video)


def test_it_says_so(tmp_path):
    model = randomised()
    plain, usual = (choose(name, model, ExportLocations(tmp_path, "7" * 64)) for name in ("torch-plain", "torch"))
    assert (plain.runtime, plain.describe()["kernels"]) == ("torch-plain", "torch")
    expected = "reference" if native.EXTENSION is None else f"native {native.instructions()}"
    assert usual.describe()["kernels"] == expected


def test_half_precision_too(tmp_path):
    """Where the native part computes nothing."""
    chosen = choose("torch-plain", randomised(), ExportLocations(tmp_path, "7" * 64), "bfloat16")
    assert chosen.denoiser.dtype == torch.bfloat16 and chosen.describe()["kernels"] == "torch"
    assert (
        choose("torch", randomised(), ExportLocations(tmp_path, "7" * 64), "bfloat16").describe()["kernels"]
        == "reference"
    )
