// Runs a package's conformance vectors, of every size: fourstep-vectors PACKAGE
// Prints a table; exits with 1 when anything differs, with 2 when it cannot be compared.
#include <fourstep.h>

#include <cstdio>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace {

void show(const fourstep_comparison* row, void* /*user*/) {
  std::printf("%-28s %6zu %7zu  %s\n", row->what, row->compared, row->differ, row->worst);
}

std::vector<std::string> sizes_of(const fourstep_player* player) {
  fourstep_info info;
  fourstep_describe(player, &info);
  std::istringstream words(info.sizes);
  return {std::istream_iterator<std::string>(words), {}};
}

int failed(const char* error, int code) {
  std::fprintf(stderr, "fourstep-vectors: %s\n", error);
  return code;
}

}  // namespace

int main(int count, char** given) {
  if (count != 2) {
    std::fputs("fourstep-vectors PACKAGE\n", stderr);
    return 2;
  }
  char error[2000];
  std::vector<std::string> sizes = {""};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const char* size = i == 0 ? nullptr : sizes[i].c_str();
    fourstep_player* player = fourstep_open_at(given[1], size, nullptr, 1, 0, error, sizeof error);
    if (player == nullptr) return failed(error, 2);
    if (i == 0) sizes = sizes_of(player);
    if (sizes.size() > 1) std::printf("%s\n", sizes[i].c_str());
    std::printf("%-28s %6s %7s  %s\n", "compared", "count", "differ", "worst");
    const int32_t status = fourstep_compare(player, show, nullptr, error, sizeof error);
    fourstep_free(player);
    if (status != FOURSTEP_OK) return failed(error, status == FOURSTEP_CHECK_FAILED ? 1 : 2);
  }
  std::puts("ok");
  return 0;
}
