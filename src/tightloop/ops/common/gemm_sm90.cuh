#pragma once

#include <algorithm>

#include "tightloop/ops/common/cuda_kernel.cuh"
#include "tightloop/ops/common/gemm_sm90.h"
#include "tightloop/ops/common/hopper.cuh"

/// The matrix product of Hopper. A cluster of two blocks, one above the other, computes tiles of
/// 256 x 256: each block 128 rows, its two warpgroups 64 each, with the sums of 64 x 256 in their
/// registers. A third warpgroup feeds them: TMA brings 64 of K at a time into a ring of stages,
/// the block's own rows of A, and half of the tile's columns of B, which goes to both blocks.
///
/// The blocks stay and take one tile after the other. The two warpgroups share the stages but do
/// not wait for each other, so that one's epilogue runs while the other keeps the tensor cores
/// busy.
namespace tightloop::sm90 {

constexpr int kRows = 128, kCols = 256, kDepth = 64;  // of a block's tile
constexpr int kCluster = 2;
constexpr int kThreads = 3 * hopper::kWarpgroup;
constexpr int kBytesA = kRows * kDepth * 2, kBytesB = kCols * kDepth * 2;
constexpr int kBox = 64;                  // columns of C and e that move at once
constexpr int kBytesBox = 16 * kBox * 2;  // a warp's rows of them
constexpr int kBoxes = kCols / kBox;
constexpr int kBand = 16;  // columns of tiles that are walked together, so that their B stays in L2

/// The tiles of a product, beside its maps.
struct Product {
  int tile_rows, tile_cols, count;  // tiles of a cluster; matrices of the stack
  int steps;                        // kDepth of K each

  __host__ __device__ int tiles() const { return tile_rows * tile_cols * count; }
};

struct Tile {
  int row, col, matrix;  // in tiles
};

/// Tile i in the order in which the clusters take them: all rows of a band of columns, then the
/// next band.
__device__ inline Tile tile_at(const Product& p, int i) {
  const int of_matrix = p.tile_rows * p.tile_cols;
  const int matrix = i / of_matrix, rest = i % of_matrix;
  const int band = rest / (p.tile_rows * kBand), first = band * kBand;
  const int width = min(kBand, p.tile_cols - first), within = rest - p.tile_rows * first;
  return {within / width, first + within % width, matrix};
}

// An epilogue makes the elements of C from the sums. It has
//   kReads    whether it reads e
//   kStores   whether there is a C; without one it only finishes rows
//   Rows      what a lane keeps for its two rows of a tile, h = 0 and 1
//   rows(first, col)   for rows first and first + 8 of C, in the tile whose columns start at col
//   Rows::make(h, c, v, e)  turns the sums v at columns c, c + 1, c + 8 and c + 9 of the tile into
//                           elements; e has its own there
//   Rows::finish()     when all columns of the tile are done; called by whole warps

/// Epilogues that look at nothing but the element.
template <typename Function>
struct Elementwise : Function {
  static constexpr bool kStores = true;
  struct Rows {
    Function f;
    __device__ void make(int, int, float (&v)[4], const float (&e)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = f.at(v[i], e[i]);
    }
    __device__ void finish() {}
  };
  __device__ Rows rows(int, int) const {
    return {*this};
  }
};

struct Scale {
  static constexpr bool kReads = false;
  float product;
  __device__ float at(float v, float) const { return product * v; }
};
struct SquaredRelu {
  static constexpr bool kReads = false;
  __device__ float at(float v, float) const {
    const float positive = v > 0.0f ? v : (v != v ? v : 0.0f);
    return positive * positive;
  }
};
struct SquaredReluBwd {
  static constexpr bool kReads = true;
  __device__ float at(float v, float e) const {
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(e));
    return v * (2.0f * root);
  }
};
struct Add {
  static constexpr bool kReads = true;
  float product, added;
  __device__ float at(float v, float e) const { return product * v + added * e; }
};

/// Row i times factors[i], zeros where that is 0.
struct ScaleRows {
  static constexpr bool kReads = false, kStores = true;
  const float* factors;
  int count;
  struct Rows {
    float factor[2];
    __device__ void make(int h, int, float (&v)[4], const float (&)[4]) {
#pragma unroll
      for (float& x : v) x = factor[h] == 0.0f ? 0.0f : factor[h] * x;
    }
    __device__ void finish() {}
  };
  __device__ Rows rows(int first, int) const {
    return {{first < count ? factors[first] : 0.0f, first + 8 < count ? factors[first + 8] : 0.0f}};
  }
};

