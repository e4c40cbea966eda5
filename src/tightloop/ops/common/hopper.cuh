#pragma once

#include <cstdint>
#include <cuda.h>

/// The instructions of sm_90a that have no C++ form: barriers in shared memory that count arrivals
/// and bytes, the tensor copy engine (TMA), and the products of a warpgroup (wgmma). Only for
/// kernels compiled where TL_HOPPER_CODE holds.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TL_HOPPER_CODE 1
#else
#define TL_HOPPER_CODE 0
#endif

namespace tightloop::hopper {

constexpr int kWarpgroup = 128;  // threads that issue a wgmma together

__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

#if TL_HOPPER_CODE

// Barriers. A phase ends when `arrivals` threads have arrived and all expected bytes have landed.

__device__ inline void barrier_init(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
/// Makes the initialised barriers visible to the cluster and the copy engine.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void barrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ inline void barrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives at the barrier that block `rank` of the cluster has at the same place.
__device__ inline void barrier_arrive(unsigned barrier, unsigned rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
/// Waits for the end of the phase of this parity.
__device__ inline void barrier_wait(unsigned barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@ended bra done;\n"
      "bra again;\n"
      "done:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// All warps of a warpgroup wait for each other; `barrier` 1 to 15.
__device__ inline void warpgroup_sync(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kWarpgroup) : "memory");
}

__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// Copies of boxes of a tensor of three dimensions, `x` the innermost. Elements outside the tensor
// are read as 0 and not written.

__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
__device__ inline void load_box(
    unsigned to, const CUtensorMap& map, unsigned barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}
/// Into the last cache only.
__device__ inline void prefetch_box(const CUtensorMap& map, int x, int y, int z) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(&map), "r"(x),
               "r"(y), "r"(z)
               : "memory");
}
/// The box goes to the same place in every block of the cluster in `blocks` (bit = rank), and its
/// bytes are counted by each one's barrier.
__device__ inline void load_box_multicast(
    unsigned to, const CUtensorMap& map, unsigned barrier, uint16_t blocks, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(to),
      "l"(&map), "r"(barrier), "h"(blocks), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ inline void store_box(const CUtensorMap& map, unsigned from, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(from), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// Copies of whole runs of bytes: addresses and lengths are multiples of 16.

__device__ inline void store_run(void* to, unsigned from, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(from), "r"(bytes)
               : "memory");
}
/// Adds f32 to what is there, each element at once.
__device__ inline void add_run(float* to, unsigned from, unsigned bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(from), "r"(bytes)
               : "memory");
}
__device__ inline void store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Waits until all but the last `Newest` stores of this thread have been read from shared memory.
template <int Newest>
__device__ inline void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Newest) : "memory");
}
__device__ inline void store_wait_all() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
/// Ordinary stores to shared memory before it are seen by the copy engine after it.
__device__ inline void fence_for_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// Orders the copy engine's accesses to device memory and ordinary ones.
__device__ inline void fence_copies_in_memory() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

