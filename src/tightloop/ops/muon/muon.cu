#include <algorithm>
#include <cmath>

#include "tightloop/ops/common/cuda_rows.cuh"
#include "tightloop/ops/muon/muon_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = static_cast<int>(kMuonShare);
constexpr int kPack = 4;  // elements a thread moves at once
static_assert(kMuonStack <= kMostStacked);

__device__ void look_ahead(float& momentum, float& u, float g, float mu, float rest) {
  const float part = rest * g;
  momentum = mu * momentum + part;
  u = part + mu * momentum;
}

/// The matrices of a call.
struct Momenta {
  const float* g[kMuonStack];
  float *momentum[kMuonStack], *u[kMuonStack];
};

/// u may be g: a thread reads its elements before it writes them.
template <int N>
__global__ void __launch_bounds__(kThreads)
    momentum_all(const __grid_constant__ Momenta of, const float* hyper, int64_t count) {
  const float* g = of.g[blockIdx.y];
  float *momentum = of.momentum[blockIdx.y], *u = of.u[blockIdx.y];
  const float mu = hyper[1], rest = 1.0f - mu;
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t packs = count / N;
  if (thread < packs) {
    auto pack = reinterpret_cast<const Pack<float, N>*>(g)[thread];
    auto moved = reinterpret_cast<const Pack<float, N>*>(momentum)[thread];
#pragma unroll
    for (int j = 0; j < N; ++j) look_ahead(moved.at[j], pack.at[j], pack.at[j], mu, rest);
    reinterpret_cast<Pack<float, N>*>(momentum)[thread] = moved;
    reinterpret_cast<Pack<float, N>*>(u)[thread] = pack;
  }
  const int64_t i = packs * N + thread;
  if (i < count) look_ahead(momentum[i], u[i], g[i], mu, rest);
}

/// squares[matrix][slice][c] = the sum over the slice's rows of x[r,c]^2.
template <int N>
__global__ void __launch_bounds__(kThreads)
    column_squares(const __grid_constant__ OperandRows<const float> x, double* squares) {
  const int64_t c = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * N;
  if (c >= x.cols) return;
  const int64_t slice = blockIdx.y;
  const float* of = x.at[blockIdx.z];
  double sum[N] = {};
#pragma unroll 4
  for (int64_t r = slice * x.rows / kMuonSlices; r < (slice + 1) * x.rows / kMuonSlices; ++r) {
    float values[N];
    load_floats<N>(of + r * x.cols + c, values);
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += static_cast<double>(values[j] * values[j]);
  }
  squares += (blockIdx.z * kMuonSlices + slice) * x.cols + c;
#pragma unroll
  for (int j = 0; j < N; ++j) squares[j] = sum[j];
}

/// The second moments of all matrices, and the parts of the scratch: for each matrix slices x
/// groups squares, groups weights, two doubles for each of share_blocks blocks.
struct Moments {
  float* second[kMuonStack];
  double* squares;
  double* shares;
  float* weight;
  int64_t groups, slices, reduced, share_blocks;
};

/// S and the weight of every group, and each block's share of the squares before and after them.
__global__ void __launch_bounds__(kThreads)
    second_moments(const __grid_constant__ Moments of, const float* hyper) {
  const int64_t matrix = blockIdx.y;
  const int64_t j = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  double sum = 0.0, after = 0.0;
  if (j < of.groups) {
    const double* squares = of.squares + matrix * of.slices * of.groups;
    float* second = of.second[matrix];
    for (int64_t slice = 0; slice < of.slices; ++slice) sum += squares[slice * of.groups + j];
    const double variance = sum / static_cast<double>(of.reduced);
    const auto old = static_cast<double>(second[j]);
    const auto next =
        static_cast<float>(old + (1.0 - static_cast<double>(hyper[2])) * (variance - old));
    second[j] = next;
    const double w = 1.0 / sqrt(std::max(static_cast<double>(next), 1e-10));
    of.weight[matrix * of.groups + j] = static_cast<float>(w);
    after = sum * w * w;
  }
  sum = block_sum_f64<kThreads>(sum);
  after = block_sum_f64<kThreads>(after);
  if (threadIdx.x == 0) {
    double* shares = of.shares + 2 * (matrix * of.share_blocks + blockIdx.x);
    shares[0] = sum;
    shares[1] = after;
  }
}

