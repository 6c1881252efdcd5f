#include "package/json.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

namespace syncflow::engine {
namespace {

constexpr std::size_t LONGEST_SHOWN = 60;

// The bytes of the UTF-8 sequence that begins a text, 0 where there is none.
std::size_t utf8_length(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const auto follows = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
        return i < text.size() && byte(i) >= low && byte(i) <= high;
    };
    const unsigned lead = byte(0);
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return follows(1) ? 2 : 0;
    if (lead >= 0xE0 && lead <= 0xEF) {
        const unsigned low = lead == 0xE0 ? 0xA0 : 0x80, high = lead == 0xED ? 0x9F : 0xBF;  // no surrogates
        return follows(1, low, high) && follows(2) ? 3 : 0;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        const unsigned low = lead == 0xF0 ? 0x90 : 0x80, high = lead == 0xF4 ? 0x8F : 0xBF;
        return follows(1, low, high) && follows(2) && follows(3) ? 4 : 0;
    }
    return 0;
}

void append_utf8(std::string& to, std::uint32_t code) {
    const auto put = [&](std::uint32_t byte) { to += static_cast<char>(byte); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xC0 | code >> 6);
        put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        put(0xE0 | code >> 12);
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    } else {
        put(0xF0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3F));
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    }
}

class Parser {
   public:
    explicit Parser(std::string_view text) : text_(text) {}

    Json whole() {
        Json json = value(0);
        skip_blanks();
        if (at_ < text_.size()) fail("there is more after the value");
        return json;
    }

   private:
    [[noreturn]] void fail(const char* what) const {
        throw Error(Status::corrupt, std::string(what) + " at byte " + std::to_string(at_));
    }

