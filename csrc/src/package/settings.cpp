#include "package/settings.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace syncflow::engine {
namespace {

void assign(std::string_view name, const Json& json, std::int64_t& value) {
    const auto* const whole = std::get_if<std::int64_t>(&json.value());
    if (whole == nullptr) refuse(name, shown(json), "a whole number");
    value = *whole;
}

void assign(std::string_view name, const Json& json, double& value) {
    if (!json.number()) refuse(name, shown(json), "a number");
    value = json.as_double();
}

void assign(std::string_view name, const Json& json, bool& value) {
    if (json.boolean() == nullptr) refuse(name, shown(json), "true or false");
    value = *json.boolean();
}

void assign(std::string_view name, const Json& json, std::string& value) {
    if (json.string() == nullptr) refuse(name, shown(json), "text");
    value = *json.string();
}

template <typename T>
void assign(std::string_view name, const Json& json, std::vector<T>& values) {
    if (json.array() == nullptr) refuse(name, shown(json), "a list");
    values.clear();
    for (const Json& element : *json.array()) {
        T value{};
        assign(name, element, value);
        values.push_back(value);
    }
}

}  // namespace

std::string general(double number) {
    std::array<char, 32> text;
    std::snprintf(text.data(), text.size(), "%g", number);
    return text.data();
}

void refuse(std::string_view name, const std::string& value, const std::string& allowed) {
    throw Error(Status::invalid_argument, std::string(name) + " is " + value + "; it must be " + allowed);
}

void require_whole(std::string_view name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value >= low && value <= high) return;
    refuse(name, std::to_string(value), "a whole number from " + std::to_string(low) + " to " + std::to_string(high));
}

void require_number(std::string_view name, double value, double low, double high, bool above) {
    if ((above ? value > low : value >= low) && value <= high) return;
    refuse(name, shown(value), above ? "above " + general(low) + " and at most " + general(high) : "from " + general(low) + " to " + general(high));
}

Settings::Settings(const Json& json, std::string_view owner, std::vector<std::string_view> known) : json_(json) {
    if (json.object() == nullptr) throw Error(Status::invalid_argument, std::string(owner) + " is " + shown(json) + "; it must be an object of settings");
    for (const auto& [name, value] : *json.object()) {
        if (known.empty() || std::find(known.begin(), known.end(), name) != known.end()) continue;
        std::string all;
        for (const std::string_view one : known) all += (all.empty() ? "" : ", ") + std::string(one);
        throw Error(Status::invalid_argument, std::string(owner) + " has no setting " + shown(std::string_view(name)) + "; it has " + all);
    }
}

void Settings::read(std::string_view name, std::int64_t& value) const {
    if (const Json* const found = json_.find(name)) assign(name, *found, value);
}

void Settings::read(std::string_view name, double& value) const {
    if (const Json* const found = json_.find(name)) assign(name, *found, value);
}

void Settings::read(std::string_view name, bool& value) const {
    if (const Json* const found = json_.find(name)) assign(name, *found, value);
}

void Settings::read(std::string_view name, std::string& value) const {
    if (const Json* const found = json_.find(name)) assign(name, *found, value);
}

void Settings::read(std::string_view name, std::vector<std::int64_t>& values) const {
    if (const Json* const found = json_.find(name)) assign(name, *found, values);
}

void Settings::read(std::string_view name, std::vector<double>& values) const {
    if (const Json* const found = json_.find(name)) assign(name, *found, values);
}

void Settings::read(std::string_view name, std::vector<bool>& values) const {
    if (const Json* const found = json_.find(name)) assign(name, *found, values);
}

Json Settings::object(std::string_view name) const {
    const Json* const found = json_.find(name);
    return found == nullptr ? Json(Json::Object{}) : *found;
}

}  // namespace syncflow::engine
