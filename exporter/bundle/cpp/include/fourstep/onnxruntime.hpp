/// @file
/// Opens graphs with onnxruntime on the CPU, by its C interface: link its library. Nothing is
/// reported to its maker: this asks it to be silent before it starts.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "engine.hpp"

namespace fourstep {

/// onnxruntime on the CPU.
class OnnxRuntime final : public Engine {
 public:
  /// @param exact in float32 also where the package's settings let kernels round activations.
  explicit OnnxRuntime(bool exact = false) : exact_(exact) {
    ask_for_silence();
    if (api() == nullptr)
      throw check_failed(std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString() +
                         " is older than its header; install the release that the header is of");
    OrtEnv* env = nullptr;
    check(api()->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "fourstep", &env), "onnxruntime cannot start");
    env_ = {env, api()->ReleaseEnv};
    check(api()->DisableTelemetryEvents(env), "onnxruntime cannot be kept silent");
  }

  [[nodiscard]] std::string backend() const override { return "onnx"; }

  std::unique_ptr<Session> open(const std::filesystem::path& entry,
                                const std::filesystem::path& /*weights*/,
                                const std::map<std::string, std::string>& settings) override {
    const std::string failed = entry.string() + ": onnxruntime cannot open it";
    const Returning returning;
    OrtSessionOptions* made = nullptr;
    check(api()->CreateSessionOptions(&made), failed);
    const Owned<OrtSessionOptions> options(made, api()->ReleaseSessionOptions);
    check(api()->DisableCpuMemArena(made), failed);
    constexpr int errors = 3;
    check(api()->SetSessionLogSeverityLevel(made, errors), failed);
    const auto level = settings.find("accuracy_level");
    const bool rounds = !exact_ && level != settings.end();
    check(api()->AddSessionConfigEntry(made, "session.qdq_matmulnbits_accuracy_level",
                                       rounds ? level->second.c_str() : "0"),
          failed);
    if (settings.count("widened") != 0)  // weights are decoded now, not whenever the graph runs
      check(api()->AddSessionConfigEntry(made, "session.disable_quant_qdq", "1"), failed);
    OrtSession* session = nullptr;
    check(api()->CreateSession(env_.get(), entry.c_str(), made, &session), failed);
    return std::make_unique<OpenGraph>(session, entry.string());
  }

 private:
  template <class Handle>
  using Owned = std::unique_ptr<Handle, void (*)(Handle*)>;

  static const OrtApi* api() {
    static const OrtApi* const found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    return found;
  }

  static void ask_for_silence() {
#if defined(_WIN32)
    _putenv_s("ORT_DISABLE_TELEMETRY", "1");
#else
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
#endif
  }

  static void check(OrtStatus* status, const std::string& failed) {
    if (status == nullptr) return;
    std::string said = api()->GetErrorMessage(status);
    api()->ReleaseStatus(status);
    throw check_failed(failed + ": " + said.substr(0, said.find('\n')));
  }

  /// While it lasts, blocks of memory go back to the system when they are free: glibc stops doing
  /// so once a large one was freed, and opening a graph copies weights from form to form.
  class Returning {
   public:
#if defined(__GLIBC__)
    Returning() { mallopt(M_MMAP_THRESHOLD, 1 << 17); }
    ~Returning() {
      mallopt(M_MMAP_THRESHOLD, 1 << 25);
      malloc_trim(0);
    }
#else
    Returning() = default;
    ~Returning() {}
#endif
    Returning(const Returning&) = delete;
    Returning& operator=(const Returning&) = delete;
  };

  /// An open graph.
  class OpenGraph final : public Session {
   public:
    OpenGraph(OrtSession* session, const std::string& where)
        : session_(session, api()->ReleaseSession), failed_(where + ": onnxruntime cannot run it") {
      OrtRunOptions* options = nullptr;
      check(api()->CreateRunOptions(&options), failed_);
      options_ = {options, api()->ReleaseRunOptions};
      OrtMemoryInfo* memory = nullptr;
      check(api()->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), failed_);
      memory_ = {memory, api()->ReleaseMemoryInfo};
      OrtAllocator* allocator = nullptr;
      check(api()->GetAllocatorWithDefaultOptions(&allocator), failed_);
      std::size_t count = 0;
      check(api()->SessionGetOutputCount(session, &count), failed_);
      for (std::size_t i = 0; i < count; ++i) {
        char* name = nullptr;
        check(api()->SessionGetOutputName(session, i, allocator, &name), failed_);
        outputs_.emplace_back(name);
        check(api()->AllocatorFree(allocator, name), failed_);
      }
    }

    Ports run(const Ports& inputs) override {
      check(api()->RunOptionsUnsetTerminate(options_.get()), failed_);
      std::vector<const char*> names, wanted;
      std::vector<Owned<OrtValue>> held;
      std::vector<const OrtValue*> given;
      for (const auto& [name, value] : inputs) {
        names.push_back(name.c_str());
        held.push_back(value_of(*value));
        given.push_back(held.back().get());
      }
      for (const std::string& name : outputs_) wanted.push_back(name.c_str());
      std::vector<OrtValue*> results(wanted.size());
      check(api()->Run(session_.get(), options_.get(), names.data(), given.data(), given.size(),
                       wanted.data(), wanted.size(), results.data()),
            failed_);
      for (OrtValue* result : results) held.emplace_back(result, api()->ReleaseValue);
      Ports found;
      for (std::size_t i = 0; i < wanted.size(); ++i) found[outputs_[i]] = copied(results[i]);
      return found;
    }

    void interrupt() override {
      OrtStatus* status = api()->RunOptionsSetTerminate(options_.get());
      if (status != nullptr) api()->ReleaseStatus(status);
    }

   private:
    /// The values where they are: onnxruntime reads them while it runs.
    Owned<OrtValue> value_of(const Tensor& value) const {
      OrtValue* made = nullptr;
      const bool is_float = value.is_float();
      const void* data = is_float ? static_cast<const void*>(value.floats().data())
                                  : static_cast<const void*>(value.ints().data());
      check(
          api()->CreateTensorWithDataAsOrtValue(
              memory_.get(), const_cast<void*>(data), 4 * size_of(value.shape), value.shape.data(),
              value.shape.size(),
              is_float ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
              &made),
          failed_);
      return {made, api()->ReleaseValue};
    }

    TensorPtr copied(OrtValue* value) const {
      OrtTensorTypeAndShapeInfo* made = nullptr;
      check(api()->GetTensorTypeAndShape(value, &made), failed_);
      const Owned<OrtTensorTypeAndShapeInfo> info(made, api()->ReleaseTensorTypeAndShapeInfo);
      std::size_t axes = 0;
      check(api()->GetDimensionsCount(made, &axes), failed_);
      Shape shape(axes);
      check(api()->GetDimensions(made, shape.data(), axes), failed_);
      void* data = nullptr;
      check(api()->GetTensorMutableData(value, &data), failed_);
      const auto* begin = static_cast<const float*>(data);
      const std::size_t size = size_of(shape);
      return shared(std::move(shape), {begin, begin + size});
    }

    Owned<OrtSession> session_;
    Owned<OrtRunOptions> options_{nullptr, nullptr};
    Owned<OrtMemoryInfo> memory_{nullptr, nullptr};
    std::vector<std::string> outputs_;
    std::string failed_;
  };

  Owned<OrtEnv> env_{nullptr, nullptr};
  bool exact_;
};

}  // namespace fourstep
