/// @file
/// What a package says of itself, read and checked: everything that the loop has to know.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "error.hpp"
#include "json.hpp"
#include "tensor.hpp"

namespace fourstep {

/// A file of the package: its path with `/` from the package's folder, its size, its digest.
struct File {
  std::string path;
  std::uint64_t bytes = 0;
  std::string sha256;
};

/// An input or output of a graph.
struct Port {
  std::string name;
  Shape shape;
  std::string dtype;  ///< float32 or int32
};

/// How far a graph may be from its golden outputs.
struct Tolerance {
  double graph_relative = 0;  ///< relative L2 error of an output
  double image_psnr_db = 0;   ///< of a picture drawn with it
};

/// A graph, or a part of one, as an engine opens it.
struct Graph {
  std::string name;
  std::string entry;
  std::vector<Port> inputs;
  std::vector<Port> outputs;
  std::vector<File> files;
  Tolerance tolerance;
  std::map<std::string, std::string> session;
};

/// Where an input of a graph comes from.
struct Source {
  enum class Kind { tokens, output, negative_output, latent, image };
  Kind kind = Kind::latent;
  std::string name;
  std::string port;
  bool row_of_step = false;
};

using Sources = std::map<std::string, Source>;

/// One graph's turn in the loop.
struct Stage {
  enum class Runs { once_per_prompt, each_step, twice_each_step, once, for_previews };
  std::string graph;
  std::vector<std::string> parts;
  Runs runs = Runs::once;
  Sources inputs;
  Sources negative_inputs;
  std::map<std::string, std::string> results;  ///< velocity, start, image or preview by port
  bool image_to_image_only = false;

  [[nodiscard]] bool in_steps() const {
    return runs == Runs::each_step || runs == Runs::twice_each_step;
  }

  /// Whether it gives the loop such a result.
  [[nodiscard]] bool gives(std::string_view result) const { return !port_of(result).empty(); }

  /// The output port that gives a result, or an empty name.
  [[nodiscard]] std::string port_of(std::string_view result) const {
    for (const auto& [port, found] : results)
      if (found == result) return port;
    return "";
  }
};

/// Away from a negative prompt.
struct Guidance {
  double scale = 1;
  std::optional<std::string> negative_prompt;  ///< a fixed one
};

/// How noise becomes a picture.
struct Schedule {
  bool renoise = false;  ///< else euler
  std::vector<double> sigmas;
  std::optional<Guidance> guidance;

  [[nodiscard]] int steps() const { return static_cast<int>(sigmas.size()) - 1; }
};

/// Numbers between pictures of whole levels and tensors.
struct Pixels {
  double to_levels_scale = 0.5;
  double to_levels_offset = 0.5;
  int levels = 255;
  double from_levels_scale = 2.0;
  double from_levels_offset = -1.0;
};

/// A small picture of a latent: colours = latent @ factors + bias.
struct Preview {
  std::vector<std::array<double, 3>> factors;
  std::array<double, 3> bias{};
};

/// What is drawn, and the latent that it is drawn in.
struct Drawn {
  std::int64_t width_px = 0;
  std::int64_t height_px = 0;
  std::int64_t latent_channels = 0;
  std::int64_t latent_scale_px = 0;
  Pixels pixels;
  std::optional<Preview> preview;
  std::string preview_graph;

  /// (1, channels, h, w).
  [[nodiscard]] Shape latent() const {
    return {1, latent_channels, height_px / latent_scale_px, width_px / latent_scale_px};
  }

  /// (1, 3, H, W).
  [[nodiscard]] Shape image() const { return {1, 3, height_px, width_px}; }
};

/// How a prompt becomes ids (1, tokens).
struct TokenizerEntry {
  std::string path;
  std::int64_t tokens = 0;
  std::int32_t pad_id = 0;
  std::string kind;
  std::optional<std::int32_t> closing_id;
  std::int64_t vocabulary_size = 0;
};

/// A picture that a runtime proves itself with.
struct Golden {
  std::string prompt;
  std::uint64_t seed = 0;
  std::string image;
  std::string unquantized;
  std::string tensors;
  std::string like;  ///< the first size's tensors: what is not in `tensors` is as it is there
  std::map<std::string, std::string> same;  ///< tensors that are another one of `tensors`
};

/// A further size of pictures, by what differs from the first.
struct SizeEntry {
  std::int64_t width_px = 0;
  std::int64_t height_px = 0;
  std::vector<Graph> graphs;  ///< that stand in for those of their names
  std::vector<Golden> golden;
};

/// A size as 768x512.
template <class Sized>
std::string size_text(const Sized& sized) {
  return std::to_string(sized.width_px) + "x" + std::to_string(sized.height_px);
}

/// `manifest.json`.
struct Manifest {
  std::string format_version;
  std::string name;
  std::string backend;
  std::string scheme;
  std::string licence;
  Schedule schedule;
  Drawn picture;
  std::map<std::string, TokenizerEntry> tokenizers;
  std::vector<Stage> stages;
  std::vector<Graph> graphs;
  std::vector<Golden> golden;
  std::string golden_tokens;
  std::string golden_noise;
  std::vector<File> files;       ///< all but the graphs' and the manifest's own
  std::vector<SizeEntry> sizes;  ///< further ones; everything else is of the first

