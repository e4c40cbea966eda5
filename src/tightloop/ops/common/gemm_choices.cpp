#include "tightloop/ops/common/gemm_choices.h"

#include <mutex>

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/common/gemm_cuda.h"

namespace tightloop {
namespace {

struct State {
  std::mutex mutex;
  bool timing = false;
  GemmChoices known, used;
  int64_t timed = 0;
  double seconds = 0.0;
};

State& state() {
  static State instance;
  return instance;
}

}  // namespace

int64_t cublaslt_version() {
  int64_t version = 0;
  if (cuda::built()) TL_CUDA_KERNEL(version = gemm_cuda_library_version());
  return version;
}

void time_gemm_choices() {
  const std::lock_guard lock(state().mutex);
  state().timing = true;
}

void adopt_gemm_choices(const GemmChoices& choices, bool used) {
  const std::lock_guard lock(state().mutex);
  for (const auto& [product, algorithm] : choices) {
    state().known[product] = algorithm;
    if (used) state().used[product] = algorithm;
  }
}

GemmChoices known_gemm_choices() {
  const std::lock_guard lock(state().mutex);
  return state().known;
}

GemmChoices used_gemm_choices() {
  const std::lock_guard lock(state().mutex);
  return state().used;
}

int64_t gemm_choices_found() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  int64_t known = 0;  // not a product that was used untimed, for want of memory
  for (const auto& [product, algorithm] : s.used) known += s.known.contains(product) ? 1 : 0;
  return known - s.timed;
}

int64_t gemm_choices_timed() {
  const std::lock_guard lock(state().mutex);
  return state().timed;
}

double gemm_timing_seconds() {
  const std::lock_guard lock(state().mutex);
  return state().seconds;
}

namespace gemm_choices {

bool timing() {
  const std::lock_guard lock(state().mutex);
  return state().timing;
}

std::optional<std::string> find(const std::string& product) {
  const std::lock_guard lock(state().mutex);
  const auto at = state().known.find(product);
  return at == state().known.end() ? std::nullopt : std::optional<std::string>(at->second);
}

void use(const std::string& product, const std::string& algorithm, std::optional<double> seconds) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (!s.timing) return;
  s.used[product] = algorithm;
  if (!seconds) return;
  s.known[product] = algorithm;
  ++s.timed;
  s.seconds += *seconds;
}

}  // namespace gemm_choices

}  // namespace tightloop
