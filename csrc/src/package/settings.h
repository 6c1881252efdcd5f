// Values of a user or of a file, checked: refused with one sentence that names the setting and what is allowed.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "package/json.h"

namespace syncflow::engine {

// As printf's %g.
std::string general(double number);

// Throws "<name> is <value>; it must be <allowed>".
[[noreturn]] void refuse(std::string_view name, const std::string& value, const std::string& allowed);

void require_whole(std::string_view name, std::int64_t value, std::int64_t low, std::int64_t high);

// From `low` to `high`, or with `above` one above `low`.
void require_number(std::string_view name, double value, double low, double high, bool above = false);

// The settings of a JSON object, each read by name; those that are not there keep their value.
class Settings {
   public:
    // `owner` is what the settings are of. Throws for a value that is no object and for a name that is not `known`; without
    // known names all are.
    Settings(const Json& json, std::string_view owner, std::vector<std::string_view> known = {});

    bool has(std::string_view name) const { return json_.find(name) != nullptr; }
    void read(std::string_view name, std::int64_t& value) const;
    void read(std::string_view name, double& value) const;
    void read(std::string_view name, bool& value) const;
    void read(std::string_view name, std::string& value) const;
    void read(std::string_view name, std::vector<std::int64_t>& values) const;
    void read(std::string_view name, std::vector<double>& values) const;
    void read(std::string_view name, std::vector<bool>& values) const;
    // A member that is an object, or an empty one.
    Json object(std::string_view name) const;

   private:
    const Json& json_;
};

}  // namespace syncflow::engine
