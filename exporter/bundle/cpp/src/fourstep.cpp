// The C interface: everything is in the headers, and no exception gets out.
#include "fourstep.h"

#include <algorithm>
#include <cstring>
#include <fourstep/fourstep.hpp>
#include <fourstep/vectors.hpp>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

struct fourstep_player {
  fourstep::Player player;
  std::string sizes;
  fourstep::Stop stop;
  std::mutex drawing;
};

struct fourstep_graph {
  std::shared_ptr<fourstep::Engine> engine;
  std::unique_ptr<fourstep::Session> session;
  fourstep::Ports outputs;
  std::vector<fourstep_tensor> described;
};

namespace {

/// A line of text into a caller's place, cut where it is too small, never within a character.
void tell(const std::string& what, char* place, std::size_t bytes) {
  if (place == nullptr || bytes == 0) return;
  std::size_t size = std::min(what.size(), bytes - 1);
  while (size < what.size() && size > 0 && (static_cast<unsigned char>(what[size]) & 0xC0U) == 0x80)
    --size;
  std::memcpy(place, what.data(), size);
  place[size] = '\0';
}

/// Does something that may throw; what it throws becomes a status and a line of text.
template <class Work>
std::int32_t guarded(char* error, std::size_t error_bytes, Work work) {
  tell("", error, error_bytes);
  try {
    work();
    return FOURSTEP_OK;
  } catch (const fourstep::Error& found) {
    tell(found.what(), error, error_bytes);
    return static_cast<std::int32_t>(found.kind());
  } catch (const std::bad_alloc&) {
    tell("out of memory: close other programs, or choose a smaller size or scheme", error,
         error_bytes);
    return FOURSTEP_INPUT;
  } catch (const std::exception& found) {
    tell(found.what(), error, error_bytes);
    return FOURSTEP_CHECK_FAILED;
  }
}

/// Begins a drawing; throws while there is one.
std::unique_lock<std::mutex> drawing(fourstep_player& player) {
  std::unique_lock lock(player.drawing, std::try_to_lock);
  if (!lock) throw fourstep::input_error("this player is drawing; wait for it, or open another");
  player.stop.reset();
  return lock;
}

const char* given(const char* text, const char* name) {
  if (text == nullptr) throw fourstep::input_error(std::string(name) + ": is NULL");
  return text;
}

fourstep::Request request_of(const fourstep_request& given_one, const fourstep::Drawn& drawn) {
  fourstep::Request found;
  found.prompt = given(given_one.prompt, "prompt");
  found.seed = given_one.seed;
  if (given_one.strength != 0) found.strength = given_one.strength;
  if (given_one.negative != nullptr) found.negative = given_one.negative;
  if (given_one.image != nullptr) {
    const std::size_t size = fourstep::size_of(drawn.image());
    found.image = std::make_shared<fourstep::Picture>(fourstep::Picture{
        drawn.width_px, drawn.height_px, {given_one.image, given_one.image + size}});
  }
  return found;
}

void add_latent(fourstep_event& event, const fourstep::Tensor& latent) {
  event.latent = latent.floats().data();
  std::copy(latent.shape.begin(), latent.shape.end(), event.latent_shape);
}

/// Shows an event to a handler; throws if it wishes to stop.
class Shown {
 public:
  Shown(fourstep_handler handler, void* user) : handler_(handler), user_(user) {}

  void operator()(const fourstep::Conditioned& conditioned) const {
    std::string remarks;
    for (const std::string& remark : conditioned.remarks) remarks += remark + "\n";
    fourstep_event event{};
    event.kind = FOURSTEP_CONDITIONED;
    event.prompts = static_cast<std::int32_t>(conditioned.prompts);
    event.remarks = remarks.c_str();
    show(event);
  }

  void operator()(const fourstep::Step& step) const {
    fourstep_event event{};
    event.kind = FOURSTEP_STEP;
    event.request = static_cast<std::int32_t>(step.request);
    event.step = step.step;
    event.steps = step.steps;
    event.sigma = step.sigma;
    event.has_preview = step.preview ? 1 : 0;
    event.own = &step;
    add_latent(event, *step.latent);
    show(event);
  }

