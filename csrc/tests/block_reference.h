// The blocks of syncflow/blocks.h in double precision; see reference.h.
#pragma once

#include "reference.h"

namespace syncflow::reference {

// Cross-attention of projected queries (N, n d) over keys and values (M, n d), and its output projection.
inline Matrix cross_attention(const Matrix& q, const Matrix& k, const Matrix& v, std::int64_t heads, const LinearWeights& out) {
    const std::int64_t width = q.columns / heads;
    Matrix attended(q.rows, q.columns);
    for (std::int64_t h = 0; h < heads; ++h) {
        const auto head = [&](const Matrix& x) { return columns_of(x, h * width, width); };
        put_columns(attention(head(q), head(k), head(v)), h * width, attended);
    }
    return linear(attended, out, q.columns);
}

// Every head of tokens (N, n d) rotated by rope (N, d / 2, 2).
inline Matrix rotate_heads(Matrix x, std::int64_t heads, const float* rope) {
    const std::int64_t width = x.columns / heads;
    for (std::int64_t h = 0; h < heads; ++h) put_columns(rotate(columns_of(x, h * width, width), rope), h * width, x);
    return x;
}

inline Matrix mlp(const Matrix& x, const BlockWeights& w) { return linear(gelu(linear(x, w.up, w.hidden)), w.down, w.width); }

inline Matrix sum(Matrix x, const Matrix& y) {
    for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] += y.values[i];
    return x;
}

inline Matrix rows_of(const Matrix& x, std::int64_t first, std::int64_t count) {
    Matrix part(count, x.columns);
    std::copy(x[first], x[first + count], part.values.begin());
    return part;
}

struct Texts {
    const float* keys;    // (P, M, n, d) at strides for the first two axes
    const float* values;  // the same
    std::int64_t prompt_stride, token_stride;
    const std::int64_t* lengths;  // (P)
};

struct BlockResult {
    Doubles attended, y, next;
};

inline BlockResult video_block(const BlockWeights& w, const float* table, const float* next_table, const Texts& texts,
                               const VideoBlock::Call& call) {
    const std::int64_t D = w.width, tokens_of_row = call.T * call.S, tokens = call.R * tokens_of_row;
    // Part `part` of `of` plus the modulation of a token.
    const auto modulation = [&](const float* of, std::int64_t part, std::int64_t token, std::int64_t c) {
        const std::int64_t row = token / tokens_of_row, frame = token % tokens_of_row / call.S;
        const float* const rows = call.modulation + row * call.row_stride + frame * call.frame_stride;
        return static_cast<double>(of[part * D + c]) + static_cast<double>(rows[part * D + c]);
    };
    const auto add_gated = [&](Matrix& x, const Matrix& branch, std::int64_t part) {
        for (std::int64_t t = 0; t < x.rows; ++t) {
            for (std::int64_t c = 0; c < D; ++c) x[t][c] += modulation(table, part, t, c) * branch[t][c];
        }
    };
    // LN(x) * (1 + part shift + 1) + part shift.
    const auto modulated_norm = [&](const Matrix& x, const float* of, std::int64_t shift) {
        Matrix normed = layer_norm(x, call.eps);
        for (std::int64_t t = 0; t < x.rows; ++t) {
            for (std::int64_t c = 0; c < D; ++c) {
                normed[t][c] = normed[t][c] * (1 + modulation(of, shift + 1, t, c)) + modulation(of, shift, t, c);
            }
        }
        return normed;
    };

    // Sequences are the tokens of a frame, or those at one place of all frames.
    const Matrix qkv = linear(read(call.normed, D, tokens, D), w.qkv, 3 * D);
    Matrix attention(tokens, D);
    const bool temporal = call.rope != nullptr;
    const std::int64_t length = temporal ? call.T : call.S, apart = temporal ? call.S : 1;
    for (std::int64_t sequence = 0; sequence < tokens / length; ++sequence) {
        const std::int64_t first = temporal ? sequence / call.S * tokens_of_row + sequence % call.S : sequence * call.S;
        Matrix part(length, 3 * D);
        for (std::int64_t i = 0; i < length; ++i) std::copy(qkv[first + i * apart], qkv[first + i * apart + 1], part[i]);
        const Matrix found = self_attention(part, w.heads, w.q_norm, w.k_norm, call.rope, call.eps);
        for (std::int64_t i = 0; i < length; ++i) std::copy(found[i], found[i + 1], attention[first + i * apart]);
    }
    Matrix x = read(call.x, D, tokens, D);
    add_gated(x, linear(attention, w.proj, D), 2);
    BlockResult result = {x.values, {}, {}};

    x = rows_of(x, 0, call.num_outputs * tokens_of_row);
    for (std::int64_t row = 0; row < call.num_outputs; ++row) {
        const std::int64_t prompt = call.text_of_row[row], at = prompt * texts.prompt_stride;
        const Matrix keys = read(texts.keys + at, texts.token_stride, texts.lengths[prompt], D);
        const Matrix values = read(texts.values + at, texts.token_stride, texts.lengths[prompt], D);
        const Matrix of_row = rows_of(x, row * tokens_of_row, tokens_of_row);
        const Matrix y = sum(of_row, cross_attention(linear(of_row, w.cross_query, D), keys, values, w.heads, w.cross_out));
        std::copy(y.values.begin(), y.values.end(), x[row * tokens_of_row]);
    }
    add_gated(x, mlp(modulated_norm(x, table, 3), w), 5);
    result.y = x.values;
    if (next_table != nullptr) result.next = modulated_norm(x, next_table, 0).values;
    return result;
}

