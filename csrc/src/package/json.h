// JSON values: a reader that bounds what a hostile file can cost, and a writer of what Python's `json.dumps` writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "engine/error.h"

namespace syncflow::engine {

class Json {
   public:
    using Array = std::vector<Json>;
    using Member = std::pair<std::string, Json>;
    using Object = std::vector<Member>;  // in the order of the text
    // null, truth, whole numbers where they fit and others, text in UTF-8
    using Value = std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object>;

    Json() : value_(nullptr) {}
    Json(Value value) : value_(std::move(value)) {}

    const Value& value() const { return value_; }

    // The value as this kind, or null where it is of another.
    const bool* boolean() const { return std::get_if<bool>(&value_); }
    const std::string* string() const { return std::get_if<std::string>(&value_); }
    const Array* array() const { return std::get_if<Array>(&value_); }
    const Object* object() const { return std::get_if<Object>(&value_); }
    bool null() const { return std::holds_alternative<std::nullptr_t>(value_); }
    bool whole() const { return std::holds_alternative<std::int64_t>(value_) || std::holds_alternative<std::uint64_t>(value_); }
    bool number() const { return whole() || std::holds_alternative<double>(value_); }
    // Of a number.
    double as_double() const;

    // A member of an object, the last of its name as in Python; null where there is none.
    const Json* find(std::string_view name) const;

   private:
    Value value_;
};

constexpr int MAX_JSON_DEPTH = 64;
constexpr std::size_t MAX_JSON_BYTES = std::size_t{64} << 20;

// The value that a whole text holds. Throws Status::corrupt for anything that is not JSON in UTF-8, for numbers that are
// not finite, and beyond the two bounds.
Json parse_json(std::string_view text);

bool is_utf8(std::string_view text);

// One line in ASCII, with a blank after commas and colons.
std::string to_json(const Json& json);

// A value as a message says it: on one line, cut where it is long.
std::string shown(const Json& json);
std::string shown(std::string_view text);

// The shortest decimal of a number that reads as the same number, as Python prints it.
std::string shown(double number);

}  // namespace syncflow::engine
