#include <algorithm>

#include "tightloop/ops/common/cuda_pack.cuh"
#include "tightloop/ops/embedding/embedding_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPack = 4;  // elements a thread moves at once, where columns are a multiple
constexpr int kDigitBits = 8;
constexpr int kDigits = static_cast<int>(kEmbeddingDigits);
constexpr int kPiece = static_cast<int>(kEmbeddingPiece);
constexpr int kSortThreads = kDigits, kSortWarps = kSortThreads / kWarp;
static_assert(kEmbeddingChunk % kSortThreads == 0);
constexpr int kRowsAhead = 8;  // rows of dy that are loaded before their sums are stored
static_assert(kPiece % kRowsAhead == 0);
constexpr uint32_t kNoKey = 0xffffffffu;

template <typename T, typename Y, int N>
__global__ void __launch_bounds__(kThreads) gather(
    const int32_t* tokens, const T* table, Y* y, int64_t count, int64_t cols, uint32_t vocab) {
  const int64_t n = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (n >= count) return;
  const auto token = static_cast<uint32_t>(tokens[n]);
  const float missing = __int_as_float(0x7fc00000);  // NaN
  for (int64_t c = threadIdx.x % kWarp * N; c < cols; c += kWarp * N) {
    Pack<T, N> from;
    if (token < vocab) from = *reinterpret_cast<const Pack<T, N>*>(table + token * cols + c);
    Pack<Y, N> to;
#pragma unroll
    for (int j = 0; j < N; ++j)
      store_float(to.at + j, token < vocab ? load_as_float(from.at + j) : missing);
    *reinterpret_cast<Pack<Y, N>*>(y + n * cols + c) = to;
  }
}

/// The tokens of a backward and what their positions are sorted by: tokens outside the table come
/// last.
struct Keys {
  const int32_t* tokens;
  int64_t count;
  uint32_t vocab;

  __device__ uint32_t of(int64_t position) const {
    return min(static_cast<uint32_t>(tokens[position]), vocab);
  }
};

constexpr int kOfLane = static_cast<int>(kEmbeddingChunk) / kSortThreads;

/// The positions of a chunk that one thread takes with their digits: all loaded before anything
/// waits. A warp has neighbours, its lanes one after the other. Past the end the digit is kDigits.
struct LanePositions {
  int32_t position[kOfLane];
  int digit[kOfLane];

  /// `from` null stands for the positions 0, 1, 2, ….
  __device__ LanePositions(const Keys& keys, const int32_t* from, int shift) {
    const int64_t begin = blockIdx.x * kEmbeddingChunk + threadIdx.x / kWarp * (kOfLane * kWarp) +
                          threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < kOfLane; ++k) {
      const int64_t i = begin + k * kWarp;
      position[k] = i >= keys.count ? -1 : from == nullptr ? static_cast<int32_t>(i) : from[i];
    }
#pragma unroll
    for (int k = 0; k < kOfLane; ++k)
      digit[k] =
          position[k] < 0 ? kDigits : static_cast<int>((keys.of(position[k]) >> shift) % kDigits);
  }

  /// counts[digit] += how often this thread has it.
  __device__ void count(int32_t* counts) const {
#pragma unroll
    for (int k = 0; k < kOfLane; ++k) {
      if (digit[k] < kDigits) atomicAdd(counts + digit[k], 1);
    }
  }
};

/// The sort goes digit by digit from the lowest, each time keeping the order of equal digits. A
/// block takes a chunk of kEmbeddingChunk positions. counts[chunk][digit] = how often the chunk has
/// the digit.
__global__ void __launch_bounds__(kSortThreads)
    count_digits(Keys keys, const int32_t* from, int32_t* counts, int shift) {
  __shared__ int32_t block_counts[kDigits];
  const LanePositions own(keys, from, shift);
  block_counts[threadIdx.x] = 0;
  __syncthreads();
  own.count(block_counts);
  __syncthreads();
  counts[blockIdx.x * static_cast<int64_t>(kDigits) + threadIdx.x] = block_counts[threadIdx.x];
}

/// Sum of x over the threads before this one.
__device__ int32_t sum_before(int32_t x) {
  __shared__ int32_t totals[kSortWarps];
  const auto lane = static_cast<int>(threadIdx.x % kWarp);
  const auto warp = static_cast<int>(threadIdx.x / kWarp);
  int32_t through = x;  // with this lane's
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int32_t left = __shfl_up_sync(kFullWarp, through, offset);
    if (lane >= offset) through += left;
  }
  if (lane == kWarp - 1) totals[warp] = through;
  __syncthreads();
  int32_t before = through - x;
#pragma unroll
  for (int w = 0; w < kSortWarps; ++w) before += w < warp ? totals[w] : 0;
  return before;
}

