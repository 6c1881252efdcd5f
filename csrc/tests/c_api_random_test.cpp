// 10,000 random requests, cancels and wrong inputs through the C API, from eight threads that share some engines and own others.
// Run it under the sanitizers. `c_api_random_test COUNT SEED` makes more.
#include <malloc.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "syncflow/syncflow.h"
#include "test_backend.h"

namespace {

std::atomic<std::int64_t> allocated{0};  // bytes, by C++

// Not inline: the compiler takes free() after operator new for a mistake.
[[gnu::noinline]] void release(void* memory) {
    allocated -= static_cast<std::int64_t>(malloc_usable_size(memory));
    std::free(memory);
}

}  // namespace

void* operator new(std::size_t size) {
    void* const memory = std::malloc(size == 0 ? 1 : size);
    if (memory == nullptr) throw std::bad_alloc();
    allocated += static_cast<std::int64_t>(malloc_usable_size(memory));
    return memory;
}

void operator delete(void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }

namespace {

using namespace syncflow::test;

constexpr int THREADS = 8;
constexpr std::array<const char*, 12> PROMPTS = {"a ball", "", "slow", "fail in prepare", "fail in step 1", "fail in step 2", "fail in decode", "fail in preview",
    "no memory", "\xff\xfe", "\xf0\x9f\x8e\xb5 music", "a much longer sentence about a ball that bounces on a floor"};

// Handles that any thread uses, also after another has closed them: the last of all that there were.
template <typename Handle>
class Shared {
   public:
    void add(Handle* handle) {
        const std::lock_guard lock(mutex_);
        handles_[all_.size() % handles_.size()] = handle;
        all_.push_back(handle);
    }
    std::vector<Handle*> all() const { return all_; }
    Handle* any(Random& random) {
        const std::lock_guard lock(mutex_);
        return handles_[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(handles_.size())))];
    }

   private:
    std::mutex mutex_;
    std::array<Handle*, 24> handles_ = {};
    std::vector<Handle*> all_;
};

struct World {
    Shared<syncflow_engine> engines;
    Shared<syncflow_request> requests;
    std::atomic<std::int64_t> submitted{0}, accepted{0}, finished{0}, refused{0};
};

// Every call may fail, with a status that exists and a sentence.
syncflow_status check(syncflow_status status, World& world) {
    expect(status >= SYNCFLOW_OK && status <= SYNCFLOW_INTERNAL, "a status that exists");
    if (status != SYNCFLOW_OK) {
        expect(*syncflow_last_error() != 0, "a failure has a sentence");
        ++world.refused;
    }
    return status;
}

std::int32_t random_int(Random& random) { return static_cast<std::int32_t>(random.pick({0, 0, 1, 2, 3, 8, 16, 24, 64, -1, 1000, 1'000'000, INT32_MIN, INT32_MAX})); }

double random_double(Random& random) {
    constexpr double VALUES[] = {SYNCFLOW_DEFAULT, SYNCFLOW_DEFAULT, 0, 1, 0.5, -1, 1e9, -1e300, 1e-300, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()};
    return VALUES[random.below(static_cast<std::int64_t>(std::size(VALUES)))];
}

