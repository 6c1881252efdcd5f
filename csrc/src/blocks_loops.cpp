// The loops of blocks.h, compiled once for each set of instructions.
#include "blocks_loops.h"

#include <cstdint>

#include "tiles.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {

std::int64_t tail_scratch(std::int64_t width, std::int64_t keys, std::int64_t heads) {
    const std::int64_t scores = score_stride(heads * keys), reading = 2 * scores + 2 * width + keys + LANES;
    return TILE * most(3 * width + CHUNK, 2 * width + reading) + GROUP * most(most(width, CHUNK), scores) + 6 * width;
}

void head(const Head& call, std::int64_t unit, float* memory) {
    const std::int64_t width = call.width, heads = call.heads, of_head = width / heads, one = 3 * width;
    const std::int64_t first = first_of(call.tiles, unit), rows = last_of(call.tiles, unit) - first;
    float* const packed = call.packed + first * one;
    apply(call.qkv, call.x + first * width, width, rows, memory,
          [&](std::int64_t r, std::int64_t c, const Vector& found) { store(packed + r * one + c, found); });

    const float softmax = 1 / __builtin_sqrtf(static_cast<float>(of_head));
    for (std::int64_t r = 0; r < rows; r += LANES) {
        const std::int64_t live = rows - r < LANES ? rows - r : LANES;
        const float* turns[LANES] = {};
        for (std::int64_t i = 0; i < live && call.turns != nullptr; ++i) {
            turns[i] = call.turns + (first + r + i) / call.spread % call.length * of_head;
        }
        for (std::int64_t h = 0; h < heads; ++h) {
            float* const q = packed + r * one + h * of_head;
            prepare_heads(q, one, live, call.q_norm, turns, call.eps, of_head, softmax, q, one);
            prepare_heads(q + width, one, live, call.k_norm, turns, call.eps, of_head, 1, q + width, one);
        }
    }
}

void mix(const Mixing& call, std::int64_t unit, std::int64_t block, float* memory) {
    const std::int64_t width = call.width, length = call.length, stride = padded(length), token = call.token_stride;
    const std::int64_t blocks = (length + block - 1) / block, head = unit / blocks % call.heads, sequence = unit / blocks / call.heads;
    const std::int64_t first = unit % blocks * block, last = first + block < length ? first + block : length;
    const std::int64_t at = sequence / call.inner * call.outer_stride + sequence % call.inner * call.inner_stride;
    const float* const q = call.packed + at + head * width;
    const float* const k = q + call.heads * width;
    const float* const v = k + call.heads * width;
    float* const out = call.mixed + at / 3 + head * width;
    float* const keys = taken(memory, width * stride);
    float* const some = taken(memory, ROWS * width);
    for (std::int64_t j = 0; j < length; j += LANES) {
        for (std::int64_t c = 0; c < width; c += LANES) lay_across(k + j * token + c, token, length - j, keys + c * stride + j, stride);
    }
    for (std::int64_t i = first; i < last; i += ROWS) {
        const std::int64_t live = last - i < ROWS ? last - i : ROWS;
        float* const to = out + i * (token / 3);
        if (live == ROWS) {
            answer(q + i * token, token, live, keys, stride, length, width, v, token, to, token / 3, memory);
            continue;
        }
        for (std::int64_t r = 0; r < ROWS; ++r) {
            for (std::int64_t c = 0; c < width; c += LANES) store(some + r * width + c, load(q + (r < live ? i + r : i) * token + c));
        }
        answer(some, width, live, keys, stride, length, width, v, token, to, token / 3, memory);
    }
}

void adapt(const Adapting& call, std::int64_t context, float* memory) {
    const std::int64_t width = call.width, count = call.pooled ? call.T : call.T * call.S;
    const float* const features = call.features + call.rows[context] * call.T * call.S * width;
    float* const x = taken(memory, count * width);
    float* const packed = taken(memory, 3 * count * width);
    float* const mixed = taken(memory, count * width);
    float* const y = taken(memory, count * width);
    if (call.pooled) {
        const float share = 1 / static_cast<float>(call.S);
        for (std::int64_t t = 0; t < count; ++t) {
            for (std::int64_t c = 0; c < width; c += LANES) {
                Vector total = {};
                for (std::int64_t s = 0; s < call.S; ++s) total += load(features + (t * call.S + s) * width + c);
                store(x + t * width + c, total * share);
            }
        }
    }
    const Tiles whole = {count, (count + GROUP - 1) / GROUP, 1};
    head({call.pooled ? x : features, call.qkv, call.q_norm, call.k_norm, call.turns, packed, width, call.heads, 1, count, whole, call.eps},
         0, memory);
    const Mixing mixing = {packed, mixed, 1, 1, count, call.heads, width / call.heads, 0, 0, 3 * width};
    for (std::int64_t h = 0; h < call.heads; ++h) mix(mixing, h, count, memory);
    apply(call.proj, mixed, width, count, memory,
          [&](std::int64_t r, std::int64_t c, const Vector& found) { store(y + r * width + c, found); });
    for (std::int64_t r = 0; r < count; ++r) {
        normalize(y + r * width, width, call.norm_eps, [&](std::int64_t c, const Vector& found) {
            store(x + r * width + c, found * load(call.norm_weight + c) + load(call.norm_bias + c));
        });
    }
    apply(call.linear, x, width, count, memory,
          [&](std::int64_t r, std::int64_t c, const Vector& found) { store(y + r * width + c, found); });
    float* const out = call.context + context * count * 2 * width;
    apply(call.key_value, y, width, count, memory,
          [&](std::int64_t r, std::int64_t c, const Vector& found) { store(out + r * 2 * width + c, found); });
}