  /// A graph or a part by name, or nullptr.
  [[nodiscard]] const Graph* graph(std::string_view wanted) const {
    for (const Graph& found : graphs)
      if (found.name == wanted) return &found;
    return nullptr;
  }

  /// A graph's turn, or nullptr.
  [[nodiscard]] const Stage* stage(std::string_view graph) const {
    for (const Stage& found : stages)
      if (found.graph == graph) return &found;
    return nullptr;
  }

  /// The stage that gives the loop a result, or nullptr.
  [[nodiscard]] const Stage* giving(std::string_view result) const {
    for (const Stage& found : stages)
      if (found.gives(result)) return &found;
    return nullptr;
  }

  /// A file beside the graphs, or nullptr.
  [[nodiscard]] const File* file(std::string_view path) const {
    for (const File& found : files)
      if (found.path == path) return &found;
    return nullptr;
  }
};

namespace detail {

/// A value that this runtime does not know: to guess would draw another picture.
struct NotKnown : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A value of the manifest and where it stands, which errors name.
class Node {
 public:
  Node(const json::Value& value, std::string where) : value_(&value), where_(std::move(where)) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument(where_.empty() ? what : where_ + ": " + what);
  }

  /// A member that has to be there.
  [[nodiscard]] Node operator[](const char* key) const {
    const std::optional<Node> found = find(key);
    if (!found) fail("object missing required field " + std::string(key));
    return *found;
  }

  /// A member that may be absent.
  [[nodiscard]] std::optional<Node> find(const char* key) const {
    expect(Type::object, "object");
    const json::Value* found = value_->find(key);
    if (found == nullptr) return std::nullopt;
    return Node(*found, where_.empty() ? key : where_ + "." + key);
  }

  /// A member that may be absent or null.
  [[nodiscard]] std::optional<Node> given(const char* key) const {
    std::optional<Node> found = find(key);
    if (found && found->value_->type == Type::null) found.reset();
    return found;
  }

  [[nodiscard]] std::vector<Node> items() const {
    expect(Type::array, "array");
    std::vector<Node> found;
    for (std::size_t i = 0; i < value_->items.size(); ++i)
      found.emplace_back(value_->items[i], where_ + "[" + std::to_string(i) + "]");
    return found;
  }

  [[nodiscard]] std::map<std::string, Node> members() const {
    expect(Type::object, "object");
    std::map<std::string, Node> found;
    for (const auto& [key, value] : value_->members)
      found.insert_or_assign(key, Node(value, where_ + "." + key));
    return found;
  }

  [[nodiscard]] const std::string& text() const {
    expect(Type::string, "str");
    return value_->string;
  }

  [[nodiscard]] bool truth() const {
    expect(Type::boolean, "bool");
    return value_->boolean;
  }

  [[nodiscard]] std::int64_t whole(std::int64_t least, std::int64_t most) const {
    expect(Type::integer, "int");
    if (value_->integer < least) fail("expected int >= " + std::to_string(least));
    if (value_->integer > most) fail("expected int <= " + std::to_string(most));
    return value_->integer;
  }

  [[nodiscard]] double number() const {
    if (value_->type != Type::integer) expect(Type::number, "float");
    return value_->number;
  }

  /// Which of the values that are known it is.
  template <std::size_t count>
  [[nodiscard]] std::size_t one_of(const std::array<const char*, count>& known) const {
    for (std::size_t i = 0; i < count; ++i)
      if (text() == known[i]) return i;
    throw NotKnown(where_ + ": '" + text() + "'");
  }

