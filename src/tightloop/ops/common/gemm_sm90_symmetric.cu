#include "tightloop/ops/common/gemm_sm90.cuh"

/// X X^T by tiles of 128 x 128 on and below the diagonal, one a block; what lies below is stored
/// once more, mirrored. Small tiles: of 768 rows 21 of 36 are computed, and stacks of a few
/// matrices fill the card evenly. The two blocks of a cluster take tiles one above the other, and
/// each brings half of their columns' rows of X to both. Where a column has an odd number of tiles,
/// the one on the diagonal goes beside its like of the next matrix: there a block needs only its
/// own rows.
///
/// That tiles on the diagonal are symmetric follows from the order of the sums: it is the same in
/// (i, j) as in (j, i), and products commute.
///
/// Warpgroups, stages and barriers are those of gemm_sm90.cuh.
namespace tightloop::sm90 {
namespace {

constexpr int kSide = 128;        // of a block's tile
constexpr int kHalf = kSide / 2;  // rows of X in a box; rows of C that a warpgroup finishes
constexpr int kBytesX = kSide * kDepth * 2, kBytesMirror = kSide * kHalf * 2;
constexpr int kParts = kSide / kBox;  // boxes of a warp's rows
static_assert(kHalf == kBox);         // mirrored, a warpgroup's rows are one box of columns

/// C = (product X X^T + added e + diagonal I) of_matrix [matrix].
using Factors = GemmCudaFactors;

/// The tiles of a stack in the order in which the clusters take them.
struct Walk {
  int side;   // tiles of a matrix
  int count;  // matrices
  int steps;  // kDepth of K each

  /// Of one matrix: pairs of tiles in one column, and tiles on the diagonal that are left over.
  __host__ __device__ int pairs() const { return side / 2 * ((side + 1) / 2); }
  __host__ __device__ int singles() const { return (side + 1) / 2; }
  /// The singles of two matrices go together; those of a last one have nothing beside them.
  __host__ __device__ int turns() const {
    return count / 2 * (2 * pairs() + singles()) + count % 2 * (pairs() + singles());
  }
};

constexpr int kStages = 5;
/// Of shared memory, see Memory.
constexpr int kBytes = 1024 + kStages * 2 * kBytesX + 8 * kParts * kBytesBox + 2 * kBytesMirror +
                       (2 * kStages + 8) * 8;

#if TL_HOPPER_CODE

/// A block's tile. Past the last matrix it reads zeros and stores nothing.
struct Work {
  int row, col, matrix;  // in tiles
  bool single;
};

__device__ Work work_at(const Walk& w, int turn, int rank) {
  const int pairs = w.pairs(), singles = w.singles(), of_two = 2 * pairs + singles;
  int matrix = turn / of_two * 2, rest = turn % of_two;
  if (rest >= pairs && rest < pairs + singles) {
    const int at = 2 * (rest - pairs) + 1 - w.side % 2;
    return {at, at, matrix + rank, true};
  }
  if (rest >= pairs) rest -= pairs + singles, ++matrix;
  int col = 0;
  for (; rest >= (w.side - col) / 2; ++col) rest -= (w.side - col) / 2;
  return {col + (w.side - col) % 2 + 2 * rest + rank, col, matrix, false};
}

/// Shared memory of a block, as addresses: the stages, for e and C the boxes of each of the eight
/// warps, the mirrored rows of each warpgroup, and barriers.
struct Memory {
  unsigned base;
  __device__ explicit Memory(unsigned start) : base((start + 1023) / 1024 * 1024) {}
  __device__ unsigned rows(int stage) const { return base + stage * 2 * kBytesX; }
  __device__ unsigned cols(int stage) const { return rows(stage) + kBytesX; }
  __device__ unsigned boxes(int warp) const { return rows(kStages) + warp * kParts * kBytesBox; }
  __device__ unsigned mirror(int group) const { return boxes(8) + group * kBytesMirror; }
  __device__ unsigned full(int stage) const { return mirror(2) + stage * 8; }
  __device__ unsigned empty(int stage) const { return full(kStages + stage); }
  __device__ unsigned added(int warp) const { return full(2 * kStages + warp); }
};

/// One thread: brings X for all of the block's tiles.
__device__ void feed(const Walk& w, const Memory& shared, const CUtensorMap& x) {
  using namespace hopper;
  const int rank = static_cast<int>(cluster_rank());
  constexpr uint16_t kBoth = (1 << kCluster) - 1;
  Place<kStages> at;
  for (int turn = blockIdx.x / kCluster; turn < w.turns(); turn += gridDim.x / kCluster) {
    const Work work = work_at(w, turn, rank);
    const int row = work.row * kSide, col = work.col * kSide;
    for (int step = 0; step < w.steps; ++step, at.advance()) {
      const unsigned full = shared.full(at.stage);
      barrier_wait(shared.empty(at.stage), at.parity ^ 1);
      barrier_expect(full, work.single ? kBytesX : 2 * kBytesX);
      const int k = step * kDepth;
      const unsigned rows = shared.rows(at.stage);
      load_box(rows, x, full, k, row, work.matrix);
      load_box(rows + kBytesX / 2, x, full, k, row + kHalf, work.matrix);
      if (!work.single)
        load_box_multicast(shared.cols(at.stage) + rank * (kBytesX / 2), x, full, kBoth, k,
                           col + rank * kHalf, work.matrix);
    }
  }
}

/// A warp's 16 rows of a tile: C goes to its boxes, where e lies, and below the diagonal also to
/// the warpgroup's mirrored rows. `diagonal`: the tile's column where the lane's first row meets
/// it, negative off the diagonal.
template <bool Reads>
__device__ void make_rows(const Factors& factors,
                          unsigned boxes,
                          unsigned mirror,
                          bool mirrored,
                          int diagonal,
                          const float (&sums)[64]) {
  using namespace hopper;
  const int warp = threadIdx.x / kWarp % 4, lane = threadIdx.x % kWarp;
  const int row = lane % 16, unit = lane / 16;
  // Transposed, the second and third of the four matrices change places.
  const int mirror_row = lane % 8 + 8 * (lane / 16), mirror_unit = 2 * warp + lane / 8 % 2;
  const unsigned mirror_at = mirror + mirror_row * 128 + ((mirror_unit ^ (lane % 8)) * 16);
#pragma unroll
  for (int q = 0; q < kSide / 16; ++q) {
    const unsigned at = boxes + q / (kBox / 16) * kBytesBox + row * 128 +
                        (((2 * (q % (kBox / 16)) + unit) ^ (row % 8)) * 16);
    unsigned e[4]{}, words[4];
    if constexpr (Reads) load_matrices(e, at);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = factors.product * sums[8 * q + 4 * (i / 2) + 2 * h + i % 2];
        if constexpr (Reads) v[i] += factors.added * half_of(e[i / 2 * 2 + h], i % 2);
        if (16 * q + 8 * (i / 2) + 2 * (lane % 4) + i % 2 == diagonal + 8 * h)
          v[i] += factors.diagonal;
      }
      words[h] = pack_bf16(v[0], v[1]);
      words[2 + h] = pack_bf16(v[2], v[3]);
    }
    store_matrices(at, words);
    if (mirrored) store_matrices_transposed(mirror_at + q * 16 * 128, words);
  }
}

