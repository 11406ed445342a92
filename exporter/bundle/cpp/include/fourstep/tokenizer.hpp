/// @file
/// Prompts to ids, by a `tokenizer.json` whose parts are run as the `tokenizers` library runs them.
/// A part that is not known here is refused: to leave it out would draw another picture.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "error.hpp"
#include "json.hpp"
#include "manifest.hpp"
#include "models.hpp"
#include "pattern.hpp"
#include "tensor.hpp"
#include "unicode.hpp"

namespace fourstep {

inline constexpr std::size_t most_characters = 100000;  ///< of a prompt

namespace detail {

/// A piece of a prompt, and whether the prompt begins with it.
struct Piece {
  std::u32string text;
  bool is_first = false;
};

using Pieces = std::vector<Piece>;
using Normalizer = std::function<std::u32string(std::u32string_view)>;
using Splitter = std::function<void(const Piece&, Pieces&)>;

[[noreturn]] inline void refuse_part(const char* what, const std::string& type) {
  throw std::invalid_argument(std::string(what) + " of the type " + type.substr(0, 40) +
                              ", which this runtime does not know; take a newer runtime");
}

inline const std::string& type_of(const json::Value& part) { return member(part, "type").string; }

inline bool is_true(const json::Value& part, const char* name, bool absent) {
  const json::Value* found = part.find(name);
  return found == nullptr ? absent : found->boolean;
}

inline Pattern pattern_of(const json::Value& part) {
  const json::Value& given = member(part, "pattern");
  if (const json::Value* text = given.find("String"))
    return Pattern::of_text(to_points(text->string));
  return Pattern(to_points(member(given, "Regex").string));
}

inline std::string base64(std::string_view text) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string found;
  std::uint32_t held = 0;
  unsigned bits = 0;
  for (const char letter : text) {
    const std::size_t digit = digits.find(letter);
    if (digit == std::string_view::npos) break;
    held = held << 6U | static_cast<std::uint32_t>(digit);
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    found += static_cast<char>(held >> bits & 0xFFU);
  }
  return found;
}

/// SentencePiece's map of clusters and characters: a double array over their bytes, then texts.
class Precompiled {
 public:
  explicit Precompiled(std::string_view encoded) : bytes_(base64(encoded)) {
    if (bytes_.size() < 4 || word(0) > bytes_.size() - 4 || word(0) < 4)
      throw std::invalid_argument("a map of characters that is not whole");
    units_ = word(0) / 4;
  }

  [[nodiscard]] std::u32string operator()(std::u32string_view text) const {
    std::string found;
    std::size_t begin = 0;
    for (const std::size_t end : Unicode::tables().clusters(text)) {
      const std::string cluster = to_utf8(text.substr(begin, end - begin));
      constexpr std::size_t longest = 6;  // bytes of a cluster that is looked up as one
      if (cluster.size() >= longest || !replace(cluster, found))
        for (std::size_t i = begin; i < end; ++i) {
          const std::string character = to_utf8(text.substr(i, 1));
          if (!replace(character, found)) found += character;
        }
      begin = end;
    }
    return to_points(found);
  }

 private:
  [[nodiscard]] std::uint32_t word(std::size_t place) const {
    std::uint32_t found = 0;
    for (std::size_t i = 4; i-- > 0;)
      found = found << 8U | static_cast<std::uint8_t>(bytes_[4 * place + i]);
    return found;
  }

  [[nodiscard]] std::uint32_t unit(std::size_t place) const {
    if (place >= units_) throw std::invalid_argument("a map of characters that leads nowhere");
    return word(1 + place);
  }

  static std::size_t offset(std::uint32_t unit) {
    return static_cast<std::size_t>(unit >> 10U) << ((unit & 0x200U) >> 6U);
  }

  /// Appends what the shortest prefix that the map knows stands for; false if it knows none.
  bool replace(const std::string& key, std::string& found) const {
    std::size_t place = offset(unit(0));
    for (const char letter : key) {
      const auto byte = static_cast<std::uint8_t>(letter);
      if (byte == 0) return false;
      place ^= byte;
      const std::uint32_t at = unit(place);
      if ((at & 0x800000FFU) != byte) return false;
      place ^= offset(at);
      if ((at >> 8U & 1U) == 0) continue;
      const std::size_t start = 4 * (1 + units_) + (unit(place) & 0x7FFFFFFFU);
      if (start > bytes_.size())
        throw std::invalid_argument("a map of characters that leads nowhere");
      const std::string text = bytes_.substr(start, bytes_.find('\0', start) - start);
      if (!is_utf8(text)) throw std::invalid_argument("a map of characters to what is no text");
      found += text;
      return true;
    }
    return false;
  }

