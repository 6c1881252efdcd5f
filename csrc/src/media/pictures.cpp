#include "media/pictures.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

namespace syncflow::media {
namespace {

struct Picture {
    std::vector<std::uint8_t> rgb;
    int width = 0, height = 0;
};

Picture turned(const Picture& picture) {  // by 90 degrees, anticlockwise
    Picture result = {std::vector<std::uint8_t>(picture.rgb.size()), picture.height, picture.width};
    for (int y = 0; y < picture.height; ++y) {
        for (int x = 0; x < picture.width; ++x) {
            const std::size_t from = 3 * (static_cast<std::size_t>(y) * static_cast<std::size_t>(picture.width) + static_cast<std::size_t>(x));
            const int row = picture.width - 1 - x;
            const std::size_t to = 3 * (static_cast<std::size_t>(row) * static_cast<std::size_t>(picture.height) + static_cast<std::size_t>(y));
            std::copy_n(picture.rgb.data() + from, 3, result.rgb.data() + to);
        }
    }
    return result;
}

// The scaler that is there if it fits, else another.
void renew(Scaler& scaler, int width, int height, AVPixelFormat format, int new_width, int new_height, int method) {
    SwsContext* context = sws_getCachedContext(
        scaler.release(), width, height, format, new_width, new_height, AV_PIX_FMT_RGB24, method | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, nullptr, nullptr, nullptr);
    if (context == nullptr) throw service::Failure(SYNCFLOW_UNSUPPORTED, "the format of the video's pixels cannot be converted");
    scaler.reset(context);
}

}  // namespace

std::vector<std::uint8_t> Pictures::convert(const AVFrame& frame) {
    const auto format = static_cast<AVPixelFormat>(frame.format);
    renew(to_rgb_, frame.width, frame.height, format, frame.width, frame.height, SWS_BICUBIC);
    const int* colors = sws_getCoefficients(frame.colorspace == AVCOL_SPC_BT709 ? SWS_CS_ITU709 : SWS_CS_ITU601);
    sws_setColorspaceDetails(to_rgb_.get(), colors, frame.color_range == AVCOL_RANGE_JPEG, colors, 1, 0, 1 << 16, 1 << 16);
    Picture picture = {std::vector<std::uint8_t>(3 * static_cast<std::size_t>(frame.width) * static_cast<std::size_t>(frame.height)), frame.width, frame.height};
    std::uint8_t* rgb[] = {picture.rgb.data()};
    const int rgb_stride[] = {3 * frame.width};
    checked(sws_scale(to_rgb_.get(), frame.data, frame.linesize, 0, frame.height, rgb, rgb_stride), SYNCFLOW_CORRUPT, "a picture cannot be read");

    double aspect = frame.sample_aspect_ratio.num > 0 ? av_q2d(frame.sample_aspect_ratio) : 1;  // of a pixel
    if (quarter_turns_ % 2 != 0) aspect = 1 / aspect;
    for (int turn = 0; turn < quarter_turns_; ++turn) picture = turned(picture);
    if (width_ == 0) width_ = std::max(1, static_cast<int>(std::lround(picture.width * aspect)));
    if (height_ == 0) height_ = picture.height;
    if (picture.width == width_ && picture.height == height_) return std::move(picture.rgb);

    const double scale = std::max(width_ / (picture.width * aspect), static_cast<double>(height_) / picture.height);
    const int width = std::clamp(static_cast<int>(std::lround(width_ / scale / aspect)), 1, picture.width);
    const int height = std::clamp(static_cast<int>(std::lround(height_ / scale)), 1, picture.height);
    const std::size_t x = static_cast<std::size_t>(picture.width - width) / 2, y = static_cast<std::size_t>(picture.height - height) / 2;
    const std::uint8_t* from[] = {picture.rgb.data() + 3 * (y * static_cast<std::size_t>(picture.width) + x)};
    const int from_stride[] = {3 * picture.width};
    renew(to_size_, width, height, AV_PIX_FMT_RGB24, width_, height_, scale < 1 ? SWS_AREA : SWS_LANCZOS);
    std::vector<std::uint8_t> result(3 * static_cast<std::size_t>(width_) * static_cast<std::size_t>(height_));
    std::uint8_t* to[] = {result.data()};
    const int to_stride[] = {3 * width_};
    checked(sws_scale(to_size_.get(), from, from_stride, 0, height, to, to_stride), SYNCFLOW_CORRUPT, "a picture cannot be resized");
    return result;
}

}  // namespace syncflow::media
