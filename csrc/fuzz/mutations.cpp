// A driver of a fuzz target where there is no libFuzzer, and for a bounded run in the tests: the seeds, and mutations of them that are
// the same in every run.
//     fuzz_json COUNT SEED_FILE...
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "targets.h"

namespace {

std::string mutated(std::string bytes, const std::string& other, std::mt19937& random) {
    const auto below = [&](std::size_t count) { return count == 0 ? 0 : random() % count; };
    for (std::size_t changes = 1 + below(4); changes > 0; --changes) {
        switch (below(7)) {
            case 0: bytes.resize(below(bytes.size() + 1)); break;
            case 1: bytes.insert(below(bytes.size() + 1), 1 + below(8), static_cast<char>(random())); break;
            case 2: bytes.erase(below(bytes.size() + 1), 1 + below(8)); break;
            case 3: bytes += other.substr(below(other.size() + 1), below(64)); break;
            case 4: bytes.insert(below(bytes.size() + 1), bytes.substr(below(bytes.size() + 1), below(32))); break;
            case 5: bytes.insert(below(bytes.size() + 1), std::string(1 + below(300), "[{\"\\"[below(4)])); break;
            default:
                if (!bytes.empty()) bytes[below(bytes.size())] = static_cast<char>(random());
        }
    }
    return bytes;
}

}  // namespace

int main(int count, char** arguments) {
    std::vector<std::string> seeds = {std::string()};
    for (int i = 2; i < count; ++i) {
        std::ifstream file(arguments[i], std::ios::binary);
        seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        seeds.back().resize(std::min<std::size_t>(seeds.back().size(), 1 << 16));
    }
    std::mt19937 random(1);
    const long runs = count > 1 ? std::atol(arguments[1]) : 1000;
    for (long i = 0; i < runs; ++i) {
        std::string bytes = seeds[static_cast<std::size_t>(i) % seeds.size()];
        if (static_cast<std::size_t>(i) >= seeds.size()) bytes = mutated(std::move(bytes), seeds[random() % seeds.size()], random);
        const std::vector<std::uint8_t> exact(bytes.begin(), bytes.end());  // no byte more: a sanitizer sees what reads beyond
        LLVMFuzzerTestOneInput(exact.data(), exact.size());
    }
    std::printf("%ld inputs: all checks hold\n", runs);
}