  [[nodiscard]] const std::string& name() const {
    const std::string& found = text();
    bool good = !found.empty() && found.size() <= 100 && is_letter(found[0]);
    for (const char c : found) good = good && (is_letter(c) || c == '.' || c == '_' || c == '-');
    if (!good) fail("expected str matching a name: letters, digits, '.', '_' and '-'");
    return found;
  }

  /// A path that leads inside whatever folder it is taken from.
  [[nodiscard]] const std::string& path() const {
    const std::string& found = text();
    bool good = !found.empty() && found.size() <= 400;
    for (const char c : found)
      good = good && c != '\\' && c != ':' && static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
    for (std::size_t at = 0; good && at <= found.size();) {
      const std::size_t end = std::min(found.find('/', at), found.size());
      const std::string_view part = std::string_view(found).substr(at, end - at);
      good = !part.empty() && part != "." && part != "..";
      at = end + 1;
    }
    if (!good) fail("expected str matching a relative path inside the package");
    return found;
  }

  [[nodiscard]] const std::string& digest() const {
    const std::string& found = text();
    if (found.size() != 64 || found.find_first_not_of("0123456789abcdef") != std::string::npos)
      fail("expected str matching 64 hexadecimal digits");
    return found;
  }

 private:
  using Type = json::Value::Type;

  static bool is_letter(char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
  }

  void expect(Type type, const char* kind) const {
    if (value_->type != type) fail(std::string("expected ") + kind + ", got " + value_->kind());
  }

