// Blocks on tensors of PyTorch, whose shapes are checked here. Weights come as arrays.
#include "syncflow/blocks.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "tensor_view.h"

namespace py = pybind11;

namespace {

using namespace syncflow::python;

using Floats = TensorView<const float>;
using Output = TensorView<float>;
using Integers = TensorView<const std::int64_t>;
using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Arrays = std::map<std::string, Array>;

const float* values_of(const Arrays& arrays, const std::string& name, std::int64_t size) {
    const Array& found = arrays.at(name);
    if (found.size() != size) {
        throw py::value_error(name + " has " + std::to_string(found.size()) + " values; expected " + std::to_string(size));
    }
    return found.data();
}

syncflow::LinearWeights linear_weights(const Arrays& arrays, const std::string& name, std::int64_t out, std::int64_t in) {
    return {.weight = values_of(arrays, name + ".weight", out * in), .bias = values_of(arrays, name + ".bias", out)};
}

void require_supported(std::int64_t width, std::int64_t heads, std::int64_t hidden) {
    if (syncflow::Block::supports(width, heads, hidden)) return;
    throw py::value_error("blocks take widths and MLPs that are multiples of 32 and heads that are multiples of 16 wide");
}

// The weights of a block under the names of its parts: "attn.qkv.weight", "attn.qkv.bias", …
syncflow::BlockWeights block_weights(const Arrays& arrays, std::int64_t width, std::int64_t heads, std::int64_t hidden) {
    require_supported(width, heads, hidden);
    const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in) { return linear_weights(arrays, name, out, in); };
    return {.width = width,
            .heads = heads,
            .hidden = hidden,
            .qkv = linear("attn.qkv", 3 * width, width),
            .proj = linear("attn.proj", width, width),
            .q_norm = values_of(arrays, "attn.q_norm.weight", width / heads),
            .k_norm = values_of(arrays, "attn.k_norm.weight", width / heads),
            .cross_query = linear("cross_attn.q_linear", width, width),
            .cross_key_value = linear("cross_attn.kv_linear", 2 * width, width),
            .cross_out = linear("cross_attn.proj", width, width),
            .up = linear("mlp.fc1", hidden, width),
            .down = linear("mlp.fc2", width, hidden)};
}

syncflow::Adaptor make_adaptor(const Arrays& arrays, std::int64_t width, std::int64_t heads, float eps) {
    require_supported(width, heads, width);
    return syncflow::Adaptor({.width = width,
                              .heads = heads,
                              .qkv = linear_weights(arrays, "attn.qkv", 3 * width, width),
                              .proj = linear_weights(arrays, "attn.proj", width, width),
                              .q_norm = values_of(arrays, "attn.q_norm.weight", width / heads),
                              .k_norm = values_of(arrays, "attn.k_norm.weight", width / heads),
                              .norm = linear_weights(arrays, "norm", width, 1),
                              .linear = linear_weights(arrays, "linear", width, width),
                              .key_value = linear_weights(arrays, "kv_linear", 2 * width, width),
                              .norm_eps = eps});
}

syncflow::VideoBlock make_video_block(const Arrays& arrays, std::int64_t width, std::int64_t heads, std::int64_t hidden) {
    return syncflow::VideoBlock(block_weights(arrays, width, heads, hidden), values_of(arrays, "scale_shift_table", 6 * width));
}

syncflow::AudioLayer make_audio_layer(const Arrays& arrays, std::int64_t width, std::int64_t heads, std::int64_t hidden, float eps) {
    std::vector<float> norms;
    for (const char* name : {"norm1", "norm2", "norm3"}) {
        for (const char* part : {".weight", ".bias"}) {
            const float* const values = values_of(arrays, std::string(name) + part, width);
            norms.insert(norms.end(), values, values + width);
        }
    }
    return syncflow::AudioLayer(block_weights(arrays, width, heads, hidden), norms.data(), eps);
}

void require_range(const Integers& index, std::int64_t least, std::int64_t end) {
    for (std::int64_t i = 0; i < index.sizes[0]; ++i) {
        if (index.data[i] < least || index.data[i] >= end) throw py::index_error("a row reads what is not there");
    }
}

