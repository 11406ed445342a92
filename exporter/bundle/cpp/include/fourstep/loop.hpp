/// @file
/// The loop: prompts to pictures in a fixed number of steps. No graph is known by its name.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine.hpp"
#include "error.hpp"
#include "manifest.hpp"
#include "noise.hpp"
#include "package.hpp"
#include "pixels.hpp"
#include "schedule.hpp"
#include "tensor.hpp"
#include "tokenizer.hpp"

namespace fourstep {

/// One picture to draw.
struct Request {
  std::string prompt;                    ///< UTF-8
  std::uint64_t seed = 0;                ///< of its noise; a negative one by its 64 bits
  std::shared_ptr<const Picture> image;  ///< to start from, of the package's size; or nothing
  double strength = 1.0;  ///< how much of the schedule an image goes through, in (0, 1]
  std::optional<std::string> negative;  ///< what not to draw, for packages with guidance
};

/// All prompts, negative ones among them, are encoded; the text encoders are released.
struct Conditioned {
  std::size_t prompts = 0;
  std::vector<std::string> remarks;  ///< lines about prompts that are longer than an encoder reads
};

/// A step of a request is done.
struct Step {
  std::size_t request = 0;
  int step = 0;  ///< counted from 1
  int steps = 0;
  double sigma = 0;
  TensorPtr latent;  ///< (1, channels, h, w)
  /// Shows the latent: small by a map of colours, or of full size by a graph, which is opened for
  /// the first. Empty where the package has neither. To be called before the handler returns.
  std::function<Picture()> preview;
};

/// A picture is done.
struct Image {
  std::size_t request = 0;
  Picture picture;
  TensorPtr latent;  ///< that it was decoded from
};

using Event = std::variant<Conditioned, Step, Image>;
using Handler = std::function<void(const Event&)>;

namespace detail {

using Values = std::map<std::pair<std::string, std::string>, TensorPtr>;  // by graph and port

/// Where the inputs of a call are taken from.
struct Feed {
  const Values* values = nullptr;
  const std::string* prompt = nullptr;
  const Values* negative = nullptr;
  TensorPtr latent;
  TensorPtr image;
  int step = 0;
};

/// A call of a graph: its inputs, and what it is for in an error.
struct Call {
  Ports inputs;
  std::string end;
};

/// Size and time of a file: what changes when it is written to.
struct FileState {
  std::filesystem::path file;
  std::uintmax_t bytes = 0;
  std::filesystem::file_time_type changed;

  explicit FileState(std::filesystem::path path) : file(std::move(path)) {
    std::error_code failed;
    bytes = std::filesystem::file_size(file, failed);
    changed = std::filesystem::last_write_time(file, failed);
  }

  /// Throws Error if the file is another by now.
  void check() const {
    const FileState now(file);
    if (now.bytes != bytes || now.changed != changed)
      throw check_failed(file.string() +
                         ": changed while it was being read; run the command again");
  }
};

/// A session that throws in place of results of files that were changed: engines map weights.
class Watched final : public Session {
 public:
  Watched(std::unique_ptr<Session> session, std::vector<FileState> files)
      : session_(std::move(session)), files_(std::move(files)) {
    for (const FileState& file : files_) file.check();
  }

  Ports run(const Ports& inputs) override {
    Ports found = session_->run(inputs);
    for (const FileState& file : files_) file.check();
    return found;
  }

  void interrupt() override { session_->interrupt(); }

