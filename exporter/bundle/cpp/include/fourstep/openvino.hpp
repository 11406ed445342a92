/// @file
/// Opens graphs with OpenVINO. Link `openvino::runtime`; the library opens no connection.
#pragma once

#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>
#include <openvino/runtime/tensor.hpp>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "differences.hpp"
#include "engine.hpp"

namespace fourstep {

/// OpenVINO, on one of its devices.
class OpenVino final : public Engine {
 public:
  /// @param device CPU, GPU or NPU.
  /// @param exact also where the package's settings round activations: in float32.
  explicit OpenVino(std::string device = "CPU", bool exact = false)
      : device_(std::move(device)), exact_(exact) {
    std::string found;
    for (const std::string& name : core_.get_available_devices()) {
      if (name == device_ || name.rfind(device_ + ".", 0) == 0) return;
      found += (found.empty() ? "" : ", ") + name;
    }
    throw check_failed("this machine has no " + device_ +
                       " for OpenVINO; choose a device from: " + found);
  }

  [[nodiscard]] std::string backend() const override { return "openvino"; }

  std::unique_ptr<Session> open(const std::filesystem::path& entry,
                                const std::filesystem::path& weights,
                                const std::map<std::string, std::string>& settings) override {
    try {
      const auto model = read(entry, weights, settings);
      const ov::CompiledModel compiled = core_.compile_model(model, device_, configured(settings));
      return std::make_unique<OpenGraph>(compiled, entry.string());
    } catch (const std::exception& error) {
      throw check_failed(entry.string() + ": OpenVINO cannot open it: " + last_line(error.what()));
    }
  }

 private:
  static constexpr const char* group = "DYNAMIC_QUANTIZATION_GROUP_SIZE";
  static constexpr const char* base = "base";
  static constexpr const char* precision = "INFERENCE_PRECISION_HINT";

  /// An open graph.
  class OpenGraph final : public Session {
   public:
    OpenGraph(ov::CompiledModel compiled, std::string where)
        : compiled_(std::move(compiled)),
          request_(compiled_.create_infer_request()),
          where_(std::move(where)) {}

    Ports run(const Ports& inputs) override {
      try {
        for (const auto& [name, value] : inputs) request_.set_tensor(name, tensor_of(*value));
        request_.infer();
        Ports found;
        for (const ov::Output<const ov::Node>& output : compiled_.outputs())
          found[output.get_any_name()] = copied(request_.get_tensor(output));
        return found;
      } catch (const std::exception& error) {
        throw check_failed(where_ + ": OpenVINO cannot run it: " + last_line(error.what()));
      }
    }

    void interrupt() override { request_.cancel(); }

   private:
    /// The values where they are: OpenVINO reads them while it runs.
    static ov::Tensor tensor_of(const Tensor& value) {
      const ov::Shape shape(value.shape.begin(), value.shape.end());
      if (value.is_float())
        return {ov::element::f32, shape, const_cast<float*>(value.floats().data())};
      return {ov::element::i32, shape, const_cast<std::int32_t*>(value.ints().data())};
    }

    static TensorPtr copied(const ov::Tensor& value) {
      const ov::Shape shape = value.get_shape();
      const float* begin = value.data<const float>();
      return shared(Shape(shape.begin(), shape.end()), {begin, begin + value.get_size()});
    }

    ov::CompiledModel compiled_;
    ov::InferRequest request_;
    std::string where_;
  };

  /// The model; of a further size, what its entry makes of the first size's. Weights are mapped.
  std::shared_ptr<ov::Model> read(const std::filesystem::path& entry,
                                  const std::filesystem::path& weights,
                                  const std::map<std::string, std::string>& settings) {
    const auto first = settings.find(base);
    if (first == settings.end()) return core_.read_model(entry.string(), weights.string());
    const std::filesystem::path beside = entry.parent_path() / first->second;
    const auto values = settings.find("weights");
    const std::filesystem::path file = weights.empty() && values != settings.end()
                                           ? entry.parent_path() / values->second
                                           : weights;
    return core_.read_model(applied(text_of(entry), text_of(beside)), ov::read_tensor_data(file));
  }

  static std::string text_of(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    std::ostringstream found;
    if (!(found << stream.rdbuf())) throw check_failed(file.string() + ": cannot be read");
    return found.str();
  }

  /// Of the settings, those that the device knows.
  ov::AnyMap configured(const std::map<std::string, std::string>& settings) {
    std::set<std::string> known;
    for (const ov::PropertyName& name : core_.get_property(device_, ov::supported_properties))
      known.insert(name);
    if (device_ == "NPU") known.erase(precision);  // it computes in float16 alone
    ov::AnyMap found;
    for (const auto& [name, value] : settings)
      if (known.count(name) != 0 && (device_ == "CPU" || name != group)) found[name] = value;
    if (exact_ && known.count(group) != 0) found[group] = "0";
    return found;
  }

  static std::string last_line(std::string text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    const std::size_t at = text.rfind('\n');
    return at == std::string::npos ? text : text.substr(at + 1);
  }

  ov::Core core_;
  std::string device_;
  bool exact_;
};

}  // namespace fourstep
