// Requests with any values, through the C API; arrays have the sizes that their counts say, or are null.
#include <cstring>
#include <string>
#include <vector>

#include "syncflow/syncflow.h"
#include "targets.h"
#include "test_backend.h"

namespace {

using syncflow::fuzz::expect;

syncflow_engine* engine() {
    static syncflow_engine* const only = [] {
        syncflow::test::register_test_backend();
        syncflow_engine_params params;
        syncflow_engine_params_init(&params, sizeof params);
        params.package = "anything";
        params.backend = "test";
        params.host_steps = 1;
        syncflow_engine* opened = nullptr;
        expect(syncflow_engine_open(&params, &opened) == SYNCFLOW_OK, "the engine opens");
        return opened;
    }();
    return only;
}

// Bytes of the input, and zero after its end.
class Input {
   public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    template <typename Value>
    void take(Value& value) {
        const std::size_t count = std::min(sizeof value, size_);
        if (count > 0) std::memcpy(&value, data_, count);  // an empty input may be null
        data_ += count;
        size_ -= count;
    }
    std::string rest() { return {reinterpret_cast<const char*>(data_), size_}; }

   private:
    const std::uint8_t* data_;
    std::size_t size_;
};

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    syncflow_request_params params;
    expect(syncflow_request_params_init(&params, sizeof params) == SYNCFLOW_OK, "init");
    input.take(params.struct_size);
    for (std::int32_t* field : {&params.sound_only, &params.has_audio_seed, &params.takes, &params.steps, &params.branch_interval, &params.width, &params.height,
             &params.priority, &params.preview_interval, &params.preview_frames}) {
        input.take(*field);
    }
    params.struct_size = params.struct_size % 16 == 0 ? params.struct_size % 512 : static_cast<std::uint32_t>(sizeof params);
    if (params.struct_size > sizeof params) params.struct_size = 1U << 30;  // the struct has no more bytes than it has
    params.steps %= 20;
    for (double* field : {&params.seconds, &params.guidance, &params.shift, &params.video_lead, &params.strength, &params.guidance_from, &params.guidance_until}) input.take(*field);
    syncflow_clip clip = {};
    clip.struct_size = sizeof clip;
    std::uint8_t flags = 0;
    input.take(flags);
    input.take(clip.fps);
    input.take(clip.sample_rate);
    for (std::int64_t* field : {&clip.num_frames, &clip.height, &clip.width, &clip.num_samples, &clip.latent_frames}) input.take(*field);
    std::vector<std::uint8_t> frames;
    std::vector<float> waveform;
    if ((flags & 1) != 0) {  // arrays that are there
        for (std::int64_t* field : {&clip.num_frames, &clip.height, &clip.width, &clip.num_samples}) *field %= 32;
        frames.resize(static_cast<std::size_t>(std::max(std::int64_t{1}, clip.num_frames * clip.height * clip.width * 3)));
        waveform.resize(32, 0.5F);
        clip.frames = frames.data();
        clip.waveform = waveform.data();
    }
    if ((flags & 2) != 0) params.video = &clip;
    if ((flags & 4) != 0) params.reference = &clip;
    const std::string prompt = input.rest();
    params.prompt = prompt.c_str();
    if ((flags & 8) != 0) params.negative_prompt = prompt.c_str();

    syncflow_request* request = nullptr;
    const syncflow_status status = syncflow_request_submit(engine(), &params, &request);
    expect((status == SYNCFLOW_OK) == (request != nullptr), "a handle for what is accepted");
    expect(status == SYNCFLOW_OK || *syncflow_last_error() != 0, "a failure has a sentence");
    if (request == nullptr) return 0;
    const syncflow_status ended = syncflow_request_wait(request, -1);
    expect(ended == SYNCFLOW_OK || *syncflow_last_error() != 0, "a failure has a sentence");
    expect(syncflow_request_close(request) == SYNCFLOW_OK, "close");
    return 0;
}