/// A warpgroup: multiplies, and finishes its 64 rows of every tile.
template <bool Reads>
__device__ void multiply(const Walk& w,
                         const Factors& factors,
                         const Memory& shared,
                         const CUtensorMap& c,
                         const CUtensorMap& c_mirror,
                         const CUtensorMap& e,
                         int group) {
  using namespace hopper;
  const int rank = static_cast<int>(cluster_rank());
  const int warp = threadIdx.x / kWarp % 4, lane = threadIdx.x % kWarp;
  const unsigned boxes = shared.boxes(group * 4 + warp), added = shared.added(group * 4 + warp);
  const unsigned mirror = shared.mirror(group);
  const bool frees = lane == 0 && warp < kCluster;
  unsigned parity = 0;  // of the barrier for e
  float sums[64];
  Place<kStages> at;
  for (int turn = blockIdx.x / kCluster; turn < w.turns(); turn += gridDim.x / kCluster) {
    const Work work = work_at(w, turn, rank);
    const int of_group = work.row * kSide + group * kHalf, col = work.col * kSide;
    const int row = of_group + warp * 16;
    float of_matrix = 1.0f;
    if (factors.of_matrix != nullptr && work.matrix < w.count)
      of_matrix = factors.of_matrix[work.matrix];
    int before = 0;
    for (int step = 0; step < w.steps; ++step, at.advance()) {
      barrier_wait(shared.full(at.stage), at.parity);
      wgmma_fence();
      const unsigned a = shared.rows(at.stage) + group * (kBytesX / 2);
      const unsigned b = work.single ? shared.rows(at.stage) : shared.cols(at.stage);
#pragma unroll
      for (int k = 0; k < kDepth; k += 16)
        wgmma_64x128x16<false>(sums, wgmma_matrix(a + k * 2), wgmma_matrix(b + k * 2),
                               step > 0 || k > 0);
      wgmma_commit();
      if (Reads && step == 0) {
        // Under the products: the boxes are free once their last stores have been read.
        if (lane == 0) {
          store_wait_read<0>();
          barrier_expect(added, kParts * kBytesBox);
          for (int part = 0; part < kParts; ++part)
            load_box(boxes + part * kBytesBox, e, added, col + part * kBox, row, work.matrix);
        }
        __syncwarp();
      }
      if (step > 0) {
        wgmma_wait<1>();
        if (frees) barrier_arrive(shared.empty(before), warp);
      }
      before = at.stage;
    }
    wgmma_wait<0>();
    wgmma_hold(sums);
    if (frees) barrier_arrive(shared.empty(before), warp);
    if constexpr (Reads) {
      barrier_wait(added, parity);
      parity ^= 1;
    }
    // What the last tile stored has been read: a warp's boxes, and the rows that all four mirror.
    if (lane == 0) store_wait_read<0>();
    warpgroup_sync(1 + group);
    const bool below = work.row != work.col;
    const Factors of_tile{.product = factors.product * of_matrix,
                          .added = factors.added * of_matrix,
                          .diagonal = factors.diagonal * of_matrix};
    make_rows<Reads>(of_tile, boxes, mirror, below,
                     below ? -kSide : group * kHalf + warp * 16 + lane / 4, sums);
    fence_for_copies();
    warpgroup_sync(1 + group);
    if (lane == 0) {
      for (int part = 0; part < kParts; ++part)
        store_box(c, boxes + part * kBytesBox, col + part * kBox, row, work.matrix);
      if (below && warp == 0) store_box(c_mirror, mirror, of_group, col, work.matrix);
      store_commit();
    }
  }
  if (lane == 0) store_wait_all();
}

