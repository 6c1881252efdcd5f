"""Nothing in a step makes the host wait for the device.

The device here is ``meta``, whose tensors have no values: to read one is an error. What else waits on CUDA, copies from
pageable memory and selections by a mask, is looked for among the operations.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from syncflow.engine.model import DDiT
from syncflow.engine.sampling import batch, conditioning_cache, latent_state, transfer
from syncflow.engine.sampling.guidance import combine, sync_cfg_audio, sync_guidance, text_guidance
from syncflow.engine.sampling.sequential import batch_of

from .plain import AUDIO_SHAPE, CONFIG, job

SCALAR_WHERE = ("aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")  # a tensor of one number


class Waits(TorchDispatchMode):
    """Operations that would wait for a CUDA device, and uploads, which do not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.uploads = 0
        self._uploading = False

    def upload(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.uploads += 1
        self._uploading = True
        try:
            return transfer.upload(tensor, device)
        finally:
            self._uploading = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given, made = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in ((args, kwargs), result)
        )
        crosses = len({leaf.is_meta for leaf in (*given, *made)}) == 2
        masks = func is torch.ops.aten.index.Tensor and any(x is not None and x.dtype == torch.bool for x in args[1])
        if (crosses and not self._uploading) or masks or str(func) in SCALAR_WHERE:
            self.found.append(str(func))
        return result


@pytest.fixture
def waits(monkeypatch):
    witness = Waits()
    for module in (batch, conditioning_cache, latent_state):
        monkeypatch.setattr(module, "upload", witness.upload)
    return witness


@pytest.mark.slow
@pytest.mark.parametrize("bridge", ["adaptor", "audio_rope", "global_local"])
def test_no_step_waits(waits, bridge):
    with torch.device("meta"):
        model = DDiT(CONFIG.replace(bridge=bridge, first_block=int(bridge == "audio_rope"))).eval()
    plan = combine([text_guidance(4.0), sync_guidance(2.0), sync_cfg_audio(2.0)], rescale=0.5)
    jobs = [
        job(1, steps=4, guidance=plan, negative=True),
        job(2, steps=4, lead=1.0, prefix=1, clean=True),
        job(3, steps=4, lead=0.5, guidance=plan, known=True),
    ]
    if bridge == "global_local":
        jobs = [replace(one, reference=torch.ones(3, AUDIO_SHAPE[1])) for one in jobs]
    batch = batch_of(model)
    with waits:
        batch.join(jobs[:2])
        uploads = []
        for k in range(9):
            if k == 2:
                batch.join(jobs[2:])
            before = waits.uploads
            batch.step()
            uploads.append(waits.uploads - before)
        batch.leave([1])
        batch.step()
    assert not waits.found
    assert 0 in uploads, "indices are uploaded when rows change, not at every step"


def test_the_witness_sees_what_waits(waits):
    x = torch.ones(3, device="meta")
    with waits, torch.inference_mode():
        torch.tensor([1.0, 2.0]).to("meta")
        torch.where(x > 0, x, 1.0)
        with pytest.raises(NotImplementedError):
            x[x > 0]
        with pytest.raises(RuntimeError):
            bool(x.sum())
    assert len(waits.found) == 2


def test_uploads_go_through_pinned_memory(monkeypatch):
    """As far as this can be seen without a GPU."""
    calls = []
    tensor = torch.arange(3)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: calls.append("pin") or self)
    monkeypatch.setattr(Tensor, "to", lambda self, device, **kwargs: calls.append((device.type, kwargs)) or self)
    transfer.upload(tensor, torch.device("cuda"))
    transfer.upload(tensor, torch.device("cpu"))
    assert calls == ["pin", ("cuda", {"non_blocking": True}), ("cpu", {})]
