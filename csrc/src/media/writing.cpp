#include "media/writing.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "media/files.h"
#include "service/failure.h"

namespace syncflow::media {
namespace {

using service::Failure;
namespace fs = std::filesystem;

constexpr std::int64_t MAX_WAV = 0xffffffffLL - 64;  // bytes of samples; a wav counts them in 32 bits
constexpr std::int64_t BLOCK = 1 << 14;              // samples that are converted at a time

void little_endian(std::string& bytes, std::uint64_t value, int size) {
    for (int i = 0; i < size; ++i) bytes += static_cast<char>(value >> (8 * i) & 255);
}

std::size_t frame_size(const syncflow_clip& clip) { return static_cast<std::size_t>(3 * clip.height * clip.width); }

void need_frames(const syncflow_clip& clip, const fs::path& path) {
    if (clip.num_frames == 0) throw Failure(SYNCFLOW_INVALID_ARGUMENT, "cannot write " + path.string() + ": the clip has no frames; write a .wav");
}

// The name of a file for each frame: what stands before and after the number, and its digits.
struct Pattern {
    std::string before, after;
    std::size_t digits = 0;

    explicit Pattern(const fs::path& path) {
        const std::string name = path.filename().string();
        const std::size_t percent = name.find('%');
        std::size_t end = percent == std::string::npos ? percent : name.find('d', percent);
        const std::string width = end == std::string::npos ? "x" : name.substr(percent + 1, end - percent - 1);
        const bool valid = std::all_of(width.begin(), width.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
        if (!valid || width.size() > 2 || name.find('%', percent + 1) != std::string::npos) {
            throw Failure(SYNCFLOW_INVALID_ARGUMENT, "cannot write " + path.string() + ": the name must hold one number such as %05d");
        }
        before = name.substr(0, percent);
        after = name.substr(end + 1);
        digits = width.empty() ? 0 : static_cast<std::size_t>(std::stoi(width));
    }

    std::string name(std::int64_t number) const {
        const std::string written = std::to_string(number);
        return before + std::string(digits > written.size() ? digits - written.size() : 0, '0') + written + after;
    }
};

// ITU-R BT.601, limited range, in fixed point.
std::array<std::uint8_t, 3> yuv(const std::uint8_t* rgb) {
    const int r = rgb[0], g = rgb[1], b = rgb[2];
    const auto byte = [](int value, int offset) { return static_cast<std::uint8_t>(((value + (1 << 15)) >> 16) + offset); };
    return {byte(16829 * r + 33039 * g + 6416 * b, 16), byte(-9714 * r - 19071 * g + 28784 * b, 128), byte(28784 * r - 24103 * g - 4681 * b, 128)};
}

using Write = void (*)(const syncflow_clip&, const fs::path&);
constexpr std::pair<const char*, Write> FORMATS[] = {
#if defined(SYNCFLOW_FFMPEG)
    {".mp4", write_mp4},
#endif
    {".wav", write_wav}, {".y4m", write_y4m}, {".rgb", write_rgb}, {".ppm", write_ppm},
};

}  // namespace

std::string written_formats() {
    std::string formats;
    for (const auto& [suffix, write] : FORMATS) formats += std::string(formats.empty() ? "" : ", ") + suffix;
    return formats;
}

void write_clip(const syncflow_clip& clip, const fs::path& path) {
    std::string suffix = path.extension().string();
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    for (const auto& [name, write] : FORMATS) {
        if (suffix == name) return write(clip, path);
    }
    if (suffix == ".mp4") throw Failure(SYNCFLOW_UNSUPPORTED, "cannot write " + path.string() + ": this build has no FFmpeg; it writes " + written_formats());
    throw Failure(SYNCFLOW_INVALID_ARGUMENT, "cannot write " + path.string() + ": the name must end in " + written_formats());
}

void write_wav(const syncflow_clip& clip, const fs::path& path) {
    if (clip.num_samples > MAX_WAV / 2 || clip.sample_rate < 1) {
        throw Failure(SYNCFLOW_INVALID_ARGUMENT, "cannot write " + path.string() + ": a wav has at most 4 GiB, and a sample rate");
    }
    const auto size = static_cast<std::uint64_t>(2 * clip.num_samples), rate = static_cast<std::uint64_t>(clip.sample_rate);
    std::string header = "RIFF";
    little_endian(header, 36 + size, 4);
    header += "WAVEfmt ";
    little_endian(header, 16, 4);        // bytes of the format
    little_endian(header, 1, 2);         // PCM
    little_endian(header, 1, 2);         // channel
    little_endian(header, rate, 4);
    little_endian(header, 2 * rate, 4);  // bytes a second
    little_endian(header, 2, 2);         // bytes of a sample of all channels
    little_endian(header, 16, 2);        // bits
    header += "data";
    little_endian(header, size, 4);
    PendingFile file(path);
    file.write(header.data(), header.size());
    std::string block;
    for (std::int64_t first = 0; first < clip.num_samples; first += BLOCK) {
        block.clear();
        for (std::int64_t i = first; i < std::min(first + BLOCK, clip.num_samples); ++i) {
            const long sample = std::lrint(std::clamp(clip.waveform[i], -1.0F, 1.0F) * 32767.0F);
            little_endian(block, static_cast<std::uint16_t>(sample), 2);
        }
        file.write(block.data(), block.size());
    }
    file.commit();
}

void write_y4m(const syncflow_clip& clip, const fs::path& path) {
    need_frames(clip, path);
    const auto fps = static_cast<std::int64_t>(std::llround(clip.fps * 1000));
    const std::int64_t common = std::gcd(fps, std::int64_t{1000});
    const std::string header = "YUV4MPEG2 W" + std::to_string(clip.width) + " H" + std::to_string(clip.height) + " F" + std::to_string(fps / common) +
                               ":" + std::to_string(1000 / common) + " Ip A1:1 C444\n";
    PendingFile file(path);
    file.write(header.data(), header.size());
    const std::size_t pixels = frame_size(clip) / 3;
    std::vector<std::uint8_t> planes(3 * pixels);
    for (std::int64_t k = 0; k < clip.num_frames; ++k) {
        const std::uint8_t* rgb = clip.frames + static_cast<std::size_t>(k) * 3 * pixels;
        for (std::size_t i = 0; i < pixels; ++i) {
            const auto values = yuv(rgb + 3 * i);
            for (std::size_t plane = 0; plane < 3; ++plane) planes[plane * pixels + i] = values[plane];
        }
        file.write("FRAME\n", 6);
        file.write(planes.data(), planes.size());
    }
    file.commit();
}

void write_rgb(const syncflow_clip& clip, const fs::path& path) {
    need_frames(clip, path);
    PendingFile file(path);
    file.write(clip.frames, static_cast<std::size_t>(clip.num_frames) * frame_size(clip));
    file.commit();
}

void write_ppm(const syncflow_clip& clip, const fs::path& path) {
    need_frames(clip, path);
    const Pattern pattern(path);
    const std::string header = "P6\n" + std::to_string(clip.width) + " " + std::to_string(clip.height) + "\n255\n";
    for (std::int64_t k = 0; k < clip.num_frames; ++k) {
        PendingFile file(path.parent_path() / pattern.name(k));
        file.write(header.data(), header.size());
        file.write(clip.frames + static_cast<std::size_t>(k) * frame_size(clip), frame_size(clip));
        file.commit();
    }
}

}  // namespace syncflow::media
