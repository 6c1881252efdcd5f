"""A steady step with CUDA graphs: two replays and what copies their states back, and nothing else on the device.

The host is never many steps ahead of the device.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from syncflow.engine.runtime.cuda_graphs.denoiser import CudaGraphDenoiser
from syncflow.engine.runtime.cuda_graphs.stream_order import MAX_STEPS_AHEAD, StreamOrder
from syncflow.engine.runtime.exported import GraphDenoiser
from syncflow.engine.sampling.guidance import combine, sync_guidance, text_guidance
from syncflow.engine.sampling.sequential import batch_of

from ..plain import CONFIG, job
from .conftest import ONE_WAY
from .tape import TapeCapture
from .test_cuda_graphs import assert_same

SYNCHRONIZING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")
MOST_LAUNCHES = 6
GUIDANCE = combine([text_guidance(4.0), sync_guidance(2.0)])


class HostWork(TorchDispatchMode):
    """What the host does besides replaying graphs, a replay counting as one launch.

    On a GPU an operation that is no view is a launch, one that makes memory an allocation.
    """

    def __init__(self):
        super().__init__()
        self.counts, self.operations, self.replaying = Counter(), Counter(), False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.replaying or func.is_view:
            return result
        name = func._schema.name.partition("::")[2]
        self.operations[name] += 1
        self.counts["launches"] += 1
        self.counts["synchronizations"] += name.startswith(SYNCHRONIZING)
        before = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
        self.counts["allocations"] += sum(x.untyped_storage().data_ptr() not in before for x in tensors(result))
        return result

    def __str__(self):
        names = "launches", "allocations", "synchronizations"
        return ", ".join(f"{self.counts[name]} {name}" for name in names) + f" ({dict(self.operations)})"


class CountedCapture(TapeCapture):
    """Tapes whose replays are launches of a :class:`HostWork`."""

    work = None

    def __call__(self, function, pool):
        replay = super().__call__(function, pool)

        def counted():
            work = self.work
            if work is None:
                return replay()
            work.counts["launches"] += 1
            work.operations["replay"] += 1
            work.replaying = True
            try:
                return replay()
            finally:
                work.replaying = False

        return counted


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True], ids=["one buffer", "two buffers"])
@pytest.mark.parametrize("name", ONE_WAY)
def test_host_work_of_a_steady_step(models, name, overlap, capsys):
    capture = CountedCapture()
    batch = batch_of(CudaGraphDenoiser(models[name], overlap=overlap, capture=capture))
    batch.join([job(seed, steps=8, guidance=GUIDANCE) for seed in (1, 2)])
    for _ in range(3):
        batch.step()
    with HostWork() as work:
        capture.work = work
        batch.step()
    with capsys.disabled():
        print(f"\n{name}: {work}")
    assert work.operations["replay"] == 2
    assert work.counts["launches"] <= MOST_LAUNCHES
    assert work.counts["allocations"] == work.counts["synchronizations"] == 0


class LaggingDevice(StreamOrder):
    """A device that ends no step before the host waits for it: events are the numbers of steps."""

    def __init__(self):
        self.given = self.ended = 0

    def record_event(self, *, for_host=False):
        self.given += for_host
        return self.given if for_host else None

    def block_host(self, event):
        assert event == self.ended + 1
        self.ended = event


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("name", ["adaptor", "audio_rope", "global_local"])
def test_the_host_is_few_steps_ahead(models, name, ahead):
    """It waits for no step before it is that far ahead, and then for one in each step, whatever the batch."""
    device = LaggingDevice()
    denoiser = CudaGraphDenoiser(models[name], capture=TapeCapture(), order=device, max_steps_ahead=ahead)
    batches = [batch_of(denoiser) for _ in range(2)]
    for batch in batches:
        batch.join([job(1, steps=8)])
    for step in range(8):
        batches[step % 2].step()
        assert device.given == step + 1
        assert device.given - device.ended == min(step + 1, ahead)


def test_the_host_is_few_steps_ahead_of_graphs_of_a_library():
    denoiser, device = GraphDenoiser(CONFIG, lambda name, inputs: {}, torch.zeros(1, 1)), LaggingDevice()
    denoiser.step_limit.order = device
    for step in range(6):
        with denoiser.operations():
            assert device.given - device.ended == min(step, MAX_STEPS_AHEAD - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaptor", "audio_rope"])
def test_batches_take_turns_with_the_same_graphs(models, name):
    """The state of each is put back where another has used the graph, and where another graph has moved it."""
    denoiser = CudaGraphDenoiser(models[name], capture=TapeCapture())
    jobs = [
        [job(1, steps=5), job(2, steps=3)],
        [job(3, steps=4, guidance=1.0), job(4, steps=5, guidance=1.0)],
        [job(5, steps=6)],
    ]
    batches, expected = ([batch_of(model) for _ in jobs] for model in (denoiser, models[name]))
    for one, same, requests in zip(batches, expected, jobs, strict=True):
        one.join(requests)
        same.join(requests)
    for k in range(7):
        for i, (one, same) in enumerate(zip(batches, expected, strict=True)):
            if k % (i + 1) == 0:
                one.step()
                same.step()
                assert_same(one.latents, same.latents)


def test_latents_that_were_returned_stay(models):
    batch = batch_of(CudaGraphDenoiser(models["adaptor"], capture=TapeCapture()))
    batch.join([job(1, steps=4)])
    seen = []
    for _ in range(4):
        seen.append((batch.latents.video, batch.latents.video.clone()))
        batch.step()
    assert all(torch.equal(now, before) for now, before in seen)


def test_requests_of_other_lengths_need_no_capture(models):
    denoiser = CudaGraphDenoiser(models["adaptor"], capture=TapeCapture())
    for steps in (3, 20, 50):
        batch = batch_of(denoiser)
        batch.join([job(1, steps=steps)])
        batch.step()
        if steps == 3:
            first = denoiser.graphs.num_captures
    assert denoiser.graphs.num_captures == first
