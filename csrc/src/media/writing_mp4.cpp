#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>

#include "media/ffmpeg.h"
#include "media/files.h"
#include "media/writing.h"

namespace syncflow::media {
namespace {

using service::Failure;

constexpr char QUALITY[] = "12";  // x264's crf
constexpr int AAC_BITS_PER_SAMPLE = 4;

// x264's AVX-512 code reads memory that it has not written: the same frames would give other files each time.
bool has_avx512() {
    std::ifstream features("/proc/cpuinfo");
    return std::string(std::istreambuf_iterator<char>(features), {}).find("avx512f") != std::string::npos;
}

// An mp4 that is being written, with its codecs.
class Mp4 {
   public:
    Mp4(const syncflow_clip& clip, const std::filesystem::path& path) : clip_(clip), name_("cannot write " + path.string()), file_(path) {
        log_only_fatal_errors();
        AVFormatContext* format = nullptr;
        check(avformat_alloc_output_context2(&format, nullptr, "mp4", file_.path().c_str()));
        format_.reset(format);
        if (clip.provenance != nullptr) check(av_dict_set(&format->metadata, "comment", clip.provenance, 0));
        add_video();
        if (clip.num_samples > 0) add_audio();
        check(avio_open(&format->pb, file_.path().c_str(), AVIO_FLAG_WRITE));
        AVDictionary* options = nullptr;
        av_dict_set(&options, "movflags", "faststart", 0);
        const int written = avformat_write_header(format, &options);
        av_dict_free(&options);
        check(written);
    }

    void write() {
        encode_frames();
        if (audio_) encode_waveform();
        check(av_write_trailer(format_.get()));
        check(avio_closep(&format_->pb));
        file_.commit();
    }

   private:
    struct FreeFormat {
        void operator()(AVFormatContext* format) const {
            avio_closep(&format->pb);
            avformat_free_context(format);
        }
    };

    int check(int result) const { return checked(result, SYNCFLOW_IO_ERROR, name_); }

    Codec codec(const char* encoder) const {
        const AVCodec* found = avcodec_find_encoder_by_name(encoder);
        if (found == nullptr) throw Failure(SYNCFLOW_UNSUPPORTED, name_ + ": this FFmpeg has no encoder " + encoder);
        Codec context = allocated<Codec>(avcodec_alloc_context3(found));
        if ((format_->oformat->flags & AVFMT_GLOBALHEADER) != 0) context->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
        context->thread_count = 1;
        return context;
    }

    AVStream* add_stream(AVCodecContext& context) const {
        AVStream* stream = avformat_new_stream(format_.get(), nullptr);
        if (stream == nullptr) throw std::bad_alloc();
        check(avcodec_open2(&context, nullptr, nullptr));
        check(avcodec_parameters_from_context(stream->codecpar, &context));
        stream->time_base = context.time_base;
        return stream;
    }

    void add_video() {
        if (clip_.width % 2 != 0 || clip_.height % 2 != 0) {
            throw Failure(SYNCFLOW_INVALID_ARGUMENT, name_ + ": mp4 needs an even width and height, not " + std::to_string(clip_.width) + "x" + std::to_string(clip_.height));
        }
        video_ = codec("libx264");
        const AVRational rate = av_d2q(clip_.fps, 1001);
        video_->width = static_cast<int>(clip_.width);
        video_->height = static_cast<int>(clip_.height);
        video_->pix_fmt = AV_PIX_FMT_YUV420P;
        video_->framerate = rate;
        video_->time_base = av_inv_q(rate);
        video_->colorspace = AVCOL_SPC_SMPTE170M;
        video_->color_primaries = AVCOL_PRI_SMPTE170M;
        video_->color_trc = AVCOL_TRC_SMPTE170M;
        video_->color_range = AVCOL_RANGE_MPEG;
        av_opt_set(video_->priv_data, "crf", QUALITY, 0);
        av_opt_set(video_->priv_data, "preset", "medium", 0);
        if (has_avx512()) av_opt_set(video_->priv_data, "x264-params", "asm=AVX2", 0);
        video_stream_ = add_stream(*video_);
        video_stream_->avg_frame_rate = rate;
    }

