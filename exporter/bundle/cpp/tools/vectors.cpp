// Runs a package's conformance vectors: fourstep-vectors PACKAGE
// Prints a table; exits with 1 when anything differs, with 2 when it cannot be compared.
#include <fourstep.h>

#include <cstdio>

namespace {

void show(const fourstep_comparison* row, void* /*user*/) {
  std::printf("%-28s %6zu %7zu  %s\n", row->what, row->compared, row->differ, row->worst);
}

}  // namespace

int main(int count, char** given) {
  if (count != 2) {
    std::fputs("fourstep-vectors PACKAGE\n", stderr);
    return 2;
  }
  char error[2000];
  fourstep_player* player = fourstep_open(given[1], nullptr, 1, 0, error, sizeof error);
  int32_t status = FOURSTEP_INPUT;
  if (player != nullptr) {
    std::printf("%-28s %6s %7s  %s\n", "compared", "count", "differ", "worst");
    status = fourstep_compare(player, show, nullptr, error, sizeof error);
    fourstep_free(player);
  }
  if (status == FOURSTEP_OK) {
    std::puts("ok");
    return 0;
  }
  std::fprintf(stderr, "fourstep-vectors: %s\n", error);
  return player != nullptr && status == FOURSTEP_CHECK_FAILED ? 1 : 2;
}
