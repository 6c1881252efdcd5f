// Layers on tensors of PyTorch, whose shapes are checked here.
#include "syncflow/layers.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "tensor_view.h"

namespace py = pybind11;

namespace syncflow::python {

const TorchNames& torch_names() {
    static const TorchNames names;
    return names;
}

}  // namespace syncflow::python

namespace {

using namespace syncflow::python;

using Floats = TensorView<const float>;
using Output = TensorView<float>;
using Integers = TensorView<const std::int64_t>;

// Over axis 1 (frames) or 2 (tokens) of qkv (R, T, S, 3, n, d) -> out (R, T, S, n d).
void self_attention(const Floats& qkv, const Floats& q_weight, const Floats& k_weight, const Floats& rope, const Output& out, int axis,
                    float eps, int threads) {
    require(qkv, "qkv", {any, any, any, 3, any, any});
    const auto [rows, frames, tokens, three, heads, width] = qkv.sizes;
    const bool over_frames = axis == 1;
    const std::int64_t length = over_frames ? frames : tokens, token = three * heads * width;
    require(q_weight, "q_weight", {width});
    require(k_weight, "k_weight", {width});
    require_if_defined(rope, "rope", {length, width / 2, 2});
    require(out, "out", {rows, frames, tokens, heads * width});
    const py::gil_scoped_release released;
    syncflow::self_attention({.qkv = qkv.data,
                              .q_weight = q_weight.data,
                              .k_weight = k_weight.data,
                              .rope = rope.data,
                              .out = out.data,
                              .outer = over_frames ? rows : rows * frames,
                              .inner = over_frames ? tokens : 1,
                              .length = length,
                              .heads = heads,
                              .width = width,
                              .outer_stride = over_frames ? frames * tokens * token : tokens * token,
                              .inner_stride = over_frames ? token : 0,
                              .token_stride = over_frames ? tokens * token : token,
                              .eps = eps},
                             threads);
}

// Every row reads an existing context, of which no more keys count than it has.
void check_contexts(const Integers& context_of_row, std::int64_t rows, const Integers& lengths, std::int64_t contexts, std::int64_t keys) {
    for (std::int64_t r = 0; context_of_row.defined && r < rows; ++r) {
        if (context_of_row.data[r] >= contexts) throw py::index_error("a row reads a context that is not there");
    }
    if (!context_of_row.defined && rows > contexts) throw py::index_error("a row reads a context that is not there");
    for (std::int64_t c = 0; lengths.defined && c < contexts; ++c) {
        if (lengths.data[c] < 0 || lengths.data[c] > keys) throw py::index_error("a context is longer than its keys");
    }
}

syncflow::CrossAttention::Tokens tokens(const Floats& x) {
    return {.data = x.data, .row = x.strides[0], .token = x.strides[1], .head = x.strides[2]};
}

// q (R, N, n, d); k, v (C, M, n, d); tail_k, tail_v (R, E, n, d) -> out (R, N, n d).
void cross_attention(const Floats& q, const Floats& k, const Floats& v, const Floats& tail_k, const Floats& tail_v, const Output& out,
                     const Integers& context_of_row, const Integers& lengths, const Floats& q_rope, const Floats& k_rope,
                     const Floats& q_positions, const Floats& k_positions, float window, int threads) {
    require_shape(q, "q", {any, any, any, any});
    const std::int64_t rows = q.sizes[0], queries = q.sizes[1], heads = q.sizes[2], width = q.sizes[3];
    require_shape(k, "k", {any, any, heads, width});
    const std::int64_t contexts = k.sizes[0], keys = k.sizes[1], tail = tail_k.defined ? tail_k.sizes[1] : 0;
    require_shape(v, "v", {contexts, keys, heads, width});
    for (const Floats* x : {&tail_k, &tail_v}) {
        if (tail_k.defined || tail_v.defined) require_shape(*x, "tail", {rows, tail, heads, width});
    }
    for (const Floats* x : {&q, &k, &v, &tail_k, &tail_v}) require_contiguous(*x, "a head of q, k, v or tail", 3);
    require_if_defined(context_of_row, "context_of_row", {rows});
    require_if_defined(lengths, "lengths", {contexts});
    require_if_defined(q_rope, "q_rope", {queries, width / 2, 2});
    require_if_defined(k_rope, "k_rope", {keys, width / 2, 2});
    require_if_defined(q_positions, "q_positions", {queries});
    require_if_defined(k_positions, "k_positions", {keys});
    require(out, "out", {rows, queries, heads * width});
    check_contexts(context_of_row, rows, lengths, contexts, keys);
    const py::gil_scoped_release released;
    syncflow::cross_attention({.q = tokens(q),
                               .k = tokens(k),
                               .v = tokens(v),
                               .tail_k = tokens(tail_k),
                               .tail_v = tokens(tail_v),
                               .out = out.data,
                               .rows = rows,
                               .queries = queries,
                               .heads = heads,
                               .width = width,
                               .keys = keys,
                               .tail = tail,
                               .context_of_row = context_of_row.data,
                               .lengths = lengths.data,
                               .q_rope = q_rope.data,
                               .k_rope = k_rope.data,
                               .q_positions = q_positions.data,
                               .k_positions = k_positions.data,
                               .window = window},
                              threads);
}

// x (rows, in), packed weight, bias (out) -> y (..., out), of as many rows.
void linear(const Floats& x, const Floats& packed, const Floats& bias, const Output& y, bool gelu, int threads) {
    require_shape(x, "x", {any, any});
    require_contiguous(x, "a row of x", 1);
    require(bias, "bias", {any});
    const std::int64_t rows = x.sizes[0], in = x.sizes[1], out = bias.sizes[0];
    require(packed, "packed", {syncflow::packed_size(out, in)});
    require_contiguous(y, "y");
    std::int64_t size = 1;
    for (std::size_t i = 0; i < y.dims; ++i) size *= y.sizes[i];
    if (size != rows * out) throw py::value_error("y has " + std::to_string(size) + " values; expected " + std::to_string(rows * out));
    const py::gil_scoped_release released;
    syncflow::linear({.x = x.data,
                      .packed = packed.data,
                      .bias = bias.data,
                      .y = y.data,
                      .rows = rows,
                      .in = in,
                      .out = out,
                      .x_stride = x.strides[0],
                      .gelu = gelu},
                     threads);
}

// weight (out, in) -> packed.
void pack(const Floats& weight, const Output& packed) {
    require(weight, "weight", {any, any});
    const std::int64_t out = weight.sizes[0], in = weight.sizes[1];
    require(packed, "packed", {syncflow::packed_size(out, in)});
    const py::gil_scoped_release released;
    syncflow::pack(weight.data, out, in, packed.data);
}

// x, branch, y, normed (R, T, S, D); tables (P, D); modulation (R, T or 1, P, D). The gate is part gate_part of gate_table
// plus modulation; shift and scale are parts norm_part and norm_part + 1 of norm_table plus modulation.
void residual_norm(const Floats& x, const Floats& branch, const Floats& gate_table, std::int64_t gate_part, const Floats& norm_table,
                   std::int64_t norm_part, const Floats& modulation, const Output& y, const Output& normed, float eps, int threads) {
    require(x, "x", {any, any, any, any});
    const std::int64_t rows = x.sizes[0], frames = x.sizes[1], tokens = x.sizes[2], width = x.sizes[3];
    for (const Floats* given : {&branch, &gate_table, &norm_table}) require_contiguous(*given, "branch, gate_table or norm_table");
    if (branch.defined) require_shape(branch, "branch", {rows, frames, tokens, width});
    require_if_defined(y, "y", {rows, frames, tokens, width});
    require_if_defined(normed, "normed", {rows, frames, tokens, width});
    require_shape(modulation, "modulation", {rows, modulation.sizes[1] == 1 ? 1 : frames, any, width});
    require_contiguous(modulation, "a part of the modulation", 3);
    const std::int64_t part_stride = modulation.strides[2];
    const auto require_part = [&](const Floats& table, std::int64_t part, std::int64_t count) {
        require_shape(table, "table", {any, width});
        if (part < 0 || part + count > table.sizes[0] || part + count > modulation.sizes[2]) throw py::index_error("a part is not there");
    };
    if (gate_table.defined) require_part(gate_table, gate_part, 1);
    if (norm_table.defined) require_part(norm_table, norm_part, 2);
    const float* const shift_table = norm_table.defined ? norm_table.data + norm_part * width : nullptr;
    const py::gil_scoped_release released;
    syncflow::residual_norm({.x = x.data,
                             .branch = branch.data,
                             .gate_table = gate_table.defined ? gate_table.data + gate_part * width : nullptr,
                             .gate_rows = modulation.data + gate_part * part_stride,
                             .shift_table = shift_table,
                             .shift_rows = modulation.data + norm_part * part_stride,
                             .scale_table = shift_table == nullptr ? nullptr : shift_table + width,
                             .scale_rows = modulation.data + (norm_part + 1) * part_stride,
                             .y = y.data,
                             .normed = normed.data,
                             .rows = rows,
                             .frames = frames,
                             .tokens = tokens,
                             .width = width,
                             .row_stride = modulation.strides[0],
                             .frame_stride = modulation.sizes[1] == 1 ? 0 : modulation.strides[1],
                             .eps = eps},
                            threads);
}

// z, out (B, ...), v (R, ...), rows and weights (B, G), dt (B).
void guided_step(const Floats& z, const Floats& v, const Integers& rows, const Floats& weights, const Floats& dt, const Output& out,
                 int threads) {
    require(rows, "rows", {any, any});
    const std::int64_t requests = rows.sizes[0], branches = rows.sizes[1];
    require(weights, "weights", {requests, branches});
    require(dt, "dt", {requests});
    for (const auto* x : {&z, &v}) require_contiguous(*x, "z or v");
    require_contiguous(out, "out");
    std::int64_t size = 1;
    bool equal = z.dims > 0 && z.dims == v.dims && z.dims == out.dims && z.sizes == out.sizes && z.sizes[0] == requests;
    for (std::size_t i = 1; i < z.dims; ++i) {
        size *= z.sizes[i];
        equal = equal && z.sizes[i] == v.sizes[i];
    }
    if (!equal) throw py::value_error("z, v and out have different shapes, or rows are for another number of requests");
    for (std::int64_t i = 0; i < requests * branches; ++i) {
        if (rows.data[i] < 0 || rows.data[i] >= v.sizes[0]) throw py::index_error("a branch is a row that is not there");
    }
    const py::gil_scoped_release released;
    syncflow::guided_step({.z = z.data,
                           .v = v.data,
                           .rows = rows.data,
                           .weights = weights.data,
                           .dt = dt.data,
                           .out = out.data,
                           .requests = requests,
                           .branches = branches,
                           .size = size,
                           .v_stride = size},
                          threads);
}

}  // namespace

void bind_layers(py::module_& module) {
    module.def("self_attention", &self_attention);
    module.def("cross_attention", &cross_attention);
    module.def("linear", &linear);
    module.def("pack", &pack);
    module.def("packed_size", &syncflow::packed_size);
    module.def("residual_norm", &residual_norm);
    module.def("guided_step", &guided_step);
    module.def("instructions", &syncflow::instructions);
    module.def("instruction_levels", &syncflow::instruction_levels);
    module.def("multiply_add_rate", &syncflow::multiply_add_rate, py::arg("seconds"), py::call_guard<py::gil_scoped_release>());
}
