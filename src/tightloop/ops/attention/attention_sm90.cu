#include <algorithm>
#include <type_traits>

#include "tightloop/ops/attention/attention_sm90.h"
#include "tightloop/ops/common/cuda_lanes.cuh"
#include "tightloop/ops/common/gemm_sm90.cuh"
#include "tightloop/ops/common/hopper.cuh"

// A block takes one tile of 128 keys of a head after the other and walks over the queries that see
// it, 64 at a time. Two warpgroups hold 64 keys each: the scores and their gradients as keys x
// queries, dk and dv, all in registers. A third brings the tiles by TMA (one thread) and hands the
// sums of dq on (two).
//
//   s = k qᵀ, dp = v doᵀ          keys x queries, both sides in shared memory
//   p = 2^(s - lse), ds = p (dp - delta)
//   dv += p do, dk += ds q        p and ds from registers
//   dq  = dsᵀ k                   over the keys of both: ds goes through shared memory, and each
//                                 warpgroup makes 64 of the 128 columns
//
// dq of 64 queries is a sum over tiles of keys, which other blocks have: each adds its part in
// device memory, by the copy engine and in f32, when the tile of keys after its own has done so.
// The tiles of a head are taken last keys first and each walks its queries in ascending order, so
// that the others have been there before. A last kernel rounds the sums.
namespace tightloop {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr int kDim = 128, kKeys = 128, kQueries = 64;
constexpr int kBox = 64;    // columns that move at once: 128 bytes
constexpr int kGroups = 2;  // warpgroups that multiply
constexpr int kThreads = (kGroups + 1) * hopper::kWarpgroup;
[[maybe_unused]] constexpr int kWarps = kGroups * 4;  // that multiply
constexpr int kStagesQ = 3, kStagesGradO = 2;
constexpr int kBytesKeys = kKeys * kDim * 2, kBytesQueries = kQueries * kDim * 2;
[[maybe_unused]] constexpr int kBoxKeys = kKeys * kBox * 2, kBoxQueries = kQueries * kBox * 2;
constexpr int kBytesScores = kKeys * kQueries * 2;
constexpr int kDqFloats = kQueries * kDim, kBytesDq = kDqFloats * 4;
[[maybe_unused]] constexpr int kBytesRows = 16 * kBox * 2;  // of a warp's rows in a box

/// What is known of each query of a tile: all lse * log2(e), then all delta.
constexpr int kStatistics = 2 * kQueries, kBytesStatistics = kStatistics * 4;

struct Problem {
  int tokens, heads, kv_heads, window;
  int key_tiles, query_tiles, units;  // units: tiles of keys of all heads and sequences
  float scale, scale_log2;
};
static_assert(kKeys == 2 * kQueries);
static_assert(kAttentionSm90TileBytes == kBytesDq + kBytesStatistics + sizeof(unsigned));

/// Device memory of a call, for each tile of queries of each head.
struct Scratch {
  float* statistics;  // kStatistics
  float* dq;          // kDqFloats, laid out as the threads hold them
  unsigned* added;    // how many tiles of keys have added to dq
  unsigned* taken;    // one: how many units have been taken

  Scratch(std::byte* at, int64_t tiles)
      : statistics(reinterpret_cast<float*>(at)),
        dq(statistics + tiles * kStatistics),
        added(reinterpret_cast<unsigned*>(dq + tiles * kDqFloats)),
        taken(added + tiles) {}
};

/// Shared memory of a block: k, v, the stages, ds, two parts of dq, statistics, barriers.
constexpr int kSharedBytes = 1024 + 2 * kBytesKeys + (kStagesQ + kStagesGradO) * kBytesQueries +
                             kBytesScores + 2 * kBytesDq + kStagesQ * kBytesStatistics +
                             (2 * kStagesQ + 2 * kStagesGradO + 7) * 8;
static_assert(kSharedBytes <= 227 * 1024);

/// Statistics of a tile of queries, and nothing added yet. One block each; heads side by side.
__global__ void __launch_bounds__(256) prepare_kernel(
    const bf16* grad_o, const bf16* o, const float* lse, Scratch scratch, Problem p) {
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const int queries = static_cast<int>(blockIdx.x) / p.heads % p.query_tiles;
  const int64_t batch = blockIdx.x / static_cast<unsigned>(p.heads * p.query_tiles);
  const int64_t tile = (batch * p.heads + head) * p.query_tiles + queries;
  if (threadIdx.x == 0) {
    scratch.added[tile] = 0;
    if (blockIdx.x == 0) *scratch.taken = 0;
  }
  constexpr int kLanes = kDim / 8, kRows = 256 / kLanes, kTimes = kQueries / kRows;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int first = static_cast<int>(threadIdx.x) / kLanes;
  const auto token_of = [&](int time) { return queries * kQueries + first + time * kRows; };
  Stored<bf16, 8> x[kTimes], y[kTimes];
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
    // Rows that do not exist: any will do.
    const int64_t token = batch * p.tokens + min(token_of(time), p.tokens - 1);
    const int64_t at = (token * p.heads + head) * kDim + lane * 8;
    x[time].load(grad_o + at), y[time].load(o + at);
  }
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(x[time].at(i), y[time].at(i), sum);
    sum = group_sum(sum, kLanes);
    if (lane != 0) continue;
    const int token = token_of(time);
    float* to = scratch.statistics + tile * kStatistics + first + time * kRows;
    // A query that does not exist weighs nothing.
    to[0] = token < p.tokens ? lse[(batch * p.heads + head) * p.tokens + token] * kLog2e : INFINITY;
    to[kQueries] = token < p.tokens ? sum : 0.0f;
  }
}

