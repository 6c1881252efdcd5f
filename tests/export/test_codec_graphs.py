"""Codecs and text encoder behind graphs: every length, and who computes those that a graph does not have."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.codecs import AudioCodec
from syncflow.engine.codecs.audio import TINY_SETTINGS
from syncflow.engine.components import Components
from syncflow.engine.exports import Export, GraphSpec
from syncflow.engine.runtime.codecs import with_graph_codecs
from syncflow.engine.runtime.selection.libraries import load
from syncflow.export import writing
from syncflow.export.graphs import Graph, codec_graphs
from syncflow.export.lengths import axes_of
from syncflow.export.verification import graph_error
from syncflow.export.writing import write_export

pytestmark = pytest.mark.slow

AUDIO = ("audio_decoder", "audio_encoder")
LEAST = 5  # tokens: a convolution of the codec mirrors 4 samples at each end
HOP = 960


@pytest.fixture(scope="module")
def parts(bundled: Components) -> Components:
    """The bundled model with an audio codec of few channels."""
    torch.manual_seed(0)
    audio = AudioCodec(TINY_SETTINGS | {"num_filters": 2, "hidden_size": 8}).eval().requires_grad_(False)
    audio.set_statistics(torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16))
    return dataclasses.replace(bundled, audio=audio)


@pytest.fixture(scope="module")
def graphs(parts: Components) -> dict[str, Graph]:
    return {graph.name: graph for graph in codec_graphs(parts)}


@pytest.fixture(scope="module")
def export(parts, graphs, tmp_path_factory) -> Export:
    """The graphs of the audio codec alone."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writing, "graphs_of", lambda *_, **__: [graphs[name] for name in AUDIO])
        return write_export(parts, tmp_path_factory.mktemp("codecs"), "onnx")


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def run(request, parts, export):
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return load(request.param, export, parts.ddit, "float32").run


@pytest.mark.parametrize("name", AUDIO)
def test_a_runtime_codes_sound(run, export, graphs, name):
    assert tuple(export.graphs) == AUDIO and not export.missing
    error = graph_error(run, graphs[name], export.graphs[name])
    assert error is not None and error <= 1e-4


@pytest.mark.parametrize("tokens", [LEAST, 33, 250])
def test_a_recurrent_layer_runs_as_long_as_the_sound(run, parts, tokens):
    """At its last token the state holds all before it: a loop of the example's length would end elsewhere."""
    waveform = torch.randn(3, tokens * HOP, generator=torch.Generator().manual_seed(tokens))
    with torch.inference_mode():
        encoded = parts.audio.encode(waveform)
    torch.testing.assert_close(run("audio_encoder", {"waveform": waveform})["latents"], encoded, rtol=1e-3, atol=1e-4)


def test_the_least_length_is_stated(graphs, parts):
    """From there on no convolution mirrors more than it has; below it a graph traced at the usual length fails."""
    assert axes_of(graphs["audio_decoder"], parts.config)["A"].least == LEAST
    samples = axes_of(graphs["audio_encoder"], parts.config)["M"]
    assert (samples.least, samples.step) == (LEAST * HOP, HOP)
    kept = AudioCodec(TINY_SETTINGS | {"num_filters": 2, "hidden_size": 8, "pad_mode": "constant"})
    silent = next(g for g in codec_graphs(dataclasses.replace(parts, audio=kept)) if g.name == "audio_decoder")
    assert axes_of(silent, parts.config)["A"].least == 1


class Modules:
    """Graphs as modules, in the place of a runtime: which were asked for, with inputs that they state."""

    def __init__(self, graphs: dict[str, Graph], specs: dict[str, GraphSpec]) -> None:
        self.graphs, self.specs = graphs, specs
        self.asked: list[str] = []

    def __call__(self, name, inputs):
        assert self.specs[name].accepts({key: x.shape for key, x in inputs.items()}), name
        assert {key: x.dtype for key, x in inputs.items()} == {
            key: x.dtype for key, x in self.graphs[name].inputs.items()
        }
        self.asked.append(name)
        return {self.graphs[name].outputs[0]: self.graphs[name].module(*inputs.values())}


def spec_of(graph: Graph, parts: Components) -> GraphSpec:
    ports = {name: writing._spec(x, graph.dynamic.get(name, {})) for name, x in graph.inputs.items()}
    return GraphSpec("", ports, {}, axes_of(graph, parts.config))


@pytest.fixture(scope="module")
def behind(graphs, parts):
    """The codecs behind graphs, and which graphs were asked for."""
    modules = Modules(graphs, {name: spec_of(graph, parts) for name, graph in graphs.items()})
    return with_graph_codecs(parts, modules, modules.specs), modules


@given(samples=st.integers(1, 30 * HOP), clips=st.integers(1, 2))
@settings(max_examples=10)
@torch.inference_mode()
def test_sounds_of_any_length(behind, parts, samples, clips):
    coded, modules = behind
    modules.asked.clear()
    waveform = torch.randn(clips, samples, generator=torch.Generator().manual_seed(samples))
    latents = coded.audio.encode(waveform)
    torch.testing.assert_close(latents, parts.audio.encode(waveform))
    torch.testing.assert_close(coded.audio.decode(latents, samples), parts.audio.decode(latents, samples))
    tokens = -(-samples // HOP)
    assert modules.asked == (["audio_encoder", "audio_decoder"] if tokens >= LEAST else [])


@pytest.mark.parametrize(("frames", "side"), [(1, 32), (8, 32), (13, 64)])
@torch.inference_mode()
def test_videos_of_any_length(behind, parts, frames, side):
    coded, modules = behind
    modules.asked.clear()
    generator = torch.Generator().manual_seed(frames)
    video = torch.randint(0, 256, (1, frames, side, 32, 3), dtype=torch.uint8, generator=generator)
    latents = coded.video.encode(video)
    torch.testing.assert_close(latents, parts.video.encode(video))
    torch.testing.assert_close(coded.video.decode(latents, frames), parts.video.decode(latents, frames))
    assert modules.asked == ["video_encoder", "video_decoder"]
    assert coded.video.encode(video / 127.5 - 1).shape == latents.shape  # no graph takes floats
    assert len(modules.asked) == 2


@torch.inference_mode()
def test_texts(behind, parts):
    coded, modules = behind
    modules.asked.clear()
    prompts = ["", "a red ball", "a wooden floor"]
    for found, exact in zip(coded.text.encode(prompts), parts.text.encode(prompts), strict=True):
        torch.testing.assert_close(found, exact)
    assert modules.asked == ["text_encoder"]


def test_without_graphs_codecs_are_themselves(parts):
    coded = with_graph_codecs(parts, None, {})
    assert coded.audio.hop == parts.audio.hop and coded.video.strides == parts.video.strides
    latents = torch.randn(1, 10, 16)
    assert torch.equal(coded.audio.decode(latents, 9600), parts.audio.decode(latents, 9600))