  std::string bytes_;
  std::size_t units_ = 0;
};

inline Normalizer normalizer_of(const json::Value& part);

inline Normalizer sequence_of(const json::Value& part) {
  std::vector<Normalizer> steps;
  for (const json::Value& step : member(part, "normalizers").items)
    steps.push_back(normalizer_of(step));
  return [steps](std::u32string_view text) {
    std::u32string found(text);
    for (const Normalizer& step : steps) found = step(found);
    return found;
  };
}

inline Normalizer replacement_of(const json::Value& part) {
  const std::u32string content = to_points(member(part, "content").string);
  return [pattern = pattern_of(part), content](std::u32string_view text) {
    std::u32string found;
    std::size_t at = 0;
    for (const auto& [begin, end] : pattern.matches(text)) {
      found += text.substr(at, begin - at);
      found += content;
      at = end;
    }
    return found += text.substr(at);
  };
}

inline std::u32string stripped(std::u32string_view text, bool left, bool right) {
  const auto is_white = [](char32_t point) { return Unicode::tables().is_white(point); };
  while (left && !text.empty() && is_white(text.front())) text.remove_prefix(1);
  while (right && !text.empty() && is_white(text.back())) text.remove_suffix(1);
  return std::u32string(text);
}

inline Normalizer normalizer_of(const json::Value& part) {
  if (part.type == json::Value::Type::null)
    return [](std::u32string_view text) { return std::u32string(text); };
  const std::string& type = type_of(part);
  if (type == "Sequence") return sequence_of(part);
  if (type == "NFC") return [](std::u32string_view text) { return Unicode::tables().nfc(text); };
  if (type == "NFD") return [](std::u32string_view text) { return Unicode::tables().nfd(text); };
  if (type == "Lowercase")
    return [](std::u32string_view text) { return Unicode::tables().lower(text); };
  if (type == "Replace") return replacement_of(part);
  if (type == "Strip")
    return [left = is_true(part, "strip_left", true), right = is_true(part, "strip_right", true)](
               std::u32string_view text) { return stripped(text, left, right); };
  if (type == "Precompiled") return Precompiled(member(part, "precompiled_charsmap").string);
  refuse_part("a normalizer", type);
}

inline void add_piece(Pieces& found, const Piece& whole, std::size_t begin, std::size_t end) {
  if (end > begin)
    found.push_back({whole.text.substr(begin, end - begin), whole.is_first && begin == 0});
}

inline Splitter split_of(const json::Value& part) {
  const std::string& behaviour = member(part, "behavior").string;
  if (behaviour != "Removed" && behaviour != "Isolated") refuse_part("a split", behaviour);
  return [pattern = pattern_of(part), isolates = behaviour == "Isolated",
          inverts = is_true(part, "invert", false)](const Piece& whole, Pieces& found) {
    std::size_t at = 0;
    for (const auto& [begin, end] : pattern.matches(whole.text)) {
      if (isolates || !inverts) add_piece(found, whole, at, begin);
      if (isolates || inverts) add_piece(found, whole, begin, end);
      at = end;
    }
    if (isolates || !inverts) add_piece(found, whole, at, whole.text.size());
  };
}

/// The characters that stand for bytes: themselves where they show, else from U+0100 on.
inline const std::array<char32_t, 256>& byte_letters() {
  static const std::array<char32_t, 256> letters = [] {
    std::array<char32_t, 256> found{};
    char32_t further = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool shows = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
      found[byte] = shows ? byte : further++;
    }
    return found;
  }();
  return letters;
}

inline Splitter byte_level_of(const json::Value& part) {
  const Pattern words(
      U"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+");
  return [words, splits = is_true(part, "use_regex", true),
          prefixes = is_true(part, "add_prefix_space", true)](const Piece& given, Pieces& found) {
    Piece whole = given;
    if (prefixes && whole.text.front() != U' ') whole.text.insert(0, 1, U' ');
    Pieces parts;
    if (splits)
      for (const auto& [begin, end] : words.matches(whole.text))
        add_piece(parts, whole, begin, end);
    else
      parts.push_back(whole);
    for (const Piece& piece : parts) {
      std::u32string letters;
      for (const char byte : to_utf8(piece.text))
        letters += byte_letters()[static_cast<std::uint8_t>(byte)];
      found.push_back({letters, piece.is_first});
    }
  };
}

inline void split_at_white(const Piece& whole, Pieces& found) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < whole.text.size(); ++i)
    if (Unicode::tables().is_white(whole.text[i])) {
      add_piece(found, whole, at, i);
      at = i + 1;
    }
  add_piece(found, whole, at, whole.text.size());
}