void submit(World& world, Random& random) {
    static const std::vector<std::uint8_t> frames(4 * 8 * 8 * 3, 100);
    static const std::vector<float> waveform(500, 0.25F);
    // A struct_size promises that so many bytes are there.
    struct {
        syncflow_request_params params;
        std::array<unsigned char, 4096> later;
    } given = {};
    syncflow_request_params& params = given.params;
    check(syncflow_request_params_init(&params, sizeof params), world);
    given.later[0] = random.below(2) == 0 ? 1 : 0;
    params.prompt = PROMPTS[static_cast<std::size_t>(random.below(PROMPTS.size()))];
    params.seed = static_cast<std::uint64_t>(random.below(100));
    params.steps = static_cast<std::int32_t>(random.pick({0, 1, 2, 3, 5, -1}));
    params.width = params.height = static_cast<std::int32_t>(random.pick({0, 8, 16, 24, 7, 64}));
    if (random.below(4) == 0) params.takes = random_int(random) % 70;
    if (random.below(4) == 0) params.negative_prompt = PROMPTS[static_cast<std::size_t>(random.below(PROMPTS.size()))];
    if (random.below(4) == 0) params.priority = random_int(random);
    if (random.below(4) == 0) params.timeout_ms = random.pick({0, 1, 5, 1000, -1});
    if (random.below(4) == 0) params.guidance = random_double(random);
    if (random.below(8) == 0) params.sound_only = random_int(random);
    if (random.below(16) == 0) params.struct_size = static_cast<std::uint32_t>(random_int(random));
    if (random.below(4) == 0) params.preview_interval = random_int(random) % 4;
    params.preview_frames = random.coin() ? 1 : 0;
    syncflow_clip clip = {.struct_size = sizeof clip, .sample_rate = 8000, .fps = 8, .frames = frames.data(), .num_frames = 4, .height = 8, .width = 8,
        .waveform = waveform.data(), .num_samples = 500, .provenance = nullptr, .latents = nullptr, .num_latents = 0, .latent_frames = 0, .latent_height = 0, .latent_width = 0};
    if (random.below(4) == 0) {
        if (random.below(3) == 0) clip.width = -random.below(9);
        if (random.below(3) == 0) clip.fps = random_double(random);
        if (random.below(3) == 0) clip.frames = nullptr;
        if (random.below(6) == 0) clip.struct_size = 8;
        params.video = &clip;
    }
    params.user_data = &world;
    static std::atomic<unsigned> calls{0};
    if (random.below(3) == 0) params.on_progress = [](syncflow_request*, const syncflow_progress*, void*) -> std::int32_t { return calls++ % 11 == 0; };
    if (random.below(3) == 0) params.on_preview = [](syncflow_request*, const syncflow_preview*, void*) -> std::int32_t { return calls++ % 7 == 0; };
    params.on_finished = [](syncflow_request*, syncflow_status, const char*, void* data) -> std::int32_t {
        ++static_cast<World*>(data)->finished;
        return calls++ % 5 == 0;
    };
    ++world.submitted;
    syncflow_request* request = nullptr;
    if (check(syncflow_request_submit(world.engines.any(random), &params, &request), world) == SYNCFLOW_OK) {
        ++world.accepted;
        world.requests.add(request);
    } else {
        expect(request == nullptr, "a failure leaves a null handle");
    }
}

void open(World& world, Random& random) {
    syncflow_engine_params params;
    check(syncflow_engine_params_init(&params, sizeof params), world);
    params.package = random.below(8) == 0 ? "missing" : "anything";
    params.backend = random.below(16) == 0 ? "none" : "test";
    params.max_running = static_cast<std::int32_t>(random.pick({1, 2, 4, 4, 0}));
    params.max_queued = static_cast<std::int32_t>(random.pick({1, 8, 64}));
    params.host_steps = random.below(4) == 0 ? 1 : 0;
    syncflow_engine* engine = nullptr;
    if (check(syncflow_engine_open(&params, &engine), world) == SYNCFLOW_OK) world.engines.add(engine);
}

// Any function, on any handle.
void act(World& world, Random& random) {
    syncflow_request* const request = world.requests.any(random);
    syncflow_engine* const engine = world.engines.any(random);
    syncflow_progress progress = {};
    progress.struct_size = static_cast<std::uint32_t>(random.pick({sizeof progress, sizeof progress, 3}));
    syncflow_engine_stats stats = {};
    stats.struct_size = sizeof stats;
    switch (random.below(16)) {
        case 0: check(syncflow_request_cancel(request), world); break;
        case 1: check(syncflow_request_close(request), world); break;
        case 2: check(syncflow_request_wait(request, random.below(3)), world); break;
        case 3: check(syncflow_request_get_progress(request, &progress), world); break;
        case 4: check(syncflow_engine_get_stats(engine, &stats), world); break;
        case 5: check(syncflow_engine_step(engine, nullptr), world); break;
        case 6: check(syncflow_engine_close(random.below(4) == 0 ? engine : nullptr), world); break;
        case 7: check(syncflow_request_cancel(reinterpret_cast<syncflow_request*>(engine)), world); break;
        case 8: open(world, random); break;
        default: submit(world, random); break;
    }
}

