// Blocks against their formulas in double precision: odd shapes, texts and contexts that are folded and that are not.
#include "syncflow/blocks.h"

#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "block_reference.h"
#include "cpu_check.h"

namespace {

using namespace syncflow;
using namespace syncflow::test;

constexpr int CASES = 40;  // of every block
constexpr float EPS = 1e-6f, NORM_EPS = 1e-5f;

// The weights of a block, drawn so that every layer leaves values of about 1.
class RandomWeights {
   public:
    RandomWeights(Random& random, std::int64_t width, std::int64_t heads, std::int64_t hidden)
        : view_{.width = width,
                .heads = heads,
                .hidden = hidden,
                .qkv = layer(random, 3 * width, width),
                .proj = layer(random, width, width),
                .q_norm = kept(random.normal(width / heads, 0.3, 1)),
                .k_norm = kept(random.normal(width / heads, 0.3, 1)),
                .cross_query = layer(random, width, width),
                .cross_key_value = layer(random, 2 * width, width),
                .cross_out = layer(random, width, width),
                .up = layer(random, hidden, width),
                .down = layer(random, width, hidden)} {}

    const BlockWeights& view() const { return view_; }

   private:
    const float* kept(Buffer values) {
        buffers_.push_back(std::make_unique<Buffer>(std::move(values)));
        return buffers_.back()->data();
    }

    LinearWeights layer(Random& random, std::int64_t out, std::int64_t in) {
        const float* const weight = kept(random.normal(out * in, 1 / std::sqrt(static_cast<double>(in))));
        return {weight, kept(random.normal(out, 0.3))};
    }

    std::vector<std::unique_ptr<Buffer>> buffers_;
    BlockWeights view_;
};

struct Sizes {
    std::int64_t width, heads, hidden;
};

// Heads of 16 channels and more, and every kind of rest that a chunk of hidden channels leaves.
Sizes draw_sizes(Random& random) {
    constexpr std::pair<std::int64_t, std::int64_t> widths_and_heads[] = {{32, 1}, {32, 2}, {64, 2}, {64, 4}, {96, 2}, {96, 3}, {96, 6}, {160, 5}};
    const auto [width, heads] = widths_and_heads[random.below(std::ssize(widths_and_heads))];
    const std::int64_t hidden = random.pick({32, 96, 160, 256});
    expect(Block::supports(width, heads, hidden), "a block can have the drawn sizes");
    return {width, heads, hidden};
}

// Fills what this thread's blocks work in with NaN, as far as `floats` go.
void spoil_block_memory(std::int64_t floats) {
    constexpr std::int64_t width = 32;
    Random random(0);
    const RandomWeights weights(random, width, 1, width);
    const Buffer norms = random.normal(6 * width), rope = random.rotations(width / 2), tail = random.normal(0);
    const std::int64_t rows = floats / (4 * width) + 1;
    Buffer x = blank(rows * width, false);
    AudioLayer(weights.view(), norms.data(), NORM_EPS)(
        {.x = x.data(), .rope = rope.data(), .context = nullptr, .context_rope = nullptr, .context_of_row = nullptr, .tail = tail.data(),
         .attended = x.data(), .y = x.data(), .R = rows, .A = 1, .M = 0, .E = 0, .num_outputs = 0, .eps = EPS},
        1);
    spoil_thread_memory();
}

// A video block with all that it is called with. Its call reads `rows` rows from `first` on, and only writes them.
class VideoCase {
   public:
    explicit VideoCase(int number)
        : random_(number),
          sizes_(draw_sizes(random_)),
          R_(random_.pick({1, 2, 3, 5})),
          T_(random_.pick({1, 2, 5, 9})),
          S_(random_.pick({1, 3, 8, 17, 31})),
          num_outputs_(random_.coin() ? R_ : random_.below(R_ + 1)),
          tokens_of_row_(T_ * S_),
          row_size_(tokens_of_row_ * sizes_.width),
          temporal_(random_.coin()),
          by_frame_(random_.coin()),
          attended_(random_.coin()),
          follows_(random_.coin()),
          keys_(random_.pick({1, 13, 40, 101})),
          weights_(random_, sizes_.width, sizes_.heads, sizes_.hidden),
          table_(random_.normal(6 * sizes_.width, 0.3)),
          next_table_(random_.normal(6 * sizes_.width, 0.3)),
          block_(weights_.view(), table_.data()),
          following_(weights_.view(), next_table_.data()),
          text_buffer_(random_.normal((PROMPTS - 1) * prompt_stride() + keys_ * token_stride())),
          lengths_(random_.integers(PROMPTS, 0, keys_)),
          x_(random_.normal(R_ * row_size_)),
          normed_(random_.normal(R_ * row_size_)),
          modulation_(random_.normal((R_ - 1) * row_stride() + (by_frame_ ? T_ : 1) * 6 * sizes_.width, 0.3)),
          rope_(random_.rotations(T_ * sizes_.width / sizes_.heads / 2)),
          text_of_row_(random_.integers(R_, 0, PROMPTS - 1)) {
        begin_case("video block", number,
                   {{"D", sizes_.width}, {"n", sizes_.heads}, {"H", sizes_.hidden}, {"R", R_}, {"T", T_}, {"S", S_},
                    {"num_outputs", num_outputs_}, {"temporal", temporal_}, {"by frame", by_frame_}, {"attended", attended_},
                    {"follows", follows_}, {"keys", keys_}});
        lengths_[0] = keys_;
        on_new_thread([&] {
            text_ = block_.prepare_text(texts().keys, texts().values, prompt_stride(), token_stride(), lengths_.data(), PROMPTS);
        });
    }