  const json::Value* value_;
  std::string where_;
};

inline constexpr std::int64_t most_size = std::numeric_limits<std::int32_t>::max();
inline constexpr std::int64_t most_px = 1 << 14;

inline File file_from(const Node& node) {
  return {node["path"].path(), static_cast<std::uint64_t>(node["bytes"].whole(0, (1LL << 53) - 1)),
          node["sha256"].digest()};
}

template <class Item, class Read>
std::vector<Item> list_from(const Node& node, Read read) {
  std::vector<Item> found;
  for (const Node& item : node.items()) found.push_back(read(item));
  return found;
}

inline Port port_from(const Node& node) {
  Port found{node["name"].text(), {}, "float32"};
  for (const Node& axis : node["shape"].items()) found.shape.push_back(axis.whole(1, most_size));
  constexpr std::array<const char*, 2> known = {"float32", "int32"};
  if (const auto dtype = node.find("dtype")) found.dtype = known[dtype->one_of(known)];
  return found;
}

inline Graph graph_without_files(const Node& node) {
  Graph found;
  found.name = node["name"].name();
  found.entry = node["entry"].path();
  found.inputs = list_from<Port>(node["inputs"], port_from);
  found.outputs = list_from<Port>(node["outputs"], port_from);
  const Node tolerance = node["tolerance"];
  found.tolerance = {tolerance["graph_relative"].number(), tolerance["image_psnr_db"].number()};
  if (!(found.tolerance.graph_relative > 0) || !(found.tolerance.image_psnr_db > 0))
    tolerance.fail("expected floats > 0.0");
  if (const auto session = node.find("session"))
    for (const auto& [key, value] : session->members()) found.session[key] = value.text();
  return found;
}

inline Graph graph_from(const Node& node) {
  Graph found = graph_without_files(node);
  found.files = list_from<File>(node["files"], file_from);
  return found;
}

inline Sources sources_from(const Node& node) {
  constexpr std::array<const char*, 5> kinds = {"tokens", "output", "negative output", "latent",
                                                "image"};
  Sources found;
  for (const auto& [port, source] : node.members()) {
    Source& entry = found[port];
    entry.kind = static_cast<Source::Kind>(source["kind"].one_of(kinds));
    if (const auto name = source.find("name")) entry.name = name->text();
    if (const auto at = source.find("port")) entry.port = at->text();
    if (const auto row = source.find("row_of_step")) entry.row_of_step = row->truth();
  }
  return found;
}

inline Stage stage_from(const Node& node) {
  constexpr std::array<const char*, 5> runs = {"once per prompt", "each step", "twice each step",
                                               "once", "for previews"};
  constexpr std::array<const char*, 4> results = {"velocity", "start", "image", "preview"};
  Stage found;
  found.graph = node["graph"].name();
  for (const Node& part : node["parts"].items()) found.parts.push_back(part.name());
  found.runs = static_cast<Stage::Runs>(node["runs"].one_of(runs));
  found.inputs = sources_from(node["inputs"]);
  if (const auto negative = node.find("negative_inputs"))
    found.negative_inputs = sources_from(*negative);
  if (const auto given = node.find("results"))
    for (const auto& [port, result] : given->members())
      found.results[port] = results[result.one_of(results)];
  if (const auto only = node.find("image_to_image_only")) found.image_to_image_only = only->truth();
  return found;
}

inline Schedule schedule_from(const Node& node) {
  Schedule found;
  found.renoise = node["mode"].one_of(std::array<const char*, 2>{"euler", "renoise"}) == 1;
  for (const Node& sigma : node["sigmas"].items()) found.sigmas.push_back(sigma.number());
  if (found.sigmas.size() < 2 || found.sigmas.size() > 1001)
    node["sigmas"].fail("expected array of length 2 to 1001");
  if (const auto guidance = node.given("guidance")) {
    found.guidance.emplace();
    found.guidance->scale = (*guidance)["scale"].number();
    if (!(found.guidance->scale > 1) || found.guidance->scale > 100)
      guidance->fail("expected a scale > 1 and <= 100");
    if (const auto text = guidance->given("negative_prompt"))
      found.guidance->negative_prompt = text->text();
  }
  return found;
}

inline std::array<double, 3> colours_from(const Node& node) {
  const std::vector<Node> items = node.items();
  if (items.size() != 3) node.fail("expected array of length 3");
  return {items[0].number(), items[1].number(), items[2].number()};
}

inline Drawn picture_from(const Node& node) {
  Drawn found;
  found.width_px = node["width_px"].whole(1, most_px);
  found.height_px = node["height_px"].whole(1, most_px);
  found.latent_channels = node["latent_channels"].whole(1, 4096);
  found.latent_scale_px = node["latent_scale_px"].whole(1, 256);
  if (const auto pixels = node.find("pixels")) {
    const auto set = [&pixels](const char* key, double& value) {
      if (const auto given = pixels->find(key)) value = given->number();
    };
    set("to_levels_scale", found.pixels.to_levels_scale);
    set("to_levels_offset", found.pixels.to_levels_offset);
    set("from_levels_scale", found.pixels.from_levels_scale);
    set("from_levels_offset", found.pixels.from_levels_offset);
    if (const auto levels = pixels->find("levels"))
      found.pixels.levels = static_cast<int>(levels->whole(1, 255));
    if (const auto rounding = pixels->find("rounding"))
      static_cast<void>(rounding->one_of(std::array<const char*, 1>{"half to even"}));
  }
  if (const auto preview = node.given("preview")) {
    found.preview.emplace();
    for (const Node& row : (*preview)["factors"].items())
      found.preview->factors.push_back(colours_from(row));
    found.preview->bias = colours_from((*preview)["bias"]);
  }
  if (const auto graph = node.find("preview_graph")) found.preview_graph = graph->text();
  return found;
}

inline TokenizerEntry tokenizer_from(const Node& node) {
  TokenizerEntry found;
  found.path = node["path"].path();
  found.tokens = node["tokens"].whole(2, 1 << 16);
  found.pad_id = static_cast<std::int32_t>(node["pad_id"].whole(0, most_size));
  if (const auto kind = node.find("kind")) found.kind = kind->text();
  if (const auto id = node.given("closing_id"))
    found.closing_id = static_cast<std::int32_t>(id->whole(0, most_size));
  found.vocabulary_size = most_size;
  if (const auto size = node.find("vocabulary_size"))
    found.vocabulary_size = size->whole(1, most_size);
  if (const auto cut = node.find("cut"))
    static_cast<void>(cut->one_of(std::array<const char*, 1>{"keep closing"}));
  return found;
}

inline void check_noise(const Node& node) {
  if (const auto given = node.find("algorithm"))
    static_cast<void>(given->one_of(std::array<const char*, 1>{"torch-cpu-randn"}));
  if (const auto given = node.find("seed_bits")) static_cast<void>(given->whole(32, 32));
  if (const auto given = node.find("block")) static_cast<void>(given->whole(16, 16));
}

inline Golden golden_from(const Node& node) {
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  Golden found;
  found.prompt = node["prompt"].text();
  found.seed = static_cast<std::uint64_t>(node["seed"].whole(0, most));
  found.image = node["image"].path();
  found.unquantized = node["unquantized"].path();
  found.tensors = node["tensors"].path();
  if (const auto like = node.find("like"); like && !like->text().empty()) found.like = like->path();
  if (const auto same = node.find("same"))
    for (const auto& [name, other] : same->members()) found.same[name] = other.text();
  return found;
}

/// A further size of a manifest whose graphs and files are read.
inline SizeEntry size_from(const Node& node, const Manifest& manifest) {
  std::map<std::string, const File*> known;
  std::set<std::string> names;
  for (const File& file : manifest.files) known[file.path] = &file;
  for (const Graph& graph : manifest.graphs) {
    names.insert(graph.name);
    for (const File& file : graph.files) known[file.path] = &file;
  }
  SizeEntry found;
  found.width_px = node["width_px"].whole(1, most_px);
  found.height_px = node["height_px"].whole(1, most_px);
  for (const Node& each : node["graphs"].items()) {
    Graph graph = graph_without_files(each);
    if (names.erase(graph.name) == 0) each["name"].fail("'" + graph.name + "' stands in for none");
    for (const Node& path : each["files"].items()) {
      const auto file = known.find(path.path());
      if (file == known.end()) path.fail("'" + path.path() + "' is not among files");
      graph.files.push_back(*file->second);
    }
    found.graphs.push_back(std::move(graph));
  }
  if (const auto pictures = node.find("pictures"))
    found.golden = list_from<Golden>(*pictures, golden_from);
  return found;
}

inline Manifest manifest_from(const Node& node) {
  Manifest found;
  found.format_version = node["format_version"].text();
  found.name = node["name"].text();
  found.backend = node["backend"].name();
  found.scheme = node["scheme"].name();
  if (const auto licence = node["origin"].find("licence")) found.licence = licence->text();
  found.schedule = schedule_from(node["schedule"]);
  found.picture = picture_from(node["picture"]);
  check_noise(node["noise"]);
  for (const auto& [name, entry] : node["text"]["tokenizers"].members())
    found.tokenizers[name] = tokenizer_from(entry);
  found.stages = list_from<Stage>(node["stages"], stage_from);
  found.graphs = list_from<Graph>(node["graphs"], graph_from);
  found.files = list_from<File>(node["files"], file_from);
  const Node golden = node["golden"];
  if (const auto pictures = golden.find("pictures"))
    found.golden = list_from<Golden>(*pictures, golden_from);
  if (const auto tokens = golden.find("tokens")) found.golden_tokens = tokens->text();
  if (const auto noise = golden.find("noise")) found.golden_noise = noise->text();
  if (const auto sizes = node.find("sizes"))
    for (const Node& size : sizes->items()) found.sizes.push_back(size_from(size, found));
  return found;
}

/// A manifest as that of one of its sizes alone: of the first for 0.
inline Manifest alone(const Manifest& manifest, std::size_t place) {
  std::set<std::string> left;
  for (const SizeEntry& size : manifest.sizes)
    for (const Graph& graph : size.graphs)
      for (const File& file : graph.files) left.insert(file.path);
  Manifest found = manifest;
  found.sizes.clear();
  found.files.clear();
  for (const File& file : manifest.files)
    if (left.count(file.path) == 0) found.files.push_back(file);
  if (place == 0) return found;
  const SizeEntry& size = manifest.sizes[place - 1];
  found.picture.width_px = size.width_px;
  found.picture.height_px = size.height_px;
  found.golden = size.golden;
  for (Graph& graph : found.graphs)
    for (const Graph& own : size.graphs)
      if (own.name == graph.name) graph = own;
  return found;
}

/// The manifest's fields against each other; each throws std::invalid_argument naming a field.
class Consistency {
 public:
  explicit Consistency(const Manifest& manifest) : manifest_(manifest) {}