/// dq from the sums. One block for each tile of queries; heads side by side.
__global__ void __launch_bounds__(256) round_kernel(bf16* dq, Scratch scratch, Problem p) {
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const int queries = static_cast<int>(blockIdx.x) / p.heads % p.query_tiles;
  const int64_t batch = blockIdx.x / static_cast<unsigned>(p.heads * p.query_tiles);
  const float* sums =
      scratch.dq + ((batch * p.heads + head) * p.query_tiles + queries) * int64_t{kDqFloats};
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  // A warp takes 16 rows and 32 columns of them at a time: four sums of each group of 8 columns in
  // a lane.
  constexpr int kTimes = 2;
  const int rows = warp % 4, of_four = lane % 4;
  const auto group_of = [=](int time, int i) { return (warp / 4 * kTimes + time) * 4 + i; };
  float4 x[kTimes][4];
#pragma unroll
  for (int time = 0; time < kTimes; ++time)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      x[time][i] = *reinterpret_cast<const float4*>(
          sums + (group_of(time, i) * hopper::kWarpgroup + rows * kWarp + lane) * 4);
#pragma unroll
  for (int time = 0; time < kTimes; ++time)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Pack<unsigned, 4> v;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4& sum = x[time][i];
        v.at[i] = half == 0 ? pack_bf16(p.scale * sum.x, p.scale * sum.y)
                            : pack_bf16(p.scale * sum.z, p.scale * sum.w);
      }
      // Lane c of four has columns 2 c and 2 c + 1 of four groups; it gets all 8 of group c.
#pragma unroll
      for (int step = 1; step < 4; step *= 2)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i & step) continue;
          const bool upper = (of_four & step) != 0;
          const unsigned got = __shfl_xor_sync(kFullWarp, upper ? v.at[i] : v.at[i + step], step);
          if (upper)
            v.at[i] = got;
          else
            v.at[i + step] = got;
        }
      const int token = queries * kQueries + rows * 16 + half * 8 + lane / 4;
      if (token < p.tokens)
        *reinterpret_cast<Pack<unsigned, 4>*>(dq +
                                              ((batch * p.tokens + token) * p.heads + head) * kDim +
                                              group_of(time, of_four) * 8) = v;
    }
}

#if TL_HOPPER_CODE

using sm90::Place;

/// A tile of keys, and which heads it belongs to.
struct Unit {
  int keys, kv_head, batch, group;  // group: query heads that share it
  int first_queries, end_queries;   // the tiles of queries that see it

  __device__ Unit(const Problem& p, int unit)
      : keys(p.key_tiles - 1 - unit % p.key_tiles),
        kv_head(unit / p.key_tiles % p.kv_heads),
        batch(unit / p.key_tiles / p.kv_heads),
        group(p.heads / p.kv_heads),
        first_queries(2 * keys),
        end_queries(min(p.query_tiles, (keys * kKeys + kKeys - 1 + p.window) / kQueries + 1)) {}
  /// Calls fn(query head, tile of queries, the tile's place in Scratch) for every step.
  template <typename Fn>
  __device__ void for_steps(const Problem& p, Fn&& fn) const {
#pragma unroll 1
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
#pragma unroll 1
      for (int queries = first_queries; queries < end_queries; ++queries)
        fn(head, queries, (static_cast<int64_t>(batch) * p.heads + head) * p.query_tiles + queries);
  }
};

