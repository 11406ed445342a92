/// @file
/// Tensors of a safetensors file: of float32, int32 and uint8, which golden files have.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

#include "error.hpp"
#include "json.hpp"
#include "tensor.hpp"

namespace fourstep {

namespace detail {

template <class Number>
std::vector<Number> numbers(std::string_view bytes, std::size_t count) {
  if (bytes.size() != count * sizeof(Number))
    throw std::invalid_argument("a size that is not its shape's");
  std::vector<Number> found(count);
  if (count > 0) std::memcpy(found.data(), bytes.data(), bytes.size());
  return found;
}

inline Tensor tensor_from(const json::Value& entry, std::string_view data) {
  const json::Value *dtype = entry.find("dtype"), *shape = entry.find("shape"),
                    *offsets = entry.find("data_offsets");
  if (dtype == nullptr || shape == nullptr || offsets == nullptr || offsets->items.size() != 2)
    throw std::invalid_argument("a tensor without dtype, shape or offsets");
  Tensor found;
  std::size_t count = 1;
  for (const json::Value& axis : shape->items) {
    if (axis.type != json::Value::Type::integer || axis.integer < 0 ||
        (axis.integer > 0 && count > data.size() / static_cast<std::size_t>(axis.integer)))
      throw std::invalid_argument("a shape that is none");
    found.shape.push_back(axis.integer);
    count *= static_cast<std::size_t>(axis.integer);
  }
  const std::int64_t begin = offsets->items[0].integer, end = offsets->items[1].integer;
  if (begin < 0 || end < begin || static_cast<std::uint64_t>(end) > data.size())
    throw std::invalid_argument("offsets outside of the file");
  const std::string_view bytes =
      data.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  if (dtype->string == "F32")
    found.values = numbers<float>(bytes, count);
  else if (dtype->string == "I32")
    found.values = numbers<std::int32_t>(bytes, count);
  else if (dtype->string == "U8")
    found.values = numbers<std::uint8_t>(bytes, count);
  else
    throw std::invalid_argument("a tensor of " + dtype->string.substr(0, 20));
  return found;
}

}  // namespace detail

/// All tensors of a file's content by name.
/// @param where the file, which errors name.
/// @throws Error when it is no whole safetensors file.
inline std::map<std::string, Tensor> parse_tensors(std::string_view content,
                                                   const std::string& where) {
  try {
    std::uint64_t header_bytes = 0;
    for (std::size_t i = 8; i-- > 0 && content.size() >= 8;)
      header_bytes = header_bytes << 8U | static_cast<std::uint8_t>(content[i]);
    if (content.size() < 8 || header_bytes > content.size() - 8)
      throw std::invalid_argument("its header is not whole");
    const json::Value header = json::parse(content.substr(8, header_bytes));
    const std::string_view data = content.substr(8 + header_bytes);
    std::map<std::string, Tensor> found;
    for (const auto& [name, entry] : header.members)
      if (name != "__metadata__") found[name] = detail::tensor_from(entry, data);
    return found;
  } catch (const std::invalid_argument& error) {
    throw check_failed(where + ": not a whole safetensors file (" + error.what() +
                       "); build the package again");
  }
}

}  // namespace fourstep
