// Hostile input for the readers of the C++ runtime: manifests, tokenizers, safetensors, prompts.
//
// With clang's libFuzzer (-fsanitize=fuzzer) LLVMFuzzerTestOneInput is all that is taken. Anywhere
// else: hostile ROUNDS SEED... mutates files, each named as KIND:PATH, so often each.
#include <cstdint>
#include <cstdlib>
#include <fourstep/differences.hpp>
#include <fourstep/manifest.hpp>
#include <fourstep/safetensors.hpp>
#include <fourstep/tokenizer.hpp>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr char manifest = 'm', tokenizer = 't', tensors = 's', prompt = 'p', edits = 'd';

std::string content_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

fourstep::TokenizerEntry entry() {
  fourstep::TokenizerEntry found;
  found.tokens = 77;
  found.vocabulary_size = 1 << 30;
  return found;
}

/// The tokenizers whose files FOURSTEP_TOKENIZERS lists, with : between.
const std::vector<fourstep::Tokenizer>& tokenizers() {
  static const std::vector<fourstep::Tokenizer> found = [] {
    std::vector<fourstep::Tokenizer> made;
    const char* listed = std::getenv("FOURSTEP_TOKENIZERS");
    std::string rest = listed == nullptr ? "" : listed;
    while (!rest.empty()) {
      const std::string path = rest.substr(0, rest.find(':'));
      made.emplace_back(content_of(path), entry(), path);
      rest.erase(0, path.size() + 1);
    }
    return made;
  }();
  return found;
}

void encode(const fourstep::Tokenizer& by, const std::string& text) {
  if (!fourstep::is_utf8(text)) return;
  try {
    static_cast<void>(by.fitted(by.ids(text)));
  } catch (const std::invalid_argument&) {  // the loop words it
  }
}

void take(char kind, const std::string& text) {
  try {
    if (kind == manifest) static_cast<void>(fourstep::parse_manifest(text, "m"));
    if (kind == tensors) static_cast<void>(fourstep::parse_tensors(text, "s"));
    if (kind == edits) static_cast<void>(fourstep::applied(text, std::string(1000, 'b')));
    if (kind == tokenizer) encode(fourstep::Tokenizer(text, entry(), "t"), "a b'll <pad> \xC3\xA9");
    if (kind == prompt)
      for (const fourstep::Tokenizer& by : tokenizers()) encode(by, text);
  } catch (const fourstep::Error&) {  // refused, in one line
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 0) take("mtspd" [data[0] % 5], { data + 1, data + size });
  return 0;
}

#ifndef FOURSTEP_LIBFUZZER

namespace {

/// A few bytes changed, removed, doubled, or cut off.
std::string mutated(std::string text, std::mt19937& random) {
  const auto below = [&random](std::size_t most) { return most == 0 ? 0 : random() % most; };
  for (std::size_t times = 1 + below(4); times > 0; --times) {
    const std::size_t at = below(text.size()), size = 1 + below(8);
    switch (below(5)) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 1:
        text.insert(at, size, "0919-e\"{[\\\xFF\x80"[below(12)]);
        break;
      case 2:
        text.erase(at, size);
        break;
      case 3:
        text.insert(at, text.substr(below(text.size()), size * size));
        break;
      default:
        if (below(8) == 0) text.resize(at);
    }
  }
  return text;
}

}  // namespace

int main(int count, char** given) {
  std::mt19937 random(1);
  for (int i = 2; i < count; ++i) {
    const std::string seed = given[i];
    const std::string whole = content_of(seed.substr(2));
    take(seed[0], whole);
    for (int round = std::atoi(given[1]); round > 0; --round) take(seed[0], mutated(whole, random));
  }
  std::cout << "survived\n";
}

#endif