    void add_audio() {
        audio_ = codec("aac");
        const int* rates = audio_->codec->supported_samplerates;
        bool supported = rates == nullptr;
        for (const int* rate = rates; rate != nullptr && *rate != 0; ++rate) supported = supported || *rate == clip_.sample_rate;
        if (!supported) throw Failure(SYNCFLOW_INVALID_ARGUMENT, name_ + ": AAC has no sample rate " + std::to_string(clip_.sample_rate));
        audio_->sample_rate = clip_.sample_rate;
        audio_->sample_fmt = AV_SAMPLE_FMT_FLTP;
        audio_->ch_layout = AV_CHANNEL_LAYOUT_MONO;
        audio_->bit_rate = std::int64_t{AAC_BITS_PER_SAMPLE} * clip_.sample_rate;
        audio_->time_base = {1, clip_.sample_rate};
        audio_stream_ = add_stream(*audio_);
    }

    void encode_frames() {
        const int width = video_->width, height = video_->height;
        const Scaler scaler = allocated<Scaler>(sws_getContext(
            width, height, AV_PIX_FMT_RGB24, width, height, AV_PIX_FMT_YUV420P, SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP, nullptr, nullptr, nullptr));
        const int* coefficients = sws_getCoefficients(SWS_CS_ITU601);
        sws_setColorspaceDetails(scaler.get(), coefficients, 1, coefficients, 0, 0, 1 << 16, 1 << 16);
        for (std::int64_t k = 0; k < clip_.num_frames; ++k) {
            const Frame frame = allocated<Frame>(av_frame_alloc());
            frame->format = video_->pix_fmt;
            frame->width = width;
            frame->height = height;
            frame->pts = k;
            check(av_frame_get_buffer(frame.get(), 0));
            const std::uint8_t* rgb[] = {clip_.frames + k * clip_.height * clip_.width * 3};
            const int stride[] = {3 * width};
            check(sws_scale(scaler.get(), rgb, stride, 0, height, frame->data, frame->linesize));
            encode(*video_, *video_stream_, frame.get());
        }
        encode(*video_, *video_stream_, nullptr);
    }

    void encode_waveform() {
        const std::int64_t size = audio_->frame_size > 0 ? audio_->frame_size : 1024;
        for (std::int64_t first = 0; first < clip_.num_samples; first += size) {
            const std::int64_t count = std::min(size, clip_.num_samples - first);
            const Frame frame = allocated<Frame>(av_frame_alloc());
            frame->format = audio_->sample_fmt;
            frame->sample_rate = clip_.sample_rate;
            frame->ch_layout = audio_->ch_layout;
            frame->nb_samples = static_cast<int>(count);
            frame->pts = first;
            check(av_frame_get_buffer(frame.get(), 0));
            std::copy_n(clip_.waveform + first, count, reinterpret_cast<float*>(frame->data[0]));
            encode(*audio_, *audio_stream_, frame.get());
        }
        encode(*audio_, *audio_stream_, nullptr);
    }

    // A null frame ends the stream.
    void encode(AVCodecContext& context, const AVStream& stream, const AVFrame* frame) {
        check(avcodec_send_frame(&context, frame));
        const Packet packet = allocated<Packet>(av_packet_alloc());
        for (;;) {
            const int received = avcodec_receive_packet(&context, packet.get());
            if (received == AVERROR(EAGAIN) || received == AVERROR_EOF) return;
            check(received);
            av_packet_rescale_ts(packet.get(), context.time_base, stream.time_base);
            packet->stream_index = stream.index;
            check(av_interleaved_write_frame(format_.get(), packet.get()));
        }
    }

    const syncflow_clip& clip_;
    const std::string name_;
    PendingFile file_;
    std::unique_ptr<AVFormatContext, FreeFormat> format_;
    Codec video_, audio_;
    AVStream* video_stream_ = nullptr;
    AVStream* audio_stream_ = nullptr;
};

}  // namespace

void write_mp4(const syncflow_clip& clip, const std::filesystem::path& path) {
    if (clip.num_frames == 0) throw Failure(SYNCFLOW_INVALID_ARGUMENT, "cannot write " + path.string() + ": the clip has no frames; write a .wav");
    Mp4(clip, path).write();
}

}  // namespace syncflow::media
