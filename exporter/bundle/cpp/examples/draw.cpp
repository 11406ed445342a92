// Draws one picture:
// fourstep-draw [--size WxH] PACKAGE "prompt" [SEED] [OUT.png] [START.ppm STRENGTH]
#include <cstdlib>
#include <exception>
#include <fourstep/fourstep.hpp>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

template <class Number>
Number number_of(const std::string& what, const std::string& text) {
  Number found{};
  std::istringstream stream(text);
  if (!(stream >> found) || !(stream >> std::ws).eof())
    throw fourstep::input_error(what + " '" + text +
                                "': is no such number; 7, say, or 0.6 as strength");
  return found;
}

fourstep::Request request_of(const std::vector<std::string>& words) {
  fourstep::Request request;
  request.prompt = words.at(1);
  if (words.size() > 2) request.seed = number_of<std::uint64_t>("seed", words[2]);
  if (words.size() > 5) {
    request.image = std::make_shared<fourstep::Picture>(fourstep::read_ppm(words[4]));
    request.strength = number_of<double>("strength", words[5]);
  }
  return request;
}

}  // namespace

int main(int count, char** given) {
  std::vector<std::string> words(given + 1, given + count);
  std::string size;
  if (words.size() > 1 && words[0] == "--size") {
    size = words[1];
    words.erase(words.begin(), words.begin() + 2);
  }
  if (words.size() < 2 || words.size() == 5 || words.size() > 6) {
    std::cerr << "fourstep-draw [--size WxH] PACKAGE \"prompt\" [SEED] [OUT.png] "
                 "[START.ppm STRENGTH]\n";
    return 2;
  }
  try {
    fourstep::Package package(words[0], size);
    const auto engine = fourstep::make_engine(package.manifest().backend);
    fourstep::Player player(std::move(package), engine);
    fourstep::Stop stop;  // stop.request() from any thread ends the drawing
    const std::string out = words.size() > 3 ? words[3] : "fourstep.png";
    const auto handler = [&out](const fourstep::Event& event) {
      if (const auto* conditioned = std::get_if<fourstep::Conditioned>(&event))
        for (const std::string& remark : conditioned->remarks) std::cerr << remark << '\n';
      if (const auto* step = std::get_if<fourstep::Step>(&event))
        std::cerr << "step " << step->step << " of " << step->steps << '\n';
      if (const auto* image = std::get_if<fourstep::Image>(&event)) write_png(out, image->picture);
    };
    player.draw({request_of(words)}, handler, stop);
    std::cout << out << '\n';
  } catch (const std::exception& error) {
    std::cerr << "fourstep-draw: " << error.what() << '\n';
    return 2;
  }
}
