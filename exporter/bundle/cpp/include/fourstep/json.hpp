/// @file
/// A reader of JSON (RFC 8259) in UTF-8, for files that somebody else may have made.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fourstep {

/// Whether bytes are UTF-8 as it has to be: shortest forms, no surrogates, up to U+10FFFF.
inline bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i]);
    const std::size_t size = first < 0x80   ? 1
                             : first < 0xC2 ? 0
                             : first < 0xE0 ? 2
                             : first < 0xF0 ? 3
                             : first < 0xF5 ? 4
                                            : 0;
    if (size == 0 || i + size > text.size()) return false;
    for (std::size_t k = 1; k < size; ++k)
      if ((static_cast<unsigned char>(text[i + k]) & 0xC0U) != 0x80) return false;
    const unsigned char second = size > 1 ? static_cast<unsigned char>(text[i + 1]) : 0;
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
        (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F))
      return false;
    i += size;
  }
  return true;
}

/// Appends a code point in UTF-8.
inline void append_utf8(std::string& text, char32_t point) {
  const auto add = [&text](char32_t byte) { text += static_cast<char>(byte); };
  if (point < 0x80) return add(point);
  if (point < 0x800) {
    add(0xC0U | point >> 6U);
  } else {
    if (point < 0x10000) {
      add(0xE0U | point >> 12U);
    } else {
      add(0xF0U | point >> 18U);
      add(0x80U | (point >> 12U & 0x3FU));
    }
    add(0x80U | (point >> 6U & 0x3FU));
  }
  add(0x80U | (point & 0x3FU));
}

namespace json {

/// A value, as it stood in a text.
struct Value {
  enum class Type { null, boolean, integer, number, string, array, object };

  Type type = Type::null;
  bool boolean = false;
  std::int64_t integer = 0;  ///< of whole numbers that fit
  double number = 0;         ///< of every number
  std::string string;
  std::vector<Value> items;                            ///< of an array
  std::vector<std::pair<std::string, Value>> members;  ///< of an object, in order

  /// A member of an object, the last of its name, or nullptr.
  [[nodiscard]] const Value* find(std::string_view name) const {
    for (auto member = members.rbegin(); member != members.rend(); ++member)
      if (member->first == name) return &member->second;
    return nullptr;
  }

  /// How an error calls it.
  [[nodiscard]] const char* kind() const {
    static constexpr const char* names[] = {"null", "bool",  "int",   "float",
                                            "str",  "array", "object"};
    return names[static_cast<int>(type)];
  }
};

/// Reads one text.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  /// The value; throws std::invalid_argument that says what is wrong at which byte.
  Value parse() {
    if (!is_utf8(text_)) fail("not UTF-8 text");
    if (text_.substr(0, 3) == "\xEF\xBB\xBF") at_ = 3;
    Value found = value(0);
    space();
    if (at_ != text_.size()) fail("more than one value");
    return found;
  }

 private:
  static constexpr int most_depth = 64;

  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument(what + " (byte " + std::to_string(at_) + ")");
  }

  void space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
      ++at_;
  }

  [[nodiscard]] char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char wanted) {
    if (peek() != wanted || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!take(wanted)) fail(std::string("'") + wanted + "' is expected");
  }

  Value value(int depth) {
    if (depth > most_depth) fail("nested too deeply");
    space();
    Value found;
    const char first = peek();
    if (first == '{') {
      object(found, depth);
    } else if (first == '[') {
      array(found, depth);
    } else if (first == '"') {
      found.type = Value::Type::string;
      found.string = string();
    } else if (word("true") || word("false")) {
      found.type = Value::Type::boolean;
      found.boolean = first == 't';
    } else if (!word("null")) {
      number(found);
    }
    return found;
  }

  bool word(std::string_view wanted) {
    if (text_.substr(at_, wanted.size()) != wanted) return false;
    at_ += wanted.size();
    return true;
  }

  void object(Value& found, int depth) {
    found.type = Value::Type::object;
    expect('{');
    space();
    if (take('}')) return;
    do {
      space();
      std::string name = string();
      space();
      expect(':');
      found.members.emplace_back(std::move(name), value(depth + 1));
      space();
    } while (take(','));
    expect('}');
  }

  void array(Value& found, int depth) {
    found.type = Value::Type::array;
    expect('[');
    space();
    if (take(']')) return;
    do {
      found.items.push_back(value(depth + 1));
      space();
    } while (take(','));
    expect(']');
  }

  std::string string() {
    expect('"');
    std::string found;
    while (!take('"')) {
      if (at_ >= text_.size()) fail("a string does not end");
      const char next = text_[at_];
      if (static_cast<unsigned char>(next) < 0x20) fail("a control character in a string");
      if (next == '\\') {
        escape(found);
      } else {
        found += next;
        ++at_;
      }
    }
    return found;
  }

  void escape(std::string& found) {
    static constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    ++at_;
    const char letter = peek();
    ++at_;
    if (letter != 'u') {
      const std::size_t which = letters.find(letter);
      if (which == std::string_view::npos) fail("an escape that is not known");
      found += meanings[which];
      return;
    }
    char32_t point = hex4();
    if (point >= 0xD800 && point < 0xDC00 && word("\\u")) {
      const char32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
      point = 0x10000 + ((point - 0xD800) << 10U) + (low - 0xDC00);
    } else if (point >= 0xD800 && point < 0xE000) {
      fail("half of a surrogate pair");
    }
    append_utf8(found, point);
  }

  char32_t hex4() {
    std::uint32_t found = 0;
    const std::string_view digits = text_.substr(std::min(at_, text_.size()), 4);
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), found, 16);
    if (digits.size() < 4 || error != std::errc() || end != digits.data() + 4 || digits[0] == '-')
      fail("four digits are expected");
    at_ += 4;
    return found;
  }

  void digits() {
    if (peek() < '0' || peek() > '9') fail("a value is expected");
    while (peek() >= '0' && peek() <= '9') ++at_;
  }

  void number(Value& found) {
    const std::size_t start = at_;
    take('-');
    if (!take('0')) digits();
    bool whole = true;
    if (take('.')) {
      digits();
      whole = false;
    }
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      digits();
      whole = false;
    }
    const std::string_view text = text_.substr(start, at_ - start);
    found.number = real(text);
    if (!(found.number - found.number == 0)) fail("a number that no double holds");
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), found.integer);
    found.type = whole && error == std::errc() && end == text.data() + text.size()
                     ? Value::Type::integer
                     : Value::Type::number;
  }

  static double real(std::string_view text) {
    double found = 0;
#if defined(__cpp_lib_to_chars)
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), found);
    static_cast<void>(end);
    if (error == std::errc::result_out_of_range && text.find('-', 1) == std::string_view::npos)
      found = std::numeric_limits<double>::infinity();  // else too small, which is 0
#else
    std::istringstream stream{std::string(text)};
    stream.imbue(std::locale::classic());
    stream >> found;
#endif
    return found;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

/// The value of a text; throws std::invalid_argument that says what is wrong.
inline Value parse(std::string_view text) { return Parser(text).parse(); }

}  // namespace json
}  // namespace fourstep