// keys, values (P, M, n, d), lengths (P).
syncflow::Text prepare_text(const syncflow::VideoBlock& block, const Floats& keys, const Floats& values, const Integers& lengths) {
    require_shape(keys, "keys", {any, any, block.heads, block.width / block.heads});
    require_shape(values, "values", {keys.sizes[0], keys.sizes[1], block.heads, block.width / block.heads});
    require_contiguous(keys, "a key", 2);
    require_contiguous(values, "a value", 2);
    if (keys.strides != values.strides) throw py::value_error("keys and values have different strides");
    require(lengths, "lengths", {keys.sizes[0]});
    require_range(lengths, 0, keys.sizes[1] + 1);
    const py::gil_scoped_release released;
    return block.prepare_text(keys.data, values.data, keys.strides[0], keys.strides[1], lengths.data, keys.sizes[0]);
}

// features (R, T, S, D), rows (C), rope (M, d / 2, 2) -> context (C, M, 2, n, d).
void run_adaptor(const syncflow::Adaptor& adaptor, const Floats& features, const Integers& rows, const Floats& rope, const Output& context,
                 bool pooled, float eps, int threads) {
    require(features, "features", {any, any, any, adaptor.width});
    require(rows, "rows", {any});
    const std::int64_t contexts = rows.sizes[0], frames = features.sizes[1], tokens = features.sizes[2];
    const std::int64_t keys = pooled ? frames : frames * tokens, head_width = adaptor.width / adaptor.heads;
    require(rope, "rope", {keys, head_width / 2, 2});
    require(context, "context", {contexts, keys, 2, adaptor.heads, head_width});
    require_range(rows, 0, features.sizes[0]);
    const py::gil_scoped_release released;
    adaptor({.features = features.data,
             .rows = rows.data,
             .pooled = pooled,
             .rope = rope.data,
             .context = context.data,
             .C = contexts,
             .T = frames,
             .S = tokens,
             .eps = eps},
            threads);
}

// Blocks one after the other, in place: x (R, T, S, D), and `normed`, the norm that the first block projects. modulation
// (R, T or 1, 6, D), text_of_row (R), rope (T, d / 2, 2). `following`, if any, is the block whose norm the last one
// leaves in `normed`. `attended` is a tensor like x for every temporal block and None for a spatial one.
void run_video(const std::vector<const syncflow::VideoBlock*>& blocks, const syncflow::VideoBlock* following,
               const std::vector<const syncflow::Text*>& texts, const std::vector<Output>& attended, const Output& x,
               const Output& normed, const Floats& modulation, const Integers& text_of_row, const Floats& rope,
               std::int64_t num_outputs, float eps, int threads) {
    const std::size_t count = blocks.size();
    if (count == 0 || texts.size() != count || attended.size() != count) {
        throw py::value_error("every block needs a text and an entry of attended");
    }
    const std::int64_t width = blocks[0]->width, head_width = width / blocks[0]->heads;
    require(x, "x", {any, any, any, width});
    const std::int64_t R = x.sizes[0], T = x.sizes[1], S = x.sizes[2];
    require(normed, "normed", {R, T, S, width});
    require_shape(modulation, "modulation", {R, modulation.sizes[1] == 1 ? 1 : T, 6, width});
    require_contiguous(modulation, "the modulation of a row and frame", 2);
    require(text_of_row, "text_of_row", {R});
    require(rope, "rope", {T, head_width / 2, 2});
    for (const Output& one : attended) require_if_defined(one, "attended", {R, T, S, width});
    if (num_outputs < 0 || num_outputs > R) throw py::value_error("num_outputs is not from 0 to the number of rows");
    std::vector<syncflow::VideoStep> steps;
    steps.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        if (blocks[i]->width != width || blocks[i]->heads * head_width != width) throw py::value_error("blocks differ in their sizes");
        require_range(text_of_row, 0, static_cast<std::int64_t>(texts[i]->prompts.size()));
        const bool last = i + 1 == count;
        steps.push_back({.block = blocks[i],
                         .call = {.x = x.data,
                                  .normed = normed.data,
                                  .modulation = modulation.data,
                                  .row_stride = modulation.strides[0],
                                  .frame_stride = modulation.sizes[1] == 1 ? 0 : modulation.strides[1],
                                  .text = texts[i],
                                  .text_of_row = text_of_row.data,
                                  .rope = attended[i].defined ? rope.data : nullptr,
                                  .following = last ? following : blocks[i + 1],
                                  .attended = attended[i].data,
                                  .y = x.data,
                                  .next = normed.data,
                                  .R = R,
                                  .T = T,
                                  .S = S,
                                  .num_outputs = last ? num_outputs : R,
                                  .eps = eps}});
    }
    const py::gil_scoped_release released;
    syncflow::run(steps, threads);
}