/// The block's shared memory, as addresses.
struct Shared {
  unsigned base;
  __device__ explicit Shared(unsigned start) : base((start + 1023) / 1024 * 1024) {}
  __device__ unsigned k() const { return base; }
  __device__ unsigned v() const { return k() + kBytesKeys; }
  __device__ unsigned q(int stage) const { return v() + kBytesKeys + stage * kBytesQueries; }
  __device__ unsigned grad_o(int stage) const { return q(kStagesQ + stage); }
  __device__ unsigned ds() const { return grad_o(kStagesGradO); }
  __device__ unsigned dq(int turn) const { return ds() + kBytesScores + turn * kBytesDq; }
  __device__ unsigned statistics(int stage) const { return dq(2) + stage * kBytesStatistics; }
  // Barriers.
  __device__ unsigned q_full(int stage) const { return statistics(kStagesQ) + stage * 8; }
  __device__ unsigned q_empty(int stage) const { return q_full(kStagesQ + stage); }
  __device__ unsigned grad_o_full(int stage) const { return q_empty(kStagesQ + stage); }
  __device__ unsigned grad_o_empty(int stage) const { return grad_o_full(kStagesGradO + stage); }
  __device__ unsigned dq_full(int turn) const { return grad_o_empty(kStagesGradO + turn); }
  __device__ unsigned dq_empty(int turn) const { return dq_full(2 + turn); }
  __device__ unsigned keys_full() const { return dq_empty(2); }
  __device__ unsigned keys_empty() const { return keys_full() + 8; }
  __device__ unsigned unit() const { return keys_empty() + 8; }
};

