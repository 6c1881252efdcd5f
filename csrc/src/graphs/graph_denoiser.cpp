#include "graphs/graph_denoiser.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "graphs/module.h"
#include "model/layers.h"
#include "package/safetensors.h"

namespace syncflow::engine {
namespace {

std::vector<std::string> graph_names(Bridge bridge) {
    switch (bridge) {
        case Bridge::adaptor: return {"prepare_text", "prepare_times", "denoise_video", "adapt_video", "denoise_audio"};
        case Bridge::audio_rope: return {"prepare_text", "prepare_times", "denoise_audio", "denoise_video"};
        case Bridge::global_local: return {"prepare_text", "prepare_times", "embed_reference", "denoise_joint"};
    }
    return {};
}

std::string numbered(const std::string& name, std::size_t i) { return name + "_" + std::to_string(i); }

std::vector<std::int64_t> counted(std::int64_t count) {
    std::vector<std::int64_t> rows(size_of(count));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    return rows;
}

// Each of the rows of `size` values, `times` times.
Floats repeated(const Floats& values, std::int64_t size, std::int64_t times) {
    Floats rows;
    rows.reserve(values.size() * size_of(times));
    for (auto row = values.begin(); row != values.end(); row += size) {
        for (std::int64_t i = 0; i < times; ++i) rows.insert(rows.end(), row, row + size);
    }
    return rows;
}

// Rows of an output, one after the other.
Floats gathered(const Tensor& tensor, std::span<const std::int64_t> rows) {
    const auto size = static_cast<std::int64_t>(tensor.values.size()) / std::max<std::int64_t>(tensor.shape[0], 1);
    Floats values;
    values.reserve(rows.size() * size_of(size));
    for (const std::int64_t row : rows) values.insert(values.end(), tensor.values.begin() + row * size, tensor.values.begin() + (row + 1) * size);
    return values;
}

Floats first_rows(Tensor tensor, std::int64_t rows) {
    tensor.values.resize(tensor.values.size() / size_of(tensor.shape[0]) * size_of(rows));
    return std::move(tensor.values);
}

void require_accepted(const std::string& graph, const InputSpec& spec, const TensorView& given) {
    bool accepted = spec.element == given.element && spec.axes.size() == given.shape.size();
    for (std::size_t i = 0; accepted && i < spec.axes.size(); ++i) {
        const auto& [least, most, step] = spec.axes[i];
        const std::int64_t length = given.shape[i];
        accepted = least <= length && length <= most && (length - least) % step == 0;
    }
    if (!accepted) throw Error(Status::invalid_argument, "the graph " + graph + " takes no " + spec.name + " of the shape " + shown(given.shape));
}

}  // namespace

void NamedTensors::view(const std::string& name, std::vector<std::int64_t> shape, const float* values) {
    views_[name] = {.element = Element::float32, .shape = std::move(shape), .data = values};
}

void NamedTensors::keep(const std::string& name, std::vector<std::int64_t> shape, Floats values) {
    floats_.push_back(std::move(values));
    view(name, std::move(shape), floats_.back().data());
}

void NamedTensors::keep(const std::string& name, std::vector<std::int64_t> values) {
    wholes_.push_back(std::move(values));
    views_[name] = {.element = Element::int64, .shape = {static_cast<std::int64_t>(wholes_.back().size())}, .data = wholes_.back().data()};
}

const TensorView* NamedTensors::find(const std::string& name) const {
    const auto found = views_.find(name);
    return found == views_.end() ? nullptr : &found->second;
}

GraphDenoiser::GraphDenoiser(const DDiTConfig& config, Export exported, std::unique_ptr<GraphRuntime> runtime)
    : config_(config), export_(std::move(exported)), runtime_(std::move(runtime)) {
    Weights constants(export_.path / "constants.safetensors");
    null_text_ = constants.take("null_text", {config.text_tokens, config.text_width});
    if (config.bridge == Bridge::global_local) silence_ = constants.take("silence", {1, 1, config.width});
    constants.finish();
}

std::vector<Tensor> GraphDenoiser::run(const std::string& name, const NamedTensors& inputs) const {
    const GraphSpec& spec = export_.graphs.at(name);
    std::vector<TensorView> given;
    for (const InputSpec& input : spec.inputs) {
        const TensorView* const found = inputs.find(input.name);
        if (found == nullptr) throw Error(Status::corrupt, spec.file.string() + " asks for " + input.name + ", which a graph of its name does not read");
        require_accepted(name, input, *found);
        given.push_back(*found);
    }
    try {
        std::unique_ptr<Graph>& graph = loaded_[name];
        if (graph == nullptr) graph = runtime_->load(spec);
        std::vector<Tensor> outputs = graph->run(given);
        if (outputs.size() == spec.outputs.size()) return outputs;
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& error) {
        const std::string message = error.what();
        throw Error(Status::internal, spec.file.string() + " fails: " + message.substr(0, message.find('\n')));
    }
    throw Error(Status::corrupt, spec.file.string() + " has other outputs than its manifest says");
}

ShapeTables GraphDenoiser::tables(const LatentShape& shape, std::span<const double> frame_times) const {
    return {config_, shape, frame_times, rope_frequencies(config_.head_width(), config_.rope_theta), rope_frequencies(config_.audio_head_width(), config_.rope_theta)};
}

std::shared_ptr<const PromptText> GraphDenoiser::condition(const float* states, std::int64_t length, int) const {
    NamedTensors inputs;
    inputs.view("states", {1, config_.text_tokens, config_.text_width}, states);
    std::vector<Tensor> found = run("prepare_text", inputs);
    PromptText text = {.blocks = {}, .keys = std::move(found[0].values), .values = std::move(found[1].values), .length = length, .tokens = {}};
    if (config_.audio_text) text.tokens = std::move(found[2].values);
    text.bytes = static_cast<std::int64_t>((text.keys.size() + text.values.size() + text.tokens.size()) * sizeof(float));
    return std::make_shared<const PromptText>(std::move(text));
}

std::vector<Tensor> GraphDenoiser::run_times(std::span<const float> times, float fps) const {
    const auto count = static_cast<std::int64_t>(times.size());
    NamedTensors inputs;
    inputs.view("t", {count}, times.data());
    inputs.keep("fps", {count}, Floats(times.size(), fps));
    return run("prepare_times", inputs);
}

Modulation GraphDenoiser::modulation(std::span<const float> times, float fps, int) const {
    std::vector<Tensor> found = run_times(times, fps);
    return {.blocks = std::move(found[0].values), .embedding = std::move(found[1].values)};
}

Floats GraphDenoiser::audio_time(std::span<const float> times, int) const { return std::move(run_times(times, 1)[2].values); }

Floats GraphDenoiser::style(std::span<const float> reference, int) const {
    if (reference.empty()) return silence_;
    NamedTensors inputs;
    inputs.view("reference", {1, static_cast<std::int64_t>(reference.size()) / config_.audio_channels, config_.audio_channels}, reference.data());
    return std::move(run("embed_reference", inputs)[0].values);
}

void GraphDenoiser::gather_text(const TextRows& text) const {
    if (text.prompts == prompts_) return;
    keys_.clear();
    values_.clear();
    const std::int64_t size = config_.text_tokens * config_.width;
    for (std::int64_t block = 0; block < 2 * config_.depth; ++block) {
        for (const auto& prompt : text.prompts) {
            keys_.insert(keys_.end(), prompt->keys.begin() + block * size, prompt->keys.begin() + (block + 1) * size);
            values_.insert(values_.end(), prompt->values.begin() + block * size, prompt->values.begin() + (block + 1) * size);
        }
    }
    prompts_ = text.prompts;
}

void GraphDenoiser::add_video(NamedTensors& inputs, const std::string& name, const float* latents, const Modulation& modulation, const TextRows& text,
                              const ShapeTables& tables) const {
    const LatentShape& shape = tables.shape;
    const auto rows = static_cast<std::int64_t>(text.of_row.size()), prompts = static_cast<std::int64_t>(text.prompts.size());
    const std::int64_t width = config_.width, frames = shape.frames;
    inputs.view(name, {rows, config_.video_channels, frames, shape.height, shape.width}, latents);
    inputs.keep("block_modulation", {rows, frames, 6, width}, repeated(modulation.blocks, 6 * width, frames));
    inputs.keep("time_embedding", {rows, frames, width}, repeated(modulation.embedding, width, frames));
    gather_text(text);
    const std::vector<std::int64_t> texts = {2 * config_.depth, prompts, config_.text_tokens, config_.heads, config_.head_width()};
    inputs.view("keys", texts, keys_.data());
    inputs.view("values", texts, values_.data());
    std::vector<std::int64_t> lengths;
    for (const auto& prompt : text.prompts) lengths.push_back(prompt->length);
    inputs.keep("lengths", lengths);
    inputs.keep("text_of_row", text.of_row);
    inputs.view("frame_times", {frames}, tables.frame_times.data());
}

void GraphDenoiser::add_audio(NamedTensors& inputs, const std::string& name, const float* latents, std::span<const float> time_tokens,
                              const TextRows& text, const ShapeTables& tables) const {
    const auto rows = static_cast<std::int64_t>(text.of_row.size());
    inputs.view(name, {rows, tables.shape.audio_tokens, config_.audio_channels}, latents);
    inputs.view("time_token", {rows, config_.width}, time_tokens.data());
    if (!config_.audio_text) return;
    Floats tokens;
    for (const std::int64_t prompt : text.of_row) {
        const Floats& of_row = text.prompts[size_of(prompt)]->tokens;
        tokens.insert(tokens.end(), of_row.begin(), of_row.end());
    }
    inputs.keep("text_tokens", {rows, config_.text_tokens, config_.width}, std::move(tokens));
}

// Graphs want a context where no row reads any: one of two tokens.
void GraphDenoiser::add_contexts(NamedTensors& inputs, const std::string& name, const Context* context, std::int64_t tokens, std::int64_t heads) const {
    const std::int64_t count = context == nullptr ? 1 : context->count, length = context == nullptr ? 2 : tokens;
    const std::vector<std::int64_t> shape = {count, length, 2, heads, config_.width / heads};
    for (std::size_t i = 0; i < size_of(context_layers()); ++i) {
        if (context != nullptr) {
            inputs.view(numbered(name, i), shape, context->layers[i].data());
        } else {
            inputs.keep(numbered(name, i), shape, Floats(size_of(4 * config_.width)));
        }
    }
}

Floats GraphDenoiser::video_pass(const VideoInputs& inputs, int) const {
    const ShapeTables& tables = *inputs.tables;
    NamedTensors given;
    add_video(given, "latents", inputs.latents, inputs.modulation, *inputs.text, tables);
    if (config_.bridge == Bridge::audio_rope) {
        std::vector<std::int64_t> prefixes(inputs.prefix_of_row.begin(), inputs.prefix_of_row.end());
        if (prefixes.empty()) prefixes = counted(static_cast<std::int64_t>(inputs.text->of_row.size()));
        std::vector<std::int64_t> reads(prefixes.size(), -1);
        if (inputs.audio_context != nullptr) reads.assign(inputs.audio_context_of_row.begin(), inputs.audio_context_of_row.end());
        given.keep("prefix_of_row", prefixes);
        given.keep("audio_context_of_row", reads);
        add_contexts(given, "audio_context", inputs.audio_context, tables.shape.audio_tokens, config_.heads);
    }
    std::vector<Tensor> found = run("denoise_video", given);
    if (!inputs.context_rows.empty()) {
        const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(inputs.context_rows.size()), tables.context_tokens, config_.width};
        NamedTensors features;
        features.view("video_token_positions", {tables.context_tokens}, tables.context_positions.data());
        for (std::size_t i = 1; i < found.size(); ++i) features.keep(numbered("feature", i - 1), shape, gathered(found[i], inputs.context_rows));
        const std::vector<Tensor> contexts = run("adapt_video", features);
        for (std::size_t i = 0; i < contexts.size(); ++i) {
            std::copy(contexts[i].values.begin(), contexts[i].values.end(), inputs.context->layers[i].begin() + inputs.kept * context_size(tables));
        }
    }
    return first_rows(std::move(found[0]), inputs.num_outputs);
}

