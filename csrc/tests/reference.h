// The formulas of syncflow/layers.h and syncflow/blocks.h in double precision, one element at a time: what the library is
// held to. Nothing here is fast, shared or clever.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "syncflow/blocks.h"
#include "syncflow/layers.h"

namespace syncflow::reference {

using Doubles = std::vector<double>;

constexpr double NOT_WRITTEN = std::numeric_limits<double>::quiet_NaN();

// Rows of doubles, one after the other.
class Matrix {
   public:
    Matrix(std::int64_t row_count, std::int64_t column_count)
        : rows(row_count), columns(column_count), values(static_cast<std::size_t>(row_count * column_count)) {}

    double* operator[](std::int64_t r) { return values.data() + r * columns; }
    const double* operator[](std::int64_t r) const { return values.data() + r * columns; }

    std::int64_t rows, columns;
    Doubles values;
};

inline void copy(const float* from, std::int64_t count, double* to) { std::copy(from, from + count, to); }

// `rows` rows of floats, `stride` floats apart.
inline Matrix read(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t columns) {
    Matrix x(rows, columns);
    for (std::int64_t r = 0; r < rows; ++r) copy(from + r * stride, columns, x[r]);
    return x;
}

inline Matrix columns_of(const Matrix& x, std::int64_t first, std::int64_t count) {
    Matrix part(x.rows, count);
    for (std::int64_t r = 0; r < x.rows; ++r) std::copy(x[r] + first, x[r] + first + count, part[r]);
    return part;
}

inline void put_columns(const Matrix& part, std::int64_t first, Matrix& x) {
    for (std::int64_t r = 0; r < x.rows; ++r) std::copy(part[r], part[r] + part.columns, x[r] + first);
}

// GELU in the tanh form.
inline double gelu(double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

inline Matrix gelu(Matrix x) {
    for (double& value : x.values) value = gelu(value);
    return x;
}

// x W^T + b.
inline Matrix linear(const Matrix& x, const LinearWeights& w, std::int64_t out) {
    Matrix y(x.rows, out);
    for (std::int64_t r = 0; r < x.rows; ++r) {
        for (std::int64_t o = 0; o < out; ++o) {
            y[r][o] = w.bias[o];
            for (std::int64_t c = 0; c < x.columns; ++c) y[r][o] += x[r][c] * w.weight[o * x.columns + c];
        }
    }
    return y;
}

// (x - mean) / sqrt(variance + eps) of every row.
inline Matrix layer_norm(Matrix x, double eps) {
    for (std::int64_t r = 0; r < x.rows; ++r) {
        double mean = 0, variance = 0;
        for (std::int64_t c = 0; c < x.columns; ++c) mean += x[r][c] / static_cast<double>(x.columns);
        for (std::int64_t c = 0; c < x.columns; ++c) variance += std::pow(x[r][c] - mean, 2) / static_cast<double>(x.columns);
        for (std::int64_t c = 0; c < x.columns; ++c) x[r][c] = (x[r][c] - mean) / std::sqrt(variance + eps);
    }
    return x;
}

// LN(x) * weight + bias.
inline Matrix layer_norm(const Matrix& x, double eps, const float* weight, const float* bias) {
    Matrix y = layer_norm(x, eps);
    for (std::int64_t r = 0; r < x.rows; ++r) {
        for (std::int64_t c = 0; c < x.columns; ++c) y[r][c] = y[r][c] * weight[c] + bias[c];
    }
    return y;
}

// x / sqrt(mean of x^2 + eps) * weight of every row.
inline Matrix rms_norm(Matrix x, double eps, const float* weight) {
    for (std::int64_t r = 0; r < x.rows; ++r) {
        double mean = 0;
        for (std::int64_t c = 0; c < x.columns; ++c) mean += x[r][c] * x[r][c] / static_cast<double>(x.columns);
        for (std::int64_t c = 0; c < x.columns; ++c) x[r][c] *= weight[c] / std::sqrt(mean + eps);
    }
    return x;
}

// Pairs of channels of every row rotated by their angles: rope (rows, d / 2, 2) holds cosines and sines; null: as it is.
inline Matrix rotate(Matrix x, const float* rope) {
    for (std::int64_t r = 0; rope != nullptr && r < x.rows; ++r) {
        for (std::int64_t c = 0; c < x.columns; c += 2) {
            const double cosine = rope[r * x.columns + c], sine = rope[r * x.columns + c + 1];
            const double first = x[r][c], second = x[r][c + 1];
            x[r][c] = first * cosine - second * sine;
            x[r][c + 1] = first * sine + second * cosine;
        }
    }
    return x;
}

// softmax(q k^T / sqrt(d)) v over the keys of which attends(query, key) holds; 0 where there are none.
template <typename Attends>
Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, Attends attends) {
    Matrix out(q.rows, v.columns);
    for (std::int64_t i = 0; i < q.rows; ++i) {
        std::vector<std::int64_t> keys;
        for (std::int64_t j = 0; j < k.rows; ++j) {
            if (attends(i, j)) keys.push_back(j);
        }
        Doubles weights;
        for (const std::int64_t j : keys) {
            double score = 0;
            for (std::int64_t c = 0; c < q.columns; ++c) score += q[i][c] * k[j][c];
            weights.push_back(score / std::sqrt(static_cast<double>(q.columns)));
        }
        const double largest = keys.empty() ? 0 : *std::max_element(weights.begin(), weights.end());
        double total = 0;
        for (double& weight : weights) total += weight = std::exp(weight - largest);
        for (std::size_t n = 0; n < keys.size(); ++n) {
            for (std::int64_t c = 0; c < v.columns; ++c) out[i][c] += weights[n] / total * v[keys[n]][c];
        }
    }
    return out;
}

inline Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v) {
    return attention(q, k, v, [](std::int64_t, std::int64_t) { return true; });
}

