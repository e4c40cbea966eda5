#pragma once

// Internal to the attention operations: what one instruction set provides. They split their work
// into blocks and decide in which order the blocks meet.

#include <cstdint>

namespace tightloop::attention_detail {

/// Queries, and keys, of one block. A multiple of every kernel's tile height and panel width.
constexpr int64_t kBlock{96};
/// Floats added to each row of a packed matrix, so that rows do not fall into the same cache sets.
constexpr int64_t kRowPad{16};
constexpr int64_t kScoreLd{kBlock + kRowPad};

/// One block of queries of one head against all the keys they see. Packed rows have `ld` floats,
/// zero beyond `dim`; a panel holds nr keys as (dim, nr).
struct FwdBlock {
  const float* q;         // (kBlock, ld), zero beyond `queries`
  const float* k_panels;  // all keys from position 0
  const float* v;         // (positions, ld)
  float* sums;            // (kBlock, ld): work space, the unfinished output
  float* scores;          // (kBlock, kScoreLd): work space
  float* largest;         // (kBlock): work space
  float* total;           // (kBlock): work space
  float* o;               // first row of the output
  int64_t o_stride;
  float* lse;  // null: not wanted
  int64_t first_query, queries;
  int64_t dim, ld, window;
  float scale_log2;  // softmax_scale * log2(e)
};

/// One block of queries against one block of keys; adds to dq, dk, dv.
struct BwdPair {
  const float *q, *grad_o;        // (kBlock, ld)
  const float *lse_log2, *delta;  // (kBlock): lse * log2(e), softmax_scale * do·o
  const float* k;                 // (kBlock, ld)
  const float *k_panels, *v_panels;
  float *dq, *dk, *dv;  // (kBlock, ld)
  float *p, *ds;        // (kBlock, kScoreLd): work space
  int64_t first_query, queries, first_key, keys;
  int64_t dim, ld, window;
  float scale, scale_log2;
};

struct Kernels {
  const char* name;
  int64_t mr, nr;  // a tile: queries (or keys) by keys (or columns)
  void (*fwd)(const FwdBlock&);
  void (*bwd)(const BwdPair&);
};

/// Null where this build or this processor lacks the instruction set.
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();
/// The best of them.
const Kernels& native_kernels();

}  // namespace tightloop::attention_detail
