/// @file
/// Unicode as the `tokenizers` library has it: properties, lower case, NFC and NFD, clusters.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json.hpp"
#include "unicode_data.hpp"

namespace fourstep {

/// The code points of UTF-8 text.
inline std::u32string to_points(std::string_view text) {
  std::u32string found;
  for (std::size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i]);
    const std::size_t size = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    char32_t point = size == 1 ? first : first & (0xFFU >> (size + 1));
    for (std::size_t k = 1; k < size; ++k)
      point = point << 6U | (static_cast<unsigned char>(text[i + k]) & 0x3FU);
    found += point;
    i += size;
  }
  return found;
}

/// Code points as UTF-8.
inline std::string to_utf8(std::u32string_view points) {
  std::string found;
  for (const char32_t point : points) append_utf8(found, point);
  return found;
}

/// The tables of `exporter/bundle/unicode.py`, which says what they hold.
class Unicode {
 public:
  /// Read once, when something is asked first.
  static const Unicode& tables() {
    static const Unicode found;
    return found;
  }

  [[nodiscard]] bool is_letter(char32_t point) const { return bit(point, 6); }  ///< \\p{L}
  [[nodiscard]] bool is_number(char32_t point) const { return bit(point, 7); }  ///< \\p{N}
  [[nodiscard]] bool is_space(char32_t point) const { return bit(point, 8); }   ///< \\s
  [[nodiscard]] bool is_white(char32_t point) const { return bit(point, 9); }   ///< White_Space

  /// Lower case, code point by code point.
  [[nodiscard]] std::u32string lower(std::u32string_view text) const {
    std::u32string found;
    for (const char32_t point : text) {
      const auto to = lower_.find(point);
      if (to == lower_.end())
        found += point;
      else
        found += to->second;
    }
    return found;
  }

  /// Canonical decomposition, with marks in order.
  [[nodiscard]] std::u32string nfd(std::u32string_view text) const {
    std::u32string found;
    for (const char32_t point : text) decompose(point, found);
    for (std::size_t i = 0; i < found.size(); ++i) {
      std::size_t end = i;
      while (end < found.size() && rank(found[end]) > 0) ++end;
      std::stable_sort(found.begin() + static_cast<std::ptrdiff_t>(i),
                       found.begin() + static_cast<std::ptrdiff_t>(end),
                       [this](char32_t a, char32_t b) { return rank(a) < rank(b); });
      i = end;
    }
    return found;
  }

  /// Canonical composition.
  [[nodiscard]] std::u32string nfc(std::u32string_view text) const {
    std::u32string found;
    std::size_t starter = std::u32string::npos;
    std::uint32_t last = 0;  // the rank of what stands before, since the starter
    for (const char32_t point : nfd(text)) {
      const std::uint32_t own = rank(point);
      const bool follows = starter != std::u32string::npos && found.size() - 1 == starter;
      if (starter != std::u32string::npos && (follows || last < own)) {
        const char32_t composed = compose(found[starter], point);
        if (composed != 0) {
          found[starter] = composed;
          continue;
        }
      }
      found += point;
      if (own == 0) starter = found.size() - 1;
      last = own;
    }
    return found;
  }

  /// Where the extended grapheme clusters of a text end.
  [[nodiscard]] std::vector<std::size_t> clusters(std::u32string_view text) const {
    std::vector<std::size_t> found;
    for (std::size_t i = 1; i <= text.size(); ++i)
      if (i == text.size() || !joins(text, i)) found.push_back(i);
    return found;
  }

 private:
  enum Class { other, control, extend, spacing, joiner, prepend, l, v, t, lv, lvt, pictograph };
  enum Conjunct { none, consonant, linker, extending };
  struct Run {
    char32_t end;
    std::uint32_t value;
  };
  struct Marks {
    char32_t begin, end;
    std::uint32_t rank;
  };
  static constexpr char32_t hangul = 0xAC00, hangul_end = 0xD7A4, first_l = 0x1100,
                            first_v = 0x1161, before_t = 0x11A7, vowels = 21, tails = 28;

