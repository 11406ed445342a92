// Runs a package's conformance vectors: fourstep-vectors PACKAGE
// Prints a table; exits with 1 when anything differs, with 2 when it cannot be compared.
#include <exception>
#include <fourstep/fourstep.hpp>
#include <fourstep/vectors.hpp>
#include <iomanip>
#include <iostream>

int main(int count, char** given) {
  if (count != 2) {
    std::cerr << "fourstep-vectors PACKAGE\n";
    return 2;
  }
  try {
    fourstep::Package package(given[1]);
    const auto engine = fourstep::make_engine(package.manifest().backend, {"", true});
    fourstep::Player player(std::move(package), engine);
    bool all_same = true;
    std::cout << std::left << std::setw(28) << "compared" << "count  differ  worst\n";
    for (const fourstep::Comparison& row : fourstep::Vectors(player).run()) {
      std::cout << std::left << std::setw(28) << row.what << std::right << std::setw(5)
                << row.compared << std::setw(8) << row.differ << "  " << row.worst << '\n';
      all_same = all_same && row.differ == 0;
    }
    std::cout << (all_same ? "ok\n" : "FAILED\n");
    return all_same ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "fourstep-vectors: " << error.what() << '\n';
    return 2;
  }
}
