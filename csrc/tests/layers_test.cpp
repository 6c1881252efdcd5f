// Layers against their formulas in double precision: odd and prime shapes, gaps between rows, unaligned buffers.
#include "syncflow/layers.h"

#include <vector>

#include "cpu_check.h"
#include "reference.h"

namespace {

using namespace syncflow;
using namespace syncflow::test;

constexpr int CASES = 60;  // of every layer

// The width of a head: fewer channels than a register of some level has, whole registers, and some left over.
std::int64_t head_width(Random& random) { return random.pick({2, 8, 16, 24, 30, 32, 48, 72}); }

void linear_is_its_formula() {
    for (int number = 0; number < CASES; ++number) {
        Random random(number);
        const std::int64_t rows = random.pick({0, 1, 2, 3, 5, 7, 8, 9, 13, 33, 70, 131}), in = random.pick({1, 3, 16, 31, 128});
        const std::int64_t out = random.pick({1, 5, 31, 32, 33, 48, 100, 257}), stride = in + random.pick({0, 5});
        const bool gelu = random.coin();
        begin_case("linear", number, {{"rows", rows}, {"in", in}, {"out", out}, {"stride", stride}, {"gelu", gelu}});
        const Buffer x = random.normal(rows == 0 ? 0 : (rows - 1) * stride + in);
        const Buffer weight = random.normal(out * in, 1 / std::sqrt(static_cast<double>(in)));
        const Buffer bias = random.normal(out, random.coin() ? 1 : 40);  // 40: where GELU is 0 or its argument
        Buffer packed = blank(packed_size(out, in), random.coin());
        pack(weight.data(), out, in, packed.data());
        const auto call = [&](std::int64_t first, std::int64_t count, float* y) {
            return Linear{.x = x.data() + first * stride,
                          .packed = packed.data(),
                          .bias = bias.data(),
                          .y = y,
                          .rows = count,
                          .in = in,
                          .out = out,
                          .x_stride = stride,
                          .gelu = gelu};
        };
        const Buffer y = output_of(rows * out, random, [&](float* to, int threads) { linear(call(0, rows, to), threads); });
        const auto expected = reference::linear(reference::read(x.data(), stride, rows, in), {weight.data(), bias.data()}, out);
        expect_close(y, (gelu ? reference::gelu(expected) : expected).values, "y");
        if (rows == 0) continue;
        const std::int64_t row = random.below(rows);
        Buffer alone = blank(out, random.coin());
        linear(call(row, 1, alone.data()), 1);
        expect_same_bits(alone.data(), y.data() + row * out, out, "a row alone");
    }
}

void self_attention_is_its_formula() {
    for (int number = 0; number < CASES; ++number) {
        Random random(number);
        const std::int64_t outer = random.pick({1, 2, 5}), inner = random.pick({1, 3}), heads = random.pick({1, 2, 3, 4});
        const std::int64_t length = random.pick({0, 1, 2, 3, 5, 16, 17, 24, 25, 31, 70, 131}), width = head_width(random);
        const std::int64_t all = heads * width, gap = random.pick({0, 0, 4});
        const std::int64_t inner_stride = 3 * (all + gap), token_stride = inner * inner_stride, outer_stride = length * token_stride;
        const bool rotated = random.coin();
        begin_case("self-attention", number, {{"outer", outer}, {"inner", inner}, {"length", length}, {"heads", heads},
                                              {"width", width}, {"gap", gap}, {"rotated", rotated}});
        const Buffer qkv = random.normal(std::max<std::int64_t>(outer * outer_stride - 3 * gap, 0));
        const Buffer q_weight = random.normal(width, 0.3, 1), k_weight = random.normal(width, 0.3, 1);
        const Buffer rope = random.rotations(length * width / 2);
        const auto call = [&](std::int64_t i, std::int64_t j, std::int64_t outers, std::int64_t inners, float* out) {
            return SelfAttention{.qkv = qkv.data() + i * outer_stride + j * inner_stride,
                                 .q_weight = q_weight.data(),
                                 .k_weight = k_weight.data(),
                                 .rope = rotated ? rope.data() : nullptr,
                                 .out = out,
                                 .outer = outers,
                                 .inner = inners,
                                 .length = length,
                                 .heads = heads,
                                 .width = width,
                                 .outer_stride = outer_stride,
                                 .inner_stride = inner_stride,
                                 .token_stride = token_stride,
                                 .eps = 1e-6f};
        };
        const std::int64_t size = std::max<std::int64_t>(outer * outer_stride / 3 - gap, 0);
        const Buffer out = output_of(size, random, [&](float* to, int threads) { self_attention(call(0, 0, outer, inner, to), threads); });
        expect_close(out, reference::self_attention(call(0, 0, outer, inner, nullptr), size), "out");
        if (length == 0) continue;
        const std::int64_t i = random.below(outer), j = random.below(inner);
        Buffer alone = blank((length - 1) * token_stride / 3 + all, random.coin());
        self_attention(call(i, j, 1, 1, alone.data()), 1);
        const float* const among_others = out.data() + (i * outer_stride + j * inner_stride) / 3;
        for (std::int64_t t = 0; t < length * token_stride / 3; t += token_stride / 3) {
            expect_same_bits(alone.data() + t, among_others + t, all, "a sequence alone");
        }
    }
}

// Tokens (rows, count, heads, width), or (rows, heads, count, width).
class TokenBuffer {
   public:
    TokenBuffer(Random& random, std::int64_t rows, std::int64_t count, std::int64_t heads, std::int64_t width, double deviation = 1)
        : buffer_(random.normal(rows * count * heads * width, deviation)),
          row_(count * heads * width),
          token_(random.coin() ? width : heads * width),
          head_(token_ == width ? count * width : width) {}