__device__ inline int load_shared(unsigned address) {
  int value;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
__device__ inline void store_shared(unsigned address, int value) {
  asm volatile("st.shared.s32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ inline float2 load_pair(unsigned address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ inline void store_four(unsigned address, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
}
__device__ inline unsigned load_acquire(const unsigned* p) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ inline void store_release(unsigned* p, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
/// The warpgroups that multiply wait for each other.
__device__ inline void meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(kGroups * hopper::kWarpgroup) : "memory");
}
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// One thread: takes units and brings their tiles.
__device__ void feed(const Problem& p,
                     const Scratch& scratch,
                     const Shared& shared,
                     const CUtensorMap& q,
                     const CUtensorMap& k,
                     const CUtensorMap& v,
                     const CUtensorMap& grad_o,
                     const CUtensorMap& statistics) {
  using namespace hopper;
  const auto boxes = [](const auto& fn) {
#pragma unroll
    for (int box = 0; box < kDim / kBox; ++box) fn(box, box * kBox);
  };
  Place<kStagesQ> at_q;
  Place<kStagesGradO> at_grad_o;
  for (unsigned turn = 0;; turn ^= 1) {
    const int unit = static_cast<int>(atomicAdd(scratch.taken, 1));
    const Unit u(p, unit);
    const int x = u.kv_head * kDim, y = u.keys * kKeys;
    if (unit < p.units) {
      boxes([&](int, int col) {
        prefetch_box(k, x + col, y, u.batch);
        prefetch_box(v, x + col, y, u.batch);
      });
    }
    barrier_wait(shared.keys_empty(), turn ^ 1);
    store_shared(shared.unit(), unit);
    if (unit >= p.units) return barrier_arrive(shared.keys_full());
    barrier_expect(shared.keys_full(), 2 * kBytesKeys);
    boxes([&](int box, int col) {
      load_box(shared.k() + box * kBoxKeys, k, shared.keys_full(), x + col, y, u.batch);
      load_box(shared.v() + box * kBoxKeys, v, shared.keys_full(), x + col, y, u.batch);
    });
    u.for_steps(p, [&](int head, int queries, int64_t tile) {
      const auto load = [&](unsigned to, const CUtensorMap& map, unsigned full) {
        boxes([&](int box, int col) {
          load_box(to + box * kBoxQueries, map, full, head * kDim + col, queries * kQueries,
                   u.batch);
        });
      };
      barrier_wait(shared.q_empty(at_q.stage), at_q.parity ^ 1);
      barrier_expect(shared.q_full(at_q.stage), kBytesQueries + kBytesStatistics);
      load(shared.q(at_q.stage), q, shared.q_full(at_q.stage));
      load_box(shared.statistics(at_q.stage), statistics, shared.q_full(at_q.stage), 0,
               static_cast<int>(tile), 0);
      at_q.advance();
      barrier_wait(shared.grad_o_empty(at_grad_o.stage), at_grad_o.parity ^ 1);
      barrier_expect(shared.grad_o_full(at_grad_o.stage), kBytesQueries);
      load(shared.grad_o(at_grad_o.stage), grad_o, shared.grad_o_full(at_grad_o.stage));
      at_grad_o.advance();
    });
  }
}

/// One thread for the even steps of the block and one for the odd ones: adds the parts of dq to
/// device memory, each in its turn. A step's turn is passed on when its sums have arrived, which
/// may take longer than the step.
__device__ void hand_on(const Problem& p, const Scratch& scratch, const Shared& shared, int odd) {
  using namespace hopper;
  unsigned parity = 0;
  int step = 0;
  for (unsigned turn = 0;; turn ^= 1) {
    barrier_wait(shared.keys_full(), turn);
    const int unit = load_shared(shared.unit());
    barrier_arrive(shared.keys_empty());
    if (unit >= p.units) return;
    const Unit u(p, unit);
    u.for_steps(p, [&](int, int queries, int64_t tile) {
      if (step++ % 2 != odd) return;
      const unsigned before = static_cast<unsigned>(queries / 2 - u.keys);  // have added
      float* to = scratch.dq + tile * kDqFloats;
      barrier_wait(shared.dq_full(odd), parity);
      if (before == 0) {
        store_run(to, shared.dq(odd), kBytesDq);
      } else {
        while (load_acquire(scratch.added + tile) != before) {
        }
        fence_copies_in_memory();
        add_run(to, shared.dq(odd), kBytesDq);
      }
      store_commit();
      store_wait_read<0>();
      barrier_arrive(shared.dq_empty(odd));
      store_wait_all();
      fence_copies_in_memory();
      store_release(scratch.added + tile, before + 1);
      parity ^= 1;
    });
  }
}

/// out (keys x queries) of a warpgroup = a bᵀ: its 64 rows of a tile of keys, a tile of queries.
__device__ inline void scores(float (&out)[32], unsigned a, unsigned b) {
  using namespace hopper;
  const uint64_t of_a = wgmma_matrix(a), of_b = wgmma_matrix(b);
  wgmma_64x64x16<false, false, false>(out, of_a, of_b);
#pragma unroll
  for (int col = 16; col < kDim; col += 16) {
    const int box = col / kBox, within = col % kBox * 2;
    wgmma_64x64x16<false, false, true>(out, wgmma_further(of_a, box * kBoxKeys + within),
                                       wgmma_further(of_b, box * kBoxQueries + within));
  }
}

/// out (keys x dim) = w b + (add ? out : 0): weights (keys x queries) in registers or in shared
/// memory, a tile of queries.
__device__ inline void weigh(float (&out)[64], const unsigned (&w)[4][4], unsigned b, bool add) {
  using namespace hopper;
  const uint64_t of_b = wgmma_matrix(b, kBoxQueries);
#pragma unroll
  for (int row = 0; row < kQueries; row += 16)
    wgmma_64x128x16<true>(out, w[row / 16], wgmma_further(of_b, row * 128), add || row > 0);
}
__device__ inline void weigh(float (&out)[64], unsigned w, unsigned b, bool add) {
  using namespace hopper;
  const uint64_t of_w = wgmma_matrix(w), of_b = wgmma_matrix(b, kBoxQueries);
#pragma unroll
  for (int row = 0; row < kQueries; row += 16)
    wgmma_64x128x16<true>(out, wgmma_further(of_w, row * 2), wgmma_further(of_b, row * 128),
                          add || row > 0);
}

/// out (queries x 64) = dsᵀ keys: ds (keys x queries), and 64 columns of a tile of keys.
__device__ inline void weigh_keys(float (&out)[32], unsigned ds, unsigned keys) {
  using namespace hopper;
  const uint64_t of_ds = wgmma_matrix(ds), of_keys = wgmma_matrix(keys);
  wgmma_64x64x16<true, true, false>(out, of_ds, of_keys);
#pragma unroll
  for (int row = 16; row < kKeys; row += 16)
    wgmma_64x64x16<true, true, true>(out, wgmma_further(of_ds, row * 128),
                                     wgmma_further(of_keys, row * 128));
}

/// Rounds sums of 64 columns to what a product takes from registers.
__device__ inline void round_sums(unsigned (&to)[4][4], const float (&from)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) to[i / 4][i % 4] = pack_bf16(from[2 * i], from[2 * i + 1]);
}

