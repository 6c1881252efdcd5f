#include "syncflow/noise.h"

#include <cfloat>
#include <cmath>
#include <limits>

#if defined(__FAST_MATH__)
#error "noise is bit-exact only without -ffast-math"
#endif
static_assert(FLT_EVAL_METHOD == 0, "noise is bit-exact only where double arithmetic is not widened");
static_assert(std::numeric_limits<double>::is_iec559 && std::numeric_limits<float>::is_iec559);

namespace syncflow {
namespace {

constexpr double kLn2 = 0.6931471805599453;
constexpr double kSqrtHalf = 0.7071067811865476;
constexpr std::array<double, 10> kLogSeries = {1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11,
                                               1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3,  1.0};

// Wichura, AS 241 (PPND16), highest coefficient first; the third region of the algorithm is out of reach of a 32-bit word.
constexpr double kCentre = 0.425;
constexpr std::array<double, 8> kCentreNumerator = {
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
    1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0};
constexpr std::array<double, 8> kCentreDenominator = {
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0};
constexpr std::array<double, 8> kTailNumerator = {
    7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
    3.64784832476320460504e0,  5.76949722146069140550e0,  4.63033784615654529590e0,  1.42343711074968357734e0};
constexpr std::array<double, 8> kTailDenominator = {
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940e0,  2.05319162663775882187e0,  1.0};

template <std::size_t N>
double horner(const std::array<double, N>& coefficients, double x) noexcept {
    double value = coefficients[0];
    for (std::size_t i = 1; i < N; ++i) value = value * x + coefficients[i];
    return value;
}

double log_exact(double x) noexcept {
    int exponent = 0;
    double mantissa = std::frexp(x, &exponent);
    if (mantissa < kSqrtHalf) {
        mantissa *= 2.0;
        --exponent;
    }
    const double s = (mantissa - 1.0) / (mantissa + 1.0);
    return exponent * kLn2 + 2.0 * s * horner(kLogSeries, s * s);
}

}  // namespace

PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) noexcept {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t first = std::uint64_t{0xD2511F53} * counter[0];
        const std::uint64_t second = std::uint64_t{0xCD9E8D57} * counter[2];
        counter = {static_cast<std::uint32_t>(second >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(second),
                   static_cast<std::uint32_t>(first >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(first)};
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter;
}

float normal_from_word(std::uint32_t word) noexcept {
    const double p = (word + 0.5) * 0x1p-32;
    const double q = p - 0.5;
    if (std::fabs(q) <= kCentre) {
        const double r = 0.180625 - q * q;
        return static_cast<float>(q * horner(kCentreNumerator, r) / horner(kCentreDenominator, r));
    }
    const double r = std::sqrt(-log_exact(q < 0.0 ? p : 1.0 - p)) - 1.6;
    return static_cast<float>(std::copysign(horner(kTailNumerator, r) / horner(kTailDenominator, r), q));
}

void fill_normal(const NoiseStream& stream, std::uint64_t offset, float* out, std::size_t count) noexcept {
    const PhiloxKey key = {static_cast<std::uint32_t>(stream.seed), static_cast<std::uint32_t>(stream.seed >> 32)};
    std::uint64_t block = offset / 4;
    std::size_t lane = offset % 4;
    for (std::size_t i = 0; i < count; ++block, lane = 0) {
        const PhiloxCounter words =
            philox4x32({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), stream.stream, stream.substream}, key);
        for (; lane < 4 && i < count; ++lane) out[i++] = normal_from_word(words[lane]);
    }
}

}  // namespace syncflow