/// Puts the positions of a chunk where they belong by their digit. Each block adds up the counts of
/// all chunks itself, a digit a thread: they are a few thousand, and a kernel for them would take
/// longer.
__global__ void __launch_bounds__(kSortThreads)
    place_by_digit(Keys keys, const int32_t* from, int32_t* to, const int32_t* counts, int shift) {
  __shared__ int32_t next[kSortWarps][kDigits];  // where a warp's next position of a digit goes
  const auto lane = static_cast<int>(threadIdx.x % kWarp);
  const auto digit = static_cast<int>(threadIdx.x);
  int32_t* mine = next[threadIdx.x / kWarp];
  const LanePositions own(keys, from, shift);
#pragma unroll
  for (int w = 0; w < kSortWarps; ++w) next[w][digit] = 0;
  __syncthreads();
  own.count(mine);

  const auto chunk = static_cast<int>(blockIdx.x), chunks = static_cast<int>(gridDim.x);
  int32_t total = 0, start = 0;
#pragma unroll 16
  for (int c = 0; c < chunks; ++c) {
    const int32_t count = counts[c * static_cast<int64_t>(kDigits) + digit];
    total += count;
    start += c < chunk ? count : 0;
  }
  start += sum_before(total);  // waits for the whole block: the warps have counted
#pragma unroll
  for (int w = 0; w < kSortWarps; ++w) {
    const int32_t here = next[w][digit];
    next[w][digit] = start;
    start += here;
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kOfLane; ++k) {
    const bool active = own.digit[k] < kDigits;
    const unsigned same = __match_any_sync(kFullWarp, own.digit[k]);
    const int rank = __popc(same & ((1u << lane) - 1u));
    if (active) to[mine[own.digit[k]] + rank] = own.position[k];
    __syncwarp();
    if (active && rank == 0) mine[own.digit[k]] += __popc(same);
    __syncwarp();
  }
}

template <int N>
__device__ void store_sum(float* to, const float (&sum)[N], bool add) {
  Pack<float, N> pack{};
  if (add) pack = *reinterpret_cast<const Pack<float, N>*>(to);
#pragma unroll
  for (int j = 0; j < N; ++j) pack.at[j] += sum[j];
  *reinterpret_cast<Pack<float, N>*>(to) = pack;
}

/// Sums dy over every run of one token within a piece of the sorted positions, in their order. A
/// run that is all of its token goes to the table; a part of one to partial[piece][0] when it
/// begins the piece, else to partial[piece][1].
template <typename T, int N>
__global__ void __launch_bounds__(kThreads) sum_pieces(Keys keys,
                                                       const int32_t* positions,
                                                       const T* dy,
                                                       float* dtable,
                                                       float* partial,
                                                       int64_t cols,
                                                       bool accumulate) {
  __shared__ int32_t at[kPiece];
  __shared__ uint32_t key[kPiece + 2];  // from the one before the piece to the one after it
  const int64_t piece = blockIdx.x, begin = piece * kPiece;
  const auto here = static_cast<int>(min(static_cast<int64_t>(kPiece), keys.count - begin));
  for (auto i = static_cast<int>(threadIdx.x); i < here + 2; i += static_cast<int>(blockDim.x)) {
    const int64_t n = begin - 1 + i;
    const bool exists = n >= 0 && n < keys.count;
    key[i] = exists ? keys.of(positions[n]) : kNoKey;
    if (i > 0 && i <= here) at[i - 1] = positions[n];
  }
  __syncthreads();
  const int64_t c = (blockIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x) * N;
  if (c >= cols) return;
  float sum[N] = {};
  for (int first = 0, start = 0; first < here; first += kRowsAhead) {
    Stored<T, N> ahead[kRowsAhead];
#pragma unroll
    for (int k = 0; k < kRowsAhead; ++k) {
      if (first + k < here) ahead[k].load(dy + at[first + k] * cols + c);
    }
#pragma unroll
    for (int k = 0; k < kRowsAhead; ++k) {
      const int i = first + k;
      if (i >= here) break;
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += ahead[k].at(j);
      const uint32_t token = key[i + 1], after = key[i + 2];
      if (i + 1 < here && after == token) continue;
      const bool complete = after != token && (start > 0 || key[0] != token);
      if (token < keys.vocab) {
        if (complete)
          store_sum(dtable + token * cols + c, sum, accumulate);
        else
          store_sum(partial + (2 * piece + (start > 0 ? 1 : 0)) * cols + c, sum, false);
      }
      start = i + 1;
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] = 0.0f;
    }
  }
}

/// Adds up the parts of every token that spans pieces, in their order: the block of the piece where
/// the token begins.
template <int N>
__global__ void __launch_bounds__(kThreads) join_pieces(Keys keys,
                                                        const int32_t* positions,
                                                        float* dtable,
                                                        const float* partial,
                                                        int64_t cols,
                                                        bool accumulate) {
  const int64_t piece = blockIdx.x, begin = piece * kPiece, end = begin + kPiece;
  if (end >= keys.count) return;
  const auto key = [&](int64_t i) { return keys.of(positions[i]); };
  const uint32_t token = key(end - 1);
  if (token >= keys.vocab || key(end) != token) return;
  const bool begins_piece = key(begin) == token;
  if (begins_piece && begin > 0 && key(begin - 1) == token) return;
  const int64_t c = (blockIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x) * N;
  if (c >= cols) return;

  // The last piece that begins with the token.
  int64_t last = piece + 1, beyond = (keys.count + kPiece - 1) / kPiece;
  while (beyond - last > 1) {
    const int64_t middle = (last + beyond) / 2;
    if (key(middle * kPiece) == token)
      last = middle;
    else
      beyond = middle;
  }
  float sum[N] = {};
  const auto add = [&](int64_t part) {
    const auto pack = *reinterpret_cast<const Pack<float, N>*>(partial + part * cols + c);
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += pack.at[j];
  };
  add(2 * piece + (begins_piece ? 0 : 1));
#pragma unroll 4
  for (int64_t next = piece + 1; next <= last; ++next) add(2 * next);
  store_sum(dtable + token * cols + c, sum, accumulate);
}