  void check() {
    schedule();
    picture();
    files();
    for (std::size_t i = 0; i < manifest_.graphs.size(); ++i)
      ports(manifest_.graphs[i], "graphs[" + std::to_string(i) + "]");
    stages();
    preview_graph();
  }

 private:
  using Kind = Source::Kind;
  using Runs = Stage::Runs;

  static void demand(bool holds, const std::string& problem) {
    if (!holds) throw std::invalid_argument(problem);
  }

  void schedule() const {
    const std::vector<double>& sigmas = manifest_.schedule.sigmas;
    const bool falls = std::adjacent_find(sigmas.begin(), sigmas.end(), [](double a, double b) {
                         return !(a > b);
                       }) == sigmas.end();
    demand(falls && sigmas.front() <= 1 && sigmas.back() == 0,
           "schedule.sigmas: do not fall from at most 1 to 0");
    const auto& guidance = manifest_.schedule.guidance;
    bool takes_negative = false;
    for (std::size_t i = 0; i < manifest_.stages.size(); ++i) {
      const Stage& stage = manifest_.stages[i];
      demand(!stage.in_steps() || (stage.runs == Runs::twice_each_step) == guidance.has_value(),
             "stages[" + std::to_string(i) + "].runs: does not go with schedule.guidance");
      for (const Sources* sources : {&stage.inputs, &stage.negative_inputs})
        for (const auto& [port, source] : *sources)
          takes_negative = takes_negative || source.kind == Kind::negative_output;
    }
    demand(takes_negative == (guidance && !guidance->negative_prompt),
           "schedule.guidance.negative_prompt: does not go with the sources of the stages");
  }

