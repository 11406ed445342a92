/// @file
/// A package's conformance vectors against this runtime: ids, noise, steps, pixels, previews, every
/// graph, whole pictures.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "json.hpp"
#include "loop.hpp"
#include "noise.hpp"
#include "pixels.hpp"
#include "safetensors.hpp"
#include "schedule.hpp"

namespace fourstep {

/// What was compared: how much of it, and how much differs.
struct Comparison {
  std::string what;
  std::size_t compared = 0;
  std::size_t differ = 0;
  std::string worst;  ///< of what has a tolerance: the worst, and what is allowed
};

/// Runs all vectors of a package.
class Vectors {
 public:
  /// @param exact draws in float32 also where the package rounds activations: what graphs and
  ///   pictures are compared by.
  /// @throws Error for a package without golden files, or with damaged ones.
  Vectors(Player& exact, Stop& stop) : player_(exact), manifest_(exact.manifest()), stop_(stop) {
    if (manifest_.golden.empty())
      throw input_error(player_.package().folder().string() +
                        ": has no golden files to compare with; bundle it without "
                        "--without-golden");
  }

  std::vector<Comparison> run() {
    if (!manifest_.golden_tokens.empty()) tokens();
    if (!manifest_.golden_noise.empty()) noise_streams();
    for (const Golden& golden : manifest_.golden) {
      const Tensors tensors = read(golden);
      try {
        ids(golden, tensors);
        noise_of(golden, tensors);
        steps(tensors);
        pixels(tensors);
        for (const Stage& stage : manifest_.stages) graph(stage, tensors);
        picture(golden, tensors);
      } catch (const std::out_of_range&) {
        throw check_failed(golden.tensors + ": a tensor is missing; build the package again");
      } catch (const std::bad_variant_access&) {
        throw check_failed(golden.tensors + ": a tensor of another type; build the package again");
      }
    }
    std::vector<Comparison> found;
    for (const std::string& what : order_) found.push_back(rows_.at(what));
    return found;
  }

 private:
  using Tensors = std::map<std::string, Tensor>;
  using Floats = std::vector<float>;

  [[nodiscard]] Tensors read(const std::string& path) const {
    return parse_tensors(player_.package().read(path), path);
  }

  /// Of a golden picture, with what a further size has as the first one.
  [[nodiscard]] Tensors read(const Golden& golden) const {
    Tensors found = read(golden.tensors);
    if (golden.like.empty()) return found;
    for (const auto& [name, other] : golden.same) {
      const auto own = found.find(other);
      if (own == found.end())
        throw check_failed(golden.tensors + ": a tensor is missing; build the package again");
      found[name] = own->second;
    }
    found.merge(read(golden.like));
    return found;
  }

  Comparison& row(const std::string& what) {
    if (rows_.count(what) == 0) order_.push_back(what);
    rows_[what].what = what;
    return rows_[what];
  }

  void count(const std::string& what, bool same) {
    Comparison& found = row(what);
    ++found.compared;
    found.differ += same ? 0 : 1;
  }

  /// Of what has a tolerance, where `worst` is the worst so far.
  void count(const std::string& what, bool holds, const std::string& worst) {
    count(what, holds);
    row(what).worst = worst;
  }

  void tokens() {
    const std::string& path = manifest_.golden_tokens;
    json::Value file;
    try {
      file = json::parse(player_.package().read(path));
    } catch (const std::invalid_argument& error) {
      throw check_failed(path + ": not a file of ids: " + error.what());
    }
    const json::Value *prompts = file.find("prompts"), *tables = file.find("ids");
    for (const auto& [name, entry] : manifest_.tokenizers) {
      const json::Value* table = tables == nullptr ? nullptr : tables->find(name);
      if (prompts == nullptr || table == nullptr || table->items.size() != prompts->items.size())
        throw check_failed(path + ": not a file of ids: no row of " + name + " for each prompt");
      for (std::size_t i = 0; i < prompts->items.size(); ++i) {
        Ids wanted;
        for (const json::Value& id : table->items[i].items)
          wanted.push_back(static_cast<std::int32_t>(id.integer));
        wanted.resize(static_cast<std::size_t>(entry.tokens), entry.pad_id);
        count("ids of " + name, fitted(name, prompts->items[i].string) == wanted);
      }
    }
  }

