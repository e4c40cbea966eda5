#include <algorithm>
#include <cmath>
#include <vector>

#include "tightloop/ops/attention/attention_kernels.h"

namespace tightloop {
namespace {

double dot(const double* x, const double* y, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; ++i) total += x[i] * y[i];
  return total;
}

/// Calls fn(b, h, hkv, i, first): query i of head h sees the keys first..i of head hkv.
template <typename Fn>
void for_each_query(const Shape& q, const Shape& k, int64_t window, Fn&& fn) {
  for (int64_t b = 0; b < q[0]; ++b) {
    for (int64_t h = 0; h < q[2]; ++h) {
      for (int64_t i = 0; i < q[1]; ++i)
        fn(b, h, h / (q[2] / k[2]), i, i > window ? i - window : int64_t{0});
    }
  }
}

}  // namespace

void attention_fwd_ref(const AttentionFwd& a) {
  const Shape &q = a.q.shape(), &k = a.k.shape();
  const int64_t tokens = q[1], heads = q[2], kv_heads = k[2], dim = q[3];
  std::vector<double> p(static_cast<size_t>(tokens));
  for_each_query(q, k, a.window, [&](int64_t b, int64_t h, int64_t g, int64_t i, int64_t first) {
    const int64_t row = ((b * tokens + i) * heads + h) * dim;
    const auto key = [&](const ConstTensorView& t, int64_t j) {
      return t.as<double>() + ((b * tokens + j) * kv_heads + g) * dim;
    };
    double largest = -HUGE_VAL, total = 0.0;
    for (int64_t j = first; j <= i; ++j) {
      p[static_cast<size_t>(j)] = a.softmax_scale * dot(a.q.as<double>() + row, key(a.k, j), dim);
      largest = std::max(largest, p[static_cast<size_t>(j)]);
    }
    for (int64_t j = first; j <= i; ++j) total += std::exp(p[static_cast<size_t>(j)] - largest);
    const double lse = largest + std::log(total);
    a.lse.as<double>()[(b * heads + h) * tokens + i] = lse;
    double* o = a.o.as<double>() + row;
    std::fill(o, o + dim, 0.0);
    for (int64_t j = first; j <= i; ++j) {
      const double weight = std::exp(p[static_cast<size_t>(j)] - lse);
      for (int64_t d = 0; d < dim; ++d) o[d] += weight * key(a.v, j)[d];
    }
  });
}

void attention_bwd_ref(const AttentionBwd& a) {
  const Shape &q = a.q.shape(), &k = a.k.shape();
  const int64_t tokens = q[1], heads = q[2], kv_heads = k[2], dim = q[3];
  for (const TensorView& t : {a.dq, a.dk, a.dv})
    std::fill(t.as<double>(), t.as<double>() + t.elems(), 0.0);
  for_each_query(q, k, a.window, [&](int64_t b, int64_t h, int64_t g, int64_t i, int64_t first) {
    const int64_t row = ((b * tokens + i) * heads + h) * dim;
    const double *qi = a.q.as<double>() + row, *grad = a.grad_o.as<double>() + row;
    const double delta = dot(grad, a.o.as<double>() + row, dim);
    const double lse = a.lse.as<double>()[(b * heads + h) * tokens + i];
    for (int64_t j = first; j <= i; ++j) {
      const int64_t key = ((b * tokens + j) * kv_heads + g) * dim;
      const double p = std::exp(a.softmax_scale * dot(qi, a.k.as<double>() + key, dim) - lse);
      const double ds = a.softmax_scale * p * (dot(grad, a.v.as<double>() + key, dim) - delta);
      for (int64_t d = 0; d < dim; ++d) {
        a.dq.as<double>()[row + d] += ds * a.k.as<double>()[key + d];
        a.dk.as<double>()[key + d] += ds * qi[d];
        a.dv.as<double>()[key + d] += p * grad[d];
      }
    }
  });
}

}  // namespace tightloop