    void check() {
        const std::int64_t outputs = num_outputs_ * row_size_;
        const auto compute = [&](std::vector<Buffer>& to, int threads) {
            block_(call(0, R_, to[0].data(), to[1].data(), to[2].data()), threads);
        };
        const auto spoil = [&] { spoil_block_memory(R_ * row_size_ * 4); };
        const auto found = outputs_of({attended_ ? R_ * row_size_ : 0, outputs, follows_ ? outputs : 0}, random_, compute, spoil);
        const auto expected = reference::video_block(weights_.view(), table_.data(), follows_ ? next_table_.data() : nullptr, texts(),
                                                     call(0, R_, nullptr, nullptr, nullptr));
        if (attended_) expect_close(found[0], expected.attended, "attended");
        expect_close(found[1], expected.y, "y");
        if (follows_) expect_close(found[2], expected.next, "next");
        check_a_row_alone(found);
        check_in_place(found);
        check_steps();
    }

    std::int64_t count(bool folded) const {
        std::int64_t prompts = 0;
        for (const auto& prompt : text_.prompts) prompts += prompt->folded == folded ? 1 : 0;
        return prompts;
    }

   private:
    static constexpr std::int64_t PROMPTS = 3;

    std::int64_t token_stride() const { return 2 * sizes_.width; }  // keys and values of a token one after the other
    std::int64_t prompt_stride() const { return keys_ * token_stride() + 4; }
    std::int64_t row_stride() const { return (by_frame_ ? T_ : 1) * 6 * sizes_.width + 4; }

    reference::Texts texts() const {
        return {text_buffer_.data(), text_buffer_.data() + sizes_.width, prompt_stride(), token_stride(), lengths_.data()};
    }

    VideoBlock::Call call(std::int64_t first, std::int64_t rows, float* attended, float* y, float* next) const {
        return {.x = x_.data() + first * row_size_,
                .normed = normed_.data() + first * row_size_,
                .modulation = modulation_.data() + first * row_stride(),
                .row_stride = row_stride(),
                .frame_stride = by_frame_ ? 6 * sizes_.width : 0,
                .text = &text_,
                .text_of_row = text_of_row_.data() + first,
                .rope = temporal_ ? rope_.data() : nullptr,
                .following = follows_ ? &following_ : nullptr,
                .attended = attended_ ? attended : nullptr,
                .y = y,
                .next = next,
                .R = rows,
                .T = T_,
                .S = S_,
                .num_outputs = std::min(rows, num_outputs_ - first),
                .eps = EPS};
    }

    void check_a_row_alone(const std::vector<Buffer>& among_others) {
        if (num_outputs_ == 0) return;
        const std::int64_t row = random_.below(num_outputs_);
        std::vector<Buffer> alone;
        for (int i = 0; i < 3; ++i) alone.push_back(blank(row_size_, random_.coin()));
        block_(call(row, 1, alone[0].data(), alone[1].data(), alone[2].data()), 1);
        for (std::size_t i = 0; i < alone.size(); ++i) {
            if (among_others[i].size() == 0) continue;
            expect_same_bits(alone[i].data(), among_others[i].data() + row * row_size_, row_size_, "a row alone");
        }
    }

    // y in x and `next` in `normed`.
    void check_in_place(const std::vector<Buffer>& apart) {
        for (const int threads : {1, 2, 3}) {
            Buffer x = x_, normed = normed_, attended = blank(apart[0].size(), false);
            VideoBlock::Call here = call(0, R_, attended.data(), x.data(), normed.data());
            here.x = x.data();
            here.normed = normed.data();
            run({{&block_, here}}, threads);
            expect_same_bits(attended, apart[0], "attended beside y in place");
            expect_same_bits(x.data(), apart[1].data(), apart[1].size(), "y in place of x");
            if (follows_) expect_same_bits(normed.data(), apart[2].data(), apart[2].size(), "next in place of normed");
        }
    }

