/// @file
/// The part of regular expressions that tokenizers use: alternatives of repeated classes.
#pragma once

#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "unicode.hpp"

namespace fourstep {

/// A regular expression of alternatives, each a row of characters, classes such as `[^\s\p{L}]`,
/// their repetitions, and a negative look ahead at one class. Anything else is refused.
class Pattern {
 public:
  /// Throws std::invalid_argument for what is not understood.
  explicit Pattern(std::u32string source) : source_(std::move(source)) {
    alternatives_.emplace_back();
    while (at_ < source_.size()) {
      if (take(U'|')) {
        alternatives_.emplace_back();
        continue;
      }
      Item item;
      if (take(U'(')) {
        if (!take(U'?') || !take(U'!')) fail();
        item.looks_ahead = true;
        item.set = one();
        if (!take(U')')) fail();
      } else {
        item.set = one();
        repetitions(item);
      }
      alternatives_.back().push_back(item);
    }
  }

  /// A pattern for this text as it stands.
  static Pattern of_text(const std::u32string& text) {
    Pattern found{std::u32string()};
    for (const char32_t point : text) {
      Item item;
      item.set.points = {point};
      found.alternatives_.back().push_back(item);
    }
    return found;
  }

  /// Begin and end of each match in a text, from the left.
  [[nodiscard]] std::vector<std::pair<std::size_t, std::size_t>> matches(
      std::u32string_view text) const {
    std::vector<std::pair<std::size_t, std::size_t>> found;
    for (std::size_t at = 0; at < text.size();) {
      std::size_t end = at;
      for (const std::vector<Item>& items : alternatives_)
        if (matches_from(text, at, items, 0, end)) break;
      if (end > at) found.emplace_back(at, end);
      at = end > at ? end : at + 1;
    }
    return found;
  }

 private:
  struct Set {
    bool negated = false;
    std::u32string points;
    std::vector<std::pair<char32_t, char32_t>> ranges;
    std::u32string classes;  // L, N, s or S
  };
  struct Item {
    Set set;
    std::size_t least = 1, most = 1;
    bool looks_ahead = false;
  };

  [[noreturn]] void fail() const {
    throw std::invalid_argument("the pattern " + to_utf8(source_) +
                                ", which this runtime does not know");
  }

  bool take(char32_t wanted) {
    if (at_ >= source_.size() || source_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  char32_t next() {
    if (at_ >= source_.size()) fail();
    return source_[at_++];
  }

  Set one() {
    Set found;
    if (take(U'[')) {
      found.negated = take(U'^');
      while (!take(U']')) member(found);
    } else {
      const std::u32string_view special = U"^$.*+?(){}[]";
      if (at_ < source_.size() && special.find(source_[at_]) != special.npos) fail();
      member(found);
    }
    return found;
  }

  void member(Set& set) {
    const char32_t point = next();
    if (point == U'\\') return escaped(set);
    if (point == U'[' || point == U'&') fail();  // classes in each other
    if (at_ + 1 < source_.size() && source_[at_] == U'-' && source_[at_ + 1] != U']') {
      ++at_;
      const char32_t last = next();
      if (last == U'\\') fail();
      set.ranges.emplace_back(point, last);
    } else {
      set.points += point;
    }
  }

  void escaped(Set& set) {
    const char32_t point = next();
    if (point == U'p') {
      if (!take(U'{')) fail();
      const char32_t name = next();
      if ((name != U'L' && name != U'N') || !take(U'}')) fail();
      set.classes += name;
    } else if (point == U's' || point == U'S') {
      set.classes += point;
    } else if ((point >= U'a' && point <= U'z') || (point >= U'A' && point <= U'Z') ||
               (point >= U'0' && point <= U'9')) {
      fail();
    } else {
      set.points += point;
    }
  }

  void repetitions(Item& item) {
    constexpr std::size_t any = std::numeric_limits<std::size_t>::max();
    if (take(U'?')) {
      item.least = 0;
    } else if (take(U'+')) {
      item.most = any;
    } else if (take(U'*')) {
      item.least = 0;
      item.most = any;
    } else if (take(U'{')) {
      item.least = number();
      item.most = !take(U',')                                    ? item.least
                  : at_ < source_.size() && source_[at_] == U'}' ? any
                                                                 : number();
      if (!take(U'}')) fail();
    }
    const std::u32string_view further = U"?+*{";
    if (at_ < source_.size() && further.find(source_[at_]) != further.npos) fail();
  }

  std::size_t number() {
    std::size_t found = 0;
    const std::size_t start = at_;
    while (at_ < source_.size() && source_[at_] >= U'0' && source_[at_] <= U'9' && at_ < start + 4)
      found = 10 * found + (source_[at_++] - U'0');
    if (at_ == start) fail();
    return found;
  }

  static bool holds(const Set& set, char32_t point) {
    const Unicode& unicode = Unicode::tables();
    bool found = set.points.find(point) != std::u32string::npos;
    for (const auto& [first, last] : set.ranges) found = found || (first <= point && point <= last);
    for (const char32_t name : set.classes)
      found = found || (name == U'L'   ? unicode.is_letter(point)
                        : name == U'N' ? unicode.is_number(point)
                                       : unicode.is_space(point) == (name == U's'));
    return found != set.negated;
  }

  /// Whether items match from a place on, as many repetitions as possible first.
  static bool matches_from(std::u32string_view text, std::size_t at, const std::vector<Item>& items,
                           std::size_t which, std::size_t& end) {
    if (which == items.size()) {
      end = at;
      return true;
    }
    const Item& item = items[which];
    if (item.looks_ahead)
      return (at == text.size() || !holds(item.set, text[at])) &&
             matches_from(text, at, items, which + 1, end);
    std::size_t count = 0;
    while (count < item.most && at + count < text.size() && holds(item.set, text[at + count]))
      ++count;
    for (;; --count) {
      if (count < item.least) return false;
      if (matches_from(text, at + count, items, which + 1, end)) return true;
      if (count == 0) return false;
    }
  }

  std::u32string source_;
  std::size_t at_ = 0;
  std::vector<std::vector<Item>> alternatives_;
};

}  // namespace fourstep