  [[nodiscard]] Ids fitted(const std::string& name, const std::string& prompt) const {
    return player_.encode(name, prompt)->ints();
  }

  void noise_streams() {
    constexpr std::size_t draws = 40;
    for (const auto& [name, expected] : read(manifest_.golden_noise)) {
      const std::size_t slash = name.find('/');
      if (slash == std::string::npos || name.find_first_not_of("0123456789") != slash) continue;
      TorchNoise stream(std::strtoull(name.c_str(), nullptr, 10));
      Floats found;
      if (name.substr(slash) == "/in a row") {
        for (std::size_t size = 1; size <= draws; ++size) {
          const Floats part = stream.randn(size);
          found.insert(found.end(), part.begin(), part.end());
        }
      } else {
        found = stream.randn(expected.floats().size());
      }
      count("noise", same_noise(found, expected.floats()));
    }
  }

  /// The same to one unit in the last place: a machine's logarithm and cosine may move a value.
  static bool same_noise(const Floats& found, const Floats& expected) {
    bool same = found.size() == expected.size();
    for (std::size_t i = 0; same && i < found.size(); ++i) {
      const float unit = std::nextafter(std::fabs(expected[i]), std::numeric_limits<float>::max()) -
                         std::fabs(expected[i]);
      same = std::fabs(found[i] - expected[i]) <= unit;
    }
    return same;
  }

  void ids(const Golden& golden, const Tensors& tensors) {
    const auto& guidance = manifest_.schedule.guidance;
    std::vector<std::string> texts = {golden.prompt};
    if (guidance && !guidance->negative_prompt && !golden.prompt.empty()) texts.emplace_back();
    for (const Stage& stage : manifest_.stages)
      for (const auto& [port, source] : stage.inputs)
        for (std::size_t call = 0; source.kind == Source::Kind::tokens && call < texts.size();
             ++call)
          count("ids of pictures", fitted(source.name, texts[call]) ==
                                       tensors.at(name_of(stage, call, "in", port)).ints());
  }

  static std::string name_of(const Stage& stage, std::size_t call, const char* side,
                             const std::string& port) {
    return stage.graph + "/" + std::to_string(call) + "/" + side + "/" + port;
  }

  void noise_of(const Golden& golden, const Tensors& tensors) {
    TorchNoise stream(golden.seed);
    const int draws = 1 + (manifest_.schedule.renoise ? manifest_.schedule.steps() : 0);
    for (int k = 0; k < draws; ++k)
      count("noise of pictures", same_noise(stream.randn(size_of(manifest_.picture.latent())),
                                            tensors.at("noise/" + std::to_string(k)).floats()));
  }

  /// Each step from the latent before it and the recorded velocity, without a graph.
  void steps(const Tensors& tensors) {
    const Stage& stage = *manifest_.giving("velocity");
    const std::string port = stage.port_of("velocity");
    const auto& guidance = manifest_.schedule.guidance;
    const auto given = [&](std::size_t call) -> const Floats& {
      return tensors.at(name_of(stage, call, "out", port)).floats();
    };
    Floats latent = tensors.at("noise/0").floats();
    for (int step = 0; step < manifest_.schedule.steps(); ++step) {
      const auto at = static_cast<std::size_t>(step);
      const std::string k = std::to_string(step + 1);
      const Floats velocity =
          guidance ? guided(*guidance, given(2 * at), given(2 * at + 1)) : given(at);
      const Floats found = advance(manifest_.schedule, step, latent, velocity,
                                   [&] { return tensors.at("noise/" + k).floats(); });
      const Tensor& expected = tensors.at("latent/" + k);
      latent = expected.floats();
      count("steps of the schedule", found == latent);
      if (!manifest_.picture.preview) continue;
      const Picture shown = preview(expected, *manifest_.picture.preview, manifest_.picture.pixels);
      count("previews", is_near(shown.pixels, levels(tensors.at("preview/" + k)), 1));
    }
  }

