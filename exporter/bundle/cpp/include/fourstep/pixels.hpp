/// @file
/// Pictures of whole levels to tensors and back, previews, and files that a viewer opens.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "error.hpp"
#include "manifest.hpp"
#include "tensor.hpp"

namespace fourstep {

inline constexpr const char* not_finite =
    " holds NaN or infinity: numbers left the range of its weights or of 16 bits; run it exact, or "
    "build it with a wider scheme";

/// A picture: rows from the top, pixels from the left, red, green, blue.
struct Picture {
  std::int64_t width_px = 0;
  std::int64_t height_px = 0;
  std::vector<std::uint8_t> pixels;  ///< 3 * width * height levels

  bool operator==(const Picture& other) const {
    return width_px == other.width_px && height_px == other.height_px && pixels == other.pixels;
  }
};

namespace detail {

/// A value as a level: half to the even neighbour, which is how the processor rounds by default.
template <class Number>
std::uint8_t level(Number value, const Pixels& pixels) {
  const Number scaled = value * static_cast<Number>(pixels.to_levels_scale);
  const Number unit = scaled + static_cast<Number>(pixels.to_levels_offset);
  const Number clipped = std::min(std::max(unit, Number{0}), Number{1});
  return static_cast<std::uint8_t>(std::nearbyint(clipped * static_cast<Number>(pixels.levels)));
}

}  // namespace detail

/// (1, 3, height, width) as a picture, in float32; throws Error naming `what` if a value is none.
inline Picture to_pixels(const Tensor& image, const Pixels& pixels, const std::string& what) {
  if (!image.is_finite()) throw check_failed(what + not_finite);
  Picture found{image.shape.at(3), image.shape.at(2), {}};
  const std::size_t count = size_of(image.shape) / 3;
  found.pixels.resize(3 * count);
  for (std::size_t colour = 0; colour < 3; ++colour)
    for (std::size_t i = 0; i < count; ++i)
      found.pixels[3 * i + colour] = detail::level(image.floats()[colour * count + i], pixels);
  return found;
}

/// A picture as (1, 3, height, width), in float32.
inline TensorPtr from_pixels(const Picture& picture, const Pixels& pixels) {
  const std::size_t count = picture.pixels.size() / 3;
  std::vector<float> values(3 * count);
  const auto levels = static_cast<float>(pixels.levels);
  for (std::size_t colour = 0; colour < 3; ++colour)
    for (std::size_t i = 0; i < count; ++i) {
      const float unit = static_cast<float>(picture.pixels[3 * i + colour]) / levels;
      const float scaled = static_cast<float>(pixels.from_levels_scale) * unit;
      values[colour * count + i] = scaled + static_cast<float>(pixels.from_levels_offset);
    }
  return shared({1, 3, picture.height_px, picture.width_px}, std::move(values));
}

/// A small picture of a latent (1, channels, h, w): colours = latent @ factors + bias, in float64.
inline Picture preview(const Tensor& latent, const Preview& map, const Pixels& pixels) {
  if (!latent.is_finite()) throw check_failed(std::string("the latent of a preview") + not_finite);
  Picture found{latent.shape.at(3), latent.shape.at(2), {}};
  const auto count = static_cast<std::size_t>(found.width_px * found.height_px);
  found.pixels.reserve(3 * count);
  for (std::size_t i = 0; i < count; ++i)
    for (std::size_t colour = 0; colour < 3; ++colour) {
      double sum = 0;
      for (std::size_t channel = 0; channel < map.factors.size(); ++channel)
        sum += static_cast<double>(latent.floats()[channel * count + i]) *
               map.factors[channel][colour];
      found.pixels.push_back(detail::level(sum + map.bias[colour], pixels));
    }
  return found;
}

namespace detail {

inline void append_big_endian(std::string& text, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) text += static_cast<char>(value >> shift & 0xFFU);
}

inline void append_chunk(std::string& file, const std::string& kind, const std::string& content) {
  append_big_endian(file, static_cast<std::uint32_t>(content.size()));
  const std::string checked = kind + content;
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : checked) {
    crc ^= static_cast<std::uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1U ^ (0xEDB88320U & (0U - (crc & 1U)));
  }
  file += checked;
  append_big_endian(file, ~crc);
}

}  // namespace detail

/// A picture as the bytes of a PNG file, not compressed.
inline std::string png_of(const Picture& picture) {
  std::string rows;
  const auto row_bytes = static_cast<std::size_t>(3 * picture.width_px);
  for (std::size_t at = 0; at < picture.pixels.size(); at += row_bytes) {
    rows += '\0';
    rows.append(reinterpret_cast<const char*>(picture.pixels.data()) + at, row_bytes);
  }
  std::string stream = "\x78\x01";
  std::uint32_t low = 1, high = 0;  // Adler-32 of the rows
  for (const char byte : rows) {
    low = (low + static_cast<std::uint8_t>(byte)) % 65521;
    high = (high + low) % 65521;
  }
  constexpr std::size_t most = 65535;  // bytes of a stored block
  for (std::size_t at = 0; at < rows.size(); at += most) {
    const std::size_t size = std::min(most, rows.size() - at);
    stream += at + size == rows.size() ? '\1' : '\0';
    for (const std::size_t half : {size, ~size})
      for (const unsigned shift : {0U, 8U}) stream += static_cast<char>(half >> shift & 0xFFU);
    stream.append(rows, at, size);
  }
  detail::append_big_endian(stream, high << 16U | low);
  std::string file = "\x89PNG\r\n\x1a\n", header;
  detail::append_big_endian(header, static_cast<std::uint32_t>(picture.width_px));
  detail::append_big_endian(header, static_cast<std::uint32_t>(picture.height_px));
  header += {8, 2, 0, 0, 0};  // bits, colours, and the only methods that there are
  detail::append_chunk(file, "IHDR", header);
  detail::append_chunk(file, "IDAT", stream);
  detail::append_chunk(file, "IEND", "");
  return file;
}

/// Writes a PNG file; throws Error when it cannot.
inline void write_png(const std::filesystem::path& file, const Picture& picture) {
  std::ofstream stream(file, std::ios::binary);
  stream << png_of(picture);
  stream.close();
  if (!stream) throw input_error(file.string() + ": cannot be written; choose another place");
}

/// Reads a picture from a binary PPM file (P6, 8 bits); throws Error for anything else.
inline Picture read_ppm(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string kind;
  Picture found;
  int most = 0;
  stream >> kind >> found.width_px >> found.height_px >> most;
  stream.get();
  constexpr std::int64_t most_px = 1 << 14;
  if (!stream || kind != "P6" || most != 255 || found.width_px < 1 || found.height_px < 1 ||
      found.width_px > most_px || found.height_px > most_px)
    throw input_error(file.string() +
                      ": not a picture in binary PPM (P6) of 8 bits without comments");
  found.pixels.resize(static_cast<std::size_t>(3 * found.width_px * found.height_px));
  stream.read(reinterpret_cast<char*>(found.pixels.data()),
              static_cast<std::streamsize>(found.pixels.size()));
  if (!stream) throw input_error(file.string() + ": ends before its last pixel; copy it again");
  return found;
}

}  // namespace fourstep
