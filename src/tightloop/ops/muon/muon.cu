#include <algorithm>
#include <cmath>

#include "tightloop/ops/common/cuda_rows.cuh"
#include "tightloop/ops/muon/muon_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = static_cast<int>(kMuonShare);
constexpr int kPack = 4;              // elements a thread moves at once
constexpr int64_t kMostBlocks{4096};  // beyond, a thread takes several packs

__device__ void look_ahead(float& momentum, float& u, float g, float mu, float rest) {
  const float part = rest * g;
  momentum = mu * momentum + part;
  u = part + mu * momentum;
}

/// u may be g: a thread reads its elements before it writes them.
template <int N>
__global__ void __launch_bounds__(kThreads)
    momentum_all(const float* g, const float* hyper, float* momentum, float* u, int64_t count) {
  const float mu = hyper[1], rest = 1.0f - mu;
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t packs = count / N;
  for (int64_t i = thread; i < packs; i += gridDim.x * static_cast<int64_t>(kThreads)) {
    auto pack = reinterpret_cast<const Pack<float, N>*>(g)[i];
    auto moved = reinterpret_cast<const Pack<float, N>*>(momentum)[i];
#pragma unroll
    for (int j = 0; j < N; ++j) look_ahead(moved.at[j], pack.at[j], pack.at[j], mu, rest);
    reinterpret_cast<Pack<float, N>*>(momentum)[i] = moved;
    reinterpret_cast<Pack<float, N>*>(u)[i] = pack;
  }
  const int64_t i = packs * N + thread;
  if (i < count) look_ahead(momentum[i], u[i], g[i], mu, rest);
}

/// squares[slice][c] = the sum over the slice's rows of x[r,c]^2.
__global__ void __launch_bounds__(kThreads)
    column_squares(const float* x, double* squares, int64_t rows, int64_t cols) {
  const int64_t c = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (c >= cols) return;
  const int64_t slice = blockIdx.y;
  double sum = 0.0;
  for (int64_t r = slice * rows / kMuonSlices; r < (slice + 1) * rows / kMuonSlices; ++r)
    sum += static_cast<double>(x[r * cols + c] * x[r * cols + c]);
  squares[slice * cols + c] = sum;
}

/// S and the weight of every group, and each block's share of the squares before and after them.
__global__ void __launch_bounds__(kThreads) second_moments(const double* squares,
                                                           const float* hyper,
                                                           float* second,
                                                           float* weight,
                                                           double* shares,
                                                           int64_t groups,
                                                           int64_t slices,
                                                           int64_t reduced) {
  const int64_t j = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  double sum = 0.0, after = 0.0;
  if (j < groups) {
    for (int64_t slice = 0; slice < slices; ++slice) sum += squares[slice * groups + j];
    const double variance = sum / static_cast<double>(reduced);
    const auto old = static_cast<double>(second[j]);
    const auto next =
        static_cast<float>(old + (1.0 - static_cast<double>(hyper[2])) * (variance - old));
    second[j] = next;
    const double w = 1.0 / sqrt(std::max(static_cast<double>(next), 1e-10));
    weight[j] = static_cast<float>(w);
    after = sum * w * w;
  }
  sum = block_sum_f64<kThreads>(sum);
  after = block_sum_f64<kThreads>(after);
  if (threadIdx.x == 0) {
    shares[2 * blockIdx.x] = sum;
    shares[2 * blockIdx.x + 1] = after;
  }
}

/// What restores the Frobenius norm, from all blocks' shares; every warp finds it for itself.
__device__ double norm_factor(const double* shares, int64_t blocks) {
  double before = 0.0, after = 0.0;
  for (int64_t i = threadIdx.x % kWarp; i < blocks; i += kWarp) {
    before += shares[2 * i];
    after += shares[2 * i + 1];
  }
  return sqrt(warp_sum_f64(before)) / std::max(sqrt(warp_sum_f64(after)), 1e-10);
}

/// p -= step + decay * p where step * p >= 0, by their signs: the product may be too small.
__device__ float updated(float p, float step, float decay) {
  const bool decays = (step >= 0.0f && p >= 0.0f) || (step <= 0.0f && p <= 0.0f);
  return p - (step + (decays ? decay * p : 0.0f));
}

