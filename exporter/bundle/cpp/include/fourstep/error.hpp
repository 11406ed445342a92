/// @file
/// What goes wrong, in one line that says what, where, and what to do next.
#pragma once

#include <stdexcept>
#include <string>

namespace fourstep {

/// An error whose message is complete and fit for a user.
class Error : public std::runtime_error {
 public:
  /// Whose turn it is: a check did not pass, the caller's input is at fault, or it asked to stop.
  enum class Kind { check = 1, input = 2, stopped = 3 };

  Error(Kind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}

  [[nodiscard]] Kind kind() const noexcept { return kind_; }

 private:
  Kind kind_;
};

/// Something that was checked is not as it should be: a damaged package, numbers that are none.
inline Error check_failed(const std::string& what) { return {Error::Kind::check, what}; }

/// A request, a path or an option is at fault.
inline Error input_error(const std::string& what) { return {Error::Kind::input, what}; }

}  // namespace fourstep