// Self-attention of one sequence of (q, k, v) (length, 3, n, d). -> (length, n d).
inline Matrix self_attention(const Matrix& qkv, std::int64_t heads, const float* q_weight, const float* k_weight, const float* rope,
                             double eps) {
    const std::int64_t all = qkv.columns / 3, width = all / heads;
    Matrix out(qkv.rows, all);
    for (std::int64_t h = 0; h < heads; ++h) {
        const Matrix q = rotate(rms_norm(columns_of(qkv, h * width, width), eps, q_weight), rope);
        const Matrix k = rotate(rms_norm(columns_of(qkv, all + h * width, width), eps, k_weight), rope);
        put_columns(attention(q, k, columns_of(qkv, 2 * all + h * width, width)), h * width, out);
    }
    return out;
}

// As it lies in `out`, which has `size` floats.
inline Doubles self_attention(const SelfAttention& call, std::int64_t size) {
    const std::int64_t all = call.heads * call.width;
    Doubles out(static_cast<std::size_t>(size), NOT_WRITTEN);
    for (std::int64_t i = 0; i < call.outer; ++i) {
        for (std::int64_t j = 0; j < call.inner; ++j) {
            const std::int64_t at = i * call.outer_stride + j * call.inner_stride;
            const Matrix qkv = read(call.qkv + at, call.token_stride, call.length, 3 * all);
            const Matrix attended = self_attention(qkv, call.heads, call.q_weight, call.k_weight, call.rope, call.eps);
            for (std::int64_t t = 0; t < call.length; ++t) {
                std::copy(attended[t], attended[t] + all, out.data() + (at + t * call.token_stride) / 3);
            }
        }
    }
    return out;
}

