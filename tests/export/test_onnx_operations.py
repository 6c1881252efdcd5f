"""Every translated operation by itself, with free lengths, in each runtime, against its reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from syncflow import kernels
from syncflow.export.onnx import TRANSLATIONS, export_graph

from .runtimes import RUNTIMES, Load, largest_error

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
WIDE = ("q_positions", "k_positions", "frequencies", "rope")
EXAMPLE = {"R": 3, "T": 4, "S": 5, "P": 2, "L": 6, "N": 7, "M": 9, "C": 2, "E": 3}


@dataclass(frozen=True)
class Case:
    """An operation, the shapes of its tensors, of which letters stay free, and its other arguments."""

    operation: str
    shapes: Mapping[str, tuple[int | str, ...]]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self, lengths: Mapping[str, int], seed: int = 0, *, half: bool = False) -> dict[str, Tensor]:
        """Random arguments of these lengths; ``half`` makes all but positions and rotations float16."""
        generator = torch.Generator().manual_seed(seed)
        ranges = {
            "text_of_row": (0, lengths["P"]),
            "lengths": (1, lengths["L"] + 1),
            "context_of_row": (-1, lengths["C"]),
        }
        made = {}
        for name, letters in self.shapes.items():
            shape = [n if isinstance(n, int) else lengths[n] for n in letters]
            if name in ranges:
                made[name] = torch.randint(*ranges[name], shape, generator=generator)
            else:
                made[name] = torch.randn(shape, generator=generator)
                made[name] = made[name].half() if half and name not in WIDE else made[name]
        return made

    def exact(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The reference in float64."""
        wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        found = import_module(f"syncflow.kernels.{self.operation}").reference(**wide, **self.fixed)
        return [found] if isinstance(found, Tensor) else list(found)

    def export(self, path: Path, *, half: bool) -> Path:
        """The operation as a graph."""
        dynamic = {
            name: {i: n for i, n in enumerate(letters) if isinstance(n, str)} for name, letters in self.shapes.items()
        }
        outputs = [f"y{i}" for i in range(2 if self.operation == "gated_residual_norm" else 1)]
        return export_graph(Operation(self), self.inputs(EXAMPLE, half=half), dynamic, outputs, path)


