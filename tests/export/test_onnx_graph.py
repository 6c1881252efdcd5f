"""Modules as ONNX graphs: right, small, named, deterministic, and as free in their lengths as promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from syncflow.engine.model.layers import EPS, CrossAttention, Mlp, SelfAttention
from syncflow.export.onnx import export_graph, graph
from syncflow.export.onnx.passes import drop_reshapes
from syncflow.kernels import gated_residual_norm, modulated_layer_norm, spatial_attention, text_cross_attention

from .runtimes import RUNTIMES, Load, largest_error

WIDTH, HEADS, TOLERANCE = 16, 2, 1e-5
A, B = torch.ones(6), torch.ones(6)
DYNAMIC = {
    "x": {0: "R", 1: "T", 2: "S"},
    "rows": {0: "R"},
    "context": {0: "P", 1: "L"},
    "lengths": {0: "P"},
    "text_of_row": {0: "R"},
}
OUTPUTS = ("y", "normed")


class Block(nn.Module):
    """Most of a block of the video tower."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, WIDTH))
        self.attn = SelfAttention(WIDTH, HEADS)
        self.cross = CrossAttention(WIDTH, HEADS)
        self.mlp = Mlp(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(
        self, x: Tensor, rows: Tensor, context: Tensor, lengths: Tensor, text_of_row: Tensor
    ) -> tuple[Tensor, Tensor]:
        normed = modulated_layer_norm(x, self.table, rows, 0, EPS)
        weights = self.attn.q_norm.weight, self.attn.k_norm.weight
        mixed = self.attn.proj(spatial_attention(self.attn.pack(normed), *weights, EPS))
        x, normed = gated_residual_norm(x, mixed, self.table, rows, 0, self.table, 3, EPS)
        keys_values = self.cross.keys_values(self.norm(context))
        read = text_cross_attention(self.cross.queries(normed.flatten(1, 2)), *keys_values, lengths, text_of_row)
        return x + self.mlp(self.cross.proj(read).view_as(x)), normed


def block() -> Block:
    torch.manual_seed(1)
    return Block().eval().requires_grad_(False)


def example(rows: int = 3, frames: int = 4, tokens: int = 5, texts: int = 2, words: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(rows, frames, tokens, WIDTH, generator=generator),
        "rows": torch.randn(rows, 1, 6, WIDTH, generator=generator),
        "context": torch.randn(texts, words, WIDTH, generator=generator),
        "lengths": torch.randint(1, words + 1, (texts,), generator=generator),
        "text_of_row": torch.randint(0, texts, (rows,), generator=generator),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_graph(block(), example(), DYNAMIC, OUTPUTS, tmp_path_factory.mktemp("written") / "block.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("load", RUNTIMES.values(), ids=RUNTIMES)
@given(lengths=st.tuples(*[st.integers(1, 9)] * 5))
@settings(max_examples=10)
def test_a_graph_computes_what_its_module_does(written: Path, load: Load, lengths: tuple[int, ...]) -> None:
    inputs = example(*lengths)
    wide = (x.double() if x.is_floating_point() else x for x in inputs.values())
    assert largest_error(load(written)(inputs), block().double()(*wide)) <= TOLERANCE


def test_lengths_have_their_names(written: Path) -> None:
    model = onnx.load(written).graph

    def shape(value: onnx.ValueInfoProto) -> list[str | int]:
        return [length.dim_param or length.dim_value for length in value.type.tensor_type.shape.dim]

    assert {value.name: shape(value) for value in model.input} == {
        "x": ["R", "T", "S", WIDTH],
        "rows": ["R", 1, 6, WIDTH],
        "context": ["P", "L", WIDTH],
        "lengths": ["P"],
        "text_of_row": ["R"],
    }
    assert {value.name: shape(value) for value in model.output} == {name: ["R", "T", "S", WIDTH] for name in OUTPUTS}


def test_nodes_and_weights_are_named_after_the_module(written: Path) -> None:
    model = onnx.load(written).graph
    names = [node.name for node in model.node]
    assert len(set(names)) == len(names)
    assert {"attn.qkv/linear/Gemm", "spatial_attention/Softmax", "mlp/linear_gelu/Gelu"} <= set(names)
    stored = {value.name for value in model.initializer}
    kept = set(dict(block().named_parameters())) - {"table", "attn.q_norm.weight"}  # folded with 1 and with a scale
    assert kept <= stored
    constants = stored - kept
    assert {"int64([1, 2, 3])", "modulated_layer_norm/LayerNormalization.Scale"} <= constants
    assert all("/" in name or "(" in name for name in constants)


def test_what_operations_repeat_is_computed_once(written: Path) -> None:
    nodes = onnx.load(written).graph.node
    assert sum(node.op_type == "Split" and len(node.output) == 6 for node in nodes) == 1
    assert sum(node.op_type == "Shape" for node in nodes) <= 6  # R, T, S, T * S, P, L


def test_shapes_change_where_they_must(written: Path) -> None:
    nodes = onnx.load(written).graph.node
    shaped = {output for node in nodes if node.op_type == "Reshape" for output in node.output}
    assert not any(node.op_type == "Reshape" and node.input[0] in shaped for node in nodes)
    (gelu,) = (node for node in nodes if node.op_type == "Gelu")
    assert [node.op_type for node in nodes if gelu.output[0] in node.input] == ["Gemm"]


@pytest.mark.parametrize(
    ("second", "left"),
    [("back", ["Reshape(x, back)", "Gelu(b)", "Reshape(c, flat)"]), ("zero", ["Reshape(x, flat)", "Reshape(a, zero)"])],
)
def test_reshapes_in_a_row(second: str, left: list[str]) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 23]>
    rows (float[N, 6] x) => (float[M, 2] y)
    <int64[2] flat = {{-1, 2}}, int64[3] back = {{-1, 3, 2}}, int64[3] zero = {{0, -1, 2}}>
    {{ a = Reshape(x, flat) b = Reshape(a, {second}) c = Gelu(b) d = Reshape(c, back) y = Reshape(d, flat) }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    drop_reshapes(model.graph)
    common.RemoveUnusedNodesPass()(model)
    nodes = [f"{node.op_type}({', '.join(str(value.name) for value in node.inputs if value)})" for node in model.graph]
    assert nodes[: len(left)] == left


def test_only_standard_operators_and_no_traces_of_the_machine(written: Path) -> None:
    model = onnx.load(written)
    assert [(used.domain, used.version) for used in model.opset_import] == [("", 23)]
    assert not model.functions
    assert not any(text in written.read_bytes() for text in (b"site-packages", b".py", b"pkg.torch"))


@pytest.mark.slow
def test_the_same_bytes_twice(written: Path, tmp_path: Path) -> None:
    again = export_graph(block(), example(), DYNAMIC, OUTPUTS, tmp_path / "block.onnx")
    assert again.read_bytes() == written.read_bytes()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graph with its weights in a file of their own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(graph, "EMBEDDED", 0)
        path = tmp_path_factory.mktemp("apart") / "deep" / "block.onnx"
        return export_graph(block(), example(), DYNAMIC, OUTPUTS, path)


@pytest.mark.slow
@pytest.mark.parametrize("load", RUNTIMES.values(), ids=RUNTIMES)
def test_large_weights_stand_beside_the_graph(written: Path, apart: Path, load: Load) -> None:
    assert {file.name for file in apart.parent.iterdir()} == {"block.onnx", "block.onnx.data"}
    for beside, inside in zip(load(apart)(example()), load(written)(example()), strict=True):
        torch.testing.assert_close(beside, inside, rtol=0, atol=0)


def halves() -> dict[str, Tensor]:
    return {name: x.half() if x.is_floating_point() else x for name, x in example().items()}


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph in float16."""
    return export_graph(block().half(), halves(), DYNAMIC, OUTPUTS, tmp_path_factory.mktemp("half") / "block.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("load", RUNTIMES.values(), ids=RUNTIMES)
def test_half_precision(half: Path, load: Load) -> None:
    inputs = halves()
    wide = [x.double() if x.is_floating_point() else x for x in inputs.values()]
    assert largest_error(load(half)(inputs), block().half().double()(*wide)) <= 4e-3


@pytest.mark.slow
def test_weights_of_an_earlier_graph_do_not_stay(written: Path, tmp_path: Path) -> None:
    (tmp_path / "sum.onnx.data").write_bytes(b"weights")
    export_graph(Pair(), {"a": A, "b": B}, {}, ["y"], tmp_path / "sum.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["sum.onnx"]


class Square(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        left, right = a.unbind(1)
        return left + right * round(a.shape[0] ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("load", RUNTIMES.values(), ids=RUNTIMES)
def test_numbers_that_depend_on_a_length(tmp_path: Path, load: Load) -> None:
    path = export_graph(Square(), {"a": torch.randn(3, 2, 5)}, {"a": {0: "N"}}, ["y"], tmp_path / "square.onnx")
    run = load(path)
    for length in (1, 2, 6, 7, 12, 13):
        a = torch.randn(length, 2, 5)
        assert largest_error(run({"a": a}), [Square()(a.double())]) <= TOLERANCE
    assert "unbind/Gather" in {node.name for node in onnx.load(path).graph.node}


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Fixed(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return a.view(2, 3) if len(a) == 6 else a


@pytest.mark.slow
def test_a_length_that_became_another_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="was promised"):
        export_graph(Pair(), {"a": A, "b": B}, {"a": {0: "N"}, "b": {0: "M"}}, ["y"], tmp_path / "graph.onnx")
    assert not list(tmp_path.iterdir())


def test_a_length_that_became_a_number_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="static"):
        export_graph(Fixed(), {"a": A}, {"a": {0: "N"}}, ["y"], tmp_path / "graph.onnx")
    assert not list(tmp_path.iterdir())


def test_an_example_that_would_be_taken_as_a_constant(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="at least 2"):
        export_graph(Pair(), {"a": A[:1], "b": B[:1]}, {"a": {0: "N"}}, ["y"], tmp_path / "graph.onnx")