template <typename T, int N>
void sum_by_token(const Exec& exec,
                  const Keys& keys,
                  const int32_t* positions,
                  const EmbeddingBwd& a,
                  float* partial) {
  const int64_t cols = a.dtable.shape().cols(), lanes = (cols + N - 1) / N;
  const int64_t threads = std::min<int64_t>(kThreads, (lanes + kWarp - 1) / kWarp * kWarp);
  const dim3 grid(grid_for(keys.count, kPiece), grid_for(lanes, threads));
  float* dtable = a.dtable.as<float>();
  sum_pieces<T, N><<<grid, static_cast<unsigned>(threads), 0, cuda_stream(exec)>>>(
      keys, positions, a.dy.as<T>(), dtable, partial, cols, a.accumulate);
  join_pieces<N><<<grid, static_cast<unsigned>(threads), 0, cuda_stream(exec)>>>(
      keys, positions, dtable, partial, cols, a.accumulate);
}

}  // namespace

void embedding_fwd_cuda(const Exec& exec, const EmbeddingFwd& a) {
  const int64_t count = a.tokens.elems(), cols = a.table.shape().cols();
  if (count == 0 || cols == 0) return;
  const auto vocab = static_cast<uint32_t>(a.table.shape()[0]);
  with_cuda_type(a.table.dtype(), "embedding", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    with_cuda_type(a.y.dtype(), "embedding", [&](auto* u) {
      using Y = std::remove_pointer_t<decltype(u)>;
      const T* table = a.table.as<T>();
      Y* y = a.y.as<Y>();
      const bool packed = cols % kPack == 0 && start_at_16_bytes({table, y});
      const auto kernel = packed ? gather<T, Y, kPack> : gather<T, Y, 1>;
      kernel<<<grid_for(count, kWarps), kThreads, 0, cuda_stream(exec)>>>(
          a.tokens.as<int32_t>(), table, y, count, cols, vocab);
    });
  });
  cuda::check_launch("embedding");
}

void token_order_cuda(const Exec& exec, const TokenOrder& a) {
  const int64_t count = a.tokens.elems();
  if (count == 0) return;
  const Keys keys{a.tokens.as<int32_t>(), count, static_cast<uint32_t>(a.vocab)};
  int digits = 1;
  while (digits * kDigitBits < 32 && keys.vocab >> (digits * kDigitBits) > 0) ++digits;
  const auto blocks = static_cast<unsigned>(embedding_chunks(count));
  auto* other = reinterpret_cast<int32_t*>(exec.scratch.data());
  int32_t *counts = other + count, *order = a.order.as<int32_t>();
  const int32_t* from = nullptr;
  for (int digit = 0; digit < digits; ++digit) {  // from one array to the other, the last to order
    int32_t* to = (digits - digit) % 2 == 1 ? order : other;
    const int shift = digit * kDigitBits;
    count_digits<<<blocks, kSortThreads, 0, cuda_stream(exec)>>>(keys, from, counts, shift);
    place_by_digit<<<blocks, kSortThreads, 0, cuda_stream(exec)>>>(keys, from, to, counts, shift);
    from = to;
  }
  cuda::check_launch("token_order");
}

void embedding_bwd_cuda(const Exec& exec, const EmbeddingBwd& a) {
  const int64_t count = a.tokens.elems(), cols = a.dtable.shape().cols();
  if (!a.accumulate)
    cudaMemsetAsync(a.dtable.data, 0, static_cast<size_t>(a.dtable.bytes()), cuda_stream(exec));
  if (count > 0 && a.dtable.elems() > 0) {
    const Keys keys{a.tokens.as<int32_t>(), count, static_cast<uint32_t>(a.dtable.shape()[0])};
    auto* partial = reinterpret_cast<float*>(exec.scratch.data());
    const int32_t* positions = a.order.as<int32_t>();
    with_cuda_type(a.dy.dtype(), "embedding_bwd", [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      if (cols % kPack == 0 && start_at_16_bytes({a.dy.data, a.dtable.data, partial}))
        sum_by_token<T, kPack>(exec, keys, positions, a, partial);
      else
        sum_by_token<T, 1>(exec, keys, positions, a, partial);
    });
  }
  cuda::check_launch("embedding_bwd");
}

}  // namespace tightloop