  void picture() const {
    const Drawn& picture = manifest_.picture;
    for (const auto& [name, size] :
         {std::pair("width_px", picture.width_px), std::pair("height_px", picture.height_px)})
      demand(size % picture.latent_scale_px == 0, std::string("picture.") + name + ": " +
                                                      std::to_string(size) + " is no multiple of " +
                                                      std::to_string(picture.latent_scale_px));
    demand(!picture.preview || static_cast<std::int64_t>(picture.preview->factors.size()) ==
                                   picture.latent_channels,
           "picture.preview.factors: not a row for each channel");
    for (const auto& [name, entry] : manifest_.tokenizers)
      for (const std::int64_t id :
           {std::int64_t{entry.pad_id}, std::int64_t{entry.closing_id.value_or(0)}})
        demand(id < entry.vocabulary_size, "text.tokenizers." + name + ": the id " +
                                               std::to_string(id) + " is not in the vocabulary");
  }

  void files() const {
    std::set<std::string> beside, all;
    for (const File& file : manifest_.files) {
      beside.insert(file.path);
      demand(all.insert(file.path).second, "files: '" + file.path + "' is listed twice");
    }
    for (const Graph& graph : manifest_.graphs)
      for (const File& file : graph.files)
        demand(all.insert(file.path).second, "files: '" + file.path + "' is listed twice");
    const auto listed = [&beside](const std::string& field, const std::string& path) {
      demand(beside.count(path) != 0, field + ": '" + path + "' is not among files");
    };
    for (const auto& [name, entry] : manifest_.tokenizers)
      listed("text.tokenizers." + name + ".path", entry.path);
    for (const Golden& golden : manifest_.golden)
      for (const std::string* path :
           {&golden.image, &golden.unquantized, &golden.tensors, &golden.like})
        if (!path->empty()) listed("golden.pictures", *path);
    if (!manifest_.golden_tokens.empty()) listed("golden.tokens", manifest_.golden_tokens);
    if (!manifest_.golden_noise.empty()) listed("golden.noise", manifest_.golden_noise);
    if (!manifest_.licence.empty()) listed("origin.licence", manifest_.licence);
    for (const Graph& graph : manifest_.graphs) {
      const bool found = std::any_of(graph.files.begin(), graph.files.end(), [&](const File& f) {
        return f.path == graph.entry || f.path.rfind(graph.entry + "/", 0) == 0;
      });
      demand(found, "graphs: '" + graph.entry + "' is not among the graph's files");
      const auto base = graph.session.find("base");
      const std::size_t name = graph.entry.rfind('/') + 1;
      demand(base == graph.session.end() ||
                 std::any_of(graph.files.begin(), graph.files.end(),
                             [&](const File& f) {
                               return f.path == graph.entry.substr(0, name) + base->second;
                             }),
             "graphs: what '" + graph.entry + "' differs from is not among the graph's files");
    }
  }

  static void ports(const Graph& graph, const std::string& where) {
    for (const auto& [side, list] :
         {std::pair("inputs", &graph.inputs), std::pair("outputs", &graph.outputs)}) {
      std::set<std::string> names;
      for (const Port& port : *list) {
        names.insert(port.name);
        double bytes = 4;
        for (const std::int64_t axis : port.shape) bytes *= static_cast<double>(axis);
        demand(bytes <= 0x1p30, where + "." + side + ": " + port.name + " takes more than 1 GiB");
      }
      demand(!names.empty() && names.size() == list->size(),
             where + "." + side + ": none, or two of a name");
    }
  }

