// Clips to files and back: the bytes of the plain formats, mp4 through FFmpeg, and what is left where writing fails.
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numbers>
#include <string>
#include <vector>

#include "check.h"
#include "syncflow/syncflow.h"

#include <unistd.h>

namespace {

using namespace syncflow::test;
namespace fs = std::filesystem;

class Folder {
   public:
    Folder() : path_(fs::temp_directory_path() / ("syncflow-media-" + std::to_string(getpid()))) { fs::create_directories(path_); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() { fs::remove_all(path_); }

    std::string file(const std::string& name) const { return (path_ / name).string(); }
    std::size_t entries() const { return static_cast<std::size_t>(std::distance(fs::directory_iterator(path_), fs::directory_iterator())); }

   private:
    fs::path path_;
};

// A smooth picture that moves, and a tone.
struct Sample {
    explicit Sample(std::int64_t width = 64, std::int64_t height = 48, std::int64_t count = 16, std::int32_t rate = 16'000) {
        for (std::int64_t k = 0; k < count; ++k) {
            for (std::int64_t y = 0; y < height; ++y) {
                for (std::int64_t x = 0; x < width; ++x) {
                    frames.push_back(static_cast<std::uint8_t>(255 * x / width));
                    frames.push_back(static_cast<std::uint8_t>(255 * y / height));
                    frames.push_back(static_cast<std::uint8_t>(255 * k / count));
                }
            }
        }
        for (std::int64_t i = 0; i < count * rate / 8; ++i) {
            waveform.push_back(0.5F * static_cast<float>(std::sin(2 * std::numbers::pi * 440 * static_cast<double>(i) / rate)));
        }
        clip.struct_size = sizeof clip;
        clip.frames = frames.data();
        clip.num_frames = count;
        clip.height = height;
        clip.width = width;
        clip.fps = 8;
        clip.waveform = waveform.data();
        clip.num_samples = static_cast<std::int64_t>(waveform.size());
        clip.sample_rate = rate;
        clip.provenance = R"({"prompt": "a test", "seed": 7})";
    }

