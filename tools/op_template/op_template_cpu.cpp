#include "tightloop/core/threads.h"
#include "tightloop/ops/common/simd.h"
#include "tightloop/ops/op_template/op_template_kernels.h"

namespace tightloop {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread takes at least

TL_CLONES void fwd(const float* x, float* y, int64_t n, float scale) {
  for (int64_t i = 0; i < n; ++i) y[i] = scale * x[i] * x[i];
}

TL_CLONES void bwd(const float* dy, const float* x, float* dx, int64_t n, float scale) {
  for (int64_t i = 0; i < n; ++i) dx[i] = 2.0f * scale * x[i] * dy[i];
}

}  // namespace

void op_template_fwd_cpu(const OpTemplateFwd& a) {
  const float* x = a.x.as<float>();
  float* y = a.y.as<float>();
  parallel_for(a.x.elems(), kGrain, [&](int64_t begin, int64_t end) {
    fwd(x + begin, y + begin, end - begin, static_cast<float>(a.scale));
  });
}

void op_template_bwd_cpu(const OpTemplateBwd& a) {
  const float *dy = a.dy.as<float>(), *x = a.x.as<float>();
  float* dx = a.dx.as<float>();
  parallel_for(a.x.elems(), kGrain, [&](int64_t begin, int64_t end) {
    bwd(dy + begin, x + begin, dx + begin, end - begin, static_cast<float>(a.scale));
  });
}

}  // namespace tightloop