  void stages() const {
    std::multiset<std::string> used, names;
    for (const Stage& stage : manifest_.stages) used.insert(stage.parts.begin(), stage.parts.end());
    for (const Graph& graph : manifest_.graphs) names.insert(graph.name);
    demand(
        used == names && std::set<std::string>(names.begin(), names.end()).size() == names.size(),
        "stages: their parts are not the graphs, each once");
    std::map<std::string, const Stage*> given;
    for (std::size_t i = 0; i < manifest_.stages.size(); ++i) {
      const Stage& stage = manifest_.stages[i];
      const std::string where = "stages[" + std::to_string(i) + "]";
      demand(given.count(stage.graph) == 0,
             where + ".graph: '" + stage.graph + "' has a turn already");
      parts(stage, where);
      fed(stage, stage.inputs, given, where + ".inputs");
      if (stage.runs == Runs::twice_each_step)
        fed(stage, stage.negative_inputs, given, where + ".negative_inputs");
      else
        demand(stage.negative_inputs.empty(), where + ".negative_inputs: there are some");
      results(stage, where);
      given[stage.graph] = &stage;
    }
    for (const auto& [result, least] : {std::pair("velocity", 1), std::pair("image", 1),
                                        std::pair("start", 0), std::pair("preview", 0)}) {
      const auto count = std::count_if(manifest_.stages.begin(), manifest_.stages.end(),
                                       [r = result](const Stage& s) { return s.gives(r); });
      demand(least <= count && count <= 1,
             std::string("stages: ") + std::to_string(count) + " of them give the " + result);
    }
  }

  void parts(const Stage& stage, const std::string& where) const {
    demand(!stage.parts.empty(), where + ".parts: there are none");
    for (std::size_t k = 1; k < stage.parts.size(); ++k)
      demand(kinds(manifest_.graph(stage.parts[k - 1])->outputs) ==
                 kinds(manifest_.graph(stage.parts[k])->inputs),
             where + ".parts: " + stage.parts[k] + " does not take what " + stage.parts[k - 1] +
                 " gives");
  }

  static std::map<std::string, std::pair<Shape, std::string>> kinds(
      const std::vector<Port>& ports) {
    std::map<std::string, std::pair<Shape, std::string>> found;
    for (const Port& port : ports) found[port.name] = {port.shape, port.dtype};
    return found;
  }

  void fed(const Stage& stage, const Sources& sources,
           const std::map<std::string, const Stage*>& given, const std::string& where) const {
    const Graph& first = *manifest_.graph(stage.parts.front());
    demand(sources.size() == first.inputs.size(), where + ": are not those of " + first.name);
    for (const Port& port : first.inputs) {
      const auto source = sources.find(port.name);
      demand(source != sources.end(), where + ": are not those of " + first.name);
      const std::string at = where + "." + port.name;
      const Port found = source_port(stage, source->second, given, at);
      demand(found.shape == port.shape && found.dtype == port.dtype,
             at + ": takes " + port.dtype + " " + text_of(port.shape) + " and gets " + found.dtype +
                 " " + text_of(found.shape));
    }
  }

  /// What a source gives; throws for one that gives nothing there.
  [[nodiscard]] Port source_port(const Stage& stage, const Source& source,
                                 const std::map<std::string, const Stage*>& given,
                                 const std::string& at) const {
    if (source.kind == Kind::tokens) {
      const auto entry = manifest_.tokenizers.find(source.name);
      demand(entry != manifest_.tokenizers.end() && stage.runs == Runs::once_per_prompt,
             at + ": no tokenizer '" + source.name + "' for it");
      return {"", {1, entry->second.tokens}, "int32"};
    }
    if (source.kind == Kind::latent) {
      demand(stage.runs != Runs::once_per_prompt, at + ": there is no latent yet");
      return {"", manifest_.picture.latent(), "float32"};
    }
    if (source.kind == Kind::image) {
      demand(stage.image_to_image_only && stage.runs == Runs::once,
             at + ": only a stage of image to image that runs once has an image");
      return {"", manifest_.picture.image(), "float32"};
    }
    demand(source.kind == Kind::output || stage.runs == Runs::twice_each_step,
           at + ": only what runs twice each step takes something of the negative prompt");
    const auto before = given.find(source.name);
    demand(before != given.end() && before->second->runs == Runs::once_per_prompt,
           at + ": no output of a graph '" + source.name + "' of once per prompt before it");
    for (const Port& port : manifest_.graph(before->second->parts.back())->outputs)
      if (port.name == source.port) {
        if (!source.row_of_step) return port;
        demand(
            stage.in_steps() && !port.shape.empty() && port.shape[0] == manifest_.schedule.steps(),
            at + ": " + text_of(port.shape) + " has no row for each step");
        Port row = port;
        row.shape[0] = 1;
        return row;
      }
    throw std::invalid_argument(at + ": no output '" + source.port + "' of '" + source.name + "'");
  }

