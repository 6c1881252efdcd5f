// Layers on tensors whose addresses, lengths and strides are given as numbers; 0 is no tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "addresses.h"
#include "syncflow/layers.h"

namespace py = pybind11;

namespace {

using Strides = std::array<std::int64_t, 3>;

syncflow::CrossAttention::Tokens tokens(Address address, const Strides& s) { return {floats(address), s[0], s[1], s[2]}; }

void self_attention(Address qkv, Address q_weight, Address k_weight, Address rope, Address out, std::array<std::int64_t, 5> sizes,
                    Strides strides, float eps, int threads) {
    const auto [outer, inner, length, heads, width] = sizes;
    syncflow::self_attention({floats(qkv), floats(q_weight), floats(k_weight), floats(rope), writable(out), outer, inner, length,
                              heads, width, strides[0], strides[1], strides[2], eps},
                             threads);
}

// Rows read contexts that there are, and of those as many keys as there are.
void check(const std::int64_t* context_of_row, std::int64_t rows, const std::int64_t* lengths, std::int64_t contexts, std::int64_t keys) {
    for (std::int64_t r = 0; context_of_row != nullptr && r < rows; ++r) {
        if (context_of_row[r] >= contexts) throw py::index_error("a row reads a context that is not there");
    }
    if (context_of_row == nullptr && rows > contexts) throw py::index_error("a row reads a context that is not there");
    for (std::int64_t c = 0; lengths != nullptr && c < contexts; ++c) {
        if (lengths[c] < 0 || lengths[c] > keys) throw py::index_error("a context is longer than its keys");
    }
}

void cross_attention(std::array<Address, 5> tensors, const std::array<Strides, 5>& strides, Address out,
                     std::array<std::int64_t, 7> sizes, std::array<Address, 6> rest, float window, int threads) {
    const auto [rows, queries, heads, width, contexts, keys, tail] = sizes;
    check(integers(rest[0]), rows, integers(rest[1]), contexts, keys);
    const py::gil_scoped_release released;
    syncflow::cross_attention({tokens(tensors[0], strides[0]), tokens(tensors[1], strides[1]), tokens(tensors[2], strides[2]),
                               tokens(tensors[3], strides[3]), tokens(tensors[4], strides[4]), writable(out), rows, queries, heads,
                               width, keys, tail, integers(rest[0]), integers(rest[1]), floats(rest[2]), floats(rest[3]),
                               floats(rest[4]), floats(rest[5]), window},
                              threads);
}

void linear(Address x, Address packed, Address bias, Address y, std::array<std::int64_t, 4> sizes, bool gelu, int threads) {
    const auto [rows, in, out, stride] = sizes;
    syncflow::linear({floats(x), floats(packed), floats(bias), writable(y), rows, in, out, stride, gelu}, threads);
}

void pack(Address weight, std::int64_t out, std::int64_t in, Address packed) {
    syncflow::pack(floats(weight), out, in, writable(packed));
}

void residual_norm(std::array<Address, 8> given, std::array<Address, 2> out, std::array<std::int64_t, 4> sizes,
                   std::array<std::int64_t, 2> strides, float eps, int threads) {
    syncflow::residual_norm({floats(given[0]), floats(given[1]), floats(given[2]), floats(given[3]), floats(given[4]),
                             floats(given[5]), floats(given[6]), floats(given[7]), writable(out[0]), writable(out[1]), sizes[0],
                             sizes[1], sizes[2], sizes[3], strides[0], strides[1], eps},
                            threads);
}

void guided_step(std::array<Address, 6> tensors, std::array<std::int64_t, 4> sizes, std::int64_t v_rows, int threads) {
    const auto [requests, branches, size, stride] = sizes;
    const syncflow::GuidedStep call = {floats(tensors[0]), floats(tensors[1]), integers(tensors[2]), floats(tensors[3]),
                                       floats(tensors[4]), writable(tensors[5]), requests, branches, size, stride};
    for (std::int64_t i = 0; i < requests * branches; ++i) {
        if (call.rows[i] < 0 || call.rows[i] >= v_rows) throw py::index_error("a branch is a row that is not there");
    }
    const py::gil_scoped_release released;
    syncflow::guided_step(call, threads);
}

}  // namespace

void bind_layers(py::module_& module) {
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    module.def("self_attention", &self_attention, unlocked);
    module.def("cross_attention", &cross_attention);
    module.def("linear", &linear, unlocked);
    module.def("pack", &pack, unlocked);
    module.def("packed_size", &syncflow::packed_size);
    module.def("residual_norm", &residual_norm, unlocked);
    module.def("guided_step", &guided_step);
    module.def("instructions", &syncflow::instructions);
    module.def("instruction_levels", &syncflow::instruction_levels);
    module.def("multiply_add_rate", &syncflow::multiply_add_rate, py::arg("seconds"), unlocked);
}