 private:
  std::unique_ptr<Session> session_;
  std::vector<FileState> files_;
};

inline bool is_weights(const std::string& path) {
  const std::string suffix = std::filesystem::path(path).extension().string();
  return suffix == ".bin" || suffix == ".data";
}

/// The first characters of a prompt, for an error.
inline std::string shown(const std::string& prompt) {
  return "'" + to_utf8(to_points(prompt).substr(0, 58)) + "'";
}

inline void check_prompt(const std::string& prompt, const std::string& name) {
  if (!is_utf8(prompt)) throw input_error(name + ": is not UTF-8 text");
  const std::size_t count = to_points(prompt).size();
  if (count > most_characters)
    throw input_error("a " + name + " of " + std::to_string(count) + " characters: at most " +
                      std::to_string(most_characters));
}

}  // namespace detail

/// Draws with a package. One drawing at a time; `Stop` may be used from any thread.
class Player {
 public:
  /// Checks every file but the graphs, which are checked when they are opened; throws Error.
  /// @param keeps_open graphs stay open for the next drawing: faster, in the memory of all.
  Player(Package package, std::shared_ptr<Engine> engine, bool keeps_open = false)
      : package_(std::move(package)), engine_(std::move(engine)), keeps_open_(keeps_open) {
    if (engine_->backend() != manifest().backend)
      throw input_error(package_.folder().string() + ": a package for " + manifest().backend +
                        ", and this engine opens those for " + engine_->backend() +
                        "; build it with another engine, or the package for this one");
    for (const auto& [name, entry] : manifest().tokenizers)
      tokenizers_.try_emplace(name, package_.read(entry.path), entry,
                              package_.place_of(entry.path).string());
    for (const File& file : manifest().files) package_.check(file);
  }

  [[nodiscard]] const Manifest& manifest() const { return package_.manifest(); }
  [[nodiscard]] const Package& package() const { return package_; }

  /// Ids (1, tokens) of a prompt as the text encoder `tokenizer` takes them; throws Error.
  [[nodiscard]] TensorPtr encode(const std::string& tokenizer, const std::string& prompt) const {
    detail::check_prompt(prompt, "prompt");
    const auto found = tokenizers_.find(tokenizer);
    if (found == tokenizers_.end())
      throw input_error(package_.folder().string() + ": the package has no tokenizer " + tokenizer);
    return found->second.fitted(ids_of(tokenizer, prompt));
  }

  /// Draws pictures; every graph is opened once for all of them. Of one of each step that is cut,
  /// the parts are opened in turn at every step, so that memory holds one.
  /// @param handler gets each event as it happens; what it throws ends the drawing.
  /// @throws Error for a request that cannot be drawn, a damaged file, numbers that are none; of
  ///   kind `stopped` when `stop` was requested.
  void draw(const std::vector<Request>& requests, const Handler& handler, Stop& stop) {
    std::vector<int> starts;
    for (const Request& request : requests) starts.push_back(check(request));
    if (requests.empty()) return;
    Conditioned conditioned;
    const auto values = condition(requests, stop, conditioned.remarks);
    conditioned.prompts = values.size();
    tell(handler, conditioned, stop);
    const std::vector<TensorPtr> encoded = encode_images(requests, stop);
    const std::vector<TensorPtr> latents = walk(requests, starts, values, encoded, handler, stop);
    decode(requests, values, latents, handler, stop);
  }

  /// The outputs of a graph for several inputs, as a test of it: each part is opened once.
  std::vector<Ports> run(const Stage& stage, const std::vector<Ports>& inputs, Stop& stop) {
    std::vector<detail::Call> calls;
    for (std::size_t i = 0; i < inputs.size(); ++i)
      calls.push_back({inputs[i], "call " + std::to_string(i + 1)});
    std::vector<Ports> found;
    run_stage(stage, std::move(calls), stop,
              [&found](std::size_t, Ports outputs) { found.push_back(std::move(outputs)); });
    return found;
  }