/// Shared memory of a block, as addresses: the stages, the boxes of each of the eight warps, and
/// barriers. An epilogue that reads e needs all boxes of a tile, and so one stage goes.
template <typename Epilogue>
struct Shared {
  static constexpr int kStages = Epilogue::kReads ? 3 : 4;
  static constexpr int kWarpBoxes = Epilogue::kReads ? kBoxes : 2;
  static constexpr int kBytes =
      1024 + kStages * (kBytesA + kBytesB) + 8 * kWarpBoxes * kBytesBox + (2 * kStages + 8) * 8;

  unsigned base;
  __device__ explicit Shared(unsigned start) : base((start + 1023) / 1024 * 1024) {}
  __device__ unsigned a(int stage) const { return base + stage * (kBytesA + kBytesB); }
  __device__ unsigned b(int stage) const { return a(stage) + kBytesA; }
  __device__ unsigned boxes(int warp) const { return a(kStages) + warp * kWarpBoxes * kBytesBox; }
  __device__ unsigned full(int stage) const { return boxes(8) + stage * 8; }
  __device__ unsigned empty(int stage) const { return full(kStages + stage); }
  __device__ unsigned added(int warp) const { return full(2 * kStages + warp); }
};

#if TL_HOPPER_CODE

/// A place in the ring: the stage, and the parity of the turn.
template <int Stages>
struct Place {
  int stage = 0;
  unsigned parity = 0;
  __device__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// One thread: brings A and B of all of the block's tiles.
template <GemmForm Form, typename Memory>
__device__ void feed(const Product& p,
                     const Memory& shared,
                     const CUtensorMap& a,
                     const CUtensorMap& b) {
  using namespace hopper;
  const int rank = static_cast<int>(cluster_rank());
  constexpr uint16_t kBoth = (1 << kCluster) - 1;
  Place<Memory::kStages> at;
  for (int i = blockIdx.x / kCluster; i < p.tiles(); i += gridDim.x / kCluster) {
    const Tile tile = tile_at(p, i);
    const int row = (tile.row * kCluster + rank) * kRows, col = tile.col * kCols;
    for (int step = 0; step < p.steps; ++step, at.advance()) {
      const unsigned full = shared.full(at.stage);
      barrier_wait(shared.empty(at.stage), at.parity ^ 1);
      barrier_expect(full, kBytesA + kBytesB);
      const int k = step * kDepth;
      load_box(shared.a(at.stage), a, full, k, row, tile.matrix);
      constexpr int kHalf = kCols / kCluster;
      const unsigned half = shared.b(at.stage) + rank * (kBytesB / kCluster);
      if constexpr (Form == GemmForm::nt) {
        load_box_multicast(half, b, full, kBoth, k, col + rank * kHalf, tile.matrix);
      } else {
#pragma unroll
        for (int part = 0; part < kHalf; part += 64)
          load_box_multicast(half + part * kDepth * 2, b, full, kBoth, col + rank * kHalf + part, k,
                             tile.matrix);
      }
    }
  }
}

__device__ inline float half_of(unsigned word, int i) {
  return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u);
}