inline Splitter metaspace_of(const json::Value& part) {
  const std::u32string mark = to_points(member(part, "replacement").string);
  if (mark.size() != 1) throw std::invalid_argument("a replacement of one character is expected");
  const json::Value* scheme = part.find("prepend_scheme");
  const std::string prepends = scheme != nullptr                         ? scheme->string
                               : is_true(part, "add_prefix_space", true) ? "always"
                                                                         : "never";
  if (prepends != "always" && prepends != "first" && prepends != "never")
    refuse_part("a prepend_scheme", prepends);
  return [mark = mark[0], prepends, splits = is_true(part, "split", true)](const Piece& given,
                                                                           Pieces& found) {
    Piece whole = given;
    std::replace(whole.text.begin(), whole.text.end(), U' ', mark);
    const bool wants = prepends == "always" || (prepends == "first" && whole.is_first);
    if (wants && whole.text.front() != mark) whole.text.insert(0, 1, mark);
    std::size_t at = 0;
    for (std::size_t i = 1; splits && i < whole.text.size(); ++i)
      if (whole.text[i] == mark) {
        add_piece(found, whole, at, i);
        at = i;
      }
    add_piece(found, whole, at, whole.text.size());
  };
}

inline void add_splitters(const json::Value& part, std::vector<Splitter>& found) {
  if (part.type == json::Value::Type::null) return;
  const std::string& type = type_of(part);
  if (type == "Sequence") {
    for (const json::Value& step : member(part, "pretokenizers").items) add_splitters(step, found);
  } else if (type == "Split") {
    found.push_back(split_of(part));
  } else if (type == "ByteLevel") {
    found.push_back(byte_level_of(part));
  } else if (type == "WhitespaceSplit") {
    found.emplace_back(split_at_white);
  } else if (type == "Metaspace") {
    found.push_back(metaspace_of(part));
  } else {
    refuse_part("a pre-tokenizer", type);
  }
}

/// What stands around the ids of every prompt.
struct Frame {
  Ids before, after;
};

inline Frame template_of(const json::Value& part) {
  Frame found;
  bool is_behind = false;
  for (const json::Value& item : member(part, "single").items) {
    if (item.find("Sequence") != nullptr) {
      if (is_behind) throw std::invalid_argument("a template that repeats the prompt");
      is_behind = true;
      continue;
    }
    const std::string& name = member(member(item, "SpecialToken"), "id").string;
    const json::Value* token = member(part, "special_tokens").find(name);
    if (token == nullptr)
      throw std::invalid_argument("the special token '" + name + "' is missing");
    for (const json::Value& id : member(*token, "ids").items)
      (is_behind ? found.after : found.before).push_back(id_of(id));
  }
  if (!is_behind) throw std::invalid_argument("a template without the prompt");
  return found;
}

inline Frame frame_of(const json::Value& part) {
  if (part.type == json::Value::Type::null) return {};
  const std::string& type = type_of(part);
  if (type == "TemplateProcessing") return template_of(part);
  if (type == "ByteLevel") return {};  // of offsets alone
  if (type == "RobertaProcessing" || type == "BertProcessing") {
    const std::vector<json::Value>& first = member(part, "cls").items;
    const std::vector<json::Value>& last = member(part, "sep").items;
    if (first.size() != 2 || last.size() != 2)
      throw std::invalid_argument("a token and its id are expected");
    return {{id_of(first[1])}, {id_of(last[1])}};
  }
  if (type != "Sequence") refuse_part("a post-processor", type);
  Frame found;
  for (const json::Value& step : member(part, "processors").items) {
    const Frame inner = frame_of(step);
    found.before.insert(found.before.begin(), inner.before.begin(), inner.before.end());
    found.after.insert(found.after.end(), inner.after.begin(), inner.after.end());
  }
  return found;
}

/// A token that is cut out of a text before anything else is done with it.
struct AddedToken {
  std::u32string text;
  std::int32_t id = 0;
  bool strips_left = false, strips_right = false;
};

/// A part of a text: an added token's id, or what is between them.
struct Section {
  std::u32string text;
  std::int32_t id = -1;
  bool is_first = false;
};

/// Cuts tokens out: the leftmost, and of several there the longest.
inline std::vector<Section> cut_out(const Section& whole, const std::vector<AddedToken>& tokens) {
  const auto is_white = [](char32_t point) { return Unicode::tables().is_white(point); };
  const std::u32string& text = whole.text;
  std::vector<Section> found;
  std::size_t from = 0;
  const auto rest = [&](std::size_t end) {
    if (end > from)
      found.push_back({text.substr(from, end - from), -1, whole.is_first && from == 0});
  };
  for (std::size_t at = 0; at < text.size();) {
    const AddedToken* best = nullptr;
    for (const AddedToken& token : tokens)
      if (text.compare(at, token.text.size(), token.text) == 0 &&
          (best == nullptr || token.text.size() > best->text.size()))
        best = &token;
    if (best == nullptr) {
      ++at;
      continue;
    }
    std::size_t begin = at, end = at + best->text.size();
    at = end;
    while (best->strips_left && begin > from && is_white(text[begin - 1])) --begin;
    while (best->strips_right && end < text.size() && is_white(text[end])) ++end;
    rest(begin);
    found.push_back({{}, best->id, false});
    from = end;
    at = std::max(at, end);
  }
  rest(text.size());
  return found;
}

}  // namespace detail