  /// Opens a graph or a part of one, and checks its files. Files of weights, which are numbers
  /// alone, are read for their digests while it is opened; all else before.
  std::shared_ptr<Session> open(const std::string& name) {
    if (const auto kept = open_.find(name); kept != open_.end()) return kept->second;
    const Graph& graph = *manifest().graph(name);
    std::vector<detail::FileState> states;
    std::filesystem::path weights;
    for (const File& file : graph.files) {
      states.emplace_back(package_.place_of(file.path));
      if (detail::is_weights(file.path)) {
        weights = package_.place_of(file.path);
        Package::check_size(weights, file);
      } else {
        package_.check(file);
      }
    }
    std::future<void> digests = std::async(std::launch::async, [&] {
      for (const File& file : graph.files)
        if (detail::is_weights(file.path)) package_.check(file);
    });
    std::unique_ptr<Session> session;
    try {
      session = engine_->open(package_.place_of(graph.entry), weights, graph.session);
    } catch (...) {
      digests.get();  // damage explains it: thrown first
      throw;
    }
    digests.get();
    auto found = std::make_shared<detail::Watched>(std::move(session), std::move(states));
    if (keeps_open_) open_[name] = found;
    return found;
  }

  /// Lets go of graphs that stayed open.
  void close() { open_.clear(); }

 private:
  using Values = detail::Values;
  using ByPrompt = std::map<std::string, Values>;
  using Sink = std::function<void(std::size_t, Ports)>;

  static void tell(const Handler& handler, Event event, const Stop& stop) {
    stop.check();
    if (handler) handler(event);
    stop.check();
  }

  /// The step at which a request enters the schedule; throws Error for what is no request.
  [[nodiscard]] int check(const Request& request) const {
    const Drawn& picture = manifest().picture;
    detail::check_prompt(request.prompt, "prompt");
    if (request.negative) check_negative(*request.negative);
    if (!(request.strength > 0 && request.strength <= 1))
      throw input_error("strength: must be above 0 and at most 1");
    if (!request.image) {
      if (request.strength != 1)
        throw input_error("strength: applies only with a picture to start from (image)");
      return 0;
    }
    if (manifest().giving("start") == nullptr)
      throw input_error(
          "image: this package has no graph to start from a picture with; build with "
          "image_to_image = true in [image]");
    if (request.image->width_px != picture.width_px ||
        request.image->height_px != picture.height_px ||
        request.image->pixels.size() != size_of(picture.image()))
      throw input_error("image: is " + std::to_string(request.image->width_px) + " x " +
                        std::to_string(request.image->height_px) + " px; the package draws " +
                        std::to_string(picture.width_px) + " x " +
                        std::to_string(picture.height_px) + " px: bring it into that size first");
    return first_step(manifest().schedule, request.strength);
  }

  void check_negative(const std::string& negative) const {
    const auto& guidance = manifest().schedule.guidance;
    if (!guidance)
      throw input_error(
          "negative: this package draws without guidance, and nothing else uses a "
          "negative prompt; build with guidance above 1 in [schedule] of a recipe");
    if (guidance->negative_prompt)
      throw input_error("negative: the negative prompt of this package is fixed: '" +
                        *guidance->negative_prompt +
                        "'; build without negative_prompt in "
                        "[schedule] of a recipe to give others");
    detail::check_prompt(negative, "negative prompt");
  }

  /// The negative prompt that has to be encoded for a request, or nothing.
  [[nodiscard]] std::optional<std::string> negative_of(const Request& request) const {
    const auto& guidance = manifest().schedule.guidance;
    if (!guidance || guidance->negative_prompt) return std::nullopt;
    return request.negative.value_or("");
  }

  /// What the stages of once per prompt give for each distinct prompt, as far as it is used.
  ByPrompt condition(const std::vector<Request>& requests, Stop& stop,
                     std::vector<std::string>& remarks) {
    std::vector<std::string> prompts;
    const auto add = [&prompts](const std::string& text) {
      if (std::find(prompts.begin(), prompts.end(), text) == prompts.end()) prompts.push_back(text);
    };
    for (const Request& request : requests) add(request.prompt);
    for (const Request& request : requests)
      if (const auto negative = negative_of(request)) add(*negative);
    ByPrompt found;
    for (const std::string& prompt : prompts) {
      found[prompt];
      remark_on(prompt, remarks);
    }
    for (const Stage& stage : manifest().stages) {
      if (stage.runs != Stage::Runs::once_per_prompt) continue;
      std::vector<detail::Call> calls;
      for (const std::string& prompt : prompts) {
        const detail::Feed feed{&found[prompt], &prompt, nullptr, nullptr, nullptr, 0};
        calls.push_back({inputs_of(stage.inputs, feed), "prompt " + detail::shown(prompt)});
      }
      run_stage(stage, std::move(calls), stop, [&](std::size_t which, Ports outputs) {
        for (auto& [port, value] : outputs) found[prompts[which]][{stage.graph, port}] = value;
      });
      forget_unused(stage, found);
    }
    return found;
  }

