#include <algorithm>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/scaled_add/scaled_add_kernels.h"

namespace tightloop {
namespace {

constexpr int64_t kGrain = 16384;
constexpr int64_t kChunk = 1024;  // elements that stay in L1 while they are summed and scaled

TL_CLONES void add_scaled(const float* x, const float* z, float* y, int64_t n, float fa, float fb) {
  TL_IVDEP
  for (int64_t i = 0; i < n; ++i) y[i] = fa * x[i] + fb * z[i];
}

TL_CLONES void scale_both(const float* dy, float* dx, float* dz, int64_t n, float fa, float fb) {
  TL_IVDEP
  for (int64_t i = 0; i < n; ++i) {
    const float d = dy[i];
    dx[i] = fa * d;
    dz[i] = fb * d;
  }
}

TL_CLONES double dot(const float* x, const float* y, int64_t n) {
  return dot_row_f64(x, y, n);
}

}  // namespace

void scaled_add_fwd_cpu(const ScaledAddFwd& s) {
  const float fa = factor_of<float>(s.ca, s.a, s.ia), fb = factor_of<float>(s.cb, s.b, s.ib);
  const float *x = s.x.as<float>(), *z = s.z.as<float>();
  float* y = s.y.as<float>();
  parallel_for(s.x.elems(), kGrain, [&](int64_t begin, int64_t end) {
    add_scaled(x + begin, z + begin, y + begin, end - begin, fa, fb);
  });
}

void scaled_add_bwd_cpu(const ScaledAddBwd& s, double* scratch) {
  const int64_t n = s.dy.elems();
  const float fa = factor_of<float>(s.ca, s.a, s.ia), fb = factor_of<float>(s.cb, s.b, s.ib);
  const float* dy = s.dy.as<float>();
  float *dx = s.dx.as<float>(), *dz = s.dz.as<float>();
  const float* x = s.da.empty() ? nullptr : s.x.as<float>();
  const float* z = s.db.empty() ? nullptr : s.z.as<float>();
  if (x == nullptr && z == nullptr) {
    parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
      scale_both(dy + begin, dx + begin, dz + begin, end - begin, fa, fb);
    });
    return;
  }

  double *sum_x = scratch, *sum_z = scratch + kScaledAddBlocks;
  std::fill(scratch, scratch + 2 * kScaledAddBlocks, 0.0);
  parallel_parts(n, kScaledAddBlocks, [&](int64_t begin, int64_t end, int part) {
    for (int64_t i = begin; i < end; i += kChunk) {
      const int64_t count = std::min(kChunk, end - i);
      // The sums come first: dx may be dy.
      if (x != nullptr) sum_x[part] += dot(dy + i, x + i, count);
      if (z != nullptr) sum_z[part] += dot(dy + i, z + i, count);
      scale_both(dy + i, dx + i, dz + i, count, fa, fb);
    }
  });
  const auto total = [](const double* sums) {
    double t = 0.0;
    for (int64_t part = 0; part < kScaledAddBlocks; ++part) t += sums[part];
    return t;
  };
  if (x != nullptr) s.da.as<float>()[s.ia] += static_cast<float>(s.ca * total(sum_x));
  if (z != nullptr) s.db.as<float>()[s.ib] += static_cast<float>(s.cb * total(sum_z));
}

}  // namespace tightloop