/// Where this lane points store_matrices() to for columns 16 c to 16 c + 15 of a box of 16 rows.
__device__ inline unsigned in_box(unsigned box, int c) {
  const int lane = threadIdx.x % kWarp, row = lane % 8 + 8 * (lane / 8 % 2);
  return box + row * 128 + (((2 * c + lane / 16) ^ (row % 8)) * 16);
}

/// A warp's 16 rows of the tile of keys: factor * sums of the columns of a box, put into shared
/// memory at `box` and stored from there. The caller waits before it uses that again.
template <int Box>
__device__ inline void store_sums(const CUtensorMap& map,
                                  unsigned box,
                                  int x,
                                  int y,
                                  int z,
                                  const float (&sums)[64],
                                  float factor) {
  using namespace hopper;
#pragma unroll
  for (int c = 0; c < kBox / 16; ++c) {
    unsigned words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int i = Box * 32 + 8 * c + 2 * w;
      words[w] = pack_bf16(factor * sums[i], factor * sums[i + 1]);
    }
    store_matrices(in_box(box, c), words);
  }
  fence_for_copies();
  __syncwarp();
  if (threadIdx.x % kWarp == 0) {
    store_box(map, box, x + Box * kBox, y, z);
    store_commit();
  }
}

/// A warpgroup: its 64 keys of every unit.
__device__ void multiply(const Problem& p,
                         const Shared& shared,
                         const CUtensorMap& dk_map,
                         const CUtensorMap& dv_map,
                         int group) {
  using namespace hopper;
  const int lane = threadIdx.x % kWarp, thread = threadIdx.x % kWarpgroup;
  const int warp = threadIdx.x / kWarp;            // of both warpgroups
  const unsigned my_keys = group * 64 * kBox * 2;  // in a box of k and v, and in ds
  const unsigned my_rows = warp * kBytesRows;      // of the warp, in the same
  const bool leads = lane == 0;
  float dk[64], dv[64], s[32];
  Place<kStagesQ> at_q;
  Place<kStagesGradO> at_grad_o;
  Place<2> part;   // of dq
  int before = 0;  // the stage of q that the step before used
  // After the next products have been started: the fence waits for the stores of dq.
  const auto hand_on_dq = [&] {
    fence_for_copies();
    __syncwarp();
    if (leads) barrier_arrive(shared.dq_full(part.stage));
    part.advance();
  };
  for (unsigned turn = 0;; turn ^= 1) {
    barrier_wait(shared.keys_full(), turn);
    // Read by the lane that says later that it has been read.
    const int unit = __shfl_sync(kFullWarp, leads ? load_shared(shared.unit()) : 0, 0);
    if (unit >= p.units) break;
    const Unit u(p, unit);
    const int first = u.first_queries, end = u.end_queries;
    const int steps = (end - first) * u.group;
    const int x = u.kv_head * kDim, y = u.keys * kKeys + warp * 16;
    const int key = u.keys * kKeys + group * 64;  // first of the warpgroup
    int queries = first;

    barrier_wait(shared.q_full(at_q.stage), at_q.parity);
    wgmma_fence();
    scores(s, shared.k() + my_keys, shared.q(at_q.stage));
    wgmma_commit();
    wgmma_wait<0>();

    int i = 0;
    const auto step = [&](auto last) {
      const int of_q = at_q.stage, of_grad_o = at_grad_o.stage;
      barrier_wait(shared.grad_o_full(of_grad_o), at_grad_o.parity);
      at_q.advance();
      at_grad_o.advance();
      wgmma_fence();
      float dp[32];
      scores(dp, shared.v() + my_keys, shared.grad_o(of_grad_o));
      wgmma_commit();
      if (i > 0) hand_on_dq();

      // p, while dk of the step before and dp are made.
      wgmma_hold(s);
      float w[32];
      const unsigned statistics = shared.statistics(of_q) + lane % 4 * 8;
      const int query = queries * kQueries;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 lse = load_pair(statistics + j * 32);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          w[4 * j + e] = exp2_fast(fmaf(s[4 * j + e], p.scale_log2, e % 2 == 0 ? -lse.x : -lse.y));
      }
      if (query < key + 63 || query + 63 - key > p.window) {
        const int behind = query + 2 * (lane % 4) - key - (thread / kWarp * 16 + lane / 4);
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int distance = behind + 8 * j + e % 2 - 8 * (e / 2);
            if (distance < 0 || distance > p.window) w[4 * j + e] = 0.0f;
          }
      }
      if (++queries == end) queries = first;
      wgmma_wait<1>();
      wgmma_hold(dk);
      if (i > 0 && leads) barrier_arrive(shared.q_empty(before));
      before = of_q;
      unsigned weights[4][4];
      round_sums(weights, w);
      wgmma_fence();
      weigh(dv, weights, shared.grad_o(of_grad_o), i > 0);
      wgmma_commit();

      wgmma_wait<1>();
      wgmma_hold(dp);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 delta = load_pair(statistics + kQueries * 4 + j * 32);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          w[4 * j + e] *= dp[4 * j + e] - (e % 2 == 0 ? delta.x : delta.y);
      }
      unsigned ds[4][4];
      round_sums(ds, w);
      if (leads) store_wait_read<0>();  // of dk of the unit before
      meet();                           // nobody reads ds of the step before any more