  void remark_on(const std::string& prompt, std::vector<std::string>& remarks) const {
    for (const auto& [name, tokenizer] : tokenizers_) {
      const std::size_t count = ids_of(name, prompt).size();
      const auto reads = static_cast<std::size_t>(tokenizer.entry().tokens);
      if (count > reads)
        remarks.push_back(name + " reads " + std::to_string(reads) + " tokens, and the prompt " +
                          detail::shown(prompt) + " has " + std::to_string(count) +
                          ": its end is not read");
    }
  }

  [[nodiscard]] Ids ids_of(const std::string& name, const std::string& prompt) const {
    try {
      return tokenizers_.at(name).ids(prompt);
    } catch (const std::invalid_argument& error) {
      throw input_error(name + ": the prompt cannot be encoded: " + error.what());
    }
  }

  /// Drops the outputs that no stage after this one takes.
  void forget_unused(const Stage& stage, ByPrompt& found) const {
    std::set<std::pair<std::string, std::string>> used;
    bool is_later = false;
    for (const Stage& other : manifest().stages) {
      for (const Sources* sources : {&other.inputs, &other.negative_inputs})
        for (const auto& [port, source] : *sources)
          if (is_later) used.emplace(source.name, source.port);
      is_later = is_later || &other == &stage;
    }
    for (auto& [prompt, values] : found)
      for (auto value = values.begin(); value != values.end();)
        value = used.count(value->first) != 0 ? std::next(value) : values.erase(value);
  }

  [[nodiscard]] Ports inputs_of(const Sources& sources, const detail::Feed& feed) const {
    Ports found;
    for (const auto& [port, source] : sources) found[port] = value_of(source, feed);
    return found;
  }

  [[nodiscard]] TensorPtr value_of(const Source& source, const detail::Feed& feed) const {
    switch (source.kind) {
      case Source::Kind::tokens:
        return encode(source.name, *feed.prompt);
      case Source::Kind::latent:
        return feed.latent;
      case Source::Kind::image:
        return feed.image;
      default:
        break;
    }
    const bool is_negative = source.kind == Source::Kind::negative_output;
    const TensorPtr& value =
        (is_negative ? feed.negative : feed.values)->at({source.name, source.port});
    return source.row_of_step ? row_of(*value, static_cast<std::size_t>(feed.step)) : value;
  }

  static TensorPtr row_of(const Tensor& value, std::size_t row) {
    Shape shape = value.shape;
    shape[0] = 1;
    const auto size = static_cast<std::ptrdiff_t>(size_of(shape));
    Tensor found{std::move(shape), {}};
    std::visit(
        [&](const auto& values) {
          const auto begin = values.begin() + static_cast<std::ptrdiff_t>(row) * size;
          found.values = std::decay_t<decltype(values)>(begin, begin + size);
        },
        value.values);
    return std::make_shared<const Tensor>(std::move(found));
  }

  /// A graph's outputs for several inputs, one by one from its last part. Each part is opened once
  /// and released before the next is opened.
  void run_stage(const Stage& stage, std::vector<detail::Call> calls, Stop& stop,
                 const Sink& sink) {
    for (std::size_t k = 0; k < stage.parts.size() && !calls.empty(); ++k) {
      stop.check();
      const std::shared_ptr<Session> session = open(stage.parts[k]);
      for (std::size_t i = 0; i < calls.size(); ++i) {
        Ports outputs = run_part(stage.parts[k], *session, calls[i], stop);
        if (k + 1 < stage.parts.size())
          calls[i].inputs = std::move(outputs);
        else
          sink(i, std::move(outputs));
      }
    }
  }