class Operation(nn.Module):
    """A case, called with its tensors in order."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, *tensors: Tensor) -> Any:
        case = self.case
        return getattr(kernels, case.operation)(**dict(zip(case.shapes, tensors, strict=True)), **case.fixed)


def packed(heads: int, width: int) -> dict[str, tuple[int | str, ...]]:
    return {"qkv": ("R", "T", "S", 3, heads, width), "q_weight": (width,), "k_weight": (width,)}


def texts(heads: int, width: int) -> Case:
    context = ("P", "L", heads, width)
    queries: dict[str, tuple[int | str, ...]] = {"q": ("R", "N", heads, width), "k": context, "v": context}
    return Case("text_cross_attention", {**queries, "lengths": ("P",), "text_of_row": ("R",)})


def clocks(window: float, *, contexts: bool = False, tail: bool = False, heads: int = 3, width: int = 8) -> Case:
    context = ("C" if contexts else "R", "M", heads, width)
    shapes: dict[str, tuple[int | str, ...]] = {"q": ("R", "N", heads, width), "k": context, "v": context}
    shapes |= {"q_positions": ("N",), "k_positions": ("M",), "frequencies": (width // 2,)}
    if contexts:
        shapes["context_of_row"] = ("R",)
    if tail:
        shapes |= {"tail_k": ("R", "E", heads, width), "tail_v": ("R", "E", heads, width)}
    return Case("rope_cross_attention", shapes, {"window": window})


X, TABLE = ("R", "T", "S", 10), (6, 10)
NORM, MLP = {"eps": 1e-6}, {"part": 3}
LINEAR: dict[str, tuple[int | str, ...]] = {"weight": (10, 14), "bias": (10,)}
CASES = {
    "modulated_layer_norm": Case(
        "modulated_layer_norm", {"x": X, "table": TABLE, "modulation": ("R", 1, *TABLE)}, NORM | MLP
    ),
    "modulated_layer_norm, frames": Case(
        "modulated_layer_norm", {"x": X, "table": (2, 10), "modulation": ("R", "T", 2, 10)}, NORM | {"part": 0}
    ),
    "gated_residual": Case(
        "gated_residual", {"x": X, "branch": X, "table": TABLE, "modulation": ("R", "T", *TABLE)}, MLP
    ),
    "gated_residual_norm": Case(
        "gated_residual_norm",
        {"x": X, "branch": X, "gate_table": TABLE, "modulation": ("R", 1, *TABLE), "norm_table": TABLE},
        NORM | {"gate_part": 3, "norm_part": 0},
    ),
    "gated_residual_norm, no gate": Case(
        "gated_residual_norm",
        {"x": X, "branch": X, "modulation": ("R", "T", *TABLE), "norm_table": TABLE},
        NORM | {"gate_table": None, "gate_part": 3, "norm_part": 3},
    ),
    "linear_gelu": Case("linear_gelu", {"x": ("R", "N", 14), **LINEAR}),
    "gated_linear": Case(
        "gated_linear",
        {"x": ("R", "T", "S", 14), **LINEAR, "residual": X, "table": TABLE, "modulation": ("R", "T", *TABLE)},
        {"part": 0},
    ),
    "spatial_attention": Case("spatial_attention", packed(3, 8), NORM),
    "spatial_attention, 72": Case("spatial_attention", packed(2, 72), NORM),
    "temporal_attention": Case("temporal_attention", {**packed(3, 8), "rope": ("T", 4, 2)}, NORM),
    "temporal_attention, 72": Case("temporal_attention", {**packed(2, 72), "rope": ("T", 36, 2)}, NORM),
    "text_cross_attention": texts(3, 8),
    "text_cross_attention, 72": texts(2, 72),
    "rope_cross_attention": clocks(-1.0),
    "rope_cross_attention, window": clocks(1.0),
    "rope_cross_attention, contexts": clocks(-1.0, contexts=True),
    "rope_cross_attention, contexts, window": clocks(1.0, contexts=True),
    "rope_cross_attention, tail": clocks(-1.0, tail=True),
    "rope_cross_attention, tail, window": clocks(1.0, tail=True),
    "rope_cross_attention, contexts, tail": clocks(-1.0, contexts=True, tail=True, heads=2, width=72),
    "rope_cross_attention, all": clocks(1.0, contexts=True, tail=True),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The graph of a case by its name, in float32 or float16, written once."""
    folder = tmp_path_factory.mktemp("graphs")

    @cache
    def export(name: str, *, half: bool = False) -> Path:
        return CASES[name].export(folder / f"{name}{' half' * half}.onnx", half=half)

    return export


@pytest.mark.parametrize("load", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize("name", CASES)
@given(lengths=st.fixed_dictionaries(dict.fromkeys(EXAMPLE, st.integers(1, 11))), seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_an_operation_is_its_reference(
    exported: Callable[..., Path], name: str, load: Load, lengths: dict[str, int], seed: int
) -> None:
    inputs = CASES[name].inputs(lengths, seed)
    assert largest_error(load(exported(name))(inputs), CASES[name].exact(inputs)) <= TOLERANCE


@pytest.mark.parametrize("load", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize("name", ["temporal_attention", "text_cross_attention", "rope_cross_attention, all"])
def test_half_precision(exported: Callable[..., Path], name: str, load: Load) -> None:
    inputs = CASES[name].inputs(EXAMPLE, half=True)
    assert largest_error(load(exported(name, half=True))(inputs), CASES[name].exact(inputs)) <= 4e-3


@pytest.mark.parametrize("load", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize("name", ["rope_cross_attention, contexts", "rope_cross_attention, contexts, window"])
def test_what_nobody_reads_does_not_matter(exported: Callable[..., Path], name: str, load: Load) -> None:
    inputs = CASES[name].inputs(EXAMPLE) | {"context_of_row": torch.tensor([1, -1, 1])}
    for tensor in ("k", "v"):
        inputs[tensor][0] = float("nan")
    (found,) = load(exported(name))(inputs)
    assert largest_error([found], CASES[name].exact(inputs)) <= TOLERANCE
    assert (found[1] == 0).all()


def test_every_operation_of_the_model_has_a_translation() -> None:
    tested = {getattr(torch.ops.syncflow, case.operation).default for case in CASES.values()}
    known = {o for o in TRANSLATIONS if isinstance(o, torch._ops.OpOverload) and o.namespace == "syncflow"}
    assert tested == known - {torch.ops.syncflow.lstm.default}  # of a codec: test_codec_graphs.py