#pragma unroll
      for (int c = 0; c < 4; ++c) store_matrices(in_box(shared.ds() + my_rows, c), ds[c]);
      fence_for_copies();
      if constexpr (!last) {
        barrier_wait(shared.q_full(at_q.stage), at_q.parity);
        wgmma_fence();
        scores(s, shared.k() + my_keys, shared.q(at_q.stage));
      }
      wgmma_commit();
      meet();
      wgmma_wait<1>();
      wgmma_hold(dv);
      if (leads) barrier_arrive(shared.grad_o_empty(of_grad_o));
      wgmma_fence();
      float dq[32];
      weigh_keys(dq, shared.ds(), shared.k() + group * kBoxKeys);
      wgmma_commit();
      weigh(dk, shared.ds() + my_keys, shared.q(of_q), i > 0);
      wgmma_commit();
      if constexpr (last) {  // the warp's rows of v are free
        store_sums<0>(dv_map, shared.v() + my_rows, x, y, u.batch, dv, 1.0f);
        store_sums<1>(dv_map, shared.v() + kBoxKeys + my_rows, x, y, u.batch, dv, 1.0f);
      }

      wgmma_wait<1>();
      wgmma_hold(dq);
      barrier_wait(shared.dq_empty(part.stage), part.parity ^ 1);
      const unsigned to = shared.dq(part.stage) + group * (kBytesDq / 2) + thread * 16;
#pragma unroll
      for (int j = 0; j < 8; ++j)
        store_four(to + j * kWarpgroup * 16, dq[4 * j], dq[4 * j + 1], dq[4 * j + 2],
                   dq[4 * j + 3]);
    };
#pragma unroll 1
    for (; i < steps - 1; ++i) step(std::false_type{});
    step(std::true_type{});
    hand_on_dq();
    wgmma_wait<0>();
    wgmma_hold(dk);
    if (leads) {
      store_wait_read<0>();
      barrier_arrive(shared.q_empty(before));
      barrier_arrive(shared.keys_empty());
    }
    meet();  // nobody reads ds any more
    store_sums<0>(dk_map, shared.ds() + my_rows, x, y, u.batch, dk, p.scale);
    if (leads) store_wait_read<0>();
    __syncwarp();
    store_sums<1>(dk_map, shared.ds() + my_rows, x, y, u.batch, dk, p.scale);
  }
  if (leads) store_wait_all();
}

#endif  // TL_HOPPER_CODE

