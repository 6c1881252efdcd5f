"""The graphs of a d-DiT, run as modules, in the place of the model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.components import Components
from syncflow.engine.config import ModelConfig
from syncflow.engine.engine import bundled_model
from syncflow.engine.model import DDiT
from syncflow.engine.presets import preset
from syncflow.engine.runtime.exported import GraphDenoiser, graph_names
from syncflow.engine.sampling.loop import sample
from syncflow.export.graphs import codec_graphs, denoiser_graphs

from ..engine.plain import CONFIG, HEARING_JOBS, JOBS, SEQUENCE, TOLERANCE, randomised

pytestmark = pytest.mark.slow

BRIDGES = {
    "adaptor": CONFIG,
    "adaptor, all tokens": CONFIG.replace(adaptor_tokens="all"),
    "audio_rope": CONFIG.replace(bridge="audio_rope", first_block=1),
    "global_local": CONFIG.replace(bridge="global_local"),
    "adaptor, text": CONFIG.replace(audio_text=True),
    "global_local, text": CONFIG.replace(bridge="global_local", audio_text=True),
}


@pytest.fixture(scope="module", params=BRIDGES)
def model(request) -> DDiT:
    return randomised(BRIDGES[request.param])


def as_graphs(model: DDiT) -> GraphDenoiser:
    """The model behind its graphs, each a module that gets its tensors in the order of its inputs."""
    graphs = {g.name: g for g in denoiser_graphs(model, ModelConfig(sequence=SEQUENCE, ddit=model.config))}

    def run(name, inputs):
        graph = graphs[name]
        assert set(inputs) == set(graph.inputs), name
        for key, example in graph.inputs.items():
            assert inputs[key].dtype == example.dtype, (name, key)
            fixed = [i for i in range(example.ndim) if i not in graph.dynamic.get(key, {})]
            assert [inputs[key].shape[i] for i in fixed] == [example.shape[i] for i in fixed], (name, key)
        return dict(zip(graph.outputs, graph.module(*(inputs[key] for key in graph.inputs)), strict=True))

    silence = model.silence if model.config.bridge == "global_local" else None
    return GraphDenoiser(model.config, run, model.null_text, silence)


def test_examples_fit_their_modules(model):
    graphs = denoiser_graphs(model, ModelConfig(sequence=SEQUENCE, ddit=model.config))
    assert tuple(graph.name for graph in graphs) == graph_names(model.config)
    for graph in graphs:
        outputs = graph.module(*graph.inputs.values())
        assert len(outputs) == len(graph.outputs)
        assert all(out.isfinite().all() for out in outputs)
        assert set(graph.dynamic) <= set(graph.inputs)


@given(data=st.data())
@settings(max_examples=15)
def test_sampling_through_graphs_is_sampling(model, data):
    kind = JOBS if model.config.bridge == "adaptor" else HEARING_JOBS
    jobs = data.draw(st.lists(kind, min_size=1, max_size=2))
    through, plain = sample(as_graphs(model), jobs), sample(model, jobs)
    torch.testing.assert_close(through.video, plain.video, **TOLERANCE)
    torch.testing.assert_close(through.audio, plain.audio, **TOLERANCE)


@pytest.mark.parametrize("name", ["syncflow-xl", "syncphony-xl", "harmony-xl"])
def test_examples_of_the_full_size_need_no_memory(name):
    config = preset(name)
    with torch.device("meta"):
        model = DDiT(config.ddit.replace(depth=2, first_block=min(config.ddit.first_block, 1)))
        graphs = denoiser_graphs(model.eval().requires_grad_(False), config)
    for graph in graphs:
        assert len(graph.module(*graph.inputs.values())) == len(graph.outputs)


def test_codecs_have_graphs():
    for graph in codec_graphs(Components.load(bundled_model())):
        with torch.inference_mode():
            found = graph.module(*graph.inputs.values())
        assert len(found) == len(next(iter(graph.inputs.values())))
