#include "package/safetensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "package/json.h"

namespace syncflow::engine {
namespace {

constexpr std::size_t PREFIX = 8;  // bytes of the header's length, the lowest first

[[noreturn]] void damaged(const std::string& reason) { throw Error(Status::corrupt, reason); }

std::size_t element_size(std::string_view dtype) {
    if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
    if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
    if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
    if (dtype == "I8" || dtype == "U8" || dtype == "BOOL" || dtype.starts_with("F8_")) return 1;
    damaged("it holds the unknown type " + shown(dtype));
}

// A whole number that is not negative and fits.
std::optional<std::uint64_t> count_of(const Json& json) {
    if (const auto* small = std::get_if<std::int64_t>(&json.value()); small != nullptr && *small >= 0) return static_cast<std::uint64_t>(*small);
    return std::nullopt;
}

SafetensorsHeader::Tensor tensor_of(const std::string& name, const Json& about, std::size_t data, std::size_t size) {
    const Json *const dtype = about.find("dtype"), *const shape = about.find("shape"), *const offsets = about.find("data_offsets");
    if (dtype == nullptr || dtype->string() == nullptr || shape == nullptr || shape->array() == nullptr || offsets == nullptr ||
        offsets->array() == nullptr || offsets->array()->size() != 2) {
        damaged("it does not say type, shape and place of " + shown(name));
    }
    SafetensorsHeader::Tensor tensor = {.dtype = *dtype->string(), .shape = {}, .begin = 0, .end = 0};
    std::uint64_t bytes = element_size(tensor.dtype);
    bool fits = true, empty = false;
    for (const Json& side : *shape->array()) {
        const auto count = count_of(side);
        if (!count) damaged("it gives " + shown(name) + " a side of " + shown(side));
        empty = empty || *count == 0;
        fits = fits && (*count == 0 || bytes <= size / *count);
        if (fits && *count > 0) bytes *= *count;
        tensor.shape.push_back(static_cast<std::int64_t>(*count));
    }
    if (empty) bytes = 0;
    const auto begin = count_of((*offsets->array())[0]), end = count_of((*offsets->array())[1]);
    if (!begin || !end || *begin > *end || *end > size || (!fits && !empty) || *end - *begin != bytes) {
        damaged("the place of " + shown(name) + " does not fit its shape or the file");
    }
    tensor.begin = data + static_cast<std::size_t>(*begin);
    tensor.end = data + static_cast<std::size_t>(*end);
    return tensor;
}

template <typename T>
T value_at(const std::byte* from, std::size_t i) {
    T value;
    std::memcpy(&value, from + i * sizeof value, sizeof value);
    return value;
}

// A half as a float; infinity and NaN become other numbers.
float float_of_half(std::uint16_t half) {
    const auto magnitude = std::bit_cast<float>(static_cast<std::uint32_t>(half & 0x7FFF) << 13) * 0x1p112f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | static_cast<std::uint32_t>(half & 0x8000) << 16);
}

// False where a number is not finite.
bool convert_halves(const std::byte* from, std::size_t count, float* to) {
    std::uint32_t carries = 0;  // of exponents that are all ones, into the place of the sign
    for (std::size_t i = 0; i < count; ++i) {  // without branches, so that it is computed in vectors
        const auto half = value_at<std::uint16_t>(from, i);
        carries |= static_cast<std::uint32_t>(half & 0x7C00) + 0x0400;
        to[i] = float_of_half(half);
    }
    return (carries & 0x8000) == 0;
}

bool convert(const SafetensorsHeader::Tensor& tensor, const std::byte* from, Floats& to) {
    bool finite = true;
    const std::size_t count = to.size();
    if (tensor.dtype == "F16") return convert_halves(from, count, to.data());
    for (std::size_t i = 0; i < count; ++i) {
        if (tensor.dtype == "BF16") {
            to[i] = std::bit_cast<float>(static_cast<std::uint32_t>(value_at<std::uint16_t>(from, i)) << 16);
        } else {
            to[i] = tensor.dtype == "F32" ? value_at<float>(from, i) : static_cast<float>(value_at<double>(from, i));
        }
        finite &= std::isfinite(to[i]);
    }
    return finite;
}

std::string prefixed(const std::filesystem::path& path, const std::string& reason) { return path.string() + " is damaged: " + reason; }

}  // namespace

std::string shown(const Shape& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file) {
    if (file.size() < PREFIX) damaged("it is shorter than the length of a header");
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < PREFIX; ++i) length |= std::to_integer<std::uint64_t>(file[i]) << 8 * i;
    if (length > file.size() - PREFIX || length > MAX_JSON_BYTES) {
        damaged("its header has " + std::to_string(length) + " bytes, and the file " + std::to_string(file.size()));
    }
    const auto size = static_cast<std::size_t>(length);
    const Json header = parse_json({reinterpret_cast<const char*>(file.data()) + PREFIX, size});
    const Json::Object* const members = header.object();
    if (members == nullptr) damaged("its header is no JSON object");
    SafetensorsHeader found;
    std::vector<std::pair<std::size_t, std::size_t>> places;
    for (const auto& [name, about] : *members) {
        if (name == "__metadata__") continue;
        const auto [place, added] = found.tensors.emplace(name, tensor_of(name, about, PREFIX + size, file.size() - PREFIX - size));
        if (!added) damaged("it holds " + shown(name) + " twice");
        places.emplace_back(place->second.begin, place->second.end);
    }
    std::sort(places.begin(), places.end());
    std::size_t end = PREFIX + size;
    for (const auto& [first, last] : places) {
        if (first != end) damaged("its tensors overlap or leave a gap");
        end = last;
    }
    if (end != file.size()) damaged("its tensors leave a gap at the end");
    return found;
}

Weights::Weights(const std::filesystem::path& path) : path_(path), file_(path) {
    try {
        header_ = parse_safetensors(file_.bytes());
    } catch (const Error& error) {
        throw Error(error.status(), prefixed(path_, error.what()));
    }
}

std::int64_t Weights::elements() const {
    std::int64_t total = 0;
    for (const auto& [name, tensor] : header_.tensors) {
        total += static_cast<std::int64_t>((tensor.end - tensor.begin) / element_size(tensor.dtype));
    }
    return total;
}

Floats Weights::take(std::string_view name, const Shape& shape) {
    const auto place = header_.tensors.find(name);
    if (place == header_.tensors.end()) fail("it lacks " + std::string(name));
    const SafetensorsHeader::Tensor& tensor = place->second;
    if (tensor.shape != shape) fail(place->first + " is " + shown(tensor.shape) + " and must be " + shown(shape));
    if (tensor.dtype != "F16" && tensor.dtype != "BF16" && tensor.dtype != "F32" && tensor.dtype != "F64") {
        fail(place->first + " is in " + tensor.dtype + "; weights must be in F16, BF16, F32 or F64");
    }
    if (!taken_.insert(place->first).second) fail("the model has " + place->first + " twice");
    Floats values((tensor.end - tensor.begin) / element_size(tensor.dtype));
    if (!convert(tensor, file_.bytes().data() + tensor.begin, values)) {
        fail("it holds NaN or infinity in " + place->first + "; weights must be finite numbers");
    }
    return values;
}

void Weights::finish() const {
    for (const auto& [name, tensor] : header_.tensors) {
        if (!taken_.contains(name)) fail("it holds " + shown(std::string_view(name)) + ", which the model has not");
    }
}

void Weights::fail(const std::string& reason) const {
    throw Error(Status::corrupt, path_.string() + " does not hold this model: " + reason);
}

}  // namespace syncflow::engine
