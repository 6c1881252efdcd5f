"""Compiled passes: whole, the same numbers, one compilation for any number of rows, prompts and contexts.

Traced and decomposed, but computed by PyTorch: generating code takes minutes and is not this package's.
"""

from __future__ import annotations

import pytest
import torch

from syncflow.engine.runtime.compiled import CompiledDenoiser
from syncflow.engine.runtime.cuda_graphs.capture import eager_capture
from syncflow.engine.runtime.cuda_graphs.denoiser import CudaGraphDenoiser
from syncflow.engine.runtime.delegate import describe
from syncflow.engine.runtime.pytorch import cast, torch_denoiser
from syncflow.engine.runtime.selection.settings import TorchOptions
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.types import Latents

from ..plain import CONFIG, job, randomised

pytestmark = pytest.mark.slow

# Wide enough for every way that an operation chooses by size, at rates at which its weights do not enlarge roundings.
WIDE = CONFIG.replace(width=192, latent_fps=4.0, audio_rate=50.0)
LAYERS = {"adaptor": {"depth": 1}, "audio_rope": {"depth": 2, "first_block": 1}, "global_local": {"depth": 1}}
JOBS = [job(seed, steps=2, negative=True) for seed in range(5)]


def run(denoiser, jobs):
    batch = batch_of(denoiser)
    batch.join(jobs)
    for _ in range(max(len(one.schedule) for one in jobs)):
        batch.step()
    return batch.latents


def errors(found, exact):
    """The largest deviation of every job's video and audio."""
    pairs = ((found.video, exact.video), (found.audio, exact.audio))
    return [(a.double() - b.double()).abs().max().item() for a, b in pairs]


@pytest.fixture(scope="module", params=LAYERS)
def pair(request):
    """A model and the same compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = randomised(WIDE.replace(bridge=request.param, **LAYERS[request.param]))
    return model, CompiledDenoiser(model, backend="aot_eager")


@pytest.fixture(scope="module")
def check(pair):
    """``check(latents)`` of the first jobs: their error is at most twice that of plain PyTorch and two roundings.

    The truth is the model in float64. The error of plain PyTorch is the largest of all jobs, together and alone, since
    what a single one becomes is chance.
    """
    model, _ = pair
    exact = run(cast(model, torch.float64), JOBS)
    alone = [run(model, [one]) for one in JOBS]
    plain = [run(model, JOBS), Latents(*(torch.cat([getattr(x, m) for x in alone]) for m in ("video", "audio")))]
    usual = [max(both) for both in zip(*(errors(found, exact) for found in plain), strict=True)]
    roundings = [2 * torch.finfo(torch.float32).eps * x.abs().max().item() for x in (exact.video, exact.audio)]

    def held(found):
        count = len(found.video)
        right = Latents(exact.video[:count], exact.audio[:count])
        for error, of_plain, floor in zip(errors(found, right), usual, roundings, strict=True):
            assert error <= 2 * of_plain + floor

    return held


def test_compiled_passes_are_captured(pair, check):
    """The tape cannot see into a compiled function, so this stand-in for a captured graph calls it."""
    _, compiled = pair
    denoiser = CudaGraphDenoiser(compiled, capture=eager_capture)
    check(run(denoiser, JOBS[:2]))
    told = denoiser.describe()
    assert told["cuda_graphs"] and told["compile"] == "aot_eager"


def test_compiled_passes_give_the_same(pair, check):
    """Captured before or not, with one compilation of every pass."""
    model, compiled = pair
    for count in (2, 3, 5):
        check(run(compiled, JOBS[:count]))
    passes = 1 if model.config.bridge == "global_local" else 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == passes
    assert compiled.describe()["compile"] == "aot_eager"


def test_compilation_and_autotuning_are_options(models):
    model = models["adaptor"]
    assert isinstance(torch_denoiser(model, "float32", compiled=True), CompiledDenoiser)
    tuned = torch_denoiser(model, "float32", TorchOptions(autotune=True), compiled=True)
    assert describe(tuned)["compile"] == "max-autotune"
    assert torch_denoiser(model, "float32") is model
