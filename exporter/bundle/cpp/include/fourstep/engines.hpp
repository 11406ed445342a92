/// @file
/// The engines that a program was built with, by the backend of a package.
/// FOURSTEP_WITH_OPENVINO and FOURSTEP_WITH_ONNXRUNTIME say which; CMake defines them.
#pragma once

#include <memory>
#include <string>

#include "engine.hpp"
#include "error.hpp"
#ifdef FOURSTEP_WITH_OPENVINO
#include "openvino.hpp"
#endif
#ifdef FOURSTEP_WITH_ONNXRUNTIME
#include "onnxruntime.hpp"
#endif

namespace fourstep {

/// How an engine runs graphs.
struct EngineOptions {
  std::string device;  ///< such as CPU, GPU or NPU; empty: the engine's default
  bool exact = false;  ///< in float32 also where the package's settings round activations
};

/// The engine for packages of a backend; throws Error when the program was built without it.
inline std::shared_ptr<Engine> make_engine(const std::string& backend,
                                           const EngineOptions& options = {}) {
#ifdef FOURSTEP_WITH_OPENVINO
  if (backend == "openvino")
    return std::make_shared<OpenVino>(options.device.empty() ? "CPU" : options.device,
                                      options.exact);
#endif
#ifdef FOURSTEP_WITH_ONNXRUNTIME
  if (backend == "onnx") {
    if (!options.device.empty() && options.device != "CPU")
      throw input_error("device " + options.device + ": this engine runs on the CPU alone");
    return std::make_shared<OnnxRuntime>(options.exact);
  }
#endif
  static_cast<void>(options);
  throw input_error("the package is for " + backend +
                    ", and this program was built without an "
                    "engine for it; configure it with -DFOURSTEP_ENGINES=" +
                    backend);
}

}  // namespace fourstep