Floats GraphDenoiser::audio_pass(const AudioInputs& inputs, int) const {
    if (config_.bridge == Bridge::global_local) {
        throw Error(Status::unsupported, "the graphs of this model compute no sound alone; the back end native does");
    }
    const ShapeTables& tables = *inputs.tables;
    const auto rows = static_cast<std::int64_t>(inputs.text->of_row.size());
    NamedTensors given;
    add_audio(given, "latents", inputs.latents, inputs.time_tokens, *inputs.text, tables);
    if (config_.bridge == Bridge::adaptor) {
        const bool reads = inputs.video_context != nullptr;
        add_contexts(given, "video_context", inputs.video_context, tables.context_tokens, config_.audio_heads);
        given.keep("video_token_positions", {reads ? tables.context_tokens : 2}, reads ? tables.context_positions : Floats(2));
        given.keep("video_context_of_row", reads ? std::vector(inputs.context_of_row.begin(), inputs.context_of_row.end()) : std::vector<std::int64_t>(size_of(rows), -1));
    }
    std::vector<Tensor> found = run("denoise_audio", given);
    for (std::size_t i = 1; i < found.size() && !inputs.context_rows.empty(); ++i) {
        const Floats contexts = gathered(found[i], inputs.context_rows);
        std::copy(contexts.begin(), contexts.end(), inputs.context->layers[i - 1].begin() + inputs.kept * context_size(tables));
    }
    return first_rows(std::move(found[0]), inputs.num_outputs);
}

