// JSON, safetensors and packages: what they read, and the sentences for what they refuse.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "engine/backend.h"
#include "package/json.h"
#include "package/package.h"
#include "package/safetensors.h"
#include "package/sha256.h"

using namespace syncflow::engine;
using syncflow::test::expect;
using syncflow::test::fail;

namespace {

namespace fs = std::filesystem;

// `run` throws an error of this kind whose sentence is on one line and holds `part`.
void expect_error(Status status, const std::string& part, const std::function<void()>& run) {
    try {
        run();
    } catch (const Error& error) {
        const std::string sentence = error.what();
        if (error.status() != status) fail("another status for: " + sentence);
        if (sentence.find(part) == std::string::npos) fail("'" + sentence + "' lacks '" + part + "'");
        if (sentence.find('\n') != std::string::npos) fail("'" + sentence + "' has more than one line");
        return;
    }
    fail("nothing was thrown where '" + part + "' was expected");
}

void writes_what_python_writes() {
    const auto round = [](const char* text) { return to_json(parse_json(text)); };
    expect(round(R"({"b":[1,-2,18446744073709551615,2.0,0.1,1e-5,1e16,123456.75],"a":null,"c":[true,false,{},[]]})") ==
               R"({"b": [1, -2, 18446744073709551615, 2.0, 0.1, 1e-05, 1e+16, 123456.75], "a": null, "c": [true, false, {}, []]})",
           "numbers and layout are those of json.dumps");
    expect(round("\"\\u00e9\\ud83d\\ude00\\n\\\"\\\\/\\u0001\\u007f\"") == R"("\u00e9\ud83d\ude00\n\"\\/\u0001\u007f")", "text is escaped as json.dumps does it");
    expect(round("\"é😀\"") == R"("\u00e9\ud83d\ude00")", "UTF-8 is read");
    expect(parse_json(R"({"a": 1, "a": 2})").find("a")->as_double() == 2, "the last of equal names counts");
    expect(round("-0.0") == "-0.0" && round("1e-400") == "0.0" && round("1E+2") == "100.0", "exponents are read");
}

void refuses_what_is_not_json() {
    for (const char* const text : {"", " ", "{", "[1,]", "{\"a\" 1}", "{a: 1}", "01", "-", "1.", ".5", "1e", "+1", "NaN", "Infinity", "nul", "\"", "\"\\x\"", "\"\\u12\"",
                                   "\"\\ud800\"", "\"\\udc00\"", "\"\t\"", "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "1 2", "[1}", "\xef\xbb\xbf{}"}) {
        expect_error(Status::corrupt, "at byte", [&] { parse_json(text); });
    }
    expect_error(Status::corrupt, "not finite", [] { parse_json("1e999"); });
    expect_error(Status::corrupt, "nested too deeply", [] { parse_json(std::string(100'000, '[')); });
    parse_json(std::string(MAX_JSON_DEPTH, '[') + std::string(MAX_JSON_DEPTH, ']'));
}

// With the processor's own instructions, where it has them, and without.
void hashes() {
    std::printf("SHA-256 %s instructions of its own\n", has_sha256_instructions() ? "with" : "without");
    for (const auto compute : {sha256, sha256_portable}) {
        const auto hash = [&](const std::string& text) { return compute(std::as_bytes(std::span(text))); };
        expect(hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "the hash of nothing");
        expect(hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "the hash of FIPS 180-4");
        expect(hash(std::string(1'000'000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", "the hash of a million letters");
    }
    std::string text;
    for (int i = 0; i < 300; ++i, text += static_cast<char>(7 * i)) {
        const auto bytes = std::as_bytes(std::span(text));
        expect(sha256(bytes) == sha256_portable(bytes), "both ways give one hash at every length");
    }
}

std::string safetensors(const std::string& header, std::size_t bytes) {
    std::string file(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> 8 * i & 0xFF);
    return file + header + std::string(bytes, '\0');
}

SafetensorsHeader parsed(const std::string& file) { return parse_safetensors(std::as_bytes(std::span(file))); }

void reads_safetensors() {
    const auto header = parsed(safetensors(R"({"__metadata__":{"a":"b"},"y":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 16));
    expect(header.tensors.size() == 2 && header.tensors.at("y").shape == Shape({2, 3}) && header.tensors.at("x").shape.empty(), "shapes are read");
    expect(header.tensors.at("y").end - header.tensors.at("y").begin == 12, "places are read");
    expect(parsed(safetensors("{}", 0)).tensors.empty(), "no tensors are read");
    expect(parsed(safetensors(R"({"e":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}})", 0)).tensors.size() == 1, "an empty tensor is read");
    const auto refuse = [](const std::string& file, const std::string& part) { expect_error(Status::corrupt, part, [&] { parsed(file); }); };
    refuse("", "shorter");
    refuse(std::string(8, '\xff'), "header");
    refuse(safetensors("[]", 0), "no JSON object");
    refuse(safetensors(R"({"x":1})", 0), "does not say");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4), "does not say");
    refuse(safetensors(R"({"x":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}})", 4), "unknown type");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4), "a side of");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4), "a side of");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4), "does not fit");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4), "does not fit");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4), "does not fit");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}})", 4), "does not fit");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[2147483648,2147483648,4],"data_offsets":[0,4]}})", 4), "does not fit");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8), "gap at the end");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8), "overlap");
    refuse(safetensors(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8), "twice");
}

