// The passes of a d-DiT that the sampling loop asks for, whoever computes them (engine/model/denoiser.py).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/shape_tables.h"
#include "package/model_config.h"
#include "syncflow/blocks.h"
#include "syncflow/floats.h"

namespace syncflow::engine {

// A text as every block of the video tower reads it, and its projected tokens (L, D) where the audio tower reads them.
struct PromptText {
    std::vector<std::shared_ptr<const Text::Prompt>> blocks;  // of the native back end
    Floats keys, values;                                      // (blocks, L, n, d) of exported graphs,
    std::int64_t length = 0;                                  // and how many tokens count
    Floats tokens;
    std::int64_t bytes = 0;
};

// The text of every row.
struct TextRows {
    std::vector<std::shared_ptr<const PromptText>> prompts;
    std::vector<std::int64_t> of_row;
};

// What the tower needs of n flow times: shift, scale and gate of both halves of a block (n, 6, D), and the embedding of
// the final layer (n, D).
struct Modulation {
    Floats blocks, embedding;
};

// What one tower reads of the other: for each layer that reads, keys and values (C, M, 2, n, d) of C contexts.
struct Context {
    std::int64_t count = 0;
    std::vector<Floats> layers;
};

// Inputs of the video tower of a one-way model: R rows, or P prefixes of rows.
struct VideoInputs {
    const float* latents;  // (R, C_v, T, H, W)
    Modulation modulation;
    const TextRows* text;
    const ShapeTables* tables;
    std::int64_t num_outputs;  // rows after these serve for contexts alone
    // An `adaptor` model: the rows whose contexts are wanted, put behind the first `kept` contexts of `context`.
    std::span<const std::int64_t> context_rows = {};
    Context* context = nullptr;
    std::int64_t kept = 0;
    // An `audio_rope` model: what row r reads, or -1; and the prefix from which it goes on at the first bridge. May be empty.
    const Context* audio_context = nullptr;
    std::span<const std::int64_t> audio_context_of_row = {};
    std::span<const std::int64_t> prefix_of_row = {};
};

// Inputs of the audio tower of a one-way model, or of any model where the audio reads no video; R rows.
struct AudioInputs {
    const float* latents;                // (R, A, C_a)
    std::span<const float> time_tokens;  // (R, D)
    const TextRows* text;
    const ShapeTables* tables;
    std::int64_t num_outputs;
    // An `adaptor` model.
    const Context* video_context = nullptr;
    std::span<const std::int64_t> context_of_row = {};
    // An `audio_rope` model, as of VideoInputs.
    std::span<const std::int64_t> context_rows = {};
    Context* context = nullptr;
    std::int64_t kept = 0;
};

// Inputs of both towers of a `global_local` model, R rows, of which the first `bridged` read each other.
struct JointInputs {
    const float* video_latents;
    const float* audio_latents;
    Modulation modulation;
    std::span<const float> time_tokens;
    const TextRows* text;
    const ShapeTables* tables;
    std::int64_t bridged;
    std::vector<const Floats*> styles;  // (A_r, D) of each bridged row
    std::vector<std::int64_t> video_output_rows, audio_output_rows;
};

struct Velocities {
    Floats video, audio;  // of the output rows
};

class Denoiser {
   public:
    Denoiser() = default;
    Denoiser(const Denoiser&) = delete;
    Denoiser& operator=(const Denoiser&) = delete;
    virtual ~Denoiser() = default;

    virtual const DDiTConfig& config() const = 0;

    // What passes need of a shape; `frame_times`: the middle of each latent frame, in seconds (T).
    virtual ShapeTables tables(const LatentShape& shape, std::span<const double> frame_times) const = 0;

    // Of a text's encoder states (L, W), of which `length` count; and the states (L, W) that stand for no prompt.
    virtual std::shared_ptr<const PromptText> condition(const float* states, std::int64_t length, int threads) const = 0;
    virtual const Floats& null_text() const = 0;

    // Of flow times: what the video blocks need, and the token (n, D) that the audio reads.
    virtual Modulation modulation(std::span<const float> times, float fps, int threads) const = 0;
    virtual Floats audio_time(std::span<const float> times, int threads) const = 0;

    // Style tokens (A_r, D) of a reference sound (A_r, C_a), or of none.
    virtual Floats style(std::span<const float> reference, int threads) const = 0;

    // Velocity of the first `num_outputs` rows.
    virtual Floats video_pass(const VideoInputs& inputs, int threads) const = 0;
    virtual Floats audio_pass(const AudioInputs& inputs, int threads) const = 0;
    virtual Velocities joint_pass(const JointInputs& inputs, int threads) const = 0;

    // Keys and values of one context, of one layer of those that read: (M, 2, n, d), and how many layers these are.
    std::int64_t context_size(const ShapeTables& tables) const {
        return (config().bridge == Bridge::audio_rope ? tables.shape.audio_tokens : tables.context_tokens) * 2 * config().width;
    }
    std::int64_t context_layers() const { return config().bridge == Bridge::audio_rope ? config().depth - config().first_block : config().depth; }
};

}  // namespace syncflow::engine