// (rows, queries, heads * width).
inline Doubles cross_attention(const CrossAttention& call) {
    const auto tokens_of = [&](const CrossAttention::Tokens& tokens, std::int64_t row, std::int64_t head, std::int64_t count) {
        return read(tokens.data + row * tokens.row + head * tokens.head, tokens.token, count, call.width);
    };
    Matrix out(call.rows * call.queries, call.heads * call.width);
    for (std::int64_t row = 0; row < call.rows; ++row) {
        const std::int64_t context = call.context_of_row == nullptr ? row : call.context_of_row[row];
        const std::int64_t known = context < 0 ? 0 : call.lengths == nullptr ? call.keys : call.lengths[context];
        const auto attends = [&](std::int64_t query, std::int64_t key) {
            if (key >= known || call.window < 0) return true;
            const double apart = static_cast<double>(call.q_positions[query]) - static_cast<double>(call.k_positions[key]);
            return std::fabs(apart) <= call.window;
        };
        for (std::int64_t head = 0; head < call.heads; ++head) {
            Matrix k(known + call.tail, call.width), v(known + call.tail, call.width);
            const auto put = [](const Matrix& part, std::int64_t first, Matrix& all) {
                std::copy(part.values.begin(), part.values.end(), all[first]);
            };
            if (known > 0) {
                put(rotate(tokens_of(call.k, context, head, known), call.k_rope), 0, k);
                put(tokens_of(call.v, context, head, known), 0, v);
            }
            if (call.tail > 0) {
                put(tokens_of(call.tail_k, row, head, call.tail), known, k);
                put(tokens_of(call.tail_v, row, head, call.tail), known, v);
            }
            const Matrix attended = attention(rotate(tokens_of(call.q, row, head, call.queries), call.q_rope), k, v, attends);
            for (std::int64_t i = 0; i < call.queries; ++i) {
                std::copy(attended[i], attended[i] + call.width, out[row * call.queries + i] + head * call.width);
            }
        }
    }
    return out.values;
}

struct Normed {
    Doubles y, normed;
};

inline Normed residual_norm(const ResidualNorm& call) {
    const std::int64_t groups = call.rows * call.frames;
    Matrix y = read(call.x, call.width, groups * call.tokens, call.width);
    Matrix normed(call.shift_table == nullptr ? 0 : y.rows, call.width);
    // (table + rows)[c] of a token.
    const auto modulation = [&](const float* table, const float* rows, std::int64_t token, std::int64_t c) {
        const std::int64_t group = token / call.tokens;
        const std::int64_t at = group / call.frames * call.row_stride + group % call.frames * call.frame_stride;
        return static_cast<double>(table[c]) + static_cast<double>(rows[at + c]);
    };
    for (std::int64_t t = 0; call.branch != nullptr && t < y.rows; ++t) {
        for (std::int64_t c = 0; c < call.width; ++c) {
            const double gate = call.gate_table == nullptr ? 1 : modulation(call.gate_table, call.gate_rows, t, c);
            y[t][c] += gate * call.branch[t * call.width + c];
        }
    }
    if (normed.rows > 0) normed = layer_norm(y, call.eps);
    for (std::int64_t t = 0; t < normed.rows; ++t) {
        for (std::int64_t c = 0; c < call.width; ++c) {
            const double scale = modulation(call.scale_table, call.scale_rows, t, c);
            normed[t][c] = normed[t][c] * (1 + scale) + modulation(call.shift_table, call.shift_rows, t, c);
        }
    }
    return {y.values, normed.values};
}

// (requests, size).
inline Doubles guided_step(const GuidedStep& call) {
    Matrix out = read(call.z, call.size, call.requests, call.size);
    for (std::int64_t request = 0; request < call.requests; ++request) {
        for (std::int64_t g = request * call.branches; g < (request + 1) * call.branches; ++g) {
            for (std::int64_t c = 0; call.weights[g] != 0 && c < call.size; ++c) {
                const double weighted = static_cast<double>(call.weights[g]) * call.v[call.rows[g] * call.v_stride + c];
                out[request][c] += call.dt[request] * weighted;
            }
        }
    }
    return out.values;
}

}  // namespace syncflow::reference