    void skip_blanks() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) ++at_;
    }

    bool take(char sign) {
        skip_blanks();
        if (at_ >= text_.size() || text_[at_] != sign) return false;
        ++at_;
        return true;
    }

    bool take_word(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json value(int depth) {
        if (depth > MAX_JSON_DEPTH) fail("it is nested too deeply");
        if (take('{')) return object(depth);
        if (take('[')) return array(depth);
        if (take('"')) return Json(string());
        if (take_word("true")) return Json(true);
        if (take_word("false")) return Json(false);
        if (take_word("null")) return Json();
        return number();
    }

    Json object(int depth) {
        Json::Object members;
        if (take('}')) return Json(std::move(members));
        do {
            if (!take('"')) fail("a name is expected");
            std::string name = string();
            if (!take(':')) fail("':' is expected");
            members.emplace_back(std::move(name), value(depth + 1));
        } while (take(','));
        if (!take('}')) fail("',' or '}' is expected");
        return Json(std::move(members));
    }

    Json array(int depth) {
        Json::Array elements;
        if (take(']')) return Json(std::move(elements));
        do {
            elements.push_back(value(depth + 1));
        } while (take(','));
        if (!take(']')) fail("',' or ']' is expected");
        return Json(std::move(elements));
    }

    std::string string() {
        std::string found;
        for (;;) {
            if (at_ >= text_.size()) fail("a text does not end");
            const char sign = text_[at_];
            if (sign == '"') {
                ++at_;
                return found;
            }
            if (static_cast<unsigned char>(sign) < 0x20) fail("a text holds a control character");
            if (sign == '\\') {
                ++at_;
                escape(found);
                continue;
            }
            const std::size_t length = utf8_length(text_.substr(at_));
            if (length == 0) fail("a text is not UTF-8");
            found += text_.substr(at_, length);
            at_ += length;
        }
    }

    void escape(std::string& to) {
        static constexpr std::string_view signs = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
        if (at_ >= text_.size()) fail("a text does not end");
        const char sign = text_[at_++];
        if (const std::size_t i = signs.find(sign); i != std::string_view::npos) {
            to += meant[i];
            return;
        }
        if (sign != 'u') fail("an escape is unknown");
        std::uint32_t code = four_digits();
        if (code >= 0xD800 && code < 0xE000) {
            if (code >= 0xDC00 || !take_word("\\u")) fail("a surrogate stands alone");
            const std::uint32_t low = four_digits();
            if (low < 0xDC00 || low >= 0xE000) fail("a surrogate stands alone");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        append_utf8(to, code);
    }

    std::uint32_t four_digits() {
        std::uint32_t code = 0;
        const std::string_view digits = text_.substr(at_, 4);
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
        if (digits.size() < 4 || error != std::errc() || end != digits.data() + 4) fail("an escape lacks four digits");
        at_ += 4;
        return code;
    }

    std::size_t digits() {
        const std::size_t first = at_;
        while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
        return at_ - first;
    }

    Json number() {
        skip_blanks();
        const std::size_t first = at_;
        bool whole = true;
        const bool negative = take_word("-");
        const bool zero = at_ < text_.size() && text_[at_] == '0';
        const std::size_t count = digits();
        if (count == 0 || (zero && count > 1)) {
            at_ = first;
            fail("a value is expected");
        }
        if (take_word(".")) {
            whole = false;
            if (digits() == 0) fail("a digit is expected");
        }
        if (take_word("e") || take_word("E")) {
            whole = false;
            if (!take_word("+")) take_word("-");
            if (digits() == 0) fail("a digit is expected");
        }
        const char *const begin = text_.data() + first, *const end = text_.data() + at_;
        if (whole) {
            std::int64_t integer = 0;
            if (std::from_chars(begin, end, integer).ec == std::errc()) return Json(integer);
            std::uint64_t large = 0;
            if (!negative && std::from_chars(begin, end, large).ec == std::errc()) return Json(large);
        }
        double found = 0;
        if (std::from_chars(begin, end, found).ec != std::errc() && !small(begin, end)) {
            at_ = first;
            fail("a number is not finite");
        }
        return Json(found);
    }

    // Whether a number that no double holds is too small rather than too large: it is read as 0.
    static bool small(const char* begin, const char* end) {
        const std::string_view text(begin, static_cast<std::size_t>(end - begin));
        return text.find("e-") != std::string_view::npos || text.find("E-") != std::string_view::npos ||
               text.find_first_of("123456789") > text.find('.');
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

void append_escaped(std::string& to, std::string_view text) {
    static constexpr std::string_view digits = "0123456789abcdef";
    const auto unit = [&](std::uint32_t code) {
        to += "\\u";
        for (int shift = 12; shift >= 0; shift -= 4) to += digits[code >> shift & 15];
    };
    to += '"';
    while (!text.empty()) {
        const std::size_t length = std::max<std::size_t>(utf8_length(text), 1);
        const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
        static constexpr std::string_view special = "\"\\\b\f\n\r\t", names = "\"\\bfnrt";
        if (const std::size_t place = special.find(text[0]); place != std::string_view::npos) {
            to += '\\';
            to += names[place];
        } else if (length == 1) {
            if (byte(0) >= 0x20 && byte(0) < 0x7F) {
                to += text[0];
            } else {
                unit(byte(0));
            }
        } else {
            std::uint32_t code = byte(0) & (0xFFu >> (length + 1));
            for (std::size_t i = 1; i < length; ++i) code = code << 6 | (byte(i) & 0x3F);
            if (code >= 0x10000) {
                unit(0xD800 + ((code - 0x10000) >> 10));
                unit(0xDC00 + ((code - 0x10000) & 0x3FF));
            } else {
                unit(code);
            }
        }
        text.remove_prefix(length);
    }
    to += '"';
}

void append(std::string& to, const Json& json) {
    struct Writer {
        std::string& to;
        void operator()(std::nullptr_t) const { to += "null"; }
        void operator()(bool value) const { to += value ? "true" : "false"; }
        void operator()(std::int64_t value) const { to += std::to_string(value); }
        void operator()(std::uint64_t value) const { to += std::to_string(value); }
        void operator()(double value) const { to += shown(value); }
        void operator()(const std::string& value) const { append_escaped(to, value); }
        void operator()(const Json::Array& elements) const {
            to += '[';
            for (std::size_t i = 0; i < elements.size(); ++i) {
                if (i > 0) to += ", ";
                append(to, elements[i]);
            }
            to += ']';
        }
        void operator()(const Json::Object& members) const {
            to += '{';
            for (std::size_t i = 0; i < members.size(); ++i) {
                if (i > 0) to += ", ";
                append_escaped(to, members[i].first);
                to += ": ";
                append(to, members[i].second);
            }
            to += '}';
        }
    };
    std::visit(Writer{to}, json.value());
}

std::string cut(std::string text) {
    if (text.size() <= LONGEST_SHOWN) return text;
    std::size_t end = LONGEST_SHOWN;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    return text.substr(0, end) + "…";
}

}  // namespace

double Json::as_double() const {
    if (const auto* small = std::get_if<std::int64_t>(&value_)) return static_cast<double>(*small);
    if (const auto* large = std::get_if<std::uint64_t>(&value_)) return static_cast<double>(*large);
    return std::get<double>(value_);
}

const Json* Json::find(std::string_view name) const {
    const Object* const members = object();
    if (members == nullptr) return nullptr;
    for (std::size_t i = members->size(); i-- > 0;) {
        if ((*members)[i].first == name) return &(*members)[i].second;
    }
    return nullptr;
}

Json parse_json(std::string_view text) {
    if (text.size() > MAX_JSON_BYTES) {
        throw Error(Status::corrupt, "it has more than " + std::to_string(MAX_JSON_BYTES >> 20) + " MB");
    }
    return Parser(text).whole();
}

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const std::size_t length = utf8_length(text);
        if (length == 0) return false;
        text.remove_prefix(length);
    }
    return true;
}

std::string to_json(const Json& json) {
    std::string text;
    append(text, json);
    return text;
}

std::string shown(const Json& json) {
    if (const std::string* text = json.string()) return shown(std::string_view(*text));
    return cut(to_json(json));
}

std::string shown(std::string_view text) {
    std::string line = "'";
    for (const char sign : text.substr(0, 4 * LONGEST_SHOWN)) line += static_cast<unsigned char>(sign) < 0x20 ? ' ' : sign;
    return cut(line + "'");
}

std::string shown(double number) {
    if (std::isnan(number)) return "nan";
    if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
    std::array<char, 32> buffer;
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), number, std::chars_format::scientific).ptr;
    const std::string_view text(buffer.data(), static_cast<std::size_t>(end - buffer.data()));
    const std::size_t mark = text.find('e');
    int exponent = 0;
    const char* const first = text.data() + mark + (text[mark + 1] == '+' ? 2 : 1);
    std::from_chars(first, end, exponent);
    if (exponent < -4 || exponent >= 16) return std::string(text);
    std::string digits;
    for (const char sign : text.substr(0, mark)) {
        if (sign >= '0' && sign <= '9') digits += sign;
    }
    const auto count = static_cast<int>(digits.size());
    if (exponent < 0) {
        digits = "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
    } else if (exponent + 1 >= count) {
        digits += std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
    } else {
        digits.insert(static_cast<std::size_t>(exponent + 1), 1, '.');
    }
    return (text[0] == '-' ? "-" : "") + digits;
}

}  // namespace syncflow::engine
