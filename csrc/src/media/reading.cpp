#include "media/reading.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>

#include "media/ffmpeg.h"
#include "media/pictures.h"

extern "C" {
#include <libavutil/display.h>
}

namespace syncflow::media {
namespace {

using engine::Clip;
using service::Failure;

constexpr std::size_t MAX_BYTES = std::size_t{1} << 32;  // of frames or samples
constexpr int SAMPLE_RATE = 48'000;

struct CloseInput {
    void operator()(AVFormatContext* input) const { avformat_close_input(&input); }
};

int quarter_turns(const AVStream& stream) {
#if LIBAVFORMAT_VERSION_INT >= AV_VERSION_INT(60, 15, 100)
    const AVPacketSideData* found =
        av_packet_side_data_get(stream.codecpar->coded_side_data, stream.codecpar->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
    const std::uint8_t* matrix = found == nullptr ? nullptr : found->data;
#else
    const std::uint8_t* matrix = av_stream_get_side_data(&stream, AV_PKT_DATA_DISPLAYMATRIX, nullptr);
#endif
    if (matrix == nullptr) return 0;
    const double degrees = av_display_rotation_get(reinterpret_cast<const std::int32_t*>(matrix));  // anticlockwise
    return std::isnan(degrees) ? 0 : (static_cast<int>(std::lround(degrees / 90)) % 4 + 4) % 4;
}

// A file that is being read into a clip.
class Reader {
   public:
    Reader(const std::filesystem::path& path, const syncflow_media_params& params) : params_(params), name_("cannot read " + path.string()) {
        if (!std::filesystem::exists(path)) throw Failure(SYNCFLOW_NOT_FOUND, name_ + ": there is no such file");
        log_only_fatal_errors();
        AVFormatContext* input = nullptr;
        check(avformat_open_input(&input, ("file:" + path.string()).c_str(), nullptr, nullptr));
        input_.reset(input);
        check(avformat_find_stream_info(input, nullptr));
        open(AVMEDIA_TYPE_VIDEO, video_, video_stream_);
        open(AVMEDIA_TYPE_AUDIO, audio_, audio_stream_);
        if (!video_ && !audio_) throw Failure(SYNCFLOW_CORRUPT, name_ + ": it holds neither a video nor a sound");
        clip_.sample_rate = params.sample_rate > 0 ? params.sample_rate : SAMPLE_RATE;
        if (video_) {
            const AVRational rate = av_guess_frame_rate(input, video_stream_, nullptr);
            clip_.fps = params.fps > 0 ? params.fps : av_q2d(rate);
            if (!(clip_.fps > 0)) throw Failure(SYNCFLOW_CORRUPT, name_ + ": it states no frame rate; set fps");
            pictures_.emplace(params.width, params.height, quarter_turns(*video_stream_));
        }
        const AVStream* first = video_ ? video_stream_ : audio_stream_;
        begins_ = (first->start_time == AV_NOPTS_VALUE ? 0 : static_cast<double>(first->start_time) * av_q2d(first->time_base)) + params.start;
        if (const AVDictionaryEntry* comment = av_dict_get(input->metadata, "comment", nullptr, 0)) {
            if (comment->value[0] == '{') clip_.provenance = comment->value;
        }
    }

    Clip read() {
        const Packet packet = allocated<Packet>(av_packet_alloc());
        while (!complete()) {
            const int result = av_read_frame(input_.get(), packet.get());
            if (result == AVERROR_EOF) break;
            check(result);
            decode(packet.get());
            av_packet_unref(packet.get());
        }
        decode(nullptr);
        finish();
        return std::move(clip_);
    }

   private:
    int check(int result) const { return checked(result, SYNCFLOW_CORRUPT, name_); }

    void open(AVMediaType type, Codec& context, AVStream*& stream) {
        const AVCodec* decoder = nullptr;
        const int index = av_find_best_stream(input_.get(), type, -1, -1, &decoder, 0);
        if (index < 0) return;
        stream = input_->streams[index];
        context = allocated<Codec>(avcodec_alloc_context3(decoder));
        check(avcodec_parameters_to_context(context.get(), stream->codecpar));
        context->pkt_timebase = stream->time_base;
        context->thread_count = 1;
        check(avcodec_open2(context.get(), decoder, nullptr));
    }

    // Whether nothing that follows belongs to the part that is asked for.
    bool complete() const {
        if (params_.seconds <= 0) return false;
        const bool seen = !video_ || clip_.num_frames >= frames_wanted();
        return seen && (!audio_ || sound_reached_ >= params_.seconds);
    }

    std::int64_t frames_wanted() const { return std::max(std::int64_t{1}, static_cast<std::int64_t>(std::llround(params_.seconds * clip_.fps))); }

    // A null packet ends both streams.
    void decode(const AVPacket* packet) {
        if (video_ && (packet == nullptr || packet->stream_index == video_stream_->index)) {
            decode(*video_, packet, [this](const AVFrame& frame) { add_picture(frame); });
        }
        if (audio_ && (packet == nullptr || packet->stream_index == audio_stream_->index)) {
            decode(*audio_, packet, [this](const AVFrame& frame) { add_sound(frame); });
        }
    }

    template <typename Use>
    void decode(AVCodecContext& context, const AVPacket* packet, Use use) {
        check(avcodec_send_packet(&context, packet));
        const Frame frame = allocated<Frame>(av_frame_alloc());
        for (;;) {
            const int received = avcodec_receive_frame(&context, frame.get());
            if (received == AVERROR(EAGAIN) || received == AVERROR_EOF) return;
            check(received);
            use(*frame);
            av_frame_unref(frame.get());
        }
    }

    // Each picture is shown until the next.
    void add_picture(const AVFrame& frame) {
        const double file_rate = av_q2d(av_guess_frame_rate(input_.get(), video_stream_, nullptr));
        const double length = file_rate > 0 ? 1 / file_rate : 1 / clip_.fps;
        const std::int64_t pts = frame.best_effort_timestamp;
        const double at = pts == AV_NOPTS_VALUE ? shown_until_ : static_cast<double>(pts) * av_q2d(video_stream_->time_base) - begins_;
        show_until(at);
        shown_ = pictures_->convert(frame);
        shown_until_ = at + length;
    }

    // Adds the picture that is shown for each time before `end`.
    void show_until(double end) {
        while (!shown_.empty() && static_cast<double>(clip_.num_frames) / clip_.fps < end - 1e-9) {
            if (params_.seconds > 0 && clip_.num_frames >= frames_wanted()) return;
            if (clip_.frames.size() + shown_.size() > MAX_BYTES) throw Failure(SYNCFLOW_INVALID_ARGUMENT, name_ + ": it has more than 4 GiB of frames");
            clip_.frames.insert(clip_.frames.end(), shown_.begin(), shown_.end());
            ++clip_.num_frames;
        }
    }

    void add_sound(const AVFrame& frame) {
        if (!resampler_) start_resampler(frame);
        const std::uint8_t** samples = const_cast<const std::uint8_t**>(frame.extended_data);
        resample(samples, frame.nb_samples);
    }

    void start_resampler(const AVFrame& frame) {
        AVChannelLayout mono = AV_CHANNEL_LAYOUT_MONO, layout = frame.ch_layout;  // not const: FFmpeg 5 wants them so
        SwrContext* context = nullptr;
        check(swr_alloc_set_opts2(&context, &mono, AV_SAMPLE_FMT_FLT, static_cast<int>(clip_.sample_rate), &layout,
            static_cast<AVSampleFormat>(frame.format), frame.sample_rate, 0, nullptr));
        resampler_.reset(context);
        if (layout.nb_channels == 2) av_opt_set_double(context, "rematrix_maxval", 1, 0);  // half of each
        check(swr_init(context));
        const std::int64_t pts = frame.best_effort_timestamp;
        const double at = pts == AV_NOPTS_VALUE ? 0 : static_cast<double>(pts) * av_q2d(audio_stream_->time_base) - begins_;
        sample_ = std::llround(at * static_cast<double>(clip_.sample_rate));
    }

    void resample(const std::uint8_t** samples, int count) {
        const int most = check(swr_get_out_samples(resampler_.get(), count));
        buffer_.resize(static_cast<std::size_t>(most));
        std::uint8_t* to[] = {reinterpret_cast<std::uint8_t*>(buffer_.data())};
        const int made = check(swr_convert(resampler_.get(), to, most, samples, count));
        for (int i = 0; i < made; ++i, ++sample_) {
            if (sample_ < 0) continue;
            if (static_cast<std::size_t>(sample_) >= MAX_BYTES / sizeof(float)) throw Failure(SYNCFLOW_INVALID_ARGUMENT, name_ + ": it has more than 4 GiB of sound");
            clip_.waveform.resize(std::max(clip_.waveform.size(), static_cast<std::size_t>(sample_) + 1));
            clip_.waveform[static_cast<std::size_t>(sample_)] = std::clamp(buffer_[static_cast<std::size_t>(i)], -1.0F, 1.0F);
        }
        sound_reached_ = static_cast<double>(sample_) / static_cast<double>(clip_.sample_rate);
    }

    // What lies beyond the end is the last frame, and silence.
    void finish() {
        if (resampler_) resample(nullptr, 0);
        double seconds = params_.seconds;
        if (video_) {
            if (shown_.empty()) throw Failure(SYNCFLOW_CORRUPT, name_ + ": it has no frames");
            show_until(seconds > 0 ? seconds : shown_until_);
            if (clip_.num_frames == 0) throw Failure(SYNCFLOW_INVALID_ARGUMENT, name_ + ": it ends before start");
            clip_.width = pictures_->width();
            clip_.height = pictures_->height();
            seconds = static_cast<double>(clip_.num_frames) / clip_.fps;
        }
        if (!audio_) clip_.sample_rate = 0;
        if (audio_ && seconds > 0) clip_.waveform.resize(static_cast<std::size_t>(std::llround(seconds * static_cast<double>(clip_.sample_rate))));
        if (!video_ && clip_.waveform.empty()) throw Failure(SYNCFLOW_CORRUPT, name_ + ": it has no sound");
    }

    const syncflow_media_params& params_;
    const std::string name_;
    std::unique_ptr<AVFormatContext, CloseInput> input_;
    Codec video_, audio_;
    AVStream* video_stream_ = nullptr;
    AVStream* audio_stream_ = nullptr;
    Clip clip_;
    double begins_ = 0;  // seconds in the file

    std::optional<Pictures> pictures_;
    std::vector<std::uint8_t> shown_;  // the last picture
    double shown_until_ = 0;           // seconds after the beginning

    Resampler resampler_;
    std::vector<float> buffer_;
    std::int64_t sample_ = 0;  // the index of the next
    double sound_reached_ = 0;
};

}  // namespace

std::shared_ptr<const Clip> read_clip(const std::filesystem::path& path, const syncflow_media_params& params) {
    return std::make_shared<const Clip>(Reader(path, params).read());
}

}  // namespace syncflow::media
