"""Compiled passes: whole, the same numbers, one compilation for any number of rows, prompts and contexts.

Traced and decomposed, but computed by PyTorch: generating code takes minutes and is not this package's.
"""

from __future__ import annotations

import pytest
import torch

from syncflow.engine.runtime.assemble import assemble
from syncflow.engine.runtime.capture import called
from syncflow.engine.runtime.compiled import CompiledDenoiser
from syncflow.engine.runtime.graphed import GraphedDenoiser
from syncflow.engine.sampling.apart import batch_of

from ..plain import CONFIG, job, randomised
from .test_graphed import assert_same

WIDE = CONFIG.replace(width=192, depth=2)  # wide enough for every way that an operation chooses by size


@pytest.fixture(scope="module", params=["adaptor", "audio_rope", "global_local"])
def pair(request):
    """A model and the same compiled."""
    torch._dynamo.reset()
    model = randomised(WIDE.replace(bridge=request.param, first_block=int(request.param == "audio_rope")))
    return model, CompiledDenoiser(model, backend="aot_eager")


def run(denoiser, jobs):
    batch = batch_of(denoiser)
    batch.join(jobs)
    for _ in range(max(len(one.schedule) for one in jobs)):
        batch.step()
    return batch.latents


def test_compiled_passes_give_the_same(pair):
    model, compiled = pair
    torch._dynamo.utils.counters.clear()
    for count in (2, 3, 5):
        jobs = [job(seed, steps=2, negative=True) for seed in range(count)]
        assert_same(run(compiled, jobs), run(model, jobs))
    passes = 1 if model.config.bridge == "global_local" else 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == passes
    assert compiled.describe()["compile"] == "aot_eager"


def test_compiled_passes_are_recorded(pair):
    """The tape cannot watch a compiled function: what stands for a recording here is the call."""
    model, compiled = pair
    graphed = GraphedDenoiser(compiled, capture=called)
    jobs = [job(seed, steps=2, negative=True) for seed in range(2)]
    assert_same(run(graphed, jobs), run(model, jobs))
    told = graphed.describe()
    assert told["graphs"] and told["compile"] == "aot_eager"


def test_the_runtime_is_one_word(models):
    assert isinstance(assemble(models["adaptor"], "compiled"), CompiledDenoiser)
    assert assemble(models["adaptor"], "compiled", autotune=True).describe()["compile"] == "max-autotune"
    assert assemble(models["adaptor"]) is models["adaptor"]