template <int N, bool AlongRows>
__global__ void __launch_bounds__(kRowThreads) update_all(const float* x,
                                                          const float* hyper,
                                                          const float* weight,
                                                          const double* shares,
                                                          float* p,
                                                          int64_t rows,
                                                          int64_t cols,
                                                          int64_t share_blocks,
                                                          double shape_factor) {
  const double rate = static_cast<double>(hyper[0]) * shape_factor;
  const auto decay = static_cast<float>(rate * static_cast<double>(hyper[3]));
  const auto scale = static_cast<float>(rate * norm_factor(shares, share_blocks));
  for_row_piece<N>(rows, cols, [=](int64_t row, int64_t col) {
    const int64_t at = row * cols + col;
    const auto xs = *reinterpret_cast<const Pack<float, N>*>(x + at);
    auto ps = *reinterpret_cast<const Pack<float, N>*>(p + at);
    const float row_factor = AlongRows ? scale * weight[row] : 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float factor = AlongRows ? row_factor : scale * weight[col + j];
      ps.at[j] = updated(ps.at[j], xs.at[j] * factor, decay);
    }
    *reinterpret_cast<Pack<float, N>*>(p + at) = ps;
  });
}

}  // namespace

void muon_momentum_cuda(const Exec& exec, const MuonMomentum& a) {
  const int64_t count = a.u.elems();
  if (count == 0) return;
  const float *g = a.g.as<float>(), *hyper = a.hyper.as<float>();
  float *momentum = a.momentum.as<float>(), *u = a.u.as<float>();
  const bool packed = aligned_for_packs(g, momentum, u);
  const auto blocks = static_cast<unsigned>(
      std::min<int64_t>(kMostBlocks, grid_for(count, kThreads * (packed ? kPack : 1))));
  const auto kernel = packed ? momentum_all<kPack> : momentum_all<1>;
  kernel<<<blocks, kThreads, 0, cuda_stream(exec)>>>(g, hyper, momentum, u, count);
  cuda::check_launch("muon_momentum");
}

void muon_update_cuda(const Exec& exec, const MuonUpdate& a) {
  const int64_t m = a.p.shape()[0], n = a.p.shape()[1];
  if (m == 0 || n == 0) return;
  const bool along_rows = m >= n;
  const int64_t groups = along_rows ? m : n, reduced = along_rows ? n : m;
  const int64_t slices = along_rows ? 1 : kMuonSlices;
  const int64_t share_blocks = muon_shares(groups);
  auto* squares = reinterpret_cast<double*>(exec.scratch.data());
  auto* shares = squares + slices * groups;
  auto* weight = reinterpret_cast<float*>(shares + 2 * share_blocks);
  const float *hyper = a.hyper.as<float>(), *x = a.x.as<float>();
  float* p = a.p.as<float>();

  if (along_rows) {
    row_squares_cuda(exec, x, m, n, squares);
  } else {
    const dim3 grid(grid_for(n, kThreads), static_cast<unsigned>(kMuonSlices));
    column_squares<<<grid, kThreads, 0, cuda_stream(exec)>>>(x, squares, m, n);
  }
  second_moments<<<static_cast<unsigned>(share_blocks), kThreads, 0, cuda_stream(exec)>>>(
      squares, hyper, a.second_moment.as<float>(), weight, shares, groups, slices, reduced);
  const bool packed = n % kRowPack == 0 && aligned_for_packs(x, p);
  const auto kernel = packed
                          ? (along_rows ? update_all<kRowPack, true> : update_all<kRowPack, false>)
                          : (along_rows ? update_all<1, true> : update_all<1, false>);
  const double shape_factor =
      std::sqrt(std::max(1.0, static_cast<double>(m) / static_cast<double>(n)));
  kernel<<<row_piece_blocks(m, n), kRowThreads, 0, cuda_stream(exec)>>>(
      x, hyper, weight, shares, p, m, n, share_blocks, shape_factor);
  cuda::check_launch("muon_update");
}

}  // namespace tightloop