    // From one row on.
    CrossAttention::Tokens from(std::int64_t row) const { return {.data = buffer_.data() + row * row_, .row = row_, .token = token_, .head = head_}; }

   private:
    Buffer buffer_;
    std::int64_t row_, token_, head_;
};

// Places on a grid, so that a distance is the same in float32.
Buffer positions(Random& random, std::int64_t count) {
    Buffer places(count, random.coin());
    for (std::int64_t i = 0; i < count; ++i) places.data()[i] = 0.25f * static_cast<float>(random.below(64));
    return places;
}

void cross_attention_is_its_formula() {
    for (int number = 0; number < 2 * CASES; ++number) {
        Random random(number);
        const std::int64_t rows = random.pick({1, 2, 3}), queries = random.pick({1, 5, 9, 24, 33, 131}), heads = random.pick({1, 2, 4});
        const std::int64_t width = head_width(random), keys = random.pick({1, 3, 16, 21, 40}), tail = random.pick({0, 1, 5, 17});
        const bool shared = random.coin(), of_lengths = random.coin(), rotated = random.coin(), windowed = random.coin();
        const float window = windowed ? static_cast<float>(random.pick({0, 1, 3})) : -1;
        begin_case("cross-attention", number,
                   {{"rows", rows}, {"queries", queries}, {"heads", heads}, {"width", width}, {"keys", keys}, {"tail", tail},
                    {"shared", shared}, {"lengths", of_lengths}, {"rotated", rotated}, {"window", static_cast<std::int64_t>(window)}});
        const std::int64_t contexts = shared ? 2 : rows;
        const TokenBuffer q(random, rows, queries, heads, width, random.coin() ? 1 : 8);  // 8: weights of nearly 0 and 1
        const TokenBuffer k(random, contexts, keys, heads, width), v(random, contexts, keys, heads, width);
        const TokenBuffer tail_k(random, rows, tail, heads, width), tail_v(random, rows, tail, heads, width);
        const std::vector<std::int64_t> context_of_row = random.integers(rows, -1, contexts - 1);
        const std::vector<std::int64_t> lengths = random.integers(contexts, 0, keys);
        const Buffer q_rope = random.rotations(queries * width / 2), k_rope = random.rotations(keys * width / 2);
        const Buffer q_positions = positions(random, queries), k_positions = positions(random, keys);
        // A row's own context is the row's, so a part of the rows begins at a part of the contexts.
        const auto call = [&](std::int64_t row, std::int64_t count, float* out) {
            const std::int64_t context = shared ? 0 : row;
            return CrossAttention{.q = q.from(row),
                                  .k = k.from(context),
                                  .v = v.from(context),
                                  .tail_k = tail == 0 ? CrossAttention::Tokens{} : tail_k.from(row),
                                  .tail_v = tail == 0 ? CrossAttention::Tokens{} : tail_v.from(row),
                                  .out = out,
                                  .rows = count,
                                  .queries = queries,
                                  .heads = heads,
                                  .width = width,
                                  .keys = keys,
                                  .tail = tail,
                                  .context_of_row = shared ? context_of_row.data() + row : nullptr,
                                  .lengths = of_lengths ? lengths.data() + context : nullptr,
                                  .q_rope = rotated ? q_rope.data() : nullptr,
                                  .k_rope = rotated ? k_rope.data() : nullptr,
                                  .q_positions = windowed ? q_positions.data() : nullptr,
                                  .k_positions = windowed ? k_positions.data() : nullptr,
                                  .window = window};
        };
        const std::int64_t size = queries * heads * width;
        const Buffer out = output_of(rows * size, random, [&](float* to, int threads) { cross_attention(call(0, rows, to), threads); });
        expect_close(out, reference::cross_attention(call(0, rows, nullptr)), "out");
        const std::int64_t row = random.below(rows);
        Buffer alone = blank(size, random.coin());
        cross_attention(call(row, 1, alone.data()), 1);
        expect_same_bits(alone.data(), out.data() + row * size, size, "a row alone");
    }
}

void residual_norm_is_its_formula() {
    for (int number = 0; number < CASES; ++number) {
        Random random(number);
        const std::int64_t rows = random.pick({1, 2, 3}), frames = random.pick({1, 2, 5}), tokens = random.pick({1, 3, 31});
        const std::int64_t width = random.pick({1, 2, 7, 16, 31, 33, 48, 128, 257}), of_frame = random.coin() ? 3 * width : 0;
        const std::int64_t row_stride = (of_frame == 0 ? 3 : 3 * frames) * width + random.pick({0, 5});
        const bool adds = random.coin(), norms = !adds || random.coin(), gated = random.coin();
        begin_case("residual and norm", number, {{"rows", rows}, {"frames", frames}, {"tokens", tokens}, {"width", width},
                                                 {"by frame", of_frame > 0}, {"adds", adds}, {"gated", gated}, {"norms", norms}});
        const std::int64_t row_size = frames * tokens * width, size = rows * row_size;
        const Buffer x = random.normal(size), branch = random.normal(size), table = random.normal(3 * width, 0.3);
        const Buffer modulation = random.normal((rows - 1) * row_stride + (of_frame == 0 ? 1 : frames) * 3 * width, 0.3);
        const auto call = [&](std::int64_t row, std::int64_t count, float* y, float* normed) {
            const float *const gate = modulation.data() + row * row_stride, *const shift = gate + width, *const scale = shift + width;
            return ResidualNorm{.x = x.data() + row * row_size,
                                .branch = adds ? branch.data() + row * row_size : nullptr,
                                .gate_table = gated ? table.data() : nullptr,
                                .gate_rows = gated ? gate : nullptr,
                                .shift_table = norms ? table.data() + width : nullptr,
                                .shift_rows = norms ? shift : nullptr,
                                .scale_table = norms ? table.data() + 2 * width : nullptr,
                                .scale_rows = norms ? scale : nullptr,
                                .y = adds ? y : nullptr,
                                .normed = norms ? normed : nullptr,
                                .rows = count,
                                .frames = frames,
                                .tokens = tokens,
                                .width = width,
                                .row_stride = row_stride,
                                .frame_stride = of_frame,
                                .eps = 1e-6f};
        };
        const auto outputs = outputs_of(
            {adds ? size : 0, norms ? size : 0}, random,
            [&](std::vector<Buffer>& to, int threads) { residual_norm(call(0, rows, to[0].data(), to[1].data()), threads); },
            spoil_thread_memory);
        const reference::Normed expected = reference::residual_norm(call(0, rows, nullptr, nullptr));
        if (adds) expect_close(outputs[0], expected.y, "y");
        if (norms) expect_close(outputs[1], expected.normed, "normed");
        const std::int64_t row = random.below(rows);
        Buffer y = blank(row_size, random.coin()), normed = blank(row_size, random.coin());
        residual_norm(call(row, 1, y.data(), normed.data()), 1);
        if (adds) expect_same_bits(y.data(), outputs[0].data() + row * row_size, row_size, "y of a row alone");
        if (norms) expect_same_bits(normed.data(), outputs[1].data() + row * row_size, row_size, "the norm of a row alone");
    }
}

void guided_step_is_its_formula() {
    for (int number = 0; number < CASES; ++number) {
        Random random(number);
        const std::int64_t requests = random.pick({1, 2, 3, 7}), branches = random.pick({1, 2, 3, 5}), size = random.pick({1, 9, 100, 10007});
        const std::int64_t v_stride = size + random.pick({0, 3}), v_rows = requests * branches;
        begin_case("guided step", number, {{"requests", requests}, {"branches", branches}, {"size", size}, {"v stride", v_stride}});
        const Buffer z = random.normal(requests * size), dt = random.normal(requests, 0.1);
        Buffer v = random.normal((v_rows - 1) * v_stride + size), weights = random.normal(v_rows);
        std::vector<std::int64_t> rows = random.integers(v_rows, 0, v_rows - 1);
        // A branch of weight 0 is not read: it may hold anything.
        const std::int64_t absent = random.below(v_rows);
        std::fill_n(v.data() + absent * v_stride, size, NOT_WRITTEN);
        for (std::int64_t g = 0; g < v_rows; ++g) {
            if (rows[static_cast<std::size_t>(g)] == absent) weights.data()[g] = 0;
        }
        const auto call = [&](std::int64_t request, std::int64_t count, float* out) {
            const std::int64_t branch = request * branches;
            return GuidedStep{.z = z.data() + request * size,
                              .v = v.data(),
                              .rows = rows.data() + branch,
                              .weights = weights.data() + branch,
                              .dt = dt.data() + request,
                              .out = out,
                              .requests = count,
                              .branches = branches,
                              .size = size,
                              .v_stride = v_stride};
        };
        const Buffer out = output_of(requests * size, random, [&](float* to, int threads) { guided_step(call(0, requests, to), threads); });
        expect_close(out, reference::guided_step(call(0, requests, nullptr)), "out");
        const std::int64_t request = random.below(requests);
        Buffer alone = blank(size, random.coin());
        guided_step(call(request, 1, alone.data()), 1);
        expect_same_bits(alone.data(), out.data() + request * size, size, "a request alone");
    }
}

}  // namespace

int main() {
    return run_at_level("layers", {linear_is_its_formula, self_attention_is_its_formula, cross_attention_is_its_formula,
                                   residual_norm_is_its_formula, guided_step_is_its_formula});
}