// All halves, each as the number that it stands for; none but finite ones are weights.
void reads_halves() {
    const fs::path path = fs::temp_directory_path() / ("syncflow-halves-" + std::to_string(std::random_device()()) + ".safetensors");
    const auto take = [&](std::uint16_t first, std::uint16_t count) {
        std::string file = safetensors(R"({"x":{"dtype":"F16","shape":[)" + std::to_string(count) + R"(],"data_offsets":[0,)" + std::to_string(2 * count) + "]}}", 0);
        for (int i = 0; i < count; ++i) file += {static_cast<char>((first + i) & 0xFF), static_cast<char>((first + i) >> 8)};
        std::ofstream(path, std::ios::binary) << file;
        return Weights(path).take("x", {count});
    };
    for (const std::uint16_t sign : std::initializer_list<std::uint16_t>{0, 0x8000}) {
        const syncflow::Floats found = take(sign, 0x7C00);
        for (int half = 0; half < 0x7C00; ++half) {
            const int exponent = half >> 10, fraction = half & 0x3FF;
            const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
            const float value = found[static_cast<std::size_t>(half)];
            expect(static_cast<double>(value) == (sign != 0 ? -magnitude : magnitude) && std::signbit(value) == (sign != 0), "a half is what it stands for");
        }
        for (const std::uint16_t count : std::initializer_list<std::uint16_t>{1, 7, 40}) {  // that end with an infinity
            expect_error(Status::corrupt, "NaN or infinity", [&] { take(static_cast<std::uint16_t>(sign + 0x7C01 - count), count); });
        }
        expect_error(Status::corrupt, "NaN or infinity", [&] { take(static_cast<std::uint16_t>(sign + 0x7FFF), 1); });
    }
    fs::remove(path);
}

// A copy of the bundled package that a case damages.
class PackageCopy {
   public:
    explicit PackageCopy(const fs::path& of) : path_(fs::temp_directory_path() / ("syncflow-package-" + std::to_string(std::random_device()()))) {
        fs::copy(of, path_, fs::copy_options::recursive);
    }
    PackageCopy(const PackageCopy&) = delete;
    PackageCopy& operator=(const PackageCopy&) = delete;
    ~PackageCopy() {
        std::error_code none;
        fs::remove_all(path_, none);
    }

    const fs::path& path() const { return path_; }

    void replace(const char* name, const std::string& old, const std::string& by) const {
        std::string text = read(name);
        const std::size_t place = text.find(old);
        expect(place != std::string::npos, "what a case replaces is there");
        write(name, text.replace(place, old.size(), by));
    }

    std::string read(const char* name) const {
        std::ifstream file(path_ / name, std::ios::binary);
        return {std::istreambuf_iterator<char>(file), {}};
    }

    void write(const char* name, const std::string& text) const { std::ofstream(path_ / name, std::ios::binary) << text; }

   private:
    fs::path path_;
};