// Layers one after the other, in place: x (R, A, D), rope (A, d / 2, 2), tail (R, E, D). Every layer has a context (C, M,
// 2, n, d), at context_rope (M, d / 2, 2) and context_of_row (R), or None; and a tensor like x for its tokens after the
// self-attention, or None.
void run_audio(const std::vector<const syncflow::AudioLayer*>& layers, const std::vector<Floats>& contexts,
               const std::vector<Output>& attended, const Output& x, const Floats& rope, const Floats& context_rope,
               const Integers& context_of_row, const Floats& tail, std::int64_t num_outputs, float eps, int threads) {
    const std::size_t count = layers.size();
    if (count == 0 || contexts.size() != count || attended.size() != count) {
        throw py::value_error("every layer needs an entry of contexts and of attended");
    }
    const std::int64_t width = layers[0]->width, heads = layers[0]->heads, head_width = width / heads;
    require(x, "x", {any, any, width});
    const std::int64_t R = x.sizes[0], A = x.sizes[1];
    require(rope, "rope", {A, head_width / 2, 2});
    require(tail, "tail", {R, any, width});
    const std::int64_t context_rows = contexts[0].defined ? contexts[0].sizes[0] : 0, M = contexts[0].defined ? contexts[0].sizes[1] : 0;
    for (const Floats& context : contexts) require_if_defined(context, "context", {context_rows, M, 2, heads, head_width});
    for (const Output& one : attended) require_if_defined(one, "attended", {R, A, width});
    if (context_rows > 0) {
        require(context_rope, "context_rope", {M, head_width / 2, 2});
        require_if_defined(context_of_row, "context_of_row", {R});
        if (context_of_row.defined) require_range(context_of_row, -1, context_rows);
        if (!context_of_row.defined && R > context_rows) throw py::index_error("a row reads what is not there");
    }
    if (num_outputs < 0 || num_outputs > R) throw py::value_error("num_outputs is not from 0 to the number of rows");
    std::vector<syncflow::AudioStep> steps;
    steps.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        if (layers[i]->width != width || layers[i]->heads != heads) throw py::value_error("layers differ in their sizes");
        steps.push_back({.block = layers[i],
                         .call = {.x = x.data,
                                  .rope = rope.data,
                                  .context = contexts[i].data,
                                  .context_rope = context_rope.data,
                                  .context_of_row = context_of_row.data,
                                  .tail = tail.data,
                                  .attended = attended[i].data,
                                  .y = x.data,
                                  .R = R,
                                  .A = A,
                                  .M = M,
                                  .E = tail.sizes[1],
                                  .num_outputs = i + 1 == count ? num_outputs : R,
                                  .eps = eps}});
    }
    const py::gil_scoped_release released;
    syncflow::run(steps, threads);
}

}  // namespace

void bind_blocks(py::module_& module) {
    module.def("supports", &syncflow::Block::supports);
    py::class_<syncflow::Adaptor>(module, "Adaptor").def(py::init(&make_adaptor)).def("__call__", &run_adaptor);
    py::class_<syncflow::Text>(module, "Text");
    py::class_<syncflow::VideoBlock>(module, "VideoBlock").def(py::init(&make_video_block)).def("prepare_text", &prepare_text);
    py::class_<syncflow::AudioLayer>(module, "AudioLayer").def(py::init(&make_audio_layer));
    module.def("run_video", &run_video);
    module.def("run_audio", &run_audio);
}
