/// @file
/// What turns a piece of a prompt into ids: BPE and Unigram, as the `tokenizers` library has them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <queue>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "json.hpp"

namespace fourstep {

using Ids = std::vector<std::int32_t>;

namespace detail {

/// A member of an object of a tokenizer's file; throws std::invalid_argument when it is missing.
inline const json::Value& member(const json::Value& object, const char* name) {
  const json::Value* found = object.find(name);
  if (found == nullptr) throw std::invalid_argument(std::string("'") + name + "' is missing");
  return *found;
}

/// An id; throws std::invalid_argument for what is none.
inline std::int32_t id_of(const json::Value& value) {
  if (value.type != json::Value::Type::integer || value.integer < 0 ||
      value.integer > std::numeric_limits<std::int32_t>::max())
    throw std::invalid_argument("an id is expected");
  return static_cast<std::int32_t>(value.integer);
}

/// Throws std::invalid_argument for a setting of a model that is on, and not known here.
inline void refuse_setting(const json::Value& model, const char* name) {
  const json::Value* found = model.find(name);
  if (found == nullptr || found->type == json::Value::Type::null) return;
  if (found->boolean || found->number != 0 || !found->string.empty())
    throw std::invalid_argument(std::string("a model with ") + name +
                                ", which this runtime does not know");
}

inline std::size_t utf8_size(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

}  // namespace detail

/// Turns a piece into ids.
class TokenModel {
 public:
  TokenModel() = default;
  TokenModel(const TokenModel&) = delete;
  TokenModel& operator=(const TokenModel&) = delete;
  virtual ~TokenModel() = default;

  /// Appends the ids of a piece in UTF-8.
  virtual void encode(const std::string& piece, Ids& ids) const = 0;

  /// The largest id that it gives.
  [[nodiscard]] virtual std::int32_t largest() const = 0;
};

/// Byte pair encoding: of neighbours, those that were merged first in training are merged first.
class Bpe final : public TokenModel {
 public:
  explicit Bpe(const json::Value& model) {
    for (const char* name : {"dropout", "continuing_subword_prefix", "byte_fallback"})
      detail::refuse_setting(model, name);
    for (const auto& [token, id] : detail::member(model, "vocab").members)
      vocabulary_[token] = detail::id_of(id);
    const auto text = [&model](const char* name) {
      const json::Value* found = model.find(name);
      return found == nullptr ? std::string() : found->string;
    };
    const auto truth = [&model](const char* name) {
      const json::Value* found = model.find(name);
      return found != nullptr && found->boolean;
    };
    suffix_ = text("end_of_word_suffix");
    fuses_unknown_ = truth("fuse_unk");
    takes_whole_words_ = truth("ignore_merges");
    if (!text("unk_token").empty()) unknown_ = known(text("unk_token"));
    std::int32_t rank = 0;
    for (const json::Value& merge : detail::member(model, "merges").items) add(merge, rank++);
  }

  void encode(const std::string& piece, Ids& ids) const override {
    const auto whole = takes_whole_words_ ? vocabulary_.find(piece) : vocabulary_.end();
    if (whole != vocabulary_.end()) {
      ids.push_back(whole->second);
      return;
    }
    std::vector<Symbol> symbols;
    std::int32_t pending = -1;  // the id of unknown characters so far
    for (std::size_t i = 0; i < piece.size();) {
      const std::size_t size = detail::utf8_size(piece[i]);
      const bool is_last = i + size >= piece.size();
      const auto found = vocabulary_.find(piece.substr(i, size) + (is_last ? suffix_ : ""));
      i += size;
      if (found == vocabulary_.end() && pending >= 0 && fuses_unknown_) continue;
      if (pending >= 0) append(symbols, pending);
      pending = found == vocabulary_.end() ? unknown_ : -1;
      if (found != vocabulary_.end()) append(symbols, found->second);
    }
    if (pending >= 0) append(symbols, pending);
    merge_all(symbols);
    for (const Symbol& symbol : symbols)
      if (symbol.id >= 0) ids.push_back(symbol.id);
  }

  [[nodiscard]] std::int32_t largest() const override {
    std::int32_t found = 0;
    for (const auto& [token, id] : vocabulary_) found = std::max(found, id);
    return found;
  }

 private:
  struct Symbol {
    std::int32_t id;  // -1: merged into the one before
    std::ptrdiff_t before, after;
  };
  struct Merge {
    std::int32_t rank, id;
  };
  using Candidate = std::tuple<std::int32_t, std::ptrdiff_t, std::int32_t, std::int32_t>;
  using Queue = std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>>;

  [[nodiscard]] std::int32_t known(const std::string& token) const {
    const auto found = vocabulary_.find(token);
    if (found == vocabulary_.end())
      throw std::invalid_argument("the token '" + token + "' is not in the vocabulary");
    return found->second;
  }

  void add(const json::Value& merge, std::int32_t rank) {
    std::string first, second;
    const std::size_t gap = merge.string.find(' ');
    if (merge.items.size() == 2) {
      first = merge.items[0].string;
      second = merge.items[1].string;
    } else if (gap != std::string::npos) {
      first = merge.string.substr(0, gap);
      second = merge.string.substr(gap + 1);
    } else {
      throw std::invalid_argument("a merge of two tokens is expected");
    }
    merges_[key(known(first), known(second))] = {rank, known(first + second)};
  }

  static std::uint64_t key(std::int32_t first, std::int32_t second) {
    return static_cast<std::uint64_t>(first) << 32U | static_cast<std::uint32_t>(second);
  }