/// A warp's 16 rows of a tile, from `row` on: the epilogue, through its boxes in turn. What it
/// reads lies in the boxes, where the result goes.
template <typename Epilogue>
__device__ void store_rows(const Epilogue& epilogue,
                           const CUtensorMap& c,
                           unsigned boxes,
                           int row,
                           int col,
                           int matrix,
                           const float (&sums)[128]) {
  using namespace hopper;
  constexpr int kWarpBoxes = Shared<Epilogue>::kWarpBoxes;
  const int lane = threadIdx.x % kWarp;
  const int box_row = lane % 8 + 8 * (lane / 8 % 2), unit = lane / 16;
  auto rows = epilogue.rows(row + lane / 4, col);
#pragma unroll
  for (int part = 0; part < kBoxes; ++part) {
    const unsigned box = boxes + part % kWarpBoxes * kBytesBox;
    if constexpr (Epilogue::kStores && !Epilogue::kReads) {
      if (lane == 0) store_wait_read<kWarpBoxes - 1>();
      __syncwarp();
    }
#pragma unroll
    for (int pair = 0; pair < kBox / 16; ++pair) {
      const unsigned at = box + box_row * 128 + (((2 * pair + unit) ^ (box_row % 8)) * 16);
      unsigned e[4]{}, words[4];
      if constexpr (Epilogue::kReads) load_matrices(e, at);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int eight = part * (kBox / 8) + 2 * pair;
        float v[4], of_e[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          v[i] = sums[4 * (eight + i / 2) + 2 * h + i % 2];
          of_e[i] = half_of(e[i / 2 * 2 + h], i % 2);
        }
        rows.make(h, 8 * eight + 2 * (lane % 4), v, of_e);
        words[h] = pack_bf16(v[0], v[1]);
        words[2 + h] = pack_bf16(v[2], v[3]);
      }
      if constexpr (Epilogue::kStores) store_matrices(at, words);
    }
    if constexpr (Epilogue::kStores) {
      fence_for_copies();
      __syncwarp();
      if (lane == 0) {
        store_box(c, box, col + part * kBox, row, matrix);
        store_commit();
      }
    }
  }
  rows.finish();
}

/// A warpgroup: multiplies, and finishes its 64 rows of every tile.
template <GemmForm Form, typename Epilogue>
__device__ void multiply(const Product& p,
                         const Epilogue& epilogue,
                         const Shared<Epilogue>& shared,
                         const CUtensorMap& c,
                         const CUtensorMap& e,
                         int group) {
  using namespace hopper;
  using Memory = Shared<Epilogue>;
  constexpr bool kAlongN = Form == GemmForm::nn;
  const int rank = static_cast<int>(cluster_rank());
  const int warp = threadIdx.x / kWarp % 4, lane = threadIdx.x % kWarp;
  const unsigned boxes = shared.boxes(group * 4 + warp), added = shared.added(group * 4 + warp);
  const bool frees = lane == 0 && warp < kCluster;
  unsigned turn = 0;  // of the barrier for e
  float sums[128];
  Place<Memory::kStages> at;
  for (int i = blockIdx.x / kCluster; i < p.tiles(); i += gridDim.x / kCluster) {
    const Tile tile = tile_at(p, i);
    const int row = (tile.row * kCluster + rank) * kRows + group * 64 + warp * 16;
    const int col = tile.col * kCols;
    int before = 0;
    for (int step = 0; step < p.steps; ++step, at.advance()) {
      barrier_wait(shared.full(at.stage), at.parity);
      wgmma_fence();
      const unsigned a = shared.a(at.stage) + group * 64 * kDepth * 2, b = shared.b(at.stage);
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        const uint64_t of_b =
            kAlongN ? wgmma_matrix(b + k * 128, 64 * kDepth * 2) : wgmma_matrix(b + k * 2);
        wgmma_64x256x16<kAlongN>(sums, wgmma_matrix(a + k * 2), of_b, step > 0 || k > 0);
      }
      wgmma_commit();
      if constexpr (Epilogue::kReads) {
        // Under the products, a box now and a box then: all at once would hold up the stages. The
        // boxes are free once their last stores have been read.
        if (lane == 0) {
          if (step == 0) {
            store_wait_read<0>();
            barrier_expect(added, kBoxes * kBytesBox);
          }
#pragma unroll
          for (int part = 0; part < kBoxes; ++part)
            if (part * p.steps / kBoxes == step)
              load_box(boxes + part * kBytesBox, e, added, col + part * kBox, row, tile.matrix);
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
    if constexpr (Epilogue::kReads) {
      barrier_wait(added, turn);
      turn ^= 1;
    }
    store_rows(epilogue, c, boxes, row, col, tile.matrix, sums);
  }
  if (lane == 0) store_wait_all();
}

#endif  // TL_HOPPER_CODE

/// Launched in clusters of kCluster blocks.
template <GemmForm Form, typename Epilogue>
__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const Product p,
                   const Epilogue epilogue,
                   const __grid_constant__ CUtensorMap a,
                   const __grid_constant__ CUtensorMap b,
                   const __grid_constant__ CUtensorMap c,
                   const __grid_constant__ CUtensorMap e) {
#if TL_HOPPER_CODE
  using namespace hopper;
  extern __shared__ unsigned char memory[];
  const Shared<Epilogue> shared(shared_address(memory));
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < shared.kStages; ++stage) {
      barrier_init(shared.full(stage), 1);
      barrier_init(shared.empty(stage), 2 * kCluster);
    }
    for (int warp = 0; warp < 8; ++warp) barrier_init(shared.added(warp), 1);
    barrier_init_fence();
    prefetch_map(a);
    prefetch_map(b);
    prefetch_map(c);
  }
  cluster_sync();
  const int group = threadIdx.x / kWarpgroup;
  if (group == 2) {
    registers_down<40>();
    if (threadIdx.x % kWarpgroup == 0) feed<Form>(p, shared, a, b);
  } else {
    registers_up<232>();
    multiply<Form>(p, epilogue, shared, c, e, group);
  }
  cluster_sync();  // no block may leave while the other still writes to it
