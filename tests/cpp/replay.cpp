// Draws a package's golden pictures with an engine that gives what was recorded, and compares what
// it gets: replay PACKAGE. The loop alone, for sanitizers.
#include <cstdlib>
#include <fourstep/loop.hpp>
#include <fourstep/safetensors.hpp>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

/// Gives what a package's golden file has recorded, and compares what it gets.
class Recorded final : public fourstep::Engine {
 public:
  explicit Recorded(const fourstep::Package& package) : manifest_(package.manifest()) {
    for (const fourstep::Golden& golden : manifest_.golden)
      pictures.push_back(fourstep::parse_tensors(package.read(golden.tensors), golden.tensors));
  }

  [[nodiscard]] std::string backend() const override { return manifest_.backend; }

  std::unique_ptr<fourstep::Session> open(const std::filesystem::path& entry,
                                          const std::filesystem::path&,
                                          const std::map<std::string, std::string>&) override {
    for (const fourstep::Graph& graph : manifest_.graphs)
      if (entry.string().find(graph.entry) != std::string::npos)
        return std::make_unique<Opened>(*this, graph);
    std::abort();
  }

  std::vector<std::map<std::string, fourstep::Tensor>> pictures;
  std::size_t picture = 0;
  std::map<std::string, int> calls;

 private:
  class Opened final : public fourstep::Session {
   public:
    Opened(Recorded& engine, const fourstep::Graph& graph) : engine_(engine), graph_(graph) {}

    fourstep::Ports run(const fourstep::Ports& inputs) override {
      const auto& tensors = engine_.pictures[engine_.picture];
      const std::string call = graph_.name + "/" + std::to_string(engine_.calls[graph_.name]++);
      for (const auto& [name, value] : inputs)
        if (tensors.at(call + "/in/" + name).values != value->values) {
          std::cerr << call << " gets another " << name << '\n';
          std::exit(1);
        }
      fourstep::Ports found;
      for (const fourstep::Port& port : graph_.outputs)
        found[port.name] =
            std::make_shared<const fourstep::Tensor>(tensors.at(call + "/out/" + port.name));
      return found;
    }

   private:
    Recorded& engine_;
    const fourstep::Graph& graph_;
  };

  fourstep::Manifest manifest_;
};

int replay(const char* folder) {
  fourstep::Package package{std::filesystem::path(folder)};
  const auto engine = std::make_shared<Recorded>(package);
  fourstep::Player player(std::move(package), engine);
  fourstep::Stop stop;
  for (const fourstep::Golden& golden : player.manifest().golden) {
    fourstep::Request request;
    request.prompt = golden.prompt;
    request.seed = golden.seed;
    engine->calls.clear();
    player.draw(
        {request},
        [&](const fourstep::Event& event) {
          if (const auto* step = std::get_if<fourstep::Step>(&event); step && step->preview)
            step->preview();
          if (const auto* image = std::get_if<fourstep::Image>(&event)) {
            const auto& wanted = engine->pictures[engine->picture].at("pixels").values;
            if (std::get<std::vector<std::uint8_t>>(wanted) != image->picture.pixels) std::exit(1);
            std::cout << golden.prompt << '\n';
          }
        },
        stop);
    ++engine->picture;
  }
  return 0;
}

}  // namespace

int main(int count, char** given) { return count == 2 ? replay(given[1]) : 2; }