inline BlockResult audio_layer(const BlockWeights& w, const float* norms, float norm_eps, const AudioLayer::Call& call) {
    const std::int64_t D = w.width;
    const auto add_norm = [&](const Matrix& x, const Matrix& branch, std::int64_t index) {
        const float* const weight = norms + 2 * index * D;
        return sum(x, layer_norm(branch, norm_eps, weight, weight + D));
    };
    BlockResult result;
    for (std::int64_t row = 0; row < call.R; ++row) {
        Matrix x = read(call.x + row * call.A * D, D, call.A, D);
        const Matrix attention = self_attention(linear(x, w.qkv, 3 * D), w.heads, w.q_norm, w.k_norm, call.rope, call.eps);
        x = add_norm(x, linear(attention, w.proj, D), 0);
        result.attended.insert(result.attended.end(), x.values.begin(), x.values.end());
        if (row >= call.num_outputs) continue;

        const std::int64_t context = call.context == nullptr ? -1 : call.context_of_row == nullptr ? row : call.context_of_row[row];
        const std::int64_t known = context < 0 ? 0 : call.M;
        Matrix key_value(known + call.E, 2 * D);
        if (known > 0) {
            Matrix part = read(call.context + context * call.M * 2 * D, 2 * D, call.M, 2 * D);
            put_columns(rotate_heads(columns_of(part, 0, D), w.heads, call.context_rope), 0, part);
            std::copy(part.values.begin(), part.values.end(), key_value[0]);
        }
        const Matrix tail = linear(read(call.tail + row * call.E * D, D, call.E, D), w.cross_key_value, 2 * D);
        std::copy(tail.values.begin(), tail.values.end(), key_value[known]);
        const Matrix q = rotate_heads(linear(x, w.cross_query, D), w.heads, call.rope);
        x = add_norm(x, cross_attention(q, columns_of(key_value, 0, D), columns_of(key_value, D, D), w.heads, w.cross_out), 1);
        x = add_norm(x, mlp(x, w), 2);
        result.y.insert(result.y.end(), x.values.begin(), x.values.end());
    }
    return result;
}

// (C, M, 2, n, d).
inline Doubles adaptor(const Adaptor::Parts& p, const Adaptor::Call& call) {
    const std::int64_t D = p.width;
    Doubles contexts;
    for (std::int64_t i = 0; i < call.C; ++i) {
        Matrix x = read(call.features + call.rows[i] * call.T * call.S * D, D, call.T * call.S, D);
        if (call.pooled) {
            Matrix frames(call.T, D);
            for (std::int64_t t = 0; t < x.rows; ++t) {
                for (std::int64_t c = 0; c < D; ++c) frames[t / call.S][c] += x[t][c] / static_cast<double>(call.S);
            }
            x = frames;
        }
        const Matrix attention = self_attention(linear(x, p.qkv, 3 * D), p.heads, p.q_norm, p.k_norm, call.rope, call.eps);
        const Matrix normed = layer_norm(linear(attention, p.proj, D), p.norm_eps, p.norm.weight, p.norm.bias);
        const Matrix context = linear(linear(normed, p.linear, D), p.key_value, 2 * D);
        contexts.insert(contexts.end(), context.values.begin(), context.values.end());
    }
    return contexts;
}

}  // namespace syncflow::reference