  void operator()(const fourstep::Image& image) const {
    fourstep_event event{};
    event.kind = FOURSTEP_PICTURE;
    event.request = static_cast<std::int32_t>(image.request);
    event.width_px = static_cast<std::int32_t>(image.picture.width_px);
    event.height_px = static_cast<std::int32_t>(image.picture.height_px);
    event.pixels = image.picture.pixels.data();
    add_latent(event, *image.latent);
    show(event);
  }

 private:
  void show(fourstep_event& event) const {
    if (event.remarks == nullptr) event.remarks = "";
    if (handler_ != nullptr && handler_(&event, user_) != 0)
      throw fourstep::Error(fourstep::Error::Kind::stopped, "stopped");
  }

  fourstep_handler handler_;
  void* user_;
};

fourstep::TensorPtr tensor_of(const fourstep_tensor& tensor) {
  fourstep::Tensor found{{tensor.shape, tensor.shape + tensor.axes}, {}};
  const std::size_t size = fourstep::size_of(found.shape);
  if (tensor.dtype == FOURSTEP_INT32) {
    const auto* begin = static_cast<const std::int32_t*>(tensor.data);
    found.values = std::vector<std::int32_t>(begin, begin + size);
  } else {
    const auto* begin = static_cast<const float*>(tensor.data);
    found.values = std::vector<float>(begin, begin + size);
  }
  return std::make_shared<const fourstep::Tensor>(std::move(found));
}

}  // namespace

fourstep_player* fourstep_open(const char* folder, const char* device, std::int32_t exact,
                               std::int32_t keeps_open, char* error, std::size_t error_bytes) {
  return fourstep_open_at(folder, nullptr, device, exact, keeps_open, error, error_bytes);
}

fourstep_player* fourstep_open_at(const char* folder, const char* size, const char* device,
                                  std::int32_t exact, std::int32_t keeps_open, char* error,
                                  std::size_t error_bytes) {
  std::unique_ptr<fourstep_player> found;
  guarded(error, error_bytes, [&] {
    fourstep::Package package(std::filesystem::u8path(given(folder, "folder")),
                              size == nullptr ? "" : size);
    std::string sizes;
    for (const std::string& each : package.sizes()) sizes += (sizes.empty() ? "" : " ") + each;
    const fourstep::EngineOptions options{device == nullptr ? "" : device, exact != 0};
    auto engine = fourstep::make_engine(package.manifest().backend, options);
    found.reset(new fourstep_player{
        fourstep::Player(std::move(package), std::move(engine), keeps_open != 0),
        std::move(sizes),
        {},
        {}});
  });
  return found.release();
}

void fourstep_describe(const fourstep_player* player, fourstep_info* info) {
  const fourstep::Manifest& manifest = player->player.manifest();
  const auto& guidance = manifest.schedule.guidance;
  *info = {manifest.name.c_str(),
           manifest.backend.c_str(),
           manifest.scheme.c_str(),
           static_cast<std::int32_t>(manifest.picture.width_px),
           static_cast<std::int32_t>(manifest.picture.height_px),
           manifest.schedule.steps(),
           manifest.giving("start") != nullptr ? 1 : 0,
           guidance && !guidance->negative_prompt ? 1 : 0,
           player->sizes.c_str()};
}

std::int32_t fourstep_draw(fourstep_player* player, const fourstep_request* requests,
                           std::size_t count, fourstep_handler handler, void* user, char* error,
                           std::size_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    const std::unique_lock lock = drawing(*player);
    std::vector<fourstep::Request> found;
    for (std::size_t i = 0; i < count; ++i)
      found.push_back(request_of(requests[i], player->player.manifest().picture));
    const Shown shown(handler, user);
    player->player.draw(
        found, [&shown](const fourstep::Event& event) { std::visit(shown, event); }, player->stop);
  });
}

