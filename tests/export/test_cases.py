"""The inputs on which runtimes are compared fit every graph, and reach what is odd."""

from __future__ import annotations

import pytest
import torch

from syncflow.engine.exports import Axis
from syncflow.export.cases import cases_of, inputs_of
from syncflow.export.lengths import axes_of
from syncflow.export.writing import graphs_of

from .conftest import BRIDGES


@pytest.mark.parametrize("bridge", BRIDGES)
def test_every_case_fits_its_graph(models, bridge):
    parts = models[bridge]
    for graph in graphs_of(parts, "cpu", codecs=False):
        axes = axes_of(graph, parts.config)
        for case in cases_of(axes):
            inputs = inputs_of(graph, case)
            assert {name: x.dtype for name, x in inputs.items()} == {n: x.dtype for n, x in graph.inputs.items()}
            with torch.inference_mode():
                assert all(y.isfinite().all() for y in graph.module(*inputs.values())), (graph.name, case.name)


def test_codecs_too(bundled):
    for graph in graphs_of(bundled, "cpu"):
        if graph.name in ("text_encoder", "audio_encoder", "video_encoder"):
            axes = axes_of(graph, bundled.config)
            (smallest,) = (case for case in cases_of(axes) if case.name == "smallest")
            with torch.inference_mode():
                assert graph.module(*inputs_of(graph, smallest).values()).isfinite().all()


def test_what_is_odd_is_among_them(models):
    (audio,) = (g for g in graphs_of(models["adaptor"], "cpu", codecs=False) if g.name == "denoise_audio")
    cases = {case.name: case for case in cases_of(axes_of(audio, models["adaptor"].config))}
    assert len(inputs_of(audio, cases["one row"])["latents"]) == 1
    assert set(inputs_of(audio, cases["without context"])["video_context_of_row"].tolist()) == {-1}
    assert all(x.numel() for x in inputs_of(audio, cases["smallest"]).values())
    usual, other = (inputs_of(audio, cases[name]) for name in ("usual", "other"))
    assert all(usual[name].shape != other[name].shape for name in audio.inputs)


def test_the_smallest_lengths_come_first():
    """A kernel that is compiled for them must serve all others."""
    first, *others = cases_of({"R": Axis(1, None, 4), "T": Axis(1, None, 8)})
    assert first.lengths == {"R": 1, "T": 1}
    assert any(case.lengths["T"] >= 8 for case in others)


def test_rows_without_a_bridge(models):
    (joint,) = (g for g in graphs_of(models["global_local"], "cpu", codecs=False) if g.name == "denoise_joint")
    smallest = next(c for c in cases_of(axes_of(joint, models["global_local"].config)) if c.name == "smallest")
    assert len(inputs_of(joint, smallest)["bridged_rows"]) == 0


def test_the_same_seed_the_same_inputs(models):
    graph = graphs_of(models["adaptor"], "cpu", codecs=False)[0]
    case = cases_of({"P": Axis(1, None, 3)})[0]
    assert torch.equal(inputs_of(graph, case, 5)["states"], inputs_of(graph, case, 5)["states"])
    assert not torch.equal(inputs_of(graph, case, 5)["states"], inputs_of(graph, case, 6)["states"])
