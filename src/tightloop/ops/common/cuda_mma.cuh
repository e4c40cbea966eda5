#pragma once

#include "tightloop/ops/common/cuda_kernel.cuh"

/// The instructions of sm_80 and later that have no C++ form: tensor cores on bf16 and copies into
/// shared memory that run beside the arithmetic.
///
/// Fragments of a warp, g = lane / 4, t = lane % 4:
///   A (16 x 16)  a[0..3]: rows g, g + 8, g, g + 8; columns 2t and 2t + 1, for a[2..3] 8 further on
///   B (16 x 8)   b0, b1:  column g; rows 2t and 2t + 1, for b1 8 further on
///   C (16 x 8)   c[0..1]: row g, columns 2t and 2t + 1; c[2..3] row g + 8
namespace tightloop {

__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/// Four 8 x 8 matrices; lane l points to row l % 8 of matrix l / 8, 16 bytes aligned. r[m] gets
/// from matrix m row g, columns 2t and 2t + 1; transposed: column g, rows 2t and 2t + 1.
__device__ inline void load_matrices(unsigned (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(unsigned (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// c += a b, sums in f32.
__device__ inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Starts copying 16 bytes, both ends aligned; zeros when not `present` (global must be a valid
/// address all the same). Copies belong to the next commit; wait<N> returns when all but the last N
/// commits of this thread have landed. Other threads see them after a barrier.
__device__ inline void copy_16(void* shared, const void* global, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(present ? 16 : 0)
               : "memory");
}
__device__ inline void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace tightloop
