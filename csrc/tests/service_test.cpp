// The engine on a model of the tests: which requests step together and in which order, and how each of them ends.
#include <algorithm>
#include <functional>
#include <map>

#include "check.h"
#include "service/engine.h"
#include "test_backend.h"

namespace {

using namespace syncflow;
using namespace syncflow::test;
using service::Clock;
using service::Engine;
using service::EngineOptions;
using service::Submission;
using RequestPtr = std::shared_ptr<service::Request>;

constexpr EngineOptions IN_THIS_THREAD = {.host_steps = true};

std::shared_ptr<Engine> make_engine(const EngineOptions& options) { return std::make_shared<Engine>(std::make_unique<TestBackend>(), options); }

Submission submission(const std::string& prompt, std::int64_t steps = 4, std::int64_t side = 16) {
    Submission values;
    values.request.prompt = prompt;
    values.request.steps = steps;
    values.request.width = values.request.height = side;
    return values;
}

RequestPtr submit(Engine& engine, Submission values) {
    auto request = std::make_shared<service::Request>(std::move(values), nullptr);
    engine.submit(request);
    return request;
}

void expect_status(Engine& engine, const RequestPtr& request, syncflow_status status, const char* what) {
    const auto outcome = engine.wait(*request, std::nullopt);
    if (outcome->status != status) fail(std::string(what) + ": the status is " + std::to_string(outcome->status) + ", " + outcome->message);
    expect(request->state == nullptr, "a request that has ended keeps no state");
}

// Records which prompts every step holds.
class Recording {
   public:
    Recording() { set(true); }
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
    ~Recording() { set(false); }

    std::vector<std::vector<std::string>> batches() const {
        const std::lock_guard lock(Observed::all().mutex);
        return Observed::all().batches;
    }