void random_calls(std::int64_t count, int seed) {
    World world;
    std::vector<std::thread> threads;
    for (int t = 0; t < THREADS; ++t) {
        threads.emplace_back([&, t] {
            Random random(seed + t);
            for (int i = 0; i < 2; ++i) open(world, random);
            while (world.submitted < count) act(world, random);
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (syncflow_engine* engine : world.engines.all()) syncflow_engine_close(engine);
    for (syncflow_request* request : world.requests.all()) syncflow_request_close(request);
    std::printf("%lld requests, %lld accepted, %lld ended; %lld calls refused\n", static_cast<long long>(world.submitted), static_cast<long long>(world.accepted),
        static_cast<long long>(world.finished), static_cast<long long>(world.refused));
    expect(world.finished == world.accepted && TestState::alive == 0, "every request that was accepted has ended, once");
}

void eight_threads_open_use_and_close_engines() {
    std::vector<std::thread> threads;
    std::atomic<int> ended{0};
    for (int t = 0; t < THREADS; ++t) {
        threads.emplace_back([&ended] {
            for (int i = 0; i < 12; ++i) {
                syncflow_engine_params params;
                syncflow_engine_params_init(&params, sizeof params);
                params.package = "anything";
                params.backend = "test";
                syncflow_engine* engine = nullptr;
                expect(syncflow_engine_open(&params, &engine) == SYNCFLOW_OK, "an engine opens");
                syncflow_request_params request_params;
                syncflow_request_params_init(&request_params, sizeof request_params);
                request_params.prompt = "slow";
                syncflow_request* requests[3] = {};
                for (auto& request : requests) expect(syncflow_request_submit(engine, &request_params, &request) == SYNCFLOW_OK, "a request is accepted");
                expect(syncflow_request_wait(requests[0], -1) == SYNCFLOW_OK, "the first is done");
                request_params.steps = 1000;
                syncflow_request* running = nullptr;
                expect(syncflow_request_submit(engine, &request_params, &running) == SYNCFLOW_OK, "a request is accepted");
                expect(syncflow_engine_close(engine) == SYNCFLOW_OK, "the engine closes");
                expect(syncflow_request_wait(running, -1) == SYNCFLOW_ENGINE_CLOSED, "a running request is ended with a status");
                for (auto* request : requests) syncflow_request_close(request);
                syncflow_request_close(running);
                ++ended;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    expect(ended == 12 * THREADS, "every engine was closed");
}

void failing_requests_leave_memory_flat() {
    syncflow_engine_params params;
    syncflow_engine_params_init(&params, sizeof params);
    params.package = "anything";
    params.backend = "test";
    params.host_steps = 1;
    syncflow_engine* engine = nullptr;
    expect(syncflow_engine_open(&params, &engine) == SYNCFLOW_OK, "an engine opens");
    const auto fail_once = [&](const char* prompt) {
        syncflow_request_params request_params;
        syncflow_request_params_init(&request_params, sizeof request_params);
        request_params.prompt = prompt;
        syncflow_request* request = nullptr;
        expect(syncflow_request_submit(engine, &request_params, &request) == SYNCFLOW_OK, "a request is accepted");
        expect(syncflow_request_wait(request, -1) != SYNCFLOW_OK, "it fails");
        syncflow_request_close(request);
    };
    const auto round = [&] {
        for (const char* prompt : {"fail in prepare", "fail in step 1", "fail in step 3", "fail in decode", "no memory"}) fail_once(prompt);
    };
    round();
    const std::int64_t before = allocated;
    for (int i = 0; i < 10; ++i) round();
    const std::int64_t more = allocated - before;
    std::printf("50 failing requests: %+lld bytes\n", static_cast<long long>(more));
    expect(more <= 0 && TestState::alive == 0, "50 failing requests leave nothing");
    syncflow_engine_close(engine);
}

}  // namespace

int main(int count, char** arguments) {
    register_test_backend();
    failing_requests_leave_memory_flat();
    eight_threads_open_use_and_close_engines();
    random_calls(count > 1 ? std::atoll(arguments[1]) : 10'000, count > 2 ? std::atoi(arguments[2]) : 1);
    std::puts("random calls: all checks hold");
}