void video_tail(const VideoTail& call, std::int64_t unit, float* memory) {
    const std::int64_t width = call.width, section = unit / call.tiles.count, tile = unit % call.tiles.count;
    const std::int64_t row = section / call.sections_of_row, frame = section % call.sections_of_row;
    const std::int64_t first = first_of(call.tiles, tile), rows = last_of(call.tiles, tile) - first;
    const std::int64_t place = (section * call.tiles.tokens + first) * width;

    float* const modulation = taken(memory, 6 * width);
    const float* const given = call.rows + row * call.row_stride + frame * call.frame_stride;
    for (std::int64_t c = 0; c < 6 * width; ++c) modulation[c] = call.table[c] + given[c];
    const float *const gate = modulation + 2 * width, *const shift = modulation + 3 * width;
    const float *const scale = modulation + 4 * width, *const gate_mlp = modulation + 5 * width;

    float* const x = taken(memory, TILE * width);
    const float* const before = call.x + place;
    const bool drawn = row < call.drawn;
    const Reading* const text = drawn ? call.texts + call.text_of_row[row] : nullptr;
    float* const padding = taken(memory, GROUP * most(most(width, CHUNK), drawn ? score_stride(call.heads * text->count) : 0));
    apply(call.proj, call.mixed + place, width, rows, padding, [&](std::int64_t r, std::int64_t c, const Vector& found) {
        store(x + r * width + c, load(before + r * width + c) + load(gate + c) * found);
    });
    if (call.attended != nullptr) {
        for (std::int64_t c = 0; c < rows * width; c += LANES) store(call.attended + place + c, load(x + c));
    }
    if (!drawn) return;

    read(*text, call.query, call.read, nullptr, x, rows, call.heads, width, padding, memory,
         [&](std::int64_t r, std::int64_t c, const Vector& found) { store(x + r * width + c, load(x + r * width + c) + found); });
    float* const normed = taken(memory, TILE * width);
    for (std::int64_t r = 0; r < rows; ++r) {
        normalize(x + r * width, width, call.eps, [&](std::int64_t c, const Vector& found) {
            store(normed + r * width + c, found * (load(scale + c) + 1) + load(shift + c));
        });
    }
    float* const fed = taken(memory, TILE * width);
    feed(call.up, call.down, normed, rows, padding, memory, fed);
    float* const y = call.y + place;
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = r * width; c < (r + 1) * width; c += LANES) {
            store(y + c, load(x + c) + load(gate_mlp + c - r * width) * load(fed + c));
        }
    }
    if (call.next_table == nullptr) return;
    for (std::int64_t c = 0; c < width; ++c) {
        modulation[c] = call.next_table[c] + given[c];
        modulation[width + c] = call.next_table[width + c] + given[width + c];
    }
    for (std::int64_t r = 0; r < rows; ++r) {
        normalize(y + r * width, width, call.eps, [&](std::int64_t c, const Vector& found) {
            store(call.next + place + r * width + c, found * (load(modulation + width + c) + 1) + load(modulation + c));
        });
    }
}

void audio_keys(const AudioKeys& call, std::int64_t row, float* memory) {
    const std::int64_t width = call.width, heads = call.heads, of_head = width / heads;
    const std::int64_t context = call.context == nullptr ? -1 : call.context_of_row == nullptr ? row : call.context_of_row[row];
    const std::int64_t known = context < 0 ? 0 : call.M, count = known + call.E, stride = padded(count);
    float* const keys = call.keys + row * call.key_stride;
    float* const values = call.values + row * call.value_stride;
    float* const tail = taken(memory, call.E * 2 * width);
    float* const one = taken(memory, of_head);
    call.readings[row] = {count, call.folded, {keys, nullptr, 0, 0, 0}, {values, call.read_bias, width, heads * count, heads * count}};

    apply(call.key_value, call.tail + row * call.E * width, width, call.E, memory,
          [&](std::int64_t r, std::int64_t c, const Vector& found) { store(tail + r * 2 * width + c, found); });
    const float* const from = known == 0 ? tail : call.context + context * call.M * 2 * width;
    const float scale = 1 / __builtin_sqrtf(static_cast<float>(of_head));
    for (std::int64_t c = 0; c < width * stride; ++c) keys[c] = 0;
    for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t h = 0; h < heads; ++h) {
            const float* const key = (j < known ? from + j * 2 * width : tail + (j - known) * 2 * width) + h * of_head;
            for (std::int64_t c = 0; c < of_head; ++c) one[c] = key[c] * scale;
            if (j < known) rotate(one, call.context_turns + j * of_head, of_head);
            for (std::int64_t c = 0; c < of_head; ++c) keys[(h * of_head + c) * stride + j] = one[c];
        }
    }
    if (!call.folded) {
        for (std::int64_t j = 0; j < count; ++j) {
            const float* const value = (j < known ? from + j * 2 * width : tail + (j - known) * 2 * width) + width;
            for (std::int64_t c = 0; c < width; c += LANES) store(values + j * width + c, load(value + c));
        }
        return;
    }
    const auto put = [&](std::int64_t offset) {
        return [=](std::int64_t h, std::int64_t j, std::int64_t c, const Vector& found) {
            store(values + c / PANEL * heads * count * PANEL + (h * count + offset + j) * PANEL + c % PANEL, found);
        };
    };
    fold(from + width, 2 * width, known, heads, width, call.read_columns, put(0));
    fold(tail + width, 2 * width, call.E, heads, width, call.read_columns, put(known));
}