#endif
}

/// A stack of stored matrices of bf16, cut into boxes of box_rows x 64 in swizzled rows.
CUtensorMap map_of(const void* data,
                   int64_t rows,
                   int64_t cols,
                   int64_t ld,
                   int64_t count,
                   int64_t stride,
                   int box_rows);
/// Rows of f32 that lie one after the other, at most 256 elements each; a box is a row, as it is.
CUtensorMap map_of_rows(const float* data, int64_t rows, int cols);

inline int blocks_of(int64_t n, int64_t size) {
  return static_cast<int>((n + size - 1) / size);
}

/// Launches clusters that stay, as many as there is work for; Bytes of shared memory a block.
template <auto Kernel, int Bytes, typename... Args>
void launch(const Exec& exec, int most_clusters, const Args&... args) {
  static const int clusters_of_device = [] {
    const cudaError_t status =
        cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Bytes);
    if (status != cudaSuccess)
      fail(ErrorKind::device, "gemm on cuda: {} bytes of shared memory: {}", Bytes,
           cudaGetErrorString(status));
    return cuda::device_info().multiprocessors / kCluster;
  }();
  const int clusters = std::min(clusters_of_device, most_clusters);
  cudaLaunchAttribute cluster{.id = cudaLaunchAttributeClusterDimension};
  cluster.val.clusterDim = {kCluster, 1, 1};
  const cudaLaunchConfig_t config{.gridDim = static_cast<unsigned>(clusters * kCluster),
                                  .blockDim = kThreads,
                                  .dynamicSmemBytes = Bytes,
                                  .stream = cuda_stream(exec),
                                  .attrs = &cluster,
                                  .numAttrs = 1};
  (void)cudaLaunchKernelEx(&config, Kernel, args...);
  cuda::check_launch("a product");
}

/// Enqueues the product of a Gemm that gemm_sm90_takes(), with this epilogue instead of its own.
template <GemmForm Form, typename Epilogue>
void enqueue(const Exec& exec, const Gemm& g, const GemmBatch& batch, const Epilogue& epilogue) {
  const Product p{.tile_rows = blocks_of(g.M, kRows * kCluster),
                  .tile_cols = blocks_of(g.N, kCols),
                  .count = static_cast<int>(batch.count),
                  .steps = blocks_of(g.K, kDepth)};
  const int64_t n = batch.count;
  const CUtensorMap a = map_of(g.a.data, g.M, g.K, g.a.ld, n, batch.a_stride, kRows);
  const CUtensorMap b =
      Form == GemmForm::nt ? map_of(g.b.data, g.N, g.K, g.b.ld, n, batch.b_stride, kCols / kCluster)
                           : map_of(g.b.data, g.K, g.N, g.b.ld, n, batch.b_stride, kDepth);
  const CUtensorMap c =
      Epilogue::kStores ? map_of(g.c.data, g.M, g.N, g.c.ld, n, batch.c_stride, 16) : a;
  const CUtensorMap e =
      Epilogue::kReads ? map_of(g.e.data, g.M, g.N, g.e.ld, n, batch.e_stride, 16) : a;

  launch<product_kernel<Form, Epilogue>, Shared<Epilogue>::kBytes>(exec, p.tiles(), p, epilogue, a,
                                                                   b, c, e);
}

/// The same for Gemm::symmetric, as GemmCudaFactors says: tiles of 128 x 128 on and below the
/// diagonal, the others mirrored from them.
void enqueue_symmetric(const Exec& exec,
                       const Gemm& g,
                       const GemmBatch& batch,
                       const GemmCudaFactors& factors);

}  // namespace tightloop::sm90
