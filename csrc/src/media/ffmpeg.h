// FFmpeg's objects with owners, and its errors as exceptions.
#pragma once

#include <memory>
#include <string>

#include "service/failure.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswresample/swresample.h>
#include <libswscale/swscale.h>
}

namespace syncflow::media {

template <auto free_function>
struct Free {
    template <typename T>
    void operator()(T* object) const {
        free_function(&object);
    }
};

struct FreeScaler {
    void operator()(SwsContext* scaler) const { sws_freeContext(scaler); }
};

using Codec = std::unique_ptr<AVCodecContext, Free<avcodec_free_context>>;
using Frame = std::unique_ptr<AVFrame, Free<av_frame_free>>;
using Packet = std::unique_ptr<AVPacket, Free<av_packet_free>>;
using Resampler = std::unique_ptr<SwrContext, Free<swr_free>>;
using Scaler = std::unique_ptr<SwsContext, FreeScaler>;

// FFmpeg prints to standard error; a program that has set a level of its own keeps it.
inline void log_only_fatal_errors() {
    if (av_log_get_level() == AV_LOG_INFO) av_log_set_level(AV_LOG_FATAL);
}

inline std::string sentence_of(int error) {
    char text[AV_ERROR_MAX_STRING_SIZE] = {};
    av_strerror(error, text, sizeof text);
    return text;
}

// A result of FFmpeg, which is negative for an error.
inline int checked(int result, syncflow_status status, const std::string& what) {
    if (result == AVERROR(ENOMEM)) throw std::bad_alloc();
    if (result < 0) throw service::Failure(status, what + ": " + sentence_of(result));
    return result;
}

template <typename Owner>
Owner allocated(typename Owner::pointer object) {
    if (object == nullptr) throw std::bad_alloc();
    return Owner(object);
}

}  // namespace syncflow::media