  static const std::vector<std::uint8_t>& levels(const Tensor& tensor) {
    return std::get<std::vector<std::uint8_t>>(tensor.values);
  }

  static bool is_near(const std::vector<std::uint8_t>& found,
                      const std::vector<std::uint8_t>& expected, int most) {
    return std::equal(found.begin(), found.end(), expected.begin(), expected.end(),
                      [most](int a, int b) { return std::abs(a - b) <= most; });
  }

  void pixels(const Tensors& tensors) {
    const Stage& stage = *manifest_.giving("image");
    const Tensor& image = tensors.at(name_of(stage, 0, "out", stage.port_of("image")));
    const Picture found = to_pixels(image, manifest_.picture.pixels, stage.graph);
    count("pixels", found.pixels == levels(tensors.at("pixels")));
  }

  /// A graph's recorded calls, within its tolerance.
  void graph(const Stage& stage, const Tensors& tensors) {
    const Graph& first = *manifest_.graph(stage.parts.front());
    const Graph& last = *manifest_.graph(stage.parts.back());
    std::vector<Ports> calls;
    while (tensors.count(name_of(stage, calls.size(), "in", first.inputs[0].name)) != 0) {
      Ports inputs;
      for (const Port& port : first.inputs)
        inputs[port.name] = std::make_shared<const Tensor>(
            tensors.at(name_of(stage, calls.size(), "in", port.name)));
      calls.push_back(std::move(inputs));
    }
    const std::vector<Ports> found = player_.run(stage, calls, stop_);
    double& worst = worst_[stage.graph];
    for (std::size_t call = 0; call < found.size(); ++call) {
      double error = 0;
      for (const Port& port : last.outputs)
        error = std::max(
            error, relative_error(found[call].at(port.name)->floats(),
                                  tensors.at(name_of(stage, call, "out", port.name)).floats()));
      worst = std::max(worst, error);
      count("graph " + stage.graph, error <= last.tolerance.graph_relative,
            figure("%.1e", worst) + figure(", allowed %.1e", last.tolerance.graph_relative));
    }
  }

  static double relative_error(const Floats& found, const Floats& expected) {
    if (found.size() != expected.size()) return std::numeric_limits<double>::infinity();
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const double wanted = expected[i], apart = static_cast<double>(found[i]) - wanted;
      difference += apart * apart;
      size += wanted * wanted;
    }
    return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
  }

  /// The whole picture from its prompt and its seed.
  void picture(const Golden& golden, const Tensors& tensors) {
    double least = std::numeric_limits<double>::infinity();
    for (const Graph& graph : manifest_.graphs)
      least = std::min(least, graph.tolerance.image_psnr_db);
    Request request;
    request.prompt = golden.prompt;
    request.seed = golden.seed;
    double found = 0;
    player_.draw(
        {request},
        [&](const Event& event) {
          if (const auto* image = std::get_if<Image>(&event))
            found = psnr_db(image->picture.pixels, levels(tensors.at("pixels")));
        },
        stop_);
    double& worst = worst_.try_emplace("", std::numeric_limits<double>::infinity()).first->second;
    worst = std::min(worst, found);
    count("whole pictures", found >= least,
          figure("%.1f dB", worst) + figure(", at least %.1f", least));
  }

  static double psnr_db(const std::vector<std::uint8_t>& found,
                        const std::vector<std::uint8_t>& expected) {
    if (found.size() != expected.size()) return 0;
    double sum = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const double apart = static_cast<double>(found[i]) - expected[i];
      sum += apart * apart;
    }
    if (sum == 0) return std::numeric_limits<double>::infinity();
    return 10 * std::log10(255.0 * 255.0 * static_cast<double>(found.size()) / sum);
  }

  static std::string figure(const char* form, double value) {
    char text[40];
    std::snprintf(text, sizeof text, form, value);
    return text;
  }

  Player& player_;
  const Manifest& manifest_;
  Stop& stop_;
  std::map<std::string, Comparison> rows_;
  std::map<std::string, double> worst_;
  std::vector<std::string> order_;
};

}  // namespace fourstep