  /// One call of a part; throws Error that names the graph, the call and the port if what it gives
  /// is not what the manifest says, or no numbers.
  Ports run_part(const std::string& name, Session& session, const detail::Call& call,
                 Stop& stop) const {
    stop.check();
    Ports found = stop.run(session, call.inputs);
    for (const Port& port : manifest().graph(name)->outputs) {
      const auto output = found.find(port.name);
      if (output == found.end() || output->second->shape != port.shape)
        throw check_failed(name + ": its output '" + port.name + "' is not of the shape " +
                           text_of(port.shape) + "; build the package again");
      if (!output->second->is_finite())
        throw check_failed(name + ", " + call.end + ": its output '" + port.name + "'" +
                           not_finite);
    }
    return found;
  }

  /// The latents that requests start from, nothing where they do not; each picture is encoded once.
  std::vector<TensorPtr> encode_images(const std::vector<Request>& requests, Stop& stop) {
    std::vector<TensorPtr> found(requests.size());
    const Stage* stage = manifest().giving("start");
    std::map<std::shared_ptr<const Picture>, std::vector<std::size_t>> users;
    for (std::size_t i = 0; i < requests.size(); ++i)
      if (requests[i].image) users[requests[i].image].push_back(i);
    if (users.empty()) return found;
    std::vector<detail::Call> calls;
    std::vector<std::vector<std::size_t>> of_call;
    for (const auto& [image, indices] : users) {
      detail::Feed feed;
      feed.image = from_pixels(*image, manifest().picture.pixels);
      calls.push_back(
          {inputs_of(stage->inputs, feed), "picture " + std::to_string(indices[0] + 1)});
      of_call.push_back(indices);
    }
    const std::string port = stage->port_of("start");
    run_stage(*stage, std::move(calls), stop, [&](std::size_t which, Ports outputs) {
      for (const std::size_t index : of_call[which]) found[index] = outputs.at(port);
    });
    return found;
  }

  /// The graphs that draw previews, opened for the first and kept until the steps are done.
  struct Shown {
    const Stage* stage = nullptr;
    std::map<std::string, std::shared_ptr<Session>> sessions;
  };

  /// All steps of all pictures; their final latents.
  std::vector<TensorPtr> walk(const std::vector<Request>& requests, const std::vector<int>& starts,
                              const ByPrompt& values, const std::vector<TensorPtr>& encoded,
                              const Handler& handler, Stop& stop) {
    const Stage& stage = *manifest().giving("velocity");
    std::shared_ptr<Session> whole;  // a graph that is not cut stays open over the steps
    if (stage.parts.size() == 1) whole = open(stage.parts[0]);
    Shown previews{manifest().stage(manifest().picture.preview_graph), {}};
    const Shape shape = manifest().picture.latent();
    const auto draw_noise = [&shape](TorchNoise& stream) { return stream.randn(size_of(shape)); };
    std::vector<TensorPtr> latents;
    for (std::size_t index = 0; index < requests.size(); ++index) {
      const Request& request = requests[index];
      TorchNoise noise(request.seed);
      std::vector<float> drawn = draw_noise(noise);
      if (encoded[index])
        drawn = begin(manifest().schedule, starts[index], encoded[index]->floats(), drawn);
      detail::Feed feed{&values.at(request.prompt),      &request.prompt, nullptr,
                        shared(shape, std::move(drawn)), nullptr,         0};
      if (const auto negative = negative_of(request)) feed.negative = &values.at(*negative);
      for (feed.step = starts[index]; feed.step < manifest().schedule.steps(); ++feed.step) {
        const std::vector<float> velocity = velocity_of(stage, whole, feed, stop);
        feed.latent = shared(shape, advance(manifest().schedule, feed.step, feed.latent->floats(),
                                            velocity, [&] { return draw_noise(noise); }));
        if (!feed.latent->is_finite())
          throw check_failed(stage.graph + ", " + end_of(feed.step) + ": the latent after it" +
                             not_finite);
        tell(handler, step_event(index, feed, previews, stop), stop);
      }
      latents.push_back(feed.latent);
    }
    return latents;
  }

