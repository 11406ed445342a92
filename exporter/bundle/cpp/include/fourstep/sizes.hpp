/// @file
/// The sizes of pictures that a package draws, and its manifest as that of one of them alone.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "error.hpp"
#include "manifest.hpp"

namespace fourstep {

/// Every size, written as 768x512, the first one first.
inline std::vector<std::string> sizes_of(const Manifest& manifest) {
  std::vector<std::string> found = {size_text(manifest.picture)};
  for (const SizeEntry& size : manifest.sizes) found.push_back(size_text(size));
  return found;
}

/// The manifest of one size alone, in which nothing tells that there are others.
/// @param wanted such as 768x512; empty: the first.
/// @throws Error that lists the sizes.
inline Manifest manifest_at(const Manifest& manifest, const std::string& wanted) {
  const std::vector<std::string> sizes = sizes_of(manifest);
  const auto place = wanted.empty() ? sizes.begin() : std::find(sizes.begin(), sizes.end(), wanted);
  if (place == sizes.end()) {
    std::string listed;
    for (const std::string& size : sizes) listed += (listed.empty() ? "" : ", ") + size;
    throw input_error("this package does not draw " + wanted.substr(0, 60) +
                      "; its sizes: " + listed);
  }
  return detail::alone(manifest, static_cast<std::size_t>(place - sizes.begin()));
}

}  // namespace fourstep
