// Decoded video frames as RGB pictures.
#pragma once

#include <cstdint>
#include <vector>

#include "media/ffmpeg.h"

namespace syncflow::media {

// RGB, upright, one after the other. The first picture decides the size where none is asked for.
class Pictures {
   public:
    // `quarter_turns` anticlockwise make a picture upright. Width and height in pixels; 0: those of the first picture.
    Pictures(int width, int height, int quarter_turns) : width_(width), height_(height), quarter_turns_(quarter_turns) {}

    // The frame cut around its centre to the shape that is asked for, and resized. Throws service::Failure.
    std::vector<std::uint8_t> convert(const AVFrame& frame);

    int width() const { return width_; }
    int height() const { return height_; }

   private:
    int width_, height_, quarter_turns_;
    Scaler to_rgb_, to_size_;
};

}  // namespace syncflow::media