  Unicode() {
    const unsigned char* at = unicode_data;
    while (*at != 0) ++at;
    ++at;
    const auto next = [&at] {
      std::uint32_t value = 0, shift = 0;
      do {
        value |= (*at & 0x7FU) << shift;
        shift += 7;
      } while ((*at++ & 0x80U) != 0);
      return value;
    };
    char32_t place = 0;
    for (std::uint32_t count = next(); count > 0; --count) {
      place += next();
      runs_.push_back({place, next()});
    }
    place = 0;
    for (std::uint32_t count = next(); count > 0; --count) {
      const char32_t begin = place + next();
      place = begin + next();
      marks_.push_back({begin, place, next()});
    }
    const auto points = [&next] {
      std::u32string found(next(), U'\0');
      for (char32_t& point : found) point = next();
      return found;
    };
    place = 0;
    for (std::uint32_t count = next(); count > 0; --count) {
      place += next();
      lower_[place] = points();
    }
    place = 0;
    for (std::uint32_t count = next(); count > 0; --count) {
      place += next();
      const bool composes = next() != 0;
      std::u32string parts = points();
      if (composes) composed_[{parts[0], parts[1]}] = place;
      decomposed_[place] = std::move(parts);
    }
  }

  [[nodiscard]] std::uint32_t value(char32_t point) const {
    const auto run = std::upper_bound(runs_.begin(), runs_.end(), point,
                                      [](char32_t p, const Run& r) { return p < r.end; });
    return run == runs_.end() ? 0 : run->value;
  }

  [[nodiscard]] bool bit(char32_t point, unsigned which) const {
    return (value(point) >> which & 1U) != 0;
  }

  [[nodiscard]] std::uint32_t rank(char32_t point) const {
    const auto run = std::upper_bound(marks_.begin(), marks_.end(), point,
                                      [](char32_t p, const Marks& m) { return p < m.end; });
    return run == marks_.end() || point < run->begin ? 0 : run->rank;
  }

  void decompose(char32_t point, std::u32string& found) const {
    if (point >= hangul && point < hangul_end) {
      const char32_t index = point - hangul;
      found += first_l + index / tails / vowels;
      found += first_v + index / tails % vowels;
      if (index % tails != 0) found += before_t + index % tails;
      return;
    }
    const auto parts = decomposed_.find(point);
    if (parts == decomposed_.end()) {
      found += point;
    } else {
      for (const char32_t part : parts->second) decompose(part, found);
    }
  }

  /// What two code points compose to, or 0.
  [[nodiscard]] char32_t compose(char32_t first, char32_t second) const {
    if (first >= first_l && first < first_l + 19 && second >= first_v && second < first_v + vowels)
      return hangul + ((first - first_l) * vowels + (second - first_v)) * tails;
    if (first >= hangul && first < hangul_end && (first - hangul) % tails == 0 &&
        second > before_t && second < before_t + tails)
      return first + (second - before_t);
    const auto found = composed_.find({first, second});
    return found == composed_.end() ? 0 : found->second;
  }

  /// Whether no cluster ends between a code point and the one before it (UAX 29).
  [[nodiscard]] bool joins(std::u32string_view text, std::size_t at) const {
    const std::uint32_t before = value(text[at - 1]), after = value(text[at]);
    const std::uint32_t left = before & 15U, right = after & 15U;
    if (text[at - 1] == U'\r' && text[at] == U'\n') return true;
    if (left == control || right == control) return false;
    if (left == l && (right == l || right == v || right == lv || right == lvt)) return true;
    if ((left == lv || left == v) && (right == v || right == t)) return true;
    if ((left == lvt || left == t) && right == t) return true;
    if (right == extend || right == joiner || right == spacing || left == prepend) return true;
    if (left == joiner && right == pictograph) return follows_pictograph(text, at - 1);
    return (after >> 4U & 3U) == consonant && follows_linker(text, at);
  }

  [[nodiscard]] bool follows_pictograph(std::u32string_view text, std::size_t at) const {
    while (at > 0 && (value(text[at - 1]) & 15U) == extend) --at;
    return at > 0 && (value(text[at - 1]) & 15U) == pictograph;
  }

  [[nodiscard]] bool follows_linker(std::u32string_view text, std::size_t at) const {
    bool linked = false;
    for (; at > 0; --at) {
      const std::uint32_t kind = value(text[at - 1]) >> 4U & 3U;
      if (kind == consonant) return linked;
      if (kind == none) return false;
      linked = linked || kind == linker;
    }
    return false;
  }

  std::vector<Run> runs_;
  std::vector<Marks> marks_;
  std::map<char32_t, std::u32string> lower_;
  std::map<char32_t, std::u32string> decomposed_;
  std::map<std::pair<char32_t, char32_t>, char32_t> composed_;
};

}  // namespace fourstep
