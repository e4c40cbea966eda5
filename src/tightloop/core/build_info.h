#pragma once

#include <string_view>

namespace tightloop {

/// How this binary was made: what a run record must hold so that a figure can be traced to code.
struct BuildInfo {
  std::string_view version;  // of the project, "0.1.0"
  std::string_view commit;   // 40 hex digits, "-dirty" appended when files differed; or "unknown"
  std::string_view diff_sha256;  // of `git diff HEAD`, 64 hex digits; empty when clean or unknown
  std::string_view compiler;     // "GNU 12.2.0"
  std::string_view flags;        // compiler options, separated by blanks
  std::string_view build_type;   // "Release"
  std::string_view preset;       // CMake preset, "none" without one
  std::string_view system;       // "Linux x86_64"
};

/// The record of this binary. Its text is generated at build time into a library of its own,
/// `tl_build_info`: a new commit recompiles one small file, and only what names it links again.
const BuildInfo& build_info();

}  // namespace tightloop
