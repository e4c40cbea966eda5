#include <algorithm>
#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/residual_rmsnorm/residual_rmsnorm_kernels.h"

namespace tightloop {
namespace {

// A row stays in L1 between the loops over it, so memory sees it once.

struct FwdRows {
  const float *x, *y, *u, *z;  // all but x may be null
  float *s, *t, *h, *rstd;     // s and t may be null
  float fa, fb, eps, scale;
};

TL_CLONES void fwd_rows(const FwdRows& q, int64_t begin, int64_t end, int64_t cols) {
  const float fa = q.fa, fb = q.fb;
  for (int64_t r = begin; r < end; ++r) {
    const float* x = q.x + r * cols;
    float* h = q.h + r * cols;
    const float* t = x;
    if (q.y != nullptr || q.z != nullptr) {
      // h holds a t that is not stored until it is scaled.
      float* to = q.t == nullptr ? h : q.t + r * cols;
      const float* y = q.y == nullptr ? nullptr : q.y + r * cols;
      const float* z = q.z == nullptr ? nullptr : q.z + r * cols;
      if (y == nullptr) {
        TL_IVDEP
        for (int64_t c = 0; c < cols; ++c) to[c] = fa * x[c] + fb * z[c];
      } else {
        // The sums wait in s where it is stored; x, y or u may lie there, z in t.
        float* s = q.s == nullptr ? to : q.s + r * cols;
        if (q.u == nullptr) {
          TL_IVDEP
          for (int64_t c = 0; c < cols; ++c) s[c] = x[c] + y[c];
        } else {
          const float* u = q.u + r * cols;
          TL_IVDEP
          for (int64_t c = 0; c < cols; ++c) s[c] = x[c] + y[c] + u[c];
        }
        if (z != nullptr) {
          TL_IVDEP
          for (int64_t c = 0; c < cols; ++c) to[c] = fa * s[c] + fb * z[c];
        }
      }
      t = to;
    }
    const float mean = dot_row(t, t, cols) / static_cast<float>(cols);
    q.rstd[r] = 1.0f / std::sqrt(mean + q.eps);
    const float factor = q.rstd[r] * q.scale;
    TL_IVDEP
    for (int64_t c = 0; c < cols; ++c) h[c] = t[c] * factor;
  }
}

struct BwdRows {
  const float *dh, *h, *rstd, *dt_in, *s, *z, *dz_in;  // dt_in, s, z, dz_in may be null
  float *ds, *dz;                                      // dz may be null
  float fa, fb, scale;
};

/// Adds to sum_s and sum_z where s and z are given.
TL_CLONES void bwd_rows(
    const BwdRows& q, int64_t begin, int64_t end, int64_t cols, double* sum_s, double* sum_z) {
  const float fa = q.fa, fb = q.fb;
  for (int64_t r = begin; r < end; ++r) {
    const float *dh = q.dh + r * cols, *h = q.h + r * cols;
    float* ds = q.ds + r * cols;
    const float mean = dot_row(dh, h, cols) / static_cast<float>(cols);
    const float a = q.rstd[r] * q.scale, b = q.rstd[r] * mean / q.scale;
    // ds holds dt until both sums are done.
    if (q.dt_in == nullptr) {
      TL_IVDEP
      for (int64_t c = 0; c < cols; ++c) ds[c] = a * dh[c] - b * h[c];
    } else {
      const float* dt_in = q.dt_in + r * cols;
      TL_IVDEP
      for (int64_t c = 0; c < cols; ++c) ds[c] = dt_in[c] + (a * dh[c] - b * h[c]);
    }
    if (q.dz == nullptr) continue;
    if (q.s != nullptr) *sum_s += dot_row_f64(ds, q.s + r * cols, cols);
    if (q.z != nullptr) *sum_z += dot_row_f64(ds, q.z + r * cols, cols);
    float* dz = q.dz + r * cols;
    if (q.dz_in == nullptr) {
      TL_IVDEP
      for (int64_t c = 0; c < cols; ++c) dz[c] = fb * ds[c];
    } else {
      const float* dz_in = q.dz_in + r * cols;
      TL_IVDEP
      for (int64_t c = 0; c < cols; ++c) dz[c] = dz_in[c] + fb * ds[c];
    }
    TL_IVDEP
    for (int64_t c = 0; c < cols; ++c) ds[c] *= fa;
  }
}

const float* given(const ConstTensorView& view) {
  return view.empty() ? nullptr : view.as<float>();
}
float* given(const TensorView& view) {
  return view.empty() ? nullptr : view.as<float>();
}

}  // namespace

void residual_rmsnorm_fwd_cpu(const ResidualRmsnormFwd& q) {
  const int64_t cols = q.x.shape().cols();
  const FwdRows rows{.x = given(q.x),
                     .y = given(q.y),
                     .u = given(q.u),
                     .z = given(q.z),
                     .s = given(q.s),
                     .t = given(q.t),
                     .h = given(q.h),
                     .rstd = given(q.rstd),
                     .fa = factor_of<float>(q.ca, q.a, q.ia),
                     .fb = factor_of<float>(q.cb, q.b, q.ib),
                     .eps = static_cast<float>(q.eps),
                     .scale = static_cast<float>(q.scale)};
  parallel_for(q.x.shape().rows(), grain_rows(cols),
               [&](int64_t begin, int64_t end) { fwd_rows(rows, begin, end, cols); });
}

void residual_rmsnorm_bwd_cpu(const ResidualRmsnormBwd& q, double* scratch) {
  const int64_t cols = q.dh.shape().cols(), count = q.dh.shape().rows();
  const BwdRows rows{.dh = given(q.dh),
                     .h = given(q.h),
                     .rstd = given(q.rstd),
                     .dt_in = given(q.dt_in),
                     .s = q.da.empty() ? nullptr : given(q.s),
                     .z = q.db.empty() ? nullptr : given(q.z),
                     .dz_in = given(q.dz_in),
                     .ds = given(q.ds),
                     .dz = given(q.dz),
                     .fa = factor_of<float>(q.ca, q.a, q.ia),
                     .fb = factor_of<float>(q.cb, q.b, q.ib),
                     .scale = static_cast<float>(q.scale)};
  if (rows.s == nullptr && rows.z == nullptr) {
    parallel_for(count, grain_rows(cols), [&](int64_t begin, int64_t end) {
      bwd_rows(rows, begin, end, cols, nullptr, nullptr);
    });
    return;
  }
  double *sum_s = scratch, *sum_z = scratch + kResidualRmsnormBlocks;
  std::fill(scratch, scratch + 2 * kResidualRmsnormBlocks, 0.0);
  parallel_parts(count, kResidualRmsnormBlocks, [&](int64_t begin, int64_t end, int part) {
    bwd_rows(rows, begin, end, cols, sum_s + part, sum_z + part);
  });
  const auto total = [](const double* sums) {
    double t = 0.0;
    for (int64_t part = 0; part < kResidualRmsnormBlocks; ++part) t += sums[part];
    return t;
  };
  if (!q.da.empty()) q.da.as<float>()[q.ia] += static_cast<float>(q.ca * total(sum_s));
  if (!q.db.empty()) q.db.as<float>()[q.ib] += static_cast<float>(q.cb * total(sum_z));
}

}  // namespace tightloop
