#pragma once

#include <filesystem>
#include <stdlib.h>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"

namespace tightloop {

/// A fresh folder for one test, removed with everything in it. For tests only.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tightloop-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  std::string path_;
};

/// Runs `call` and returns the Error it throws; a test failure when it throws none.
template <typename Call>
Error error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "expected an Error, none was thrown";
  return Error(ErrorKind::internal, "no error");
}

/// Checks kind and a part of the message of the Error that `call` throws.
template <typename Call>
void expect_error(ErrorKind kind, std::string_view part, Call&& call) {
  const Error error = error_of(call);
  EXPECT_EQ(name_of(error.kind()), name_of(kind)) << error.what();
  EXPECT_NE(error.message().find(part), std::string::npos)
      << "message: " << error.what() << "\nexpected in it: " << part;
}

}  // namespace tightloop
