// Blocks on tensors whose addresses, lengths and strides are given as numbers; 0 is no tensor. Weights come as arrays.
#include "syncflow/blocks.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <string>

#include "addresses.h"

namespace py = pybind11;

namespace {

using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Arrays = std::map<std::string, Array>;

const float* vector(const Arrays& arrays, const std::string& name, std::int64_t size) {
    const Array& found = arrays.at(name);
    if (found.size() != size) throw py::value_error(name + " has another size");
    return found.data();
}

syncflow::Weights linear_of(const Arrays& arrays, const std::string& name, std::int64_t out, std::int64_t in) {
    return {vector(arrays, name + ".weight", out * in), vector(arrays, name + ".bias", out)};
}

void suited(std::int64_t width, std::int64_t heads, std::int64_t hidden) {
    if (!syncflow::Block::suits(width, heads, hidden)) throw py::value_error("blocks of this width do not suit");
}

// The weights of a block under the names of its parts: "qkv.weight", "qkv.bias", …
syncflow::BlockWeights weights(const Arrays& arrays, std::int64_t width, std::int64_t heads, std::int64_t hidden) {
    suited(width, heads, hidden);
    const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in) { return linear_of(arrays, name, out, in); };
    return {width,
            heads,
            hidden,
            linear("attn.qkv", 3 * width, width),
            linear("attn.proj", width, width),
            vector(arrays, "attn.q_norm.weight", width / heads),
            vector(arrays, "attn.k_norm.weight", width / heads),
            linear("cross_attn.q_linear", width, width),
            linear("cross_attn.kv_linear", 2 * width, width),
            linear("cross_attn.proj", width, width),
            linear("mlp.fc1", hidden, width),
            linear("mlp.fc2", width, hidden)};
}

syncflow::Adaptor adaptor(const Arrays& arrays, std::int64_t width, std::int64_t heads, float eps) {
    suited(width, heads, width);
    return syncflow::Adaptor({width, heads, linear_of(arrays, "attn.qkv", 3 * width, width), linear_of(arrays, "attn.proj", width, width),
                              vector(arrays, "attn.q_norm.weight", width / heads), vector(arrays, "attn.k_norm.weight", width / heads),
                              linear_of(arrays, "norm", width, 1), linear_of(arrays, "linear", width, width),
                              linear_of(arrays, "kv_linear", 2 * width, width), eps});
}

void check(const std::int64_t* index, std::int64_t rows, std::int64_t least, std::int64_t count) {
    for (std::int64_t r = 0; r < rows; ++r) {
        if (index[r] < least || index[r] >= count) throw py::index_error("a row reads what is not there");
    }
}

syncflow::Text fold(const syncflow::VideoBlock& block, std::array<Address, 3> given, std::array<std::int64_t, 2> strides,
                    std::int64_t prompts, std::int64_t tokens) {
    check(integers(given[2]), prompts, 0, tokens + 1);
    const py::gil_scoped_release released;
    return block.fold(floats(given[0]), floats(given[1]), strides[0], strides[1], integers(given[2]), prompts);
}

void adapt(const syncflow::Adaptor& adaptor, std::array<Address, 3> given, Address out, std::array<std::int64_t, 4> sizes, bool pooled,
           float eps, int threads) {
    check(integers(given[1]), sizes[0], 0, sizes[1]);
    const py::gil_scoped_release released;
    adaptor({floats(given[0]), integers(given[1]), pooled, floats(given[2]), writable(out), sizes[0], sizes[2], sizes[3], eps}, threads);
}

void video_block(const syncflow::VideoBlock& block, const syncflow::VideoBlock* following, const syncflow::Text& text,
                 std::array<Address, 5> given, std::array<Address, 3> out, std::array<std::int64_t, 4> sizes,
                 std::array<std::int64_t, 2> strides, float eps, int threads) {
    const auto [x, normed, rows, text_of_row, rope] = given;
    check(integers(text_of_row), sizes[0], 0, static_cast<std::int64_t>(text.prompts.size()));
    const py::gil_scoped_release released;
    block({floats(x), floats(normed), floats(rows), strides[0], strides[1], &text, integers(text_of_row), floats(rope), following,
           writable(out[0]), writable(out[1]), writable(out[2]), sizes[0], sizes[1], sizes[2], sizes[3], eps},
          threads);
}

void audio_layer(const syncflow::AudioLayer& layer, std::array<Address, 6> given, std::array<Address, 2> out,
                 std::array<std::int64_t, 6> sizes, float eps, int threads) {
    const auto [x, rope, context, context_rope, context_of_row, tail] = given;
    const auto [rows, audio, contexts, keys, beside, num_outputs] = sizes;
    if (context != 0 && context_of_row != 0) check(integers(context_of_row), rows, -1, contexts);
    if (context != 0 && context_of_row == 0 && rows > contexts) throw py::index_error("a row reads what is not there");
    const py::gil_scoped_release released;
    layer({floats(x), floats(rope), floats(context), floats(context_rope), integers(context_of_row), floats(tail),
           writable(out[0]), writable(out[1]), rows, audio, keys, beside, num_outputs, eps},
          threads);
}

}  // namespace

void bind_blocks(py::module_& module) {
    module.def("suits", &syncflow::Block::suits);
    py::class_<syncflow::Adaptor>(module, "Adaptor").def(py::init(&adaptor)).def("__call__", &adapt);
    py::class_<syncflow::Text>(module, "Text");
    py::class_<syncflow::VideoBlock>(module, "VideoBlock")
        .def(py::init([](const Arrays& arrays, std::int64_t width, std::int64_t heads, std::int64_t hidden) {
            return syncflow::VideoBlock(weights(arrays, width, heads, hidden), vector(arrays, "scale_shift_table", 6 * width));
        }))
        .def("fold", &fold)
        .def("__call__", &video_block);
    py::class_<syncflow::AudioLayer>(module, "AudioLayer")
        .def(py::init([](const Arrays& arrays, std::int64_t width, std::int64_t heads, std::int64_t hidden, float eps) {
            std::vector<float> norms;
            for (const char* name : {"norm1", "norm2", "norm3"}) {
                for (const char* part : {".weight", ".bias"}) {
                    const float* const given = vector(arrays, std::string(name) + part, width);
                    norms.insert(norms.end(), given, given + width);
                }
            }
            return syncflow::AudioLayer(weights(arrays, width, heads, hidden), norms.data(), eps);
        }))
        .def("__call__", &audio_layer);
}
