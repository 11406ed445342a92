/// @file
/// What runs graphs: an engine opens one, a session runs it. An adapter is a header beside this
/// one.
#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "error.hpp"
#include "tensor.hpp"

namespace fourstep {

/// A graph that is open. Its memory goes back when it is destroyed.
class Session {
 public:
  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;

  /// The graph's outputs by name for inputs by name; throws Error.
  virtual Ports run(const Ports& inputs) = 0;

  /// Asks a run in another thread to end as soon as it can, which then throws. May be called late.
  virtual void interrupt() {}
};

/// Opens graphs of the packages of one backend.
class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  /// Which packages it opens: their manifests' `backend`.
  [[nodiscard]] virtual std::string backend() const = 0;

  /// Opens a graph; throws Error when it cannot.
  /// @param entry the file or folder of the graph.
  /// @param weights the file of its weights, which several graphs may share; empty where the engine
  ///   has to find it beside `entry`, or there is none.
  /// @param settings what the manifest's `session` says of it.
  virtual std::unique_ptr<Session> open(const std::filesystem::path& entry,
                                        const std::filesystem::path& weights,
                                        const std::map<std::string, std::string>& settings) = 0;
};

/// A wish to stop, from any thread, at any moment; it reaches into a graph that is running.
class Stop {
 public:
  /// Ends the drawing that has this wish: it throws an Error of kind `stopped`.
  void request() {
    const std::lock_guard lock(mutex_);
    requested_ = true;
    if (running_ != nullptr) running_->interrupt();
  }

  /// Forgets the wish, for the next drawing.
  void reset() { requested_ = false; }

  [[nodiscard]] bool requested() const { return requested_; }

  /// Throws if somebody wishes to stop.
  void check() const {
    if (requested_) throw Error(Error::Kind::stopped, "stopped");
  }

  /// Runs a session, which `request` may interrupt.
  Ports run(Session& session, const Ports& inputs) {
    watch(&session);
    try {
      Ports found = session.run(inputs);
      watch(nullptr);
      return found;
    } catch (...) {
      watch(nullptr);
      check();  // explains whatever an engine says of being interrupted
      throw;
    }
  }

 private:
  void watch(Session* session) {
    const std::lock_guard lock(mutex_);
    running_ = session;
    if (session != nullptr) check();
  }

  std::atomic<bool> requested_ = false;
  std::mutex mutex_;
  Session* running_ = nullptr;
};

}  // namespace fourstep
