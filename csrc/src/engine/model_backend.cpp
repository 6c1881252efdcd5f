#include "engine/model_backend.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <sstream>
#include <thread>
#include <tuple>
#include <utility>

#include "graphs/graph_denoiser.h"
#include "model/ddit.h"
#include "package/settings.h"
#include "sampling/batch.h"
#include "syncflow/noise.h"

namespace syncflow::engine {
namespace {

constexpr std::size_t RECENT = 16;  // texts, schedules and shapes that are kept
constexpr std::uint32_t VIDEO_STREAM = 0, AUDIO_STREAM = 1;  // of the noise of a seed

int thread_count(int asked) {
    if (asked < 0) throw Error(Status::invalid_argument, "threads is " + std::to_string(asked) + "; it must not be negative");
    return asked > 0 ? asked : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// How many parameters, and what computes them.
std::pair<std::int64_t, std::unique_ptr<const Denoiser>> read_ddit(const Package& package, const BackendOptions& options) {
    const std::filesystem::path folder = package.path / "ddit", file = folder / "config.json";
    DDiTConfig config;
    try {
        config = read_ddit_config(read_json_object(file));
    } catch (const Error& error) {
        throw Error(Status::corrupt, file.string() + " describes no model: " + error.what());
    }
    Weights weights(folder / "diffusion_pytorch_model.safetensors");
    const std::int64_t parameters = weights.elements();
    if (options.name == NATIVE) return {parameters, std::make_unique<const DDiT>(config, weights)};
    return {parameters, open_graph_denoiser(package, config, options)};
}

Floats noise(std::uint64_t seed, std::uint32_t stream, std::int64_t count) {
    Floats values(size_of(count));
    fill_normal({.seed = seed, .stream = stream, .substream = 0}, 0, values.data(), values.size());
    return values;
}

// Times as a key of what is made of them.
std::string bytes_of(const std::vector<float>& times) { return {reinterpret_cast<const char*>(times.data()), times.size() * sizeof(float)}; }

// The times of all steps, and time 1.
std::vector<float> times_of(const std::vector<double>& grid) {
    std::vector<float> times(grid.begin(), grid.end());
    times.back() = 1;
    return times;
}

void require_finite(const Floats& latents) {
    for (const float value : latents) {
        if (std::isfinite(value)) continue;
        throw Error(Status::internal, "the model computed NaN or infinity; its weights, the guidance or the precision are out of range");
    }
}

const ModelRequest& own(const RequestState& request) {
    const auto* const native = dynamic_cast<const ModelRequest*>(&request);
    if (native == nullptr) throw Error(Status::invalid_argument, "the request is one of another back end");
    return *native;
}

std::int64_t bytes(std::initializer_list<std::size_t> floats) {
    std::size_t total = 0;
    for (const std::size_t count : floats) total += count;
    return static_cast<std::int64_t>(total * sizeof(float));
}

// A component of a package, of which every error that is no missing file or foreign class is a damaged package.
template <typename Component>
Component read_component(const std::filesystem::path& folder) {
    try {
        return Component(folder);
    } catch (const Error& error) {
        if (error.status() != Status::invalid_argument) throw;
        throw Error(Status::corrupt, (folder / "config.json").string() + " describes no component: " + error.what());
    }
}

}  // namespace

std::int64_t ModelRequest::memory() const {
    std::int64_t total = bytes({3 * job.video.latents.size(), job.silence.size(), job.style.size()});
    for (const LatentState& take : job.takes) total += bytes({3 * take.latents.size()});
    for (const KeptContext& kept : job.contexts) {
        for (const Floats& layer : kept.layers) total += bytes({layer.size()});
    }
    if (media) total += static_cast<std::int64_t>(media->clip.frames.size()) + bytes({media->clip.waveform.size(), media->clip.latents.size()});
    return total;
}

ModelBackend::ModelBackend(const Package& package, const BackendOptions& options) : ModelBackend(package, read_components(package, options), options) {}

// The d-DiT beside the others, where there is a thread for it.
ModelBackend::Components ModelBackend::read_components(const Package& package, const BackendOptions& options) {
    auto ddit = std::async(options.threads > 1 ? std::launch::async : std::launch::deferred, [&] { return read_ddit(package, options); });
    VideoVae video = read_component<VideoVae>(package.path / "video_vae");
    AudioVae audio = read_component<AudioVae>(package.path / "audio_vae");
    TextEncoder text = read_component<TextEncoder>(package.path / "text_encoder");
    auto [parameters, model] = ddit.get();
    return {.parameters = parameters, .ddit = std::move(model), .video = std::move(video), .audio = std::move(audio), .text = std::move(text)};
}

ModelBackend::ModelBackend(const Package& package, Components components, const BackendOptions& options)
    : hash_(package.digest),
      config_(package.config),
      threads_(options.threads),
      model_(std::move(components.ddit)),
      video_(std::move(components.video)),
      audio_(std::move(components.audio)),
      text_(std::move(components.text)),
      prompts_(RECENT),
      states_(RECENT),
      video_times_(RECENT),
      audio_times_(RECENT),
      tables_(RECENT) {
    check_components(package);
    const SequenceConfig& sequence = config_.sequence;
    const SamplingConfig& sampling = config_.sampling;
    info_ = {.name = config_.name,
             .hash = hash_,
             .backend = options.name,
             .bridge = name_of(config_.ddit.bridge),
             .audio_reads_video = config_.ddit.audio_reads_video(),
             .video_reads_audio = config_.ddit.video_reads_audio(),
             .audio_text = config_.ddit.audio_text,
             .seconds = sequence.seconds,
             .width = sequence.width,
             .height = sequence.height,
             .fps = sequence.fps,
             .sample_rate = sequence.sample_rate,
             .size_multiple = sequence.space_factor * sequence.patch,
             .max_side = MAX_SIDE,
             .max_seconds = MAX_SECONDS,
             .steps = sampling.steps,
             .max_steps = MAX_STEPS,
             .max_takes = MAX_TAKES,
             .text_tokens = config_.ddit.text_tokens,
             .guidance = sampling.guidance,
             .shift = sampling.shift,
             .video_lead = sampling.video_lead,
             .sync_guidance = sampling.sync_guidance,
             .sync_cfg_audio = sampling.sync_cfg_audio,
             .sync_cfg_video = sampling.sync_cfg_video,
             .latent_channels = config_.ddit.video_channels,
             .audio_channels = config_.ddit.audio_channels,
             .time_factor = sequence.time_factor,
             .space_factor = sequence.space_factor,
             .audio_hop = sequence.audio_hop,
             .parameters = components.parameters,
             .weight_bytes = components.parameters * static_cast<std::int64_t>(sizeof(float))};
}

// Whether the parts go together.
void ModelBackend::check_components(const Package& package) const {
    const std::string file = (package.path / "model_index.json").string();
    const DDiTConfig& ddit = config_.ddit;
    const SequenceConfig& sequence = config_.sequence;
    if (!(model_->config() == ddit)) throw Error(Status::corrupt, file + " says another ddit than the components");
    struct Number {
        const char* name;
        std::int64_t found, said;
    };
    for (const Number& number : {Number{"ddit.video_channels", video_.channels(), ddit.video_channels},
                                 Number{"ddit.audio_channels", audio_.channels(), ddit.audio_channels},
                                 Number{"ddit.text_width", text_.width(), ddit.text_width},
                                 Number{"ddit.text_tokens", text_.max_tokens(), ddit.text_tokens},
                                 Number{"ddit.patch", ddit.patch, sequence.patch},
                                 Number{"sequence.time_factor", video_.time_factor(), sequence.time_factor},
                                 Number{"sequence.space_factor", video_.space_factor(), sequence.space_factor},
                                 Number{"sequence.audio_hop", audio_.hop(), sequence.audio_hop},
                                 Number{"sequence.sample_rate", audio_.sample_rate(), sequence.sample_rate}}) {
        if (number.found == number.said) continue;
        throw Error(Status::corrupt, file + " says another " + number.name + " than the components (" + std::to_string(number.said) + ", and " +
                                         std::to_string(number.found) + " there)");
    }
}

std::unique_ptr<RequestState> ModelBackend::prepare(const Request& request) {
    validate(request);
    auto made = std::make_unique<ModelRequest>();
    made->job.plan = plan_guidance(request, config_);
    made->task = task_of(request);
    std::tie(made->media, made->sequence) = read_media(request, config_.sequence);
    const std::vector<float> reference = read_reference(request, config_.sequence);
    for (std::int64_t take = 0; take < request.takes; ++take) {
        made->audio_seeds.push_back(request.audio_seed.value_or(request.seed) + static_cast<std::uint64_t>(take));
    }
    KnownLatents known;
    if (made->media) known = known_latents(*made->media, made->sequence, config_.ddit.bridge, request.strength, video_, audio_, hash_, threads_);
    Job& job = made->job;
    if (config_.ddit.bridge == Bridge::global_local) {
        job.style = model_->style(reference.empty() ? Floats() : audio_.encode(reference, threads_), threads_);
    }
    if (job.plan.any(&Branch::muted)) {
        job.silence = audio_.encode(std::vector<float>(size_of(made->sequence.samples())), threads_);
    }
    read_texts(request, job);
    made->request = request;
    begin(*made, known, schedule_of(request, made->task, known));
    for (auto* const media : {&made->request.video, &made->request.image, &made->request.extend, &made->request.audio, &made->request.reference}) media->reset();
    return made;
}

Schedule ModelBackend::schedule_of(const Request& request, Task task, const KnownLatents& known) const {
    const SamplingConfig& sampling = config_.sampling;
    const Schedule times = schedule(request.steps.value_or(sampling.steps), request.shift.value_or(sampling.shift), request.video_lead.value_or(sampling.video_lead));
    if (task == Task::video_to_audio) return times.known_video();
    if (task == Task::audio_to_video) return times.known_audio();
    if (task == Task::text_to_audio) return times.without_video();
    return known.video && known.video->start ? times.after(*known.video->start) : times;
}

std::shared_ptr<const PromptText> ModelBackend::prompt_text(const std::string& prompt) {
    const auto states = states_(prompt, [&] { return std::make_shared<const TextEncoder::States>(text_.encode(prompt, threads_)); });
    return prompts_("prompt " + prompt, [&] { return model_->condition(states->values.data(), states->length, threads_); });
}

std::shared_ptr<const PromptText> ModelBackend::null_text(std::int64_t length) {
    return prompts_("null " + std::to_string(length), [&] { return model_->condition(model_->null_text().data(), length, threads_); });
}

// A prompt, and what stands for its absence: the negative prompt, or the null text cut to the length of the prompt.
void ModelBackend::read_texts(const Request& request, Job& job) {
    std::int64_t length = config_.ddit.text_tokens;
    if (!blank(request.prompt)) {
        length = static_cast<std::int64_t>(byte_tokens(request.prompt, text_.max_tokens()).size());
        job.prompt = prompt_text(request.prompt);
    }
    job.absent = request.negative_prompt ? prompt_text(*request.negative_prompt) : null_text(length);
    if (job.prompt == nullptr) job.prompt = null_text(length);
}

void ModelBackend::begin(ModelRequest& made, const KnownLatents& known, const Schedule& schedule) {
    Job& job = made.job;
    const SequenceConfig& sequence = made.sequence;
    const std::int64_t style = static_cast<std::int64_t>(job.style.size()) / config_.ddit.width;
    const LatentShape shape(sequence, style);
    made.shape_ = {shape.frames, shape.padding, shape.height, shape.width, shape.audio_tokens, shape.style_tokens};
    std::string key;
    for (const std::int64_t side : made.shape_) key += std::to_string(side) + " ";
    job.tables = tables_(key, [&] { return std::make_shared<const ShapeTables>(model_->tables(shape, sequence.frame_times())); });
    // A modality that is given whole and clean stands at time 1 throughout.
    const auto grid_of = [](const std::vector<double>& times, const std::optional<Known>& given) {
        return given && given->clean && given->mask.empty() && !given->start ? std::vector<double>(times.size(), 1.0) : times;
    };
    const std::vector<double> video_grid = grid_of(schedule.video, known.video), audio_grid = grid_of(schedule.audio, known.audio);
    const auto [video_phases, audio_phases] = cache_phases(job.plan, video_grid, audio_grid);
    const std::vector<float> video_times = times_of(video_grid), audio_times = times_of(audio_grid);
    const auto fps = static_cast<float>(sequence.fps);
    job.video_times = video_times_(bytes_of(video_times), [&] { return std::make_shared<const Modulation>(model_->modulation(video_times, fps, threads_)); });
    job.audio_times = audio_times_(bytes_of(audio_times), [&] { return std::make_shared<const Floats>(model_->audio_time(audio_times, threads_)); });
    const std::int64_t channels = config_.ddit.video_channels, size = shape.frames * shape.height * shape.width;
    job.video = {noise(made.request.seed, VIDEO_STREAM, channels * size), video_grid, channels, shape.frames, known.video ? &*known.video : nullptr, video_phases};
    for (const std::uint64_t seed : made.audio_seeds) {
        job.takes.emplace_back(noise(seed, AUDIO_STREAM, shape.audio_tokens * config_.ddit.audio_channels), audio_grid, 1, shape.audio_tokens,
                               known.audio ? &*known.audio : nullptr, audio_phases);
    }
}

void ModelBackend::step(std::span<RequestState* const> requests) {
    std::vector<ModelRequest*> waiting;
    for (RequestState* const request : requests) {
        own(*request);
        if (!request->done()) waiting.push_back(static_cast<ModelRequest*>(request));
    }
    while (!waiting.empty()) {
        const std::vector<std::int64_t> shape = waiting.front()->shape();
        std::vector<Job*> jobs;
        const auto others = std::stable_partition(waiting.begin(), waiting.end(), [&](const ModelRequest* one) { return one->shape() == shape; });
        for (auto one = waiting.begin(); one != others; ++one) jobs.push_back(&(*one)->job);
        Batch(*model_, jobs, threads_).step();
        waiting.erase(waiting.begin(), others);
    }
}

std::vector<Clip> ModelBackend::decode(const RequestState& state) {
    const ModelRequest& request = own(state);
    if (!request.done()) {
        throw Error(Status::invalid_argument, "the request has done " + std::to_string(request.step()) + " of " + std::to_string(request.num_steps()) + " steps; it is decoded after the last");
    }
    const SequenceConfig& sequence = request.sequence;
    const LatentShape& shape = request.job.tables->shape;
    Clip shown;
    shown.height = sequence.height;
    shown.width = sequence.width;
    shown.fps = static_cast<double>(sequence.fps);
    shown.sample_rate = sequence.sample_rate;
    if (request.task != Task::text_to_audio) {
        const Floats& latents = request.job.video.latents;
        require_finite(latents);
        shown.num_frames = sequence.frames();
        shown.latents.assign(latents.begin(), latents.end());
        shown.latent_frames = shape.frames;
        shown.latent_height = shape.height;
        shown.latent_width = shape.width;
        shown.frames = request.task == Task::video_to_audio ? request.media->clip.frames
                                                            : video_.decode(latents.data(), shape.frames, shape.height, shape.width, shown.num_frames, threads_);
    }
    std::vector<Clip> clips;
    for (std::size_t take = 0; take < request.job.takes.size(); ++take) {
        Clip clip = shown;
        const Floats& latents = request.job.takes[take].latents;
        require_finite(latents);
        clip.waveform = request.task == Task::audio_to_video ? request.media->clip.waveform : audio_.decode(latents.data(), shape.audio_tokens, sequence.samples(), threads_);
        if (request.task == Task::continuation) restore_known(*request.media, sequence, clip);
        clip.provenance = to_json(provenance(request.request, request.task, config_, hash_, request.audio_seeds[take]));
        clips.push_back(std::move(clip));
    }
    return clips;
}

Preview ModelBackend::preview(const RequestState& state, bool frames) {
    const ModelRequest& request = own(state);
    const LatentShape& shape = request.job.tables->shape;
    const Job& job = request.job;
    Preview preview = {.video = {job.video.latents.begin(), job.video.latents.end()},
                       .channels = config_.ddit.video_channels,
                       .latent_frames = shape.frames,
                       .latent_height = shape.height,
                       .latent_width = shape.width,
                       .audio = {job.takes[0].latents.begin(), job.takes[0].latents.end()},
                       .audio_tokens = shape.audio_tokens,
                       .audio_channels = config_.ddit.audio_channels,
                       .video_time = job.video.time(),
                       .audio_time = job.takes[0].time(),
                       .frames = {}};
    if (frames && request.task != Task::text_to_audio) {
        const Floats& expected = job.video.time() >= 1 ? job.video.latents : job.video.estimate;
        preview.num_frames = request.sequence.frames();
        preview.height = request.sequence.height;
        preview.width = request.sequence.width;
        preview.frames = video_.decode(expected.data(), shape.frames, shape.height, shape.width, preview.num_frames, threads_);
    }
    return preview;
}

const std::vector<std::string>& backend_names() {
    static const std::vector<std::string> all = [] {
        std::vector<std::string> names = {NATIVE};
        std::istringstream runtimes(SYNCFLOW_GRAPH_RUNTIMES);
        for (std::string name; std::getline(runtimes, name, ',');) names.push_back(name);
        return names;
    }();
    return all;
}

std::unique_ptr<Backend> open_backend(const std::filesystem::path& path, const BackendOptions& options) {
    const std::vector<std::string>& names = backend_names();
    if (std::find(names.begin(), names.end(), options.name) == names.end()) {
        std::string all;
        for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
        throw Error(Status::unsupported, "there is no back end " + options.name + "; this build has " + all);
    }
    BackendOptions resolved = options;
    resolved.threads = thread_count(options.threads);
    return std::make_unique<ModelBackend>(open_package(path, options.verify, resolved.threads), resolved);
}

}  // namespace syncflow::engine
