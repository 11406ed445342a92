/// @file
/// A package on disk: nothing of it is computed with before its digest is what it has to be.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"
#include "manifest.hpp"
#include "sha256.hpp"
#include "sizes.hpp"

namespace fourstep {

/// A folder that `fourstep build` wrote.
class Package {
 public:
  /// Opens a folder and checks its manifest; throws Error.
  /// @param size of the pictures that it draws, such as 768x512; empty: its first.
  explicit Package(std::filesystem::path folder, const std::string& size = "")
      : folder_(std::move(folder)) {
    namespace fs = std::filesystem;
    std::error_code failed;
    if (!fs::is_directory(folder_, failed))
      throw input_error(folder_.string() +
                        ": no such folder; name a package that fourstep build wrote");
    const fs::path file = folder_ / "manifest.json", digest = folder_ / "manifest.sha256";
    if (!fs::is_regular_file(file, failed))
      throw input_error(folder_.string() + ": not a package (no manifest.json)");
    const std::string text = read_whole(file, most_manifest_bytes);
    Sha256 hash;
    hash.update(text.data(), text.size());
    const bool has_digest = fs::exists(digest, failed);
    if (has_digest && read_whole(digest, most_manifest_bytes) != hash.hex() + "  manifest.json\n")
      throw check_failed(file.string() +
                         ": damaged: it is not what manifest.sha256 says; copy the "
                         "package again");
    const Manifest whole = parse_manifest(text, file.string());
    sizes_ = sizes_of(whole);
    manifest_ = manifest_at(whole, size);
    if (!has_digest) throw check_failed(digest.string() + ": is missing; copy the package again");
    for (const File& entry : manifest_.files) static_cast<void>(place_of(entry.path));
    for (const Graph& graph : manifest_.graphs)
      for (const File& entry : graph.files) static_cast<void>(place_of(entry.path));
  }

  /// That of the size that is drawn.
  [[nodiscard]] const Manifest& manifest() const { return manifest_; }
  /// Every size that the package has, the first one first.
  [[nodiscard]] const std::vector<std::string>& sizes() const { return sizes_; }
  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }

  /// The file behind a path of the manifest; throws Error for a link that leaves the package.
  /// In a cache of a hub, links may lead to the blobs of the same repository.
  [[nodiscard]] std::filesystem::path place_of(const std::string& path) const {
    namespace fs = std::filesystem;
    const fs::path file = folder_ / fs::u8path(path);
    std::error_code failed;
    const fs::path home = fs::canonical(folder_, failed), real = fs::weakly_canonical(file, failed);
    if (failed)
      throw check_failed(file.string() + ": a link that leads nowhere; copy the package again");
    if (!is_inside(real, home) && !is_blob(real, home))
      throw check_failed(file.string() + ": a link that leaves the package, to " + real.string() +
                         "; copy the package with its files");
    return file;
  }

  /// What is in a file beside the graphs, as its digest says; throws Error.
  [[nodiscard]] std::string read(const std::string& path) const {
    const File* entry = manifest_.file(path);
    if (entry == nullptr) throw input_error(folder_.string() + ": the package has no file " + path);
    const std::filesystem::path file = place_of(path);
    check_size(file, *entry);
    std::string content = read_whole(file, entry->bytes);
    Sha256 hash;
    hash.update(content.data(), content.size());
    if (hash.hex() != entry->sha256) throw damaged(file);
    return content;
  }

  /// Compares a file with its size and digest; throws Error naming it.
  void check(const File& entry) const {
    const std::filesystem::path file = place_of(entry.path);
    check_size(file, entry);
    std::ifstream stream(file, std::ios::binary);
    std::vector<char> buffer(std::size_t{1} << 20U);
    Sha256 hash;
    while (stream) {
      stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
      hash.update(buffer.data(), static_cast<std::size_t>(stream.gcount()));
    }
    if (!stream.eof()) throw unreadable(file);
    if (hash.hex() != entry.sha256) throw damaged(file);
  }

  /// Compares a file's size with what the manifest says; throws Error naming it.
  static void check_size(const std::filesystem::path& file, const File& entry) {
    std::error_code failed;
    const std::uintmax_t size = std::filesystem::file_size(file, failed);
    if (failed) throw unreadable(file);
    if (size != entry.bytes)
      throw check_failed(file.string() + ": damaged: " + std::to_string(size) +
                         " bytes where the manifest says " + std::to_string(entry.bytes) +
                         "; copy or build the package again");
  }

 private:
  static constexpr std::uintmax_t most_manifest_bytes = 1 << 26;

  static Error unreadable(const std::filesystem::path& file) {
    return check_failed(file.string() + ": cannot be read; copy the package again");
  }

  static Error damaged(const std::filesystem::path& file) {
    return check_failed(file.string() +
                        ": damaged: SHA-256 differs; copy or build the package again");
  }

  static bool is_inside(const std::filesystem::path& file, const std::filesystem::path& folder) {
    const auto [left, right] =
        std::mismatch(folder.begin(), folder.end(), file.begin(), file.end());
    static_cast<void>(right);
    return left == folder.end();
  }

  /// Whether a file is among the blobs of the hub's repository that a folder is a snapshot of.
  static bool is_blob(const std::filesystem::path& file, const std::filesystem::path& folder) {
    for (std::filesystem::path at = folder; at.has_relative_path(); at = at.parent_path()) {
      const std::filesystem::path repository = at.parent_path().parent_path();
      if (at.parent_path().filename() == "snapshots" &&
          repository.filename().string().rfind("models--", 0) == 0 &&
          is_inside(file, repository / "blobs"))
        return true;
    }
    return false;
  }

  static std::string read_whole(const std::filesystem::path& file, std::uintmax_t most_bytes) {
    std::ifstream stream(file, std::ios::binary);
    std::error_code failed;
    const std::uintmax_t size = std::filesystem::file_size(file, failed);
    if (failed || !stream) throw unreadable(file);
    if (size > most_bytes)
      throw check_failed(file.string() + ": damaged: more than " +
                         std::to_string(most_bytes >> 20U) + " MiB; copy it again");
    std::string content(static_cast<std::size_t>(size), '\0');
    stream.read(content.data(), static_cast<std::streamsize>(size));
    if (stream.gcount() != static_cast<std::streamsize>(size)) throw unreadable(file);
    return content;
  }

  std::filesystem::path folder_;
  Manifest manifest_;
  std::vector<std::string> sizes_;
};

}  // namespace fourstep