void refuses_damaged_packages(const fs::path& bundled) {
    constexpr const char* weights = "ddit/diffusion_pytorch_model.safetensors";
    const auto refuse = [&](Status status, const std::string& part, bool verify, const std::function<void(const PackageCopy&)>& damage) {
        const PackageCopy copy(bundled);
        damage(copy);
        expect_error(status, part, [&] { open_backend(copy.path(), {.name = "native", .threads = 1, .verify = verify}); });
    };
    expect_error(Status::not_found, "there is no model folder", [&] { open_backend(bundled / "missing"); });
    expect_error(Status::not_found, "is no model package", [&] { open_backend(bundled / "ddit"); });
    expect_error(Status::unsupported, "there is no back end", [&] { open_backend(bundled, {.name = "other", .threads = 1, .verify = true}); });
    expect_error(Status::invalid_argument, "threads is -1", [&] { open_backend(bundled, {.name = "native", .threads = -1, .verify = true}); });
    refuse(Status::not_found, "no manifest.json", true, [](const PackageCopy& copy) { fs::remove(copy.path() / "manifest.json"); });
    refuse(Status::corrupt, "cannot be read as JSON", true, [](const PackageCopy& copy) { copy.write("manifest.json", "{"); });
    refuse(Status::unsupported, "has package schema 2; this version reads schema 1", true, [](const PackageCopy& copy) { copy.replace("manifest.json", "\"schema\": 1", "\"schema\": 2"); });
    refuse(Status::corrupt, "lists no checksums", true, [](const PackageCopy& copy) { copy.write("manifest.json", R"({"schema": 1, "sha256": {}})"); });
    refuse(Status::corrupt, "files of its own folder", true, [](const PackageCopy& copy) { copy.replace("manifest.json", "\"ddit/config.json\"", "\"../config.json\""); });
    refuse(Status::corrupt, "does not match its checksum", true, [](const PackageCopy& copy) { copy.replace("ddit/config.json", "128", "129"); });
    refuse(Status::corrupt, "lacks text_encoder/model.safetensors", true, [](const PackageCopy& copy) { fs::remove(copy.path() / "text_encoder" / "model.safetensors"); });
    refuse(Status::corrupt, "is not listed in manifest.json", true, [](const PackageCopy& copy) { copy.write("ddit/more.txt", "more"); });
    refuse(Status::corrupt, "is damaged", false, [](const PackageCopy& copy) { copy.write(weights, copy.read(weights).substr(0, 1'000'000)); });
    refuse(Status::corrupt, "is damaged", false, [](const PackageCopy& copy) { copy.write(weights, ""); });
    refuse(Status::corrupt, "does not hold this model: it lacks", false, [](const PackageCopy& copy) { copy.replace(weights, "audio.final_norm.bias", "audio.final_norm.bial"); });
    refuse(Status::corrupt, "says another ddit", false, [](const PackageCopy& copy) { copy.replace("ddit/config.json", "\"base_size\": 64", "\"base_size\": 32"); });
    refuse(Status::corrupt, "describes no model: depth is 0", false, [](const PackageCopy& copy) { copy.replace("ddit/config.json", "\"depth\": 6", "\"depth\": 0"); });
    refuse(Status::corrupt, "it lacks video.spatial_blocks.6", false, [](const PackageCopy& copy) { copy.replace("ddit/config.json", "\"depth\": 6", "\"depth\": 900"); });
    refuse(Status::corrupt, "DDiTConfig has no setting 'deepth'", false, [](const PackageCopy& copy) { copy.replace("ddit/config.json", "\"depth\"", "\"deepth\""); });
    refuse(Status::corrupt, "it must be", false, [](const PackageCopy& copy) { copy.replace("model_index.json", "\"fps\": 16", "\"fps\": 0"); });
    refuse(Status::unsupported, "chunk_frames 17 is a setting", false, [](const PackageCopy& copy) { copy.replace("model_index.json", "\"chunk_frames\": 0", "\"chunk_frames\": 17"); });
    refuse(Status::unsupported, "the bridge none", false, [](const PackageCopy& copy) { copy.replace("model_index.json", "\"bridge\": \"adaptor\"", "\"bridge\": \"none\""); });
    refuse(Status::unsupported, "AutoencoderKL", false, [](const PackageCopy& copy) { copy.replace("video_vae/config.json", "AutoencoderKLLTXVideo", "AutoencoderKLOther"); });
    refuse(Status::unsupported, "an audio codec of the class", false, [](const PackageCopy& copy) { copy.replace("audio_vae/config.json", "AudioCodec", "Dac"); });
    refuse(Status::unsupported, "must be a T5", false, [](const PackageCopy& copy) { copy.replace("text_encoder/config.json", "\"model_type\": \"t5\"", "\"model_type\": \"bert\""); });
    refuse(Status::unsupported, "a vocabulary of its own", false, [](const PackageCopy& copy) { copy.write("text_encoder/tokenizer.json", "{}"); copy.replace("manifest.json", "\"text_encoder/config.json\"", "\"text_encoder/tokenizer.json\": \"\", \"text_encoder/config.json\""); });
}

}  // namespace

int main(int, char** arguments) {
    writes_what_python_writes();
    refuses_what_is_not_json();
    hashes();
    reads_safetensors();
    reads_halves();
    refuses_damaged_packages(arguments[1]);
    std::printf("package: all checks hold\n");
    return EXIT_SUCCESS;
}