  [[nodiscard]] std::string end_of(int step) const {
    return "step " + std::to_string(step + 1) + " of " +
           std::to_string(manifest().schedule.steps());
  }

  /// What the stage of each step gives for one step: with guidance, of both its calls.
  std::vector<float> velocity_of(const Stage& stage, const std::shared_ptr<Session>& whole,
                                 const detail::Feed& feed, Stop& stop) {
    std::vector<detail::Call> calls{{inputs_of(stage.inputs, feed), end_of(feed.step)}};
    const auto& guidance = manifest().schedule.guidance;
    if (guidance)
      calls.push_back(
          {inputs_of(stage.negative_inputs, feed), end_of(feed.step) + ", negative prompt"});
    for (const std::string& part : stage.parts) {
      const std::shared_ptr<Session> session = whole ? whole : open(part);
      for (detail::Call& call : calls) call.inputs = run_part(part, *session, call, stop);
    }
    const std::string port = stage.port_of("velocity");
    const std::vector<float>& velocity = calls[0].inputs.at(port)->floats();
    return guidance ? guided(*guidance, velocity, calls[1].inputs.at(port)->floats()) : velocity;
  }

  Step step_event(std::size_t index, const detail::Feed& feed, Shown& previews, Stop& stop) {
    const Drawn& picture = manifest().picture;
    const Schedule& schedule = manifest().schedule;
    const double sigma = schedule.sigmas[static_cast<std::size_t>(feed.step) + 1];
    Step found{index, feed.step + 1, schedule.steps(), sigma, feed.latent, {}};
    if (previews.stage != nullptr)
      found.preview = [this, &previews, &stop, latent = feed.latent, step = feed.step] {
        return decoded_preview(previews, latent, "preview of " + end_of(step), stop);
      };
    else if (picture.preview)
      found.preview = [&picture, latent = feed.latent] {
        return fourstep::preview(*latent, *picture.preview, picture.pixels);
      };
    return found;
  }

  Picture decoded_preview(Shown& previews, const TensorPtr& latent, const std::string& end,
                          Stop& stop) {
    const Stage& stage = *previews.stage;
    detail::Call call{{}, end};
    for (const auto& [port, source] : stage.inputs) call.inputs[port] = latent;
    for (const std::string& part : stage.parts) {
      std::shared_ptr<Session>& session = previews.sessions[part];
      if (!session) session = open(part);
      call.inputs = run_part(part, *session, call, stop);
    }
    const std::string port = stage.results.begin()->first;
    return to_pixels(*call.inputs.at(port), manifest().picture.pixels, stage.graph);
  }

  void decode(const std::vector<Request>& requests, const ByPrompt& values,
              const std::vector<TensorPtr>& latents, const Handler& handler, Stop& stop) {
    const Stage& stage = *manifest().giving("image");
    const std::string port = stage.port_of("image");
    std::vector<detail::Call> calls;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const std::string& prompt = requests[i].prompt;
      const detail::Feed feed{&values.at(prompt), &prompt, nullptr, latents[i], nullptr, 0};
      calls.push_back({inputs_of(stage.inputs, feed), "picture " + std::to_string(i + 1)});
    }
    run_stage(stage, std::move(calls), stop, [&](std::size_t which, const Ports& outputs) {
      Picture picture = to_pixels(*outputs.at(port), manifest().picture.pixels, stage.graph);
      tell(handler, Image{which, std::move(picture), latents[which]}, stop);
    });
  }

  Package package_;
  std::shared_ptr<Engine> engine_;
  bool keeps_open_;
  std::map<std::string, Tokenizer> tokenizers_;
  std::map<std::string, std::shared_ptr<Session>> open_;
};

}  // namespace fourstep