#endif  // TL_HOPPER_CODE

/// Launched in clusters of kCluster blocks. `c_mirror` is C in boxes of kSide rows.
template <bool Reads>
__global__ void __launch_bounds__(kThreads, 1)
    symmetric_kernel(const Walk w,
                     const Factors factors,
                     const __grid_constant__ CUtensorMap x,
                     const __grid_constant__ CUtensorMap c,
                     const __grid_constant__ CUtensorMap c_mirror,
                     const __grid_constant__ CUtensorMap e) {
#if TL_HOPPER_CODE
  using namespace hopper;
  extern __shared__ unsigned char memory[];
  const Memory shared(shared_address(memory));
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(shared.full(stage), 1);
      barrier_init(shared.empty(stage), 2 * kCluster);
    }
    for (int warp = 0; warp < 8; ++warp) barrier_init(shared.added(warp), 1);
    barrier_init_fence();
    prefetch_map(x);
    prefetch_map(c);
    prefetch_map(c_mirror);
  }
  cluster_sync();
  const int group = threadIdx.x / kWarpgroup;
  if (group < 2) {
    multiply<Reads>(w, factors, shared, c, c_mirror, e, group);
  } else if (threadIdx.x % kWarpgroup == 0) {
    feed(w, shared, x);
  }
  __syncwarp();
  cluster_sync();  // no block may leave while the other still writes to it
#endif
}

}  // namespace

void enqueue_symmetric(const Exec& exec,
                       const Gemm& g,
                       const GemmBatch& batch,
                       const GemmCudaFactors& factors) {
  const int64_t n = batch.count;
  const Walk w{
      .side = blocks_of(g.M, kSide), .count = static_cast<int>(n), .steps = blocks_of(g.K, kDepth)};
  const CUtensorMap x = map_of(g.a.data, g.M, g.K, g.a.ld, n, batch.a_stride, kHalf);
  const CUtensorMap c = map_of(g.c.data, g.M, g.N, g.c.ld, n, batch.c_stride, 16);
  const CUtensorMap c_mirror = map_of(g.c.data, g.M, g.N, g.c.ld, n, batch.c_stride, kSide);
  if (g.epilogue == GemmEpilogue::none)
    return launch<symmetric_kernel<false>, kBytes>(exec, w.turns(), w, factors, x, c, c_mirror, c);
  const CUtensorMap e = map_of(g.e.data, g.M, g.N, g.e.ld, n, batch.e_stride, 16);
  launch<symmetric_kernel<true>, kBytes>(exec, w.turns(), w, factors, x, c, c_mirror, e);
}

}  // namespace tightloop::sm90