/// Turns prompts into the ids of one text encoder.
class Tokenizer {
 public:
  /// @param content of the tokenizer's file.
  /// @param entry what the manifest says of it.
  /// @param where the file, which errors name.
  /// @throws Error for a file that is none, or has a part that is not known.
  Tokenizer(std::string_view content, const TokenizerEntry& entry, const std::string& where)
      : entry_(entry) {
    try {
      read(json::parse(content));
    } catch (const std::invalid_argument& error) {
      throw check_failed(where + ": not a tokenizer: " + error.what());
    }
    if (largest_ >= entry.vocabulary_size)
      throw check_failed(where + ": has ids up to " + std::to_string(largest_) +
                         " and the manifest allows " + std::to_string(entry.vocabulary_size) +
                         "; build the package again");
  }

  /// All ids of a prompt, which must be UTF-8, with those that stand around every prompt.
  [[nodiscard]] Ids ids(std::string_view prompt) const {
    Ids found = frame_.before;
    for (const detail::Section& raw : detail::cut_out({to_points(prompt), -1, true}, raw_tokens_)) {
      if (raw.id >= 0) {
        found.push_back(raw.id);
        continue;
      }
      const detail::Section normal{normalize_(raw.text), -1, raw.is_first};
      for (const detail::Section& part : detail::cut_out(normal, normal_tokens_)) {
        if (part.id >= 0)
          found.push_back(part.id);
        else
          encode(part, found);
      }
    }
    found.insert(found.end(), frame_.after.begin(), frame_.after.end());
    return found;
  }

  /// Ids (1, tokens) as an encoder takes them: filled up, or cut with the last one kept.
  [[nodiscard]] TensorPtr fitted(Ids ids) const {
    const auto count = static_cast<std::size_t>(entry_.tokens);
    if (ids.size() > count) {
      const std::int32_t last = ids.back();
      ids.resize(count);
      ids.back() = last;
    }
    ids.resize(count, entry_.pad_id);
    return std::make_shared<const Tensor>(Tensor{{1, entry_.tokens}, std::move(ids)});
  }

  [[nodiscard]] const TokenizerEntry& entry() const { return entry_; }

 private:
  void read(const json::Value& file) {
    using detail::member;
    const json::Value& model = member(file, "model");
    const json::Value* type = model.find("type");
    if (type != nullptr && type->string == "BPE")
      model_ = std::make_unique<Bpe>(model);
    else if (type != nullptr && type->string == "Unigram")
      model_ = std::make_unique<Unigram>(model);
    else
      detail::refuse_part("a model", type == nullptr ? "None" : type->string);
    normalize_ = detail::normalizer_of(member(file, "normalizer"));
    detail::add_splitters(member(file, "pre_tokenizer"), splitters_);
    frame_ = detail::frame_of(member(file, "post_processor"));
    largest_ = model_->largest();
    for (const json::Value& token : member(file, "added_tokens").items) add(token);
    for (const Ids& ids : {frame_.before, frame_.after})
      for (const std::int32_t id : ids) largest_ = std::max(largest_, id);
  }

  void add(const json::Value& token) {
    using detail::is_true;
    if (is_true(token, "single_word", false))
      throw std::invalid_argument(
          "an added token that is a single word, which this runtime does "
          "not know; take a newer runtime");
    detail::AddedToken found{to_points(detail::member(token, "content").string),
                             detail::id_of(detail::member(token, "id")),
                             is_true(token, "lstrip", false), is_true(token, "rstrip", false)};
    largest_ = std::max(largest_, found.id);
    const bool is_normalized = is_true(token, "normalized", false);
    if (is_normalized) found.text = normalize_(found.text);
    if (!found.text.empty()) (is_normalized ? normal_tokens_ : raw_tokens_).push_back(found);
  }

  void encode(const detail::Section& section, Ids& found) const {
    detail::Pieces pieces{{section.text, section.is_first}};
    for (const detail::Splitter& split : splitters_) {
      detail::Pieces parts;
      for (const detail::Piece& piece : pieces) split(piece, parts);
      pieces = std::move(parts);
    }
    for (const detail::Piece& piece : pieces) model_->encode(to_utf8(piece.text), found);
  }

  TokenizerEntry entry_;
  std::vector<detail::AddedToken> raw_tokens_, normal_tokens_;
  detail::Normalizer normalize_;
  std::vector<detail::Splitter> splitters_;
  std::unique_ptr<TokenModel> model_;
  detail::Frame frame_;
  std::int32_t largest_ = 0;
};

}  // namespace fourstep
