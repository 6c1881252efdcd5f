// Blocks on tensors whose addresses, lengths and strides are given as numbers; 0 is no tensor. Weights come as arrays.
#include "syncflow/blocks.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <string>
#include <vector>

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

// Blocks one after the other, in place: x and the norm that the first begins with. `following` is the block whose norm
// the last leaves behind, if any. A temporal block has a place for its tokens after the attention, a spatial one has none.
void run_video(const std::vector<const syncflow::VideoBlock*>& blocks, const syncflow::VideoBlock* following,
               const std::vector<const syncflow::Text*>& texts, const std::vector<Address>& attended, std::array<Address, 5> given,
               std::array<std::int64_t, 4> sizes, std::array<std::int64_t, 2> strides, float eps, int threads) {
    const auto [x, normed, rows, text_of_row, rope] = given;
    const auto [R, T, S, num_outputs] = sizes;
    const std::size_t count = blocks.size();
    if (texts.size() != count || attended.size() != count) throw py::value_error("every block needs a text and a place");
    std::vector<syncflow::VideoStep> steps;
    for (std::size_t i = 0; i < count; ++i) {
        check(integers(text_of_row), R, 0, static_cast<std::int64_t>(texts[i]->prompts.size()));
        const bool last = i + 1 == count;
        steps.push_back({blocks[i],
                         {.x = floats(x),
                          .normed = floats(normed),
                          .modulation = floats(rows),
                          .row_stride = strides[0],
                          .frame_stride = strides[1],
                          .text = texts[i],
                          .text_of_row = integers(text_of_row),
                          .rope = attended[i] == 0 ? nullptr : floats(rope),
                          .following = last ? following : blocks[i + 1],
                          .attended = writable(attended[i]),
                          .y = writable(x),
                          .next = writable(normed),
                          .R = R,
                          .T = T,
                          .S = S,
                          .num_outputs = last ? num_outputs : R,
                          .eps = eps}});
    }
    const py::gil_scoped_release released;
    syncflow::run(steps, threads);
}

// Layers one after the other, in place, each with its context, or none, and a place for its tokens after the attention,
// or none.
void run_audio(const std::vector<const syncflow::AudioLayer*>& layers, const std::vector<Address>& contexts,
               const std::vector<Address>& attended, std::array<Address, 5> given, std::array<std::int64_t, 6> sizes, float eps,
               int threads) {
    const auto [x, rope, context_rope, context_of_row, tail] = given;
    const auto [rows, audio, context_rows, keys, beside, num_outputs] = sizes;
    const std::size_t count = layers.size();
    if (contexts.size() != count || attended.size() != count) throw py::value_error("every layer needs a context and a place");
    if (context_rows > 0 && context_of_row != 0) check(integers(context_of_row), rows, -1, context_rows);
    if (context_rows > 0 && context_of_row == 0 && rows > context_rows) throw py::index_error("a row reads what is not there");
    std::vector<syncflow::AudioStep> steps;
    for (std::size_t i = 0; i < count; ++i) {
        steps.push_back({layers[i],
                         {.x = floats(x),
                          .rope = floats(rope),
                          .context = floats(contexts[i]),
                          .context_rope = floats(context_rope),
                          .context_of_row = integers(context_of_row),
                          .tail = floats(tail),
                          .attended = writable(attended[i]),
                          .y = writable(x),
                          .R = rows,
                          .A = audio,
                          .M = keys,
                          .E = beside,
                          .num_outputs = i + 1 == count ? num_outputs : rows,
                          .eps = eps}});
    }
    const py::gil_scoped_release released;
    syncflow::run(steps, threads);
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
        .def("fold", &fold);
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
        }));
    module.def("run_video", &run_video);
    module.def("run_audio", &run_audio);
}