  static void append(std::vector<Symbol>& symbols, std::int32_t id) {
    const auto place = static_cast<std::ptrdiff_t>(symbols.size());
    if (place > 0) symbols.back().after = place;
    symbols.push_back({id, place - 1, -1});
  }

  void merge_all(std::vector<Symbol>& symbols) const {
    Queue queue;
    const auto offer = [&](std::ptrdiff_t left) {
      if (left < 0 || at(symbols, left).after < 0) return;
      const std::int32_t first = at(symbols, left).id;
      const std::int32_t second = at(symbols, at(symbols, left).after).id;
      const auto merge = merges_.find(key(first, second));
      if (merge != merges_.end()) queue.emplace(merge->second.rank, left, first, second);
    };
    for (std::size_t i = 0; i < symbols.size(); ++i) offer(static_cast<std::ptrdiff_t>(i));
    while (!queue.empty()) {
      const auto [rank, left, first, second] = queue.top();
      queue.pop();
      Symbol& kept = at(symbols, left);
      if (kept.id != first || kept.after < 0 || at(symbols, kept.after).id != second) continue;
      Symbol& gone = at(symbols, kept.after);
      kept.id = merges_.at(key(first, second)).id;
      kept.after = gone.after;
      gone.id = -1;
      if (kept.after >= 0) at(symbols, kept.after).before = left;
      offer(kept.before);
      offer(left);
    }
  }

  static Symbol& at(std::vector<Symbol>& symbols, std::ptrdiff_t place) {
    return symbols[static_cast<std::size_t>(place)];
  }

  std::unordered_map<std::string, std::int32_t> vocabulary_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::string suffix_;
  std::int32_t unknown_ = -1;  // what stands for a character that is in no token; -1: nothing
  bool fuses_unknown_ = false;
  bool takes_whole_words_ = false;
};

/// A unigram language model: the most probable row of pieces (Viterbi).
class Unigram final : public TokenModel {
 public:
  explicit Unigram(const json::Value& model) {
    detail::refuse_setting(model, "byte_fallback");
    const json::Value* unknown = model.find("unk_id");
    if (unknown != nullptr && unknown->type != json::Value::Type::null)
      unknown_ = detail::id_of(*unknown);
    double least = std::numeric_limits<double>::infinity();
    nodes_.emplace_back();
    for (const json::Value& entry : detail::member(model, "vocab").items) {
      if (entry.items.size() != 2)
        throw std::invalid_argument("a piece and its score are expected");
      add(entry.items[0].string, static_cast<std::int32_t>(scores_.size()));
      scores_.push_back(entry.items[1].number);
      least = std::min(least, scores_.back());
    }
    if (unknown_ && static_cast<std::size_t>(*unknown_) >= scores_.size())
      throw std::invalid_argument("unk_id is not in the vocabulary");
    unknown_score_ = least - 10.0;
  }

  void encode(const std::string& piece, Ids& ids) const override {
    std::vector<End> ends(piece.size() + 1);
    for (std::size_t at = 0; at < piece.size(); at += detail::utf8_size(piece[at])) {
      const std::size_t size = detail::utf8_size(piece[at]);
      const double so_far = ends[at].score;
      bool has_single = false;
      std::size_t node = 0;
      for (std::size_t end = at; end < piece.size();) {
        const auto next = nodes_[node].next.find(piece[end]);
        if (next == nodes_[node].next.end()) break;
        node = next->second;
        ++end;
        if (nodes_[node].id < 0) continue;
        const std::int32_t id = nodes_[node].id;
        ends[end].offer(scores_[static_cast<std::size_t>(id)] + so_far, at, id);
        has_single = has_single || end - at == size;
      }
      if (has_single) continue;
      if (!unknown_) throw std::invalid_argument("a piece that is not in the vocabulary");
      ends[at + size].offer(unknown_score_ + so_far, at, *unknown_);
    }
    Ids found;
    bool was_unknown = false;
    for (std::size_t end = piece.size(); end > 0; end = ends[end].start) {
      const bool is_unknown = unknown_ && ends[end].id == *unknown_;
      if (!is_unknown || !was_unknown) found.push_back(ends[end].id);
      was_unknown = is_unknown;
    }
    ids.insert(ids.end(), found.rbegin(), found.rend());
  }

  [[nodiscard]] std::int32_t largest() const override {
    return static_cast<std::int32_t>(scores_.size()) - 1;
  }

 private:
  struct Node {
    std::map<char, std::size_t> next;
    std::int32_t id = -1;
  };
  /// The best way to a place: where its last piece starts.
  struct End {
    double score = 0;
    std::size_t start = 0;
    std::int32_t id = -1;

    void offer(double offered, std::size_t from, std::int32_t by) {
      if (id >= 0 && !(offered > score)) return;
      *this = {offered, from, by};
    }
  };

  /// Of pieces that are there twice, the last counts.
  void add(const std::string& piece, std::int32_t id) {
    std::size_t node = 0;
    for (const char byte : piece) {
      const auto [place, is_new] = nodes_[node].next.emplace(byte, nodes_.size());
      node = place->second;
      if (is_new) nodes_.emplace_back();
    }
    if (node != 0) nodes_[node].id = id;
  }

  std::vector<Node> nodes_;
  std::vector<double> scores_;
  std::optional<std::int32_t> unknown_;
  double unknown_score_ = 0;
};

}  // namespace fourstep
