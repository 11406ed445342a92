/// @file
/// The noise that torch.randn draws with a CPU generator (torch-cpu-randn of the package format).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

namespace fourstep {

/// A stream of standard normals; successive draws go on with it as torch's do.
class TorchNoise {
 public:
  /// Takes any seed that torch takes; the low 32 bits of it count.
  explicit TorchNoise(std::uint64_t seed) : bits_(static_cast<std::uint32_t>(seed)) {}

  /// As many values as asked for.
  std::vector<float> randn(std::size_t count) {
    std::vector<float> values(count);
    if (count >= block) {
      fill(values);
    } else {
      for (float& value : values) value = static_cast<float>(one());
    }
    return values;
  }

 private:
  static constexpr std::size_t block = 16;  // from so many values on torch fills in blocks
  static constexpr double two_pi = 6.283185307179586;

  std::uint64_t raw() { return bits_() & 0xFFFFFFFFU; }

  /// A float's 24 bits, in [0, 1).
  double uniform24() { return static_cast<double>(raw() & 0xFFFFFFU) * 0x1p-24; }

  /// A double's 53 bits, in [0, 1).
  double uniform53() {
    const std::uint64_t high = raw();
    return static_cast<double>((high << 32U | raw()) & ((std::uint64_t{1} << 53U) - 1)) * 0x1p-53;
  }

  /// One of a pair (Box and Muller 1958); the other waits for the next draw.
  double one() {
    if (spare_) {
      const double found = *spare_;
      spare_.reset();
      return found;
    }
    const double angle = two_pi * uniform53();
    const double radius = std::sqrt(-2.0 * std::log1p(-uniform53()));
    spare_ = radius * std::sin(angle);
    return radius * std::cos(angle);
  }

  /// Blocks of eight radii and eight angles. A ragged end is drawn again over the last 16 values.
  void fill(std::vector<float>& values) {
    std::vector<double> uniforms(values.size());
    for (double& uniform : uniforms) uniform = uniform24();
    for (std::size_t i = 0; i + block <= values.size(); i += block)
      pair_up(uniforms.data() + i, values.data() + i);
    if (values.size() % block != 0) {
      double last[block];
      for (double& uniform : last) uniform = uniform24();
      pair_up(last, values.data() + values.size() - block);
    }
  }

  static void pair_up(const double* uniforms, float* values) {
    for (std::size_t i = 0; i < block / 2; ++i) {
      const double radius = std::sqrt(-2.0 * std::log(1.0 - uniforms[i]));
      const double angle = two_pi * uniforms[i + block / 2];
      values[i] = static_cast<float>(radius * std::cos(angle));
      values[i + block / 2] = static_cast<float>(radius * std::sin(angle));
    }
  }

  std::mt19937 bits_;
  std::optional<double> spare_;
};

}  // namespace fourstep
