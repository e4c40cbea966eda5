#include <algorithm>
#include <cmath>

#include "tightloop/ops/common/gemm.h"

namespace tightloop {

void gemm_ref(const GemmRef& g) {
  for (int64_t i = 0; i < g.M; ++i) {
    for (int64_t j = 0; j < g.N; ++j) {
      double v = 0;
      for (int64_t k = 0; k < g.K; ++k) {
        const double x = g.form == GemmForm::tn ? g.a[k * g.lda + i] : g.a[i * g.lda + k];
        const double y = g.form == GemmForm::nt ? g.b[j * g.ldb + k] : g.b[k * g.ldb + j];
        v += x * y;
      }
      double& c = g.c[i * g.ldc + j];
      switch (g.epilogue) {
        case GemmEpilogue::none:
          break;
        case GemmEpilogue::relu2:
          v = v > 0 ? v * v : 0;
          break;
        case GemmEpilogue::relu2_bwd:
          v *= 2 * std::sqrt(g.e[i * g.lde + j]);
          break;
        case GemmEpilogue::add:
          v += g.e[i * g.lde + j];
          break;
      }
      c = g.accumulate ? c + v : v;
    }
  }
}

}  // namespace tightloop