/// What restores the Frobenius norm, from all blocks' shares. The whole warp must call it.
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
__global__ void __launch_bounds__(kRowThreads)
    update_all(const __grid_constant__ OperandRows<const float> xs_of,
               const __grid_constant__ OperandRows<float> ps_of,
               const __grid_constant__ Moments of,
               const float* hyper,
               double shape_factor) {
  __shared__ float shared_scale;
  // Backwards: the sums of squares went forwards over x.
  const RowPiece<N> piece(xs_of.rows, xs_of.cols, Pass::backwards);
  const int64_t matrix = piece.matrix;
  const float* x = xs_of.row(piece.matrix, piece.row) + piece.col;
  float* p = ps_of.row(piece.matrix, piece.row) + piece.col;
  // Under these loads the first warp finds the scale.
  Pack<float, N> xs[RowPiece<N>::kPacks], ps[RowPiece<N>::kPacks];
#pragma unroll
  for (int k = 0; k < RowPiece<N>::kPacks; ++k) {
    if (!piece.holds(k)) continue;
    xs[k] = *reinterpret_cast<const Pack<float, N>*>(x + k * kWarp * N);
    ps[k] = *reinterpret_cast<const Pack<float, N>*>(p + k * kWarp * N);
  }
  const double rate = static_cast<double>(hyper[0]) * shape_factor;
  if (threadIdx.x < kWarp) {
    const double norm = norm_factor(of.shares + 2 * matrix * of.share_blocks, of.share_blocks);
    if (threadIdx.x == 0) shared_scale = static_cast<float>(rate * norm);
  }
  __syncthreads();
  const auto decay = static_cast<float>(rate * static_cast<double>(hyper[3]));
  const float scale = shared_scale;
  if (piece.left <= 0) return;
  const float* weight = of.weight + matrix * of.groups + (AlongRows ? piece.row : piece.col);
  const float row_factor = AlongRows ? scale * *weight : 0.0f;
#pragma unroll
  for (int k = 0; k < RowPiece<N>::kPacks; ++k) {
    if (!piece.holds(k)) continue;
    Pack<float, N> of_cols{};
    if (!AlongRows) of_cols = *reinterpret_cast<const Pack<float, N>*>(weight + k * kWarp * N);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float factor = AlongRows ? row_factor : scale * of_cols.at[j];
      ps[k].at[j] = updated(ps[k].at[j], xs[k].at[j] * factor, decay);
    }
    *reinterpret_cast<Pack<float, N>*>(p + k * kWarp * N) = ps[k];
  }
}

}  // namespace

void muon_momentum_cuda(const Exec& exec, const MuonMomentum& a) {
  const int64_t count = a.u[0].elems();
  if (count == 0) return;
  Momenta of{};
  bool packed = true;
  for (size_t i = 0; i < a.u.size(); ++i) {
    of.g[i] = a.g[i].as<float>();
    of.momentum[i] = a.momentum[i].as<float>(), of.u[i] = a.u[i].as<float>();
    packed = packed && start_at_16_bytes({of.g[i], of.momentum[i], of.u[i]});
  }
  const unsigned blocks = grid_for(count, kThreads * (packed ? kPack : 1));
  const auto kernel = packed ? momentum_all<kPack> : momentum_all<1>;
  kernel<<<dim3(blocks, static_cast<unsigned>(a.u.size())), kThreads, 0, cuda_stream(exec)>>>(
      of, a.hyper.as<float>(), count);
  cuda::check_launch("muon_momentum");
}

void muon_update_cuda(const Exec& exec, const MuonUpdate& a) {
  const int64_t m = a.p[0].shape()[0], n = a.p[0].shape()[1];
  if (m == 0 || n == 0) return;
  const auto count = static_cast<unsigned>(a.p.size());
  const bool along_rows = m >= n;
  const int64_t groups = along_rows ? m : n, slices = along_rows ? 1 : kMuonSlices;
  Moments of{.second = {},
             .squares = reinterpret_cast<double*>(exec.scratch.data()),
             .shares = nullptr,
             .weight = nullptr,
             .groups = groups,
             .slices = slices,
             .reduced = along_rows ? n : m,
             .share_blocks = muon_shares(groups)};
  of.shares = of.squares + count * slices * groups;
  of.weight = reinterpret_cast<float*>(of.shares + 2 * count * of.share_blocks);
  OperandRows<const float> x{.at = {}, .rows = m, .cols = n};
  OperandRows<float> p{.at = {}, .rows = m, .cols = n};
  bool packed = true;
  for (size_t i = 0; i < a.p.size(); ++i) {
    x.at[i] = a.x[i].as<float>(), p.at[i] = a.p[i].as<float>();
    of.second[i] = a.second_moment[i].as<float>();
    packed = packed && rows_of_16_bytes<float>(n, {x.at[i], p.at[i]});
  }

  if (along_rows) {
    sum_row_squares_cuda(exec, x, of.squares, count, m, n, packed);
  } else {
    const dim3 grid(grid_for(n, kThreads * (packed ? kPack : 1)),
                    static_cast<unsigned>(kMuonSlices), count);
    const auto kernel = packed ? column_squares<kPack> : column_squares<1>;
    kernel<<<grid, kThreads, 0, cuda_stream(exec)>>>(x, of.squares);
  }
  const float* hyper = a.hyper.as<float>();
  second_moments<<<dim3(static_cast<unsigned>(of.share_blocks), count), kThreads, 0,
                   cuda_stream(exec)>>>(of, hyper);
  const auto kernel = packed
                          ? (along_rows ? update_all<kRowPack, true> : update_all<kRowPack, false>)
                          : (along_rows ? update_all<1, true> : update_all<1, false>);
  const double shape_factor =
      std::sqrt(std::max(1.0, static_cast<double>(m) / static_cast<double>(n)));
  kernel<<<row_piece_grid(count, m, n), kRowThreads, 0, cuda_stream(exec)>>>(x, p, of, hyper,
                                                                             shape_factor);
  cuda::check_launch("muon_update");
}

}  // namespace tightloop
