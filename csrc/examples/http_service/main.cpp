// Clips over HTTP:
//     http_service PACKAGE [PORT]
//     curl --data-urlencode "prompt=a ball bounces" -d seed=7 localhost:8080/clips      202 and the clip's address
//     curl localhost:8080/clips/1                                                      state, step, steps
//     curl -o clip.mp4 localhost:8080/clips/1/clip.mp4                                  200, or 409 until it is there
//     curl -X DELETE localhost:8080/clips/1                                            cancels and forgets it
//
// A queue that is full is 429, a mistake 422. An example: it has no limits of who may ask for what.
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include <httplib.h>

#include "syncflow/syncflow.hpp"

namespace {

namespace fs = std::filesystem;

constexpr std::size_t MAX_CLIPS = 1000;  // that are kept; the oldest are forgotten

class Clips {
   public:
    int add(syncflow::Request request) {
        const std::lock_guard lock(mutex_);
        requests_.emplace(++last_, std::move(request));
        if (requests_.size() > MAX_CLIPS) requests_.erase(requests_.begin());
        return last_;
    }
    std::optional<syncflow::Request> find(int id) const {
        const std::lock_guard lock(mutex_);
        const auto found = requests_.find(id);
        return found == requests_.end() ? std::nullopt : std::optional(found->second);
    }
    bool remove(int id) {
        const std::lock_guard lock(mutex_);
        return requests_.erase(id) > 0;
    }

   private:
    mutable std::mutex mutex_;
    std::map<int, syncflow::Request> requests_;
    int last_ = 0;
};

int http_status(syncflow_status status) {
    switch (status) {
        case SYNCFLOW_INVALID_ARGUMENT: return 422;
        case SYNCFLOW_QUEUE_FULL: return 429;
        case SYNCFLOW_NOT_READY: return 409;
        case SYNCFLOW_CANCELLED: return 410;
        default: return 500;
    }
}

void answer(httplib::Response& response, const syncflow::Error& error) {
    response.status = http_status(error.status);
    response.set_content(error.message + "\n", "text/plain; charset=utf-8");
}

// A number of the form; `value` stays as it is where the form has none, false for what is no number.
template <typename Number>
bool read_number(const httplib::Request& form, const char* name, Number& value) {
    if (!form.has_param(name)) return true;
    const std::string text = form.get_param_value(name);
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
}

std::optional<syncflow::Request> known(const Clips& clips, const httplib::Request& asked, httplib::Response& response) {
    auto request = clips.find(std::atoi(asked.matches[1].str().c_str()));
    if (!request) response.status = 404;
    return request;
}

// The bytes of the clip as mp4, or as wav where this libsyncflow has no FFmpeg.
syncflow::Result<std::string> file_of(const syncflow::Clip& clip, const std::string& name) {
    const fs::path path = fs::temp_directory_path() / ("syncflow-" + std::to_string(reinterpret_cast<std::uintptr_t>(&clip)) + "-" + name);
    const auto saved = clip.save(path.string());
    if (!saved) return saved.error();
    std::ifstream file(path, std::ios::binary);
    std::string bytes(std::istreambuf_iterator<char>(file), {});
    fs::remove(path);
    return bytes;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 2) {
        std::fprintf(stderr, "usage: http_service PACKAGE [PORT]\n");
        return 2;
    }
    const auto engine = syncflow::Engine::open(arguments[1], {.max_queued = 64});
    if (!engine) {
        std::fprintf(stderr, "%s\n", engine.error().message.c_str());
        return EXIT_FAILURE;
    }
    Clips clips;
    httplib::Server server;

    server.Post("/clips", [&](const httplib::Request& form, httplib::Response& response) {
        syncflow::RequestOptions options{.prompt = form.get_param_value("prompt")};
        if (!read_number(form, "seed", options.seed) || !read_number(form, "steps", options.steps) || !read_number(form, "priority", options.priority)) {
            return answer(response, {SYNCFLOW_INVALID_ARGUMENT, "seed, steps and priority must be whole numbers"});
        }
        auto request = engine->submit(std::move(options));
        if (!request) return answer(response, request.error());
        const std::string location = "/clips/" + std::to_string(clips.add(std::move(*request)));
        response.status = 202;
        response.set_header("Location", location);
        response.set_content(location + "\n", "text/plain");
    });
    server.Get(R"(/clips/(\d{1,9}))", [&](const httplib::Request& asked, httplib::Response& response) {
        const auto request = known(clips, asked, response);
        if (!request) return;
        constexpr const char* STATES[] = {"queued", "running", "decoding", "finished"};
        const syncflow_progress now = request->progress();
        response.set_content(R"({"state": ")" + std::string(STATES[now.state]) + R"(", "status": ")" + syncflow_status_name(now.status) + R"(", "step": )" +
                                 std::to_string(now.step) + R"(, "num_steps": )" + std::to_string(now.num_steps) + "}\n", "application/json");
    });
    server.Get(R"(/clips/(\d{1,9})/(clip\.mp4|clip\.wav))", [&](const httplib::Request& asked, httplib::Response& response) {
        const auto request = known(clips, asked, response);
        if (!request) return;
        const auto clip = request->clip();
        if (!clip) return answer(response, clip.error());
        const std::string name = asked.matches[2].str();
        const auto file = file_of(*clip, name);
        if (!file) return answer(response, file.error());
        response.set_content(*file, name == "clip.mp4" ? "video/mp4" : "audio/wav");
    });
    server.Delete(R"(/clips/(\d{1,9}))", [&](const httplib::Request& asked, httplib::Response& response) {
        response.status = clips.remove(std::atoi(asked.matches[1].str().c_str())) ? 204 : 404;
    });

    const int asked_port = count > 2 ? std::atoi(arguments[2]) : 8080;
    const int port = asked_port == 0 ? server.bind_to_any_port("127.0.0.1") : asked_port;
    if (asked_port != 0 && !server.bind_to_port("127.0.0.1", port)) {
        std::fprintf(stderr, "the port %d is taken\n", port);
        return EXIT_FAILURE;
    }
    std::printf("http://127.0.0.1:%d\n", port);
    std::fflush(stdout);
    server.listen_after_bind();
}