    std::vector<std::uint8_t> frames;
    std::vector<float> waveform;
    syncflow_clip clip = {};
};

std::string bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void expect_status(syncflow_status status, syncflow_status expected, const std::string& what) {
    if (status != expected) fail(what + ": " + syncflow_status_name(status) + ", " + syncflow_last_error());
}

std::uint32_t number(const std::string& bytes, std::size_t at, std::size_t size) {
    std::uint32_t value = 0;
    for (std::size_t i = size; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
    return value;
}

void a_wav_holds_the_samples(const Folder& folder) {
    Sample sample;
    sample.waveform[0] = 2;
    sample.waveform[1] = -2;
    const std::string path = folder.file("deep/er/sound.wav");
    expect_status(syncflow_clip_write(&sample.clip, path.c_str()), SYNCFLOW_OK, "wav");
    const std::string bytes = bytes_of(path);
    const auto count = static_cast<std::uint32_t>(sample.waveform.size());
    expect(bytes.size() == 44 + 2 * count && bytes.substr(0, 4) == "RIFF" && bytes.substr(8, 8) == "WAVEfmt ", "the header of a wav");
    expect(number(bytes, 4, 4) == bytes.size() - 8 && number(bytes, 40, 4) == 2 * count, "the sizes in it");
    expect(number(bytes, 22, 2) == 1 && number(bytes, 24, 4) == 16'000 && number(bytes, 28, 4) == 32'000 && number(bytes, 34, 2) == 16, "mono, 16 bit");
    expect(number(bytes, 44, 2) == 32767 && number(bytes, 46, 2) == static_cast<std::uint16_t>(-32767), "samples beyond 1 are cut");
    for (std::size_t i = 2; i < count; ++i) {
        const auto stored = static_cast<std::int16_t>(number(bytes, 44 + 2 * i, 2));
        expect(std::fabs(stored - sample.waveform[i] * 32767) <= 0.51, "a sample is rounded");
    }
    expect((fs::status(path).permissions() & fs::perms::owner_write) != fs::perms::none, "the file has the permissions of a new one");
}

void frames_are_written_raw_and_as_ppm(const Folder& folder) {
    const Sample sample;
    expect_status(syncflow_clip_write(&sample.clip, folder.file("clip.rgb").c_str()), SYNCFLOW_OK, "rgb");
    const std::string raw(sample.frames.begin(), sample.frames.end());
    expect(bytes_of(folder.file("clip.rgb")) == raw, "raw frames are those in memory");
    expect_status(syncflow_clip_write(&sample.clip, folder.file("picture_%03d.ppm").c_str()), SYNCFLOW_OK, "ppm");
    const std::size_t size = 3 * 64 * 48;
    for (std::size_t k : {0U, 7U, 15U}) {
        const std::string name = "picture_0" + std::string(k < 10 ? "0" : "") + std::to_string(k) + ".ppm";
        expect(bytes_of(folder.file(name)) == "P6\n64 48\n255\n" + raw.substr(k * size, size), "a frame as ppm");
    }
    for (const char* name : {"picture.ppm", "%d_%d.ppm", "%s.ppm", "%100d.ppm", "%.ppm", "%-3d.ppm", "%n%d.ppm"}) {
        expect_status(syncflow_clip_write(&sample.clip, folder.file(name).c_str()), SYNCFLOW_INVALID_ARGUMENT, name);
    }
}

void a_y4m_holds_the_colours(const Folder& folder) {
    const Sample sample;
    expect_status(syncflow_clip_write(&sample.clip, folder.file("clip.y4m").c_str()), SYNCFLOW_OK, "y4m");
    const std::string bytes = bytes_of(folder.file("clip.y4m")), header = "YUV4MPEG2 W64 H48 F8:1 Ip A1:1 C444\n";
    const std::size_t pixels = 64 * 48, frame = 6 + 3 * pixels;
    expect(bytes.substr(0, header.size()) == header && bytes.size() == header.size() + 16 * frame, "a header and 16 frames");
    for (std::size_t i = 0; i < pixels; i += 37) {
        const std::size_t at = header.size() + 5 * frame + 6 + i;
        const auto plane = [&](std::size_t k) { return static_cast<double>(static_cast<unsigned char>(bytes[at + k * pixels])); };
        const double y = 1.164384 * (plane(0) - 16), b = plane(1) - 128, r = plane(2) - 128;
        const std::uint8_t* rgb = sample.frames.data() + 3 * (5 * pixels + i);
        const double back[] = {y + 1.596027 * r, y - 0.391762 * b - 0.812968 * r, y + 2.017232 * b};
        for (int c = 0; c < 3; ++c) expect(std::fabs(back[c] - rgb[c]) <= 2.5, "BT.601, there and back");
    }
}

void a_failure_leaves_nothing(const Folder& folder) {
    Sample sample;
    const std::string kept = folder.file("kept.wav");
    expect_status(syncflow_clip_write(&sample.clip, kept.c_str()), SYNCFLOW_OK, "wav");
    const std::string before = bytes_of(kept);
    const std::size_t entries = folder.entries();
    sample.waveform[3] = std::numeric_limits<float>::quiet_NaN();
    expect_status(syncflow_clip_write(&sample.clip, kept.c_str()), SYNCFLOW_INVALID_ARGUMENT, "a sound with NaN");
    sample.waveform[3] = 0;
    expect_status(syncflow_clip_write(&sample.clip, folder.file("clip.xyz").c_str()), SYNCFLOW_INVALID_ARGUMENT, "an unknown suffix");
    expect_status(syncflow_clip_write(&sample.clip, (kept + "/below.wav").c_str()), SYNCFLOW_IO_ERROR, "a folder that is a file");
    expect_status(syncflow_clip_write(&sample.clip, "/dev/null/x.wav"), SYNCFLOW_IO_ERROR, "a folder that is a device");
    fs::create_directory(folder.file("folder.wav"));
    expect_status(syncflow_clip_write(&sample.clip, folder.file("folder.wav").c_str()), SYNCFLOW_IO_ERROR, "a folder");
    sample.clip.num_frames = 0;
    expect_status(syncflow_clip_write(&sample.clip, folder.file("none.rgb").c_str()), SYNCFLOW_INVALID_ARGUMENT, "no frames");
    expect(bytes_of(kept) == before && folder.entries() == entries + 1, "a failure changes no file and leaves none");
    expect_status(syncflow_clip_write(&sample.clip, kept.c_str()), SYNCFLOW_OK, "wav over another");
    fs::create_symlink("kept.wav", folder.file("link.wav"));
    sample.clip.num_samples = 10;
    expect_status(syncflow_clip_write(&sample.clip, folder.file("link.wav").c_str()), SYNCFLOW_OK, "through a link");
    expect(fs::is_symlink(folder.file("link.wav")) && bytes_of(kept).size() == 64, "a link is followed");
}

double psnr(const std::uint8_t* one, const std::uint8_t* other, std::size_t size) {
    double sum = 0;
    for (std::size_t i = 0; i < size; ++i) sum += std::pow(one[i] - other[i], 2);
    return 10 * std::log10(255 * 255 / (sum / static_cast<double>(size) + 1e-9));
}

struct Media {
    explicit Media(const std::string& path, const syncflow_media_params* params = nullptr) {
        expect_status(syncflow_media_read(path.c_str(), params, &handle), SYNCFLOW_OK, path);
        clip.struct_size = sizeof clip;
        expect_status(syncflow_media_clip(handle, &clip), SYNCFLOW_OK, "media_clip");
    }
    Media(const Media&) = delete;
    Media& operator=(const Media&) = delete;
    ~Media() {
        syncflow_media_close(handle);
        expect(syncflow_media_close(handle) == SYNCFLOW_INVALID_HANDLE, "closed media are recognised");
    }

    syncflow_media* handle = nullptr;
    syncflow_clip clip = {};
};

void an_mp4_is_read_back(const Folder& folder) {
    const Sample sample;
    const std::string path = folder.file("clip.mp4");
    expect_status(syncflow_clip_write(&sample.clip, path.c_str()), SYNCFLOW_OK, "mp4");
    const std::string bytes = bytes_of(path);
    expect_status(syncflow_clip_write(&sample.clip, path.c_str()), SYNCFLOW_OK, "mp4 again");
    expect(bytes_of(path) == bytes, "the same clip gives the same file");

    syncflow_media_params params;
    expect_status(syncflow_media_params_init(&params, sizeof params), SYNCFLOW_OK, "init");
    params.sample_rate = 16'000;
    const Media back(path, &params);
    expect(back.clip.num_frames == 16 && back.clip.width == 64 && back.clip.height == 48 && back.clip.fps == 8, "16 frames of 64x48");
    const double quality = psnr(back.clip.frames, sample.clip.frames, sample.frames.size());
    if (!(quality > 33)) fail("the frames of the mp4 have " + std::to_string(quality) + " dB");
    expect(back.clip.num_samples == sample.clip.num_samples && back.clip.sample_rate == 16'000, "the sound has its length");
    double same = 0, one = 0, other = 0;
    for (std::int64_t i = 0; i < back.clip.num_samples; ++i) {
        same += static_cast<double>(back.clip.waveform[i]) * static_cast<double>(sample.waveform[static_cast<std::size_t>(i)]);
        one += std::pow(back.clip.waveform[i], 2);
        other += std::pow(sample.waveform[static_cast<std::size_t>(i)], 2);
    }
    if (!(same / std::sqrt(one * other) > 0.95)) fail("the sound correlates by " + std::to_string(same / std::sqrt(one * other)));
    expect(back.clip.provenance != nullptr && std::string(back.clip.provenance) == sample.clip.provenance, "the provenance is in the comment");

    params.fps = 4;
    params.width = params.height = 32;
    params.start = 0.5;
    params.seconds = 1;
    const Media part(path, &params);
    expect(part.clip.num_frames == 4 && part.clip.width == 32 && part.clip.height == 32 && part.clip.num_samples == 16'000, "a part, cut and resized");
    for (std::int64_t k = 0; k < 4; ++k) {  // the blue channel counts frames: frame 2k + 4 is shown
        const double expected = static_cast<double>(255 * (2 * k + 4) / 16), found = part.clip.frames[(k * 32 * 32 + 500) * 3 + 2];
        if (std::fabs(expected - found) > 8) fail("frame " + std::to_string(k) + " is " + std::to_string(found) + ", not " + std::to_string(expected));
    }
    expect_status(syncflow_media_params_init(&params, sizeof params), SYNCFLOW_OK, "init");
    params.seconds = 4;
    const Media longer(path, &params);
    expect(longer.clip.num_frames == 32 && longer.clip.waveform[longer.clip.num_samples - 1] == 0, "beyond the end are the last frame and silence");
    const std::size_t size = 3 * 64 * 48;
    expect(psnr(longer.clip.frames + 31 * size, longer.clip.frames + 15 * size, size) > 80, "the last frame stays");

    const Sample odd(63, 48);
    expect_status(syncflow_clip_write(&odd.clip, folder.file("odd.mp4").c_str()), SYNCFLOW_INVALID_ARGUMENT, "an odd width");
    const Sample rate(64, 48, 16, 12'345);
    expect_status(syncflow_clip_write(&rate.clip, folder.file("rate.mp4").c_str()), SYNCFLOW_INVALID_ARGUMENT, "a rate that AAC does not have");
    Sample silent;
    silent.clip.num_samples = 0;
    expect_status(syncflow_clip_write(&silent.clip, folder.file("silent.mp4").c_str()), SYNCFLOW_OK, "a video without sound");
    expect(Media(folder.file("silent.mp4")).clip.num_samples == 0, "it has none");
}

void damaged_media_are_refused(const Folder& folder) {
    const std::string whole = bytes_of(folder.file("clip.mp4")), path = folder.file("damaged.mp4");
    const auto read = [&](const std::string& bytes) {
        std::ofstream(path, std::ios::binary) << bytes;
        syncflow_media* media = nullptr;
        const syncflow_status status = syncflow_media_read(path.c_str(), nullptr, &media);
        expect((status == SYNCFLOW_OK) == (media != nullptr), "a failure gives no handle");
        if (media != nullptr) syncflow_media_close(media);
        return status;
    };
    expect(read("") == SYNCFLOW_CORRUPT && read("no video at all") == SYNCFLOW_CORRUPT, "a file that is no media file is refused");
    expect(read(whole.substr(0, whole.size() / 20)) == SYNCFLOW_CORRUPT, "a truncated file is refused");
    Random random(1);
    for (int i = 0; i < 60; ++i) {
        std::string bytes = whole;
        for (int k = 0; k < 4; ++k) bytes[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(bytes.size())))] = static_cast<char>(random.below(256));
        const syncflow_status status = read(bytes);
        expect(status == SYNCFLOW_OK || status == SYNCFLOW_CORRUPT || status == SYNCFLOW_UNSUPPORTED || status == SYNCFLOW_INVALID_ARGUMENT || status == SYNCFLOW_OUT_OF_MEMORY,
            "a damaged file is read or refused");
    }
    syncflow_media* media = nullptr;
    expect_status(syncflow_media_read(folder.file("missing.mp4").c_str(), nullptr, &media), SYNCFLOW_NOT_FOUND, "a missing file");
    expect_status(syncflow_media_read(folder.file("clip.wav").c_str(), nullptr, nullptr), SYNCFLOW_INVALID_ARGUMENT, "no result");
}

void without_ffmpeg_it_says_so(const Folder& folder) {
    const Sample sample;
    syncflow_media* media = nullptr;
    expect_status(syncflow_clip_write(&sample.clip, folder.file("clip.mp4").c_str()), SYNCFLOW_UNSUPPORTED, "mp4");
    expect_status(syncflow_media_read(folder.file("clip.mp4").c_str(), nullptr, &media), SYNCFLOW_UNSUPPORTED, "media_read");
}

}  // namespace

int main() {
    const Folder folder;
    a_wav_holds_the_samples(folder);
    frames_are_written_raw_and_as_ppm(folder);
    a_y4m_holds_the_colours(folder);
    a_failure_leaves_nothing(folder);
    if (std::string(syncflow_build_info()).find("FFmpeg") != std::string::npos) {
        an_mp4_is_read_back(folder);
        damaged_media_are_refused(folder);
    } else {
        without_ffmpeg_it_says_so(folder);
    }
    std::puts("media: all checks hold");
}