Velocities GraphDenoiser::joint_pass(const JointInputs& inputs, int) const {
    const ShapeTables& tables = *inputs.tables;
    NamedTensors given;
    add_video(given, "video_latents", inputs.video_latents, inputs.modulation, *inputs.text, tables);
    add_audio(given, "audio_latents", inputs.audio_latents, inputs.time_tokens, *inputs.text, tables);
    Floats styles;
    for (const Floats* const style : inputs.styles) styles.insert(styles.end(), style->begin(), style->end());
    given.keep("bridged_rows", counted(inputs.bridged));
    given.keep("style", {inputs.bridged, tables.shape.style_tokens, config_.width}, std::move(styles));
    const std::vector<Tensor> found = run("denoise_joint", given);
    return {.video = gathered(found[0], inputs.video_output_rows), .audio = gathered(found[1], inputs.audio_output_rows)};
}

std::unique_ptr<const Denoiser> open_graph_denoiser(const Package& package, const DDiTConfig& config, const BackendOptions& options) {
    Export exported = open_export(package, options.name, graph_names(config.bridge), options.verify);
    std::unique_ptr<GraphRuntime> runtime = load_graph_runtime(options.name, exported.origin, options.threads);
    return std::make_unique<const GraphDenoiser>(config, std::move(exported), std::move(runtime));
}

}  // namespace syncflow::engine