    // Two blocks one after the other, of which the last computes fewer rows.
    void check_steps() {
        Buffer expected = x_, expected_attended = blank(x_.size(), false);
        for (const int threads : {0, 1, 2, 3}) {  // 0: each by itself
            Buffer x = x_, normed = normed_, attended = blank(x_.size(), false);
            VideoBlock::Call first = call(0, R_, attended.data(), x.data(), normed.data());
            first.x = x.data();
            first.normed = normed.data();
            first.num_outputs = R_;
            VideoBlock::Call last = first;
            last.num_outputs = num_outputs_;
            first.following = &block_;
            if (threads > 0) {
                run({{&block_, first}, {&block_, last}}, threads);
                expect_same_bits(x, expected, "y after two steps");
                if (attended_) expect_same_bits(attended, expected_attended, "attended after two steps");
            } else {
                block_(first, 1);
                block_(last, 1);
                expected = x;
                expected_attended = attended;
            }
        }
    }

    Random random_;
    Sizes sizes_;
    std::int64_t R_, T_, S_, num_outputs_, tokens_of_row_, row_size_;
    bool temporal_, by_frame_, attended_, follows_;
    std::int64_t keys_;
    RandomWeights weights_;
    Buffer table_, next_table_;
    VideoBlock block_, following_;
    Buffer text_buffer_;
    std::vector<std::int64_t> lengths_;
    Buffer x_, normed_, modulation_, rope_;
    std::vector<std::int64_t> text_of_row_;
    Text text_;
};

void video_block_is_its_formula() {
    std::int64_t folded = 0, unfolded = 0;
    for (int number = 0; number < CASES; ++number) {
        VideoCase random_case(number);
        random_case.check();
        folded += random_case.count(true);
        unfolded += random_case.count(false);
    }
    current_case.clear();
    expect(std::min(folded, unfolded) >= CASES / 5, "texts of both kinds are drawn");
}

void audio_layer_is_its_formula() {
    int folded = 0, unfolded = 0;
    for (int number = 0; number < CASES; ++number) {
        Random random(number);
        const Sizes sizes = draw_sizes(random);
        const std::int64_t D = sizes.width, n = sizes.heads, H = sizes.hidden;
        const std::int64_t R = random.pick({1, 2, 3, 5}), A = random.pick({1, 7, 24, 33, 101, 131}), M = random.pick({1, 40, 101});
        const std::int64_t E = random.pick({0, 1, 2, 5, 17}), num_outputs = random.coin() ? R : random.below(R + 1);
        const bool has_context = random.below(3) > 0, own = random.coin(), has_attended = random.coin();
        begin_case("audio layer", number, {{"D", D}, {"n", n}, {"H", H}, {"R", R}, {"A", A}, {"M", M}, {"E", E},
                                           {"num_outputs", num_outputs}, {"context", has_context}, {"own", own}, {"attended", has_attended}});
        const std::int64_t contexts = own ? R : 2, row_size = A * D, context_size = M * 2 * D;
        const RandomWeights weights(random, D, n, H);
        const Buffer norms = random.normal(6 * D, 0.3, 0.5);
        const AudioLayer layer(weights.view(), norms.data(), NORM_EPS);
        const Buffer x = random.normal(R * row_size), rope = random.rotations(A * D / n / 2), tail = random.normal(R * E * D);
        const Buffer context = random.normal(contexts * context_size), context_rope = random.rotations(M * D / n / 2);
        const std::vector<std::int64_t> context_of_row = random.integers(R, -1, contexts - 1);
        ++(layer.folds(E + (has_context ? M : 0)) ? folded : unfolded);
        const auto call = [&](std::int64_t first, std::int64_t rows, float* attended, float* y) {
            return AudioLayer::Call{.x = x.data() + first * row_size,
                                    .rope = rope.data(),
                                    .context = has_context ? context.data() + (own ? first * context_size : 0) : nullptr,
                                    .context_rope = has_context ? context_rope.data() : nullptr,
                                    .context_of_row = has_context && !own ? context_of_row.data() + first : nullptr,
                                    .tail = tail.data() + first * E * D,
                                    .attended = has_attended ? attended : nullptr,
                                    .y = y,
                                    .R = rows,
                                    .A = A,
                                    .M = M,
                                    .E = E,
                                    .num_outputs = std::min(rows, num_outputs - first),
                                    .eps = EPS};
        };
        const auto compute = [&](std::vector<Buffer>& to, int threads) { layer(call(0, R, to[0].data(), to[1].data()), threads); };
        const auto spoil = [&] { spoil_block_memory(R * (row_size * 4 + D * (n + 2) * (M + E + 16))); };
        const auto found = outputs_of({has_attended ? R * row_size : 0, num_outputs * row_size}, random, compute, spoil);
        const auto expected = reference::audio_layer(weights.view(), norms.data(), NORM_EPS, call(0, R, nullptr, nullptr));
        if (has_attended) expect_close(found[0], expected.attended, "attended");
        expect_close(found[1], expected.y, "y");

        for (const int threads : {1, 2, 3}) {
            Buffer here = x, attended = blank(found[0].size(), false);
            AudioLayer::Call in_place = call(0, R, attended.data(), here.data());
            in_place.x = here.data();
            run({{&layer, in_place}}, threads);
            expect_same_bits(attended, found[0], "attended beside y in place");
            expect_same_bits(here.data(), found[1].data(), found[1].size(), "y in place of x");
        }
        if (num_outputs == 0) continue;
        const std::int64_t row = random.below(num_outputs);
        Buffer attended = blank(row_size, random.coin()), y = blank(row_size, random.coin());
        layer(call(row, 1, attended.data(), y.data()), 1);
        if (has_attended) expect_same_bits(attended.data(), found[0].data() + row * row_size, row_size, "attended of a row alone");
        expect_same_bits(y.data(), found[1].data() + row * row_size, row_size, "y of a row alone");
    }
    current_case.clear();
    expect(std::min(folded, unfolded) >= CASES / 5, "contexts of both kinds are drawn");
}

void adaptor_is_its_formula() {
    for (int number = 0; number < CASES; ++number) {
        Random random(number);
        const Sizes sizes = draw_sizes(random);
        const std::int64_t D = sizes.width, n = sizes.heads, H = sizes.hidden;
        const std::int64_t R = 2, T = random.pick({1, 3, 9}), S = random.pick({1, 4, 7, 16}), C = random.pick({1, 3, 5});
        const bool pooled = random.coin();
        const std::int64_t M = pooled ? T : T * S, size = M * 2 * D;
        begin_case("adaptor", number, {{"D", D}, {"n", n}, {"T", T}, {"S", S}, {"C", C}, {"pooled", pooled}});
        const RandomWeights weights(random, D, n, H);
        const BlockWeights& w = weights.view();
        const Buffer norm_weight = random.normal(D, 0.3, 1), norm_bias = random.normal(D, 0.3);
        const Adaptor::Parts parts = {.width = D,
                                      .heads = n,
                                      .qkv = w.qkv,
                                      .proj = w.proj,
                                      .q_norm = w.q_norm,
                                      .k_norm = w.k_norm,
                                      .norm = {norm_weight.data(), norm_bias.data()},
                                      .linear = w.cross_query,
                                      .key_value = w.cross_key_value,
                                      .norm_eps = NORM_EPS};
        const Adaptor adaptor(parts);
        const Buffer features = random.normal(R * T * S * D), rope = random.rotations(M * D / n / 2);
        const std::vector<std::int64_t> rows = random.integers(C, 0, R - 1);
        const auto call = [&](std::int64_t first, std::int64_t count, float* context) {
            return Adaptor::Call{.features = features.data(),
                                 .rows = rows.data() + first,
                                 .pooled = pooled,
                                 .rope = rope.data(),
                                 .context = context,
                                 .C = count,
                                 .T = T,
                                 .S = S,
                                 .eps = EPS};
        };
        const Buffer context = output_of(C * size, random, [&](float* to, int threads) { adaptor(call(0, C, to), threads); });
        expect_close(context, reference::adaptor(parts, call(0, C, nullptr)), "context");
        const std::int64_t i = random.below(C);
        Buffer alone = blank(size, random.coin());
        adaptor(call(i, 1, alone.data()), 1);
        expect_same_bits(alone.data(), context.data() + i * size, size, "a context alone");
    }
}

// What one caller computes does not depend on what others do at the same time.
void callers_do_not_disturb_each_other() {
    current_case = "callers at once";
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller) {
        callers.emplace_back([caller] {
            Random random(caller);
            const RandomWeights weights(random, 64, 2, 96);
            const Buffer norms = random.normal(6 * 64), rope = random.rotations(33 * 16), tail = random.normal(0);
            const AudioLayer layer(weights.view(), norms.data(), NORM_EPS);
            const Buffer x = random.normal(3 * 33 * 64);
            const auto compute = [&](int threads) {
                Buffer y = blank(x.size(), false);
                layer({.x = x.data(), .rope = rope.data(), .context = nullptr, .context_rope = nullptr, .context_of_row = nullptr,
                       .tail = tail.data(), .attended = nullptr, .y = y.data(), .R = 3, .A = 33, .M = 0, .E = 0, .num_outputs = 3,
                       .eps = EPS},
                      threads);
                return y;
            };
            const Buffer alone = compute(1);
            for (int round = 0; round < 30; ++round) expect_same_bits(compute(2 + round % 3), alone, "among others");
        });
    }
    for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main() {
    return run_at_level("blocks", {video_block_is_its_formula, audio_layer_is_its_formula, adaptor_is_its_formula,
                                   callers_do_not_disturb_each_other});
}