__global__ void __launch_bounds__(kThreads, 1)
    bwd_kernel(const Problem p,
               const Scratch scratch,
               const __grid_constant__ CUtensorMap q,
               const __grid_constant__ CUtensorMap k,
               const __grid_constant__ CUtensorMap v,
               const __grid_constant__ CUtensorMap grad_o,
               const __grid_constant__ CUtensorMap statistics,
               const __grid_constant__ CUtensorMap dk,
               const __grid_constant__ CUtensorMap dv) {
#if TL_HOPPER_CODE
  using namespace hopper;
  extern __shared__ unsigned char memory[];
  const Shared shared(shared_address(memory));
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStagesQ; ++i) {
      barrier_init(shared.q_full(i), 1);
      barrier_init(shared.q_empty(i), kWarps);
    }
    for (int i = 0; i < kStagesGradO; ++i) {
      barrier_init(shared.grad_o_full(i), 1);
      barrier_init(shared.grad_o_empty(i), kWarps);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared.dq_full(i), kWarps);
      barrier_init(shared.dq_empty(i), 1);
    }
    barrier_init(shared.keys_full(), 1);
    barrier_init(shared.keys_empty(), kWarps + 2);
    barrier_init_fence();
  }
  __syncthreads();
  // The same in all lanes, and known to be.
  const int group = __shfl_sync(kFullWarp, threadIdx.x / kWarpgroup, 0);
  if (group == kGroups) {
    registers_down<24>();
    const int thread = threadIdx.x % kWarpgroup;
    if (thread == 0) feed(p, scratch, shared, q, k, v, grad_o, statistics);
    if (thread == kWarp || thread == 2 * kWarp) hand_on(p, scratch, shared, thread / kWarp - 1);
  } else {
    registers_up<240>();
    multiply(p, shared, dk, dv, group);
  }
#endif
}

}  // namespace

bool attention_bwd_sm90(const Exec& exec, const AttentionBwd& a) {
  if (!attention_bwd_sm90_takes(a.q.type, a.k.type) ||
      static_cast<int64_t>(exec.scratch.size()) < attention_bwd_sm90_scratch_bytes(a.q.type))
    return false;
  for (const void* data :
       {a.grad_o.data, a.q.data, a.k.data, a.v.data, a.o.data, static_cast<const void*>(a.dq.data),
        static_cast<const void*>(a.dk.data), static_cast<const void*>(a.dv.data),
        static_cast<const void*>(exec.scratch.data())})
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return false;

  const Shape& q = a.q.shape();
  const int64_t batch = q[0], tokens = q[1], heads = q[2], kv_heads = a.k.shape()[2];
  const auto tiles_of = [&](int64_t size) { return static_cast<int>((tokens + size - 1) / size); };
  const Problem p{.tokens = static_cast<int>(tokens),
                  .heads = static_cast<int>(heads),
                  .kv_heads = static_cast<int>(kv_heads),
                  .window = static_cast<int>(std::min(a.window, tokens)),
                  .key_tiles = tiles_of(kKeys),
                  .query_tiles = tiles_of(kQueries),
                  .units = static_cast<int>(batch * kv_heads) * tiles_of(kKeys),
                  .scale = static_cast<float>(a.softmax_scale),
                  .scale_log2 = static_cast<float>(a.softmax_scale * 1.4426950408889634)};
  const int64_t tiles = attention_sm90_query_tiles(q);
  const Scratch scratch(exec.scratch.data(), tiles);
  const auto map = [&](const void* data, int64_t of_heads, int rows) {
    const int64_t row = of_heads * kDim;
    return sm90::map_of(data, tokens, row, row, batch, tokens * row, rows);
  };
  static const int most_blocks = [] {
    const cudaError_t status =
        cudaFuncSetAttribute(bwd_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
    if (status != cudaSuccess)
      fail(ErrorKind::device, "attention_bwd on cuda: {} bytes of shared memory: {}", kSharedBytes,
           cudaGetErrorString(status));
    return static_cast<int>(cuda::device_info().multiprocessors);
  }();
  const cudaStream_t stream = cuda_stream(exec);
  prepare_kernel<<<static_cast<unsigned>(tiles), 256, 0, stream>>>(
      a.grad_o.as<bf16>(), a.o.as<bf16>(), a.lse.as<float>(), scratch, p);
  bwd_kernel<<<static_cast<unsigned>(std::min(most_blocks, p.units)), kThreads, kSharedBytes,
               stream>>>(p, scratch, map(a.q.data, heads, kQueries), map(a.k.data, kv_heads, kKeys),
                         map(a.v.data, kv_heads, kKeys), map(a.grad_o.data, heads, kQueries),
                         sm90::map_of_rows(scratch.statistics, tiles, kStatistics),
                         map(a.dk.data, kv_heads, 16), map(a.dv.data, kv_heads, 16));
  round_kernel<<<static_cast<unsigned>(tiles), 256, 0, stream>>>(a.dq.as<bf16>(), scratch, p);
  cuda::check_launch("attention_bwd");
  return true;
}

}  // namespace tightloop