/// Four 8 x 8 matrices from registers: r[m] of lane l holds row l / 4, columns 2 (l % 4) and + 1 of
/// matrix m; lane l points to row l % 8 of matrix l / 8, 16 bytes aligned.
__device__ inline void store_matrices(unsigned row, const unsigned (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/// The same with each of the four matrices transposed on the way.
__device__ inline void store_matrices_transposed(unsigned row, const unsigned (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/// The other way round, not transposed.
__device__ inline void load_matrices(unsigned (&r)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// Products of a warpgroup.

/// Gives up or takes registers: all four warps, the same number.
template <int Count>
__device__ inline void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ inline void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Newest>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Newest) : "memory");
}
/// The compiler may not move uses of the sums across this point.
template <int N>
__device__ inline void wgmma_hold(float (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

/// Where wgmma finds a matrix of bf16 in shared memory, in rows of 128 bytes swizzled as the copy
/// engine writes them (16-byte unit u of row r lies at u ^ (r % 8)), 8 rows every 1024 bytes.
/// The rows run along K (K in the rows' 64 elements) or along N; in the second case `next` is the
/// distance in bytes to the next 64 of N.
__device__ inline uint64_t wgmma_matrix(unsigned address, unsigned next = 16) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(next >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | uint64_t{1} << 62;
}
/// The same from a place `bytes` further on.
__device__ inline uint64_t wgmma_further(uint64_t matrix, unsigned bytes) {
  return (matrix & 0xffffffff00000000) | (static_cast<unsigned>(matrix) + (bytes >> 4));
}

#define TL_SUMS4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define TL_SUMS16(c, i) TL_SUMS4(c, i), TL_SUMS4(c, i + 4), TL_SUMS4(c, i + 8), TL_SUMS4(c, i + 12)

/// d (64,256) = a (64,16) b (16,256) + (add ? d : 0), sums in f32. Warp w of the group holds rows
/// 16 w to 16 w + 15; lane l: d[4 j + 2 h + i] is row 8 h + l / 4, column 8 j + 2 (l % 4) + i.
/// AlongN: the rows of b in shared memory run along N, not K.
template <bool AlongN>
__device__ inline void wgmma_64x256x16(float (&d)[128], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
      "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
      "%125, %126, %127}, %128, %129, p, 1, 1, 0, %131;\n"
      "}\n"
      : TL_SUMS16("+f", 0), TL_SUMS16("+f", 16), TL_SUMS16("+f", 32), TL_SUMS16("+f", 48),
        TL_SUMS16("+f", 64), TL_SUMS16("+f", 80), TL_SUMS16("+f", 96), TL_SUMS16("+f", 112)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(AlongN ? 1 : 0));
}

/// d (64,64) = a (64,16) b (16,64) + (Add ? d : 0), sums in f32, laid out as those of 64 x 256.
/// AlongM, AlongN: the rows of a, of b in shared memory run along M, along N, not K. Without Add d
/// is only written: what it held may still be in use.
template <bool AlongM, bool AlongN, bool Add>
__device__ inline void wgmma_64x64x16(float (&d)[32], uint64_t a, uint64_t b) {
#define TL_WGMMA(...)                                                                          \
  asm volatile(                                                                                \
      "{\n"                                                                                    \
      ".reg .pred p;\n"                                                                        \
      "setp.ne.b32 p, %34, 0;\n"                                                               \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "                                  \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                     \
      "%32, %33, p, 1, 1, %35, %36;\n"                                                         \
      "}\n"                                                                                    \
      : __VA_ARGS__                                                                            \
      : "l"(a), "l"(b), "n"(Add ? 1 : 0), "n"(AlongM ? 1 : 0), "n"(AlongN ? 1 : 0))
  if constexpr (Add) {
    TL_WGMMA(TL_SUMS16("+f", 0), TL_SUMS16("+f", 16));
  } else {
    TL_WGMMA(TL_SUMS16("=f", 0), TL_SUMS16("=f", 16));
  }
#undef TL_WGMMA
}

/// d (64,128) = a (64,16) b (16,128) + (add ? d : 0), sums in f32, laid out as those of 64 x 256.
template <bool AlongN>
__device__ inline void wgmma_64x128x16(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, %67;\n"
      "}\n"
      : TL_SUMS16("+f", 0), TL_SUMS16("+f", 16), TL_SUMS16("+f", 32), TL_SUMS16("+f", 48)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(AlongN ? 1 : 0));
}

/// The same with a in registers: word 2 c + h of lane l holds row 8 h + l / 4, columns 8 c + 2 (l %
/// 4) and + 1 of the warp's 16 rows: a pack of the sums of two columns of eight that an earlier
/// product left.
template <bool AlongN>
__device__ inline void wgmma_64x128x16(float (&d)[64],
                                       const unsigned (&a)[4],
                                       uint64_t b,
                                       bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n"
      "}\n"
      : TL_SUMS16("+f", 0), TL_SUMS16("+f", 16), TL_SUMS16("+f", 32), TL_SUMS16("+f", 48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
        "n"(AlongN ? 1 : 0));
}

#undef TL_SUMS4
#undef TL_SUMS16

#endif  // TL_HOPPER_CODE

}  // namespace tightloop::hopper
