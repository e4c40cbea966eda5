#pragma once

#include <cstdint>
#include <string>

#include "tightloop/io/host_info.h"
#include "tightloop/ops/common/gemm_choices.h"

namespace tightloop {

/// What choices of algorithms are good for: "NVIDIA H200, cuBLASLt 130100".
std::string gemm_machine();

/// The choices as a file's text, and back. The text carries its own checksum.
std::string gemm_cache_text(const std::string& machine, const GemmChoices& choices);
/// Error{data} naming `where` when the text is damaged or of another machine.
GemmChoices parse_gemm_cache(const std::string& text,
                             const std::string& machine,
                             const std::string& where);

/// The choices for products on this GPU, kept from process to process below `<folder>/gemm`.
class GemmCache {
 public:
  /// Adopts what is there, and has products without a choice timed from now on. A damaged or
  /// foreign file is a warning, and replaced by the next save.
  explicit GemmCache(const std::string& folder = home_folder());
  /// Writes the choices when some were made since. A file that cannot be written is a warning.
  void save_if_new();
  const std::string& path() const { return path_; }

 private:
  std::string path_, machine_;
  int64_t saved_ = 0;  // of gemm_choices_timed()
};

}  // namespace tightloop
