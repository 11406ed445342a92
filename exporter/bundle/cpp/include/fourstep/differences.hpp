/// @file
/// A file as what differs from another: what graphs of further sizes are kept as.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "error.hpp"

namespace fourstep {

/// What edits make of a base. They are so many bytes of the base that stay, so many that are left
/// out and so many new ones, which follow, over and over: never longer than both together.
/// @throws Error for edits that are not of this base.
inline std::string applied(const std::string& edits, const std::string& base) {
  const auto wrong = [] { return check_failed("differences that are not of this file"); };
  std::size_t at = 0, at_base = 0;
  const auto number = [&] {
    constexpr unsigned longest_bits = 35;  // seven to a byte, the lowest first
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < longest_bits && at < edits.size(); shift += 7) {
      const auto byte = static_cast<std::uint8_t>(edits[at++]);
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
    throw wrong();
  };
  std::string found;
  while (at < edits.size()) {
    const std::uint64_t kept = number(), left = number(), added = number();
    if (kept + left > base.size() - at_base || added > edits.size() - at) throw wrong();
    found.append(base, at_base, kept).append(edits, at, added);
    at_base += kept + left;
    at += added;
  }
  if (at_base != base.size()) throw wrong();
  return found;
}

}  // namespace fourstep