void audio_tail(const AudioTail& call, std::int64_t unit, float* memory) {
    const std::int64_t width = call.width, row = unit / call.tiles.count, tile = unit % call.tiles.count;
    const std::int64_t first = first_of(call.tiles, tile), rows = last_of(call.tiles, tile) - first;
    const std::int64_t place = (row * call.tiles.tokens + first) * width;
    const bool drawn = row < call.drawn;
    const float* const norms = call.norms;

    float* const x = taken(memory, TILE * width);
    float* const y = taken(memory, TILE * width);
    float* const padding =
        taken(memory, GROUP * most(most(width, CHUNK), drawn ? score_stride(call.heads * call.readings[row].count) : 0));
    const auto into_y = [&](std::int64_t r, std::int64_t c, const Vector& found) { store(y + r * width + c, found); };
    // to = from + LN(y)
    const auto add = [&](const float* from, std::int64_t which, float* to) {
        const float *const weight = norms + 2 * which * width, *const bias = weight + width;
        for (std::int64_t r = 0; r < rows; ++r) {
            normalize(y + r * width, width, call.norm_eps, [&](std::int64_t c, const Vector& found) {
                store(to + r * width + c, load(from + r * width + c) + (found * load(weight + c) + load(bias + c)));
            });
        }
    };
    apply(call.proj, call.mixed + place, width, rows, padding, into_y);
    add(call.x + place, 0, x);
    if (call.attended != nullptr) {
        for (std::int64_t c = 0; c < rows * width; c += LANES) store(call.attended + place + c, load(x + c));
    }
    if (!drawn) return;

    const float* const turns = call.turns + first * (width / call.heads);
    read(call.readings[row], call.query, call.read, turns, x, rows, call.heads, width, padding, memory, into_y);
    add(x, 1, x);

    feed(call.up, call.down, x, rows, padding, memory, y);
    add(x, 2, call.y + place);
}

void lay_keys(const float* keys, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width, float* laid) {
    const std::int64_t across = padded(count);
    const float scale = 1 / __builtin_sqrtf(static_cast<float>(width / heads));
    for (std::int64_t c = 0; c < width * across; ++c) laid[c] = 0;
    for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t c = 0; c < width; ++c) laid[c * across + j] = keys[j * stride + c] * scale;
    }
}

void fold_keys(const float* keys, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width, const float* rows,
               const float* bias, float* packed, float* packed_bias) {
    const std::int64_t of_head = width / heads, out = (heads * count + PANEL - 1) / PANEL * PANEL;
    const float scale = 1 / __builtin_sqrtf(static_cast<float>(of_head));
    for (std::int64_t c = 0; c < out * width; ++c) packed[c] = 0;
    for (std::int64_t c = 0; c < out; ++c) packed_bias[c] = 0;
    fold(keys, stride, count, heads, width, rows, [&](std::int64_t h, std::int64_t j, std::int64_t c, const Vector& found) {
        const std::int64_t one = h * count + j;
        float* const to = packed + one / PANEL * PANEL * width + one % PANEL;
        for (int v = 0; v < LANES; ++v) to[(c + v) * PANEL] = found[v] * scale;
    });
    for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t j = 0; j < count; ++j) {
            float product = 0;
            for (std::int64_t c = h * of_head; c < (h + 1) * of_head; ++c) product += bias[c] * keys[j * stride + c];
            packed_bias[h * count + j] = product * scale;
        }
    }
}

void fold_values(const float* values, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width,
                 const float* columns, float* packed) {
    fold(values, stride, count, heads, width, columns, [&](std::int64_t h, std::int64_t j, std::int64_t c, const Vector& found) {
        store(packed + c / PANEL * heads * count * PANEL + (h * count + j) * PANEL + c % PANEL, found);
    });
}

}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