  void results(const Stage& stage, const std::string& where) const {
    demand(stage.runs == Runs::once_per_prompt || stage.results.size() == 1,
           where + ".results: what does not run once per prompt gives the loop one");
    for (const auto& [name, result] : stage.results) {
      const bool full = result == "image" || result == "preview";
      const Shape wanted = full ? manifest_.picture.image() : manifest_.picture.latent();
      const std::vector<Port>& outputs = manifest_.graph(stage.parts.back())->outputs;
      const bool found =
          std::any_of(outputs.begin(), outputs.end(), [&n = name, &wanted](const Port& p) {
            return p.name == n && p.shape == wanted && p.dtype == "float32";
          });
      demand(found, where + ".results." + name + ": no output of the shape of the " + result);
      demand((result == "velocity") == stage.in_steps() &&
                 (result == "preview") == (stage.runs == Runs::for_previews),
             where + ".runs: does not give the " + result);
      demand((result == "start") == stage.image_to_image_only,
             where + ".image_to_image_only: does not go with the " + result);
    }
  }

  void preview_graph() const {
    const std::string& name = manifest_.picture.preview_graph;
    for (const Stage& stage : manifest_.stages) {
      const bool shown = stage.gives("preview");
      demand(!shown || stage.graph == name,
             "picture.preview_graph: '" + name + "', and '" + stage.graph + "' gives the preview");
      if (stage.graph != name) continue;
      demand(shown || stage.gives("image"),
             "picture.preview_graph: '" + name + "' gives no picture");
      for (const auto& [port, source] : stage.inputs)
        demand(source.kind == Kind::latent,
               "picture.preview_graph: '" + name + "' takes more than a latent");
    }
    demand(name.empty() || manifest_.stage(name) != nullptr,
           "picture.preview_graph: there is no stage of '" + name + "'");
  }

  const Manifest& manifest_;
};

/// A manifest's fields against each other, those of every size; throws std::invalid_argument.
inline void check(const Manifest& manifest) {
  Consistency(manifest).check();
  std::set<std::string> sizes = {size_text(manifest.picture)};
  for (std::size_t i = 0; i < manifest.sizes.size(); ++i) {
    const std::string where = "sizes[" + std::to_string(i) + "]: ";
    const std::string size = size_text(manifest.sizes[i]);
    if (!sizes.insert(size).second) throw std::invalid_argument(where + size + " is there twice");
    const Manifest own = alone(manifest, i + 1);
    try {
      Consistency(own).check();
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(where + error.what());
    }
  }
}

/// Whether a version is 4.x.
inline bool is_read(std::string_view version) {
  return version.size() > 2 && version.size() <= 6 && version.substr(0, 2) == "4." &&
         version.substr(2).find_first_not_of("0123456789") == std::string_view::npos;
}

}  // namespace detail

/// The manifest of a package from its text.
/// @param where its file, which errors name.
/// @throws Error for a format that is not 4.x, a value that is not known, fields that contradict
///   each other.
inline Manifest parse_manifest(std::string_view text, const std::string& where) {
  json::Value value;
  try {
    value = json::parse(text);
  } catch (const std::invalid_argument& error) {
    throw check_failed(where + ": cannot be read as a manifest: " + error.what() +
                       "; build it again: fourstep build RECIPE");
  }
  const json::Value* version = value.find("format_version");
  if (version == nullptr || !detail::is_read(version->string))
    throw check_failed(where + ": format version " +
                       (version == nullptr ? "None" : "'" + version->string.substr(0, 40) + "'") +
                       "; this runtime reads 4.x; build the package again: fourstep build RECIPE");
  const json::Value* filter = value.find("filter");
  if (filter != nullptr && filter->type != json::Value::Type::null)
    throw check_failed(where +
                       ": filter: this runtime runs no filter, and would hand out what the package "
                       "is not to show; draw with fourstep run");
  try {
    Manifest found = detail::manifest_from(detail::Node(value, ""));
    detail::check(found);
    return found;
  } catch (const detail::NotKnown& error) {
    throw check_failed(where + ": " + error.what() +
                       " is not known to this runtime; take a newer one");
  } catch (const std::invalid_argument& error) {
    const bool newer = version->string.size() > 3 || version->string > "4.4";
    throw check_failed(where + ": damaged: " + error.what() +
                       (newer ? "; format " + version->string + ": take a newer runtime"
                              : "; build it again: fourstep build RECIPE"));
  }
}

}  // namespace fourstep
