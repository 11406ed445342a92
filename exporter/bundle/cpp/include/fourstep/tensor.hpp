/// @file
/// Numbers with a shape, and by what names graphs take and give them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace fourstep {

using Shape = std::vector<std::int64_t>;

/// How many values a shape has.
inline std::size_t size_of(const Shape& shape) {
  std::size_t found = 1;
  for (const std::int64_t axis : shape) found *= static_cast<std::size_t>(axis);
  return found;
}

/// A shape as errors have it: [1, 16, 8, 8].
inline std::string text_of(const Shape& shape) {
  std::string found;
  for (const std::int64_t axis : shape) found += (found.empty() ? "" : ", ") + std::to_string(axis);
  return "[" + found + "]";
}

/// A tensor, dense and in rows: float32, int32 or (in golden files) uint8.
struct Tensor {
  Shape shape;
  std::variant<std::vector<float>, std::vector<std::int32_t>, std::vector<std::uint8_t>> values;

  [[nodiscard]] bool is_float() const { return values.index() == 0; }
  [[nodiscard]] const std::vector<float>& floats() const { return std::get<0>(values); }
  [[nodiscard]] std::vector<float>& floats() { return std::get<0>(values); }
  [[nodiscard]] const std::vector<std::int32_t>& ints() const { return std::get<1>(values); }

  /// Whether every value is a number.
  [[nodiscard]] bool is_finite() const {
    if (!is_float()) return true;
    for (const float value : floats())
      if (!std::isfinite(value)) return false;
    return true;
  }
};

/// What graphs take and give: shared, as outputs are fed to several graphs.
using TensorPtr = std::shared_ptr<const Tensor>;
using Ports = std::map<std::string, TensorPtr>;

/// A tensor of floats to share.
inline TensorPtr shared(Shape shape, std::vector<float> values) {
  return std::make_shared<const Tensor>(Tensor{std::move(shape), std::move(values)});
}

}  // namespace fourstep