std::int32_t fourstep_preview(const fourstep_event* event, std::uint8_t* pixels, std::size_t bytes,
                              std::int32_t* width_px, std::int32_t* height_px, char* error,
                              std::size_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    const auto* step = static_cast<const fourstep::Step*>(event->own);
    if (step == nullptr || !step->preview)
      throw fourstep::input_error("there is no preview of this event");
    const fourstep::Picture picture = step->preview();
    if (width_px != nullptr) *width_px = static_cast<std::int32_t>(picture.width_px);
    if (height_px != nullptr) *height_px = static_cast<std::int32_t>(picture.height_px);
    if (pixels == nullptr) return;
    if (bytes < picture.pixels.size())
      throw fourstep::input_error("the preview takes " + std::to_string(picture.pixels.size()) +
                                  " bytes, and there are " + std::to_string(bytes));
    std::copy(picture.pixels.begin(), picture.pixels.end(), pixels);
  });
}

void fourstep_cancel(fourstep_player* player) { player->stop.request(); }

void fourstep_free(fourstep_player* player) { delete player; }

std::int32_t fourstep_ids(const fourstep_player* player, const char* tokenizer, const char* prompt,
                          std::int32_t* ids, std::size_t* count, char* error,
                          std::size_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    const fourstep::Ids found =
        player->player.encode(given(tokenizer, "tokenizer"), given(prompt, "prompt"))->ints();
    const std::size_t room = std::exchange(*count, found.size());
    if (room < found.size())
      throw fourstep::input_error("there are " + std::to_string(found.size()) +
                                  " ids, and place for " + std::to_string(room));
    std::copy(found.begin(), found.end(), ids);
  });
}

std::int32_t fourstep_compare(fourstep_player* player, fourstep_compared handler, void* user,
                              char* error, std::size_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    const std::unique_lock lock = drawing(*player);
    std::size_t differing = 0;
    for (const fourstep::Comparison& found :
         fourstep::Vectors(player->player, player->stop).run()) {
      const fourstep_comparison row{found.what.c_str(), found.compared, found.differ,
                                    found.worst.c_str()};
      if (handler != nullptr) handler(&row, user);
      differing += found.differ;
    }
    if (differing > 0)
      throw fourstep::check_failed(std::to_string(differing) + " of the vectors differ");
  });
}

fourstep_graph* fourstep_graph_open(const char* backend, const char* entry,
                                    const char* const* names, const char* const* values,
                                    std::size_t settings, char* error, std::size_t error_bytes) {
  std::unique_ptr<fourstep_graph> found;
  guarded(error, error_bytes, [&] {
    std::map<std::string, std::string> session;
    for (std::size_t i = 0; i < settings; ++i) session[names[i]] = values[i];
    auto graph = std::make_unique<fourstep_graph>();
    graph->engine = fourstep::make_engine(given(backend, "backend"));
    graph->session =
        graph->engine->open(std::filesystem::u8path(given(entry, "entry")), {}, session);
    found = std::move(graph);
  });
  return found.release();
}

std::int32_t fourstep_graph_run(fourstep_graph* graph, const fourstep_tensor* inputs,
                                std::size_t count, const fourstep_tensor** outputs,
                                std::size_t* output_count, char* error, std::size_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    fourstep::Ports ports;
    for (std::size_t i = 0; i < count; ++i) ports[inputs[i].name] = tensor_of(inputs[i]);
    graph->outputs = graph->session->run(ports);
    graph->described.clear();
    for (const auto& [name, value] : graph->outputs)
      graph->described.push_back({name.c_str(), FOURSTEP_FLOAT32, value->shape.size(),
                                  value->shape.data(), const_cast<float*>(value->floats().data())});
    *outputs = graph->described.data();
    *output_count = graph->described.size();
  });
}

void fourstep_graph_interrupt(fourstep_graph* graph) { graph->session->interrupt(); }

void fourstep_graph_close(fourstep_graph* graph) { delete graph; }