   private:
    static void set(bool recording) {
        const std::lock_guard lock(Observed::all().mutex);
        Observed::all().recording = recording;
        Observed::all().batches.clear();
    }
};

engine::Clip clip_of(Engine& engine, const Submission& values) {
    const RequestPtr request = submit(engine, values);
    expect_status(engine, request, SYNCFLOW_OK, "a plain request");
    return request->clip(0);
}

void a_batch_is_joined_and_left_between_steps() {
    const auto engine = make_engine(IN_THIS_THREAD);
    const Recording recording;
    const RequestPtr first = submit(*engine, submission("a", 3));
    engine->step();
    const RequestPtr second = submit(*engine, submission("b", 2));
    for (int i = 0; i < 3; ++i) engine->step();
    const std::vector<std::vector<std::string>> expected = {{"a"}, {"a", "b"}, {"a", "b"}};
    expect(recording.batches() == expected, "requests of one shape step together, each for its own number of steps");
    expect_status(*engine, first, SYNCFLOW_OK, "the first");
    expect_status(*engine, second, SYNCFLOW_OK, "the second");
    expect(engine->step() == 0, "nothing is left");
}

void shapes_alternate() {
    const auto engine = make_engine(IN_THIS_THREAD);
    const Recording recording;
    submit(*engine, submission("large", 6, 64));
    submit(*engine, submission("small", 6, 8));
    submit(*engine, submission("small", 6, 8));
    while (engine->step() > 0) {}
    int in_a_row = 0;
    std::string last;
    for (const auto& batch : recording.batches()) {
        in_a_row = batch[0] == last ? in_a_row + 1 : 1;
        last = batch[0];
        expect(in_a_row == 1, "two shapes step alternately");
    }
    expect(recording.batches().size() == 12, "each shape has its six steps, equal ones at once");
}

void short_requests_do_not_starve_another_shape() {
    const auto engine = make_engine({.max_running = 2, .host_steps = true});
    const RequestPtr large = submit(*engine, submission("large", 8, 64));
    int rounds = 0;
    while (!large->finished()) {
        submit(*engine, submission("short", 1, 8));
        engine->step();
        expect(++rounds <= 18, "a request of 8 steps ends within 16 rounds, and two more to join");
    }
}

void priorities_come_first_and_equal_ones_in_order() {
    const auto engine = make_engine({.max_running = 1, .host_steps = true});
    const Recording recording;
    for (const auto& [prompt, priority] : std::map<std::string, int>{{"a", 0}, {"b", 5}, {"c", 0}, {"d", 5}}) {
        Submission values = submission(prompt, 1);
        values.priority = priority;
        submit(*engine, values);
    }
    while (engine->step() > 0) {}
    const std::vector<std::vector<std::string>> expected = {{"b"}, {"d"}, {"a"}, {"c"}};
    expect(recording.batches() == expected, "priorities 0, 5, 0, 5 run as b, d, a, c");
}

void waiting_counts_as_priority() {
    service::Queue queue(10, 0.001);
    const auto add = [&](const char* prompt, int priority) {
        Submission values = submission(prompt);
        values.priority = priority;
        expect(queue.push(std::make_shared<service::Request>(values, nullptr)), "the queue takes a request");
    };
    add("early", 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    add("late", 10);  // as much as 10 ms of waiting
    expect(queue.pop()->submission.request.prompt == "early", "a request that has waited long goes first");
    expect(queue.pop()->submission.request.prompt == "late", "and then the other");
    expect(queue.pop() == nullptr, "then the queue is empty");
}

void a_full_queue_refuses() {
    const auto engine = make_engine({.max_queued = 2, .host_steps = true});
    submit(*engine, submission("a"));
    const RequestPtr second = submit(*engine, submission("b"));
    try {
        submit(*engine, submission("c"));
        fail("a third request is refused");
    } catch (const service::Failure& failure) {
        expect(failure.status() == SYNCFLOW_QUEUE_FULL, "the queue is full");
    }
    while (engine->step() > 0) {}
    expect_status(*engine, second, SYNCFLOW_OK, "one that was taken");
    expect_status(*engine, submit(*engine, submission("c")), SYNCFLOW_OK, "one that is submitted later");
    expect(engine->stats().submitted == 3, "a request that was refused does not count");
}

void a_deadline_ends_a_request() {
    const auto engine = make_engine({});
    Submission running = submission("slow", 1000), waiting = submission("slow", 1000, 64);
    running.timeout = waiting.timeout = std::chrono::milliseconds(30);
    const auto begin = Clock::now();
    const RequestPtr one = submit(*engine, running), other = submit(*engine, waiting);
    expect_status(*engine, one, SYNCFLOW_DEADLINE_EXCEEDED, "a request of two seconds");
    expect_status(*engine, other, SYNCFLOW_DEADLINE_EXCEEDED, "another");
    expect(Clock::now() - begin < std::chrono::seconds(1), "it ends early");
    Submission quick = submission("quick", 1);
    quick.timeout = std::chrono::minutes(1);
    expect_status(*engine, submit(*engine, quick), SYNCFLOW_OK, "a request before its deadline");
    expect(engine->stats().expired == 2, "both are counted");
}

void cancelling_at_every_step_leaves_no_trace() {
    const auto engine = make_engine(IN_THIS_THREAD);
    constexpr int STEPS = 6;
    const engine::Clip expected = clip_of(*engine, submission("again", STEPS));
    for (int at = 0; at < STEPS; ++at) {
        const RequestPtr cancelled = submit(*engine, submission("again", STEPS)), beside = submit(*engine, submission("again", STEPS));
        for (int i = 0; i < at; ++i) engine->step();
        const int steps = Observed::all().steps;
        cancelled->cancel();
        engine->step();
        expect(cancelled->finished() && Observed::all().steps <= steps + 1, "a request ends at the next step boundary");
        expect_status(*engine, cancelled, SYNCFLOW_CANCELLED, "a cancelled request");
        expect_status(*engine, beside, SYNCFLOW_OK, "the one beside it");
        const engine::Clip again = clip_of(*engine, submission("again", STEPS));
        for (const engine::Clip& clip : {again, beside->clip(0)}) {
            expect(clip.frames == expected.frames, "the frames are the same");
            expect_same_bits(clip.waveform.data(), expected.waveform.data(), static_cast<std::int64_t>(expected.waveform.size()), "the sound");
        }
    }
}

void a_failing_request_fails_alone() {
    const auto engine = make_engine(IN_THIS_THREAD);
    const engine::Clip expected = clip_of(*engine, submission("beside", 5));
    const RequestPtr beside = submit(*engine, submission("beside", 5));
    const RequestPtr faulty = submit(*engine, submission("fail in step 3", 5));
    while (engine->step() > 0) {}
    expect_status(*engine, faulty, SYNCFLOW_INTERNAL, "the one at fault");
    expect_status(*engine, beside, SYNCFLOW_OK, "the one that shared its batch");
    expect(beside->clip(0).frames == expected.frames, "it is what it is without the other");
    for (const char* prompt : {"fail in prepare", "fail in step 1", "fail in decode", "no memory"}) {
        const RequestPtr request = submit(*engine, submission(prompt));
        while (engine->step() > 0) {}
        expect(request->wait(std::nullopt)->status != SYNCFLOW_OK, prompt);
    }
    expect(engine->stats().failed == 5 && engine->stats().running == 0, "all of them are counted");
}

void closing_ends_all_requests() {
    for (const bool host_steps : {false, true}) {
        const auto engine = make_engine({.max_running = 2, .host_steps = host_steps});
        std::vector<RequestPtr> requests;
        for (int i = 0; i < 6; ++i) requests.push_back(submit(*engine, submission("slow", 1000, i % 2 == 0 ? 8 : 16)));
        if (host_steps) engine->step();
        engine->close();
        engine->close();
        for (const RequestPtr& request : requests) expect_status(*engine, request, SYNCFLOW_ENGINE_CLOSED, "a request of a closed engine");
        try {
            submit(*engine, submission("late"));
            fail("a closed engine takes no request");
        } catch (const service::Failure& failure) {
            expect(failure.status() == SYNCFLOW_ENGINE_CLOSED, "the engine is closed");
        }
    }
    expect(TestState::alive == 0, "no state is left");
}

// What a request's callbacks were called with.
struct Calls {
    int progress = 0, previews = 0, finished = 0;
    int stop_at_progress = -1, stop_at_preview = -1;
    bool throws = false, release = false;
    syncflow_status status = -1;
};

void set_callbacks(Submission& values, Calls& calls) {
    values.user_data = &calls;
    values.on_progress = [](syncflow_request*, const syncflow_progress* now, void* data) -> std::int32_t {
        auto& seen = *static_cast<Calls*>(data);
        expect(now->step == ++seen.progress && seen.finished == 0, "every step is reported, before the end");
        if (seen.throws) throw 1;
        return now->step == seen.stop_at_progress;
    };
    values.on_preview = [](syncflow_request*, const syncflow_preview* preview, void* data) -> std::int32_t {
        auto& seen = *static_cast<Calls*>(data);
        expect(preview->video != nullptr && (preview->frames != nullptr) == (preview->num_frames > 0), "a preview has latents");
        return ++seen.previews == seen.stop_at_preview;
    };
    values.on_finished = [](syncflow_request*, syncflow_status status, const char* message, void* data) -> std::int32_t {
        auto& seen = *static_cast<Calls*>(data);
        ++seen.finished;
        seen.status = status;
        expect((status == SYNCFLOW_OK) == (*message == 0), "a failure has a sentence");
        return seen.release;
    };
}

void callbacks_report_and_stop() {
    const auto engine = make_engine(IN_THIS_THREAD);
    const auto run = [&](Calls calls, const char* prompt = "calls") {
        Submission values = submission(prompt, 5);
        values.preview_interval = 2;
        values.preview_frames = true;
        set_callbacks(values, calls);
        const RequestPtr request = submit(*engine, values);
        while (engine->step() > 0) {}
        expect(calls.finished == 1, "the end is reported once");
        expect(request->wait(std::nullopt)->status == calls.status, "the callback and the waiter are told the same");
        return std::pair(calls, request);
    };
    const auto [plain, request] = run({});
    expect(plain.progress == 5 && plain.previews == 3 && plain.status == SYNCFLOW_OK, "5 steps, previews after 2, 4 and the last");
    const Calls stopped = run({.stop_at_progress = 2}).first;
    expect(stopped.progress == 2 && stopped.status == SYNCFLOW_CANCELLED, "progress stops a request");
    expect(run({.stop_at_preview = 1}).first.status == SYNCFLOW_CANCELLED, "a preview stops a request");
    expect(run({.throws = true}).first.status == SYNCFLOW_INTERNAL, "a callback that throws ends its request");
    expect(run({}, "fail in preview").first.status == SYNCFLOW_INTERNAL, "a preview that fails ends its request");
    try {
        run({.release = true}).second->clip(0);
        fail("released clips are gone");
    } catch (const service::Failure& failure) {
        expect(failure.status() == SYNCFLOW_INVALID_ARGUMENT, "the sentence says that the clips were released");
    }
}

void what_a_callback_must_not_do_is_refused() {
    const auto engine = make_engine(IN_THIS_THREAD);
    struct Target {
        Engine& engine;
        RequestPtr other;
        int refused = 0;
    } target = {*engine, nullptr};
    Submission values = submission("calls back", 1);
    values.user_data = &target;
    values.on_progress = [](syncflow_request*, const syncflow_progress*, void* data) -> std::int32_t {
        auto& at = *static_cast<Target*>(data);
        at.other = submit(at.engine, submission("submitted by a callback"));
        for (const std::function<void()>& call : {std::function<void()>([&] { at.engine.close(); }), std::function<void()>([&] { at.engine.step(); }),
                 std::function<void()>([&] { at.engine.wait(*at.other, std::nullopt); })}) {
            try {
                call();
                fail("closing, stepping and waiting are refused in a callback");
            } catch (const service::Failure& failure) {
                at.refused += failure.status() == SYNCFLOW_INVALID_ARGUMENT ? 1 : 0;
            }
        }
        return 0;
    };
    submit(*engine, values);
    while (engine->step() > 0) {}
    expect(target.refused == 3, "all three are refused");
    expect_status(*engine, target.other, SYNCFLOW_OK, "a request that a callback has submitted");
}

void many_threads_share_one_engine() {
    const auto engine = make_engine({.max_running = 3});
    std::atomic<int> done{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&, t] {
            for (int i = 0; i < 40; ++i) {
                const RequestPtr request = submit(*engine, submission("shared", 1 + i % 5, 8 * (1 + t % 3)));
                if (i % 4 == 0) request->cancel();
                const syncflow_status status = engine->wait(*request, std::nullopt)->status;
                expect(status == SYNCFLOW_OK || status == SYNCFLOW_CANCELLED, "a request is done or cancelled");
                ++done;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    const syncflow_engine_stats stats = engine->stats();
    expect(done == 320 && stats.completed + stats.cancelled == 320, "every request has ended");
    expect(stats.queued == 0 && stats.running == 0 && TestState::alive == 0, "and left");
}

}  // namespace

int main() {
    a_batch_is_joined_and_left_between_steps();
    shapes_alternate();
    short_requests_do_not_starve_another_shape();
    priorities_come_first_and_equal_ones_in_order();
    waiting_counts_as_priority();
    a_full_queue_refuses();
    a_deadline_ends_a_request();
    cancelling_at_every_step_leaves_no_trace();
    a_failing_request_fails_alone();
    closing_ends_all_requests();
    callbacks_report_and_stop();
    what_a_callback_must_not_do_is_refused();
    many_threads_share_one_engine();
    std::puts("service: all checks hold");
}
